"""Likelihoods of real numbers with heavier tails than a Gaussian's, of positive numbers, and of the unit interval."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxvae import losses
from jaxvae._checks import unless_nan
from jaxvae.keys import noise
from jaxvae.types import Array, PRNGKey


class Laplace(NamedTuple):
    """Independent Laplace variables of scale e^log_scale; `mean` [B, ...], `log_scale` broadcasts to it."""

    mean: Array
    log_scale: Array

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats; a density."""
        return -losses.laplace_nll(self.mean, self.log_scale, x)

    def sample(self, *, key: PRNGKey) -> Array:
        """Draw mean + scale · ε, differentiable in both parameters."""
        return _scaled(self.mean, self.log_scale, noise(jax.random.laplace, key, self.mean.shape))

    def mode(self) -> Array:
        """The mean."""
        return self.mean


class StudentT(NamedTuple):
    """Independent Student-t variables with e^log_degrees degrees of freedom, for data with outliers.

    `mean` [B, ...] is the centre, also where one degree of freedom or less leaves no mean; `log_scale` and
    `log_degrees` broadcast to it.

    References:
      Takahashi et al., Student-t Variational Autoencoder for Robust Density Estimation, 2018.
    """

    mean: Array
    log_scale: Array
    log_degrees: Array

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats; a density."""
        return -losses.student_t_nll(self.mean, self.log_scale, self.log_degrees, x)

    def sample(self, *, key: PRNGKey) -> Array:
        """Draw mean + scale · ε, differentiable in all parameters; a draw that its type cannot hold is infinite."""
        return _scaled(self.mean, self.log_scale, noise(_student_t, key, self.mean.shape, self.log_degrees))

    def mode(self) -> Array:
        """The centre."""
        return self.mean


class LogNormal(NamedTuple):
    """Independent positive numbers whose logarithms are N(location, e^log_var); `location` [B, ...]."""

    location: Array
    log_var: Array

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats; a density."""
        return -losses.log_normal_nll(self.location, self.log_var, x)

    def sample(self, *, key: PRNGKey) -> Array:
        """Draw the exponential of location + σ ε, differentiable in both parameters."""
        standard = noise(jax.random.normal, key, self.location.shape)
        return jnp.exp(_scaled(self.location, 0.5 * self.log_var, standard))

    def mode(self) -> Array:
        """e^(location - σ²)."""
        return jnp.exp(self.location - jnp.broadcast_to(jnp.exp(self.log_var), self.location.shape))

    @property
    def mean(self) -> Array:
        """e^(location + σ²/2)."""
        return jnp.exp(self.location + 0.5 * jnp.broadcast_to(jnp.exp(self.log_var), self.location.shape))


class ContinuousBernoulli(NamedTuple):
    """Independent variables in [0, 1] of density proportional to e^(x · logits); `logits` [B, ...].

    A likelihood of grey values that is a density, where `Bernoulli` is one of binarised values.

    References:
      Loaiza-Ganem and Cunningham, The Continuous Bernoulli: Fixing a Pervasive Error in Variational Autoencoders, 2019.
    """

    logits: Array

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats; a density."""
        return -losses.continuous_bernoulli_nll(self.logits, x)

    def sample(self, *, key: PRNGKey) -> Array:
        """Values in [0, 1], differentiable in the logits: the quantiles of uniform noise."""
        uniform = noise(jax.random.uniform, key, self.logits.shape)
        small = jnp.abs(self.logits) < 1e-3
        size = jnp.where(small, 1, jnp.abs(self.logits))
        below_one = 1 - 0.5 * jnp.finfo(uniform.dtype).eps  # 1 would draw -inf where a logit is large
        fraction = jnp.minimum(jnp.where(self.logits < 0, uniform, 1 - uniform), below_one)
        near_zero = jnp.minimum(-jnp.log1p(fraction * jnp.expm1(-size)) / size, 1)  # a quantile at the logit -|l|
        quantile = jnp.where(self.logits < 0, near_zero, 1 - near_zero)
        almost_uniform = uniform + jnp.where(small, self.logits, 0) * uniform * (1 - uniform) / 2
        return jnp.where(small, almost_uniform, quantile)

    def mode(self) -> Array:
        """One where the logit is positive, else zero: the density is largest at an end."""
        return unless_nan((self.logits > 0).astype(self.logits.dtype), self.logits)

    @property
    def mean(self) -> Array:
        """The expected value."""
        return losses.continuous_bernoulli_mean(self.logits)


def _scaled(location: Array, log_scale: Array, standard: Array) -> Array:
    return location + jnp.broadcast_to(jnp.exp(log_scale), location.shape) * standard


def _student_t(key: PRNGKey, shape: tuple[int, ...], dtype: jnp.dtype, log_degrees: Array) -> Array:
    normal_key, gamma_key = jax.random.split(key)
    half = 0.5 * jnp.exp(log_degrees)
    log_gamma = jax.random.loggamma(gamma_key, half, shape, dtype)  # that of few degrees would underflow
    return jax.random.normal(normal_key, shape, dtype) * jnp.exp(0.5 * (log_degrees - math.log(2) - log_gamma))
