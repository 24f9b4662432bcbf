"""Blocks of a transformer: attention with rotary positions and a cache, gated dense layers, pre-normalised.

Parameters are float32 and `dtype` is what the products are computed in; statistics of norms and the softmax are float32
or wider whatever it is.
"""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from jaxvae.convolution import lecun_normal, widen
from jaxvae.types import Array

Cache = tuple[Array, Array]  # keys and values of a layer, each [B, kv_heads, S, head_dim]
Normalization = Literal["rms", "layer"]


def rotary_angles(coordinates: np.ndarray, head_dim: int) -> np.ndarray:
    """The angles by which `rotate` turns the pairs of a head's features.

    The pairs are shared out over the axes; an axis with n of them turns by its coordinate times base^(-j/n), j < n. The
    base is 10,000 along one axis, as in the paper, and 100 on maps, whose sides are short.

    Args:
      coordinates: [T, A], the place of each position along each axis.
      head_dim: D, even, at least 2·A.

    Returns:
      [T, D / 2], in the type of the coordinates.

    References:
      Su et al., RoFormer: Enhanced Transformer with Rotary Position Embedding, 2021.
    """
    axes = coordinates.shape[1]
    base = 10_000 if axes == 1 else 100
    counts = [len(part) for part in np.array_split(np.arange(head_dim // 2), axes)]
    return np.concatenate(
        [coordinates[:, axis, None] * float(base) ** (-np.arange(n) / n) for axis, n in enumerate(counts)], axis=1
    )


def rotate(x: Array, angles: Array) -> Array:
    """Turn the pairs (x_j, x_{j + D/2}) of x [B, H, T, D] by angles [T, D / 2].

    The scalar product of two vectors so turned depends on the difference of their positions alone.
    """
    cos, sin = (function(angles)[None, None].astype(x.dtype) for function in (jnp.cos, jnp.sin))
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def attend(query: Array, key: Array, value: Array, seen: Array) -> Array:
    """Softmax attention; each group of query heads shares a head of keys and values.

    Args:
      query: [B, H, T, D].
      key: [B, G, S, D], of G heads that divide H.
      value: [B, G, S, D].
      seen: [B or 1, T, S] bool, true where a query sees a key; each sees one at least.

    Returns:
      [B, H, T, D].
    """
    batch, heads, steps, dim = query.shape
    grouped = query.reshape(batch, key.shape[1], -1, dim)  # the heads of a group stand one below the other
    scores = widen(jnp.einsum("bgtd,bgsd->bgts", grouped, key)).reshape(batch, heads, steps, -1) * dim**-0.5
    scores = jnp.where(seen[:, None], scores, jnp.finfo(scores.dtype).min)
    weights = jax.nn.softmax(scores, axis=-1).astype(value.dtype).reshape(*grouped.shape[:3], -1)
    return jnp.einsum("bgts,bgsd->bgtd", weights, value).reshape(query.shape)


class Attention(nn.Module):
    """Multi-head attention, [B, T, C] -> [B, T, C].

    Attributes:
      heads: H, which divide C.
      kv_heads: G, which divide H, of keys and values.
      depth: of the network: its output starts smaller, so that the sum over all layers does not grow with them.
      dtype: of the computation.
    """

    heads: int
    kv_heads: int
    depth: int
    dtype: DTypeLike

    @nn.compact
    def __call__(
        self, x: Array, seen: Array, angles: Array | None, cache: Cache | None = None, at: Array | int = 0
    ) -> tuple[Array, Cache]:
        """Attend to the positions themselves or, with a cache, to all that is in it once these are written from `at`.

        Args:
          x: [B, T, C].
          seen: [B or 1, T, S] bool.
          angles: [T, D / 2], of rotary positions; or None.
          cache: keys and values, with room for S positions; without it S is T.
          at: where in the cache these positions stand.

        Returns:
          [B, T, C], and keys and values with these positions.
        """
        width = x.shape[-1]
        dim = width // self.heads
        joined = nn.Dense((self.heads + 2 * self.kv_heads) * dim, use_bias=False, dtype=self.dtype, name="qkv")(x)
        joined = joined.reshape(*x.shape[:2], -1, dim).swapaxes(1, 2)
        query, key, value = jnp.split(joined, [self.heads, self.heads + self.kv_heads], axis=1)
        if angles is not None:
            query, key = rotate(query, angles), rotate(key, angles)
        if cache is not None:
            key, value = (
                jax.lax.dynamic_update_slice_in_dim(old, new.astype(old.dtype), at, axis=2)
                for old, new in zip(cache, (key, value), strict=True)
            )
        mixed = attend(query, key, value, seen).swapaxes(1, 2).reshape(x.shape)
        output = nn.Dense(width, use_bias=False, dtype=self.dtype, kernel_init=_small(self.depth), name="output")(mixed)
        return output, (key, value)


class Block(nn.Module):
    """Attention and a gated dense layer (SwiGLU), each added to what it was given, normalised.

    Attributes:
      heads: of the queries.
      kv_heads: of keys and values.
      hidden: features of the gated layer.
      depth: of the network.
      normalization: "rms" or "layer".
      dropout: the share of the features of each branch that are dropped in training.
      dtype: of the computation.

    References:
      Shazeer, GLU Variants Improve Transformer, 2020; Zhang and Sennrich, Root Mean Square Layer Normalization, 2019.
    """

    heads: int
    kv_heads: int
    hidden: int
    depth: int
    normalization: Normalization
    dropout: float
    dtype: DTypeLike

    @nn.compact
    def __call__(self, x: Array, *arguments: Any, train: bool, **options: Any) -> tuple[Array, Cache]:
        """[B, T, C] -> [B, T, C], and what `Attention` returns; its arguments."""
        drop = nn.Dropout(self.dropout, deterministic=not train)
        attention = Attention(self.heads, self.kv_heads, self.depth, self.dtype, name="attention")
        mixed, cache = attention(norm(self.normalization, self.dtype, "norm_1")(x), *arguments, **options)
        x = x + drop(mixed)
        features = norm(self.normalization, self.dtype, "norm_2")(x)
        features = nn.Dense(2 * self.hidden, use_bias=False, dtype=self.dtype, name="gated")(features)
        value, gate = jnp.split(features, 2, axis=-1)
        output = nn.Dense(x.shape[-1], use_bias=False, dtype=self.dtype, kernel_init=_small(self.depth), name="down")
        return x + drop(output(value * nn.silu(gate))), cache


def norm(kind: Normalization, dtype: DTypeLike, name: str | None = None) -> nn.Module:
    """A norm over the features; its statistics are float32 or wider."""
    return nn.RMSNorm(dtype=dtype, name=name) if kind == "rms" else nn.LayerNorm(dtype=dtype, name=name)


def causal(steps: int) -> np.ndarray:
    """[1, T, T] bool: each position sees itself and those before it."""
    return np.tri(steps, dtype=bool)[None]


def _small(depth: int) -> nn.initializers.Initializer:
    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32) -> Array:
        return lecun_normal(key, shape, dtype) * (2 * depth) ** -0.5

    return init
