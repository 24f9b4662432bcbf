"""The gated PixelCNN: an exact density of maps of integers, one position after the other.

log p(x) = sum over positions, row by row, of log p(x_ij | the rows above, the pixels to the left): the prior over the
index maps of a VQ-VAE, or a model of grey images.

References:
  van den Oord et al., Conditional Image Generation with PixelCNN Decoders, 2016.
"""

import itertools
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxvae._checks import at_least, integers
from jaxvae.convolution import Conv, widen
from jaxvae.distributions import Categorical
from jaxvae.models._parts import checked_label
from jaxvae.models._pixels import (
    Begun,
    Told,
    blank,
    categorical_choice,
    check_kernel,
    check_map,
    check_values,
    checked_context,
    complete,
    moved,
    sideways,
)
from jaxvae.networks._arrays import as_tuples
from jaxvae.types import Array, PRNGKey, PyTree


class PixelCNN(nn.Module):
    """Integers in 0 .. K-1 on a grid, of one channel.

    A vertical stack sees the rows above, a horizontal one the pixels to the left and the vertical stack, so that no
    earlier position is hidden. Nothing is masked: the input is moved by one row or pixel, and windows end where they
    stand. What a first layer sees of the values for the position `?`, with windows of k = 3::

            vertical stack                  horizontal stack
               . . . . .                       . . . . .
               . v v v .                       . . . . .
               . v v v .     -- link -->       . . . . .
               . . ? . .                       h h ? . .

        rows:    features, a row down      --> [down]  ---> [down]  ---> ... [down]
                                                  | link       | link          | link
                                                  v            v               v
        pixels:  features, a pixel right   --> [right] ---> [right] ---> ... [right] ---> logits

    A link goes down only, never from the pixels to the rows: so a row of the vertical stack needs the rows above and no
    pixel of its own. After L layers a position sees k // 2 times the sum of their dilations columns to either side, and
    that many rows and one. What it does not see it cannot go on from: where that is much less than the map, samples
    begin anew below what they have drawn.

    Attributes:
      num_values: K, at least 2.
      shape: (H, W), or (H, W, 1) for images of one channel.
      channels: C, of either stack.
      layers: L.
      kernel: k, the width of a window; odd, at least 3.
      num_classes: of the labels, for a class-conditional model.
      dtype: of the computation; parameters and logits are float32.
      context: F, of features that each pixel is told by what made them, such as the decoder of a `pixel_vae`.
      dilations: steps between the places of a window, of one layer after the other and from the first again, such as
        (1, 2, 4, 8): far more is seen at the same cost.
    """

    num_values: int
    shape: Sequence[int]
    channels: int = 64
    layers: int = 6
    kernel: int = 3
    num_classes: int | None = None
    dtype: DTypeLike = jnp.float32
    context: int | None = None
    dilations: Sequence[int] = (1,)

    def __post_init__(self) -> None:
        """Raise `ValueError` for a shape, a kernel or a size that does not fit."""
        check_map(self)
        check_kernel(kernel=self.kernel)
        as_tuples(self, "dilations")
        at_least(1, dilations=self.dilations)
        if not self.dilations:
            raise ValueError("dilations must hold at least one number, (1,) for windows without gaps")
        super().__post_init__()

    def setup(self) -> None:
        """Make the layers."""
        self.embedding = nn.Embed(
            self.num_values, self.channels, dtype=self.dtype, embedding_init=nn.initializers.normal(1.0)
        )
        self.stack = [
            GatedLayer(self.channels, self.kernel, self.num_classes, self.dtype, self.context is not None, dilation)
            for dilation in self.layer_dilations()
        ]
        self.hidden = Conv(self.channels, (1, 1), dtype=self.dtype)
        self.output = Conv(self.num_values, (1, 1), dtype=self.dtype)

    def __call__(self, values: Array, label: Array | None = None, context: Array | None = None) -> Categorical:
        """The distribution of each value given the earlier ones.

        Args:
          values: [B, *shape] integers, or floating intensities in [0, 1], read as `Categorical` reads them. One out of
            range makes the example's `log_prob` NaN.
          label: [B] integers in 0 .. num_classes - 1. No error can be raised for others under `jit`: they give NaN.
          context: [B, H, W, F], where the model takes one.

        Returns:
          A record with logits [B, *shape, K] float32. Its `log_prob(values)` is exact; its `sample` is not a sample of
          the model, see the method `sample`.

        Raises:
          TypeError: the labels are not integers.
          ValueError: values, labels or context of another shape, a label where the model has no classes, or none where
            it has, or one that is out of range and not traced; likewise a context.
        """
        values = jnp.asarray(values)
        check_values(values, self.shape)
        context = checked_context(context, len(values), self.shape[:2], self.context)
        features = self.embed(values.reshape(values.shape[:3]))
        begun = self.begin(len(values))
        links, _ = self.vertical(moved(features, axis=1), (), begun.rows, Told(label, context))
        before = tuple(jnp.broadcast_to(each, (*features.shape[:2], *each.shape[2:])) for each in begun.pixels)
        logits, _, _ = self.horizontal(moved(features, axis=2), before, links)
        return Categorical(logits.reshape(*values.shape, self.num_values))

    def log_prob(self, values: Array, label: Array | None = None, context: Array | None = None) -> Array:
        """Log p(values | label, context), [B] nats: exact."""
        values = jnp.asarray(values)
        if jnp.issubdtype(values.dtype, jnp.integer):
            values = integers(values, "values")
        return self(values, label, context).log_prob(values)

    @nn.nowrap
    def sample(self, params: PyTree, num: int, *, key: PRNGKey, **options: Any) -> Array:
        """Draw `num` maps, position by position. A plain method.

        Args:
          params: what `init` returned.
          num: N.
          key: of shape (); position p of example i draws from `fold_in(fold_in(key, i), p)`, so the first maps are the
            same for every larger N. Or of shape [N], one for each example in place of `fold_in(key, i)`.
          options: `label` [N] integers, where the model has classes; `context` [N, H, W, F], where it takes one; and
            `temperature`, of each value's distribution, zero or more: 0 takes the most probable value. A traced
            temperature is not checked.

        Returns:
          [N, *shape] int32.

        Raises:
          TypeError: the key is not typed, or the labels are not integers.
          ValueError: labels or context do not fit the model, N is below 1, or the temperature is negative or not
            finite.
        """
        at_least(1, num=num)
        nothing = jnp.zeros((num, *self.shape), jnp.int32)
        return self.complete(params, nothing, nothing > 0, key=key, **options)

    @nn.nowrap
    def complete(self, params: PyTree, values: Array, known: Array, *, key: PRNGKey, **options: Any) -> Array:
        """As `sample`, but `values` [N, *shape] integer stay where `known` [N, *shape] bool is true.

        The unknown ones are drawn given what comes before them, not after: exact only where the known come first.

        All positions together cost about one pass of the model: a row of the vertical stack is computed when the row
        above is complete, a pixel of the horizontal one when its left neighbour is, and each layer carries the last
        k // 2 of its inputs.

        Raises:
          TypeError: as `sample`, or the values are not integers, or `known` is not bool.
          ValueError: as `sample`, or values or known do not fit the model; a traced value is not checked.
        """
        return complete(self, params, values, known, key=key, **options)

    @nn.nowrap
    def choose(self, logits: Array, keys: PRNGKey, temperature: float | Array) -> Array:
        """Draw a value [N] of logits [N, K] with a key for each."""
        return categorical_choice(logits, keys, temperature)

    @nn.nowrap
    def layer_dilations(self) -> tuple[int, ...]:
        """The dilation of each layer."""
        return tuple(itertools.islice(itertools.cycle(self.dilations), self.layers))

    @nn.nowrap
    def begin(self, num: int) -> Begun:
        """What stands before the first of N maps."""
        part = partial(blank, num, channels=self.channels, dtype=self.dtype)
        width, sides = self.shape[1], [self.kernel // 2 * dilation for dilation in self.layer_dilations()]
        above, left = part(rows=1, columns=width), part(rows=1, columns=1)
        rows = tuple(part(rows=each, columns=width) for each in sides)
        return Begun(above, (), rows, left, tuple(part(rows=1, columns=each) for each in sides))

    def embed(self, values: Array) -> Array:
        """Values [B, H, W] -> features [B, H, W, C]."""
        if jnp.issubdtype(values.dtype, jnp.floating):
            values = jnp.rint(values * (self.num_values - 1))
        return self.embedding(values.astype(jnp.int32))

    def vertical(
        self, rows: Array, made: PyTree, before: Sequence[Array], told: Told
    ) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Run the vertical stack over some rows.

        Args:
          rows: [B, R, W, C], the features of the rows above each.
          made: nothing, here.
          before: for each layer its k // 2 · dilation rows of input before these, [B, rows, W, C].
          told: label [B] and context [B, R, W, F], or None.

        Returns:
          What each layer tells the horizontal stack, [B, R, W, 2C], and `before` for the rows that follow.
        """
        del made
        label = checked_label(told.label, len(rows), self.num_classes)
        links, after = [], []
        for layer, window in zip(self.stack, before, strict=True):
            seen = jnp.concatenate([window, rows], axis=1)
            after.append(seen[:, rows.shape[1] :])
            rows, link = layer.vertical(seen, label, told.context)
            links.append(link)
        return tuple(links), tuple(after)

    def horizontal(
        self, pixels: Array, before: Sequence[Array], links: Sequence[Array]
    ) -> tuple[Array, PyTree, tuple[Array, ...]]:
        """Run the horizontal stack over some columns.

        Args:
          pixels: [B, R, P, C], the features of the pixels to the left of each.
          before: for each layer its k // 2 · dilation columns of input before these, [B, R, columns, C].
          links: from `vertical`, each [B, R, P, 2C].

        Returns:
          Logits [B, R, P, K], nothing that the next row needs, and `before` for the columns that follow.
        """
        after = []
        for layer, window, link in zip(self.stack, before, links, strict=True):
            seen = jnp.concatenate([window, pixels], axis=2)
            after.append(seen[:, :, pixels.shape[2] :])
            pixels = layer.horizontal(seen, link)
        logits = self.output(nn.relu(self.hidden(nn.relu(pixels))))
        return widen(logits), (), tuple(after)


class GatedLayer(nn.Module):
    """One layer of both stacks: tanh · sigmoid of a window's sums, what is told added; the link carries both over."""

    channels: int
    kernel: int
    num_classes: int | None
    dtype: DTypeLike
    context: bool
    dilation: int

    def setup(self) -> None:
        """Make the convolutions."""
        conv = partial(Conv, padding="VALID", dtype=self.dtype)
        self.down = conv(2 * self.channels, (self.kernel // 2 + 1, self.kernel), dilation=self.dilation)
        self.right = conv(2 * self.channels, (1, self.kernel // 2 + 1), dilation=self.dilation)
        self.link = conv(2 * self.channels, (1, 1))
        self.residual = conv(self.channels, (1, 1))
        if self.num_classes is not None:
            self.label_bias = nn.Embed(self.num_classes, 2 * self.channels, dtype=self.dtype)
        if self.context:
            self.context_bias = conv(2 * self.channels, (1, 1))

    def vertical(self, rows: Array, label: Array | None, context: Array | None) -> tuple[Array, Array]:
        """[B, k // 2 · dilation + R, W, C] -> the next layer's rows [B, R, W, C], and the link [B, R, W, 2C]."""
        sums = self.down(sideways(rows, self.kernel // 2 * self.dilation))
        if label is not None:
            sums += self.label_bias(label)[:, None, None]
        if context is not None:
            sums += self.context_bias(context)
        return _gate(sums), self.link(sums)

    def horizontal(self, pixels: Array, link: Array) -> Array:
        """[B, R, k // 2 · dilation + P, C] and the link [B, R, P, 2C] -> the next layer's pixels [B, R, P, C]."""
        return pixels[:, :, self.kernel // 2 * self.dilation :] + self.residual(_gate(self.right(pixels) + link))


def _gate(sums: Array) -> Array:
    value, gate = jnp.split(sums, 2, axis=-1)
    return jnp.tanh(value) * nn.sigmoid(gate)
