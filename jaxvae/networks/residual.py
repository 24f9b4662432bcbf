"""The residual network of VQ-VAE, for signals of 1, 2 or 3 dimensions."""

import math
from collections.abc import Sequence

from flax import linen as nn
from jax.typing import DTypeLike

from jaxvae._checks import at_least
from jaxvae.convolution import Conv, ConvTranspose, widen
from jaxvae.networks._arrays import as_tuples, check_not_empty, crop
from jaxvae.types import Array


class ResidualEncoder(nn.Module):
    """x [B, *spatial, C] -> features [B, *spatial / 2^n, D] in 1, 2 or 3 dimensions, rounded up.

    n strided convolutions, a 3×3 convolution, residual blocks (ReLU, 3×3, ReLU, 1×1), then a 1×1 convolution to D: the
    network of van den Oord et al. (2017), for n = 2. x in [0, 1] is centred to [-½, ½] first, as in the authors'
    code. Sizes are any: each convolution pads with zeros, as it does at every border, and rounds half of an odd size
    up.

    Attributes:
      features: D.
      channels: of the strided convolutions.
      blocks: residual blocks; with none the 3×3 convolution is left out too.
      residual: channels inside a block.
      window: of the strided convolutions.
      dtype: what the network computes in.
      centre: what is subtracted from x; 0 for sound in [-1, 1].
    """

    features: int
    channels: Sequence[int] = (64, 128)
    blocks: int = 2
    residual: int = 32
    window: int = 4
    dtype: DTypeLike | None = None
    centre: float = 0.5

    def __post_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for sizes that do not fit."""
        _check(self)
        at_least(1, features=self.features)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Encode a batch."""
        check_not_empty(x)
        space = x.ndim - 2
        features = x - self.centre
        for width in self.channels:
            features = nn.relu(Conv(width, (self.window,) * space, strides=2, dtype=self.dtype)(features))
        if self.blocks:
            features = _residual_stack(self, features)
        return widen(Conv(self.features, (1,) * space, dtype=self.dtype, name="output")(features))


class ResidualDecoder(nn.Module):
    """Features [B, *spatial, D] -> [B, *spatial · 2^n, C] float32: the mirror of `ResidualEncoder`.

    `channels` are the encoder's, first layer first; `output_channels` is C, or (C, 2) and the like for a likelihood of
    several parameters: [B, *spatial, C, 2].

    `spatial` is the size of x, such as (H, W), needed where 2^n does not divide it: what is too much at the end of an
    axis is cut off, so that a likelihood sees x's values and no others. Without it the features decide.
    """

    output_channels: int | Sequence[int]
    channels: Sequence[int] = (64, 128)
    blocks: int = 2
    residual: int = 32
    window: int = 4
    dtype: DTypeLike | None = None
    spatial: Sequence[int] | None = None

    def __post_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for sizes that do not fit."""
        _check(self)
        if self.spatial is not None:
            as_tuples(self, "spatial")
            at_least(1, spatial=self.spatial)
        if not isinstance(self.output_channels, int):
            as_tuples(self, "output_channels")
        at_least(1, output_channels=self.output_channels)
        super().__post_init__()

    @nn.compact
    def __call__(self, latent: Array) -> Array:
        """Decode a batch; `ValueError` where the features are not those of x of the size `spatial`."""
        check_not_empty(latent)
        space, scale = latent.ndim - 2, 2 ** len(self.channels)
        spatial = tuple(scale * size for size in latent.shape[1:-1]) if self.spatial is None else self.spatial
        halved = tuple(-(-size // scale) for size in spatial)
        if latent.shape[1:-1] != halved:
            raise ValueError(f"features of x of the size {spatial} are {halved}, got {latent.shape[1:-1]}")
        if self.blocks:
            features = _residual_stack(self, latent)
        else:
            features = nn.relu(Conv(self.channels[-1], (3,) * space, dtype=self.dtype)(latent))
        window = (self.window,) * space
        for width in reversed(self.channels[:-1]):
            features = nn.relu(ConvTranspose(width, window, strides=2, dtype=self.dtype)(features))
        rest = (self.output_channels,) if isinstance(self.output_channels, int) else self.output_channels
        output = ConvTranspose(math.prod(rest), window, strides=2, dtype=self.dtype, name="output")(features)
        return widen(crop(output, spatial)).reshape(-1, *spatial, *rest)


def _check(network: ResidualEncoder | ResidualDecoder) -> None:
    """Raise for the sizes that both have."""
    as_tuples(network, "channels")
    at_least(1, channels=network.channels, residual=network.residual, window=network.window)
    at_least(0, blocks=network.blocks)
    if not network.channels:
        raise ValueError("channels must hold at least one width")


def _residual_stack(network: ResidualEncoder | ResidualDecoder, features: Array) -> Array:
    """A 3×3 convolution, the residual blocks and a ReLU."""
    space, width = features.ndim - 2, network.channels[-1]
    features = Conv(width, (3,) * space, dtype=network.dtype)(features)
    for _ in range(network.blocks):
        inside = Conv(network.residual, (3,) * space, dtype=network.dtype)(nn.relu(features))
        features = features + Conv(width, (1,) * space, dtype=network.dtype)(nn.relu(inside))
    return nn.relu(features)
