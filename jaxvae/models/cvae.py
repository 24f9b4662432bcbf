"""The conditional VAE of Sohn, Lee and Yan (2015): p(x|c) = ∫ p(z|c) p(x|z, c) dz for labels, images or any array.

The condition of a batch is batch["condition"]. `sampled_vae_loss`, `iwae_loss` and `vae_log_weights` see it too.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvae import losses
from jaxvae.distributions import Bernoulli, DiagGaussian
from jaxvae.models.vae import (
    Likelihood,
    apply_to_images,
    batch_keys,
    check_floating,
    decoded_log_prob,
    draws,
    weight_at,
    weighted_elbo_metrics,
)
from jaxvae.types import Array, Batch, Metrics, PRNGKey, PyTree, Schedule


class CVAE(nn.Module):
    """q(z|x, c), p(x|z, c), and a prior over z that knows the condition or does not.

    Attributes:
      encoder: (images [B, ...] in [0, 1], conditions) -> (mean, log_var), each [B, D]; `Conditioned(body)` makes one
        from an encoder of images.
      decoder: (latents [B, D], conditions) -> the likelihood's parameters, [B, ...]; `Conditioned(body)`, or
        `Unconditioned(body)` where the latent alone shall tell.
      likelihood: as in `VAE`.
      prior: conditions -> (mean, log_var) of p(z|c), each [B, D]; without one it is p(z) = N(0, I).
      embed: what the three see of a condition, such as `LabelEmbedding(10)` for labels; the condition itself unless
        given.
      latent_dim: D, where the encoder has no attribute of that name.

    Call a method through Flax: `model.apply(params, image, condition, method="encode")`.

    Raises (every method):
      TypeError: the conditions are not floating and nothing embeds them.
      ValueError: there are not as many conditions as images or latents.
    """

    encoder: Callable[[Array, Array], tuple[Array, Array]]
    decoder: Callable[[Array, Array], Array]
    likelihood: Callable[[Array], Likelihood] = Bernoulli
    prior: Callable[[Array], tuple[Array, Array]] | None = None
    embed: Callable[[Array], Array] | None = None
    latent_dim: int | None = None

    def __call__(self, image: Array, condition: Array) -> Likelihood:
        """Reconstruct through the posterior's mean; also what `init` runs."""
        if self.prior is not None:
            self.latent_prior(condition)  # so that `init` makes its parameters
        return self.transfer(image, condition, condition)

    def encode(self, image: Array, condition: Array) -> DiagGaussian:
        """q(z|x, c): images [B, ...] and conditions [B, ...] -> a Gaussian over [B, D]."""
        check_floating(image)
        return DiagGaussian(*self.encoder(image, self._embedded(condition, len(image))))

    def decode(self, latent: Array, condition: Array) -> Likelihood:
        """p(x|z, c): latents [B, D] and conditions [B, ...] -> a record over images [B, ...]."""
        return self.likelihood(self.decoder(latent, self._embedded(condition, len(latent))))

    def latent_prior(self, condition: Array) -> DiagGaussian:
        """p(z|c), or N(0, I): a Gaussian over [B, D]."""
        features = self._embedded(condition, len(condition))
        if self.prior is not None:
            return DiagGaussian(*self.prior(features))
        latent_dim = self.latent_dim or getattr(self.encoder, "latent_dim", None)
        if latent_dim is None:
            raise ValueError("the prior needs the size of the latent: pass CVAE(..., latent_dim=D)")
        zeros = jnp.zeros((len(condition), latent_dim), jnp.float32)
        return DiagGaussian(zeros, zeros)

    def sample(self, condition: Array, *, key: PRNGKey) -> Likelihood:
        """p(x|z, c) at one z ~ p(z|c) for each condition [B, ...]; the key has shape () or [B].

        Equal keys give equal noise: `key[rows]` repeats one style over several classes.
        """
        return self.decode(self.latent_prior(condition).sample(key=key), condition)

    def transfer(self, image: Array, condition: Array, other: Array) -> Likelihood:
        """Encode images with their conditions and decode with others, at the posterior's mean.

        Where the prior does not know the condition, the latent is what the condition does not tell: the style.
        """
        return self.decode(self.encode(image, condition).mean, other)

    def propose(self, image: Array, condition: Array, *, key: PRNGKey, num_samples: int) -> tuple[Array, Array]:
        """Draw z ~ q(z|x, c): the latents [S, B, D] and their log q(z|x, c), [S, B] nats, as in `VAE`."""
        posterior = self.encode(image, condition)
        latent = draws(posterior, key=key, num_samples=num_samples)
        return latent, jax.vmap(posterior.log_prob)(latent)

    def log_posterior(self, image: Array, condition: Array, latent: Array) -> Array:
        """Log q(z|x, c) of latents [S, B, D], [S, B] nats."""
        return jax.vmap(self.encode(image, condition).log_prob)(latent)

    def log_joint(self, image: Array, condition: Array, latent: Array) -> tuple[Array, Array]:
        """Log p(x|z, c) and log p(z|c) of latents [S, B, D], each [S, B] nats; they are decoded as one batch of S·B."""
        repeated = jnp.broadcast_to(condition, (len(latent), *condition.shape)).reshape(-1, *condition.shape[1:])
        log_likelihood = decoded_log_prob(lambda z: self.decode(z, repeated), image, latent)
        return log_likelihood, jax.vmap(self.latent_prior(condition).log_prob)(latent)

    def log_weights(self, image: Array, condition: Array, *, key: PRNGKey, num_samples: int) -> Array:
        """Log p(x, z|c) - log q(z|x, c) at `propose`'s draws, [S, B] nats."""
        latent, log_posterior = self.propose(image, condition, key=key, num_samples=num_samples)
        log_likelihood, log_prior = self.log_joint(image, condition, latent)
        return log_likelihood + log_prior - log_posterior

    def prior_log_weights(self, image: Array, condition: Array, *, key: PRNGKey, num_samples: int) -> Array:
        """Log p(x|z, c) at z ~ p(z|c), [S, B] nats: `log_weights` with the prior as the proposal."""
        latent = draws(self.latent_prior(condition), key=key, num_samples=num_samples)
        return self.log_joint(image, condition, latent)[0]

    def _embedded(self, condition: Array, count: int) -> Array:
        if condition.shape[:1] != (count,):
            raise ValueError(f"expected {count} conditions ({count}, ...), got {condition.shape}")
        if self.embed is not None:
            return self.embed(condition)
        if not jnp.issubdtype(condition.dtype, jnp.floating):
            raise TypeError(
                f"conditions must be floating, got {condition.dtype}; labels need CVAE(..., embed=LabelEmbedding(K))"
            )
        return condition


