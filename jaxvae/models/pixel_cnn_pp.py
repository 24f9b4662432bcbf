"""PixelCNN++: an exact density of eight-bit colour images, one pixel after the other.

log p(x) = sum over pixels, row by row, of log p(x_ij | the rows above, the pixels to the left). A pixel's colour is a
mixture of discretised logistics: green given red, blue given both.

References:
  Salimans et al., PixelCNN++: Improving the PixelCNN with Discretized Logistic Mixture Likelihood and Other
  Modifications, 2017.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxvae._checks import at_least, integers
from jaxvae.convolution import Conv, widen
from jaxvae.distributions import UnitInterval
from jaxvae.models._parts import checked_label
from jaxvae.models._pixels import (
    Begun,
    Told,
    blank,
    check_kernel,
    check_sizes,
    check_values,
    checked_context,
    complete,
    moved,
    sideways,
)
from jaxvae.networks import logistic_mixture_features, logistic_mixture_image
from jaxvae.networks._arrays import as_tuples
from jaxvae.types import Array, PRNGKey, PyTree


class PixelCNNPP(nn.Module):
    """Images of integers in 0 .. K-1, of one channel or several, whose pixels are drawn whole.

    The two streams of `PixelCNN`, the rows above and the pixels to the left, of residual blocks: concat-ELU, a window,
    concat-ELU, a gate. Blocks of the second half also see what entered their opposites of the first, as in a U-Net::

        rows:    features, a row down    --> [0] -> [1] -> [2] -> [3]           short cuts: 1 to 2, 0 to 3,
                                              |      |      |      |            in both streams
        pixels:  features, a pixel right --> [0] -> [1] -> [2] -> [3] --> mixture

    Both streams keep the full resolution, where the paper's halve it twice: so an image is drawn as `PixelCNN` draws
    one, at about the cost of one pass. And the second window of a block is 1×1 here. After L blocks a pixel sees
    L·(k // 2) columns to either side, that many rows above and one.

    Attributes:
      shape: (H, W, C).
      num_values: K of a channel, at least 2.
      channels: features of either stream.
      layers: L, blocks.
      kernel: k, the width of a window; odd, at least 3.
      components: of a pixel's mixture.
      dropout: the share of a block's features that are dropped in training.
      num_classes: of the labels, for a class-conditional model.
      dtype: of the computation; parameters and the mixture's are float32.
      context: F, of features that each pixel is told by what made them, such as the decoder of a `pixel_vae`.
    """

    shape: Sequence[int]
    num_values: int = 256
    channels: int = 64
    layers: int = 6
    kernel: int = 3
    components: int = 10
    dropout: float = 0.0
    num_classes: int | None = None
    dtype: DTypeLike = jnp.float32
    context: int | None = None

    def __post_init__(self) -> None:
        """Raise `ValueError` for a shape, a kernel or a size that does not fit."""
        as_tuples(self, "shape")
        if len(self.shape) != 3:
            raise ValueError(f"shape must be (H, W, C), got {self.shape}")
        check_sizes(self)
        check_kernel(kernel=self.kernel)
        at_least(1, components=self.components)
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        super().__post_init__()

    def setup(self) -> None:
        """Make the layers."""
        self.embedding = Conv(self.channels, (1, 1), dtype=self.dtype)
        self.blocks = [
            Block(
                *(self.channels, self.kernel, self.dropout, self.num_classes, self.dtype),
                context=self.context is not None,
                short_cut=2 * i >= self.layers,
            )
            for i in range(self.layers)
        ]
        features = logistic_mixture_features(self.components, self.shape[2])
        self.output = Conv(features, (1, 1), dtype=self.dtype)

    def __call__(self, values: Array, label: Array | None = None, context: Array | None = None) -> UnitInterval:
        """The distribution of each pixel given the earlier ones.

        Args:
          values: [B, H, W, C] integers, or floating intensities in [0, 1], each read as the nearest of K levels.
          label: [B] integers in 0 .. num_classes - 1. No error can be raised for others under `jit`: they give NaN.
          context: [B, H, W, F], where the model takes one.

        Returns:
          A record over images [B, H, W, C] in [0, 1]. Its `log_prob` is exact where it is asked for these values; its
          `sample` is not a sample of the model, see the method `sample`.

        Raises:
          TypeError: the labels are not integers.
          ValueError: as `PixelCNN` raises it.
        """
        levels = self.levels_of(values)
        context = checked_context(context, len(levels), self.shape[:2], self.context)
        features = self.embed(levels)
        begun = self.begin(len(levels))
        links, _ = self.vertical(moved(features, axis=1), (), begun.rows, Told(label, context))
        before = tuple(jnp.broadcast_to(each, (*features.shape[:2], *each.shape[2:])) for each in begun.pixels)
        output, _, _ = self.horizontal(moved(features, axis=2), before, links)
        return self.mixture(output)

    def log_prob(self, values: Array, label: Array | None = None, context: Array | None = None) -> Array:
        """Log p(values | label, context), [B] nats: exact; NaN for an example with a value out of range."""
        levels = self.levels_of(values)
        outside = ((levels < 0) | (levels >= self.num_values)).reshape(len(levels), -1).any(axis=1)
        nats = self(levels, label, context).log_prob(self.intensities(levels))
        return jnp.where(outside, jnp.nan, nats)

    @nn.nowrap
    def sample(self, params: PyTree, num: int, *, key: PRNGKey, **options: Any) -> Array:
        """Draw `num` images, pixel by pixel: arguments and errors are those of `PixelCNN.sample`.

        The temperature is that of the components and a factor of their scales; 0 takes the middle of the most probable
        component. Each pixel has one key.

        Returns:
          [N, H, W, C] int32.
        """
        at_least(1, num=num)
        nothing = jnp.zeros((num, *self.shape), jnp.int32)
        return self.complete(params, nothing, nothing[..., 0] > 0, key=key, **options)

    @nn.nowrap
    def complete(self, params: PyTree, values: Array, known: Array, *, key: PRNGKey, **options: Any) -> Array:
        """As `sample`, but the pixels of `values` [N, H, W, C] stay where `known` [N, H, W] bool is true.

        As `PixelCNN.complete`: the unknown ones are drawn given what comes before them, not after.
        """
        return complete(self, params, values, known, key=key, channels=(self.shape[2],), **options)

    @nn.nowrap
    def choose(self, output: Array, keys: PRNGKey, temperature: float | Array) -> Array:
        """Draw a pixel [N, C] of the network's output [N, F] with a key for each; K of NaN."""
        drawn = self.mixture(output).symmetric.sample(key=keys, temperature=temperature)  # type: ignore[call-arg]
        levels = jnp.rint((drawn + 1) / 2 * (self.num_values - 1))
        return jnp.where(jnp.isnan(levels), self.num_values, levels).astype(jnp.int32)

    @nn.nowrap
    def mixture(self, output: Array) -> UnitInterval:
        """The record of the network's output [B, ..., F]."""
        return logistic_mixture_image(output, self.shape[2], self.num_values)

    @nn.nowrap
    def levels_of(self, values: Array) -> Array:
        """Values [B, H, W, C] as integers; what is no number is -1. Raise `ValueError` for another shape."""
        values = jnp.asarray(values)
        check_values(values, self.shape)
        if not jnp.issubdtype(values.dtype, jnp.floating):
            return integers(values, "values")
        levels = jnp.rint(values * (self.num_values - 1))
        return jnp.where(jnp.isnan(levels), -1, levels).astype(jnp.int32)

    @nn.nowrap
    def intensities(self, levels: Array) -> Array:
        """Integers in 0 .. K-1 as numbers in [0, 1]."""
        return levels.astype(jnp.promote_types(self.dtype, jnp.float32)) / (self.num_values - 1)

    @nn.nowrap
    def begin(self, num: int) -> Begun:
        """What stands before the first of N images."""
        part = partial(blank, num, channels=self.channels, dtype=self.dtype)
        width, sides = self.shape[1], self.kernel // 2
        rows, pixels = part(rows=sides, columns=width), part(rows=1, columns=sides)
        above, left = part(rows=1, columns=width), part(rows=1, columns=1)
        return Begun(above, (), (rows,) * self.layers, left, (pixels,) * self.layers)

    def embed(self, levels: Array) -> Array:
        """Integers [B, H, W, C] -> features [B, H, W, channels]. A bias tells pixels from what lies outside, zeros."""
        return self.embedding((2 * self.intensities(levels) - 1).astype(self.dtype))

    def vertical(
        self, rows: Array, made: PyTree, before: Sequence[Array], told: Told
    ) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Run the stream of rows: arguments and what it returns are those of `PixelCNN.vertical`."""
        del made
        label = checked_label(told.label, len(rows), self.num_classes)
        links, after, entered = [], [], []
        for i, (block, window) in enumerate(zip(self.blocks, before, strict=True)):
            seen = jnp.concatenate([window, rows], axis=1)
            after.append(seen[:, -(self.kernel // 2) :])
            entered.append(rows)
            rows, link = block.vertical(seen, entered[self.layers - 1 - i] if block.short_cut else None, label, told)
            links.append(link)
        return tuple(links), tuple(after)

    def horizontal(
        self, pixels: Array, before: Sequence[Array], links: Sequence[Array]
    ) -> tuple[Array, PyTree, tuple[Array, ...]]:
        """Run the stream of pixels: as `PixelCNN.horizontal`, with the mixture's numbers [B, R, P, F] for logits."""
        after, entered = [], []
        for i, (block, window, link) in enumerate(zip(self.blocks, before, links, strict=True)):
            seen = jnp.concatenate([window, pixels], axis=2)
            after.append(seen[:, :, -(self.kernel // 2) :])
            entered.append(pixels)
            pixels = block.horizontal(seen, link, entered[self.layers - 1 - i] if block.short_cut else None)
        return widen(self.output(nn.elu(pixels))), (), tuple(after)


class Block(nn.Module):
    """One residual block of both streams."""

    channels: int
    kernel: int
    dropout: float
    num_classes: int | None
    dtype: DTypeLike
    context: bool
    short_cut: bool

    def setup(self) -> None:
        """Make the convolutions."""
        conv = partial(Conv, padding="VALID", dtype=self.dtype)
        self.down = conv(self.channels, (self.kernel // 2 + 1, self.kernel))
        self.down_gate = conv(2 * self.channels, (1, 1))
        self.right = conv(self.channels, (1, self.kernel // 2 + 1))
        self.right_gate = conv(2 * self.channels, (1, 1))
        self.link = conv(self.channels, (1, 1))
        self.drop = nn.Dropout(self.dropout)
        if self.short_cut:
            self.down_short_cut = conv(self.channels, (1, 1))
            self.right_short_cut = conv(self.channels, (1, 1))
        if self.num_classes is not None:
            self.label_bias = nn.Embed(self.num_classes, 2 * self.channels, dtype=self.dtype)
        if self.context:
            self.context_bias = conv(2 * self.channels, (1, 1))

    def vertical(self, rows: Array, entered: Array | None, label: Array | None, told: Told) -> tuple[Array, Array]:
        """[B, k // 2 + R, W, C] -> the next block's rows [B, R, W, C], and the link of that shape."""
        sums = self.down(sideways(concat_elu(rows), self.kernel // 2))
        if entered is not None:
            sums += self.down_short_cut(concat_elu(entered))
        gate = self.down_gate(self.dropped(concat_elu(sums)))
        if label is not None:
            gate += self.label_bias(label)[:, None, None]
        if told.context is not None:
            gate += self.context_bias(told.context)
        rows = rows[:, self.kernel // 2 :] + gated(gate)
        return rows, self.link(concat_elu(rows))

    def horizontal(self, pixels: Array, link: Array, entered: Array | None) -> Array:
        """[B, R, k // 2 + P, C] and the link [B, R, P, C] -> the next block's pixels [B, R, P, C]."""
        sums = self.right(concat_elu(pixels)) + link
        if entered is not None:
            sums += self.right_short_cut(concat_elu(entered))
        return pixels[:, :, self.kernel // 2 :] + gated(self.right_gate(self.dropped(concat_elu(sums))))

    def dropped(self, features: Array) -> Array:
        """In training, without a share of the features."""
        return self.drop(features, deterministic=not self.has_rng("dropout"))


def concat_elu(x: Array) -> Array:
    """ELU of x and of -x, side by side: twice the features, none of them without a slope."""
    return jax.nn.elu(jnp.concatenate([x, -x], axis=-1))


def gated(x: Array) -> Array:
    """The first half of the features times the sigmoid of the second."""
    value, gate = jnp.split(x, 2, axis=-1)
    return value * nn.sigmoid(gate)
