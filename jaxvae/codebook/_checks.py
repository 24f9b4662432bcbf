"""Checks of what the functions of the codebook are given."""

import jax
import jax.numpy as jnp

from jaxvae._checks import floating
from jaxvae.types import Array


def detached(values: Array, name: str) -> Array:
    """The values in float32, without a gradient."""
    return jax.lax.stop_gradient(floating(values, name)).astype(jnp.float32)


def check_dim(encoded: Array, dim: int) -> None:
    if encoded.ndim == 0 or encoded.shape[-1] != dim:
        raise ValueError(f"encoded must be [..., {dim}] for codes of {dim} dimensions, got {encoded.shape}")


def check_positions(name: str, values: Array) -> None:
    if not values.size:
        raise ValueError(f"{name} must hold at least one position, got {values.shape}: its means would be NaN")
