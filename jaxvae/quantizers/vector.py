"""Vector quantisation: each vector becomes the nearest of K codes (van den Oord et al., 2017).

The codes follow the encoder by exponential moving averages, which are state, or by the gradient, as parameters. The
arithmetic is that of `jaxvae.codebook`.

A call returns no metrics: all that is measured is about the whole batch, and `update` returns it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxvae import codebook, losses
from jaxvae._checks import at_least, floating, integers
from jaxvae.codebook import CodebookState
from jaxvae.keys import check_key
from jaxvae.quantizers._parts import (
    ESTIMATORS,
    Estimator,
    check_choice,
    check_count,
    checked,
    chosen,
    described,
    look_up,
    over_positions,
    perplexity,
    unit,
)
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
      cosine: compare directions alone: vectors and codes are scaled to length one, and so is what the decoder gets.
      frozen: the first of the codes that never move, such as another model's; `num_codes` freezes all.
      estimator: how the decoder's gradient passes the choice, "straight-through" as it is, "rotation" turned and scaled
        as the vector was (`codebook.rotation_trick`).
      temperature: T, at which training draws the codes with probability ∝ exp(-‖z - e‖² / T), in the units of a squared
        distance; 0 always takes the nearest, as evaluation does.

    `update` returns "batch_perplexity", the effective number of codes in use (of this batch: it is biased low), and
    "restarts", how many codes were dead in this step.
    """

    num_codes: int
    decay: float = 0.99
    restart_threshold: float = 0.1
    entropy_weight: float = 0.0
    cosine: bool = False
    frozen: int = 0
    estimator: Estimator = "straight-through"
    temperature: float = 0.0

    def __post_init__(self) -> None:
        """Raise `ValueError` for a number out of its range, or an estimator that is none."""
        check_codebook(self.num_codes, self.frozen, self.estimator, self.temperature)
        if not 0 < self.decay < 1:
            raise ValueError(f"decay must lie between 0 and 1, got {self.decay}")
        if not 0 <= self.restart_threshold < 1:
            raise ValueError(
                f"restart_threshold must lie in [0, 1), a fraction of the uniform share, got {self.restart_threshold}"
            )
        if not 0 <= self.entropy_weight < math.inf:
            raise ValueError(f"entropy_weight must be a finite number, zero or more, got {self.entropy_weight}")

    @property
    def needs_key(self) -> bool:
        """Whether training draws the codes."""
        return self.temperature > 0

    def init(self, dim: int, *, key: PRNGKey, encoded: Array | None = None) -> tuple[PyTree, PyTree]:
        """Random codes, or codes spread over `encoded` [..., D] by `codebook.seed_codebook`."""
        return {}, initial_codes(self.num_codes, dim, key, encoded, cosine=self.cosine)._asdict()

    def __call__(
        self, params: PyTree, state: PyTree, encoded: Array, *, mask: Array | None = None, key: PRNGKey | None = None
    ) -> Quantized:
        """The nearest codes of vectors [B, *positions, D], or with `entropy_weight` the cheapest; see `Quantizer`.

        `key`, for the draws of a `temperature`, is one key or one for each example; without it none is drawn.
        """
        costs = codebook.code_costs(self._averages(state), self.entropy_weight) if self.entropy_weight else None
        choice = Choice(self.cosine, self.estimator, self.temperature)
        return quantize(self.codes(params, state), encoded, mask, key, choice, costs)

    def update(
        self, state: PyTree, encoded: Array, indices: Array, *, mask: Array | None = None, key: PRNGKey
    ) -> tuple[PyTree, Metrics]:
        """Move the averages towards the batch, then restart dead codes at vectors of it."""
        check_key(key)
        before, indices = self._averages(state), integers(indices, "indices")
        encoded, mask = checked(encoded, before.moment.shape[1], mask)
        metrics = {"batch_perplexity": perplexity(indices, mask, self.num_codes)}
        averages = codebook.ema_update(before, encoded, indices, decay=self.decay, mask=mask)
        metrics["restarts"] = jnp.zeros((), jnp.int32)
        if self.restart_threshold:
            # Frozen codes are not dead, however rare: they would take the places of others.
            alive = averages._replace(frequency=averages.frequency.at[: self.frozen].set(1.0))
            metrics["restarts"] = codebook.dead_codes(alive, threshold=self.restart_threshold)
            averages = codebook.restart_dead_codes(alive, encoded, key=key, threshold=self.restart_threshold, mask=mask)
        if self.frozen:
            averages = jax.tree.map(lambda old, new: new.at[: self.frozen].set(old[: self.frozen]), before, averages)
        return averages._asdict(), metrics

    def look_up(self, params: PyTree, state: PyTree, indices: Array) -> Array:
        """The codes [..., D] of integer indices [...]; NaN for one out of range, `ValueError` if it is not traced."""
        return look_up(self.codes(params, state), indices)

    def codes(self, params: PyTree, state: PyTree) -> Array:
        """The vectors of all codes, [K, D] float32."""
        codes = codebook.vectors(self._averages(state))
        return unit(codes) if self.cosine else codes

    def _averages(self, state: PyTree) -> CodebookState:
        if not isinstance(state, Mapping) or set(state) != set(CodebookState._fields):
            raise ValueError(
                "EMACodebook has no codes without its state, {'frequency': [K], 'moment': [K, D]} as its init makes "
                f"it, got {described(state)}"
            )
        check_count(self.num_codes, state["moment"])
        return CodebookState(**state)