def cvae_loss(
    model: Any,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    beta: float | Array | Schedule = 1.0,
    num_samples: int = 1,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""The mean of distortion + β · rate given the condition: the negative conditional ELBO at β = 1.

    .. math:: \frac1B \sum_i -\frac1S \sum_s \log p(x_i | z_{si}, c_i) + \beta\, KL(q(z | x_i, c_i) || p(z | c_i)),
              \quad z_{si} \sim q(z | x_i, c_i)

    Args:
      model: a `CVAE`, or a module with the same `encode`, `latent_prior` and `log_joint`.
      params: what `model.init` returned.
      model_state: handed through; a CVAE has none.
      batch: "image" [B, ...] floating in [0, 1], "condition" [B, ...] as the model takes it, "index" [B] integer.
      key: the step's key; example i draws from `fold_in(key, index[i])`.
      step: what a schedule is evaluated at.
      beta: a number, or an optax schedule of the step. Zero or more; a traced value is not checked.
      num_samples: S, draws of the latent for each image.

    Returns:
      The loss in nats per image and `(model_state, metrics)`: "loss", "rate", "distortion" and "negative_elbo", means
      over the batch, in nats.

    Raises:
      TypeError: images or conditions are not floating (labels: not integers), or the key is not typed.
      ValueError: the batch has no conditions, they or the images do not fit the model, or β is negative or not finite.

    References:
      Sohn, Lee and Yan, Learning Structured Output Representation using Deep Conditional Generative Models, 2015.
    """
    image, condition = batch["image"], given(batch)
    weight = weight_at("beta", beta, step)
    posterior = apply_to_images(model, params, image, condition, method="encode")
    latent = draws(posterior, key=batch_keys(key, batch), num_samples=num_samples)

    distortion = -model.apply(params, image, condition, latent, method="log_joint")[0].mean(axis=0)
    prior = model.apply(params, condition, method="latent_prior")
    rate = losses.gaussian_kl_between(posterior.mean, posterior.log_var, prior.mean, prior.log_var)
    metrics = weighted_elbo_metrics(distortion, rate, weight)
    return metrics["loss"], (model_state, metrics)


def cvae_prior_log_weights(
    model: Any, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey, num_samples: int
) -> Array:
    """`CVAE.prior_log_weights` as a `LogWeightsFn`, [S, B] nats: log p(x|c) by Monte Carlo from the prior.

    The estimate needs many more samples than `vae_log_weights` does; it is what a model that only sees c can say.
    """
    del model_state
    image, condition, keys = batch["image"], given(batch), batch_keys(key, batch)
    return apply_to_images(
        model, params, image, condition, key=keys, num_samples=num_samples, method="prior_log_weights"
    )


def given(batch: Batch) -> Array:
    """The batch's conditions; `ValueError` where it has none."""
    if "condition" not in batch:
        raise ValueError(f"a conditional model needs batch['condition'], got {', '.join(sorted(batch))}")
    return batch["condition"]
