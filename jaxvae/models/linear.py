"""The linear VAE: encoder, decoder and prior all linear and Gaussian, so that everything is known in closed form.

Its best ELBO is the log-likelihood of probabilistic PCA or, with a variance for each element, of factor analysis
(`jaxvae.evaluation.classical`), reached where the posterior's covariance is diagonal: an oracle for a whole training
stack.

References:
  Lucas, Tucker, Grosse and Norouzi, Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse, 2019.
"""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn

from jaxvae._checks import at_least
from jaxvae.models.vae import VAE
from jaxvae.networks import MLPDecoder, SharedScale
from jaxvae.types import Array


class LinearEncoder(nn.Module):
    """x [B, ...] -> (mean, log_var), each [B, D]: a linear mean, and the same variances for all examples."""

    latent_dim: int

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, Array]:
        """Encode a batch."""
        at_least(1, latent_dim=self.latent_dim)
        mean = nn.Dense(self.latent_dim, name="mean")(x.reshape(x.shape[0], -1))
        log_var = self.param("log_var", nn.initializers.zeros, (self.latent_dim,), jnp.float32)
        return mean, jnp.broadcast_to(log_var, mean.shape)


def linear_vae(shape: Sequence[int], latent_dim: int, *, per_element: bool = False) -> VAE:
    """A `VAE` with q(z|x) = N(Vx + c, diag(s²)) and p(x|z) = N(Wz + b, σ²I); all of V, c, s, W, b, σ are learned.

    With `per_element` p(x|z) = N(Wz + b, diag(σ²)): factor analysis in place of PPCA.
    """
    return VAE(LinearEncoder(latent_dim), MLPDecoder(shape, hidden=()), SharedScale(per_element=per_element))