@dataclass(frozen=True)
class GradientCodebook:
    """K codes that the gradient moves: the second term of the VQ-VAE, ‖sg[z] - e‖².

    Parameters: {"codes": [K - frozen, D]}, none where all are frozen. State: {"frozen": [frozen, D]}, none where none
    are.

    Attributes:
      num_codes: K, at least 2.
      cosine: compare directions alone: vectors and codes are scaled to length one, and so is what the decoder gets.
      frozen: the first of the codes that never move, such as another model's; `num_codes` freezes all.
      estimator: how the decoder's gradient passes the choice, "straight-through" as it is, "rotation" turned and scaled
        as the vector was (`codebook.rotation_trick`).
      temperature: T, at which training draws the codes with probability ∝ exp(-‖z - e‖² / T), in the units of a squared
        distance; 0 always takes the nearest, as evaluation does.

    `update` changes nothing and returns "batch_perplexity".
    """

    num_codes: int
    cosine: bool = False
    frozen: int = 0
    estimator: Estimator = "straight-through"
    temperature: float = 0.0

    def __post_init__(self) -> None:
        """Raise `ValueError` for a number out of its range, or an estimator that is none."""
        check_codebook(self.num_codes, self.frozen, self.estimator, self.temperature)

    @property
    def needs_key(self) -> bool:
        """Whether training draws the codes."""
        return self.temperature > 0

    def init(self, dim: int, *, key: PRNGKey, encoded: Array | None = None) -> tuple[PyTree, PyTree]:
        """Random codes, or codes spread over `encoded` [..., D] by `codebook.seed_codebook`."""
        codes = codebook.vectors(initial_codes(self.num_codes, dim, key, encoded, cosine=self.cosine))
        params = {"codes": codes[self.frozen :]} if self.frozen < self.num_codes else {}
        return params, {"frozen": codes[: self.frozen]} if self.frozen else {}

    def __call__(
        self, params: PyTree, state: PyTree, encoded: Array, *, mask: Array | None = None, key: PRNGKey | None = None
    ) -> Quantized:
        """The nearest codes of vectors [B, *positions, D]; their gradient is that of `loss`. See `Quantizer`.

        `key`, for the draws of a `temperature`, is one key or one for each example; without it none is drawn.
        """
        choice = Choice(self.cosine, self.estimator, self.temperature)
        quantized = quantize(self.codes(params, state), encoded, mask, key, choice)
        chosen_for = encoded if quantized.encoded is None else quantized.encoded
        return quantized._replace(loss=over_positions(losses.codebook_loss, chosen_for, quantized.vectors, mask))

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
        """The vectors of all codes, [K, D]."""
        parts = []
        for tree, name, kind, count in (
            (state, "frozen", "state", self.frozen),
            (params, "codes", "parameters", self.num_codes - self.frozen),
        ):
            if not count:
                continue
            if not isinstance(tree, Mapping) or name not in tree:
                raise ValueError(
                    f"GradientCodebook has no codes without its {kind}, {{{name!r}: [{count}, D]}} as its init makes "
                    f"them, got {described(tree)}"
                )
            parts.append(tree[name])
        codes = parts[0] if len(parts) == 1 else jnp.concatenate(parts)
        check_count(self.num_codes, codes)
        return unit(codes) if self.cosine else codes


def check_codebook(num_codes: int, frozen: int, estimator: str, temperature: float) -> None:
    """Raise `ValueError` where an attribute that codebooks share is out of its range."""
    at_least(2, num_codes=num_codes)
    at_least(0, frozen=frozen)
    if frozen > num_codes:
        raise ValueError(f"frozen must be num_codes={num_codes} at most, got {frozen}")
    check_choice(estimator, temperature)


def initial_codes(num_codes: int, dim: int, key: PRNGKey, encoded: Array | None, *, cosine: bool) -> CodebookState:
    """Random codes, or codes spread over the vectors [..., D]."""
    at_least(1, dim=dim)
    if encoded is None:
        return codebook.init_codebook(num_codes, dim, key=key)
    encoded = floating(encoded, "encoded")
    if encoded.shape[-1:] != (dim,):
        raise ValueError(f"encoded must be [..., {dim}] to seed codes of {dim} dimensions, got {encoded.shape}")
    encoded = encoded.reshape(-1, dim)
    return codebook.seed_codebook(unit(encoded) if cosine else encoded, num_codes, key=key)


class Choice(NamedTuple):
    """How a vector takes its code: the attributes of these names."""

    cosine: bool
    estimator: Estimator
    temperature: float


def quantize(
    codes: Array,
    encoded: Array,
    mask: Array | None,
    key: PRNGKey | None,
    choice: Choice,
    costs: Array | None = None,
) -> Quantized:
    """What codes [K, D] make of vectors [B, *positions, D]; `costs` [K] as `codebook.nearest` takes."""
    encoded, mask = checked(encoded, codes.shape[1], mask)
    chosen_for = unit(encoded) if choice.cosine else encoded
    if key is None or not choice.temperature:
        indices = codebook.nearest(codes, chosen_for, costs)
    else:
        indices = codebook.draw(codes, chosen_for, temperature=choice.temperature, key=key, cost=costs)
    vectors = chosen(codes, indices)
    commitment = over_positions(losses.commitment, chosen_for, vectors, mask)
    return Quantized(
        *(vectors, indices, commitment, jnp.zeros_like(commitment), {}),
        latent=ESTIMATORS[choice.estimator](chosen_for, vectors),
        encoded=chosen_for if choice.cosine else None,
    )
