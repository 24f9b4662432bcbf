"""What the networks of a diffusion share, how noisy it is as features, and a dense one for vectors."""

import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from jaxvae._checks import at_least
from jaxvae.convolution import widen
from jaxvae.networks._arrays import flatten
from jaxvae.networks.conditioning import LabelEmbedding
from jaxvae.types import Array

WAVES = 32  # of either phase
LONGEST, SHORTEST = 64.0, 0.5  # periods of the waves over 2π, in nats of log SNR


class NoiseEmbedding(nn.Module):
    """Log SNR [B] and, where there are classes, labels [B] -> features [B, E] float32.

    Attributes:
      features: E.
      num_classes: of the labels 0 .. num_classes - 1; `num_classes` itself stands for none.
    """

    features: int
    num_classes: int | None = None

    @nn.compact
    def __call__(self, log_snr: Array, label: Array | None = None) -> Array:
        """Embed a batch; `ValueError` for a label too many or too few."""
        at_least(1, features=self.features)
        log_snr = widen(jnp.asarray(log_snr))  # the frequencies would be zeros in an integer type
        frequencies = jnp.asarray(np.geomspace(1 / LONGEST, 1 / SHORTEST, WAVES), log_snr.dtype)
        angles = log_snr[:, None] * frequencies[None]
        waves = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)
        features = nn.Dense(self.features)(nn.silu(nn.Dense(self.features)(waves)))
        if (label is None) != (self.num_classes is None):
            raise ValueError(
                "a network is made with num_classes where it is given labels, as by a Diffusion with num_classes, and "
                f"else without: it has {self.num_classes}"
            )
        if label is None or self.num_classes is None:
            return features
        return features + LabelEmbedding(self.num_classes + 1, self.features, name="label")(label)


class Modulated(nn.Module):
    """A normalised layer, scaled and moved by features of the noise (FiLM): x [B, ..., C], features [B, E].

    Attributes:
      groups: of the channels, normalised together with all positions; None: the channels of each position (LayerNorm).
      dtype: of the computation; statistics are float32.

    References:
      Perez et al., FiLM: Visual Reasoning with a General Conditioning Layer, 2018.
    """

    groups: int | None = None
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, features: Array | None) -> Array:
        """Without features the norm's own scale and bias are learned."""
        own: Any = {"use_scale": features is None, "use_bias": features is None, "dtype": self.dtype}
        x = nn.LayerNorm(**own)(x) if self.groups is None else nn.GroupNorm(self.groups, **own)(x)
        if features is None:
            return x
        moved = nn.Dense(2 * x.shape[-1], dtype=self.dtype, kernel_init=nn.initializers.zeros, name="modulation")
        scale, bias = jnp.split(moved(nn.silu(features)).reshape(len(x), *[1] * (x.ndim - 2), -1), 2, axis=-1)
        return x * (1 + scale) + bias


class DenoisingMLP(nn.Module):
    """z [B, ...], log SNR [B] and, where there are classes, labels [B] -> [B, ...]: for a diffusion of vectors.

    Residual blocks of two dense layers, each normalised and modulated by the noise. It starts at zero.

    Attributes:
      width: of the residual stream.
      blocks: how many there are.
      hidden: width inside a block; default twice that of the stream.
      embedding: features that tell of the noise.
      num_classes: of the labels.
      dtype: what the network computes in.
    """

    width: int = 256
    blocks: int = 4
    hidden: int | None = None
    embedding: int = 128
    num_classes: int | None = None
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for sizes that do not fit."""
        at_least(1, width=self.width, blocks=self.blocks, embedding=self.embedding)
        for name in ("hidden", "num_classes"):
            if getattr(self, name) is not None:
                at_least(1, **{name: getattr(self, name)})
        super().__post_init__()

    @nn.compact
    def __call__(self, z: Array, log_snr: Array, label: Array | None = None) -> Array:
        """Run the network."""
        features = NoiseEmbedding(self.embedding, self.num_classes, name="noise")(log_snr, label)
        zeros = nn.initializers.zeros
        x = nn.Dense(self.width, dtype=self.dtype)(flatten(z))
        for _ in range(self.blocks):
            inside = Modulated(dtype=self.dtype)(x, features)
            inside = nn.silu(nn.Dense(self.hidden or 2 * self.width, dtype=self.dtype)(inside))
            x = x + nn.Dense(self.width, dtype=self.dtype, kernel_init=zeros)(inside)
        x = nn.silu(Modulated(dtype=self.dtype)(x, features))
        output = nn.Dense(math.prod(z.shape[1:]), dtype=self.dtype, kernel_init=zeros, name="output")(x)
        return widen(output).reshape(z.shape)
