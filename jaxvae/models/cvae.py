"""The conditional VAE of Sohn, Lee and Yan (2015): p(x|c) = ∫ p(z|c) p(x|z, c) dz for labels, images or any array.

It is a VAE with an input more: the condition of a batch is batch["condition"], and every objective reads it.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxvae.keys import sample_keys
from jaxvae.models.vae import VAE, sample_prior
from jaxvae.networks._run import run
from jaxvae.types import Array, Likelihood, PRNGKey


class CVAE(VAE):
    """q(z|x, c), p(x|z, c), and a prior over z that knows the condition or does not.

    Attributes, besides those of `VAE`:
      encoder: (x [B, ...], conditions) -> the posterior's parameters; `Conditioned(body)` makes one from an encoder of
        x.
      decoder: (latents [B, D], conditions) -> the likelihood's parameters; `Conditioned(body)`, or
        `Unconditioned(body)` where only the latent shall tell.
      prior: conditions -> (mean, log_var) of p(z|c), or a prior that ignores them: N(0, I) unless given.
      embed: what the three see of a condition, such as `LabelEmbedding(10)` for labels; the condition itself unless
        given.

    Call a method through Flax: `model.apply(params, x, condition, method="encode")`.

    Raises (every method):
      TypeError: the conditions are not floating and nothing embeds them.
      ValueError: there are not as many conditions as examples or latents.
    """

    embed: Callable[[Array], Array] | None = None

    def sample(self, condition: Array, *, key: PRNGKey) -> Likelihood:  # type: ignore[override]
        """p(x|z, c) at one z ~ p(z|c) for each condition [B, ...]; the key has shape () or [B].

        Equal keys give equal noise: `key[indices]` repeats one style over several classes.
        """
        return self.decode(sample_prior(self.latent_prior(condition), len(condition), key=key), condition)

    def transfer(self, x: Array, condition: Array, other: Array, *, observed: Array | None = None) -> Likelihood:
        """Encode x with its conditions and decode with others, at the posterior's mean.

        Where the prior does not know the condition, the latent is what the condition does not tell: the style.
        """
        return self.decode(self.encode(x, condition, observed=observed).mean, other)

    def prior_log_weights(
        self, x: Array, condition: Array, *, key: PRNGKey, num_samples: int, observed: Array | None = None
    ) -> Array:
        """Log p(x|z, c) at z ~ p(z|c), [S, B] nats: the log weights with the prior as the proposal."""
        prior = self.latent_prior(condition)
        draw = jax.vmap(lambda each: sample_prior(prior, len(condition), key=each))
        return self.log_likelihood(x, condition, draw(sample_keys(key, num_samples)), observed=observed)

    def embedded(self, condition: tuple[Array, ...], count: int) -> tuple[Array, ...]:
        """The condition as the networks see it."""
        if len(condition) != 1:
            raise ValueError(f"a conditional model takes one condition, got {len(condition)}")
        (values,) = condition
        if values.shape[:1] != (count,):
            raise ValueError(f"expected {count} conditions ({count}, ...), got {values.shape}")
        if self.embed is not None:
            return (run(self.embed, values, train=self.has_rng("dropout")),)
        if not jnp.issubdtype(values.dtype, jnp.floating):
            raise TypeError(
                f"conditions must be floating, got {values.dtype}; labels need CVAE(..., embed=LabelEmbedding(K))"
            )
        return condition
