"""What quantisers share: checks, masks, means over positions, the gradient's way past the choice, metrics."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from jaxvae import codebook
from jaxvae._checks import floating, integers, out_of_range, where_mask
from jaxvae.types import Array, Metrics, PRNGKey, PyTree, Quantized, Quantizer

Estimator = Literal["straight-through", "rotation"]
ESTIMATORS: dict[str, Callable[[Array, Array], Array]] = {
    "straight-through": codebook.straight_through,
    "rotation": codebook.rotation_trick,
}
LISTED = 2**20  # codes that `codes` lists at most
COUNTED = 2**16  # codes that have a counter each; more are counted by sorting
TINY = 1e-12


def check_choice(estimator: str, temperature: float) -> None:
    """Raise `ValueError` unless there is such an estimator of the gradient and such a temperature."""
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}")
    if not 0 <= temperature < math.inf:
        raise ValueError(f"temperature must be a finite number, zero or more, got {temperature}")


def check_quantizer(quantizer: Any) -> None:
    """Raise `TypeError` unless it is a record with a quantiser's methods."""
    if isinstance(quantizer, type) or not isinstance(quantizer, Quantizer):
        raise TypeError(f"quantizer must have the methods of jaxvae.types.Quantizer, got {quantizer!r}")


def needs_key(quantizer: Quantizer) -> bool:
    """Whether the quantiser draws in training."""
    return bool(getattr(quantizer, "needs_key", False))


def call(
    quantizer: Quantizer,
    params: PyTree,
    state: PyTree,
    encoded: Array,
    *,
    mask: Array | None = None,
    key: PRNGKey | None = None,
) -> Quantized:
    """The quantiser of vectors, with the keys where it draws."""
    if key is None or not needs_key(quantizer):
        return quantizer(params, state, encoded, mask=mask)
    return quantizer(params, state, encoded, mask=mask, key=key)  # type: ignore[call-arg]


def latent_of(quantized: Quantized, encoded: Array) -> Array:
    """What the decoder reads: the vectors of the codes, with their gradient."""
    latent = getattr(quantized, "latent", None)
    return codebook.straight_through(encoded, quantized.vectors) if latent is None else latent


def encoded_of(quantized: Quantized, encoded: Array) -> Array:
    """What the quantiser's `update` is given."""
    own = getattr(quantized, "encoded", None)
    return encoded if own is None else own


def folded(key: PRNGKey, part: int | Array) -> PRNGKey:
    """The key, or each of the examples' keys, for one part of a quantiser."""
    return jax.random.fold_in(key, part) if key.shape == () else jax.vmap(jax.random.fold_in, (0, None))(key, part)


def over_parts(metrics: Metrics) -> Metrics:
    """Metrics [parts] as scalars: sums of those that count (integers), means of the others."""
    return {
        name: values.sum(axis=0) if jnp.issubdtype(values.dtype, jnp.integer) else values.mean(axis=0)
        for name, values in metrics.items()
    }


def checked(encoded: Array, dim: int, mask: Array | None) -> tuple[Array, Array | None]:
    """Vectors [B, *positions, D] and the mask of their positions; zeros where it is false, lest a NaN there spread."""
    encoded = floating(encoded, "encoded")
    if encoded.ndim < 2 or encoded.shape[-1] != dim:
        raise ValueError(f"encoded must be [B, ..., {dim}] for codes of {dim} dimensions, got {encoded.shape}")
    if not encoded.size:
        raise ValueError(f"encoded must be [B, ..., {dim}], got {encoded.shape}, which holds nothing")
    if mask is None:
        return encoded, None
    mask = jnp.asarray(mask)
    return where_mask(encoded, mask), mask


def unit(vectors: Array) -> Array:
    """The vectors [..., D] at length one; zero stays zero, with a gradient that is finite."""
    squares = jnp.square(vectors.astype(jnp.float32)).sum(axis=-1, keepdims=True)
    return (vectors * jax.lax.rsqrt(jnp.maximum(squares, TINY**2))).astype(vectors.dtype)


def over_positions(error: Callable[[Array, Array], Array], encoded: Array, vectors: Array, mask: Array | None) -> Array:
    """A squared error of `jaxvae.losses`, [B], its mean over the positions that count; zero where none do."""
    if mask is None:
        return error(encoded, vectors)
    encoded, vectors = (jnp.where(mask[..., None], values, 0) for values in (encoded, vectors))
    by_example = mask.reshape(len(mask), -1)
    return error(encoded, vectors) * (by_example.shape[1] / jnp.maximum(by_example.sum(axis=1), 1))


def perplexity(indices: Array, mask: Array | None, num_codes: int) -> Array:
    """The effective number of codes that positions [B, *positions] chose; 0 where none counts."""
    flat = (indices if mask is None else jnp.where(mask, indices, num_codes)).reshape(-1)
    if num_codes <= COUNTED:
        effective = codebook.perplexity(codebook.usage(flat, num_codes))
    else:
        ordered = jnp.sort(flat)
        runs = jnp.cumsum(jnp.concatenate([jnp.zeros(1, jnp.int32), ordered[1:] != ordered[:-1]]))
        counts = jax.ops.segment_sum((ordered < num_codes).astype(jnp.int32), runs, len(flat))
        effective = codebook.perplexity(counts)
    return effective if mask is None else jnp.where(mask.any(), effective, 0)


def look_up(codes: Array, indices: Array) -> Array:
    """The codes [..., D] of integer indices [...]; NaN for one out of range, `ValueError` if it is not traced."""
    indices = integers(indices, "indices")
    outside = out_of_range("code", indices, len(codes))
    return chosen(codes, jnp.where(outside, len(codes), indices))


def chosen(codes: Array, indices: Array) -> Array:
    """The codes [..., D] of indices [...] in 0 .. K, of which K is none: its vector is NaN."""
    none = indices == len(codes)
    return jnp.where(none[..., None], jnp.nan, codes[jnp.where(none, 0, indices)])


def all_indices(num_codes: int) -> Array:
    """0 .. K-1, for a quantiser that lists its codes; `ValueError` where they are too many to list."""
    if num_codes > LISTED:
        raise ValueError(f"{num_codes} codes are too many to list, {LISTED} at most: look_up finds those of indices")
    return jnp.arange(num_codes, dtype=jnp.int32)


def check_count(num_codes: int, vectors: Array) -> None:
    """Raise `ValueError` unless the codes are `num_codes` vectors."""
    if vectors.ndim != 2 or len(vectors) != num_codes:
        raise ValueError(f"a codebook of num_codes={num_codes} needs codes ({num_codes}, D), got {vectors.shape}")


def described(tree: Any) -> str:
    """What a wrong tree of parameters or state is, for an error."""
    return repr(sorted(tree)) if isinstance(tree, Mapping) else type(tree).__name__
