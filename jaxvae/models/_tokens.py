"""The order in which a sequence model says the tokens of a code array, and how it draws them one after the other."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae._checks import at_least, largest, out_of_range, weight_at
from jaxvae.keys import example_keys, noise
from jaxvae.types import Array, PRNGKey, PyTree

Books = Literal["flat", "delay"]


class Layout(NamedTuple):
    """Which tokens each of T steps says; token number p·M + m is book m of position p.

    Attributes:
      tokens: their numbers, [T, G]; -1 for none.
      books: the books they are of, [T, G].
      places: where a step stands along each axis of the positions, [T, A].
      steps: the step that says each token, [P·M].
      columns: its place among those of the step, [P·M].
    """

    tokens: np.ndarray
    books: np.ndarray
    places: np.ndarray
    steps: np.ndarray
    columns: np.ndarray


def layout(shape: Sequence[int], num_books: int, books: Books) -> Layout:
    """One token a step, position by position and book by book; or M a step, book m delayed by m steps."""
    positions = math.prod(shape)
    delayed = books == "delay"
    step = np.arange(positions + num_books - 1 if delayed else positions * num_books)
    if delayed:
        book = np.broadcast_to(np.arange(num_books), (len(step), num_books))
        position = step[:, None] - book
        tokens = np.where((position >= 0) & (position < positions), position * num_books + book, -1)
        stands = step
    else:
        tokens, book, stands = step[:, None], step[:, None] % num_books, step // num_books
    said, columns = np.nonzero(tokens >= 0)
    order = np.argsort(tokens[said, columns])
    return Layout(tokens, book, _places(stands, shape), said[order], columns[order])


def kept(logits: Array, temperature: float | Array, top_k: Array | None, top_p: Array | None) -> Array:
    """The logits [..., K], -inf outside the k most probable values and the nucleus of the tempered distribution.

    The nucleus is the smallest set of the most probable of the k whose probabilities, of these k, add up to `top_p`.
    Of equally probable values the first come first.

    References:
      Holtzman et al., The Curious Case of Neural Text Degeneration, 2020.
    """
    if top_k is None and top_p is None:
        return logits
    order = jnp.argsort(-logits, axis=-1, stable=True)
    ranks = jnp.argsort(order, axis=-1)
    rank = jnp.broadcast_to(jnp.arange(logits.shape[-1]), logits.shape)
    inside = rank < (logits.shape[-1] if top_k is None else top_k)
    if top_p is not None:
        largest = jnp.take_along_axis(logits, order, axis=-1)
        tempered = (largest - largest[..., :1]) / jnp.maximum(temperature, 1e-6)
        probability = jax.nn.softmax(jnp.where(inside, tempered, -jnp.inf), axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability
        inside &= (before < top_p) | (rank == 0) | (jnp.asarray(top_p) >= 1)  # a rounded sum is 1 before the last
    return jnp.where(jnp.take_along_axis(inside, ranks, axis=-1), logits, -jnp.inf)


def outside(values: Array, present: Array | bool, num_values: int | Sequence[int]) -> Array:
    """Which of the values that are there are out of range; an error where they are not traced."""
    values = jnp.where(present, values, 0)
    if not isinstance(num_values, tuple):
        return out_of_range("value", values, num_values)  # type: ignore[arg-type]
    books = [out_of_range(f"value of book {m}", values[..., m], count) for m, count in enumerate(num_values)]
    return jnp.stack(books, axis=-1)


def checked_mask(mask: Array | None, values: Array, shape: Sequence[int]) -> tuple[Array | bool, Array | bool]:
    """Which of the values are there, and which examples have one after a missing one: an error if not traced."""
    if mask is None:
        return True, False
    mask = jnp.asarray(mask)
    if mask.dtype != bool:
        raise TypeError(f"mask must be bool, true where a position is there, got {mask.dtype}")
    if mask.shape != (len(values), *shape):
        raise ValueError(f"mask must be {(len(values), *shape)}, as the positions are, got {mask.shape}")
    flat = mask.reshape(len(mask), -1)
    ragged = (~flat[:, :-1] & flat[:, 1:]).any(axis=1)
    if not isinstance(ragged, jax.core.Tracer) and ragged.any():
        raise ValueError(f"the missing positions of a mask must come last, those of example {ragged.argmax()} do not")
    return jnp.broadcast_to(mask.reshape(*mask.shape, *[1] * (values.ndim - mask.ndim)), values.shape), ragged


def checked_draw(
    temperature: float | Array, top_k: int | Array | None, top_p: float | Array | None, num_values: int
) -> tuple[float | Array, int | Array | None, float | Array | None]:
    """Temperature, top_k and top_p; `ValueError` or `TypeError` for one that is not traced and does not fit."""
    if top_k is not None and not isinstance(top_k, jax.core.Tracer):
        top_k = top_k.item() if isinstance(top_k, jax.Array) and not top_k.ndim else top_k
        at_least(1, top_k=top_k)  # type: ignore[arg-type]
        if top_k > num_values:
            raise ValueError(f"top_k must be at most {num_values}, the number of values, got {top_k}")
    if top_p is not None and not isinstance(top_p, jax.core.Tracer) and not 0 < float(top_p) <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")
    return weight_at("temperature", temperature, 0), top_k, top_p


@partial(jax.jit, static_argnames=("model", "both"))
def complete(
    model: Any,
    params: PyTree,
    tokens: Array,
    known: Array,
    key: PRNGKey,
    condition: tuple[Array | None, ...],
    draw: tuple[Any, ...],
    guidance: float | Array,
    *,
    both: bool,
) -> Array:
    """Draw what is not known of tokens [N, P·M], in one scan over the steps of the layout.

    Args:
      model: has `layout`, and the methods `begin` and `step`.
      params: of it.
      tokens: [N, P·M] integers.
      known: [N, P·M] bool, where they stay.
      key: token number n of example i draws from `fold_in(fold_in(key, i), n)`.
      condition: label, prefix, and which of the examples go without them.
      draw: temperature, top_k, top_p.
      guidance: how far beyond the logits without the condition to go.
      both: whether `guidance` counts: each step is then computed with and without the condition.

    Returns:
      [N, P·M] int32; K, one more than the last value, where logits are NaN.
    """
    num, order = len(tokens), model.layout
    keys = example_keys(key, jnp.arange(num))
    if both:
        label, prefix = (None if each is None else jnp.concatenate([each, each]) for each in condition[:2])
        condition = label, prefix, jnp.arange(2 * num) >= num
    numbers = jnp.asarray(order.tokens)

    def step(carry: Any, x: tuple[Array, ...]) -> tuple[Any, Array]:
        previous, state = carry
        index, values, stays = x
        logits, state = model.apply(params, previous, index, state, method="step")
        if both:
            given, without = jnp.split(logits, 2)
            # Where a book is short of values both are -inf, and their difference is no number.
            logits = jnp.where(jnp.isneginf(given), given, without + guidance * (given - without))
        own = jax.vmap(jax.vmap(jax.random.fold_in, (None, 0)), (0, None))(keys, numbers[index])
        gumbel = noise(jax.random.gumbel, own.reshape(-1), (own.size, logits.shape[-1])).reshape(logits.shape)
        drawn = largest(kept(logits, *draw) + draw[0] * gumbel).astype(jnp.int32)
        values = jnp.where(stays, values, drawn).astype(jnp.int32)
        return (jnp.concatenate([values, values]) if both else values, state), values

    def by_step(x: Array, filler: Any) -> Array:  # [N, P·M] -> [T, N, G]
        return jnp.where(order.tokens[:, None] < 0, filler, jnp.moveaxis(x[:, order.tokens], 1, 0))

    examples = 2 * num if both else num
    start = (
        jnp.full((examples, order.tokens.shape[1]), -1, jnp.int32),
        model.apply(params, examples, *condition, method="begin"),
    )
    steps = jnp.arange(len(order.tokens)), by_step(tokens, -1), by_step(known, True)
    _, drawn = jax.lax.scan(step, start, steps)
    return drawn[order.steps, :, order.columns].T


def _places(index: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """[T] -> [T, A]: the coordinates in an array of this shape that goes on along its first axis."""
    places = []
    for size in reversed(shape[1:]):
        places.append(index % size)
        index = index // size
    return np.stack([index, *reversed(places)], axis=1)
