"""Gaussians: a posterior, a likelihood of real numbers, and the priors that are made of them."""

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxvae import losses
from jaxvae._checks import at_least, largest
from jaxvae.keys import check_key, noise
from jaxvae.losses._arrays import floating
from jaxvae.types import Array, PRNGKey


class DiagGaussian(NamedTuple):
    """N(mean, e^log_var) with a diagonal covariance; `mean` [B, ...], `log_var` broadcasts to it."""

    mean: Array
    log_var: Array

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats; a density."""
        return -losses.gaussian_nll(self.mean, self.log_var, x)

    def sample(self, *, key: PRNGKey) -> Array:
        """Draw mean + σ ε, differentiable in both parameters (the reparameterisation of Kingma and Welling, 2014)."""
        standard = noise(jax.random.normal, key, self.mean.shape)
        return self.mean + jnp.exp(0.5 * self.log_var) * standard

    def mode(self) -> Array:
        """The mean."""
        return self.mean


class FullGaussian(NamedTuple):
    """N(mean, L Lᵀ) with any covariance.

    Attributes:
      mean: [B, D].
      factor: L, lower triangular with a positive diagonal (Cholesky's factor), [B, D, D]; what is above the diagonal is
        not looked at.
    """

    mean: Array
    factor: Array

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats; a density."""
        mean, factor = floating(self.mean, "mean"), floating(self._lower(), "factor")
        standard = jax.lax.linalg.triangular_solve(
            factor, (floating(x, "x") - mean)[..., None], left_side=True, lower=True
        )[..., 0]
        log_det = jnp.log(jnp.diagonal(factor, axis1=1, axis2=2)).sum(axis=1)
        return StandardNormal().log_prob(standard) - log_det

    def sample(self, *, key: PRNGKey) -> Array:
        """Draw mean + L ε, differentiable in both parameters."""
        standard = noise(jax.random.normal, key, self.mean.shape)
        return self.mean + (self._lower() @ standard[..., None])[..., 0]

    def mode(self) -> Array:
        """The mean."""
        return self.mean

    def _lower(self) -> Array:
        return jnp.tril(self.factor)


@jax.tree_util.register_static
@dataclass(frozen=True)
class StandardNormal:
    """N(0, I) over latents of any shape: the prior of a plain VAE, and the record that this prior says.

    Attributes:
      shape: of one latent, or its length; only `sample` and `mean` need it. A `VAE` fills in what its encoder says.
    """

    shape: int | tuple[int, ...] | None = None

    def __call__(self, *condition: Array) -> "StandardNormal":
        """The prior, whatever the condition."""
        return self

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats of x [B, ...]; a density."""
        return -losses.gaussian_nll(jnp.zeros_like(x), jnp.zeros((), x.dtype), x)

    def sample(self, num: int, *, key: PRNGKey) -> Array:
        """[num, *shape] float32, with one key or with `num`."""
        at_least(1, num=num)
        return noise(jax.random.normal, key, (num, *self._shape()))

    @property
    def mean(self) -> Array:
        """Zeros, [1, *shape]."""
        return jnp.zeros((1, *self._shape()), jnp.float32)

    def mode(self) -> Array:
        """The mean."""
        return self.mean

    def _shape(self) -> tuple[int, ...]:
        if self.shape is None:
            raise ValueError("sample needs the size of the latent: pass VAE(..., latent_dim=D)")
        return (self.shape,) if isinstance(self.shape, int) else tuple(self.shape)


class Mixture(NamedTuple):
    """A mixture of K diagonal Gaussians, the same one for every example.

    Attributes:
      log_weights: unnormalised, [K].
      component_mean: [K, ...].
      component_log_var: log σ², [K, ...].
    """

    log_weights: Array
    component_mean: Array
    component_log_var: Array

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats of x [B, ...]; a density."""
        return -losses.gaussian_mixture_nll(self.log_weights, self.component_mean, self.component_log_var, x)

    def sample(self, num: int, *, key: PRNGKey) -> Array:
        """[num, ...]: a component each, then a draw from it, not differentiable in the weights; one key, or `num`."""
        at_least(1, num=num)
        check_key(key)
        split = jax.random.split if key.shape == () else jax.vmap(jax.random.split, out_axes=1)
        component_key, noise_key = split(key)
        gumbel = noise(jax.random.gumbel, component_key, (num, len(self.log_weights)))
        component = largest(self.log_weights[None] + gumbel)
        mean, log_var = (  # NaN beyond the last
            each.at[component].get(mode="fill", fill_value=jnp.nan)
            for each in (self.component_mean, self.component_log_var)
        )
        return DiagGaussian(mean, log_var).sample(key=noise_key)

    @property
    def mean(self) -> Array:
        """[1, ...]."""
        weights = jax.nn.softmax(self.log_weights)
        return jnp.tensordot(weights, self.component_mean, axes=1)[None]
