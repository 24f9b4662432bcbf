"""Priors over latents, as modules: called with the conditions of a batch, if any, they return a record.

A prior of yours is any callable, or Linen module, that returns a record with `log_prob(z)` [B] and a way to sample: of
one that is the same for every example `sample(num, key=)`, of one that describes each example by its condition
`sample(key=)`. A network that returns (mean, log_var) is taken as a diagonal Gaussian given the condition.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxvae._checks import at_least
from jaxvae.distributions import Mixture, StandardNormal
from jaxvae.flows import FlowPrior
from jaxvae.types import Array, PRNGKey

__all__ = ["Examples", "FlowPrior", "GaussianMixture", "PseudoInputs", "StandardNormal", "VampPrior"]


class GaussianMixture(nn.Module):
    """A learned mixture of K diagonal Gaussians over latents [B, D], whatever the condition.

    It starts with equal weights, unit variances, and means that are drawn so that a mixture of one is N(0, I).

    Attributes:
      num_components: K.
      latent_dim: D.

    References:
      Dilokthanakul et al., Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders, 2016;
      Tomczak and Welling, VAE with a VampPrior, 2018, section 2, for a mixture as the prior.
    """

    num_components: int
    latent_dim: int

    @nn.compact
    def __call__(self, *condition: Array) -> Mixture:
        """The mixture.

        Raises:
          ValueError: a size is below 1.
        """
        at_least(1, num_components=self.num_components, latent_dim=self.latent_dim)
        shape = (self.num_components, self.latent_dim)
        spread = nn.initializers.normal(math.sqrt(1 - 1 / self.num_components))
        return Mixture(
            self.param("log_weights", nn.initializers.zeros, shape[:1], jnp.float32),
            self.param("mean", spread, shape, jnp.float32),
            self.param("log_var", nn.initializers.zeros, shape, jnp.float32),
        )


class PseudoInputs(NamedTuple):
    """What a `VampPrior` returns; a `VAE` makes the prior's record of it, the mixture of its own posteriors of these.

    Attributes:
      x: as the encoder sees x, [K, ...].
    """

    x: Array


class VampPrior(nn.Module):
    """The posteriors of K learned pseudo-inputs u, by the model's own encoder: p(z) = 1/K Σ_k q(z|u_k).

    With all of the training set for the pseudo-inputs it would be the aggregate posterior, the best prior there is. The
    encoder takes them as in evaluation: without dropout, by the statistics that BatchNorm has. They are not kept within
    the values of x, and look like pictures only where they started as some. For a `VAE` without a condition.

    Attributes:
      num_pseudo_inputs: K.
      shape: of one x as the encoder sees it: where entries may be missing, twice as wide, with the mask.
      initial: (key, shape, dtype) -> the pseudo-inputs at the start, [K, ...]: uniform in [0, 1), or `Examples`.

    References:
      Tomczak and Welling, VAE with a VampPrior, 2018.
    """

    num_pseudo_inputs: int
    shape: tuple[int, ...]
    initial: Callable[..., Array] = nn.initializers.uniform(1.0)

    @nn.compact
    def __call__(self, *condition: Array) -> PseudoInputs:
        """The pseudo-inputs.

        Raises:
          ValueError: a size is below 1.
        """
        at_least(1, num_pseudo_inputs=self.num_pseudo_inputs, shape=self.shape)
        return PseudoInputs(self.param("x", self.initial, (self.num_pseudo_inputs, *self.shape), jnp.float32))


@dataclass(frozen=True, eq=False)
class Examples:
    """Pseudo-inputs that start as random examples.

    Attributes:
      x: [N, ...], as a model sees them: `dataset.prepared(1000, key=key)["x"]`.
    """

    x: Any

    def __post_init__(self) -> None:
        """Keep them on the host."""
        object.__setattr__(self, "x", np.asarray(self.x))

    def __call__(self, key: PRNGKey, shape: tuple[int, ...], dtype: Any) -> Array:
        """`shape[0]` different ones.

        Raises:
          ValueError: there are fewer, or they have another shape.
        """
        if self.x.shape[1:] != shape[1:] or len(self.x) < shape[0]:
            raise ValueError(f"expected at least {shape[0]} examples {shape[1:]}, got {self.x.shape}")
        chosen = jax.random.choice(key, len(self.x), shape[:1], replace=False)
        return jnp.asarray(self.x, dtype)[chosen]
