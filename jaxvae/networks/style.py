"""The style-based generator: a latent says at each size how features are weighed, and noise says the rest."""

import math
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from jaxvae._checks import at_least
from jaxvae.convolution import conv, lecun_normal, widen
from jaxvae.keys import noise, sample_keys
from jaxvae.networks._arrays import as_tuples, check_not_empty, crop, flatten
from jaxvae.networks.discriminators import leaky_relu
from jaxvae.types import Array, PRNGKey

EPSILON = 1e-8


class StyleGenerator(nn.Module):
    """Latents [B, D] -> [B, *output_shape] float32, by styles that a mapping network makes of them.

    Of a latent, scaled to a mean square of 1, dense layers make w. A learned constant is doubled in size once for each
    of `channels`; every convolution weighs its input by what an affine function of w says, the style, and gets noise of
    its own, one map for all channels with a learned weight for each, zero at the start. Weights are demodulated (Karras
    et al., 2020) rather than features normalised (AdaIN; 2019): the statistics of a map of 2×2 are those of four
    numbers, and to divide by them is to lose them.

    A `GAN` hands it the key that the noise comes from. Without one, as where a VAE decodes, there is none.

    Attributes:
      output_shape: (H, W, ...); sizes are any, as `ConvDecoder`'s.
      channels: the largest image first, as `ConvDecoder`'s.
      mapping: widths of the dense layers; the last is the size of w.
      activation: after every layer.
      dtype: what the network computes in.

    References:
      Karras et al., A Style-Based Generator Architecture for Generative Adversarial Networks, 2019; Analyzing and
      Improving the Image Quality of StyleGAN, 2020.
    """

    output_shape: Sequence[int]
    channels: Sequence[int] = (32, 64)
    mapping: Sequence[int] = (64, 64)
    activation: Callable[[Array], Array] = leaky_relu
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for sizes that do not fit."""
        as_tuples(self, "output_shape", "channels", "mapping")
        at_least(1, output_shape=self.output_shape, channels=self.channels, mapping=self.mapping)
        if len(self.output_shape) < 2:
            raise ValueError(f"output_shape must be (H, W, ...), got {self.output_shape}")
        for name in ("channels", "mapping"):
            if not getattr(self, name):
                raise ValueError(f"{name} must hold at least one width")
        super().__post_init__()

    def setup(self) -> None:
        """Make the layers, the coarsest first."""
        self.dense = [nn.Dense(width, dtype=self.dtype) for width in self.mapping]
        widths = (self.channels[-1], *reversed(self.channels))
        self.layer = [StyledConv(width, self.activation, self.dtype) for width in widths]
        self.output = ModulatedConv(math.prod(self.output_shape[2:]), (1, 1), demodulate=False, dtype=self.dtype)
        shape = (*self._size(0), self.channels[-1])
        self.constant = self.param("constant", nn.initializers.normal(1.0), shape, jnp.float32)

    @property
    def num_layers(self) -> int:
        """How many layers have a style of their own: the output's too."""
        return len(self.channels) + 2

    def __call__(self, latent: Array, *, key: PRNGKey | None = None) -> Array:
        """Generate a batch, with noise where there is a key, one or [B]."""
        return self._made([self.style(latent)] * self.num_layers, key)

    def mix(self, first: Array, second: Array, layer: int, *, key: PRNGKey | None = None) -> Array:
        """[B, *output_shape]: the styles of one latent [B, D] below a layer, those of a second from it on.

        Args:
          first: latents that decide what is coarse; with layer 0 nothing.
          second: latents that decide what is fine; with layer `num_layers` nothing.
          layer: 0 .. `num_layers`.
          key: of the noise.

        Raises:
          TypeError: the layer is no integer.
          ValueError: there is no such layer.
        """
        at_least(0, layer=layer)
        if layer > self.num_layers:
            raise ValueError(f"layer must be at most {self.num_layers}, the number of layers, got {layer}")
        coarse, fine = self.style(first), self.style(second)
        return self._made([coarse] * layer + [fine] * (self.num_layers - layer), key)

    def style(self, latent: Array) -> Array:
        """w [B, W] of latents [B, D]."""
        features = flatten(latent)
        features = features * jax.lax.rsqrt(jnp.square(features).mean(axis=1, keepdims=True) + EPSILON)
        for dense in self.dense:
            features = self.activation(dense(features))
        return features

    def _made(self, styles: list[Array], key: PRNGKey | None) -> Array:
        """The output for a w of each layer."""
        keys = [None] * len(self.layer) if key is None else sample_keys(key, len(self.layer))
        x = jnp.broadcast_to(self.constant, (len(styles[0]), *self.constant.shape))
        for i, layer in enumerate(self.layer):
            if i:
                x = crop(x.repeat(2, axis=1).repeat(2, axis=2), self._size(i))
            x = layer(x, styles[i], keys[i])
        return widen(self.output(x, styles[-1])).reshape(-1, *self.output_shape)

    def _size(self, layer: int) -> tuple[int, ...]:
        """Height and width at a layer; half of an odd size is rounded up."""
        return tuple(-(-size // 2 ** (len(self.channels) - layer)) for size in self.output_shape[:2])


class ModulatedConv(nn.Module):
    """x [B, H, W, C] and w [B, W] -> [B, H, W, features]: a convolution whose weights are the example's own.

    Input channel i has the scale s_i, an affine function of w that starts near 1. With `demodulate` the weights that
    lead to an output channel are divided by their norm: of independent inputs of variance 1 it has variance 1.
    """

    features: int
    window: Sequence[int] = (3, 3)
    demodulate: bool = True
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, style: Array) -> Array:
        """Scale, convolve, and scale back: what weights of each example's own do, in one convolution for all."""
        check_not_empty(x)
        scale = nn.Dense(x.shape[-1], dtype=self.dtype, bias_init=nn.initializers.ones, name="style")(style)
        kernel = self.param("kernel", lecun_normal, (*self.window, x.shape[-1], self.features), jnp.float32)
        scaled = x.astype(scale.dtype) * scale[:, None, None]
        y = conv(scaled, kernel.astype(scale.dtype))
        if not self.demodulate:
            return y
        energy = jnp.square(widen(scale)) @ jnp.square(kernel).sum(axis=(0, 1))
        return y * jax.lax.rsqrt(energy + EPSILON)[:, None, None].astype(y.dtype)


class StyledConv(nn.Module):
    """A modulated convolution, noise with a learned weight for each channel, a bias, and the activation."""

    features: int
    activation: Callable[[Array], Array] = leaky_relu
    dtype: DTypeLike | None = None

    @nn.compact
    def __call__(self, x: Array, style: Array, key: PRNGKey | None = None) -> Array:
        """Run the layer; without a key there is no noise."""
        y = ModulatedConv(self.features, dtype=self.dtype, name="conv")(x, style)
        weight, bias = (
            self.param(name, nn.initializers.zeros, (self.features,), jnp.float32).reshape(1, 1, 1, -1)
            for name in ("noise", "bias")
        )
        if key is not None:
            y = y + (weight * noise(jax.random.normal, key, (*x.shape[:-1], 1))).astype(y.dtype)
        return self.activation(y + bias.astype(y.dtype))
