"""What the tokens of a sequence model are told: a label, a prefix of other tokens, or that there is neither."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from jaxvae._checks import integers, out_of_range
from jaxvae.models._parts import checked_label
from jaxvae.networks.transformer import causal
from jaxvae.types import Array

EMBEDDING = nn.initializers.normal(0.02)


class Condition(NamedTuple):
    """What the tokens of B examples are told.

    Attributes:
      bias: of every step, [B, C]; NaN where a label or a token of the prefix is out of range.
      prefix: features of its tokens, [B, L, C].
      present: which of these are there, [B, L].
    """

    bias: Array | None = None
    prefix: Array | None = None
    present: Array | None = None

    @property
    def length(self) -> int:
        """L, 0 without a prefix."""
        return 0 if self.present is None else self.present.shape[1]

    def seen(self, steps: int) -> Array:
        """What sees what, [B or 1, L + T, L + T]: the prefix that is there, and of T steps each the earlier ones.

        A missing token of the prefix sees itself, for a softmax needs something; nothing else sees it.
        """
        if self.present is None:
            return jnp.asarray(causal(steps))
        batch, length = self.present.shape
        size = length + steps
        prefix = (
            jnp.broadcast_to(self.present[:, None], (batch, size, length)) | jnp.eye(size, length, dtype=bool)[None]
        )
        earlier = np.concatenate([np.zeros((1, length, steps), bool), causal(steps)], axis=1)
        return jnp.concatenate([prefix, jnp.broadcast_to(earlier, (batch, size, steps))], axis=2)


class Conditioner(nn.Module):
    """Labels, prefixes and which examples go without -> `Condition`. Attributes: as `TransformerPrior`'s."""

    width: int
    num_classes: int | None
    prefix: Sequence[int] | None
    dtype: DTypeLike

    @nn.compact
    def __call__(self, batch: int, label: Array | None, prefix: Array | None, dropped: Array | None) -> Condition:
        """Look up what B examples are told."""
        label = checked_label(label, batch, self.num_classes)
        prefix = checked_prefix(prefix, batch, self.prefix)
        dropped = _checked_dropped(dropped, batch, conditional=not (label is None and prefix is None))
        if label is None and prefix is None:
            return Condition()
        bias, features, present = jnp.zeros((batch, self.width), jnp.float32), None, None
        if label is not None and self.num_classes is not None:
            bad = label == self.num_classes
            embedding = self.param("label", EMBEDDING, (self.num_classes, self.width), jnp.float32)
            bias = jnp.where(bad[:, None], jnp.nan, embedding[jnp.where(bad, 0, label)])
        if prefix is not None and self.prefix is not None:
            length, vocabulary = self.prefix
            bias = jnp.where((prefix > vocabulary).any(axis=1, keepdims=True), jnp.nan, bias)
            present = (prefix < vocabulary) & ~dropped[:, None]
            embedding = self.param("prefix", EMBEDDING, (vocabulary, self.width), jnp.float32)
            place = self.param("prefix_place", EMBEDDING, (length, self.width), jnp.float32)
            features = embedding[jnp.where(present, prefix, 0)] + place[None, : prefix.shape[1]]
            features = features.astype(self.dtype)
        nothing = self.param("nothing", EMBEDDING, (self.width,), jnp.float32)
        return Condition(jnp.where(dropped[:, None], nothing[None], bias), features, present)


def checked_prefix(prefix: Array | None, batch: int, sizes: Sequence[int] | None) -> Array | None:
    """The prefix [B, L or fewer] of a model with `sizes` (L, V); V is padding.

    A token out of range is an error or, where it is traced, V + 1.
    """
    if sizes is None and prefix is not None:
        raise ValueError("the model has no prefix: pass none, or make it with prefix=(length, vocabulary)")
    if sizes is None:
        return None
    length, vocabulary = sizes
    if prefix is None:
        raise ValueError(f"the model has a prefix of {length} tokens: pass prefix [B, {length}]")
    prefix = integers(prefix, "prefix", "(batch, length)")
    if prefix.ndim != 2 or len(prefix) != batch or not 1 <= prefix.shape[1] <= length:
        raise ValueError(f"prefix must be integers ({batch}, 1 .. {length}), got {prefix.shape}")
    return jnp.where(out_of_range("prefix token", prefix, vocabulary + 1), vocabulary + 1, prefix)


def _checked_dropped(dropped: Array | None, batch: int, *, conditional: bool) -> Array:
    if dropped is None:
        return jnp.zeros(batch, bool)
    if not conditional:
        raise ValueError("the model has neither classes nor a prefix that could be dropped")
    dropped = jnp.asarray(dropped)
    if dropped.dtype != bool or dropped.shape != (batch,):
        raise ValueError(f"dropped must be bool ({batch},), got {dropped.dtype}{list(dropped.shape)}")
    return dropped


def guided(
    num: int,
    label: Array | None,
    prefix: Array | None,
    guidance: float | Array,
    *,
    num_classes: int | None,
    sizes: Sequence[int] | None,
) -> tuple[tuple[Array | None, Array | None, Array | None], bool]:
    """Label, prefix, which of N examples go without them, and whether both ways have to be computed."""
    weight = None if isinstance(guidance, jax.core.Tracer) else float(guidance)
    conditional = not (num_classes is None and sizes is None)
    if weight != 1 and not conditional:
        raise ValueError(f"guidance needs a model with classes or a prefix, got {guidance}")
    if weight == 0:  # without them it does not matter what they are
        label = jnp.zeros(num, jnp.int32) if label is None and num_classes is not None else label
        prefix = jnp.zeros((num, 1), jnp.int32) if prefix is None and sizes is not None else prefix
    label, prefix = checked_label(label, num, num_classes), checked_prefix(prefix, num, sizes)
    dropped = jnp.full(num, weight == 0) if conditional else None
    return (label, prefix, dropped), weight not in (0, 1)
