"""Draws of a likelihood, in the units in which a model sees x."""

from typing import Any

import jax.numpy as jnp

from jaxvae.distributions import Categorical, Masked
from jaxvae.types import Array, PRNGKey


def draw_of(record: Any, dtype: Any, *, key: PRNGKey) -> Array:
    """A draw of the likelihood as the model sees x: the levels of a `Categorical` in [0, 1]."""
    while isinstance(record, Masked):
        record = record.record
    drawn = record.sample(key=key)
    if not isinstance(record, Categorical):
        return drawn.astype(dtype)
    count = record.logits.shape[-1]
    return jnp.where(drawn < count, drawn.astype(dtype) / (count - 1), jnp.nan)


def over(values: Array, like: Array) -> Array:
    """Values with as many axes as another array, to broadcast over what it has more."""
    return values.reshape(*values.shape, *[1] * (like.ndim - values.ndim))
