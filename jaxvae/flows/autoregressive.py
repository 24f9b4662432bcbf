"""Autoregressive flows: each value is scaled and shifted by what comes before it."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxvae._checks import at_least
from jaxvae.flows._parameters import check_input
from jaxvae.networks._arrays import as_tuples
from jaxvae.networks.masked import Layers, hidden_degrees, masked_layers, masked_network
from jaxvae.networks.scales import soft_bound
from jaxvae.types import Array

LOG_SCALE_LIMIT = 5.0
OPEN = 2.0  # the gate's logit at the start: it lets 88 % through


class Autoregressive(nn.Module):
    r"""y_i = x_i exp(s_i) + m_i, with s_i and m_i of x_1 .. x_{i-1} and the context, by one masked network (MADE).

    .. math:: \log |\det| = \sum_i s_i

    As a posterior it is the inverse autoregressive flow, which draws in one pass; as a prior, where it leads from the
    latents to noise, it is the masked autoregressive flow, whose density takes one pass. The other direction takes D.
    The log scales lie in (-5, 5), softly bounded, and it begins as the identity.

    Attributes:
      hidden: widths of the masked layers; with one below D most values see only some of the earlier ones.
      reverse: whether the order is from the last value to the first, as it should be in every other flow.
      gated: y_i = σ(s_i) x_i + (1 - σ(s_i)) m_i instead, which cannot grow and is not the identity at first.

    References:
      Kingma et al., Improved Variational Inference with Inverse Autoregressive Flow, 2016; Papamakarios, Pavlakou and
      Murray, Masked Autoregressive Flow for Density Estimation, 2017; Germain et al., MADE, 2015.
    """

    hidden: Sequence[int] = (64, 64)
    reverse: bool = False
    gated: bool = False

    def __post_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for widths that do not fit."""
        as_tuples(self, "hidden")
        at_least(1, hidden=self.hidden)
        if not self.hidden:
            raise ValueError("hidden must hold at least one width")
        super().__post_init__()

    def forward(self, x: Array, *context: Array) -> tuple[Array, Array]:
        """x [B, D], and context [B, C] or none -> y [B, D] and log |det dy/dx| [B].

        Raises:
          ValueError: as the other bijections of `jaxvae.flows`, for other shapes.
        """
        check_input(x, context)
        log_scale, shift = self._affine(masked_network(self._layers(x, context), x, context))
        return x * jnp.exp(log_scale) + shift, log_scale.sum(axis=1)

    __call__ = forward

    def inverse(self, y: Array, *context: Array) -> tuple[Array, Array]:
        """y [B, D], and context -> x [B, D] and log |det dx/dy| [B], one value after the other: D passes."""
        check_input(y, context)
        layers = self._layers(y, context)
        y = y.astype(jnp.result_type(y, *context, *jax.tree.leaves(layers)))  # as each pass returns it

        def one_more(_: int, x: Array) -> Array:
            log_scale, shift = self._affine(masked_network(layers, x, context))
            return (y - shift) * jnp.exp(-log_scale)

        x = jax.lax.fori_loop(0, y.shape[1], one_more, jnp.zeros_like(y))
        log_scale, _ = self._affine(masked_network(layers, x, context))
        return x, -log_scale.sum(axis=1)

    def _affine(self, output: Array) -> tuple[Array, Array]:
        """Log scales and shifts, each [B, D], of the network's output [B, 2 D]."""
        first, second = jnp.split(output, 2, axis=1)
        if not self.gated:
            return soft_bound(first, LOG_SCALE_LIMIT), second
        gate = soft_bound(first + OPEN, LOG_SCALE_LIMIT)
        return jax.nn.log_sigmoid(gate), jax.nn.sigmoid(-gate) * second

    @nn.compact
    def _layers(self, x: Array, context: tuple[Array, ...]) -> Layers:
        """The masked layers: value i sees only earlier ones."""
        dim = x.shape[1]
        order = np.arange(dim)[::-1] if self.reverse else np.arange(dim)
        degrees = [order + 1, *(hidden_degrees(width, dim) for width in self.hidden), np.tile(order, 2)]
        return masked_layers(self, degrees, context, nn.initializers.zeros)
