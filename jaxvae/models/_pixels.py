"""How models of pixels move, pad, check and draw: row by row, and pixel by pixel within a row."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from jaxvae._checks import at_least, check_drawn, integers, largest, out_of_range, weight_at
from jaxvae.keys import check_key, example_keys, noise
from jaxvae.models._parts import checked_label
from jaxvae.networks._arrays import as_tuples
from jaxvae.types import Array, PRNGKey, PyTree


class Told(NamedTuple):
    """What every pixel is told. Attributes: the labels [B], and of some rows the context [B, R, W, F]; or None."""

    label: Array | None
    context: Array | None


class Begun(NamedTuple):
    """What stands before the first row and before the first pixel of a row: nothing, which is zeros.

    Attributes:
      above: features of the row above, [N, 1, W, C].
      made: what a layer has made of that row beside them, [N, 1, W, ...] each.
      rows: what the vertical pass keeps of the rows before.
      left: features of the pixel to the left, [N, 1, 1, C].
      pixels: what the horizontal pass keeps of the pixels before.
    """

    above: Array
    made: PyTree
    rows: PyTree
    left: Array
    pixels: PyTree


def blank(num: int, rows: int, columns: int, channels: int, dtype: DTypeLike) -> Array:
    """What lies outside the map."""
    return jnp.zeros((num, rows, columns, channels), dtype)


def moved(features: Array, *, axis: int) -> Array:
    """Features [B, H, W, C] a row down (axis 1) or a pixel to the right (axis 2), the last one lost."""
    kept = jax.lax.slice_in_dim(features, 0, features.shape[axis] - 1, axis=axis)
    first = jnp.zeros_like(jax.lax.slice_in_dim(features, 0, 1, axis=axis))
    return jnp.concatenate([first, kept], axis=axis)


def sideways(rows: Array, sides: int) -> Array:
    """Rows [B, R, W, C] with so many columns of zeros at either side."""
    return jnp.pad(rows, ((0, 0), (0, 0), (sides, sides), (0, 0)))


def check_map(model: Any) -> None:
    """Raise `ValueError` for a shape or a size that a model of maps of one channel cannot have; make a tuple of it."""
    as_tuples(model, "shape")
    if len(model.shape) not in (2, 3) or model.shape[2:] not in ((), (1,)):
        raise ValueError(f"shape must be (H, W) or (H, W, 1), got {model.shape}")
    check_sizes(model)


def check_sizes(model: Any) -> None:
    """Raise `ValueError` or `TypeError` for a size below what a model of pixels can have."""
    at_least(2, num_values=model.num_values)
    at_least(1, channels=model.channels, layers=model.layers, shape=model.shape)
    for name in ("num_classes", "context"):
        if getattr(model, name) is not None:
            at_least(1, **{name: getattr(model, name)})


def categorical_choice(logits: Array, keys: PRNGKey, temperature: float | Array) -> Array:
    """Draw values [N] int32 of logits [N, K] with a key for each; temperature 0 takes the most probable. K of NaN."""
    gumbel = noise(jax.random.gumbel, keys, logits.shape)
    return largest(logits + temperature * gumbel).astype(jnp.int32)


def check_kernel(**kernels: int) -> None:
    """Raise `ValueError` unless a window is odd and has a middle and sides."""
    for name, kernel in kernels.items():
        if kernel < 3 or kernel % 2 == 0:
            raise ValueError(f"{name} must be odd and at least 3, got {kernel}")


def check_values(values: Array, shape: Sequence[int]) -> None:
    """Raise `ValueError` unless values of this shape fit the model."""
    if values.shape[1:] != shape or not values.size:
        expected = ", ".join(map(str, ("batch", *shape)))
        raise ValueError(f"expected values ({expected}), at least one, got {values.shape}")


def checked_context(context: Array | None, batch: int, size: Sequence[int], features: int | None) -> Array | None:
    """The context [B, H, W, F] of a model that takes F features at every pixel."""
    if features is None and context is not None:
        raise ValueError("the model takes no context: pass none, or make it with context=F")
    if features is None:
        return None
    expected = (batch, *size, features)
    if context is None:
        raise ValueError(f"the model takes a context: pass context {expected}")
    if context.shape != expected:
        raise ValueError(f"context must be {expected}, got {context.shape}")
    return context


def complete(
    model: Any,
    params: PyTree,
    values: Array,
    known: Array,
    *,
    key: PRNGKey,
    label: Array | None = None,
    context: Array | None = None,
    temperature: float | Array = 1.0,
    channels: tuple[int, ...] = (),
) -> Array:
    """The method `complete` of a model of values [N, H, W, *channels], or of [N, H, W, 1] where there are none.

    `known` has the shape of the values, or of their pixels where a pixel has channels: these are drawn together.

    Raises:
      TypeError: the key is not typed, the values are not integers, or `known` is not bool.
      ValueError: values, known, label, context or temperature do not fit, or a value is out of range and not traced;
        the network's output is NaN, which is K in its place where it is traced.
    """
    check_key(key)
    values, known = integers(values, "values"), jnp.asarray(known)
    check_values(values, model.shape)
    num, size = len(values), model.shape[:2]
    if known.dtype != bool:
        raise TypeError(f"known must be bool, true where a value stays, got {known.dtype}")
    what, expected = ("pixels", (num, *size)) if channels else ("values", values.shape)
    if known.shape != expected:
        raise ValueError(f"known must be {expected}, as the {what} are, got {known.shape}")
    if key.shape not in ((), (num,)):
        raise ValueError(f"key must have shape () or {(num,)} (one per example), got {key.shape}")
    pixels = values.reshape(num, *size, *channels)
    stays = known.reshape(num, *size, *(1,) * len(channels))
    out_of_range("value", jnp.where(stays, pixels, 0), model.num_values)
    told = Told(checked_label(label, num, model.num_classes), checked_context(context, num, size, model.context))
    keys = key if key.shape else example_keys(key, jnp.arange(num))
    drawn = _complete(model, params, pixels, stays, keys, told, weight_at("temperature", temperature, 0))
    return check_drawn(drawn.reshape(values.shape), model.num_values)


@partial(jax.jit, static_argnames="model")
def _complete(
    model: Any, params: PyTree, values: Array, known: Array, keys: PRNGKey, told: Told, temperature: float | Array
) -> Array:
    """Draw what is not known of values [N, H, W, ...], in one scan over rows of scans over pixels.

    All positions together cost about one pass of the model, for its methods work on parts of a map and return what the
    next part needs: `vertical` a row, which knows the rows above, then `horizontal` the pixels of that row.
    """
    begun = model.begin(len(values))

    def next_pixel(carry: Any, x: Any) -> tuple[Any, Any]:
        left, before = carry
        position, value, stays, links = x
        output, made, before = model.apply(params, left, before, links, method="horizontal")
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
        value = jnp.where(stays, value, model.choose(output[:, 0, 0], own, temperature)).astype(jnp.int32)
        feature = model.apply(params, value[:, None, None], method="embed")
        return (feature, before), (value, feature[:, :, 0], jax.tree.map(lambda each: each[:, :, 0], made))

    def next_row(carry: Any, x: Any) -> tuple[Any, Array]:
        above, made, before = carry
        *given, context = x
        links, before = model.apply(params, above, made, before, Told(told.label, context), method="vertical")
        links = jax.tree.map(lambda link: jnp.moveaxis(link, 2, 0)[:, :, :, None], links)
        _, (row, *kept) = jax.lax.scan(next_pixel, (begun.left, begun.pixels), (*given, links))
        above, made = jax.tree.map(lambda each: jnp.moveaxis(each, 0, 2), tuple(kept))
        return (above, made, before), row

    height, width = model.shape[:2]
    positions = jnp.arange(height * width).reshape(height, width)
    given = positions, *(jnp.moveaxis(each, 0, 2) for each in (values, known))
    context = None if told.context is None else jnp.moveaxis(told.context, 1, 0)[:, :, None]
    _, drawn = jax.lax.scan(next_row, (begun.above, begun.made, begun.rows), (*given, context))
    return jnp.moveaxis(drawn, 2, 0)
