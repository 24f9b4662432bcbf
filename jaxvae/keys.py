"""Where randomness comes from: one key per step, one key per example.

Example i of step n draws from `fold_in(fold_in(key, n), index[i])`, so the noise does not depend on the batch size,
on the number of devices or on how an epoch was cut into programs.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxvae.types import Array, PRNGKey


def check_key(key: PRNGKey) -> None:
    """Raise `TypeError` unless `key` is a typed key, as `jax.random.key` makes them."""
    if not isinstance(key, jax.Array) or not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        given = f"{key.dtype}{list(key.shape)}" if hasattr(key, "dtype") else repr(key)
        raise TypeError(f"key must come from jax.random.key, got {given}")


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
    """`jax.random.key(seed)`, raising `ValueError` where the seed would be silently shortened to 32 bits."""
    check_seed(seed)
    return jax.random.key(seed)


def check_seed(seed: int) -> None:
    """Raise `ValueError` where `jax.random.key` would silently shorten the seed to 32 bits. Starts no device."""
    if not 0 <= seed < 2**32:
        raise ValueError(f"seed must lie in 0 .. 2**32 - 1, got {seed}")


def draw(sampler: Callable[..., Array], key: PRNGKey, shape: tuple[int, ...]) -> Array:
    """Float32 noise of `shape` [B, ...] from `sampler(key, shape, dtype)`, with one key or with one for each example.

    Raises:
      TypeError: the key is not typed.
      ValueError: its shape is neither () nor [B].
    """
    check_key(key)
    if key.shape == ():
        return sampler(key, (math.prod(shape),), jnp.float32).reshape(shape)
    if key.shape != shape[:1]:
        raise ValueError(f"key must have shape () or {shape[:1]} (one per example), got {key.shape}")
    # Flat, because XLA on CPU takes several times as long for [28, 28, 1] as for [784]: the same bits.
    size = math.prod(shape[1:])
    return jax.vmap(lambda each: sampler(each, (size,), jnp.float32))(key).reshape(shape)
