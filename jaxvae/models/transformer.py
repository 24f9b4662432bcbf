"""The transformer prior: an exact density of code arrays, one token after the other.

log p(x) = sum over tokens of log p(x_n | the tokens before it, condition), of index maps and sequences of one codebook
or several.

References:
  Vaswani et al., Attention Is All You Need, 2017; Copet et al., Simple and Controllable Music Generation, 2023 (delay);
  Ho and Salimans, Classifier-Free Diffusion Guidance, 2022.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from jaxvae._checks import at_least, check_drawn, integers, weight_at
from jaxvae.convolution import widen
from jaxvae.distributions import Categorical
from jaxvae.keys import check_key
from jaxvae.losses import categorical_nll
from jaxvae.models._conditions import EMBEDDING, Condition, Conditioner, guided
from jaxvae.models._tokens import Books, Layout, checked_draw, checked_mask, complete, layout, outside
from jaxvae.networks._arrays import as_tuples
from jaxvae.networks.transformer import Block, Cache, Normalization, norm, rotary_angles
from jaxvae.types import Array, PRNGKey, PyTree


class TransformerPrior(nn.Module):
    """Integers in 0 .. K-1 at the positions of a sequence or a map, from one codebook or several.

    Each step of a causal transformer is given the token before it and says the next one. Where a position has M codes
    (residual or grouped codebooks), there are two orders::

        "flat"                 p0m0  p0m1  p1m0  p1m1  p2m0  p2m1     P·M steps

        "delay"          m = 0   p0    p1    p2    .                   P + M - 1 steps
                         m = 1   .     p0    p1    p2

    The first leaves out no dependence. In the second, the tokens of a step are independent given the earlier steps, and
    book m of position p is not told the later books m' > m of the positions p - (m' - m) .. p - 1; it is told the
    earlier books m' < m of positions up to p + m - m' - 1. Both are densities that sum to one.

    Attributes:
      num_values: K, at least 2, of index arrays [B, *shape]; or K of each of M books, of arrays [B, *shape, M].
      shape: the positions: (T,), (H, W) or (D, H, W).
      width: C, of the features.
      layers: blocks of attention and a gated dense layer.
      heads: of the attention; they divide C.
      kv_heads: of keys and values, each for several heads of queries; default `heads`. Fewer make a smaller cache.
      hidden: features of the dense layers; default 8/3 of C.
      positions: "learned", a vector of each step; or "rotary", which turns queries and keys: one angle for every axis
        of the positions, so that a map is a map.
      normalization: "rms" or "layer".
      dropout: the share of features dropped in training.
      books: "flat" or "delay", where there are several.
      num_classes: of the labels, for a class-conditional model.
      prefix: (L, V) for a prefix of up to L tokens of another vocabulary 0 .. V-1, all of which every step sees; the
        token V is padding.
      dtype: of the computation; parameters, softmax, statistics of norms and logits are float32.
    """

    num_values: int | Sequence[int]
    shape: Sequence[int]
    width: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int | None = None
    hidden: int | None = None
    positions: Literal["rotary", "learned"] = "rotary"
    normalization: Normalization = "rms"
    dropout: float = 0.0
    books: Books = "flat"
    num_classes: int | None = None
    prefix: Sequence[int] | None = None
    dtype: DTypeLike = jnp.float32

    def __post_init__(self) -> None:
        """Raise `ValueError` or `TypeError` for sizes that do not fit each other."""
        as_tuples(self, *(name for name in ("num_values", "shape", "prefix") if np.iterable(getattr(self, name))))
        if not isinstance(self.shape, tuple) or len(self.shape) not in (1, 2, 3):
            raise ValueError(f"shape must be (T,), (H, W) or (D, H, W), got {self.shape}")
        if self.num_values == ():
            raise ValueError("num_values must be a number or one for each book, got ()")
        at_least(2, num_values=self.num_values)
        at_least(1, shape=self.shape, width=self.width, layers=self.layers, heads=self.heads)
        for name in ("kv_heads", "hidden", "num_classes"):
            if getattr(self, name) is not None:
                at_least(1, **{name: getattr(self, name)})
        if self.prefix is not None:
            at_least(1, prefix=self.prefix)
            if not isinstance(self.prefix, tuple) or len(self.prefix) != 2:
                raise ValueError(f"prefix must be (length, vocabulary), got {self.prefix}")
        if self.width % self.heads or self.heads % (self.kv_heads or self.heads):
            raise ValueError(
                f"heads must divide width, and kv_heads heads, got width {self.width}, heads {self.heads}, "
                f"kv_heads {self.kv_heads}"
            )
        head_dim, axes = self.width // self.heads, len(self.shape)
        if self.positions == "rotary" and (head_dim % 2 or head_dim < 2 * axes):
            raise ValueError(
                f"rotary positions along {axes} axes need heads of an even number of features, {2 * axes} at least, "
                f"got width / heads = {head_dim}"
            )
        for name, choices in (
            ("positions", ("rotary", "learned")),
            ("normalization", ("rms", "layer")),
            ("books", ("flat", "delay")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be {choices[0]!r} or {choices[1]!r}, got {getattr(self, name)!r}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        super().__post_init__()

    def setup(self) -> None:
        """Make the layers."""
        counts, steps = self.counts, len(self.layout.tokens)
        self.embedding = nn.Embed(sum(counts), self.width, dtype=self.dtype, embedding_init=EMBEDDING)
        self.start = self.param("start", EMBEDDING, (self.width,), jnp.float32)
        self.place = self.book = None
        if self.positions == "learned":
            self.place = self.param("place", EMBEDDING, (steps, self.width), jnp.float32)
        if len(counts) > 1 and self.books == "flat":
            self.book = self.param("book", EMBEDDING, (len(counts), self.width), jnp.float32)
        hidden = self.hidden or -(-8 * int(self.width) // 24) * 8
        self.blocks = [
            Block(
                *(self.heads, self.kv_heads or self.heads, hidden, self.layers),
                *(self.normalization, self.dropout, self.dtype),
            )
            for _ in range(self.layers)
        ]
        self.last = norm(self.normalization, self.dtype)
        kernel = nn.initializers.lecun_normal(batch_axis=0)
        self.output = self.param("output", kernel, (len(counts), self.width, max(counts)), jnp.float32)
        self.output_bias = self.param("output_bias", nn.initializers.zeros, (len(counts), max(counts)), jnp.float32)
        self.condition = Conditioner(self.width, self.num_classes, self.prefix, self.dtype)

    @property
    def counts(self) -> tuple[int, ...]:
        """K of each book."""
        return self.num_values if isinstance(self.num_values, tuple) else (int(self.num_values),)  # type: ignore[arg-type]

    @property
    def layout(self) -> Layout:
        """Which tokens each step says."""
        return layout(self.shape, len(self.counts), self.books)

    @property
    def values_shape(self) -> tuple[int, ...]:
        """Of the values of an example: the positions, and the books where `num_values` is one for each."""
        return (*self.shape, *((len(self.counts),) if isinstance(self.num_values, tuple) else ()))

    def __call__(
        self,
        values: Array,
        label: Array | None = None,
        prefix: Array | None = None,
        *,
        mask: Array | None = None,
        dropped: Array | None = None,
    ) -> Categorical:
        """The distribution of each value given those that were said before it.

        Args:
          values: [B, *shape] integers, or [B, *shape, M]. No error can be raised for one out of range under `jit`: it
            makes the example's `log_prob` NaN, as does such a label or prefix.
          label: [B] integers in 0 .. num_classes - 1, where the model has classes.
          prefix: [B, L or fewer] integers in 0 .. V - 1, V where there is none; where the model has a prefix.
          mask: [B, *shape] bool, true where there is a position, for sequences of several lengths: the others come
            last, and nothing of them counts. None: all are there.
          dropped: [B] bool, the examples that are told neither label nor prefix but that there is none.

        Returns:
          A record with logits [B, *shape, K] or [B, *shape, M, K] float32, -inf where a book has fewer values. Its
          `sample` is not a sample of the model, see the method `sample`.

        Raises:
          TypeError: what should be integers or bool is not.
          ValueError: arrays of other shapes, conditions that the model has not or lacks, a mask with positions that
            come after missing ones, or what is out of range, where they are not traced.
        """
        values = integers(values, "values")
        self.check_values(values)
        present, _ = checked_mask(mask, values, self.shape)
        tokens = jnp.where(present & ~outside(values, present, self.num_values), values, -1).reshape(len(values), -1)
        condition = self.condition(len(values), label, prefix, dropped)

        order, length = self.layout, condition.length
        said = jnp.where(order.tokens[None] < 0, -1, tokens[:, order.tokens])
        inputs = self.embed(said[:, :-1], order.books[:-1])
        first = jnp.broadcast_to(self.start.astype(inputs.dtype), (len(values), 1, self.width))
        features = self.placed(jnp.concatenate([first, inputs], axis=1), np.arange(len(order.tokens)), condition)
        if condition.prefix is not None:
            features = jnp.concatenate([condition.prefix, features], axis=1)
        features, _ = self.run(features, condition.seen(len(order.tokens)), self.angles(length))
        features = features[:, length:]
        if self.books == "delay":
            features = features[:, order.steps]
        features = features.reshape(len(values), -1, len(self.counts), self.width)
        logits = self.logits(jnp.moveaxis(features, 2, 0), slice(None))
        return Categorical(jnp.moveaxis(logits, 0, 2).reshape(*values.shape, -1))

    def log_prob(
        self,
        values: Array,
        label: Array | None = None,
        prefix: Array | None = None,
        *,
        mask: Array | None = None,
        dropped: Array | None = None,
    ) -> Array:
        """Log p(values | label, prefix), [B] nats: exact; the arguments are those of a call."""
        logits = self(values, label, prefix, mask=mask, dropped=dropped).logits
        values = integers(values, "values")
        present, ragged = checked_mask(mask, values, self.shape)
        targets = jnp.where(outside(values, present, self.num_values), -1, values)
        # Each value as an example of its own, for one that is masked may be anything.
        nats = categorical_nll(logits.reshape(-1, 1, logits.shape[-1]), targets.reshape(-1, 1)).reshape(values.shape)
        total = jnp.where(present, nats, 0).reshape(len(values), -1).sum(axis=1)
        return jnp.where(ragged, jnp.nan, -total)

    @nn.nowrap
    def sample(self, params: PyTree, num: int, *, key: PRNGKey, **options: Any) -> Array:
        """Draw `num` arrays, token by token. A plain method.

        Args:
          params: what `init` returned.
          num: N.
          key: of shape (); token number p·M + m, book m of position p, of example i draws from
            `fold_in(fold_in(key, i), p·M + m)`, so the first arrays are the same for every larger N.
          options: `label`, `prefix`, `temperature`, `top_k`, `top_p` and `guidance`, as of `complete`.

        Returns:
          [N, *shape] or [N, *shape, M] int32.

        Raises:
          TypeError: as `complete`.
          ValueError: as `complete`, or N is below 1.
        """
        at_least(1, num=num)
        nothing = jnp.zeros((num, *self.values_shape), jnp.int32)
        return self.complete(params, nothing, nothing > 0, key=key, **options)

    @nn.nowrap
    def complete(
        self,
        params: PyTree,
        values: Array,
        known: Array,
        *,
        key: PRNGKey,
        label: Array | None = None,
        prefix: Array | None = None,
        temperature: float | Array = 1.0,
        top_k: int | Array | None = None,
        top_p: float | Array | None = None,
        guidance: float | Array = 1.0,
    ) -> Array:
        """As `sample`, but `values` [N, *shape] or [N, *shape, M] integer stay where `known` of that shape is true.

        The unknown ones are drawn given what is said before them, not after: exact only where the known come first.

        One scan, each step of which computes the features of its own position alone: keys and values of the earlier
        ones are kept, and those of the prefix are computed in one pass. What is not traced is checked.

        Args:
          params: what `init` returned.
          values: the arrays to complete.
          known: bool.
          key: as of `sample`.
          label: [N] integers, where the model has classes.
          prefix: [N, L or fewer] integers, where the model has a prefix.
          temperature: of each value's distribution, zero or more; 0 takes the most probable value.
          top_k: draw from the k most probable values, 1 to K.
          top_p: and of these from the smallest set of the most probable ones that has this probability, in (0, 1].
          guidance: the weight w of the condition, logits = (1 - w) · without + w · with it, zero or more: 1 is the
            model itself, 0 draws without label and prefix. What is neither costs twice as much, and is of use where the
            model was trained with `condition_dropout`.

        Raises:
          TypeError: the key is not typed, the values are not integers, `known` is not bool, `top_k` is no integer.
          ValueError: values, known, label or prefix do not fit the model, an option does not lie where it should, or
            `guidance` of a model without a condition; the network's output is NaN, which is K in the place of a value
            where it is traced.
        """
        check_key(key)
        values, known = integers(values, "values"), jnp.asarray(known)
        self.check_values(values)
        if known.dtype != bool:
            raise TypeError(f"known must be bool, true where a value stays, got {known.dtype}")
        if known.shape != values.shape:
            raise ValueError(f"known must be {values.shape}, as the values are, got {known.shape}")
        outside(values, known, self.num_values)
        draw = checked_draw(temperature, top_k, top_p, max(self.counts))
        guidance = weight_at("guidance", guidance, 0)  # as it is: a number that jax holds may not be read under jit
        condition, both = guided(len(values), label, prefix, guidance, num_classes=self.num_classes, sizes=self.prefix)
        flat = (each.reshape(len(values), -1) for each in (values, known))
        drawn = complete(self, params, *flat, key, condition, draw, jnp.float32(guidance), both=both)
        return check_drawn(drawn.reshape(values.shape), max(self.counts))

    @nn.nowrap
    def check_values(self, values: Array) -> None:
        """Raise `ValueError` unless values of this shape fit the model."""
        if values.shape[1:] != self.values_shape or not values.size:
            expected = ", ".join(map(str, ("batch", *self.values_shape)))
            raise ValueError(f"expected values ({expected}), at least one, got {values.shape}")

    def embed(self, said: Array, books: Array | np.ndarray) -> Array:
        """The sum of a step's tokens [B, T, G] of books [T, G], -1 for none -> [B, T, C]."""
        first = np.cumsum([0, *self.counts[:-1]])
        features = self.embedding(jnp.asarray(first)[books][None] + jnp.maximum(said, 0))
        if said.shape[-1] == 1:  # where that is none, nothing comes after it
            return features[:, :, 0]
        return jnp.where(said[..., None] >= 0, features, 0).sum(axis=2)

    def placed(self, features: Array, steps: Array | np.ndarray, condition: Condition) -> Array:
        """Features of tokens [B, T, C] and what else the steps [T] are given."""
        for known in (
            self.place[steps][None] if self.place is not None else None,
            self.book[jnp.asarray(self.layout.books)[steps, 0]][None] if self.book is not None else None,
            condition.bias[:, None] if condition.bias is not None else None,
        ):
            features = features if known is None else features + known.astype(features.dtype)
        return features

    def angles(self, length: int) -> Array | None:
        """Of rotary positions, [length + T, D / 2]; the prefix stands where the positions begin."""
        if self.positions == "learned":
            return None
        places = np.pad(self.layout.places, ((length, 0), (0, 0)))
        return jnp.asarray(rotary_angles(places, self.width // self.heads))

    def run(
        self,
        features: Array,
        seen: Array,
        angles: Array | None,
        caches: Sequence[Cache | None] | None = None,
        at: Array | int = 0,
    ) -> tuple[Array, tuple[Cache, ...]]:
        """All blocks and the last norm, [B, T, C] -> [B, T, C], and the layers' keys and values."""
        after, train = [], self.has_rng("dropout")
        for block, cache in zip(self.blocks, caches or [None] * self.layers, strict=True):
            features, cache = block(features, seen, angles, cache, at, train=train)
            after.append(cache)
        return self.last(features), tuple(after)

    def logits(self, features: Array, books: Any) -> Array:
        """Features [G, ..., C] of books [G] -> [G, ..., K] float32, -inf where a book has fewer values."""
        kernel = self.output[books].astype(features.dtype)
        shape = (-1, *[1] * (features.ndim - 2), max(self.counts))
        logits = widen(jnp.einsum("g...c,gck->g...k", features, kernel)) + self.output_bias[books].reshape(shape)
        if min(self.counts) == max(self.counts):
            return logits
        there = np.arange(max(self.counts)) < np.array(self.counts)[:, None]
        return jnp.where(jnp.asarray(there)[books].reshape(shape), logits, -jnp.inf)

    def begin(self, batch: int, label: Array | None, prefix: Array | None, dropped: Array | None) -> Any:
        """What `step` carries on, before the first: keys and values of the prefix, in one pass."""
        condition, steps = self.condition(batch, label, prefix, dropped), len(self.layout.tokens)
        length, dim = condition.length, self.width // self.heads
        blank = jnp.zeros((batch, self.kv_heads or self.heads, length + steps, dim), self.dtype)
        caches = ((blank, blank),) * self.layers
        if condition.prefix is not None:
            angles = self.angles(length)
            angles = None if angles is None else angles[:length]
            _, caches = self.run(condition.prefix, condition.seen(steps)[:, :length], angles, caches)
        return caches, condition._replace(prefix=None)

    def step(self, previous: Array, index: Array, state: Any) -> tuple[Array, Any]:
        """The tokens of the step before, [B, G] -> logits [B, G, K] of step `index`, and what the next one is given."""
        caches, condition = state
        books, length, steps = jnp.asarray(self.layout.books), condition.length, len(self.layout.tokens)
        features = self.embed(previous[:, None], books[index - 1][None])
        features = jnp.where(index == 0, self.start[None, None].astype(features.dtype), features)
        features = self.placed(features, index[None], condition)
        seen = jnp.arange(steps)[None, None] <= index
        if condition.present is not None:
            seen = jnp.broadcast_to(seen, (len(previous), 1, steps))
            seen = jnp.concatenate([condition.present[:, None], seen], axis=2)
        angles = self.angles(length)
        angles = None if angles is None else angles[length + index][None]
        features, caches = self.run(features, seen, angles, caches, length + index)
        said = jnp.broadcast_to(features[None, :, 0], (books.shape[1], *features[:, 0].shape))
        return jnp.moveaxis(self.logits(said, books[index]), 0, 1), (caches, condition)
