"""What is read off the last latent z_0 of a diffusion: the levels of pixels, each with the probability of its distance.

p(v | z_0) is proportional to exp(-½ SNR (z_0 / α - v)²), over L evenly spaced levels v in [-1, 1]. With L = 2 it is a
Bernoulli variable.
"""

import jax
import jax.numpy as jnp

from jaxvae.types import Array


def level_log_prob(centre: Array, log_snr: Array | float, values: Array, levels: int) -> Array:
    """Log p(v | z_0) of each value, which is a level, nats; `centre` is z_0 / α, of the shape of the values."""
    precision = jnp.exp(jnp.asarray(log_snr, centre.dtype))
    return -0.5 * precision * _beyond_nearest(centre, values, levels) - _log_total(centre, precision, levels)


def sample_level(centre: Array, log_snr: Array | float, uniform: Array, levels: int) -> Array:
    """The first level up to which p(v | z_0) adds up to more than `uniform`; NaN where z_0 is.

    It has some probability: neither a uniform number of 0 nor what rounding takes from the sum leads to another.
    """
    precision = jnp.exp(jnp.asarray(log_snr, centre.dtype))
    log_total = _log_total(centre, precision, levels)

    def add(i: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        below, index, last = carry
        value = jnp.full_like(centre, -1 + 2 / (levels - 1) * i)
        mass = jnp.exp(-0.5 * precision * _beyond_nearest(centre, value, levels) - log_total)
        return below + mass, index + (uniform >= below + mass), jnp.where(mass > 0, i, last)

    none = jnp.zeros(centre.shape, jnp.int32)
    _, index, last = jax.lax.fori_loop(0, levels, add, (jnp.zeros_like(centre), none, none))
    index = jnp.minimum(index, last)
    return jnp.where(jnp.isnan(centre), jnp.nan, index.astype(centre.dtype) * 2 / (levels - 1) - 1)


def nearest_level(centre: Array, levels: int) -> Array:
    """The most probable level."""
    half = (levels - 1) / 2
    return jnp.rint((centre.clip(-1, 1) + 1) * half) / half - 1


def _beyond_nearest(centre: Array, values: Array, levels: int) -> Array:
    """(z_0 / α - v)², less that of the nearest level; as a product, for squares would not cancel."""
    nearest = nearest_level(centre, levels)
    return (nearest - values) * (2 * centre - values - nearest)


def _log_total(centre: Array, precision: Array, levels: int) -> Array:
    """The log of the sum over all levels, relative to the nearest one; the compiler fuses the terms into the sum."""
    grid = jnp.linspace(-1, 1, levels, dtype=centre.dtype).reshape(*[1] * centre.ndim, -1)
    return jnp.log(jnp.exp(-0.5 * precision * _beyond_nearest(centre[..., None], grid, levels)).sum(axis=-1))
