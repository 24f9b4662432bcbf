"""The sign of each dimension: 2^D codes without a codebook (Yu et al., 2023; Zhao, Xiong and Krähenbühl, 2024)."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae import losses
from jaxvae._checks import at_least, integers, out_of_range
from jaxvae._whole_batch import in_evaluation
from jaxvae.keys import check_key, noise
from jaxvae.quantizers._parts import (
    ESTIMATORS,
    Estimator,
    all_indices,
    check_choice,
    checked,
    over_positions,
    perplexity,
    unit,
)
from jaxvae.types import Array, Metrics, PRNGKey, PyTree, Quantized


@dataclass(frozen=True)
class LookupFree:
    r"""Lookup-free quantisation: codes (±s, ..., ±s), the nearest of which has the vector's signs.

    With logits -τ‖z - c‖² over all 2^D codes the bits are independent given z, so that their entropy is exact without
    listing any,

    .. math:: H(p(c | z)) = \sum_d h\left(\sigma(4 \tau s z_d)\right), \quad
              \ell = w \left(H(p(c | z)) - \gamma \, \textstyle\sum_d h(\bar p_d)\right)

    with h the entropy of a bit and p̄ the mean over the batch: vectors are to be sure of their code, and the bits used
    evenly. Σ h(p̄) bounds the entropy of the codes' mean from above, the two are equal where bits are independent.

    Parameters: none. State: none.

    Attributes:
      bits: D, between 1 and 30; more go into `Grouped`.
      spherical: binary spherical quantisation: vectors are scaled to length one and s = 1/√D, so that codes lie on the
        sphere and the commitment is bounded. Otherwise s = 1.
      entropy_weight: w; 0 leaves the loss out.
      diversity: γ. This half of the loss is about the batch as a whole: `make_eval_step` leaves it out.
      inverse_temperature: τ.
      estimator: how the decoder's gradient passes the sign, "straight-through" as it is, "rotation" turned and scaled
        as the vector was (`codebook.rotation_trick`).
      temperature: T, at which training draws the codes with probability ∝ exp(-‖z - c‖² / T); 0 takes the nearest.

    The call returns "bit_entropy", the first entropy, and `update` "batch_perplexity". The first dimension is the
    index's highest bit. Zero counts as negative.

    References:
      Yu et al., Language Model Beats Diffusion, 2023; Zhao, Xiong and Krähenbühl, Image and Video Tokenization with
      Binary Spherical Quantization, 2024.
    """

    bits: int
    spherical: bool = False
    entropy_weight: float = 0.1
    diversity: float = 1.0
    inverse_temperature: float = 100.0
    estimator: Estimator = "straight-through"
    temperature: float = 0.0

    def __post_init__(self) -> None:
        """Raise `ValueError` for a number out of its range, or an estimator that is none."""
        at_least(1, bits=self.bits)
        if self.bits > 30:
            raise ValueError(f"bits must be 30 at most, got {self.bits}; more go into Grouped")
        for name in ("entropy_weight", "diversity"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a finite number, zero or more, got {getattr(self, name)}")
        if not 0 < self.inverse_temperature < math.inf:
            raise ValueError(f"inverse_temperature must be positive and finite, got {self.inverse_temperature}")
        check_choice(self.estimator, self.temperature)

    @property
    def num_codes(self) -> int:
        """2^D."""
        return 2 ** int(self.bits)  # one of NumPy would wrap around

    @property
    def needs_key(self) -> bool:
        """Whether training draws the codes."""
        return self.temperature > 0

    def init(self, dim: int, *, key: PRNGKey, encoded: Array | None = None) -> tuple[PyTree, PyTree]:
        """Nothing: there is nothing to learn.

        Raises:
          ValueError: the vectors have another number of dimensions than there are bits.
        """
        check_key(key)
        if dim != self.bits:
            raise ValueError(
                f"{self.bits} bits need vectors [..., {self.bits}], got {dim}: wrap it, "
                f"Projected(LookupFree({self.bits}), {self.bits})"
            )
        return {}, {}

    def __call__(
        self, params: PyTree, state: PyTree, encoded: Array, *, mask: Array | None = None, key: PRNGKey | None = None
    ) -> Quantized:
        """Take the signs of vectors [B, *positions, D]. See `Quantizer`.

        `key`, for the draws of a `temperature`, is one key or one for each example; without it none is drawn.
        """
        encoded, mask = checked(encoded, self.bits, mask)
        chosen_for = unit(encoded) if self.spherical else encoded
        values = chosen_for.astype(jnp.float32)
        compared = jax.lax.stop_gradient(values)
        if key is not None and self.temperature > 0:
            logistic = noise(jax.random.logistic, key, values.shape)
            compared = compared + self.temperature / (4 * self._size) * logistic
        ones, nothing = compared > 0, jnp.isnan(compared).any(axis=-1)
        vectors = jnp.where(nothing[..., None], jnp.nan, self._codes(ones))
        indices = (ones * self._row(self._places, ones.ndim, jnp.int32)).sum(axis=-1, dtype=jnp.int32)
        loss, entropy = self._losses(values, mask)
        return Quantized(
            vectors=vectors,
            indices=jnp.where(nothing, self.num_codes, indices),
            commitment=over_positions(losses.commitment, values, vectors, mask),
            loss=loss,
            metrics={"bit_entropy": entropy.mean()},
            latent=ESTIMATORS[self.estimator](values, vectors).astype(encoded.dtype),
            encoded=chosen_for if self.spherical else None,
        )

    def update(
        self, state: PyTree, encoded: Array, indices: Array, *, mask: Array | None = None, key: PRNGKey
    ) -> tuple[PyTree, Metrics]:
        """The state as it is."""
        check_key(key)
        _, mask = checked(encoded, self.bits, mask)
        return state, {"batch_perplexity": perplexity(integers(indices, "indices"), mask, self.num_codes)}

    def look_up(self, params: PyTree, state: PyTree, indices: Array) -> Array:
        """The vectors [..., D] of indices [...]; NaN for one out of range, `ValueError` if it is not traced."""
        indices = integers(indices, "indices")
        outside = out_of_range("code", indices, self.num_codes)
        kept = jnp.where(outside, 0, indices)[..., None]
        ones = kept // self._row(self._places, indices.ndim + 1, jnp.int32) % 2 == 1
        return jnp.where(outside[..., None], jnp.nan, self._codes(ones))

    def codes(self, params: PyTree, state: PyTree) -> Array:
        """The vectors of all codes, [2^D, D]."""
        return self.look_up(params, state, all_indices(self.num_codes))

    @property
    def _size(self) -> float:
        """s."""
        return 1 / math.sqrt(self.bits) if self.spherical else 1.0

    @property
    def _places(self) -> np.ndarray:
        """What a bit of each dimension is worth."""
        return 2 ** np.arange(self.bits - 1, -1, -1)

    def _codes(self, ones: Array) -> Array:
        """The vectors of bits."""
        return jnp.where(ones, jnp.float32(self._size), jnp.float32(-self._size))

    def _losses(self, values: Array, mask: Array | None) -> tuple[Array, Array]:
        """The loss [B], and the entropy [B] of the codes given the vectors, a mean over the positions."""
        logits = 4 * self.inverse_temperature * self._size * values
        positions = values.ndim - 2
        counts = jnp.ones((1,) * (1 + positions) + (1,)) if mask is None else mask[..., None].astype(jnp.float32)
        counts = jnp.broadcast_to(counts, (*values.shape[:-1], 1))
        axes = tuple(range(1, 1 + positions))
        entropy = (counts * _bit_entropy(logits).sum(axis=-1, keepdims=True)).sum(axis=(*axes, -1))
        entropy /= jnp.maximum(counts.sum(axis=(*axes, -1)), 1)
        if in_evaluation():
            return self.entropy_weight * entropy, entropy
        # Both halves of p̄ above zero: the slope of -p log p is infinite there, and would meet a slope of p of zero.
        halves = jnp.stack([jax.nn.sigmoid(logits), jax.nn.sigmoid(-logits)])
        mean = (counts[None] * halves).sum(axis=(1, *(1 + axis for axis in axes))) / jnp.maximum(counts.sum(), 1)
        evenness = jax.scipy.special.entr(jnp.maximum(mean, jnp.finfo(mean.dtype).tiny)).sum()
        there = counts.max(axis=(*axes, -1))  # an example that is all padding takes no part
        return self.entropy_weight * (entropy - self.diversity * evenness * there), entropy

    def _row(self, values: np.ndarray, ndim: int, dtype: type) -> Array:
        """Numbers of the dimensions, [D] as [1, ..., D]."""
        return jnp.asarray(values, dtype).reshape((1,) * (ndim - 1) + (-1,))


def _bit_entropy(logits: Array) -> Array:
    """The entropy of a bit of these logits, nats: softplus(a) - a sigmoid(a)."""
    return jax.nn.softplus(logits) - logits * jax.nn.sigmoid(logits)
