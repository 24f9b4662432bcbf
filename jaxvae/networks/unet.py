"""The U-Net: down to a small map and up again, with what was there at each size added on the way up."""

import math
from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxvae._checks import at_least
from jaxvae.convolution import Conv, widen
from jaxvae.networks._arrays import as_tuples, check_not_empty, crop
from jaxvae.networks.denoising import Modulated, NoiseEmbedding
from jaxvae.networks.transformer import attend
from jaxvae.types import Array


class UNet(nn.Module):
    """x [B, *spatial, C], how noisy it is, and a label -> [B, *spatial, output_channels] float32, in 1 to 3 dimensions.

    Sizes are any: half of an odd one is rounded up, and what is too much on the way up is cut off. It starts at zero.

    Attributes:
      output_channels: those of x for a diffusion.
      channels: at each size, the largest first; each is half as large as the one before.
      blocks: residual blocks at each size, on either way.
      heads: of attention at the smallest size; 0 for none. They divide its channels.
      embedding: features that tell of the noise; None for a network of x alone, from images to images.
      num_classes: of the labels 0 .. num_classes - 1; `num_classes` itself stands for none. They need an embedding.
      groups: of channels that are normalised together; fewer where they do not divide the channels.
      dtype: what the network computes in.

    References:
      Ronneberger et al., U-Net, 2015; Ho et al., Denoising Diffusion Probabilistic Models, 2020, for residual blocks
      that are told of the noise.
    """

    output_channels: int
    channels: Sequence[int] = (32, 64)
    blocks: int = 1
    heads: int = 0
    embedding: int | None = 128
    num_classes: int | None = None
    groups: int = 8
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for sizes that do not fit."""
        as_tuples(self, "channels")
        at_least(1, output_channels=self.output_channels, channels=self.channels, blocks=self.blocks)
        at_least(1, groups=self.groups)
        at_least(0, heads=self.heads)
        for name in ("embedding", "num_classes"):
            if getattr(self, name) is not None:
                at_least(1, **{name: getattr(self, name)})
        if not self.channels:
            raise ValueError("channels must hold at least one width")
        if self.heads and self.channels[-1] % self.heads:
            raise ValueError(f"heads must divide the last of channels, {self.channels[-1]}, got {self.heads}")
        if self.num_classes is not None and self.embedding is None:
            raise ValueError("num_classes needs an embedding: the network would not be told the label")
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array, log_snr: Array | None = None, label: Array | None = None) -> Array:
        """Run the network.

        Args:
          x: [B, *spatial, C].
          log_snr: [B], where the network has an embedding.
          label: [B] integers, where it has classes.

        Raises:
          TypeError: the labels are not integers.
          ValueError: log SNR or labels are missing, or there are some that the network has no place for.
        """
        check_not_empty(x)
        features, space = self.told(log_snr, label), x.ndim - 2
        x = Conv(self.channels[0], (3,) * space, dtype=self.dtype, name="input")(x)
        passed = []
        for i, width in enumerate(self.channels):
            if i:
                passed.append(x)
                x = Conv(width, (2,) * space, strides=2, dtype=self.dtype, name=f"shrink_{i}")(x)
            for _ in range(self.blocks):
                x = ResidualBlock(width, self.groups, self.dtype)(x, features)
        if self.heads:
            x = SpatialAttention(self.heads, self.groups, self.dtype, name="attention")(x)
        x = ResidualBlock(self.channels[-1], self.groups, self.dtype)(x, features)
        for width in self.channels[-2::-1]:
            wider = passed.pop()
            for axis in range(1, x.ndim - 1):
                x = jnp.repeat(x, 2, axis=axis)
            x = jnp.concatenate([crop(x, wider.shape[1:-1]), wider], axis=-1)
            for _ in range(self.blocks):
                x = ResidualBlock(width, self.groups, self.dtype)(x, features)
        x = nn.silu(Modulated(_groups(self.groups, x), self.dtype)(x, features))
        zeros = nn.initializers.zeros
        output = Conv(self.output_channels, (3,) * space, dtype=self.dtype, kernel_init=zeros, name="output")(x)
        return widen(output)

    @nn.nowrap
    def told(self, log_snr: Array | None, label: Array | None) -> Array | None:
        """Features of the noise and the label, [B, E]; None for a network of x alone."""
        if self.embedding is not None and log_snr is None:
            raise ValueError("the network is told of the noise: pass log_snr, or make it with embedding=None")
        if self.embedding is None and not (log_snr is None and label is None):
            raise ValueError("the network is one of x alone: pass neither log_snr nor label, or give it an embedding")
        if self.embedding is None or log_snr is None:
            return None
        return NoiseEmbedding(self.embedding, self.num_classes, name="noise")(log_snr, label)


class ResidualBlock(nn.Module):
    """Two 3×3 convolutions, each after a norm that the noise modulates, added to x; it begins as x, or a map of it.

    Attributes:
      width: channels that leave it.
      groups: of channels that are normalised together.
      dtype: what it computes in.
    """

    width: int
    groups: int = 8
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, features: Array | None) -> Array:
        """x [B, *spatial, C] and features [B, E] or None -> [B, *spatial, width]."""
        window = (3,) * (x.ndim - 2)
        inside = nn.silu(Modulated(_groups(self.groups, x), self.dtype)(x, None))
        inside = Conv(self.width, window, dtype=self.dtype)(inside)
        inside = nn.silu(Modulated(_groups(self.groups, inside), self.dtype)(inside, features))
        inside = Conv(self.width, window, dtype=self.dtype, kernel_init=nn.initializers.zeros)(inside)
        if x.shape[-1] != self.width:
            x = Conv(self.width, (1,) * len(window), dtype=self.dtype, name="project")(x)
        return x + inside


class SpatialAttention(nn.Module):
    """Every position attends to all, added to x.

    Attributes:
      heads: which divide the channels.
      groups: of channels that are normalised together.
      dtype: what it computes in.
    """

    heads: int
    groups: int = 8
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """[B, *spatial, C] -> [B, *spatial, C]."""
        batch, width, steps = len(x), x.shape[-1], math.prod(x.shape[1:-1])
        normed = Modulated(_groups(self.groups, x), self.dtype)(x, None).reshape(batch, steps, width)
        joined = nn.Dense(3 * width, dtype=self.dtype, name="qkv")(normed)
        joined = joined.reshape(batch, steps, 3 * self.heads, -1).swapaxes(1, 2)
        query, key, value = jnp.split(joined, 3, axis=1)
        mixed = attend(query, key, value, jnp.ones((1, steps, steps), bool)).swapaxes(1, 2).reshape(normed.shape)
        zeros = nn.initializers.zeros
        return x + nn.Dense(width, dtype=self.dtype, kernel_init=zeros, name="output")(mixed).reshape(x.shape)


def _groups(most: int, x: Array) -> int:
    """How many groups its channels are normalised in."""
    return math.gcd(most, x.shape[-1])
