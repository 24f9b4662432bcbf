"""Codes of a tokeniser as a file, as long as their prior's log-likelihood says: the second half of a learned codec."""

import struct
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxvae._checks import at_least
from jaxvae._host import host_array
from jaxvae.evaluation.compression import Progress, batches, entropy_coder
from jaxvae.types import Array, PyTree

MAGIC = b"jaxvae codes 2\n"


def compress_codes(
    model: Any,
    params: PyTree,
    indices: ArrayLike,
    *condition: ArrayLike,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> bytes:
    """Code arrays as bytes, about -log₂ p(indices) / 8 of them: range coding with the prior's probabilities.

    Args:
      model: a `PixelCNN` or a `TransformerPrior`, or another `CodePrior` whose call returns a record with logits, and
        those of a code depend on the codes before it alone.
      params: the model's.
      indices: [N, *shape] integers, as the model takes them.
      condition: what the model is given beside them, [N, ...] each, such as labels; `decompress_codes` is given it too.
      batch_size: arrays that go through the network together.
      progress: called with (batches done, batches).

    Returns:
      The file's content. `decompress_codes` needs the same model, the same parameters and the same kind of machine: the
      network must compute the same bits again.

    Raises:
      ImportError: the package constriction is missing.
      TypeError: the indices are not integers.
      ValueError: there are none, one is out of range, a condition is not one for each, or the network's output is not
        finite.

    References:
      van den Oord, Vinyals and Kavukcuoglu, Neural Discrete Representation Learning, 2017, for codes and their prior.
    """
    at_least(1, batch_size=batch_size)
    values = host_array(indices, "indices")
    if not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"indices must be integers, got {values.dtype}")
    if values.ndim < 2 or not values.size:
        raise ValueError(f"indices must be [N, *shape], at least one number, got {values.shape}")
    codes = values.astype(np.int32)  # another number where one does not fit, which is refused below
    given = _given(condition, len(values))
    logits_of = _network(model, params, batch_size)
    encoder = entropy_coder().stream.queue.RangeEncoder()
    parts = list(batches(len(values), batch_size))
    for done, rows in enumerate(parts):
        logits = logits_of(codes[rows], [each[rows] for each in given])
        flat = codes[rows].reshape(len(logits), -1)
        _check_range(values[rows].reshape(flat.shape), logits)
        for tokens in _order(model, flat.shape[1]):
            encoder.encode(np.ascontiguousarray(flat[:, tokens].ravel()), _categorical(), _masses(logits[:, tokens]))
        if progress is not None:
            progress(done + 1, len(parts))
    words = np.asarray(encoder.get_compressed(), "<u4")
    numbers = (_checksum(codes), batch_size, values.ndim, *values.shape)
    body = struct.pack(f"<{len(numbers)}I", *numbers) + words.tobytes()
    return MAGIC + struct.pack("<I", zlib.crc32(body)) + body


def decompress_codes(
    model: Any, params: PyTree, compressed: bytes, *condition: ArrayLike, progress: Progress | None = None
) -> np.ndarray:
    """What `compress_codes` was given, [N, *shape] int32.

    Each code takes a pass of the whole network, for a batch at once.

    Raises:
      ImportError: the package constriction is missing.
      ValueError: these are no such bytes, they are damaged, or the model, its parameters, the condition or the machine
        are others.
    """
    checksum, batch_size, shape, words = _parsed(compressed)
    given = _given(condition, shape[0])
    logits_of = _network(model, params, batch_size)
    decoder = entropy_coder().stream.queue.RangeDecoder(np.asarray(words, np.uint32))
    values = np.zeros(shape, np.int32)
    parts = list(batches(shape[0], batch_size))
    for done, rows in enumerate(parts):
        flat = values[rows].reshape(rows.stop - rows.start, -1)  # a view: what is decoded stands there for the next
        for tokens in _order(model, flat.shape[1]):
            logits = logits_of(values[rows], [each[rows] for each in given])
            found = decoder.decode(_categorical(), _masses(logits[:, tokens]))
            flat[:, tokens] = np.asarray(found).reshape(len(flat), -1)
        if progress is not None:
            progress(done + 1, len(parts))
    if _checksum(values) != checksum:
        raise ValueError(
            "other codes came out than went in: the model, its parameters, the condition or the machine are not those "
            "that wrote the file"
        )
    return values


