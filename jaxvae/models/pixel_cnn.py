"""The gated PixelCNN: an exact density of maps of integers, one position after the other.

log p(x) = sum over positions, row by row, of log p(x_ij | the rows above, the pixels to the left): the prior over the
index maps of a VQ-VAE, or a model of grey images.

References:
  van den Oord et al., Conditional Image Generation with PixelCNN Decoders, 2016.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxvae._checks import at_least, integers, out_of_range, weight_at
from jaxvae.convolution import Conv
from jaxvae.distributions import Categorical
from jaxvae.keys import check_key, example_keys, noise
from jaxvae.models._parts import checked_label
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
    pixel of its own. After L layers a position sees L·(k // 2) columns to either side and that many rows and one.

    Attributes:
      num_values: K, at least 2.
      shape: (H, W), or (H, W, 1) for images of one channel.
      channels: C, of either stack.
      layers: L.
      kernel: k, the width of a window; odd, at least 3.
      num_classes: of the labels, for a class-conditional model.
      dtype: of the computation; parameters and logits are float32.
    """

    num_values: int
    shape: Sequence[int]
    channels: int = 64
    layers: int = 6
    kernel: int = 3
    num_classes: int | None = None
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        """Raise `ValueError` for a shape, a kernel or a size that does not fit."""
        self.shape = tuple(self.shape)  # a list, from a file, could not be hashed
        if len(self.shape) not in (2, 3) or self.shape[2:] not in ((), (1,)):
            raise ValueError(f"shape must be (H, W) or (H, W, 1), got {self.shape}")
        if self.kernel < 3 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and at least 3, got {self.kernel}")
        at_least(2, num_values=self.num_values)
        at_least(1, channels=self.channels, layers=self.layers, shape=self.shape)
        if self.num_classes is not None:
            at_least(1, num_classes=self.num_classes)
        super().__post_init__()

    def setup(self) -> None:
        """Make the layers."""
        self.embedding = nn.Embed(
            self.num_values, self.channels, dtype=self.dtype, embedding_init=nn.initializers.normal(1.0)
        )
        self.stack = [GatedLayer(self.channels, self.kernel, self.num_classes, self.dtype) for _ in range(self.layers)]
        self.hidden = Conv(self.channels, (1, 1), dtype=self.dtype)
        self.output = Conv(self.num_values, (1, 1), dtype=self.dtype)

    def __call__(self, values: Array, label: Array | None = None) -> Categorical:
        """The distribution of each value given the earlier ones.

        Args:
          values: [B, *shape] integers, or floating intensities in [0, 1], read as `Categorical` reads them. One out of
            range makes the example's `log_prob` NaN.
          label: [B] integers in 0 .. num_classes - 1. No error can be raised for others under `jit`: they give NaN.

        Returns:
          A record with logits [B, *shape, K] float32. Its `log_prob(values)` is exact; its `sample` is not a sample of
          the model, see the method `sample`.

        Raises:
          TypeError: the labels are not integers.
          ValueError: values or labels of another shape, a label where the model has no classes, or none where it has,
            or one that is out of range and not traced.
        """
        values = jnp.asarray(values)
        self.check_values(values)
        features = self.embed(values.reshape(values.shape[:3]))
        rows, pixels = _blank(features, axis=1, size=1), _blank(features, axis=2, size=1)
        rows = jnp.concatenate([rows, features[:, :-1]], axis=1)
        pixels = jnp.concatenate([pixels, features[:, :, :-1]], axis=2)

        before = [_blank(features, axis=1, size=self.kernel // 2)] * self.layers
        links, _ = self.vertical(rows, before, label)
        before = [_blank(features, axis=2, size=self.kernel // 2)] * self.layers
        logits, _ = self.horizontal(pixels, before, links)
        return Categorical(logits.reshape(*values.shape, self.num_values))

    def log_prob(self, values: Array, label: Array | None = None) -> Array:
        """Log p(values | label), [B] nats: exact."""
        values = jnp.asarray(values)
        if jnp.issubdtype(values.dtype, jnp.integer):
            values = integers(values, "values")
        return self(values, label).log_prob(values)

    @nn.nowrap
    def sample(
        self,
        params: PyTree,
        num: int,
        *,
        key: PRNGKey,
        label: Array | None = None,
        temperature: float | Array = 1.0,
    ) -> Array:
        """Draw `num` maps, position by position. A plain method.

        Args:
          params: what `init` returned.
          num: N.
          key: of shape (); position p of example i draws from `fold_in(fold_in(key, i), p)`, so the first maps are the
            same for every larger N.
          label: [N] integers, where the model has classes.
          temperature: of each value's distribution, zero or more; 0 takes the most probable value. A traced one is not
            checked.

        Returns:
          [N, *shape] int32.

        Raises:
          TypeError: the key is not typed, or the labels are not integers.
          ValueError: the labels do not fit the model, N is below 1, or the temperature is negative or not finite.
        """
        at_least(1, num=num)
        nothing = jnp.zeros((num, *self.shape), jnp.int32)
        return self.complete(params, nothing, nothing > 0, key=key, label=label, temperature=temperature)

    @nn.nowrap
    def complete(
        self,
        params: PyTree,
        values: Array,
        known: Array,
        *,
        key: PRNGKey,
        label: Array | None = None,
        temperature: float | Array = 1.0,
    ) -> Array:
        """As `sample`, but `values` [N, *shape] integer stay where `known` [N, *shape] bool is true.

        The unknown ones are drawn given what comes before them, not after: exact only where the known come first.

        All positions together cost about one pass of the model: a row of the vertical stack is computed when the row
        above is complete, a pixel of the horizontal one when its left neighbour is, and each layer carries the last
        k // 2 of its inputs.

        Raises:
          TypeError: as `sample`, or the values are not integers, or `known` is not bool.
          ValueError: as `sample`, or values or known do not fit the model; a traced value is not checked.
        """
        check_key(key)
        values, known = integers(values, "values"), jnp.asarray(known)
        self.check_values(values)
        if known.dtype != bool:
            raise TypeError(f"known must be bool, true where a value stays, got {known.dtype}")
        if known.shape != values.shape:
            raise ValueError(f"known must be {values.shape}, as the values are, got {known.shape}")
        out_of_range("value", jnp.where(known, values, 0), self.num_values)
        label = checked_label(label, len(values), self.num_classes)
        return _complete(self, params, values, known, key, label, weight_at("temperature", temperature, 0))

    @nn.nowrap
    def check_values(self, values: Array) -> None:
        """Raise `ValueError` unless values of this shape fit the model."""
        if values.shape[1:] != self.shape or not values.size:
            expected = ", ".join(map(str, ("batch", *self.shape)))
            raise ValueError(f"expected values ({expected}), at least one, got {values.shape}")

    def embed(self, values: Array) -> Array:
        """Values [B, H, W] -> features [B, H, W, C]."""
        if jnp.issubdtype(values.dtype, jnp.floating):
            values = jnp.rint(values * (self.num_values - 1))
        return self.embedding(values.astype(jnp.int32))

    def vertical(
        self, rows: Array, before: Sequence[Array], label: Array | None
    ) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
        """Run the vertical stack over some rows.

        Args:
          rows: [B, R, W, C], the features of the rows above each.
          before: for each layer its k // 2 rows of input before these, [B, k // 2, W, C].
          label: [B], or None.

        Returns:
          What each layer tells the horizontal stack, [B, R, W, 2C], and `before` for the rows that follow.
        """
        label = checked_label(label, len(rows), self.num_classes)
        links, after = [], []
        for layer, window in zip(self.stack, before, strict=True):
            seen = jnp.concatenate([window, rows], axis=1)
            after.append(seen[:, -(self.kernel // 2) :])
            rows, link = layer.vertical(seen, label)
            links.append(link)
        return tuple(links), tuple(after)

    def horizontal(
        self, pixels: Array, before: Sequence[Array], links: Sequence[Array]
    ) -> tuple[Array, tuple[Array, ...]]:
        """Run the horizontal stack over some columns.

        Args:
          pixels: [B, R, P, C], the features of the pixels to the left of each.
          before: for each layer its k // 2 columns of input before these, [B, R, k // 2, C].
          links: from `vertical`, each [B, R, P, 2C].

        Returns:
          Logits [B, R, P, K], and `before` for the columns that follow.
        """
        after = []
        for layer, window, link in zip(self.stack, before, links, strict=True):
            seen = jnp.concatenate([window, pixels], axis=2)
            after.append(seen[:, :, -(self.kernel // 2) :])
            pixels = layer.horizontal(seen, link)
        logits = self.output(nn.relu(self.hidden(nn.relu(pixels))))
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), tuple(after)


class GatedLayer(nn.Module):
    """One layer of both stacks: tanh · sigmoid of a window's sums and the label's bias, which the link carries over."""

    channels: int
    kernel: int
    num_classes: int | None
    dtype: DTypeLike

    def setup(self) -> None:
        """Make the convolutions."""
        conv = partial(Conv, padding="VALID", dtype=self.dtype)
        self.down = conv(2 * self.channels, (self.kernel // 2 + 1, self.kernel))
        self.right = conv(2 * self.channels, (1, self.kernel // 2 + 1))
        self.link = conv(2 * self.channels, (1, 1))
        self.residual = conv(self.channels, (1, 1))
        if self.num_classes is not None:
            self.label_bias = nn.Embed(self.num_classes, 2 * self.channels, dtype=self.dtype)

    def vertical(self, rows: Array, label: Array | None) -> tuple[Array, Array]:
        """[B, k // 2 + R, W, C] -> the next layer's rows [B, R, W, C], and the link [B, R, W, 2C]."""
        sides = self.kernel // 2
        sums = self.down(jnp.pad(rows, ((0, 0), (0, 0), (sides, sides), (0, 0))))
        if label is not None:
            sums += self.label_bias(label)[:, None, None]
        return _gate(sums), self.link(sums)

    def horizontal(self, pixels: Array, link: Array) -> Array:
        """[B, R, k // 2 + P, C] and the link [B, R, P, 2C] -> the next layer's pixels [B, R, P, C]."""
        return pixels[:, :, self.kernel // 2 :] + self.residual(_gate(self.right(pixels) + link))


@partial(jax.jit, static_argnames="model")
def _complete(
    model: Any,
    params: PyTree,
    values: Array,
    known: Array,
    key: PRNGKey,
    label: Array | None,
    temperature: float | Array,
) -> Array:
    num = len(values)
    height, width = model.shape[:2]
    keys = example_keys(key, jnp.arange(num))

    def next_pixel(carry: Any, x: Any) -> tuple[Any, tuple[Array, Array]]:
        left, before = carry
        position, value, is_known, links = x
        logits, before = model.apply(params, left, before, links, method="horizontal")
        logits = logits[:, 0, 0]
        gumbel = noise(jax.random.gumbel, jax.vmap(jax.random.fold_in, (0, None))(keys, position), logits.shape)
        drawn = jnp.argmax(logits + temperature * gumbel, axis=-1).astype(jnp.int32)
        value = jnp.where(is_known, value, drawn)
        feature = model.apply(params, value[:, None, None], method="embed")
        return (feature, before), (value, feature[:, :, 0])

    def next_row(carry: Any, x: Any) -> tuple[Any, Array]:
        above, before = carry
        links, before = model.apply(params, above, before, label, method="vertical")
        links = tuple(jnp.moveaxis(link, 2, 0)[:, :, :, None] for link in links)
        start = blank(1, 1), (blank(1, model.kernel // 2),) * model.layers
        _, (row, features) = jax.lax.scan(next_pixel, start, (*x, links))
        return (jnp.moveaxis(features, 0, 2), before), row

    def blank(rows: int, columns: int) -> Array:
        return jnp.zeros((num, rows, columns, model.channels), model.dtype)

    def by_position(x: Array) -> Array:  # [N, *shape] -> [H, W, N]
        return x.reshape(num, height, width).transpose(1, 2, 0)

    positions = jnp.arange(height * width).reshape(height, width)
    start = blank(1, width), (blank(model.kernel // 2, width),) * model.layers
    _, drawn = jax.lax.scan(next_row, start, (positions, by_position(values), by_position(known)))
    return drawn.transpose(2, 0, 1).reshape(values.shape)


def _gate(sums: Array) -> Array:
    value, gate = jnp.split(sums, 2, axis=-1)
    return jnp.tanh(value) * nn.sigmoid(gate)


def _blank(features: Array, *, axis: int, size: int) -> Array:
    """Zeros of the size of `features`, but for one axis: what lies outside the map."""
    shape = list(features.shape)
    shape[axis] = size
    return jnp.zeros(shape, features.dtype)
