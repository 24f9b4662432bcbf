"""Gamma functions of large arguments and logarithms of ratios near one, without the differences that lose digits."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.losses._arrays import LOG_2PI, polynomial

LARGE = 8  # from here on the series is exact to rounding in float64
SERIES = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)


def stirling(z: Array, log_z: Array) -> Array:
    r"""How far log Γ(z + 1) lies above z log z - z, elementwise: never negative, zero at z = 0.

    .. math:: \log\Gamma(z + 1) - z \log z + z = \tfrac12 \log 2\pi z + \frac1{12 z} - \frac1{360 z^3} + \dots

    What is taken away is huge where z is large, and cancels in every likelihood here.

    Args:
      z: zero or more.
      log_z: log z, finite also where z is too small for its type.
    """
    small, inverse = jnp.where(z < LARGE, z, LARGE), 1 / jnp.where(z < LARGE, LARGE, z)
    direct = jax.lax.lgamma(1 + small) - small * log_z + small
    return jnp.where(z < LARGE, direct, 0.5 * (LOG_2PI + log_z) + inverse * polynomial(SERIES, jnp.square(inverse)))


def log_ratio(excess: Array, difference: Array) -> Array:
    """log(1 + excess) elementwise, which is `difference` too: exact where the ratio is near one, finite near zero.

    Args:
      excess: how far the ratio is above one.
      difference: the logarithm of the ratio, from those of its parts.
    """
    near = excess > -0.5
    return jnp.where(near, jnp.log1p(jnp.where(near, excess, 0)), difference)
