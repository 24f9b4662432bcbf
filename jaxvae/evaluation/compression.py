"""Bits back: a trained VAE as a lossless codec, whose files are as long as its ELBO says."""

import struct
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxvae._checks import at_least
from jaxvae._host import host_array
from jaxvae._variables import variables_of
from jaxvae.distributions import Bernoulli, DiagGaussian, StandardNormal
from jaxvae.types import Array, PyTree

MAGIC = b"jaxvae bits back 1\n"
# Bins that latents are rounded to. The coder gives each of them 2**-24 at least, wherever q(z|x) lies: of many more,
# now and then one would be drawn that q never draws.
WIDTH = 1 / 64
SURE = 1e-30  # the least standard deviation: the coder takes none of zero, which float32 rounds a small one to
RANGE = 8  # the largest |z|, whose bin has the tail
BITS = 32  # of a word of the stack
SPARE = 8  # words that are borrowed beyond what is expected
LEFT = 4  # words that must be left: a stack that is empty does not say so
Progress = Callable[[int, int], None]


class Coders(NamedTuple):
    """What an entropy coder needs of a model: compiled once, for batches of one size."""

    encode: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
    decode: Callable[[np.ndarray], np.ndarray]
    shape: tuple[int, ...]
    latent_dim: int


def compress(
    model: Any,
    params: PyTree,
    model_state: PyTree,
    x: ArrayLike,
    *,
    batch_size: int = 8,
    progress: Progress | None = None,
) -> bytes:
    r"""Binary x as bytes, about as many as -ELBO / (8 log 2) for each example: bits-back coding with ANS.

    For a batch, latents are popped from a stack of bits by q(z|x), then x is pushed by p(x|z), and the latents by p(z):
    together -log₂ p(x|z) p(z) / q(z|x) bits, the ELBO in expectation. What is popped first are bits of a fixed seed,
    which come back at the end and say whether all went well. Latents are rounded to 1/64.

    Args:
      model: a `VAE` of binary x: a `Bernoulli` likelihood, a diagonal Gaussian posterior, N(0, I) as the prior.
      params: the model's.
      model_state: the model's.
      x: [N, ...], zeros and ones of any type, in the shape of the model's x.
      batch_size: examples that go through the networks together; the first batch borrows bits for each of them, so more
        is faster and a little longer.
      progress: called with (batches done, batches).

    Returns:
      The file's content. `decompress` needs the same model, the same parameters and the same kind of machine: the
      networks must compute the same bits again.

    Raises:
      ImportError: the package constriction is missing.
      TypeError: the model is another one.
      ValueError: x has other values than 0 and 1, no examples, or another shape; latents that are not [B, D]; a network
        whose output is not finite.

    References:
      Townsend, Bird and Barber, Practical Lossless Compression with Latent Variables Using Bits Back Coding, 2019.
    """
    at_least(1, batch_size=batch_size)
    values = _binary(x)
    coders = _coders(model, params, model_state, values.shape[1:], batch_size)
    borrowed = _words_of_first(coders, values[:batch_size])
    while (stack := _pushed(coders, values, batch_size, borrowed, progress)) is None:
        borrowed *= 2
    words = np.asarray(stack.get_compressed(), "<u4")
    numbers = (len(values), batch_size, coders.latent_dim, borrowed, len(coders.shape), *coders.shape)
    body = struct.pack(f"<{len(numbers)}I", *numbers) + words.tobytes()
    return MAGIC + struct.pack("<I", zlib.crc32(body)) + body


