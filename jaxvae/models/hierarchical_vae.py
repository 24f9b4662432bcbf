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

from jaxvae._checks import at_least, check_x
from jaxvae.distributions import Bernoulli, DiagGaussian, StandardNormal, rate
from jaxvae.keys import check_key, sample_keys
from jaxvae.models._parts import adopt_parts, record_of
from jaxvae.models.vae import decoded_log_prob, log_prob_of_each, sample_latents
from jaxvae.networks._run import run
from jaxvae.types import Array, Likelihood, PRNGKey, Terms

Latents = tuple[Array, ...]  # z_1 to z_L


class HierarchicalVAE(nn.Module):
    """L encoders and L decoders, the layer at x first.

    Only the top layer's rate has a closed form: the others' are estimated at the draws.

    Attributes:
      encoders: x [B, ...] -> (mean, log_var) of z_1, then z_l -> (mean, log_var) of z_{l+1}.
      decoders: z_1 -> the likelihood's parameters, then z_{l+1} -> (mean, log_var) of z_l.
      likelihood: as in `VAE`.
    """

    encoders: Sequence[Callable[[Array], tuple[Array, Array]]]
    decoders: Sequence[Callable[[Array], Any]]
    likelihood: Callable[..., Likelihood] = Bernoulli

    def __post_init__(self) -> None:
        """Raise `ValueError` unless there are as many decoders as encoders; take the parts, or refuse them."""
        if not len(self.encoders) == len(self.decoders) >= 1:
            raise ValueError(
                f"there must be as many decoders as encoders, got {len(self.decoders)} and {len(self.encoders)}"
            )
        adopt_parts(self)
        super().__post_init__()

    @property
    def latent_dim(self) -> int | None:
        """The size of z_1, where its encoder says so."""
        return getattr(self.encoders[0], "latent_dim", None)

    def __call__(self, x: Array) -> Likelihood:
        """Up and down through the means; also what `init` runs."""
        latent = x
        for encoder in self.encoders:
            latent = self._gaussian(encoder, latent).mean
        for decoder in reversed(self.decoders[1:]):
            latent = self._gaussian(decoder, latent).mean
        return self.decode(latent)

    def decode(self, latent: Array) -> Likelihood:
        """p(x|z_1): [B, D_1] -> a record over x [B, ...]."""
        train = self.has_rng("dropout")
        return run(self.likelihood, run(self.decoders[0], latent, train=train), train=train)

    def sample(self, num: int, *, key: PRNGKey) -> Likelihood:
        """p(x|z_1) at `num` draws from the prior, top down; each layer has a key of its own."""
        check_key(key)
        at_least(1, num=num)
        top = getattr(self.encoders[-1], "latent_dim", None)
        if top is None:
            raise ValueError("sample needs the size of the top latent: its encoder has no latent_dim")
        keys = jax.random.split(key, len(self.decoders))
        latent = StandardNormal(top).sample(num, key=keys[-1])
        for decoder, layer_key in zip(reversed(self.decoders[1:]), keys[:-1], strict=True):
            latent = self._gaussian(decoder, latent).sample(key=layer_key)
        return self.decode(latent)

    def propose(self, x: Array, *, key: PRNGKey, num_samples: int) -> tuple[Latents, Array]:
        """Draw z ~ q(z|x), `num_samples` times for each example.

        Args:
          x: [B, ...].
          key: of shape () or [B] (one per example); the first S draws are the same for every larger S.
          num_samples: S.

        Returns:
          The latents, each [S, B, D_l], and their log q(z|x), [S, B] nats.
        """
        latents, log_posteriors, _ = self._climb(x, key=key, num_samples=num_samples)
        return latents, sum(log_posteriors[1:], log_posteriors[0])

    def log_posterior(self, x: Array, latents: Latents) -> Array:
        """Log q(z|x) of latents [S, B, D_l], [S, B] nats."""
        log_prob = log_prob_of_each(self._gaussian(self.encoders[0], x), latents[0], "the posterior")
        for encoder, below, latent in zip(self.encoders[1:], latents[:-1], latents[1:], strict=True):
            log_prob += self._log_prob_at(encoder, below, latent)
        return log_prob

    def log_joint(self, x: Array, latents: Latents) -> tuple[Array, Array]:
        """Log p(x|z_1) and log p(z) of latents [S, B, D_l], each [S, B] nats."""
        log_priors = self._log_priors(latents)
        return decoded_log_prob(self.decode, x, latents[0]), sum(log_priors[1:], log_priors[0])

    def terms(self, x: Array, *, key: PRNGKey, num_samples: int) -> Terms:
        """What objectives and estimates read, at `propose`'s draws; the rates of "z1" to "zL"."""
        latents, log_posteriors, top = self._climb(x, key=key, num_samples=num_samples)
        log_priors = self._log_priors(latents)
        ratios = [log_prior - log_q for log_prior, log_q in zip(log_priors, log_posteriors, strict=True)]
        rates = {f"z{i + 1}": -ratio[..., None] for i, ratio in enumerate(ratios)}
        # Given the layer below, q of the top one and N(0, I) are Gaussians: one KL for each draw of what is below.
        closed = jax.vmap(lambda q: rate(q, StandardNormal(), latents[-1], log_posteriors[-1])[0])(top)
        rates[f"z{len(ratios)}"] = closed
        return Terms(decoded_log_prob(self.decode, x, latents[0]), sum(ratios[1:], ratios[0]), rates)

    def posterior_means(self, x: Array, *, key: PRNGKey, num_samples: int) -> Latents:
        """E[z_l | x], each [B, D_l]: what `active_units` reads.

        Exact for z_1. Above it, the mean of the layer's conditional means at `num_samples` draws of the layer below:
        a unit that ignores its input has no sampling noise to be mistaken for activity.
        """
        means = [self._gaussian(self.encoders[0], x).mean]
        latents, _ = self.propose(x, key=key, num_samples=num_samples)
        for encoder, below in zip(self.encoders[1:], latents[:-1], strict=True):
            means.append(self._gaussian_at(encoder, below).mean.mean(axis=0))
        return tuple(means)

    def _climb(self, x: Array, *, key: PRNGKey, num_samples: int) -> tuple[Latents, list[Array], DiagGaussian]:
        """Draws of every layer, their log q given the layer below, each [S, B], and q of the top one over [S, B, D]."""
        check_x(x)
        first, *rest = sample_keys(key, len(self.encoders))  # one for each layer
        posterior = self._gaussian(self.encoders[0], x)
        latent, log_q = sample_latents(posterior, key=first, num_samples=num_samples)
        latents, log_posteriors = [latent], [log_q]
        top = jax.tree.map(lambda leaf: leaf[None], posterior)  # the same for every draw
        for encoder, layer_key in zip(self.encoders[1:], rest, strict=True):
            top = self._gaussian_at(encoder, latent)
            keys = sample_keys(layer_key, num_samples)
            latent = jax.vmap(lambda each, key: each.sample(key=key))(top, keys)
            latents.append(latent)
            log_posteriors.append(jax.vmap(DiagGaussian.log_prob)(top, latent))
        return tuple(latents), log_posteriors, top

    def _log_priors(self, latents: Latents) -> list[Array]:
        """Log p(z_l | z_{l+1}) of every layer, each [S, B] nats."""
        log_priors = [
            self._log_prob_at(decoder, above, latent)
            for decoder, latent, above in zip(self.decoders[1:], latents[:-1], latents[1:], strict=True)
        ]
        return [*log_priors, jax.vmap(StandardNormal().log_prob)(latents[-1])]

    def _gaussian(self, network: Callable[[Array], tuple[Array, Array]], below: Array) -> DiagGaussian:
        """What a network says of [B, ...]: a Gaussian over [B, D]."""
        train = self.has_rng("dropout")
        record: Any = record_of(DiagGaussian, run(network, below, train=train), len(below), train=train)
        return DiagGaussian(record.mean, jnp.broadcast_to(record.log_var, record.mean.shape))

    def _gaussian_at(self, network: Callable[[Array], tuple[Array, Array]], latent: Array) -> DiagGaussian:
        """What a network says of latents [S, B, D]: a Gaussian over [S, B, D']."""
        moments = self._gaussian(network, latent.reshape(-1, latent.shape[-1]))
        return DiagGaussian(*(m.reshape(*latent.shape[:2], m.shape[-1]) for m in moments))

    def _log_prob_at(self, network: Callable[[Array], tuple[Array, Array]], at: Array, latent: Array) -> Array:
        """Log N(latent; network(at)), [S, B] nats."""
        return jax.vmap(DiagGaussian.log_prob)(self._gaussian_at(network, at), latent)
