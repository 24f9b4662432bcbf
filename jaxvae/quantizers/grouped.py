"""Several quantisers side by side: product quantisation (Jégou, Douze and Schmid, 2011)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxvae._checks import at_least, floating, integers
from jaxvae.keys import check_key
from jaxvae.types import Array, Metrics, PRNGKey, PyTree, Quantized, Quantizer


@dataclass(frozen=True)
class Grouped:
    """G quantisers of one kind, each for a slice of the vector [..., D / G]; indices are [..., G].

    Parameters and state are the quantiser's, with a leading axis of G on every leaf.

    Attributes:
      quantizer: of one slice.
      groups: G, at least 1.

    Metrics that are counts (integers) are sums over the groups, the others means.
    """

    quantizer: Quantizer
    groups: int

    def __post_init__(self) -> None:
        """Raise `TypeError` where there is no quantiser, `ValueError` where there are no groups."""
        if isinstance(self.quantizer, type) or not isinstance(self.quantizer, Quantizer):
            raise TypeError(f"quantizer must have the methods of jaxvae.types.Quantizer, got {self.quantizer!r}")
        at_least(1, groups=self.groups)

    @property
    def num_codes(self) -> tuple[int, ...]:
        """The number of codes of each group."""
        each = self.quantizer.num_codes
        return (each if isinstance(each, tuple) else (each,)) * self.groups

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

    def __call__(self, params: PyTree, state: PyTree, encoded: Array, *, mask: Array | None = None) -> Quantized:
        """Quantise each slice by its group: vectors [B, *positions, D], indices [B, *positions, G]."""
        self._check_leaves(params, state)
        quantized = jax.vmap(
            lambda params, state, each: self.quantizer(params, state, each, mask=mask),
            in_axes=(0, 0, -2),
            out_axes=Quantized(vectors=-2, indices=-1, commitment=0, loss=0, metrics=0),  # type: ignore[arg-type]
        )(params, state, self._slices(encoded))
        return Quantized(
            vectors=quantized.vectors.reshape(encoded.shape),
            indices=quantized.indices,
            commitment=quantized.commitment.mean(axis=0),
            loss=quantized.loss.mean(axis=0),
            metrics=_over_groups(quantized.metrics),
        )

    def update(
        self, state: PyTree, encoded: Array, indices: Array, *, mask: Array | None = None, key: PRNGKey
    ) -> tuple[PyTree, Metrics]:
        """Update each group by its slice and its indices, with a key of its own."""
        check_key(key)
        self._check_leaves(state)
        state, metrics = jax.vmap(
            lambda state, each, indices, key: self.quantizer.update(state, each, indices, mask=mask, key=key),
            in_axes=(0, -2, -1, 0),
        )(state, self._slices(encoded), self._checked(indices), jax.random.split(key, self.groups))
        return state, _over_groups(metrics)

    def look_up(self, params: PyTree, state: PyTree, indices: Array) -> Array:
        """The vectors [..., D] of indices [..., G]; a slice is NaN where its index is out of range."""
        self._check_leaves(params, state)
        indices = self._checked(indices)
        # Not by vmap, in which no group could name an index out of range.
        slices = []
        for group in range(self.groups):
            own_params, own_state = jax.tree.map(lambda leaf: leaf[group], (params, state))  # noqa: B023
            slices.append(self.quantizer.look_up(own_params, own_state, indices[..., group]))
        return jnp.concatenate(slices, axis=-1)

    def codes(self, params: PyTree, state: PyTree) -> Array:
        """The vectors of all codes, [G, K, D / G], of a quantiser that lists its own."""
        self._check_leaves(params, state)
        return jax.vmap(self.quantizer.codes)(params, state)  # type: ignore[attr-defined]

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

    def _checked(self, indices: Array) -> Array:
        indices = integers(indices, "indices")
        if indices.shape[-1:] != (self.groups,):
            raise ValueError(f"indices must be [..., {self.groups}], one for each group, got {indices.shape}")
        return indices

    def _check_leaves(self, *trees: PyTree) -> None:
        for leaf in jax.tree.leaves(trees):
            if leaf.shape[:1] != (self.groups,):
                raise ValueError(
                    f"parameters and state of {self.groups} groups have a leading axis of {self.groups}, got a leaf "
                    f"of shape {leaf.shape}"
                )


def _over_groups(metrics: Metrics) -> Metrics:
    """Metrics [G] as scalars."""
    return {
        name: values.sum(axis=0) if jnp.issubdtype(values.dtype, jnp.integer) else values.mean(axis=0)
        for name, values in metrics.items()
    }
