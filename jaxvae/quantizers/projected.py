"""Quantisation in fewer dimensions, between two learned linear maps (Yu et al., 2021)."""

from collections.abc import Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxvae._checks import at_least
from jaxvae.keys import check_key
from jaxvae.quantizers._parts import call, check_quantizer, checked, described, encoded_of, latent_of, needs_key
from jaxvae.types import Array, Metrics, PRNGKey, PyTree, Quantized, Quantizer


@dataclass(frozen=True)
class Projected:
    """A quantiser of d dimensions for vectors of D: down by one linear map, quantised, up by another.

    What a quantiser of a fixed size needs (`FiniteScalar`, `LookupFree`), and a way to keep large codebooks in use: in
    few dimensions more codes lie near some vector.

    Parameters: {"down": {"kernel": [D, d], "bias": [d]}, "up": {"kernel": [d, D], "bias": [D]}}, and "quantizer" where
    it has some. State: the quantiser's.

    Attributes:
      quantizer: of d dimensions.
      dim: d.

    References:
      Yu et al., Vector-quantized Image Modeling with Improved VQGAN, 2021.
    """

    quantizer: Quantizer
    dim: int

    def __post_init__(self) -> None:
        """Raise `TypeError` where there is no quantiser, `ValueError` where there are no dimensions."""
        check_quantizer(self.quantizer)
        at_least(1, dim=self.dim)

    @property
    def num_codes(self) -> int | tuple[int, ...]:
        """The quantiser's."""
        return self.quantizer.num_codes

    @property
    def needs_key(self) -> bool:
        """Whether training draws."""
        return needs_key(self.quantizer)

    def init(self, dim: int, *, key: PRNGKey, encoded: Array | None = None) -> tuple[PyTree, PyTree]:
        """Two maps, and the quantiser; its codes are spread over the vectors `encoded` [..., D] once they are down."""
        check_key(key)
        at_least(1, dim=dim)
        initializer = jax.nn.initializers.lecun_normal()
        down_key, up_key, own_key = jax.random.split(key, 3)
        params = {
            name: {"kernel": initializer(own, sizes, jnp.float32), "bias": jnp.zeros(sizes[1], jnp.float32)}
            for name, own, sizes in (("down", down_key, (dim, self.dim)), ("up", up_key, (self.dim, dim)))
        }
        low = None if encoded is None else _linear(params["down"], encoded)
        own, state = self.quantizer.init(self.dim, key=own_key, encoded=low)
        return params | ({"quantizer": own} if jax.tree.leaves(own) else {}), state

    def __call__(
        self, params: PyTree, state: PyTree, encoded: Array, *, mask: Array | None = None, key: PRNGKey | None = None
    ) -> Quantized:
        """Quantise vectors [B, *positions, D]; both maps learn from the decoder, the first from the commitment too."""
        own = self._own(params)
        encoded, mask = checked(encoded, params["down"]["kernel"].shape[0], mask)
        low = _linear(params["down"], encoded)
        quantized = call(self.quantizer, own, state, low, mask=mask, key=key)
        return quantized._replace(
            vectors=_linear(params["up"], quantized.vectors),
            latent=_linear(params["up"], latent_of(quantized, low)).astype(encoded.dtype),
            encoded=encoded_of(quantized, low),
        )

    def update(
        self, state: PyTree, encoded: Array, indices: Array, *, mask: Array | None = None, key: PRNGKey
    ) -> tuple[PyTree, Metrics]:
        """The quantiser's; `encoded` are the vectors once they are down, `Quantized.encoded`."""
        return self.quantizer.update(state, encoded, indices, mask=mask, key=key)

    def look_up(self, params: PyTree, state: PyTree, indices: Array) -> Array:
        """The vectors [..., D] of indices; NaN where the quantiser's are."""
        return _linear(params["up"], self.quantizer.look_up(self._own(params), state, indices))

    def codes(self, params: PyTree, state: PyTree) -> Array:
        """The vectors of all codes, [K, D], of a quantiser that lists its own."""
        return _linear(params["up"], self.quantizer.codes(self._own(params), state))  # type: ignore[attr-defined]

    def _own(self, params: PyTree) -> PyTree:
        if not isinstance(params, Mapping) or not {"down", "up"} <= set(params):
            raise ValueError(
                f"Projected has no maps without its parameters, 'down' and 'up' as its init makes them, got "
                f"{described(params)}"
            )
        return params.get("quantizer", {})


def _linear(params: PyTree, vectors: Array) -> Array:
    """In float32, whatever the network computes in."""
    product = jnp.dot(vectors.astype(jnp.float32), params["kernel"], precision=jax.lax.Precision.HIGHEST)
    return product + params["bias"].reshape((1,) * (product.ndim - 1) + (-1,))
