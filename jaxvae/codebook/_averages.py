"""The codes as exponential moving averages: their state, what a batch makes of it, restarts."""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxvae._checks import at_least, integers, where_mask
from jaxvae.codebook._checks import check_dim, check_positions, detached
from jaxvae.codebook._health import count
from jaxvae.keys import check_key
from jaxvae.types import Array, PRNGKey

FEW = 2**26  # one-hot numbers, a quarter of a gigabyte
FROZEN_BELOW = 1e-3  # of the uniform share 1/K: an unused code this rare keeps its statistics


class CodebookState(NamedTuple):
    """Exponential moving averages of what each code was used for; its vector is moment / frequency.

    Attributes:
      frequency: the share of positions that chose the code, [K] float32.
      moment: the sum of the vectors that chose it over the number of positions, [K, D] float32.
    """

    frequency: Array
    moment: Array


def init_codebook(num_codes: int, dim: int, *, key: PRNGKey) -> CodebookState:
    """Random codes from N(0, I / D), each with the uniform share.

    Their expected squared norm is one for every D. `seed_codebook` starts from data instead, which trains better.

    Raises:
      TypeError: the key is not typed.
      ValueError: `num_codes` is below 2, or `dim` below 1.
    """
    check_key(key)
    at_least(2, num_codes=num_codes)
    at_least(1, dim=dim)
    return evenly_used(jax.random.normal(key, (num_codes, dim), jnp.float32) / math.sqrt(dim))


def vectors(state: CodebookState) -> Array:
    """The codes, moment / frequency, [K, D] float32: finite for every state that these functions make."""
    return state.moment / state.frequency[:, None]


def ema_update(
    state: CodebookState, encoded: Array, indices: Array, *, decay: float | Array, mask: Array | None = None
) -> CodebookState:
    r"""Move the averages towards a batch.

    .. math:: N \leftarrow \gamma N + (1 - \gamma) n, \quad m \leftarrow \gamma m + (1 - \gamma) \textstyle\sum z

    with n the batch's mean one-hot and Σz its mean one-hotᵀ z. Only these raw averages are kept, without smoothing: a
    code without use keeps its vector, since both shrink together, and is frozen at a thousandth of the uniform share,
    before rounding could move it. In float32 whatever the type of `encoded`, which gets no gradient.

    Args:
      state: [K] and [K, D].
      encoded: z, `[..., D]` floating.
      indices: `[...]` integers in 0 .. K-1, from `nearest`; others are left out of the sums.
      decay: γ, in (0, 1); a traced value is not checked.
      mask: `[...]`, true at the positions that the means are over; where none is, the averages stay as they are.

    Raises:
      TypeError: `encoded` is not floating, `indices` not integer or `mask` not boolean.
      ValueError: the shapes do not fit, or `decay` is out of its range.
    """
    if not isinstance(decay, jax.core.Tracer) and not 0 < float(decay) < 1:
        raise ValueError(f"decay must lie between 0 and 1, got {decay}")
    num_codes, dim = state.moment.shape
    encoded, indices = detached(encoded, "encoded"), integers(indices, "indices")
    check_dim(encoded, dim)
    check_positions("encoded", encoded)
    if indices.shape != encoded.shape[:-1]:
        raise ValueError(f"indices must be {encoded.shape[:-1]} for encoded {encoded.shape}, got {indices.shape}")
    if mask is not None:
        encoded, indices = where_mask(encoded, mask), jnp.where(mask, indices, num_codes)
    batch = batch_means(encoded, indices, num_codes)
    frozen = (batch.frequency == 0) & (state.frequency < FROZEN_BELOW / num_codes)
    if mask is not None:
        batch = jax.tree.map(lambda mean: mean * (jnp.float32(mask.size) / jnp.maximum(mask.sum(), 1)), batch)
        frozen |= ~mask.any()
    frequency = decay * state.frequency + (1 - decay) * batch.frequency
    moment = decay * state.moment + (1 - decay) * batch.moment
    return CodebookState(
        frequency=jnp.where(frozen, state.frequency, frequency),
        moment=jnp.where(frozen[:, None], state.moment, moment),
    )


