"""Likelihoods of real numbers with heavier tails than a Gaussian's, of positive numbers, and of the unit interval."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.losses._arrays import LOG_2PI, aligned, floating, polynomial, sum_example
from jaxvae.losses._gamma import stirling

FAR = 1e8  # its square overflows in no type, and 1 more is no other number

# Of the Taylor series of coth h - 1/h: the coefficients of h, h³, h⁵, ...
LANGEVIN = (1 / 3, -1 / 45, 2 / 945, -1 / 4725, 2 / 93555, -1382 / 638512875, 4 / 18243225)


def laplace_nll(mean: Array, log_scale: Array, targets: Array) -> Array:
    r"""-log p(targets) of independent Laplace variables: the absolute error, as a likelihood.

    .. math:: \sum_j \log 2 s_j + \frac{|x_j - \mu_j|}{s_j}

    Args:
      mean: μ, `[B, ...]` floating.
      log_scale: log s, broadcasts to `mean`.
      targets: broadcasts to `mean`.

    Returns:
      `[B]` nats; a density, so it may be negative.

    Raises:
      TypeError: an argument is not floating.
      ValueError: there is no batch axis, or the shapes do not broadcast to that of `mean`.

    >>> laplace_nll(jnp.zeros((1, 1)), jnp.float32(0.0), jnp.ones((1, 1)))  # 1 + log 2
    Array([1.6931472], dtype=float32)
    """
    mean, log_scale, targets = aligned(mean=mean, log_scale=log_scale, targets=targets)
    deviation = targets - mean
    distance = deviation * jnp.sign(deviation)  # unlike that of `abs`, its derivative at 0 is 0
    return sum_example(math.log(2) + log_scale + distance * jnp.exp(-log_scale))


def student_t_nll(mean: Array, log_scale: Array, log_degrees: Array, targets: Array) -> Array:
    r"""-log p(targets) of independent Student-t variables.

    .. math:: \sum_j \log\frac{\Gamma(\nu_j / 2)}{\Gamma((\nu_j + 1) / 2)} + \tfrac12 \log \pi \nu_j + \log s_j
              + \frac{\nu_j + 1}2 \log\left(1 + \frac{(x_j - \mu_j)^2}{\nu_j s_j^2}\right)

    A Gaussian of variance s² as ν grows; at ν = 1 a Cauchy variable, which has no mean.

    Args:
      mean: μ, the centre, `[B, ...]` floating.
      log_scale: log s, broadcasts to `mean`.
      log_degrees: log ν, the degrees of freedom, broadcasts to `mean`.
      targets: broadcasts to `mean`.

    Returns:
      `[B]` nats; a density, so it may be negative.

    Raises:
      TypeError: an argument is not floating.
      ValueError: there is no batch axis, or the shapes do not broadcast to that of `mean`.

    References:
      Takahashi et al., Student-t Variational Autoencoder for Robust Density Estimation, 2018.

    >>> student_t_nll(jnp.zeros((1, 1)), jnp.float32(0.0), jnp.float32(0.0), jnp.zeros((1, 1)))  # log π
    Array([1.1447...], dtype=float32)
    """
    mean, log_scale, log_degrees, targets = aligned(
        mean=mean, log_scale=log_scale, log_degrees=log_degrees, targets=targets
    )
    half, log_half = 0.5 * jnp.exp(log_degrees), log_degrees - math.log(2)
    log_more = jnp.log(half + 0.5)
    large = half > 1
    growth = jnp.where(large, jnp.log1p(0.5 / jnp.where(large, half, 1)), log_more - log_half)
    # log Γ(ν/2 + 1/2) - log Γ(ν/2) - 1/2 log ν/2, which tends to zero
    constant = stirling(half + 0.5, log_more) - stirling(half, log_half) + (half - 0.5) * growth - 0.5
    distance = jnp.abs(targets - mean) * jnp.exp(-log_scale - 0.5 * log_degrees)
    far = distance > FAR
    tail = jnp.where(far, 2 * jnp.log(jnp.where(far, distance, 1)), jnp.log1p(jnp.square(jnp.where(far, 1, distance))))
    return sum_example(0.5 * LOG_2PI - constant + log_scale + (half + 0.5) * tail)


def log_normal_nll(location: Array, log_var: Array, targets: Array) -> Array:
    r"""-log p(targets) of independent positive numbers whose logarithms are N(location, e^log_var).

    .. math:: \sum_j \log x_j + \tfrac12 \left(\log 2\pi + \log \sigma_j^2
              + \frac{(\log x_j - m_j)^2}{\sigma_j^2}\right)

    Args:
      location: m, `[B, ...]` floating.
      log_var: log σ², broadcasts to `location`.
      targets: positive, broadcasts to `location`; what is not gives NaN or infinity.

    Returns:
      `[B]` nats; a density, so it may be negative.

    Raises:
      TypeError: an argument is not floating.
      ValueError: there is no batch axis, or the shapes do not broadcast to that of `location`.

    >>> log_normal_nll(jnp.zeros((1, 2)), jnp.float32(0.0), jnp.ones((1, 2)))  # log 2π
    Array([1.837877], dtype=float32)
    """
    location, log_var, targets = aligned(location=location, log_var=log_var, targets=targets)
    log_targets = jnp.log(targets)
    scaled = jnp.square((log_targets - location) * jnp.exp(-0.5 * log_var))
    return sum_example(log_targets + 0.5 * (LOG_2PI + log_var + scaled))


def continuous_bernoulli_nll(logits: Array, targets: Array) -> Array:
    r"""-log p(targets) of independent continuous Bernoulli variables: a density of grey values.

    .. math:: \sum_j \log\frac{e^{l_j} - 1}{l_j} - x_j l_j

    `bernoulli_nll` of grey targets lacks the constant that makes it a density.

    Args:
      logits: l, `[B, ...]` floating; at 0 the density is that of the uniform distribution.
      targets: broadcasts to `logits`, in [0, 1] (not checked here; see `jaxvae.data`).

    Returns:
      `[B]` nats; a density, so it may be negative.

    Raises:
      TypeError: an argument is not floating.
      ValueError: there is no batch axis, or the shapes do not broadcast to that of `logits`.

    References:
      Loaiza-Ganem and Cunningham, The Continuous Bernoulli: Fixing a Pervasive Error in Variational Autoencoders, 2019.

    >>> continuous_bernoulli_nll(jnp.zeros((1, 4)), jnp.ones((1, 4)))
    Array([0.], dtype=float32)
    """
    logits, targets = aligned(logits=logits, targets=targets)
    return sum_example(_continuous_bernoulli(logits, targets))


def continuous_bernoulli_mean(logits: Array) -> Array:
    """The expected value 1/(1 - e^-l) - 1/l of a continuous Bernoulli variable, elementwise, in [0, 1]."""
    logits = floating(logits, "logits")
    half = 0.5 * logits
    small = jnp.abs(half) < 0.25
    near = jnp.where(small, half, 0)
    size = jnp.where(small, 1, jnp.abs(logits))
    lower = 1 / size - jnp.exp(-size) / -jnp.expm1(-size)  # the mean at -|l|
    far = jnp.where(logits < 0, lower, 1 - lower)
    return jnp.where(small, 0.5 + 0.5 * near * polynomial(LANGEVIN, jnp.square(near)), far)


@jax.custom_jvp
def _continuous_bernoulli(logits: Array, targets: Array) -> Array:
    half = 0.5 * logits
    small = jnp.abs(half) < 0.25
    near = jnp.square(jnp.where(small, half, 0))
    size = jnp.where(small, 1, jnp.abs(logits))
    # log sinh(h)/h, from the integral of the series of its derivative
    integral = tuple(coefficient / (2 * i + 2) for i, coefficient in enumerate(LANGEVIN))
    centred = logits * (0.5 - targets) + near * polynomial(integral, near)
    edge = jnp.abs(logits) * jnp.where(logits > 0, 1 - targets, targets)
    return jnp.where(small, centred, edge + jnp.log(-jnp.expm1(-size) / size))


# Not what autodiff would find: the difference of 1/(1 - e^-l) and 1/l, which is exact nowhere near zero.
_continuous_bernoulli.defjvps(
    lambda tangent, _, logits, targets: (continuous_bernoulli_mean(logits) - targets) * tangent,
    lambda tangent, _, logits, targets: -logits * tangent,
)