def _given(condition: Sequence[ArrayLike], count: int) -> list[np.ndarray]:
    """What the model is given beside `count` arrays."""
    given = [host_array(each, "condition") for each in condition]
    for each in given:
        if each.shape[:1] != (count,):
            raise ValueError(f"a condition must be ({count}, ...), one for each array of codes, got {each.shape}")
    return given


def _checksum(codes: np.ndarray) -> int:
    return zlib.crc32(np.asarray(codes, "<i4").tobytes())


def _network(model: Any, params: PyTree, batch_size: int) -> Callable[[np.ndarray, Sequence[np.ndarray]], np.ndarray]:
    """Codes [B, *shape] and their condition -> logits [B, tokens, K]; compiled once, for batches of one size."""

    @jax.jit
    def run(values: Array, condition: Sequence[Array]) -> Array:
        logits = model.apply(params, values, *condition).logits
        return logits.reshape(batch_size, -1, logits.shape[-1])

    def padded(values: np.ndarray) -> np.ndarray:
        whole = np.zeros((batch_size, *values.shape[1:]), values.dtype)
        whole[: len(values)] = values
        return whole

    def logits_of(values: np.ndarray, condition: Sequence[np.ndarray]) -> np.ndarray:
        return np.asarray(run(padded(values), [padded(each) for each in condition]), np.float64)[: len(values)]

    return logits_of


def _order(model: Any, tokens: int) -> list[np.ndarray]:
    """Which tokens are said together, step by step."""
    layout = getattr(model, "layout", None)
    steps = np.arange(tokens)[:, None] if layout is None else np.asarray(layout.tokens)
    return [step[step >= 0] for step in steps]


def _masses(logits: np.ndarray) -> np.ndarray:
    """Probabilities [B·G, K] float64 of logits [B, G, K]."""
    masses = np.exp(logits - logits.max(axis=-1, keepdims=True))
    masses /= masses.sum(axis=-1, keepdims=True)
    if not np.isfinite(masses).all():
        raise ValueError(
            "the network's output is not finite: its parameters are damaged, or these are not its codes or condition"
        )
    return masses.reshape(-1, masses.shape[-1])


def _check_range(flat: np.ndarray, logits: np.ndarray) -> None:
    wrong = (flat < 0) | (flat >= logits.shape[-1])
    if wrong.any():
        raise ValueError(f"code {flat[wrong][0]} is outside 0 .. {logits.shape[-1] - 1}")
    chosen = np.take_along_axis(logits, flat[..., None].astype(np.int64), axis=-1)[..., 0]
    if (never := np.isneginf(chosen)).any():
        raise ValueError(f"the model says that code {flat[never][0]} is never there: its book has fewer values")


def _categorical() -> Any:
    return entropy_coder().stream.model.Categorical(perfect=False)


def _parsed(compressed: bytes) -> tuple[int, int, tuple[int, ...], np.ndarray]:
    """What the header says, and the words after it."""
    start = len(MAGIC) + 4
    if not compressed.startswith(MAGIC) or len(compressed) < start + 20:
        raise ValueError("these bytes are not of jaxvae.evaluation.compress_codes")
    body = compressed[start:]
    if zlib.crc32(body) != struct.unpack_from("<I", compressed, len(MAGIC))[0]:
        raise ValueError("the file is damaged or cut off: its checksum is another")
    checksum, batch_size, rank = struct.unpack_from("<3I", body)
    shape = struct.unpack_from(f"<{rank}I", body, 12)
    return checksum, batch_size, shape, np.frombuffer(body, "<u4", offset=12 + 4 * rank)
