"""Encoder and decoder bodies as thin Linen modules.

An encoder maps images [B, H, W, C] to `(mean, log_var)`, each [B, D]; a decoder maps latents [B, D] to the parameters
of a likelihood. Any module or function that does the same fits the models. Parameters are float32; `dtype` is the
type the network computes in (bfloat16 on accelerators); what leaves a network is float32 again.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxvae.convolution import Conv, ConvTranspose
from jaxvae.types import Array

LOG_VAR_LIMIT = 20.0


def soft_bound(x: Array, limit: float) -> Array:
    """limit · tanh(x / limit): the identity near 0, never past ±limit, and with a slope where a clip has none."""
    return limit * jnp.tanh(x / limit)


class GaussianHead(nn.Module):
    """Features [B, F] -> (mean, log_var), each [B, D] float32; |log_var| < 20, so that no σ² overflows."""

    latent_dim: int
    dtype: jnp.dtype | None = None
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, features: Array) -> tuple[Array, Array]:
        """Map features to a posterior's parameters."""
        _check_sizes(latent_dim=self.latent_dim)
        mean = nn.Dense(self.latent_dim, dtype=self.dtype, kernel_init=self.kernel_init, name="mean")(features)
        log_var = nn.Dense(self.latent_dim, dtype=self.dtype, kernel_init=self.kernel_init, name="log_var")(features)
        return _widen(mean), soft_bound(_widen(log_var), LOG_VAR_LIMIT)


class MLPEncoder(nn.Module):
    """Images [B, ...] -> (mean, log_var), through dense layers of the widths `hidden`."""

    latent_dim: int
    hidden: Sequence[int] = (500,)
    activation: Callable[[Array], Array] = nn.relu
    dtype: jnp.dtype | None = None
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, image: Array) -> tuple[Array, Array]:
        """Encode a batch."""
        _check_sizes(hidden=self.hidden)
        features = image.reshape(image.shape[0], -1)
        for width in self.hidden:
            features = self.activation(nn.Dense(width, dtype=self.dtype, kernel_init=self.kernel_init)(features))
        return GaussianHead(self.latent_dim, self.dtype, self.kernel_init, name="head")(features)


class MLPDecoder(nn.Module):
    """Latents [B, D] -> [B, *output_shape] float32, through dense layers of the widths `hidden`.

    It flattens what it is given: `MLPDecoder((D,))` also maps images to codes, as an autoencoder's encoder does.
    """

    output_shape: Sequence[int]
    hidden: Sequence[int] = (500,)
    activation: Callable[[Array], Array] = nn.relu
    dtype: jnp.dtype | None = None
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, latent: Array) -> Array:
        """Decode a batch."""
        _check_sizes(output_shape=self.output_shape, hidden=self.hidden)
        features = latent.reshape(latent.shape[0], -1)
        for width in self.hidden:
            features = self.activation(nn.Dense(width, dtype=self.dtype, kernel_init=self.kernel_init)(features))
        size = math.prod(self.output_shape)
        output = nn.Dense(size, dtype=self.dtype, kernel_init=self.kernel_init, name="output")(features)
        return _widen(output).reshape(-1, *self.output_shape)


class ConvEncoder(nn.Module):
    """Images [B, H, W, C] -> (mean, log_var): 4×4 convolutions that halve the image, then a dense layer."""

    latent_dim: int
    channels: Sequence[int] = (32, 64)
    hidden: int = 256
    activation: Callable[[Array], Array] = nn.relu
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, image: Array) -> tuple[Array, Array]:
        """Encode a batch."""
        _check_sizes(channels=self.channels, hidden=self.hidden)
        features = image
        for width in self.channels:
            features = self.activation(Conv(width, (4, 4), strides=(2, 2), dtype=self.dtype)(features))
        features = features.reshape(features.shape[0], -1)
        features = self.activation(nn.Dense(self.hidden, dtype=self.dtype)(features))
        return GaussianHead(self.latent_dim, self.dtype, name="head")(features)