def decompress(
    model: Any, params: PyTree, model_state: PyTree, compressed: bytes, *, progress: Progress | None = None
) -> np.ndarray:
    """What `compress` was given, [N, ...] uint8, bit for bit.

    Args:
      model: the one that compressed.
      params: the same.
      model_state: the same.
      compressed: what `compress` returned.
      progress: called with (batches done, batches).

    Raises:
      ImportError: the package constriction is missing.
      TypeError: the model is another kind of one.
      ValueError: these are no such bytes, they are damaged, or the model, its parameters or the machine are others.
    """
    count, batch_size, latent_dim, borrowed, shape, words = _parsed(compressed)
    coders = _coders(model, params, model_state, shape, batch_size)
    if coders.latent_dim != latent_dim:
        raise ValueError(f"the file is of a model with {latent_dim} latents, and this one has {coders.latent_dim}")
    stack = _stack(words)
    values = np.empty((count, *shape), np.uint8)
    parts = list(batches(count, batch_size))
    for i, rows in enumerate(reversed(parts)):
        size = (rows.stop - rows.start, latent_dim)
        places = _pop_latents(stack, np.zeros(size), np.full(size, 1.0))
        probability = coders.decode(_latents(places, size))
        found = stack.decode(_bernoulli(), probability.ravel())
        values[rows] = np.asarray(found).reshape(-1, *shape)
        mean, scale = coders.encode(values[rows])
        _push_latents(stack, places, mean.ravel() / WIDTH, scale.ravel() / WIDTH)
        if progress is not None:
            progress(i + 1, len(parts))
    if not np.array_equal(stack.get_compressed(), _borrowed(borrowed)):
        raise ValueError(
            "the bits that were borrowed did not come back: the model, its parameters or the machine are not those "
            "that wrote the file"
        )
    return values


