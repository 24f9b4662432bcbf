"""The vector-quantised VAE (van den Oord, Vinyals and Kavukcuoglu, Neural Discrete Representation Learning, 2017).

The encoder's vectors are replaced by those of a quantiser (`jaxvae.quantizers`, or one of yours). Its parameters are
`params["quantizer"]`, moved by the gradient with the networks' own at `params["params"]`; its state is
`model_state["quantizer"]`, which the objective reads and returns updated. Either is missing where there is none.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvae._checks import check_x
from jaxvae._variables import QUANTIZER, variables_of
from jaxvae.distributions import DiagGaussian
from jaxvae.keys import check_key
from jaxvae.models._parts import adopt_parts
from jaxvae.networks._run import run
from jaxvae.types import Array, Likelihood, PRNGKey, PyTree, Quantizer


def unit_gaussian(output: Array) -> DiagGaussian:
    """N(output + ½, I): the squared error, for a network around 0 and x in [0, 1]."""
    return DiagGaussian(output + 0.5, jnp.zeros((), output.dtype))


def signed_gaussian(output: Array) -> DiagGaussian:
    """N(output, I): the squared error, for x around 0, such as sound in [-1, 1]."""
    return DiagGaussian(output, jnp.zeros((), output.dtype))


class VQVAE(nn.Module):
    """An encoder, a quantiser, a decoder and a likelihood.

    Attributes:
      encoder: x [B, ...] -> [B, *positions, D]; any number of axes, for speech, images and video.
      decoder: [B, *positions, D] -> the likelihood's parameters, [B, ...].
      quantizer: an `EMACodebook`, a `GradientCodebook`, `Grouped`, or any other `jaxvae.types.Quantizer`.
      likelihood: the decoder's output -> a record with `log_prob`, `sample`, `mode` and `mean`.

    Networks are as in `VAE`. Call `encode` and `decode` through Flax; what needs the quantiser's parameters and state,
    `encode_indices`, `decode_indices` and `codes`, are plain methods. `init_with_quantizer` makes both to start from.

    Raises (when it is made):
      TypeError: a part hides JAX arrays that no training would reach, or `quantizer` is none.
    """

    encoder: Callable[[Array], Array]
    decoder: Callable[[Array], Any]
    quantizer: Quantizer
    likelihood: Callable[[Any], Likelihood] = unit_gaussian

    def __post_init__(self) -> None:
        """Take the parts, or refuse them."""
        if isinstance(self.quantizer, type) or not isinstance(self.quantizer, Quantizer):
            raise TypeError(f"quantizer must have the methods of jaxvae.types.Quantizer, got {self.quantizer!r}")
        adopt_parts(self)
        super().__post_init__()

    def __call__(self, x: Array) -> Likelihood:
        """Reconstruct without quantising: what `init` runs."""
        return self.decode(self.encode(x))

    def encode(self, x: Array) -> Array:
        """x [B, ...] -> vectors [B, *positions, D] that are not quantised yet.

        Raises:
          TypeError: x is not floating, or the encoder returns something else than one floating array.
          ValueError: x is empty, or the vectors are not [B, *positions, D].
        """
        check_x(x)
        encoded = run(self.encoder, x, train=self.has_rng("dropout"))
        if not isinstance(encoded, jax.Array) or not jnp.issubdtype(encoded.dtype, jnp.floating):
            got = encoded.dtype if isinstance(encoded, jax.Array) else type(encoded).__name__
            raise TypeError(f"the encoder must return vectors [B, *positions, D], one floating array, got {got}")
        if encoded.ndim < 2 or len(encoded) != len(x):
            raise ValueError(f"the encoder must return vectors ({len(x)}, *positions, D), got {encoded.shape}")
        return encoded

    def decode(self, latent: Array) -> Likelihood:
        """p(x|z): vectors [B, *positions, D] -> a record over x [B, ...]."""
        train = self.has_rng("dropout")
        return run(self.likelihood, run(self.decoder, latent, train=train), train=train)

    @nn.nowrap
    def init_with_quantizer(self, x: Array, *, key: PRNGKey, seeded: bool = True) -> tuple[PyTree, PyTree]:
        """Parameters and state to start from, for `init_train_state(partial(model.init_with_quantizer, x), ...)`.

        Args:
          x: [N, ...], a batch or a few; the vectors that the fresh encoder makes of them seed the quantiser.
          key: one half makes the networks, the other the quantiser.
          seeded: false for a quantiser that knows nothing of x.

        Returns:
          `params` and `model_state` as described above; `()` is the state where there is none.

        Raises:
          TypeError: x is not floating, or the key not typed.
          ValueError: x is empty.
        """
        check_key(key)
        check_x(x)
        network_key, quantizer_key = jax.random.split(key)
        variables = dict(self.init(network_key, x[:1]))

        def encode(x: Array) -> Array:
            encoded: Array = self.apply(variables, x, method="encode")  # type: ignore[assignment]
            return encoded

        dim = jax.eval_shape(encode, x[:1]).shape[-1]
        encoded = encode(x) if seeded else None
        made = self.quantizer.init(dim, key=quantizer_key, encoded=encoded)
        if not (isinstance(made, tuple) and len(made) == 2 and all(isinstance(tree, Mapping) for tree in made)):
            raise TypeError(
                "the quantiser's init must return (params, state), two dictionaries of arrays, {} where there are "
                f"none, got {type(made).__name__}"
            )
        params, state = made
        all_params = {"params": variables.pop("params", {})}
        if jax.tree.leaves(params):
            all_params[QUANTIZER] = params
        if jax.tree.leaves(state):
            variables[QUANTIZER] = state
        return all_params, variables or ()

    @nn.nowrap
    def encode_indices(self, params: PyTree, model_state: PyTree, x: Array) -> Array:
        """The codes of x [B, ...], [B, *positions] int32, or [B, *positions, G] of G groups."""
        encoded: Array = self.apply(  # type: ignore[assignment]
            variables_of(params, model_state), x, method="encode"
        )
        return self.quantizer(*quantizer_variables(params, model_state), encoded).indices

    @nn.nowrap
    def decode_indices(self, params: PyTree, model_state: PyTree, indices: Array) -> Likelihood:
        """p(x|z) at the codes of these indices, as `encode_indices` returns them, of any integer type.

        Under `jit` no error can be raised for an index out of range: its vector becomes NaN.

        Raises:
          TypeError: the indices are not integers.
          ValueError: one is out of range and not traced.
        """
        latent = self.quantizer.look_up(*quantizer_variables(params, model_state), indices)
        reconstruction: Any = self.apply(variables_of(params, model_state), latent, method="decode")
        return reconstruction

    @nn.nowrap
    def codes(self, params: PyTree, model_state: PyTree) -> Array:
        """The vectors of all codes, [K, D], or [G, K, D / G] of G groups.

        Raises:
          TypeError: the quantiser has no method `codes`.
        """
        codes = getattr(self.quantizer, "codes", None)
        if codes is None:
            raise TypeError(f"{type(self.quantizer).__name__} has no method codes(params, state) that lists its codes")
        return codes(*quantizer_variables(params, model_state))


def quantizer_variables(params: PyTree, model_state: PyTree) -> tuple[PyTree, PyTree]:
    """The parameters and the state of the quantiser; `{}` where there are none."""
    state = model_state.get(QUANTIZER, {}) if isinstance(model_state, Mapping) else {}
    return params.get(QUANTIZER, {}), state
