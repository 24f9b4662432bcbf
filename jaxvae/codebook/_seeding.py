"""Where the codes start."""

import jax
import jax.numpy as jnp

from jaxvae._checks import at_least
from jaxvae.codebook._averages import CodebookState, batch_means, evenly_used
from jaxvae.codebook._checks import detached
from jaxvae.codebook._nearest import nearest
from jaxvae.keys import check_key
from jaxvae.types import Array, PRNGKey

ROUNDS = 512  # of k-means++, in each of which the codes do not see each other


def seed_codebook(encoded: Array, num_codes: int, *, key: PRNGKey, iterations: int = 5) -> CodebookState:
    """Codes spread over the encoder's outputs: k-means++ seeding, then Lloyd's iterations.

    Every code starts with the uniform share, not with its cluster's: a cluster of one would start near death, and an
    empty one without a vector. More than 512 codes are drawn several at a time, in 512 rounds. Where there are fewer
    distinct points than codes, the codes left over equal one of the points; they win no position, since ties go to the
    lowest index, and restart once training moves the encoder.

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
    encoded = detached(encoded, "encoded")
    if encoded.ndim != 2 or not encoded.size:
        raise ValueError(f"encoded must be [N, D], got {encoded.shape}; N must be at least 1")
    at_least(0, iterations=iterations)

    each = min(-(-num_codes // ROUNDS), len(encoded))  # codes of one round: one at a time up to ROUNDS of them

    def add_codes(number: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        codes, distance = carry
        # With probability proportional to the squared distance from the codes so far, without replacement by the
        # largest of log weights with Gumbel noise; the first rows where all are zero.
        noise = jax.random.gumbel(jax.random.fold_in(key, number), distance.shape)
        _, rows = jax.lax.top_k(jnp.log(distance) + noise, each)
        new = encoded[rows]
        if each == 1:
            distance = jnp.minimum(distance, jnp.square(encoded - new).sum(axis=1))
        else:
            products = jnp.dot(centred, centred[rows].T, precision=jax.lax.Precision.HIGHEST)
            apart = (norms[:, None] - 2 * products + norms[rows][None]).min(axis=1)
            distance = jnp.minimum(distance, jnp.maximum(apart, 0)).at[rows].set(0)
        return jax.lax.dynamic_update_slice_in_dim(codes, new, number * each, axis=0), distance

    def move_codes(_: Array, codes: Array) -> Array:
        cluster = batch_means(encoded, nearest(codes, encoded), num_codes)
        means = cluster.moment / jnp.maximum(cluster.frequency, 1 / len(encoded))[:, None]
        return jnp.where((cluster.frequency > 0)[:, None], means, codes)

    far = jnp.full(len(encoded), jnp.finfo(jnp.float32).max)  # from no code at all: the first is drawn evenly
    centred = encoded - encoded.mean(axis=0, keepdims=True)  # far from the origin products drown the distances
    norms, rounds = jnp.square(centred).sum(axis=1), -(-num_codes // each)
    codes = jnp.zeros((rounds * each, encoded.shape[1]), jnp.float32)
    codes = jax.lax.fori_loop(0, rounds, add_codes, (codes, far))[0][:num_codes]
    return evenly_used(jax.lax.fori_loop(0, iterations, move_codes, codes))
