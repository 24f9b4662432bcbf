"""Where randomness comes from: one key per step, one key per example.

Step n splits `fold_in(key, n)` in two, for `prepare` and for the loss; example i draws from `fold_in(half, index[i])`.
So the noise does not depend on the batch size, on the number of devices or on how an epoch was cut into programs.
"""

import math
import numbers
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae.types import Array, PRNGKey

GENERATOR = "threefry2x32"


def check_key(key: PRNGKey) -> None:
    """Raise `TypeError` unless `key` is a typed threefry key, as `jax.random.key` makes them by default.

    Under `vmap` other generators draw noise that depends on the batch, which would break the promise above.
    """
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        actual = f"{key.dtype}{list(key.shape)}" if hasattr(key, "dtype") else repr(key)
        raise TypeError(f"key must come from jax.random.key, got {actual}")
    generator = str(jax.random.key_impl(key))
    if generator != GENERATOR:
        raise TypeError(
            f"key must be a threefry key, whose noise belongs to the example under vmap, got one of {generator}: "
            f"make it by jax.random.key(seed, impl={GENERATOR!r})"
        )


def example_keys(key: PRNGKey, index: Array) -> PRNGKey:
    """One key per example, [B], from the step's key and the examples' positions in their split."""
    check_key(key)
    return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def sample_keys(key: PRNGKey, num_samples: int) -> PRNGKey:
    """S keys from each key: [...] -> [S, ...]. The first S are the same for every larger S."""
    check_key(key)
    each = jax.random.fold_in
    for _ in key.shape:
        each = jax.vmap(each, in_axes=(0, None))
    return jax.vmap(each, in_axes=(None, 0))(key, jnp.arange(num_samples))


def seed_key(seed: int) -> PRNGKey:
    """The threefry key of a seed, raising `ValueError` where it would be silently shortened to 32 bits.

    Raises:
      TypeError: it is no integer.
    """
    check_seed(seed)
    return jax.random.key(seed, impl=GENERATOR)


def check_seed(seed: Any) -> None:
    """Raise `ValueError` where `jax.random.key` would silently shorten the seed to 32 bits. Starts no device.

    Raises:
      TypeError: it is no integer.
    """
    whole = isinstance(seed, numbers.Integral) and not isinstance(seed, bool)
    if not whole:
        raise TypeError(f"seed must be an integer, got {seed!r:.60}")
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in 0 .. 2**32 - 1, got {seed}")


def noise(sampler: Callable[..., Array], key: PRNGKey, shape: tuple[int, ...], *parameters: Array) -> Array:
    """Float32 noise of `shape` [B, ...] from `sampler(key, shape, dtype)`, with one key or with one for each example.

    Parameters of the noise, such as a rate, broadcast to `shape` and come after the type, flat as the noise.

    Raises:
      TypeError: the key is not typed.
      ValueError: its shape is neither () nor [B].
    """
    check_key(key)
    parameters = tuple(jnp.broadcast_to(each, shape) for each in parameters)
    if key.shape == ():
        flat = (each.reshape(-1) for each in parameters)
        return sampler(key, (math.prod(shape),), jnp.float32, *flat).reshape(shape)
    if key.shape != shape[:1]:
        raise ValueError(f"key must have shape () or {shape[:1]} (one per example), got {key.shape}")
    # Flat, because XLA on CPU takes several times as long for [28, 28, 1] as for [784]: the same bits.
    size = math.prod(shape[1:])
    flat = (each.reshape(shape[0], size) for each in parameters)
    return jax.vmap(lambda each, *own: sampler(each, (size,), jnp.float32, *own))(key, *flat).reshape(shape)
