"""A VAE with several stochastic layers, z_L -> ... -> z_1 -> x, proposed bottom up.

p(x, z) = N(z_L; 0, I) p(z_{L-1} | z_L) ... p(z_1 | z_2) p(x | z_1),
q(z | x) = q(z_1 | x) q(z_2 | z_1) ... q(z_L | z_{L-1}).

References:
  Rezende, Mohamed and Wierstra, Stochastic Backpropagation and Approximate Inference in Deep Generative Models, 2014;
  Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2016 (this order of the proposal).
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvae.distributions import Bernoulli, DiagGaussian
from jaxvae.keys import check_key, sample_keys
from jaxvae.models.vae import Likelihood, check_num, decoded_log_prob, draws, standard_log_prob
from jaxvae.types import Array, PRNGKey

Latents = tuple[Array, ...]  # z_1 to z_L


class HierarchicalVAE(nn.Module):
    """L encoders and L decoders, the layer at the image first.

    Its objectives are `sampled_vae_loss` and `iwae_loss`: there is no KL in closed form.

    Attributes:
      encoders: images [B, ...] -> (mean, log_var) of z_1, then z_l -> (mean, log_var) of z_{l+1}.
      decoders: z_1 -> the likelihood's parameters, then z_{l+1} -> (mean, log_var) of z_l.
      likelihood: as in `VAE`.
    """

    encoders: Sequence[Callable[[Array], tuple[Array, Array]]]
    decoders: Sequence[Callable[[Array], Any]]
    likelihood: Callable[[Array], Likelihood] = Bernoulli

    def __post_init__(self) -> None:
        """Raise `ValueError` unless there are as many decoders as encoders."""
        if not len(self.encoders) == len(self.decoders) >= 1:
            raise ValueError(
                f"there must be as many decoders as encoders, got {len(self.decoders)} and {len(self.encoders)}"
            )
        super().__post_init__()

    @property
    def latent_dim(self) -> int | None:
        """The size of z_1, where its encoder says so."""
        return getattr(self.encoders[0], "latent_dim", None)

    def __call__(self, image: Array) -> Likelihood:
        """Up and down through the means; also what `init` runs."""
        latent = image
        for encoder in self.encoders:
            latent, _ = encoder(latent)
        for decoder in reversed(self.decoders[1:]):
            latent, _ = decoder(latent)
        return self.decode(latent)

    def decode(self, latent: Array) -> Likelihood:
        """p(x|z_1): [B, D_1] -> a record over images [B, ...]."""
        return self.likelihood(self.decoders[0](latent))

    def sample(self, num: int, *, key: PRNGKey) -> Likelihood:
        """p(x|z_1) at `num` draws from the prior, top down."""
        check_key(key)
        check_num(num)
        top = getattr(self.encoders[-1], "latent_dim", None)
        if top is None:
            raise ValueError("sample needs the size of the top latent: its encoder has no latent_dim")
        keys = jax.random.split(key, len(self.decoders))
        latent = jax.random.normal(keys[-1], (num, top), jnp.float32)
        for decoder, layer_key in zip(reversed(self.decoders[1:]), keys[:-1], strict=True):
            latent = DiagGaussian(*decoder(latent)).sample(key=layer_key)
        return self.decode(latent)

    def propose(self, image: Array, *, key: PRNGKey, num_samples: int) -> tuple[Latents, Array]:
        """Draw z ~ q(z|x), `num_samples` times for each image.

        Args:
          image: [B, ...] in [0, 1].
          key: of shape () or [B] (one per example); the first S draws are the same for every larger S.
          num_samples: S.

        Returns:
          The latents, each [S, B, D_l], and their log q(z|x), [S, B] nats.
        """
        first, *rest = sample_keys(key, len(self.encoders))  # one for each layer
        posterior = DiagGaussian(*self.encoders[0](image))
        latent = draws(posterior, key=first, num_samples=num_samples)
        latents, log_posterior = [latent], jax.vmap(posterior.log_prob)(latent)
        for encoder, layer_key in zip(self.encoders[1:], rest, strict=True):
            posterior = _unfold(encoder(_fold(latent)), num_samples)
            keys = sample_keys(layer_key, num_samples)
            latent = jax.vmap(lambda each, key: each.sample(key=key))(posterior, keys)
            latents.append(latent)
            log_posterior += jax.vmap(DiagGaussian.log_prob)(posterior, latent)
        return tuple(latents), log_posterior

    def log_posterior(self, image: Array, latents: Latents) -> Array:
        """Log q(z|x) of latents [S, B, D_l], [S, B] nats."""
        log_prob = jax.vmap(DiagGaussian(*self.encoders[0](image)).log_prob)(latents[0])
        for encoder, below, latent in zip(self.encoders[1:], latents[:-1], latents[1:], strict=True):
            log_prob += _log_prob_given(encoder, below, latent)
        return log_prob

    def log_joint(self, image: Array, latents: Latents) -> tuple[Array, Array]:
        """Log p(x|z_1) and log p(z) of latents [S, B, D_l], each [S, B] nats."""
        log_prior = jax.vmap(standard_log_prob)(latents[-1])
        for decoder, latent, above in zip(self.decoders[1:], latents[:-1], latents[1:], strict=True):
            log_prior += _log_prob_given(decoder, above, latent)
        return decoded_log_prob(self.decode, image, latents[0]), log_prior

    def log_weights(self, image: Array, *, key: PRNGKey, num_samples: int) -> Array:
        """Log p(x, z) - log q(z|x) at `propose`'s draws, [S, B] nats."""
        latents, log_posterior = self.propose(image, key=key, num_samples=num_samples)
        log_likelihood, log_prior = self.log_joint(image, latents)
        return log_likelihood + log_prior - log_posterior

    def posterior_means(self, image: Array, *, key: PRNGKey, num_samples: int) -> Latents:
        """E[z_l | x], each [B, D_l]: what `active_units` looks at.

        Exact for z_1. Above it, the mean of the layer's conditional means at `num_samples` draws of the layer below:
        a unit that ignores its input has no sampling noise to be mistaken for activity.
        """
        means = [DiagGaussian(*self.encoders[0](image)).mean]
        latents, _ = self.propose(image, key=key, num_samples=num_samples)
        for encoder, below in zip(self.encoders[1:], latents[:-1], strict=True):
            means.append(_unfold(encoder(_fold(below)), num_samples).mean.mean(axis=0))
        return tuple(means)


def _fold(latent: Array) -> Array:
    """[S, B, D] -> [S·B, D]."""
    return latent.reshape(-1, latent.shape[-1])


def _unfold(moments: tuple[Array, Array], num_samples: int) -> DiagGaussian:
    """Mean and log variance [S·B, D] -> a Gaussian over [S, B, D]."""
    return DiagGaussian(*(m.reshape(num_samples, -1, m.shape[-1]) for m in moments))


def _log_prob_given(network: Callable[[Array], tuple[Array, Array]], given: Array, latent: Array) -> Array:
    """Log N(latent; network(given)), [S, B] nats."""
    return jax.vmap(DiagGaussian.log_prob)(_unfold(network(_fold(given)), len(latent)), latent)
