"""How much of a codebook is in use."""

import jax
import jax.numpy as jnp

from jaxvae._checks import at_least, integers
from jaxvae.codebook._checks import check_positions
from jaxvae.types import Array


def usage(indices: Array, num_codes: int) -> Array:
    """The share of positions that chose each code, [K] float32, from integer indices of any shape.

    Indices that are none of 0 .. K-1, such as those of padding, are among the positions and of no code.

    Raises:
      TypeError: `indices` is not integer.
      ValueError: there are none, or `num_codes` is below 2.

    >>> usage(jnp.array([[0, 2], [2, 2]]), 3)
    Array([0.25, 0.  , 0.75], dtype=float32)
    """
    at_least(2, num_codes=num_codes)
    flat = integers(indices, "indices").reshape(-1)
    check_positions("indices", flat)
    return count(flat, num_codes).astype(jnp.float32) / len(flat)


def count(indices: Array, num_codes: int) -> Array:
    """How many of the indices [N] are each code, [K] int32: ones in float32 would add up to 2**24 at most."""
    return jax.ops.segment_sum(jnp.ones(indices.shape, jnp.int32), indices, num_codes)


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
    # Above zero, where the slope of -p log p is infinite: shares that a softmax made have a slope of zero there.
    positive = jnp.maximum(shares / shares.sum(), jnp.finfo(shares.dtype).tiny)
    return jnp.exp(jax.scipy.special.entr(positive).sum())