class ConvDecoder(nn.Module):
    """Latents [B, D] -> [B, *output_shape] float32: the mirror of `ConvEncoder`.

    `output_shape` is (H, W, ...); the axes after the image's two are the likelihood's channels. `channels` are the
    encoder's, first layer first.
    """

    output_shape: Sequence[int]
    channels: Sequence[int] = (32, 64)
    hidden: int = 256
    activation: Callable[[Array], Array] = nn.relu
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, latent: Array) -> Array:
        """Decode a batch."""
        _check_sizes(output_shape=self.output_shape, channels=self.channels, hidden=self.hidden)
        check_halvings(self.output_shape, self.channels)
        height, width, *rest = self.output_shape
        scale = 2 ** len(self.channels)
        coarse = (height // scale, width // scale, self.channels[-1])
        features = self.activation(nn.Dense(self.hidden, dtype=self.dtype)(latent))
        features = self.activation(nn.Dense(math.prod(coarse), dtype=self.dtype)(features))
        features = features.reshape(-1, *coarse)
        for channels in reversed(self.channels[:-1]):
            features = self.activation(ConvTranspose(channels, (4, 4), strides=(2, 2), dtype=self.dtype)(features))
        output = ConvTranspose(math.prod(rest), (4, 4), strides=(2, 2), dtype=self.dtype, name="output")(features)
        return _widen(output).reshape(-1, *self.output_shape)


class ResidualEncoder(nn.Module):
    """Signals [B, *spatial, C] in [0, 1] -> features [B, *spatial / 2^n, D] in 1, 2 or 3 dimensions.

    n strided convolutions, a 3×3 convolution, residual blocks (ReLU, 3×3, ReLU, 1×1), then a 1×1 convolution to D: the
    network of van den Oord et al. (2017), for n = 2. The signal is centred to [-½, ½] first, as in the authors' code.

    Attributes:
      features: D.
      channels: of the strided convolutions.
      blocks: residual blocks; with none the 3×3 convolution is left out too.
      residual: channels inside a block.
      window: of the strided convolutions.
      dtype: what the network computes in.
    """

    features: int
    channels: Sequence[int] = (64, 128)
    blocks: int = 2
    residual: int = 32
    window: int = 4
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """Encode a batch."""
        _check_sizes(features=self.features, channels=self.channels, residual=self.residual, window=self.window)
        space = image.ndim - 2
        scale = 2 ** len(self.channels)
        if any(size % scale for size in image.shape[1:-1]):
            raise ValueError(f"{len(self.channels)} halvings need sizes divisible by {scale}, got {image.shape[1:-1]}")
        features = image - 0.5
        for width in self.channels:
            features = nn.relu(Conv(width, (self.window,) * space, strides=2, dtype=self.dtype)(features))
        if self.blocks:
            features = _residual_stack(self, features)
        return _widen(Conv(self.features, (1,) * space, dtype=self.dtype, name="output")(features))


class ResidualDecoder(nn.Module):
    """Features [B, *spatial, D] -> [B, *spatial · 2^n, C] float32: the mirror of `ResidualEncoder`.

    `channels` are the encoder's, first layer first; `output_channels` is C, or (C, 2) and the like for a likelihood of
    several parameters: [B, *spatial, C, 2].
    """

    output_channels: int | Sequence[int]
    channels: Sequence[int] = (64, 128)
    blocks: int = 2
    residual: int = 32
    window: int = 4
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, latent: Array) -> Array:
        """Decode a batch."""
        _check_sizes(channels=self.channels, residual=self.residual, window=self.window)
        space = latent.ndim - 2
        if self.blocks:
            features = _residual_stack(self, latent)
        else:
            features = nn.relu(Conv(self.channels[-1], (3,) * space, dtype=self.dtype)(latent))
        window = (self.window,) * space
        for width in reversed(self.channels[:-1]):
            features = nn.relu(ConvTranspose(width, window, strides=2, dtype=self.dtype)(features))
        rest = (self.output_channels,) if isinstance(self.output_channels, int) else tuple(self.output_channels)
        output = ConvTranspose(math.prod(rest), window, strides=2, dtype=self.dtype, name="output")(features)
        return _widen(output).reshape(*output.shape[:-1], *rest)


