"""Each dimension rounded to a few levels: codes without a codebook (Mentzer et al., 2023)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae._checks import at_least, integers, out_of_range, unless_nan
from jaxvae.keys import check_key, noise
from jaxvae.quantizers._parts import ESTIMATORS, Estimator, all_indices, check_choice, checked, perplexity
from jaxvae.types import Array, Metrics, PRNGKey, PyTree, Quantized

MARGIN = 1e-3  # of the outermost levels, lest rounding at the bound fall either way


@dataclass(frozen=True)
class FiniteScalar:
    r"""Finite scalar quantisation: dimension d takes one of L_d levels, ∏ L_d codes in all.

    .. math:: q = \mathrm{round}\left(h \tanh(z + s) - o\right) / \lfloor L / 2 \rfloor,
              \quad h = \tfrac{L - 1}{2} (1 + 10^{-3}), \; o = \tfrac12 \text{ for even } L, 0 \text{ for odd},
              \; s = \operatorname{artanh}(o / h)

    so that levels lie in [-1, 1], symmetric where L is odd. There is nothing to learn and no loss: the decoder's
    gradient passes the rounding, and the tanh with its own slope. Vectors have as many dimensions as there are levels:
    `Projected(FiniteScalar(levels), len(levels))` takes any.

    Parameters: none. State: none.

    Attributes:
      levels: L of each dimension, at least 2 each; 2**31 - 1 codes at most. At 2 the border lies at z = -3.8 (the
        formula's zero is a level): `LookupFree` is the better one for two.
      squash: "tanh", or "clip" for vectors that lie in [-1, 1] already and are only clipped, as the rests in
        `Residual`.
      estimator: how the decoder's gradient passes the rounding, "straight-through" as it is, "rotation" turned and
        scaled as the vector was (`codebook.rotation_trick`).
      temperature: T, at which training draws the levels with probability ∝ exp(-(z - q)² / T); 0 takes the nearest.

    `update` changes nothing and returns "batch_perplexity". An index counts the first dimension fastest.

    References:
      Mentzer et al., Finite Scalar Quantization: VQ-VAE Made Simple, 2023.
    """

    levels: Sequence[int]
    squash: Literal["tanh", "clip"] = "tanh"
    estimator: Estimator = "straight-through"
    temperature: float = 0.0

    def __post_init__(self) -> None:
        """Raise `ValueError` for levels that are none, or too many, and for an option that is none."""
        object.__setattr__(self, "levels", tuple(self.levels))  # a list, from a file, could not be hashed
        at_least(2, levels=self.levels)
        object.__setattr__(self, "levels", tuple(map(int, self.levels)))  # products of NumPy's would wrap around
        if not self.levels or math.prod(self.levels) >= 2**31:
            raise ValueError(f"levels must make 2 to 2**31 - 1 codes, got {self.levels}; more go into Grouped")
        if self.squash not in ("tanh", "clip"):
            raise ValueError(f"squash must be tanh or clip, got {self.squash!r}")
        check_choice(self.estimator, self.temperature)

    @property
    def num_codes(self) -> int:
        """∏ L."""
        return math.prod(self.levels)

    @property
    def needs_key(self) -> bool:
        """Whether training draws the levels."""
        return self.temperature > 0

    def init(self, dim: int, *, key: PRNGKey, encoded: Array | None = None) -> tuple[PyTree, PyTree]:
        """Nothing: there is nothing to learn.

        Raises:
          ValueError: the vectors have another number of dimensions than there are levels.
        """
        check_key(key)
        if dim != len(self.levels):
            raise ValueError(
                f"levels of {len(self.levels)} dimensions need vectors [..., {len(self.levels)}], got {dim}: wrap it, "
                f"Projected(FiniteScalar({self.levels}), {len(self.levels)})"
            )
        return {}, {}

    def __call__(
        self, params: PyTree, state: PyTree, encoded: Array, *, mask: Array | None = None, key: PRNGKey | None = None
    ) -> Quantized:
        """Round vectors [B, *positions, D]. See `Quantizer`.

        `key`, for the draws of a `temperature`, is one key or one for each example; without it none is drawn.
        """
        encoded, mask = checked(encoded, len(self.levels), mask)
        half = self._row(np.array(self.levels) // 2, encoded.ndim)
        bounded = self._bounded(encoded.astype(jnp.float32))
        drawn = key is not None and self.temperature > 0
        level = self._drawn(bounded, key) if drawn else jnp.rint(bounded)  # type: ignore[arg-type]
        level = jax.lax.stop_gradient(unless_nan(level, bounded))
        vectors = level / half
        nothing = jnp.zeros(len(encoded), jnp.float32)
        indices = ((level + half).astype(jnp.int32) * self._row(self._places, encoded.ndim, jnp.int32)).sum(axis=-1)
        return Quantized(
            vectors=vectors,
            indices=jnp.where(jnp.isnan(level).any(axis=-1), self.num_codes, indices).astype(jnp.int32),
            commitment=nothing,
            loss=nothing,
            metrics={},
            latent=ESTIMATORS[self.estimator](bounded / half, vectors).astype(encoded.dtype),
        )

    def update(
        self, state: PyTree, encoded: Array, indices: Array, *, mask: Array | None = None, key: PRNGKey
    ) -> tuple[PyTree, Metrics]:
        """The state as it is."""
        check_key(key)
        _, mask = checked(encoded, len(self.levels), mask)
        return state, {"batch_perplexity": perplexity(integers(indices, "indices"), mask, self.num_codes)}

    def look_up(self, params: PyTree, state: PyTree, indices: Array) -> Array:
        """The vectors [..., D] of indices [...]; NaN for one out of range, `ValueError` if it is not traced."""
        indices = integers(indices, "indices")
        outside = out_of_range("code", indices, self.num_codes)
        kept, ndim = jnp.where(outside, 0, indices)[..., None], indices.ndim + 1
        levels = np.array(self.levels)
        digits = kept // self._row(self._places, ndim, jnp.int32) % self._row(levels, ndim, jnp.int32)
        half = self._row(levels // 2, ndim)
        return jnp.where(outside[..., None], jnp.nan, (digits - half) / half)

    def codes(self, params: PyTree, state: PyTree) -> Array:
        """The vectors of all codes, [K, D]."""
        return self.look_up(params, state, all_indices(self.num_codes))

    @property
    def _places(self) -> np.ndarray:
        """What a digit of each dimension is worth."""
        return np.cumprod([1, *self.levels[:-1]])

    def _bounded(self, encoded: Array) -> Array:
        """Vectors in the units of a level, within half a level of the outermost."""
        levels = np.array(self.levels)
        row = partial(self._row, ndim=encoded.ndim)
        if self.squash == "clip":
            return jnp.clip(encoded * row(levels // 2), row(-(levels // 2)), row((levels - 1) // 2))
        half = (levels - 1) * (1 + MARGIN) / 2
        offset = np.where(levels % 2 == 0, 0.5, 0.0)
        return row(half) * jnp.tanh(encoded + row(np.arctanh(offset / half))) - row(offset)

    def _drawn(self, bounded: Array, key: PRNGKey) -> Array:
        """Levels drawn in proportion to exp(-(z - q)² / T)."""
        levels, most = np.array(self.levels), max(self.levels)
        shape = (1,) * (bounded.ndim - 1) + (len(levels), most)
        level = np.arange(most) - levels[:, None] // 2  # [D, most], of which the first L are a dimension's
        half = self._row(levels // 2, bounded.ndim)
        distance = (jax.lax.stop_gradient(bounded)[..., None] - jnp.asarray(level, jnp.float32).reshape(shape)) / half[
            ..., None
        ]
        gumbel = noise(jax.random.gumbel, key, (*bounded.shape, most))
        there = jnp.asarray(np.arange(most) < levels[:, None]).reshape(shape)
        scores = jnp.where(there, gumbel - jnp.square(distance) / self.temperature, -jnp.inf)
        return jnp.argmax(scores, axis=-1) - half

    def _row(self, values: np.ndarray, ndim: int, dtype: type = jnp.float32) -> Array:
        """Numbers of the dimensions, [D] as [1, ..., D]."""
        return jnp.asarray(values, dtype).reshape((1,) * (ndim - 1) + (-1,))
