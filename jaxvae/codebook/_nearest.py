"""Which code a vector takes."""

import math

import jax
import jax.numpy as jnp

from jaxvae._checks import weight_at
from jaxvae.codebook._averages import CodebookState
from jaxvae.codebook._checks import check_dim, detached
from jaxvae.keys import noise
from jaxvae.types import Array, PRNGKey

BLOCK = 2**20  # products of vectors and codes that are there at once
RUN = 32  # codes whose largest product is found first
COST_FLOOR = 0.5  # of the uniform share 1/K: rarer codes cost no more than this


def nearest(codes: Array, encoded: Array, cost: Array | None = None) -> Array:
    r"""The index of the code nearest to each vector; ties go to the lowest. K, which is none, where nothing is near.

    .. math:: \arg\min_k \|z - e_k\|^2 = \arg\min_k \tfrac12 \|e_k - c\|^2 - (z - c) \cdot (e_k - c)

    In float32 at the highest precision. A centre c of the codes is subtracted because the products of vectors far from
    the origin would drown the distances between them: choices are exact to the rounding of |z - c|².

    Args:
      codes: e, `[K, D]` floating.
      encoded: z, `[..., D]` floating.
      cost: `[K]`, what each code adds to its squared distance; none by default. See `code_costs`.

    Returns:
      `[...]` int32, without a gradient. K for a vector that is NaN or infinite, and for every one where a code is:
      `ema_update` leaves it out, and a quantiser's `look_up` refuses it or makes it NaN.

    Raises:
      TypeError: an argument is not floating.
      ValueError: the shapes do not fit.

    >>> nearest(jnp.array([[0.0], [1.0], [1.0]]), jnp.array([[0.2], [7.0]]))
    Array([0, 1], dtype=int32)
    """
    codes, flat, half_norms = _centred(codes, encoded, cost)
    # The norms join the products as one dimension more; codes that fill up the last run are farther than any other.
    num_codes, run = len(codes), min(RUN, len(codes))
    codes = jnp.pad(jnp.concatenate([codes, -half_norms[:, None]], axis=1), ((0, -num_codes % run), (0, 0)))
    codes = codes.at[num_codes:, -1].set(jnp.finfo(jnp.float32).min)

    def of_block(block: Array) -> Array:
        """The largest of every run of codes, the run, the code in it: one argmax over all takes twice as long."""
        products = _products(jnp.concatenate([block, jnp.ones((len(block), 1), block.dtype)], axis=1), codes)
        runs = products.reshape(len(block), -1, run)
        largest = runs.max(axis=2)
        best = jnp.argmax(largest, axis=1).astype(jnp.int32)
        within = jnp.argmax(jnp.take_along_axis(runs, best[:, None, None], axis=1)[:, 0], axis=1)
        index = jnp.minimum(best * run + within, num_codes - 1).astype(jnp.int32)
        return jnp.where(jnp.isfinite(largest.max(axis=1)), index, num_codes)

    rows = max(1, BLOCK // len(codes))
    if len(flat) <= rows:
        return of_block(flat).reshape(encoded.shape[:-1])
    # In blocks: memory does not grow with N times K, and on a CPU the products stay in the cache.
    blocks = jnp.pad(flat, ((0, -len(flat) % rows), (0, 0))).reshape(-1, rows, flat.shape[1])
    return jax.lax.map(of_block, blocks).reshape(-1)[: len(flat)].reshape(encoded.shape[:-1])


def draw(codes: Array, encoded: Array, *, temperature: float | Array, key: PRNGKey, cost: Array | None = None) -> Array:
    r"""The index of a code drawn for each vector, near ones more often than far ones.

    .. math:: p(k | z) \propto \exp\left(-\|z - e_k\|^2 / T\right)

    Args:
      codes: e, `[K, D]` floating.
      encoded: z, `[B, ..., D]` floating.
      temperature: T, in the units of a squared distance, zero or more; at 0 the nearest. A traced one is not checked.
      key: one key, or one for each example, `[B]`.
      cost: as in `nearest`.

    Returns:
      `[B, ...]` int32, without a gradient, and K as of `nearest`. Holds the scores of all codes, N times K.

    Raises:
      TypeError: an argument is not floating, or the key not typed.
      ValueError: the shapes do not fit, or the temperature is negative or not finite.

    References:
      Sønderby et al., Continuous Relaxation Training of Discrete Latent Variable Image Models, 2017.
    """
    temperature = weight_at("temperature", temperature, 0)
    centred, flat, half_norms = _centred(codes, encoded, cost)
    scores = half_norms[None] - _products(flat, centred)
    gumbel = noise(jax.random.gumbel, key, (*encoded.shape[:-1], len(codes))).reshape(scores.shape)
    scores = scores - 0.5 * temperature * gumbel
    indices = jnp.where(jnp.isfinite(scores.min(axis=1)), jnp.argmin(scores, axis=1), len(codes))
    return indices.astype(jnp.int32).reshape(encoded.shape[:-1])


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


def _centred(codes: Array, encoded: Array, cost: Array | None) -> tuple[Array, Array, Array]:
    """Codes [K, D] and vectors [N, D] about a centre, and half the codes' squared norms [K] with their cost."""
    codes, encoded = detached(codes, "codes"), detached(encoded, "encoded")
    if codes.ndim != 2 or not codes.size:
        raise ValueError(f"codes must be [K, D], got {codes.shape}")
    check_dim(encoded, codes.shape[1])
    centre = _centre(codes)
    codes = codes - centre[None]
    half_norms = 0.5 * jnp.square(codes).sum(axis=1)
    if cost is not None:
        if cost.shape != codes.shape[:1]:
            raise ValueError(f"cost must be {codes.shape[:1]}, one for each code, got {cost.shape}")
        half_norms += 0.5 * jax.lax.stop_gradient(cost)
    return codes, encoded.reshape(-1, codes.shape[1]) - centre[None], half_norms


def _products(flat: Array, codes: Array) -> Array:
    return jnp.dot(flat, codes.T, precision=jax.lax.Precision.HIGHEST)


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
