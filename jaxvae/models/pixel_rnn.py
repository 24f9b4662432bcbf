"""PixelRNN: an exact density of maps of integers, whose rows are the steps of a recurrent network.

log p(x) = sum over positions, row by row, of log p(x_ij | what the row LSTM sees of the rows above, the pixels to the
left).

References:
  van den Oord, Kalchbrenner and Kavukcuoglu, Pixel Recurrent Neural Networks, 2016.
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
    complete,
    moved,
    sideways,
)
from jaxvae.types import Array, PRNGKey, PyTree

States = tuple[tuple[Array, Array], ...]  # of each layer: hidden and cell, [B, 1, W, C]


class PixelRNN(nn.Module):
    """Integers in 0 .. K-1 on a grid, of one channel, by row LSTMs: a neighbour of `PixelCNN`, with its methods.

    A first window sees the pixels around a position that come before it. Each layer is then an LSTM, one step of which
    is a whole row: its gates add a window of the row's input, the positions to the left and the own (the paper's mask;
    here the input has been moved by a pixel), and one of the row above's hidden state, to both sides. A layer adds its
    hidden state to its input. Rows run one after the other, the positions of a row side by side.

    The state above reaches k // 2 columns further to either side with each row: a position sees a triangle of what is
    above it, and earlier pixels beside that triangle never, however large they are for it. The probabilities are those
    of a smaller context, and still sum to one. (The paper's diagonal BiLSTM, which sees them all, is not here.)

    Attributes:
      num_values: K, at least 2.
      shape: (H, W), or (H, W, 1) for images of one channel.
      channels: C, of the states and between layers.
      layers: LSTMs, one on the other.
      kernel: k, the width of the windows of an LSTM; odd, at least 3.
      first_kernel: width of the first window; odd, at least 3.
      num_classes: of the labels, for a class-conditional model.
      dtype: of the computation; parameters and logits are float32.
    """

    num_values: int
    shape: Sequence[int]
    channels: int = 64
    layers: int = 4
    kernel: int = 3
    first_kernel: int = 7
    num_classes: int | None = None
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        """Raise `ValueError` for a shape, a kernel or a size that does not fit."""
        check_map(self)
        check_kernel(kernel=self.kernel, first_kernel=self.first_kernel)
        super().__post_init__()

    def setup(self) -> None:
        """Make the layers."""
        self.embedding = nn.Embed(
            self.num_values, self.channels, dtype=self.dtype, embedding_init=nn.initializers.normal(1.0)
        )
        conv, sides = partial(Conv, padding="VALID", dtype=self.dtype), self.first_kernel // 2
        self.down = conv(self.channels, (sides, self.first_kernel))
        self.right = conv(self.channels, (1, sides))
        self.stack = [RowLSTM(self.channels, self.kernel, self.num_classes, self.dtype) for _ in range(self.layers)]
        self.hidden = conv(self.channels, (1, 1))
        self.output = conv(self.num_values, (1, 1))

    @property
    def context(self) -> None:
        """None: it takes no features of what made the map."""
        return

    def __call__(self, values: Array, label: Array | None = None) -> Categorical:
        """The distribution of each value given the earlier ones; arguments and errors as `PixelCNN`'s.

        Returns:
          A record with logits [B, *shape, K] float32, as `PixelCNN`'s.
        """
        values = jnp.asarray(values)
        check_values(values, self.shape)
        features = self.embed(values.reshape(values.shape[:3]))
        begun = self.begin(len(values))

        def row(model: PixelRNN, carry: tuple[PyTree, PyTree], parts: tuple[Array, Array]) -> tuple[PyTree, Array]:
            made, before = carry
            above, pixels = (part[:, None] for part in parts)
            links, before = model.vertical(above, made, before, Told(label, None))
            logits, made, _ = model.horizontal(pixels, begun.pixels, links)
            return (made, before), logits[:, 0]

        # Like the features, so that where devices share a batch, each carries its own.
        start = jax.tree.map(lambda each: jnp.zeros_like(features, shape=each.shape), (begun.made, begun.rows))
        # Parameters are the same for every row.
        rows = nn.scan(row, variable_broadcast="params", split_rngs={"params": False}, in_axes=1, out_axes=1)
        parts = moved(features, axis=1), moved(features, axis=2)
        _, logits = rows(self, start, parts)
        return Categorical(logits.reshape(*values.shape, self.num_values))

    def log_prob(self, values: Array, label: Array | None = None) -> Array:
        """Log p(values | label), [B] nats: exact."""
        values = jnp.asarray(values)
        if jnp.issubdtype(values.dtype, jnp.integer):
            values = integers(values, "values")
        return self(values, label).log_prob(values)

    @nn.nowrap
    def sample(self, params: PyTree, num: int, *, key: PRNGKey, **options: Any) -> Array:
        """Draw `num` maps, position by position: as `PixelCNN.sample`, without a context."""
        at_least(1, num=num)
        nothing = jnp.zeros((num, *self.shape), jnp.int32)
        return self.complete(params, nothing, nothing > 0, key=key, **options)

    @nn.nowrap
    def complete(self, params: PyTree, values: Array, known: Array, *, key: PRNGKey, **options: Any) -> Array:
        """As `PixelCNN.complete`: known values stay, the others are drawn given what comes before them."""
        return complete(self, params, values, known, key=key, **options)

    @nn.nowrap
    def choose(self, logits: Array, keys: PRNGKey, temperature: float | Array) -> Array:
        """Draw a value [N] of logits [N, K] with a key for each."""
        return categorical_choice(logits, keys, temperature)

    @nn.nowrap
    def begin(self, num: int) -> Begun:
        """What stands before the first of N maps."""
        part = partial(blank, num, channels=self.channels, dtype=self.dtype)
        width, first = self.shape[1], self.first_kernel // 2 - 1
        row, pixel = part(rows=1, columns=width), part(rows=1, columns=1)
        sides = part(rows=1, columns=self.kernel // 2)
        states = ((row, row),) * self.layers
        before = part(rows=1, columns=first), (sides,) * self.layers
        return Begun(row, states, part(rows=first, columns=width), pixel, before)

    def embed(self, values: Array) -> Array:
        """Values [B, H, W] -> features [B, H, W, C]."""
        if jnp.issubdtype(values.dtype, jnp.floating):
            values = jnp.rint(values * (self.num_values - 1))
        return self.embedding(values.astype(jnp.int32))

    def vertical(
        self, above: Array, made: States, before: Array, told: Told
    ) -> tuple[tuple[Array, tuple[tuple[Array, Array], ...]], Array]:
        """What the pixels of a row are told.

        Args:
          above: [B, 1, W, C], the features of the row above.
          made: the states of the row above.
          before: the features of the rows above that, as many as the first window sees.
          told: the labels.

        Returns:
          The first window's sums and, for each layer, the gates' sums and the cells, all [B, 1, W, ...]; and `before`
          for the next row.
        """
        label = checked_label(told.label, len(above), self.num_classes)
        seen = jnp.concatenate([before, above], axis=1)
        layers = zip(self.stack, made, strict=True)
        sums = tuple((layer.from_above(hidden, label), cell) for layer, (hidden, cell) in layers)
        return (self.down(sideways(seen, self.first_kernel // 2)), sums), seen[:, 1:]

    def horizontal(
        self, pixels: Array, before: tuple[Array, tuple[Array, ...]], links: Any
    ) -> tuple[Array, States, tuple[Array, tuple[Array, ...]]]:
        """Run some columns of a row.

        Args:
          pixels: [B, 1, P, C], the features of the pixels to the left of each.
          before: the columns before these, of the first window's input and of each layer's.
          links: from `vertical`, at these columns.

        Returns:
          Logits [B, 1, P, K], the states [B, 1, P, C], and `before` for the columns that follow.
        """
        (first, windows), (sums, of_layers) = before, links
        seen = jnp.concatenate([first, pixels], axis=2)
        features, first = sums + self.right(seen), seen[:, :, pixels.shape[2] :]
        states, after = [], []
        for layer, window, (gates, cell) in zip(self.stack, windows, of_layers, strict=True):
            seen = jnp.concatenate([window, features], axis=2)
            after.append(seen[:, :, -(self.kernel // 2) :])
            features, state = layer.step(seen, gates, cell)
            states.append(state)
        logits = self.output(nn.relu(self.hidden(nn.relu(features))))
        return widen(logits), tuple(states), (first, tuple(after))


class RowLSTM(nn.Module):
    """An LSTM whose step is a row; what it sees of its input ends at the own position."""

    channels: int
    kernel: int
    num_classes: int | None
    dtype: DTypeLike

    def setup(self) -> None:
        """Make the convolutions."""
        conv = partial(Conv, padding="VALID", dtype=self.dtype)
        self.of_input = conv(4 * self.channels, (1, self.kernel // 2 + 1))
        self.of_state = conv(4 * self.channels, (1, self.kernel), use_bias=False)
        self.residual = conv(self.channels, (1, 1))
        if self.num_classes is not None:
            self.label_bias = nn.Embed(self.num_classes, 4 * self.channels, dtype=self.dtype)

    def from_above(self, hidden: Array, label: Array | None) -> Array:
        """The hidden state of the row above [B, 1, W, C] -> its part of the gates' sums, [B, 1, W, 4C]."""
        sums = self.of_state(sideways(hidden, self.kernel // 2))
        return sums if label is None else sums + self.label_bias(label)[:, None, None]

    def step(self, seen: Array, above: Array, cell: Array) -> tuple[Array, tuple[Array, Array]]:
        """The input [B, 1, k // 2 + P, C] and what comes from above -> the output [B, 1, P, C] and the state."""
        keep, write, show, value = jnp.split(self.of_input(seen) + above, 4, axis=-1)
        cell = nn.sigmoid(keep + 1) * cell + nn.sigmoid(write) * jnp.tanh(value)  # it begins by keeping
        hidden = nn.sigmoid(show) * jnp.tanh(cell)
        return seen[:, :, self.kernel // 2 :] + self.residual(hidden), (hidden, cell)