class LabelEmbedding(nn.Module):
    """Labels [B] in 0 .. num_classes - 1 -> vectors [B, E] float32: the condition of a class-conditional model.

    Under `jit` no error can be raised for a label out of range: it becomes NaN, which stops a training run.
    """

    num_classes: int
    features: int = 16

    @nn.compact
    def __call__(self, label: Array) -> Array:
        """Embed a batch.

        Raises:
          TypeError: the labels are not integers.
          ValueError: they are not [B], one is out of range and not traced, or a size of the module is below 1.
        """
        _check_sizes(num_classes=self.num_classes, features=self.features)
        if not jnp.issubdtype(label.dtype, jnp.integer):
            raise TypeError(f"labels must be integers (batch,), got {label.dtype}")
        if label.ndim != 1:
            raise ValueError(f"labels must be integers (batch,), got {label.shape}")
        outside = out_of_range("label", label, self.num_classes)
        embed = nn.Embed(self.num_classes, self.features, embedding_init=nn.initializers.normal(1.0), name="vectors")
        return embed(jnp.where(outside, self.num_classes, label))  # a negative one would count from the end


class Conditioned(nn.Module):
    """An encoder or decoder of pairs: joins its input to the condition and runs `body` on both.

    Both are flattened into one vector [B, F + E], for dense bodies and for every decoder. With `as_channels`, for
    convolutional encoders, the condition becomes channels beside the input's, [B, *spatial, C + E]: an array of the
    same spatial shape as it is, a vector [B, E] spread over all positions.
    """

    body: Callable[[Array], Any]
    as_channels: bool = False

    @property
    def latent_dim(self) -> int | None:
        """The body's, where it has one."""
        return getattr(self.body, "latent_dim", None)

    def __call__(self, x: Array, condition: Array) -> Any:
        """Run the body on an input [B, ...] and its condition [B, ...]."""
        if not self.as_channels:
            return self.body(jnp.concatenate([x.reshape(len(x), -1), condition.reshape(len(x), -1)], axis=1))
        if condition.ndim == 2:
            condition = condition.reshape(len(x), *[1] * (x.ndim - 2), -1)
            condition = jnp.broadcast_to(condition, (*x.shape[:-1], condition.shape[-1]))
        return self.body(jnp.concatenate([x, condition], axis=-1))


class Unconditioned(nn.Module):
    """A body in a conditional model that does not look at the condition."""

    body: Callable[[Array], Any]

    @property
    def latent_dim(self) -> int | None:
        """The body's, where it has one."""
        return getattr(self.body, "latent_dim", None)

    def __call__(self, x: Array, condition: Array) -> Any:
        """Run the body on the input [B, ...] alone."""
        del condition
        return self.body(x)


def out_of_range(name: str, values: Array, count: int) -> Array:
    """Which of the integers are not in 0 .. count - 1; `ValueError` names the first where they are not traced."""
    outside = (values < 0) | (values >= count)
    if not isinstance(outside, jax.core.Tracer) and outside.any():
        first = tuple(np.argwhere(outside)[0])
        index = ", ".join(map(str, first))
        raise ValueError(f"{name} {int(values[first])} at index {index} is outside 0 .. {count - 1}")
    return outside


def check_halvings(image_shape: Sequence[int], channels: Sequence[int]) -> None:
    """Raise `ValueError` where an image (H, W, ...) cannot be halved once for each of `channels`."""
    height, width, scale = *image_shape[:2], 2 ** len(channels)
    if height % scale or width % scale:
        raise ValueError(f"{len(channels)} halvings need a height and width divisible by {scale}, got {height}×{width}")


def _check_sizes(**sizes: int | Sequence[int]) -> None:
    """Raise `ValueError` where a size, or one of several, is below 1."""
    for name, size in sizes.items():
        if np.min(size, initial=1) < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")


def _residual_stack(network: ResidualEncoder | ResidualDecoder, features: Array) -> Array:
    """A 3×3 convolution, the residual blocks and a ReLU."""
    space, width = features.ndim - 2, network.channels[-1]
    features = Conv(width, (3,) * space, dtype=network.dtype)(features)
    for _ in range(network.blocks):
        inside = Conv(network.residual, (3,) * space, dtype=network.dtype)(nn.relu(features))
        features = features + Conv(width, (1,) * space, dtype=network.dtype)(nn.relu(inside))
    return nn.relu(features)


def _widen(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
