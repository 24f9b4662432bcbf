"""The codebook of VQ-VAE as pure functions: nearest codes, moving averages, restarts, health.

A step reads the state and makes the next one:

    codes = vectors(state)
    indices = nearest(codes, encoded)
    quantized = straight_through(encoded, codes[indices])  # for the decoder; the losses take codes[indices] itself
    state = ema_update(state, encoded, indices, decay=0.99)
    state = restart_dead_codes(state, encoded, key=key)

Statistics are means over all positions of the batch, so that a batch twice over changes nothing, and so that a batch
split over devices needs one mean. Evaluation does not update. For a codebook learned by gradient (the paper's second
loss term) the codes are a parameter: `nearest`, `straight_through` and `losses.codebook_loss` serve it as they are.
For groups, `jax.vmap` every function.

References:
  van den Oord, Vinyals and Kavukcuoglu, Neural Discrete Representation Learning, 2017, with the moving averages in
  appendix A.1; Razavi, van den Oord and Vinyals, Generating Diverse High-Fidelity Images with VQ-VAE-2, 2019.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxvae._checks import at_least, floating, integers, where_mask
from jaxvae.keys import check_key
from jaxvae.types import Array, PRNGKey

COST_FLOOR = 0.5  # of the uniform share 1/K: rarer codes cost no more than this
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
    return _evenly_used(jax.random.normal(key, (num_codes, dim), jnp.float32) / math.sqrt(dim))


def seed_codebook(encoded: Array, num_codes: int, *, key: PRNGKey, iterations: int = 5) -> CodebookState:
    """Codes spread over the encoder's outputs: k-means++ seeding, then Lloyd's iterations.

    Every code starts with the uniform share, not with its cluster's: a cluster of one would start near death, and an
    empty one without a vector. Where there are fewer distinct points than codes, the codes left over equal one of the
    points; they win no position, since ties go to the lowest index, and restart once training moves the encoder.

    Args:
      encoded: `[N, D]` floating, of a batch or a few.
      num_codes: K.
      key: a typed key.
      iterations: how often each code moves to the mean of the points nearest to it.

    Raises:
      TypeError: `encoded` is not floating, or the key not typed.
      ValueError: `encoded` is not `[N, D]` or empty, `num_codes` is below 2, or `iterations` below 0.

    References:
      Arthur and Vassilvitskii, k-means++: The Advantages of Careful Seeding, 2007.
    """
    check_key(key)
    at_least(2, num_codes=num_codes)
    encoded = _detached(encoded, "encoded")
    if encoded.ndim != 2 or not encoded.size:
        raise ValueError(f"encoded must be [N, D], got {encoded.shape}; N must be at least 1")
    at_least(0, iterations=iterations)

    def add_code(k: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        codes, distance = carry
        # With probability proportional to the squared distance from the codes so far; row 0 where all are zero.
        row = jax.random.categorical(jax.random.fold_in(key, k), jnp.log(distance))
        code = encoded[row]
        distance = jnp.minimum(distance, jnp.square(encoded - code[None]).sum(axis=1))
        return codes.at[k].set(code), distance

    def move_codes(_: Array, codes: Array) -> Array:
        cluster = batch_means(encoded, nearest(codes, encoded), num_codes)
        means = cluster.moment / jnp.maximum(cluster.frequency, 1 / len(encoded))[:, None]
        return jnp.where((cluster.frequency > 0)[:, None], means, codes)

    far = jnp.full(len(encoded), jnp.finfo(jnp.float32).max)  # from no code at all: the first is drawn evenly
    codes = jnp.zeros((num_codes, encoded.shape[1]), jnp.float32)
    codes, _ = jax.lax.fori_loop(0, num_codes, add_code, (codes, far))
    return _evenly_used(jax.lax.fori_loop(0, iterations, move_codes, codes))


def vectors(state: CodebookState) -> Array:
    """The codes, moment / frequency, [K, D] float32: finite for every state that these functions make."""
    return state.moment / state.frequency[:, None]


def nearest(codes: Array, encoded: Array, cost: Array | None = None) -> Array:
    r"""The index of the code nearest to each vector; ties go to the lowest.

    .. math:: \arg\min_k \|z - e_k\|^2 = \arg\min_k \tfrac12 \|e_k - c\|^2 - (z - c) \cdot (e_k - c)

    In float32 at the highest precision. A centre c of the codes is subtracted because the products of vectors far from
    the origin would drown the distances between them: choices are exact to the rounding of |z - c|².

    Args:
      codes: e, `[K, D]` floating.
      encoded: z, `[..., D]` floating.
      cost: `[K]`, what each code adds to its squared distance; none by default. See `code_costs`.

    Returns:
      `[...]` int32, without a gradient.

    Raises:
      TypeError: an argument is not floating.
      ValueError: the shapes do not fit.

    >>> nearest(jnp.array([[0.0], [1.0], [1.0]]), jnp.array([[0.2], [7.0]]))
    Array([0, 1], dtype=int32)
    """
    codes, encoded = _detached(codes, "codes"), _detached(encoded, "encoded")
    if codes.ndim != 2 or not codes.size:
        raise ValueError(f"codes must be [K, D], got {codes.shape}")
    _check_dim(encoded, codes.shape[1])
    centre = _centre(codes)
    codes = codes - centre[None]
    flat = encoded.reshape(-1, codes.shape[1]) - centre[None]
    products = jnp.dot(flat, codes.T, precision=jax.lax.Precision.HIGHEST)
    half_norms = 0.5 * jnp.square(codes).sum(axis=1)
    if cost is not None:
        if cost.shape != codes.shape[:1]:
            raise ValueError(f"cost must be {codes.shape[:1]}, one for each code, got {cost.shape}")
        half_norms += 0.5 * jax.lax.stop_gradient(cost)
    return jnp.argmin(half_norms[None] - products, axis=1).astype(jnp.int32).reshape(encoded.shape[:-1])


def code_costs(state: CodebookState, weight: float) -> Array:
    r"""What each code adds to its squared distance under an entropy constraint, [K]; for `nearest`.

    .. math:: -\lambda \log \max\left(f_k, \tfrac{1}{2K}\right)

    Frequent codes win the close calls: a little distortion for indices of lower entropy, which a prior predicts better.
    Below half the uniform share the cost is level, or rare codes would lose what they have left.

    Args:
      state: the codebook's.
      weight: λ, in the units of a squared distance per nat.

    Raises:
      ValueError: the weight is negative or not finite.

    References:
      Chou, Lookabaugh and Gray, Entropy-Constrained Vector Quantization, 1989.
    """
    if not 0 <= weight < math.inf:
        raise ValueError(f"weight must be a finite number, zero or more, got {weight}")
    return -weight * jnp.log(jnp.maximum(state.frequency, COST_FLOOR / len(state.frequency)))


def straight_through(encoded: Array, quantized: Array) -> Array:
    """The value of `quantized` with the gradient of `encoded`, in the type of `encoded`.

    Only the decoder's input: the losses take `quantized` itself.

    Raises:
      TypeError: an argument is not floating.
      ValueError: the shapes differ.
    """
    encoded, value = floating(encoded, "encoded"), jax.lax.stop_gradient(floating(quantized, "quantized"))
    if encoded.shape != value.shape:
        raise ValueError(f"encoded and quantized must have one shape, got {encoded.shape} and {value.shape}")
    # The difference is zero: the value is exactly the code's, not its to rounding.
    return value.astype(encoded.dtype) + (encoded - jax.lax.stop_gradient(encoded))


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
    encoded, indices = _detached(encoded, "encoded"), integers(indices, "indices")
    _check_dim(encoded, dim)
    _check_positions("encoded", encoded)
    if indices.shape != encoded.shape[:-1]:
        raise ValueError(f"indices must be {encoded.shape[:-1]} for encoded {encoded.shape}, got {indices.shape}")
    if mask is not None:
        encoded, indices = where_mask(encoded, mask), jnp.where(mask, indices, num_codes)
    batch = batch_means(encoded, indices, num_codes)
    frozen = (batch.frequency == 0) & (state.frequency < FROZEN_BELOW / num_codes)
    if mask is not None:
        batch = jax.tree.map(lambda mean: mean * (mask.size / jnp.maximum(mask.sum(), 1)), batch)
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
    encoded = _detached(encoded, "encoded")
    _check_dim(encoded, dim)
    _check_positions("encoded", encoded)
    flat = (encoded if mask is None else where_mask(encoded, mask)).reshape(-1, dim)
    # The largest of independent noise are positions drawn without replacement, cheaper than a permutation.
    noise, draws = jax.random.uniform(key, (len(flat),)), min(num_codes, len(flat))
    noise = noise if mask is None else jnp.where(mask.reshape(-1), noise, -1.0)  # the others come last
    found = draws if mask is None else jnp.minimum(mask.sum(), draws)
    _, positions = jax.lax.top_k(noise, draws)
    dead = _dead(state, threshold)
    rank = jnp.cumsum(dead) - 1  # among the dead
    restarted = dead & (rank < found)
    fresh = _evenly_used(flat[positions[rank.clip(0, draws - 1)]])
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


def usage(indices: Array, num_codes: int) -> Array:
    """The share of positions that chose each code, [K] float32, from integer indices of any shape.

    Raises:
      TypeError: `indices` is not integer.
      ValueError: there are none, or `num_codes` is below 2.

    >>> usage(jnp.array([[0, 2], [2, 2]]), 3)
    Array([0.25, 0.  , 0.75], dtype=float32)
    """
    at_least(2, num_codes=num_codes)
    flat = integers(indices, "indices").reshape(-1)
    _check_positions("indices", flat)
    return jax.ops.segment_sum(jnp.ones(flat.shape, jnp.float32), flat, num_codes) / len(flat)


def perplexity(usage: Array) -> Array:
    r"""The effective number of codes in use, between 1 and K.

    .. math:: \exp\left(-\sum_k p_k \log p_k\right), \quad p_k = \frac{u_k}{\sum_j u_j}

    Not linear: of several batches take the mean usage first. A small batch's is biased low.

    Args:
      usage: u, `[K]` shares or counts, not all zero; integers or floating.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: the usage is not `[K]`.

    >>> perplexity(jnp.array([5, 5, 0, 0]))
    Array(2., dtype=float32)
    """
    shares = jnp.asarray(usage, jnp.float32)
    if shares.ndim != 1 or not len(shares):
        raise ValueError(f"usage must be [K], got {shares.shape}; take groups by jax.vmap")
    return jnp.exp(jax.scipy.special.entr(shares / shares.sum()).sum())


def batch_means(encoded: Array, indices: Array, num_codes: int) -> CodebookState:
    """Mean one-hot [K] and mean one-hotᵀ z [K, D] of float32 [..., D] and indices [...]: what `ema_update` averages.

    The fastest form on a CPU by far is the scatter (`benchmarks/codebook.py`). Not measured elsewhere: accelerators
    get the matrix product, which their units are made for, and whose sums do not depend on an order of atomics.
    """
    _check_positions("encoded", encoded)
    return jax.lax.platform_dependent(
        encoded.reshape(-1, encoded.shape[-1]),
        integers(indices, "indices").reshape(-1),
        cpu=partial(segment_means, num_codes=num_codes),
        default=partial(one_hot_means, num_codes=num_codes),
    )


def segment_means(encoded: Array, indices: Array, num_codes: int) -> CodebookState:
    """`batch_means` of [N, D] and [N] by scattered additions."""
    indices = integers(indices, "indices")
    counts = jax.ops.segment_sum(jnp.ones(indices.shape, jnp.float32), indices, num_codes)
    sums = jax.ops.segment_sum(encoded, indices, num_codes)
    return CodebookState(counts / len(indices), sums / len(indices))


def one_hot_means(encoded: Array, indices: Array, num_codes: int) -> CodebookState:
    """`batch_means` of [N, D] and [N] by a matrix product."""
    indices = integers(indices, "indices")
    one_hot = jax.nn.one_hot(indices, num_codes, dtype=jnp.float32, axis=0)
    sums = jnp.dot(one_hot, encoded, precision=jax.lax.Precision.HIGHEST)
    return CodebookState(one_hot.mean(axis=1), sums / len(indices))


def _centre(codes: Array) -> Array:
    """A point [D] amid the codes [K, D], which codes far from the others do not move.

    It is their mean by the inverse squares of their distances from the code nearest to the plain mean. It is rounded to
    a multiple of the power of two above their spread, which makes the differences from it exact where codes have few
    digits: on a lattice ties stay ties, and codes about the origin stay as they are.
    """
    start = codes[jnp.square(codes - codes.mean(axis=0, keepdims=True)).sum(axis=1).argmin()]
    offsets = codes - start[None]
    squares = jnp.square(offsets).mean(axis=1)
    spread = len(codes) / jnp.where(squares > 0, 1 / squares, 0).sum()  # the harmonic mean: far codes hardly count
    weights = 1 / (squares + spread)
    centre = start + (weights[:, None] * offsets).sum(axis=0) / weights.sum()
    unit = jnp.ldexp(jnp.float32(1), jnp.frexp(jnp.sqrt(spread))[1])
    return jnp.where(jnp.isfinite(spread), unit * jnp.rint(centre / unit), start)  # infinite where all codes are one


def _evenly_used(codes: Array) -> CodebookState:
    """The state whose vectors are `codes` [K, D], each with the uniform share."""
    return CodebookState(jnp.full(len(codes), 1 / len(codes), jnp.float32), codes / len(codes))


def _dead(state: CodebookState, threshold: float) -> Array:
    if not 0 <= threshold < 1:
        raise ValueError(f"threshold must lie in [0, 1), a fraction of the uniform share, got {threshold}")
    return state.frequency < threshold / len(state.frequency)


def _detached(values: Array, name: str) -> Array:
    """The values in float32, without a gradient."""
    return jax.lax.stop_gradient(floating(values, name)).astype(jnp.float32)


def _check_dim(encoded: Array, dim: int) -> None:
    if encoded.ndim == 0 or encoded.shape[-1] != dim:
        raise ValueError(f"encoded must be [..., {dim}] for codes of {dim} dimensions, got {encoded.shape}")


def _check_positions(name: str, values: Array) -> None:
    if not values.size:
        raise ValueError(f"{name} must hold at least one position, got {values.shape}: its means would be NaN")
