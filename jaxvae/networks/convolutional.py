"""Convolutional networks that halve an image once a layer and double it again."""

import math
from collections.abc import Callable, Sequence

from flax import linen as nn
from jax.typing import DTypeLike

from jaxvae._checks import at_least
from jaxvae.convolution import Conv, ConvTranspose, widen
from jaxvae.networks._arrays import as_tuples, check_not_empty, crop, flatten
from jaxvae.networks.mlp import GaussianHead
from jaxvae.types import Array


class ConvEncoder(nn.Module):
    """x [B, H, W, C] -> (mean, log_var): 4×4 convolutions that halve the image, then a dense layer.

    H and W are any: each convolution pads with zeros, as it does at every border, and rounds half of an odd size up.
    `context_dim` as `GaussianHead`'s.
    """

    latent_dim: int
    channels: Sequence[int] = (32, 64)
    hidden: int = 256
    activation: Callable[[Array], Array] = nn.relu
    dtype: DTypeLike | None = None
    context_dim: int | None = None

    def __post_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for sizes that do not fit."""
        as_tuples(self, "channels")
        at_least(1, latent_dim=self.latent_dim, channels=self.channels, hidden=self.hidden)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        """Encode a batch."""
        check_not_empty(x)
        features = x
        for width in self.channels:
            features = self.activation(Conv(width, (4, 4), strides=(2, 2), dtype=self.dtype)(features))
        features = self.activation(nn.Dense(self.hidden, dtype=self.dtype)(flatten(features)))
        return GaussianHead(self.latent_dim, self.dtype, context_dim=self.context_dim, name="head")(features)


class ConvDecoder(nn.Module):
    """Latents [B, D] -> [B, *output_shape] float32: the mirror of `ConvEncoder`.

    `output_shape` is (H, W, ...); the axes after the image's two are the likelihood's channels. `channels` are the
    encoder's, first layer first. Where doubling cannot end at H and W, it ends beyond, and what is too much at the
    bottom and the right is cut off: a likelihood sees H×W pixels.
    """

    output_shape: Sequence[int]
    channels: Sequence[int] = (32, 64)
    hidden: int = 256
    activation: Callable[[Array], Array] = nn.relu
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for sizes that do not fit."""
        as_tuples(self, "output_shape", "channels")
        at_least(1, output_shape=self.output_shape, channels=self.channels, hidden=self.hidden)
        if len(self.output_shape) < 2:
            raise ValueError(f"output_shape must be (H, W, ...), got {self.output_shape}")
        if not self.channels:
            raise ValueError("channels must hold at least one width")
        super().__post_init__()

    @nn.compact
    def __call__(self, latent: Array) -> Array:
        """Decode a batch."""
        check_not_empty(latent)
        height, width, *rest = self.output_shape
        scale = 2 ** len(self.channels)
        coarse = (-(-height // scale), -(-width // scale), self.channels[-1])
        features = self.activation(nn.Dense(self.hidden, dtype=self.dtype)(latent))
        features = self.activation(nn.Dense(math.prod(coarse), dtype=self.dtype)(features))
        features = features.reshape(-1, *coarse)
        for channels in reversed(self.channels[:-1]):
            features = self.activation(ConvTranspose(channels, (4, 4), strides=(2, 2), dtype=self.dtype)(features))
        output = ConvTranspose(math.prod(rest), (4, 4), strides=(2, 2), dtype=self.dtype, name="output")(features)
        return widen(crop(output, (height, width))).reshape(-1, *self.output_shape)
