"""Checks that several rooms share: what was wrong, the value, and the way out."""

import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.types import Array, Schedule


def at_least(least: int, **numbers: int | Sequence[int]) -> None:
    """Raise `ValueError` where a number, or one of several, is below `least`, `TypeError` where it is no integer."""
    for name, value in numbers.items():
        for number in value if isinstance(value, Sequence) else (value,):
            if isinstance(number, bool | np.bool) or not isinstance(number, int | np.integer):
                raise TypeError(f"{name} must be an integer, got {value!r}")
            if number < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")


def integers(values: Array | np.ndarray, name: str, shape: str = "") -> Array:
    """The values as int32 or wider: a comparison or a look-up in a narrow type goes wrong silently.

    Raises:
      TypeError: they are not integers; `shape` says what they should be.
      ValueError: one of an array on the host does not fit what JAX would make of it.
    """
    given, values = values, jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers{' ' + shape if shape else ''}, got {values.dtype}")
    # uint64 and int32 would be promoted to a floating type.
    wide = jnp.int64 if values.dtype == jnp.uint64 else jnp.promote_types(values.dtype, jnp.int32)
    values = values.astype(jax.dtypes.canonicalize_dtype(wide))
    if isinstance(given, np.ndarray) and not np.can_cast(given.dtype, values.dtype):
        held = np.iinfo(values.dtype)
        if (lost := (given < held.min) | (given > held.max)).any():
            raise ValueError(f"{name} must lie in {held.min} .. {held.max} ({values.dtype}), got {given[lost].flat[0]}")
    return values


def floating(values: Array, name: str) -> Array:
    """The values as an array; `TypeError` unless they are floating."""
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating, got {values.dtype}; convert it first")
    return values


def where_mask(encoded: Array, mask: Array, name: str = "encoded") -> Array:
    """Vectors [..., D], zero where the mask [...] is false, lest a NaN there spread.

    Raises:
      TypeError: the mask is not boolean.
      ValueError: it has another shape than the positions.
    """
    if mask.dtype != bool:
        raise TypeError(f"mask must be bool, true where a position counts, got {mask.dtype}")
    if mask.shape != encoded.shape[:-1]:
        raise ValueError(f"mask must be {encoded.shape[:-1]} for {name} {encoded.shape}, got {mask.shape}")
    return jnp.where(mask[..., None], encoded, 0)


def out_of_range(name: str, values: Array, count: int) -> Array:
    """Which of the integers are not in 0 .. count - 1; `ValueError` names the first where they are not traced."""
    outside = (values < 0) | (values >= count)
    if not isinstance(outside, jax.core.Tracer) and outside.any():
        first = tuple(np.argwhere(outside)[0])
        index = ", ".join(map(str, first))
        raise ValueError(f"{name} {int(values[first])} at index {index} is outside 0 .. {count - 1}")
    return outside


def largest(scores: Array) -> Array:
    """The place of the largest of scores [..., K]; K, which is none, where one is NaN, which `argmax` would take."""
    return jnp.where(jnp.isnan(scores.max(axis=-1)), scores.shape[-1], jnp.argmax(scores, axis=-1))


def check_drawn(drawn: Array, num_values: int) -> Array:
    """The values that a model has drawn, of K; `ValueError` where one is K, what NaN says, and it is not traced."""
    if not isinstance(drawn, jax.core.Tracer) and (nothing := np.argwhere(drawn == num_values)).size:
        raise ValueError(
            f"nothing could be drawn at index {', '.join(map(str, nothing[0]))}: the network's output is NaN there, as "
            "its parameters or what it is told are not finite"
        )
    return drawn


def unless_nan(values: Array, *parameters: Array) -> Array:
    """The values; NaN where a parameter is, of which no comparison holds, so that it would choose one of them."""
    for parameter in parameters:
        values = jnp.where(jnp.isnan(parameter), jnp.nan, values)
    return values


def weight_at(name: str, value: float | Array | Schedule, step: Array | int) -> float | Array:
    """A number, or a schedule's value at the step; `ValueError` names it where it is negative or not finite."""
    value = value(jnp.asarray(step)) if callable(value) else value
    if not isinstance(value, jax.core.Tracer) and not 0 <= float(value) < math.inf:
        raise ValueError(f"{name} must be a finite number, zero or more, got {value}")
    return value


def check_x(x: Array) -> None:
    """Raise `TypeError` unless x is floating, `ValueError` where it holds nothing."""
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must be floating, got {x.dtype}; scale it first (jaxvae.data.make_prepare)")
    if not x.size:
        raise ValueError(f"expected x (batch, ...), got {x.shape}, which holds nothing")


def check_shape(expected: tuple[int, ...], actual: tuple[int, ...], cause: Exception | None = None) -> None:
    """Raise `ValueError` unless x of shape `actual` fits a model of x of shape `expected`; not their number."""
    if expected[1:] != actual[1:]:
        shape = ", ".join(map(str, ("batch", *expected[1:])))
        raise ValueError(f"expected x ({shape}), got {actual}") from cause
