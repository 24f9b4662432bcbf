"""A function of a batch, run over a whole data set."""

import hashlib
import types
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import jax
import numpy as np

from jaxvae._checks import integers
from jaxvae._host import check_unmasked
from jaxvae.keys import check_key
from jaxvae.types import Array, Batch, Prepare, PRNGKey, PyTree


def map_batches(
    fn: Callable[..., PyTree],
    params: PyTree,
    model_state: PyTree,
    source: Batch,
    indices: Array,
    *,
    key: PRNGKey,
    prepare: Prepare | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PyTree:
    """Run `fn(params, model_state, batch, *, key)` -> [B, ...] over a data set and join the results on the host.

    `source, indices` are what `jaxvae.data.evaluation_feed` returns: each index >= 0 counts once, -1 is padding. Equal
    `fn` and `prepare` compile once, however often they are run; a `functools.partial` equals another of the same
    function and the same arguments. Arrays of NumPy among them are equal by content, those of JAX where they are one
    object.

    Args:
      fn: the batch has the source's arrays [B, ...], after `prepare`.
      params: the model's.
      model_state: the model's.
      source: arrays [N, ...].
      indices: [n, B] integers into them.
      key: split between `prepare` and `fn`.
      prepare: as in training.
      progress: called with (batches done, batches).

    Returns:
      `fn`'s pytree with NumPy leaves, one entry for each index >= 0 and in their order.

    Raises:
      TypeError: the key is not a typed threefry key, the indices are not integers, or an array is masked.
      ValueError: an index is outside the source, there is none, or `fn` does not return arrays [B, ...].
    """
    check_key(key)
    indices = integers(indices, "indices", "[n, B]")
    real = _check_source(source, np.asarray(indices))
    keyed = _ByContent(fn), _ByContent(prepare)
    results = []
    for done, batch_indices in enumerate(indices, start=1):
        results.append(jax.device_get(_run(*keyed, params, model_state, source, batch_indices, key)))
        if progress is not None:
            progress(done, len(indices))
    return jax.tree.map(lambda *parts: np.concatenate(parts)[real], *results)


class _ByContent:
    """A function that equals another of the same content, where Python goes by identity: see `_content`."""

    def __init__(self, fn: Any) -> None:
        self.fn = fn
        self._key = _content(fn)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _ByContent) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)


class _Identity:
    """Equal where it is the same object, which is kept alive so that its place in memory stays its own."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def _content(value: Any) -> Hashable:
    """What decides how a function compiles: 1, 1.0 and True differ, and so do 0.0 and -0.0."""
    kind = type(value)
    if isinstance(value, partial):
        return kind, _content(value.func), _content(value.args), _content(value.keywords)
    if isinstance(value, types.MethodType):
        return kind, value.__func__, _content(value.__self__)
    if isinstance(value, list | tuple):
        return kind, tuple(map(_content, value))
    if isinstance(value, dict):
        return kind, tuple((_content(name), _content(each)) for name, each in value.items())
    if isinstance(value, float | complex):
        return kind, repr(value)
    if isinstance(value, np.ndarray) and value.dtype != object:  # which may have changed since it was compiled
        return kind, str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).digest()
    try:
        hash(value)
    except TypeError:
        return _Identity(value)
    return kind, value


def _check_source(source: Batch, indices: np.ndarray) -> np.ndarray:
    """Which of the indices, flat, are real ones; raises where they or the source cannot be used."""
    for name, values in source.items():
        check_unmasked(values, f"source[{name!r}]")
    real = indices.ravel() >= 0
    if indices.ndim != 2 or not real.any():
        raise ValueError(f"indices must be [n, B] with one of 0 or more, got {indices.shape}")
    count = min((len(values) for values in source.values()), default=0)
    if indices.min() < -1 or indices.max() >= count:
        raise ValueError(
            f"indices must lie in 0 .. {count - 1}, or be -1 for padding, got {indices.min()} to {indices.max()}"
        )
    return real


@partial(jax.jit, static_argnums=(0, 1))
def _run(
    fn: _ByContent,
    prepare: _ByContent,
    params: PyTree,
    model_state: PyTree,
    source: Batch,
    indices: Array,
    key: PRNGKey,
) -> PyTree:
    prepare_key, fn_key = jax.random.split(key)
    batch = {name: values[indices] for name, values in source.items()}
    if prepare.fn is not None:
        batch = prepare.fn(batch, key=prepare_key)
    with jax.default_matmul_precision("highest"):  # an accelerator's default may be narrower than float32
        results = fn.fn(params, model_state, batch, key=fn_key)
    for leaf in jax.tree.leaves(results):
        if leaf.shape[:1] != indices.shape:
            raise ValueError(f"fn must return arrays [{len(indices)}, ...], one entry per example, got {leaf.shape}")
    return results
