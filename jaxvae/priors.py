"""Priors over latents, as modules: called with the conditions of a batch, if any, they return a record.

A prior of yours is any callable, or Linen module, that returns a record with `log_prob(z)` [B] and a way to sample: of
one that is the same for every example `sample(num, key=)`, of one that describes each example by its condition
`sample(key=)`. A network that returns (mean, log_var) is taken as a diagonal Gaussian given the condition.
"""

import math

import jax.numpy as jnp
from flax import linen as nn

from jaxvae._checks import at_least
from jaxvae.distributions import Mixture, StandardNormal
from jaxvae.flows import FlowPrior
from jaxvae.types import Array

__all__ = ["FlowPrior", "GaussianMixture", "StandardNormal"]


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
