"""From a decoder's output to a likelihood, where it needs more than the output itself: a scale.

Records that need none (`Bernoulli`, `Categorical`) are likelihoods already; a fixed variance is
`functools.partial(DiagGaussian, log_var=0.0)`. What a scale is called, `log_var` or `log_scale`, is the record's
matter: each function here takes any record of a mean and a scale.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxvae._checks import at_least
from jaxvae.distributions import DiagGaussian, DiscretizedLogistic, DiscretizedLogisticMixture, UnitInterval
from jaxvae.types import Array

SCALE_LIMIT = 20.0


def soft_bound(x: Array, limit: float) -> Array:
    """limit · tanh(x / limit): the identity near 0, never past ±limit, and with a slope where a clip has none."""
    return limit * jnp.tanh(x / limit)


def logistic_image(mean: Array, log_scale: Array) -> UnitInterval:
    """Eight-bit images in [0, 1] as discretised logistic variables; mean and log scale in the units of [-1, 1]."""
    return UnitInterval(DiscretizedLogistic(mean, log_scale))


def logistic_mixture_image(output: Array, channels: int = 3, levels: int = 256, lowest: float = -7.0) -> UnitInterval:
    """Images in [0, 1] of C channels as mixtures of discretised logistics, PixelCNN++'s likelihood.

    Args:
      output: of a decoder, [B, H, W, F] with F = `logistic_mixture_features(M, C)`: for each component its logit, then
        locations, log scales and coefficients of the channels (through tanh).
      channels: C.
      levels: how many values a channel has.
      lowest: the log scale, in the units of [-1, 1], that is approached smoothly from above, as `PixelScale`'s.

    Returns:
      A record over [B, H, W, C]; for another C write `functools.partial(logistic_mixture_image, channels=1)`.

    Raises:
      ValueError: F is of no number of components, or `lowest` cannot be reached.
    """
    each = logistic_mixture_features(1, channels)
    if output.ndim < 2 or output.shape[-1] % each or not output.shape[-1]:
        raise ValueError(
            f"the decoder's output must be [B, ..., F], F = {each} for each component of {channels} channels "
            f"(logistic_mixture_features), got {output.shape}"
        )
    output = output.reshape(*output.shape[:-1], -1, each)
    logits, locations, raw, coefficients = jnp.split(output, (1, 1 + channels, 1 + 2 * channels), axis=-1)
    scales = _above(raw, lowest)
    return UnitInterval(DiscretizedLogisticMixture(logits[..., 0], locations, scales, jnp.tanh(coefficients), levels))


def logistic_mixture_features(components: int, channels: int = 3) -> int:
    """How many numbers a pixel's mixture takes: M·(1 + 2C + C(C-1)/2)."""
    at_least(1, components=components, channels=channels)
    return components * (1 + 2 * channels + channels * (channels - 1) // 2)


def _above(raw: Array, lowest: float) -> Array:
    """A scale that a network's output approaches smoothly from above, and that never passes 20."""
    before = _before_bound("lowest", lowest)
    return jnp.maximum(soft_bound(before + nn.softplus(raw - before), SCALE_LIMIT), lowest)  # which rounding may miss


class SharedScale(nn.Module):
    """One scale for all elements of all examples, or one for each element, learned with the model.

    The σ-VAE: the scale finds the weight between rate and distortion by maximum likelihood. It is 20 · tanh of a
    twentieth of the parameter, so that no variance overflows.

    Attributes:
      record: (mean, scale) -> a likelihood.
      initial: the log variance or log scale it starts at, between -20 and 20.
      per_element: whether each element has a scale of its own, the same for all examples, as in factor analysis.

    References:
      Rybkin, Daniilidis and Levine, Simple and Effective VAE Training with Calibrated Decoders, 2021.
    """

    record: Callable[[Array, Array], Any] = DiagGaussian
    initial: float = 0.0
    per_element: bool = False

    def __post_init__(self) -> None:
        """Raise `ValueError` where no parameter leads to `initial`."""
        _before_bound("initial", self.initial)
        super().__post_init__()

    @nn.compact
    def __call__(self, output: Array) -> Any:
        """The decoder's output [B, ...] is the mean."""
        start = nn.initializers.constant(_before_bound("initial", self.initial))
        scale = self.param("scale", start, output.shape[1:] if self.per_element else (), jnp.float32)
        bounded = soft_bound(scale, SCALE_LIMIT)
        return self.record(output, bounded[None] if self.per_element else bounded)


class PixelScale(nn.Module):
    """A scale for each element, from the decoder: its output is [B, ..., 2], mean and scale.

    A Gaussian's likelihood has no upper bound here: an element that never changes draws its variance to zero. `lowest`
    is where that ends.

    Attributes:
      record: (mean, scale) -> a likelihood.
      lowest: the log variance or log scale that is approached smoothly from above, between -20 and 20.
    """

    record: Callable[[Array, Array], Any] = DiagGaussian
    lowest: float = -7.0

    def __post_init__(self) -> None:
        """Raise `ValueError` where no output leads to `lowest`."""
        _before_bound("lowest", self.lowest)
        super().__post_init__()

    @nn.compact
    def __call__(self, output: Array) -> Any:
        """Split the decoder's output [B, ..., 2]."""
        if output.shape[-1] != 2:
            raise ValueError(f"the decoder's output must be [B, ..., 2], mean and scale, got {output.shape}")
        return self.record(output[..., 0], _above(output[..., 1], self.lowest))


def _before_bound(name: str, scale: float) -> float:
    """What `soft_bound` takes to `scale`."""
    if not -SCALE_LIMIT < scale < SCALE_LIMIT:
        raise ValueError(f"{name} must lie between -{SCALE_LIMIT:g} and {SCALE_LIMIT:g}, got {scale}")
    return SCALE_LIMIT * math.atanh(scale / SCALE_LIMIT)
