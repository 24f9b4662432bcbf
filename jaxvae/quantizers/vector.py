"""Vector quantisation: each vector becomes the nearest of K codes (van den Oord et al., 2017).

The codes follow the encoder by exponential moving averages, which are state, or by the gradient, as parameters. The
arithmetic is that of `jaxvae.codebook`.

A call returns no metrics: all that is measured is about the whole batch, and `update` returns it.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from jaxvae import codebook, losses
from jaxvae._checks import at_least, floating, integers, out_of_range, where_mask
from jaxvae.codebook import CodebookState
from jaxvae.keys import check_key
from jaxvae.types import Array, Metrics, PRNGKey, PyTree, Quantized


@dataclass(frozen=True)
class EMACodebook:
    """K codes that follow the vectors which choose them by exponential moving averages.

    Parameters: none. State: {"frequency": [K], "moment": [K, D]}, the fields of `codebook.CodebookState`.

    Attributes:
      num_codes: K, at least 2.
      decay: γ of the moving averages, between 0 and 1.
      restart_threshold: codes below this share of the uniform frequency restart at vectors of the batch; 0 restarts
        none.
      entropy_weight: λ of `codebook.code_costs`, for codes that a prior predicts better; 0 takes the nearest code.

    `update` returns "batch_perplexity", the effective number of codes in use (of this batch: it is biased low), and
    "restarts", how many codes were dead in this step.
    """

    num_codes: int
    decay: float = 0.99
    restart_threshold: float = 0.1
    entropy_weight: float = 0.0

    def __post_init__(self) -> None:
        """Raise `ValueError` for a number out of its range."""
        at_least(2, num_codes=self.num_codes)
        if not 0 < self.decay < 1:
            raise ValueError(f"decay must lie between 0 and 1, got {self.decay}")
        if not 0 <= self.restart_threshold < 1:
            raise ValueError(
                f"restart_threshold must lie in [0, 1), a fraction of the uniform share, got {self.restart_threshold}"
            )
        if not 0 <= self.entropy_weight < math.inf:
            raise ValueError(f"entropy_weight must be a finite number, zero or more, got {self.entropy_weight}")

    def init(self, dim: int, *, key: PRNGKey, encoded: Array | None = None) -> tuple[PyTree, PyTree]:
        """Random codes, or codes spread over `encoded` [..., D] by `codebook.seed_codebook`."""
        return {}, _initial(self.num_codes, dim, key, encoded)._asdict()

    def __call__(self, params: PyTree, state: PyTree, encoded: Array, *, mask: Array | None = None) -> Quantized:
        """The nearest codes of vectors [B, *positions, D], or with `entropy_weight` the cheapest; see `Quantizer`."""
        averages = self._averages(state)
        costs = codebook.code_costs(averages, self.entropy_weight) if self.entropy_weight else None
        return _nearest(codebook.vectors(averages), encoded, mask, costs)

    def update(
        self, state: PyTree, encoded: Array, indices: Array, *, mask: Array | None = None, key: PRNGKey
    ) -> tuple[PyTree, Metrics]:
        """Move the averages towards the batch, then restart dead codes at vectors of it."""
        check_key(key)
        averages, indices = self._averages(state), integers(indices, "indices")
        encoded, mask = _checked(encoded, averages.moment.shape[1], mask)
        metrics = {"batch_perplexity": _perplexity(indices, mask, self.num_codes)}
        averages = codebook.ema_update(averages, encoded, indices, decay=self.decay, mask=mask)
        metrics["restarts"] = jnp.zeros((), jnp.int32)
        if self.restart_threshold:
            metrics["restarts"] = codebook.dead_codes(averages, threshold=self.restart_threshold)
            averages = codebook.restart_dead_codes(
                averages, encoded, key=key, threshold=self.restart_threshold, mask=mask
            )
        return averages._asdict(), metrics

    def look_up(self, params: PyTree, state: PyTree, indices: Array) -> Array:
        """The codes [..., D] of integer indices [...]; NaN for one out of range, `ValueError` if it is not traced."""
        return _look_up(self.codes(params, state), indices)

    def codes(self, params: PyTree, state: PyTree) -> Array:
        """The vectors of all codes, [K, D] float32."""
        return codebook.vectors(self._averages(state))

    def _averages(self, state: PyTree) -> CodebookState:
        if not isinstance(state, Mapping) or set(state) != set(CodebookState._fields):
            raise ValueError(
                "EMACodebook has no codes without its state, {'frequency': [K], 'moment': [K, D]} as its init makes "
                f"it, got {_described(state)}"
            )
        _check_count(self.num_codes, state["moment"])
        return CodebookState(**state)


@dataclass(frozen=True)
class GradientCodebook:
    """K codes that the gradient moves: the second term of the VQ-VAE, ‖sg[z] - e‖².

    Parameters: {"codes": [K, D]}. State: none.

    Attributes:
      num_codes: K, at least 2.

    `update` changes nothing and returns "batch_perplexity".
    """

    num_codes: int

    def __post_init__(self) -> None:
        """Raise `ValueError` where there are too few codes."""
        at_least(2, num_codes=self.num_codes)

    def init(self, dim: int, *, key: PRNGKey, encoded: Array | None = None) -> tuple[PyTree, PyTree]:
        """Random codes, or codes spread over `encoded` [..., D] by `codebook.seed_codebook`."""
        return {"codes": codebook.vectors(_initial(self.num_codes, dim, key, encoded))}, {}

    def __call__(self, params: PyTree, state: PyTree, encoded: Array, *, mask: Array | None = None) -> Quantized:
        """The nearest codes of vectors [B, *positions, D]; their gradient is that of `loss`. See `Quantizer`."""
        quantized = _nearest(self.codes(params, state), encoded, mask)
        return quantized._replace(loss=_over_positions(losses.codebook_loss, encoded, quantized.vectors, mask))

    def update(
        self, state: PyTree, encoded: Array, indices: Array, *, mask: Array | None = None, key: PRNGKey
    ) -> tuple[PyTree, Metrics]:
        """The state as it is."""
        check_key(key)
        _, mask = _checked(encoded, jnp.shape(encoded)[-1], mask)
        return state, {"batch_perplexity": _perplexity(integers(indices, "indices"), mask, self.num_codes)}

    def look_up(self, params: PyTree, state: PyTree, indices: Array) -> Array:
        """The codes [..., D] of integer indices [...]; NaN for one out of range, `ValueError` if it is not traced."""
        return _look_up(self.codes(params, state), indices)

    def codes(self, params: PyTree, state: PyTree) -> Array:
        """The vectors of all codes, [K, D]."""
        if not isinstance(params, Mapping) or "codes" not in params:
            raise ValueError(
                "GradientCodebook has no codes without its parameters, {'codes': [K, D]} as its init makes them, got "
                f"{_described(params)}"
            )
        _check_count(self.num_codes, params["codes"])
        return params["codes"]


def _initial(num_codes: int, dim: int, key: PRNGKey, encoded: Array | None) -> CodebookState:
    at_least(1, dim=dim)
    if encoded is None:
        return codebook.init_codebook(num_codes, dim, key=key)
    encoded = floating(encoded, "encoded")
    if encoded.shape[-1:] != (dim,):
        raise ValueError(f"encoded must be [..., {dim}] to seed codes of {dim} dimensions, got {encoded.shape}")
    return codebook.seed_codebook(encoded.reshape(-1, dim), num_codes, key=key)


def _nearest(codes: Array, encoded: Array, mask: Array | None, costs: Array | None = None) -> Quantized:
    """What the nearest of codes [K, D] make of vectors [B, *positions, D]; `costs` [K] as `codebook.nearest` takes."""
    encoded, mask = _checked(encoded, codes.shape[1], mask)
    indices = codebook.nearest(codes, encoded, costs)
    vectors = codes[indices]
    commitment = _over_positions(losses.commitment, encoded, vectors, mask)
    return Quantized(vectors, indices, commitment, jnp.zeros_like(commitment), {})


def _checked(encoded: Array, dim: int, mask: Array | None) -> tuple[Array, Array | None]:
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


def _over_positions(
    error: Callable[[Array, Array], Array], encoded: Array, vectors: Array, mask: Array | None
) -> Array:
    """A squared error of `jaxvae.losses`, [B], its mean over the positions that count; zero where none do."""
    if mask is None:
        return error(encoded, vectors)
    encoded, vectors = (jnp.where(mask[..., None], values, 0) for values in (encoded, vectors))
    by_example = mask.reshape(len(mask), -1)
    return error(encoded, vectors) * (by_example.shape[1] / jnp.maximum(by_example.sum(axis=1), 1))


def _perplexity(indices: Array, mask: Array | None, num_codes: int) -> Array:
    """The effective number of codes that positions [B, *positions] chose; 0 where none counts."""
    perplexity = codebook.perplexity(codebook.usage(_counted(indices, mask, num_codes), num_codes))
    return perplexity if mask is None else jnp.where(mask.any(), perplexity, 0)


def _counted(indices: Array, mask: Array | None, num_codes: int) -> Array:
    """The indices; K, which no sum counts, where the mask is false."""
    return indices if mask is None else jnp.where(mask, indices, num_codes)


def _look_up(codes: Array, indices: Array) -> Array:
    indices = integers(indices, "indices")
    outside = out_of_range("code", indices, len(codes))
    return jnp.where(outside[..., None], jnp.nan, codes[jnp.where(outside, 0, indices)])


def _check_count(num_codes: int, vectors: Array) -> None:
    if vectors.ndim != 2 or len(vectors) != num_codes:
        raise ValueError(f"a codebook of num_codes={num_codes} needs codes ({num_codes}, D), got {vectors.shape}")


def _described(tree: Any) -> str:
    return repr(sorted(tree)) if isinstance(tree, Mapping) else type(tree).__name__