def _coders(model: Any, params: PyTree, model_state: PyTree, shape: tuple[int, ...], batch_size: int) -> Coders:
    """The networks of a model that a codec can be made of."""
    variables = variables_of(params, model_state)
    for method in ("encode", "decode", "latent_prior"):
        if not hasattr(model, method):
            raise TypeError(f"bits back needs a VAE, and {type(model).__name__} has no {method}")
    one = jax.ShapeDtypeStruct((batch_size, *shape), jnp.float32)
    posterior = jax.eval_shape(partial(model.apply, variables, method="encode"), one)
    prior = model.apply(variables, method="latent_prior")
    latent = jax.ShapeDtypeStruct((batch_size, *posterior.mean.shape[1:]), jnp.float32)
    likelihood = jax.eval_shape(partial(model.apply, variables, method="decode"), latent)
    kinds = (
        (posterior, DiagGaussian, "posterior"),
        (prior, StandardNormal, "prior"),
        (likelihood, Bernoulli, "likelihood"),
    )
    for record, expected, name in kinds:
        if type(record) is not expected:
            raise TypeError(
                f"bits back is written for a {expected.__name__} as the {name}, and this model's is a "
                f"{type(record).__name__}"
            )
    if posterior.mean.ndim != 2:
        raise ValueError(f"bits back is written for latents [B, D], and this model's are {posterior.mean.shape}")
    if likelihood.logits.shape[1:] != shape:
        raise ValueError(f"the model is of x {likelihood.logits.shape[1:]}, and x is {shape}")

    @jax.jit
    def encode(x: Array) -> tuple[Array, Array]:
        record = model.apply(variables, x, method="encode")
        return record.mean, jnp.broadcast_to(jnp.exp(0.5 * record.log_var), record.mean.shape)

    @jax.jit
    def decode(z: Array) -> Array:
        return jax.nn.sigmoid(model.apply(variables, z, method="decode").logits)

    def padded(values: np.ndarray) -> np.ndarray:
        whole = np.zeros((batch_size, *values.shape[1:]), np.float32)
        whole[: len(values)] = values
        return whole

    def run_encoder(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        mean, scale = (np.asarray(each, np.float64)[: len(x)] for each in encode(padded(x)))
        _check_finite("encoder", mean, scale)
        return mean, np.maximum(scale, SURE)

    def run_decoder(z: np.ndarray) -> np.ndarray:
        probability = np.asarray(decode(padded(z)), np.float64)[: len(z)]
        _check_finite("decoder", probability)
        return probability

    return Coders(run_encoder, run_decoder, shape, posterior.mean.shape[1])


def _check_finite(network: str, *outputs: np.ndarray) -> None:
    if not all(np.isfinite(output).all() for output in outputs):
        raise ValueError(f"the {network}'s output is not finite: its parameters are damaged")


def entropy_coder() -> Any:
    """The package constriction, or an `ImportError` that names the extra."""
    try:
        import constriction
    except ImportError as error:
        raise ImportError("compression needs constriction: pip install 'jaxvae[compression]'") from error
    return constriction


def _stack(words: np.ndarray) -> Any:
    return entropy_coder().stream.stack.AnsCoder(np.asarray(words, np.uint32))


def _bernoulli() -> Any:
    return entropy_coder().stream.model.Bernoulli(perfect=False)


def _gaussian() -> Any:
    places = round(RANGE / WIDTH)
    return entropy_coder().stream.model.QuantizedGaussian(-places, places)


def _pop_latents(stack: Any, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """The bins of latents, flat, that the bits on the stack stand for."""
    return np.asarray(stack.decode(_gaussian(), mean.ravel() / WIDTH, scale.ravel() / WIDTH))


def _push_latents(stack: Any, places: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> None:
    """The other way round, of means and scales in bins."""
    stack.encode_reverse(places, _gaussian(), mean, scale)


def _latents(places: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return (places * WIDTH).astype(np.float32).reshape(shape)


def _words_of_first(coders: Coders, x: np.ndarray) -> int:
    """About how many words the first batch borrows."""
    _, scale = coders.encode(x)
    nats = np.maximum(np.log(scale / WIDTH) + 0.5 * np.log(2 * np.pi * np.e), 0).sum()
    return SPARE + int(nats / np.log(2) / BITS)


def _pushed(coders: Coders, x: np.ndarray, batch_size: int, borrowed: int, progress: Progress | None) -> Any:
    """A stack with all of x on it; None where what was borrowed did not suffice."""
    stack, parts = _stack(_borrowed(borrowed)), list(batches(len(x), batch_size))
    for i, rows in enumerate(parts):
        mean, scale = coders.encode(x[rows])
        places = _pop_latents(stack, mean, scale)
        if stack.num_words() < LEFT:
            return None
        probability = coders.decode(_latents(places, mean.shape))
        stack.encode_reverse(x[rows].ravel().astype(np.int32), _bernoulli(), probability.ravel())
        _push_latents(stack, places, np.zeros(len(places)), np.full(len(places), 1 / WIDTH))
        if progress is not None:
            progress(i + 1, len(parts))
    return stack


def _borrowed(words: int) -> np.ndarray:
    """Bits of a fixed seed; the last word is not zero, which a stack cannot tell from nothing."""
    return np.random.default_rng(0).integers(1, 2**BITS, words, dtype=np.uint32)


def batches(count: int, batch_size: int) -> Iterator[slice]:
    """The rows of each batch."""
    return (slice(start, min(start + batch_size, count)) for start in range(0, count, batch_size))


def _binary(x: ArrayLike) -> np.ndarray:
    """[N, ...] uint8 of zeros and ones."""
    values = host_array(x, "x")
    if values.ndim < 2 or not values.size:
        raise ValueError(f"expected x [N, ...], at least one number in each example, got {values.shape}")
    wrong = (values != 0) & (values != 1)
    if wrong.any():
        first = int(np.argmax(wrong.reshape(len(values), -1).any(axis=1)))
        raise ValueError(f"x[{first}] has {values[first][wrong[first]].ravel()[0]}: bits back codes zeros and ones")
    return values.astype(np.uint8)


def _parsed(compressed: bytes) -> tuple[int, int, int, int, tuple[int, ...], np.ndarray]:
    """What the header says, and the words after it."""
    start = len(MAGIC) + 4
    if not compressed.startswith(MAGIC) or len(compressed) < start + 20:
        raise ValueError("these bytes are not of jaxvae.evaluation.compress")
    body = compressed[start:]
    if zlib.crc32(body) != struct.unpack_from("<I", compressed, len(MAGIC))[0]:
        raise ValueError("the file is damaged or cut off: its checksum is another")
    count, batch_size, latent_dim, borrowed, rank = struct.unpack_from("<5I", body)
    shape = struct.unpack_from(f"<{rank}I", body, 20)
    return count, batch_size, latent_dim, borrowed, shape, np.frombuffer(body, "<u4", offset=20 + 4 * rank)
