"""How noisy a diffusion is at a time: log signal-to-noise ratios that fall from t = 0 to t = 1, as records.

z_t = α x + σ ε with α² = sigmoid(log SNR) and σ² = sigmoid(-log SNR), which add up to one: variance preserving. A
schedule of yours is a frozen record with `log_snr(t)`, differentiable and falling.
"""

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae._checks import at_least
from jaxvae.types import Array


@dataclass(frozen=True)
class LinearSchedule:
    """log SNR falls linearly from `log_snr_max` at t = 0 to `log_snr_min` at t = 1.

    What is left of x at t = 1 costs a rate, and at t = 0 the noise must be small beside the details of x: a standard
    deviation of e^(-log_snr_max / 2), .0013 unless another is given. Of x on levels, see `log_snr_of_levels`.

    Raises (when it is made):
      TypeError: an end is no number.
      ValueError: an end is not finite, or the first is not the larger.

    References:
      Kingma et al., Variational Diffusion Models, 2021.
    """

    log_snr_max: float = 13.3
    log_snr_min: float = -10.0

    def __post_init__(self) -> None:
        """Check the ends."""
        _check_ends(self.log_snr_max, self.log_snr_min)

    def log_snr(self, t: Array | float) -> Array:
        """log α² / σ² at times t in [0, 1]; NaN outside, or `ValueError` where t is not traced."""
        return self.log_snr_max + (self.log_snr_min - self.log_snr_max) * checked_time(t)

    def alpha(self, t: Array | float) -> Array:
        """How much of x is in z_t."""
        return signal_scale(self.log_snr(t))

    def sigma(self, t: Array | float) -> Array:
        """How much noise is in z_t."""
        return noise_scale(self.log_snr(t))


@dataclass(frozen=True)
class CosineSchedule:
    """α = cos(π u / 2), with u linear in t between where log SNR is `log_snr_max` and where it is `log_snr_min`.

    It spends less of the time at the ends than `LinearSchedule` does. Both give the same bound, for that depends on the
    ends alone, but not the same samples in few steps, nor the same weights of a loss that is no bound.

    Raises (when it is made):
      TypeError: an end is no number.
      ValueError: an end is not finite, or the first is not the larger.

    References:
      Nichol and Dhariwal, Improved Denoising Diffusion Probabilistic Models, 2021; Ho and Salimans, Classifier-Free
      Diffusion Guidance, 2022, for the ends.
    """

    log_snr_max: float = 13.3
    log_snr_min: float = -10.0

    def __post_init__(self) -> None:
        """Check the ends."""
        _check_ends(self.log_snr_max, self.log_snr_min)

    def log_snr(self, t: Array | float) -> Array:
        """log α² / σ² at times t in [0, 1]; NaN outside, or `ValueError` where t is not traced."""
        first, last = (math.atan(math.exp(-0.5 * end)) for end in (self.log_snr_max, self.log_snr_min))
        rest, t = math.atan(math.exp(0.5 * self.log_snr_min)), checked_time(t)  # of the right angle, when t is 1
        angle = first + (last - first) * t
        small = angle < math.pi / 4
        less = jnp.where(small, angle, rest + (last - first) * (1 - t))  # near a right angle float32 has no tangent
        return jnp.where(small, -2, 2) * jnp.log(jnp.tan(less))

    def alpha(self, t: Array | float) -> Array:
        """How much of x is in z_t."""
        return signal_scale(self.log_snr(t))

    def sigma(self, t: Array | float) -> Array:
        """How much noise is in z_t."""
        return noise_scale(self.log_snr(t))


def log_snr_of_levels(levels: int) -> float:
    """The `log_snr_max` for x on L levels: half the distance between two is 4.5 standard deviations of the noise.

    Then they are told apart by z_0, and the network need not do it: 14.1 for 256 levels, 3.0 for two.

    Raises:
      TypeError: the levels are no integer.
      ValueError: there are fewer than two.
    """
    at_least(2, levels=levels)
    return 2 * math.log(4.5 * (levels - 1))


def signal_scale(log_snr: Array) -> Array:
    """α, of a log SNR."""
    return jnp.sqrt(jax.nn.sigmoid(log_snr))


def noise_scale(log_snr: Array) -> Array:
    """σ, of a log SNR."""
    return jnp.sqrt(jax.nn.sigmoid(-log_snr))


def checked_time(t: Array | float) -> Array:
    """Times, floating; outside [0, 1] an error or, where they are traced, NaN."""
    t = jnp.asarray(t)
    if not jnp.issubdtype(t.dtype, jnp.floating):
        t = t.astype(jnp.float32)
    outside = ~((t >= 0) & (t <= 1))
    if not isinstance(outside, jax.core.Tracer) and outside.any():
        raise ValueError(f"t must lie in [0, 1], got {np.asarray(t)[np.asarray(outside)].ravel()[0]}")
    return jnp.where(outside, jnp.nan, t)


def checked_schedule(schedule: Any) -> Any:
    """The schedule; `TypeError` where it is none."""
    if not hasattr(schedule, "log_snr"):
        raise TypeError(f"schedule must have log_snr(t), such as LinearSchedule(), got {schedule!r}")
    return schedule


def _check_ends(largest: float, smallest: float) -> None:
    for name, value in (("log_snr_max", largest), ("log_snr_min", smallest)):
        if isinstance(value, bool) or not isinstance(value, int | float | np.number):
            raise TypeError(f"{name} must be a number, got {value!r}")
        if not math.isfinite(value):
            raise ValueError(f"{name} must be finite, got {value}")
    if largest <= smallest:
        raise ValueError(f"log_snr_max must be above log_snr_min, got {largest} and {smallest}")
