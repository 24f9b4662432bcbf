"""Discriminators: x [B, ...] -> logits, one for each example or one for each patch of it.

Every one also says what a hidden layer of it sees of x (`with_features`). None has batch statistics, under which an
example's logit would depend on the others. Given labels, logits are those of a projection: w·φ(x) + b + v_y·φ(x), with
φ(x) the last layer's features and v_y a vector of the class (Miyato and Koyama, cGANs with Projection Discriminator,
2018).
"""

import math
from collections.abc import Callable, Sequence

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxvae._checks import at_least
from jaxvae.convolution import Conv, widen
from jaxvae.networks._arrays import as_tuples, check_not_empty, flatten
from jaxvae.networks.conditioning import LabelEmbedding
from jaxvae.types import Array

HIDDEN = "hidden"


def leaky_relu(x: Array) -> Array:
    """The larger of x and x / 5: units that are off still learn."""
    return jnp.maximum(x, 0.2 * x)


class MLPDiscriminator(nn.Module):
    """x [B, ...] -> logits [B], through dense layers of the widths `hidden`.

    Attributes:
      hidden: the widths; the layers are called "layer_0", "layer_1" and so on.
      activation: after every layer.
      num_classes: K; calls then take labels [B] in 0 .. K-1 after x.
      dtype: what the network computes in.
    """

    hidden: Sequence[int] = (500,)
    activation: Callable[[Array], Array] = leaky_relu
    num_classes: int | None = None
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for sizes that do not fit."""
        as_tuples(self, "hidden")
        _check(self, hidden=self.hidden)
        super().__post_init__()

    def __call__(self, x: Array, *label: Array) -> Array:
        """Judge a batch."""
        return self.with_features(x, *label)[0]

    @nn.compact
    def with_features(self, x: Array, *label: Array, layer: str | None = None) -> tuple[Array, Array]:
        """Logits [B], and what a layer, the last one unless named, makes of x: [B, F] float32.

        Raises:
          ValueError: there is no such layer, or there are labels and no classes or the reverse.
        """
        features, seen = flatten(x), {}
        for i, width in enumerate(self.hidden):
            features = self.activation(nn.Dense(width, dtype=self.dtype, name=f"layer_{i}")(features))
            seen[f"layer_{i}"] = features
        return _judged(self, features, seen, label, layer)


class ConvDiscriminator(nn.Module):
    """x [B, H, W, C] -> logits [B]: 4×4 convolutions that halve the image, then a dense layer.

    Attributes:
      channels: of the convolutions; the layers are called "layer_0", "layer_1" and so on.
      hidden: the width of the dense layer, called "hidden".
      activation: after every layer.
      num_classes: K; calls then take labels [B] in 0 .. K-1 after x.
      dtype: what the network computes in.
    """

    channels: Sequence[int] = (32, 64)
    hidden: int = 256
    activation: Callable[[Array], Array] = leaky_relu
    num_classes: int | None = None
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for sizes that do not fit."""
        as_tuples(self, "channels")
        _check(self, channels=self.channels, hidden=self.hidden)
        super().__post_init__()

    def __call__(self, x: Array, *label: Array) -> Array:
        """Judge a batch."""
        return self.with_features(x, *label)[0]

    @nn.compact
    def with_features(self, x: Array, *label: Array, layer: str | None = None) -> tuple[Array, Array]:
        """Logits [B], and what a layer, the dense one unless named, makes of x: [B, ...] float32.

        Raises:
          ValueError: there is no such layer, or there are labels and no classes or the reverse.
        """
        features, seen = _halved(self, x)
        features = self.activation(nn.Dense(self.hidden, dtype=self.dtype, name=HIDDEN)(flatten(features)))
        return _judged(self, features, seen | {HIDDEN: features}, label, layer)


class PatchDiscriminator(nn.Module):
    """x [B, H, W, C] -> logits [B, H / 2^n, W / 2^n], rounded up: one for each patch, whose surroundings it sees.

    n 4×4 convolutions that halve the image, one of 3×3 that does not: with n = 2 a logit sees 18×18 pixels.

    Attributes:
      channels: of the convolutions that halve; the layers are called "layer_0", "layer_1" and so on.
      activation: after every layer.
      num_classes: K; calls then take labels [B] in 0 .. K-1 after x.
      dtype: what the network computes in.

    References:
      Isola et al., Image-to-Image Translation with Conditional Adversarial Networks, 2017.
    """

    channels: Sequence[int] = (32, 64)
    activation: Callable[[Array], Array] = leaky_relu
    num_classes: int | None = None
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for sizes that do not fit."""
        as_tuples(self, "channels")
        _check(self, channels=self.channels)
        if not self.channels:
            raise ValueError("channels must hold at least one width")
        super().__post_init__()

    def __call__(self, x: Array, *label: Array) -> Array:
        """Judge a batch."""
        return self.with_features(x, *label)[0]

    @nn.compact
    def with_features(self, x: Array, *label: Array, layer: str | None = None) -> tuple[Array, Array]:
        """Logits [B, h, w], and what a layer, the 3×3 one ("hidden") unless named, makes of x: [B, h, w, F] float32.

        Raises:
          ValueError: there is no such layer, or there are labels and no classes or the reverse.
        """
        features, seen = _halved(self, x)
        features = self.activation(Conv(self.channels[-1], (3, 3), dtype=self.dtype, name=HIDDEN)(features))
        return _judged(self, features, seen | {HIDDEN: features}, label, layer)


Discriminator = MLPDiscriminator | ConvDiscriminator | PatchDiscriminator


def _check(network: Discriminator, **sizes: int | Sequence[int]) -> None:
    at_least(1, **sizes)
    if network.num_classes is not None:
        at_least(1, num_classes=network.num_classes)


def _halved(network: ConvDiscriminator | PatchDiscriminator, x: Array) -> tuple[Array, dict[str, Array]]:
    """The features after the convolutions that halve an image, and what each has made of it."""
    check_not_empty(x)
    features, seen = x, {}
    for i, width in enumerate(network.channels):
        convolution = Conv(width, (4, 4), strides=(2, 2), dtype=network.dtype, name=f"layer_{i}")
        features = network.activation(convolution(features))
        seen[f"layer_{i}"] = features
    return features, seen


def _judged(
    network: Discriminator, features: Array, seen: dict[str, Array], label: tuple[Array, ...], layer: str | None
) -> tuple[Array, Array]:
    """Logits of the last features [B, ..., F], and those of the layer that is asked for."""
    if layer is not None and layer not in seen:
        raise ValueError(f"there is no layer {layer!r}, only {', '.join(seen)}")
    logits = widen(nn.Dense(1, dtype=network.dtype, name="output")(features))[..., 0]
    if (network.num_classes is None) != (not label):
        classes = f"{network.num_classes} classes" if network.num_classes else "no classes"
        raise ValueError(
            f"a discriminator of {classes} got {len(label)} arrays of labels: num_classes says their number"
        )
    if label:
        if jnp.shape(label[0]) != features.shape[:1]:
            raise ValueError(f"labels must be ({len(features)},), one for each example, got {jnp.shape(label[0])}")
        width = features.shape[-1]
        vectors = LabelEmbedding(network.num_classes or 1, width, name="embed")(*label)
        spread = vectors.reshape(len(vectors), *[1] * (features.ndim - 2), width)
        logits = logits + (widen(features) * spread).sum(axis=-1) / math.sqrt(width)
    return logits, widen(features if layer is None else seen[layer])
