"""Codes that never move, under a linear map that the gradient does (Zhu et al., 2024)."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxvae import codebook, losses
from jaxvae._checks import integers
from jaxvae.keys import check_key
from jaxvae.quantizers._parts import Estimator, check_count, checked, described, look_up, over_positions, perplexity
from jaxvae.quantizers.vector import Choice, check_codebook, initial_codes, quantize
from jaxvae.types import Array, Metrics, PRNGKey, PyTree, Quantized


@dataclass(frozen=True)
class SimVQ:
    """K codes C W: random vectors C that stay as they are, and a learned map W that moves all of them at once.

    A code that no vector chooses moves too, so that none is left behind: large codebooks stay in use.

    Parameters: {"map": [D, D]}, the identity at the start. State: {"codes": [K, D]}, constant.

    Attributes:
      num_codes: K, at least 2.
      estimator: how the decoder's gradient passes the choice, "straight-through" as it is, "rotation" turned and scaled
        as the vector was (`codebook.rotation_trick`).
      temperature: T, at which training draws the codes with probability ∝ exp(-‖z - e‖² / T); 0 takes the nearest.

    `update` changes nothing and returns "batch_perplexity".

    References:
      Zhu et al., Addressing Representation Collapse in Vector Quantized Models with One Linear Layer, 2024.
    """

    num_codes: int
    estimator: Estimator = "straight-through"
    temperature: float = 0.0

    def __post_init__(self) -> None:
        """Raise `ValueError` for a number out of its range, or an estimator that is none."""
        check_codebook(self.num_codes, 0, self.estimator, self.temperature)

    @property
    def needs_key(self) -> bool:
        """Whether training draws the codes."""
        return self.temperature > 0

    def init(self, dim: int, *, key: PRNGKey, encoded: Array | None = None) -> tuple[PyTree, PyTree]:
        """Random codes, or codes spread over `encoded` [..., D] by `codebook.seed_codebook`."""
        codes = codebook.vectors(initial_codes(self.num_codes, dim, key, encoded, cosine=False))
        return {"map": jnp.eye(dim, dtype=jnp.float32)}, {"codes": codes}

    def __call__(
        self, params: PyTree, state: PyTree, encoded: Array, *, mask: Array | None = None, key: PRNGKey | None = None
    ) -> Quantized:
        """The nearest codes of vectors [B, *positions, D]; `loss` moves the map. See `Quantizer`.

        `key`, for the draws of a `temperature`, is one key or one for each example; without it none is drawn.
        """
        choice = Choice(cosine=False, estimator=self.estimator, temperature=self.temperature)
        quantized = quantize(self.codes(params, state), encoded, mask, key, choice)
        return quantized._replace(loss=over_positions(losses.codebook_loss, encoded, quantized.vectors, mask))

    def update(
        self, state: PyTree, encoded: Array, indices: Array, *, mask: Array | None = None, key: PRNGKey
    ) -> tuple[PyTree, Metrics]:
        """The state as it is."""
        check_key(key)
        _, mask = checked(encoded, jnp.shape(encoded)[-1], mask)
        return state, {"batch_perplexity": perplexity(integers(indices, "indices"), mask, self.num_codes)}

    def look_up(self, params: PyTree, state: PyTree, indices: Array) -> Array:
        """The codes [..., D] of integer indices [...]; NaN for one out of range, `ValueError` if it is not traced."""
        return look_up(self.codes(params, state), indices)

    def codes(self, params: PyTree, state: PyTree) -> Array:
        """The vectors of all codes, C W, [K, D]."""
        for tree, name, kind in ((state, "codes", "state"), (params, "map", "parameters")):
            if not isinstance(tree, Mapping) or name not in tree:
                raise ValueError(f"SimVQ has no codes without its {kind}, {{{name!r}: ...}}, got {described(tree)}")
        check_count(self.num_codes, state["codes"])
        return jnp.dot(state["codes"], params["map"], precision=jax.lax.Precision.HIGHEST)
