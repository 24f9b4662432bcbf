"""Coupling flows: half of the values say how the other half is changed, so both directions take one pass."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxvae._checks import at_least
from jaxvae.flows._parameters import check_input
from jaxvae.networks._arrays import as_tuples
from jaxvae.networks.scales import soft_bound
from jaxvae.types import Array

LOG_SCALE_LIMIT = 5.0
SMALLEST = 1e-3  # share of a bin's width and height, and slope at a knot
UNIT_SLOPE = math.log(math.expm1(1 - SMALLEST))  # softplus of it, and SMALLEST, are 1


class _Coupling(nn.Module):
    """Changes every second value, given the others and the context.

    Attributes:
      hidden: widths of the network that says how.
      reverse: whether the first, third, ... value are changed, and not the second, fourth, ...: every other flow.
    """

    hidden: Sequence[int] = (64, 64)
    reverse: bool = False

    def __post_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for widths that do not fit."""
        as_tuples(self, "hidden")
        at_least(1, hidden=self.hidden)
        super().__post_init__()

    def forward(self, x: Array, *context: Array) -> tuple[Array, Array]:
        """x [B, D], and context [B, C] or none -> y [B, D] and log |det dy/dx| [B].

        Raises:
          ValueError: D is 1, or as the other bijections of `jaxvae.flows`, for other shapes.
        """
        return self._changed(self._forward, x, context)

    __call__ = forward

    def inverse(self, y: Array, *context: Array) -> tuple[Array, Array]:
        """y [B, D], and context -> x [B, D] and log |det dx/dy| [B]."""
        return self._changed(self._inverse, y, context)

    def _changed(
        self, change: Callable[[Array, Array], tuple[Array, Array]], x: Array, context: tuple[Array, ...]
    ) -> tuple[Array, Array]:
        check_input(x, context)
        if x.shape[1] < 2:
            raise ValueError("a coupling needs two values at least, got D = 1: use Autoregressive or Planar")
        changed = np.arange(x.shape[1]) % 2 == (0 if self.reverse else 1)
        told = jnp.concatenate([x[:, ~changed], *context], axis=1)
        numbers = self._network(told, int(changed.sum()) * self._parameters()).reshape(len(x), -1, self._parameters())
        y, log_slope = change(x[:, changed], numbers)
        x = jnp.asarray(x, jnp.promote_types(x.dtype, y.dtype))  # a narrow type would round what is changed
        return x.at[:, np.flatnonzero(changed)].set(y), log_slope.sum(axis=1)

    @nn.compact
    def _network(self, told: Array, size: int) -> Array:
        for width in self.hidden:
            told = nn.relu(nn.Dense(width)(told))
        return nn.Dense(size, kernel_init=nn.initializers.zeros, name="output")(told)

    def _parameters(self) -> int:
        """How many numbers change one value."""
        raise NotImplementedError

    def _forward(self, x: Array, numbers: Array) -> tuple[Array, Array]:
        """The changed values [B, M], and log of their slopes."""
        raise NotImplementedError

    def _inverse(self, y: Array, numbers: Array) -> tuple[Array, Array]:
        raise NotImplementedError


class AffineCoupling(_Coupling):
    """Every second value is scaled by exp(s) and shifted, with |s| < 5 softly bounded; at first the identity.

    References:
      Dinh, Sohl-Dickstein and Bengio, Density Estimation Using Real NVP, 2017.
    """

    def _parameters(self) -> int:
        return 2

    def _forward(self, x: Array, numbers: Array) -> tuple[Array, Array]:
        log_scale = soft_bound(numbers[..., 0], LOG_SCALE_LIMIT)
        return x * jnp.exp(log_scale) + numbers[..., 1], log_scale

    def _inverse(self, y: Array, numbers: Array) -> tuple[Array, Array]:
        log_scale = soft_bound(numbers[..., 0], LOG_SCALE_LIMIT)
        return (y - numbers[..., 1]) * jnp.exp(-log_scale), -log_scale