def restart_dead_codes(
    state: CodebookState, encoded: Array, *, key: PRNGKey, threshold: float = 0.1, mask: Array | None = None
) -> CodebookState:
    """Move the codes that are hardly used to vectors of this batch.

    Each takes the vector of another position, drawn without replacement, and starts over with the uniform share:
    vector, frequency and moment together, so that the next update does not undo it. Where there are fewer positions
    than dead codes, those of the lowest indices restart and the others wait. The shape of the program does not depend
    on how many are dead.

    Args:
      state: [K] and [K, D], after `ema_update`.
      encoded: `[..., D]` floating.
      key: a typed key.
      threshold: a code is dead below this fraction of the uniform share 1/K; 0 restarts none.
      mask: `[...]`, true at the positions that codes may restart at.

    Raises:
      TypeError: `encoded` is not floating, the key not typed, or `mask` not boolean.
      ValueError: the shapes do not fit, or `threshold` is not in [0, 1).
    """
    check_key(key)
    num_codes, dim = state.moment.shape
    encoded = detached(encoded, "encoded")
    check_dim(encoded, dim)
    check_positions("encoded", encoded)
    flat = (encoded if mask is None else where_mask(encoded, mask)).reshape(-1, dim)
    # The largest of independent noise are positions drawn without replacement, cheaper than a permutation.
    noise, draws = jax.random.uniform(key, (len(flat),)), min(num_codes, len(flat))
    found: Array | int = draws
    if mask is not None:  # each position has the noise that it would have without the others, which come last
        counts = jnp.asarray(mask).reshape(-1)
        noise = jnp.where(counts, noise[jnp.cumsum(counts) - 1], -1.0)
        found = jnp.minimum(counts.sum(), draws)
    _, positions = jax.lax.top_k(noise, draws)
    dead = _dead(state, threshold)
    rank = jnp.cumsum(dead) - 1  # among the dead
    restarted = dead & (rank < found)
    fresh = evenly_used(flat[positions[rank.clip(0, draws - 1)]])
    return CodebookState(
        frequency=jnp.where(restarted, fresh.frequency, state.frequency),
        moment=jnp.where(restarted[:, None], fresh.moment, state.moment),
    )


def dead_codes(state: CodebookState, *, threshold: float = 0.1) -> Array:
    """How many codes `restart_dead_codes` finds dead, an int32 scalar: a metric of the step that restarts them.

    Raises:
      ValueError: `threshold` is not in [0, 1).
    """
    return _dead(state, threshold).sum(dtype=jnp.int32)


def batch_means(encoded: Array, indices: Array, num_codes: int) -> CodebookState:
    """Mean one-hot [K] and mean one-hotᵀ z [K, D] of float32 [..., D] and indices [...]: what `ema_update` averages.

    The fastest form on a CPU by far is the scatter (`benchmarks/codebook.py`). Not measured elsewhere: accelerators
    get the matrix product, which their units are made for and whose sums do not depend on an order of atomics, as long
    as its K times N one-hot numbers are few.
    """
    check_positions("encoded", encoded)
    flat, indices = encoded.reshape(-1, encoded.shape[-1]), integers(indices, "indices").reshape(-1)
    scattered = partial(segment_means, num_codes=num_codes)
    if num_codes * len(flat) > FEW:
        return scattered(flat, indices)
    return jax.lax.platform_dependent(flat, indices, cpu=scattered, default=partial(one_hot_means, num_codes=num_codes))


def segment_means(encoded: Array, indices: Array, num_codes: int) -> CodebookState:
    """`batch_means` of [N, D] and [N] by scattered additions."""
    indices = integers(indices, "indices")
    counts = count(indices, num_codes).astype(jnp.float32)
    sums = jax.ops.segment_sum(encoded, indices, num_codes)
    return CodebookState(counts / len(indices), sums / len(indices))


def one_hot_means(encoded: Array, indices: Array, num_codes: int) -> CodebookState:
    """`batch_means` of [N, D] and [N] by a matrix product."""
    indices = integers(indices, "indices")
    one_hot = jax.nn.one_hot(indices, num_codes, dtype=jnp.float32, axis=0)
    there = (indices >= 0) & (indices < num_codes)
    encoded = jnp.where(there[:, None], encoded, 0)  # what is left out may be NaN
    sums = jnp.dot(one_hot, encoded, precision=jax.lax.Precision.HIGHEST)
    return CodebookState(one_hot.mean(axis=1), sums / len(indices))


def evenly_used(codes: Array) -> CodebookState:
    """The state whose vectors are `codes` [K, D], each with the uniform share."""
    return CodebookState(jnp.full(len(codes), 1 / len(codes), jnp.float32), codes / len(codes))


def _dead(state: CodebookState, threshold: float) -> Array:
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must lie in [0, 1), a fraction of the uniform share, got {threshold}")
    return state.frequency < threshold / len(state.frequency)
