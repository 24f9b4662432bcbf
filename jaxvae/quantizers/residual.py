"""Several quantisers one after the other, each of what the ones before have left (Juang and Gray, 1982)."""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae._checks import at_least, integers
from jaxvae.keys import check_key, noise
from jaxvae.quantizers._parts import (
    call,
    check_quantizer,
    checked,
    encoded_of,
    folded,
    latent_of,
    needs_key,
    over_parts,
)
from jaxvae.types import Array, Metrics, PRNGKey, PyTree, Quantized, Quantizer

OF_THE_DROPOUT = 2**32 - 1  # no level's number


@dataclass(frozen=True)
class Residual:
    """M quantisers of one kind: z ≈ q₁ + ... + q_M, where q_m is of the rest z - q₁ - ... - q_(m-1).

    Indices are [..., M], coarse to fine; `look_up` takes the first few of them too. Of a quantiser with G indices
    itself they are [..., M G], level after level. Parameters and state are the quantiser's, with a leading axis of M on
    every leaf.

    Attributes:
      quantizer: of one level.
      depth: M, at least 1.
      dropout: the probability that an example is quantised in training by the first m levels alone, m drawn evenly from
        1 .. M, so that every number of levels can be decoded. Levels that are left out have index -1, learn nothing and
        add nothing to the commitment.
      shrink: each level sees the rest over this power of its number, and its vectors shrink likewise: for quantisers
        whose codes are fixed, such as `FiniteScalar(levels, squash="clip")` with 1 / (L - 1).

    Metrics that are counts (integers) are sums over the levels, the others means. `commitment` and `loss` are means
    over the levels that are used.

    References:
      Zeghidour et al., SoundStream, 2021, for the dropout; Lee et al., Autoregressive Image Generation using Residual
      Quantization, 2022.
    """

    quantizer: Quantizer
    depth: int
    dropout: float = 0.0
    shrink: float = 1.0

    def __post_init__(self) -> None:
        """Raise `TypeError` where there is no quantiser, `ValueError` for a number out of its range."""
        check_quantizer(self.quantizer)
        at_least(1, depth=self.depth)
        if not 0 <= self.dropout <= 1:
            raise ValueError(f"dropout must be a probability, between 0 and 1, got {self.dropout}")
        if not 0 < self.shrink < math.inf:
            raise ValueError(f"shrink must be positive and finite, got {self.shrink}")

    @property
    def num_codes(self) -> tuple[int, ...]:
        """The number of codes of each level."""
        each = self.quantizer.num_codes
        return (each if isinstance(each, tuple) else (each,)) * self.depth

    @property
    def needs_key(self) -> bool:
        """Whether training draws."""
        return self.dropout > 0 or needs_key(self.quantizer)

    def init(self, dim: int, *, key: PRNGKey, encoded: Array | None = None) -> tuple[PyTree, PyTree]:
        """Parameters and state of the levels; codes are spread over what the levels before leave of `encoded`."""
        check_key(key)
        made = []
        rest = None if encoded is None else jnp.asarray(encoded).reshape(-1, jnp.shape(encoded)[-1])
        for level in range(self.depth):
            scale = self.shrink**level
            own_key = jax.random.fold_in(key, level)
            if rest is None:
                made.append(self.quantizer.init(dim, key=own_key))
            else:
                made.append(self.quantizer.init(dim, key=own_key, encoded=rest / scale))
                rest = rest - scale * self.quantizer(*made[-1], rest / scale).vectors
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *made)

    def __call__(
        self, params: PyTree, state: PyTree, encoded: Array, *, mask: Array | None = None, key: PRNGKey | None = None
    ) -> Quantized:
        """Quantise vectors [B, *positions, D]: indices [B, *positions, M]."""
        self._check_leaves(params, state)
        encoded, mask = checked(encoded, jnp.shape(encoded)[-1], mask)
        kept, drops = self._kept(len(encoded), key), key is not None and self.dropout > 0
        rest = encoded
        vectors, latent = (jnp.zeros(encoded.shape, jnp.float32) for _ in range(2))
        levels: list[Quantized] = []
        for level in range(self.depth):
            scale = self.shrink**level
            used = jnp.broadcast_to(_each(level < kept, encoded.ndim - 1), encoded.shape[:-1])
            counts = (used if mask is None else used & mask) if drops else mask
            quantized, through = self._level(params, state, level, rest / scale, counts, key)
            found = jnp.where(used[..., None], scale * quantized.vectors.astype(jnp.float32), 0)
            vectors += found
            latent += jnp.where(used[..., None], scale * through.astype(jnp.float32), 0)
            rest = rest - jax.lax.stop_gradient(found).astype(rest.dtype)
            indices = quantized.indices.reshape(*used.shape, -1)
            levels.append(quantized._replace(indices=jnp.where(used[..., None], indices, -1)))
        return Quantized(
            vectors=vectors,
            indices=jnp.concatenate([each.indices for each in levels], axis=-1),
            commitment=sum((each.commitment for each in levels), jnp.zeros(len(encoded))) / kept,
            loss=sum((each.loss for each in levels), jnp.zeros(len(encoded))) / kept,
            metrics=over_parts(jax.tree.map(lambda *values: jnp.stack(values), *(each.metrics for each in levels))),
            latent=latent.astype(encoded.dtype),
            encoded=jnp.concatenate([encoded_of(each, encoded) for each in levels], axis=-1),
        )

    def update(
        self, state: PyTree, encoded: Array, indices: Array, *, mask: Array | None = None, key: PRNGKey
    ) -> tuple[PyTree, Metrics]:
        """Update each level by its rest; `encoded` are the rests one after the other, `Quantized.encoded`."""
        check_key(key)
        self._check_leaves(state)
        by_level = self._by_level(indices, self.depth)
        if encoded.ndim < 2 or encoded.shape[-1] % self.depth:
            raise ValueError(
                f"encoded must be the rests of {self.depth} levels, [B, ..., {self.depth} D], which is the field "
                f"encoded of Quantized, got {encoded.shape}"
            )
        after = []
        for level, own in enumerate(jnp.split(encoded, self.depth, axis=-1)):
            first = by_level[level].reshape(*encoded.shape[:-1], -1)[..., 0]
            counts = mask
            if self.dropout:  # otherwise every level is used, and the program need not ask
                counts = (first >= 0) if mask is None else mask & (first >= 0)
            own_state = jax.tree.map(lambda leaf: leaf[level], state)  # noqa: B023
            own_key = jax.random.fold_in(key, level)
            after.append(self.quantizer.update(own_state, own, by_level[level], mask=counts, key=own_key))
        states, metrics = (jax.tree.map(lambda *leaves: jnp.stack(leaves), *each) for each in zip(*after, strict=True))
        return states, over_parts(metrics)

    def look_up(self, params: PyTree, state: PyTree, indices: Array) -> Array:
        """The vectors [..., D] of indices [..., M], or of the first few levels of them; a level at -1 adds nothing.

        NaN where an index is out of range, `ValueError` where it is not traced.
        """
        self._check_leaves(params, state)
        each = len(self.num_codes) // self.depth
        count = jnp.shape(indices)[-1] if jnp.ndim(indices) else 0
        if count % each or not 0 < count <= each * self.depth:
            raise ValueError(
                f"indices must be [..., {each * self.depth}], or of fewer levels of {each}, got {jnp.shape(indices)}"
            )
        total: Any = 0.0
        for level, own in enumerate(self._by_level(indices, count // each)):
            unused = own == -1 if each == 1 else (own == -1).all(axis=-1)
            own_params, own_state = jax.tree.map(lambda leaf: leaf[level], (params, state))  # noqa: B023
            kept = jnp.where(unused if each == 1 else unused[..., None], 0, own)
            found = self.shrink**level * self.quantizer.look_up(own_params, own_state, kept)
            total += jnp.where(unused[..., None], 0, found)
        return total

    def codes(self, params: PyTree, state: PyTree) -> Array:
        """The vectors of all codes, [M, K, D], of a quantiser that lists its own."""
        self._check_leaves(params, state)
        levels = [jax.tree.map(lambda leaf: leaf[level], (params, state)) for level in range(self.depth)]  # noqa: B023
        listed = [self.quantizer.codes(*own) for own in levels]  # type: ignore[attr-defined]
        return jnp.stack([self.shrink**level * codes for level, codes in enumerate(listed)])

    def _kept(self, num: int, key: PRNGKey | None) -> Array:
        """How many levels each example uses, [B]."""
        if key is None or not self.dropout:
            return jnp.full(num, self.depth)
        drawn = noise(jax.random.uniform, folded(key, OF_THE_DROPOUT), (num, 2))
        few = 1 + jnp.floor(drawn[:, 1] * self.depth).astype(jnp.int32)
        return jnp.where(drawn[:, 0] < self.dropout, jnp.minimum(few, self.depth), self.depth)

    def _level(
        self, params: PyTree, state: PyTree, level: int, rest: Array, mask: Array | None, key: PRNGKey | None
    ) -> tuple[Quantized, Array]:
        """What a level makes of its rest, and what it adds to the decoder's input.

        The decoder's gradient goes to the encoder through the first level alone: through each it would arrive M times.
        The others' own parameters get theirs. The second call is the first with a gradient cut; the compiler sees one.
        """
        own_params, own_state = jax.tree.map(lambda leaf: leaf[level], (params, state))
        own_key = None if key is None else folded(key, level)
        quantized = call(self.quantizer, own_params, own_state, rest, mask=mask, key=own_key)
        quantized = quantized._replace(encoded=encoded_of(quantized, rest))
        if not level:
            return quantized, latent_of(quantized, rest)
        cut = jax.lax.stop_gradient(rest)
        return quantized, latent_of(call(self.quantizer, own_params, own_state, cut, mask=mask, key=own_key), cut)

    def _by_level(self, indices: Array, depth: int) -> list[Array]:
        """Indices [..., depth], or [..., depth G], level by level: [...] each, or [..., G]."""
        indices, each = integers(indices, "indices"), len(self.num_codes) // self.depth
        if indices.shape[-1:] != (depth * each,):
            raise ValueError(f"indices must be [..., {depth * each}], {each} for each level, got {indices.shape}")
        parts = jnp.split(indices, depth, axis=-1)
        return parts if isinstance(self.quantizer.num_codes, tuple) else [part[..., 0] for part in parts]

    def _check_leaves(self, *trees: PyTree) -> None:
        for leaf in jax.tree.leaves(trees):
            if leaf.shape[:1] != (self.depth,):
                raise ValueError(
                    f"parameters and state of {self.depth} levels have a leading axis of {self.depth}, got a leaf of "
                    f"shape {leaf.shape}"
                )


def _each(values: Array, ndim: int) -> Array:
    """Values [B] as [B, 1, ...]."""
    return values.reshape(-1, *(1,) * (ndim - 1))
