"""Several quantisers side by side: product quantisation (Jégou, Douze and Schmid, 2011)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxvae._checks import at_least, floating, integers
from jaxvae.keys import check_key
from jaxvae.quantizers._parts import (
    call,
    check_quantizer,
    encoded_of,
    folded,
    latent_of,
    needs_key,
    over_parts,
)
from jaxvae.types import Array, Metrics, PRNGKey, PyTree, Quantized, Quantizer


@dataclass(frozen=True)
class Grouped:
    """G quantisers of one kind, each for a slice of the vector [..., D / G]; indices are [..., G].

    Of a quantiser with M indices itself, such as `Residual`, they are [..., G M], group after group. Parameters and
    state are the quantiser's, with a leading axis of G on every leaf.

    Attributes:
      quantizer: of one slice.
      groups: G, at least 1.

    Metrics that are counts (integers) are sums over the groups, the others means.
    """

    quantizer: Quantizer
    groups: int

    def __post_init__(self) -> None:
        """Raise `TypeError` where there is no quantiser, `ValueError` where there are no groups."""
        check_quantizer(self.quantizer)
        at_least(1, groups=self.groups)

    @property
    def num_codes(self) -> tuple[int, ...]:
        """The number of codes of each group."""
        each = self.quantizer.num_codes
        return (each if isinstance(each, tuple) else (each,)) * self.groups

    @property
    def needs_key(self) -> bool:
        """Whether training draws."""
        return needs_key(self.quantizer)

    def init(self, dim: int, *, key: PRNGKey, encoded: Array | None = None) -> tuple[PyTree, PyTree]:
        """Parameters and state of the groups, each from a key and a slice of its own."""
        check_key(key)
        at_least(1, dim=dim)
        self._check_dim((dim,))
        keys, size = jax.random.split(key, self.groups), dim // self.groups
        if encoded is None:
            return jax.vmap(lambda key: self.quantizer.init(size, key=key))(keys)
        slices = self._slices(encoded)
        if encoded.shape[-1] != dim:
            raise ValueError(f"encoded must be [..., {dim}], got {encoded.shape}")
        of_group = jax.vmap(lambda key, each: self.quantizer.init(size, key=key, encoded=each), in_axes=(0, -2))
        return of_group(keys, slices)

    def __call__(
        self, params: PyTree, state: PyTree, encoded: Array, *, mask: Array | None = None, key: PRNGKey | None = None
    ) -> Quantized:
        """Quantise each slice by its group: vectors [B, *positions, D], indices [B, *positions, G]."""
        self._check_leaves(params, state)
        slices = self._slices(encoded)
        groups = jnp.arange(self.groups)

        def of_group(params: PyTree, state: PyTree, each: Array, group: Array) -> Quantized:
            own = None if key is None else folded(key, group)
            quantized = call(self.quantizer, params, state, each, mask=mask, key=own)
            return quantized._replace(latent=latent_of(quantized, each), encoded=encoded_of(quantized, each))

        axis = encoded.ndim - 1  # after the positions
        outer = Quantized(-2, axis, 0, 0, 0, latent=-2, encoded=-2)  # type: ignore[arg-type]
        quantized = jax.vmap(of_group, in_axes=(0, 0, -2, 0), out_axes=outer)(params, state, slices, groups)
        return Quantized(
            vectors=quantized.vectors.reshape(encoded.shape),
            indices=quantized.indices.reshape(*encoded.shape[:-1], -1),
            commitment=quantized.commitment.mean(axis=0),
            loss=quantized.loss.mean(axis=0),
            metrics=over_parts(quantized.metrics),
            latent=quantized.latent.reshape(encoded.shape),  # type: ignore[union-attr]
            encoded=quantized.encoded.reshape(*encoded.shape[:-1], -1),  # type: ignore[union-attr]
        )

    def update(
        self, state: PyTree, encoded: Array, indices: Array, *, mask: Array | None = None, key: PRNGKey
    ) -> tuple[PyTree, Metrics]:
        """Update each group by its slice and its indices, with a key of its own."""
        check_key(key)
        self._check_leaves(state)
        state, metrics = jax.vmap(
            lambda state, each, indices, key: self.quantizer.update(state, each, indices, mask=mask, key=key),
            in_axes=(0, -2, jnp.ndim(indices) - 1, 0),
        )(state, self._slices(encoded), self._by_group(indices), jax.random.split(key, self.groups))
        return state, over_parts(metrics)

    def look_up(self, params: PyTree, state: PyTree, indices: Array) -> Array:
        """The vectors [..., D] of indices [..., G]; a slice is NaN where its index is out of range."""
        self._check_leaves(params, state)
        axis, indices = jnp.ndim(indices) - 1, self._by_group(indices)
        # Not by vmap, in which no group could name an index out of range.
        slices = []
        for group in range(self.groups):
            own_params, own_state = jax.tree.map(lambda leaf: leaf[group], (params, state))  # noqa: B023
            slices.append(self.quantizer.look_up(own_params, own_state, jnp.take(indices, group, axis=axis)))
        return jnp.concatenate(slices, axis=-1)

    def codes(self, params: PyTree, state: PyTree) -> Array:
        """The vectors of all codes, [G, K, D / G], of a quantiser that lists its own."""
        self._check_leaves(params, state)
        groups = [jax.tree.map(lambda leaf: leaf[group], (params, state)) for group in range(self.groups)]  # noqa: B023
        return jnp.stack([self.quantizer.codes(*own) for own in groups])  # type: ignore[attr-defined]

    def _slices(self, encoded: Array) -> Array:
        """[..., D] as [..., G, D / G]."""
        encoded = floating(encoded, "encoded")
        self._check_dim(encoded.shape)
        return encoded.reshape(*encoded.shape[:-1], self.groups, -1)

    def _check_dim(self, shape: tuple[int, ...]) -> None:
        if not shape or not shape[-1] or shape[-1] % self.groups:
            raise ValueError(
                f"{self.groups} groups need vectors [..., D] with D divisible by {self.groups}, got {shape}"
            )

    def _by_group(self, indices: Array) -> Array:
        """[..., G] as they are, or [..., G M] as [..., G, M]."""
        indices, total = integers(indices, "indices"), len(self.num_codes)
        if indices.shape[-1:] != (total,):
            of = "" if total == self.groups else f" of {total // self.groups} indices"
            raise ValueError(f"indices must be [..., {total}], one for each group{of}, got {indices.shape}")
        if isinstance(self.quantizer.num_codes, tuple):
            return indices.reshape(*indices.shape[:-1], self.groups, -1)
        return indices

    def _check_leaves(self, *trees: PyTree) -> None:
        for leaf in jax.tree.leaves(trees):
            if leaf.shape[:1] != (self.groups,):
                raise ValueError(
                    f"parameters and state of {self.groups} groups have a leading axis of {self.groups}, got a leaf "
                    f"of shape {leaf.shape}"
                )
