"""From a decoder's output to a likelihood, where it needs more than the output itself: a scale.

Records that need none (`Bernoulli`, `Categorical`) are likelihoods already; a fixed variance is
`functools.partial(DiagGaussian, log_var=0.0)`. What a scale is called, `log_var` or `log_scale`, is the record's
matter: each function here takes any record of a mean and a scale.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxvae.distributions import DiagGaussian, DiscretizedLogistic, UnitInterval
from jaxvae.networks import soft_bound
from jaxvae.types import Array

SCALE_LIMIT = 20.0


def logistic_image(mean: Array, log_scale: Array) -> UnitInterval:
    """Eight-bit images in [0, 1] as discretised logistic variables; mean and log scale in the units of [-1, 1]."""
    return UnitInterval(DiscretizedLogistic(mean, log_scale))


class SharedScale(nn.Module):
    """One scale for all pixels of all images, learned with the model.

    The σ-VAE: the scale finds the weight between rate and distortion by maximum likelihood. It is 20 · tanh of a
    twentieth of the parameter, so that no variance overflows.

    Attributes:
      record: (mean, scale) -> a likelihood.
      initial: of the log variance or log scale.

    References:
      Rybkin, Daniilidis and Levine, Simple and Effective VAE Training with Calibrated Decoders, 2021.
    """

    record: Callable[[Array, Array], Any] = DiagGaussian
    initial: float = 0.0

    @nn.compact
    def __call__(self, output: Array) -> Any:
        """The decoder's output [B, ...] is the mean."""
        scale = self.param("scale", nn.initializers.constant(self.initial), (), jnp.float32)
        return self.record(output, soft_bound(scale, SCALE_LIMIT))


class PixelScale(nn.Module):
    """A scale for each pixel, from the decoder: its output is [B, ..., 2], mean and scale.

    A Gaussian's likelihood has no upper bound here: a pixel that never changes draws its variance to zero. `lowest`
    is where that ends.

    Attributes:
      record: (mean, scale) -> a likelihood.
      lowest: of the log variance or log scale; approached smoothly.
    """

    record: Callable[[Array, Array], Any] = DiagGaussian
    lowest: float = -7.0

    @nn.compact
    def __call__(self, output: Array) -> Any:
        """Split the decoder's output [B, ..., 2]."""
        if output.shape[-1] != 2:
            raise ValueError(f"the decoder's output must be [B, ..., 2], mean and scale, got {output.shape}")
        scale = self.lowest + nn.softplus(output[..., 1] - self.lowest)
        return self.record(output[..., 0], soft_bound(scale, SCALE_LIMIT))