class SplineCoupling(_Coupling):
    """Every second value goes through a monotone rational-quadratic spline; at first, and outside, the identity.

    Attributes:
      num_bins: K, of the spline.
      bound: it acts on [-bound, bound].

    References:
      Durkan et al., Neural Spline Flows, 2019.
    """

    num_bins: int = 8
    bound: float = 5.0

    def __post_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for sizes that do not fit."""
        at_least(2, num_bins=self.num_bins)
        if self.num_bins * SMALLEST >= 1:
            raise ValueError(
                f"num_bins must be below {1 / SMALLEST:g}, as a bin has {SMALLEST} at least, got {self.num_bins}"
            )
        if not 0 < self.bound < math.inf:
            raise ValueError(f"bound must be a positive number, got {self.bound}")
        super().__post_init__()

    def _parameters(self) -> int:
        return 3 * self.num_bins - 1

    def _forward(self, x: Array, numbers: Array) -> tuple[Array, Array]:
        inside = jnp.abs(x) < self.bound
        knots = _knots(numbers, self.num_bins, self.bound)
        y, log_slope = _spline(jnp.where(inside, x, 0.0), *knots)
        return jnp.where(inside, y, x), jnp.where(inside, log_slope, 0.0)

    def _inverse(self, y: Array, numbers: Array) -> tuple[Array, Array]:
        inside = jnp.abs(y) < self.bound
        knots = _knots(numbers, self.num_bins, self.bound)
        x = _inverse_spline(jnp.where(inside, y, 0.0), *knots)
        _, log_slope = _spline(x, *knots)
        return jnp.where(inside, x, y), jnp.where(inside, -log_slope, 0.0)


def _knots(numbers: Array, num_bins: int, bound: float) -> tuple[Array, Array, Array]:
    """Places and heights of the knots [..., K + 1], and the slopes there."""
    widths, heights, slopes = jnp.split(numbers, (num_bins, 2 * num_bins), axis=-1)

    def ends(shares: Array) -> Array:
        shares = SMALLEST + (1 - SMALLEST * num_bins) * jax.nn.softmax(shares)
        inner = jnp.cumsum(shares[..., :-1], axis=-1)
        edge = jnp.zeros_like(inner[..., :1])
        return bound * (2 * jnp.concatenate([edge, inner, edge + 1], axis=-1) - 1)

    slopes = SMALLEST + jax.nn.softplus(slopes + UNIT_SLOPE)
    edge = jnp.ones_like(slopes[..., :1])
    return ends(widths), ends(heights), jnp.concatenate([edge, slopes, edge], axis=-1)


class _Bin:
    """The bin of each value: where it begins, how wide and high it is, and the slopes at its ends."""

    def __init__(self, value: Array, along: Array, x: Array, y: Array, slope: Array) -> None:
        last = x.shape[-1] - 2
        index = jnp.clip((value[..., None] >= along).sum(axis=-1, keepdims=True) - 1, 0, last)

        def at(knots: Array, offset: int) -> Array:
            return jnp.take_along_axis(knots, index + offset, axis=-1)[..., 0]

        self.x, self.y = at(x, 0), at(y, 0)
        self.width, self.height = at(x, 1) - self.x, at(y, 1) - self.y
        self.left, self.right = at(slope, 0), at(slope, 1)
        self.secant = self.height / self.width
        self.curve = self.left + self.right - 2 * self.secant


def _spline(value: Array, x: Array, y: Array, slope: Array) -> tuple[Array, Array]:
    """The spline and the log of its slope: equations 4 and 5 of the paper."""
    at = _Bin(value, x, x, y, slope)
    share = (value - at.x) / at.width
    both = share * (1 - share)
    below = at.secant + at.curve * both
    height = at.y + at.height * (at.secant * jnp.square(share) + at.left * both) / below
    rise = at.right * jnp.square(share) + 2 * at.secant * both + at.left * jnp.square(1 - share)
    return height, 2 * jnp.log(at.secant) + jnp.log(rise) - 2 * jnp.log(below)


def _inverse_spline(value: Array, x: Array, y: Array, slope: Array) -> Array:
    """Where the spline has a value: the root of a quadratic in the bin, equations 6 to 8."""
    at = _Bin(value, y, x, y, slope)
    risen = value - at.y
    a = at.height * (at.secant - at.left) + risen * at.curve
    b = at.height * at.left - risen * at.curve
    c = -at.secant * risen
    share = 2 * c / (-b - jnp.sqrt(jnp.maximum(jnp.square(b) - 4 * a * c, 0.0)))
    return at.x + share * at.width
