"""The PixelVAE: a VAE whose likelihood draws pixel by pixel, each given the latent and the pixels before it.

log p(x|z) = sum over pixels of log p(x_ij | earlier pixels, z). A decoder makes features of z at every pixel, which a
`PixelCNN` or `PixelCNNPP` is told. To every objective and estimate it is a VAE like others: the record that stands for
the decoder's output is given x when it is asked for log p(x|z), and nothing else looks at pixels drawn before.

A model that sees enough of the earlier pixels needs no latent, and then the rate goes to zero: train it with free bits
(`beta_vae_loss`), or let the pixels see little (few layers, a small kernel).

References:
  Gulrajani et al., PixelVAE: A Latent Variable Model for Natural Images, 2017; Chen et al., Variational Lossy
  Autoencoder, 2017, for what the latent is left to say.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvae._checks import at_least
from jaxvae.keys import seed_key
from jaxvae.models.pixel_cnn import PixelCNN
from jaxvae.models.pixel_cnn_pp import PixelCNNPP
from jaxvae.models.vae import VAE
from jaxvae.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from jaxvae.types import Array, PRNGKey, PyTree


@partial(jax.tree_util.register_dataclass, data_fields=["context", "variables"], meta_fields=["model", "draws"])
@dataclass(frozen=True)
class PixelByPixel:
    """Images [B, H, W, C] in [0, 1], drawn one pixel after the other by a model that is told features.

    Attributes:
      context: the features, [B, H, W, F].
      variables: the model's.
      model: a `PixelCNN` or `PixelCNNPP` with `context`.
      draws: of which the mean is taken.
    """

    context: Array
    variables: PyTree
    model: Any
    draws: int = 16

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats, exact: one pass, in which every pixel is given the true ones before it."""
        nats: Array = self.model.apply(self.variables, x, context=self.context, method="log_prob")
        return nats

    def sample(self, *, key: PRNGKey) -> Array:
        """Draw images, pixel by pixel, with one key or with one for each example."""
        return self._draw(self.context, key, 1.0)

    def mode(self) -> Array:
        """Each pixel the most probable given those before it: not always the most probable image."""
        return self._draw(self.context, seed_key(0), 0.0)

    @property
    def mean(self) -> Array:
        """The mean of `draws` images, always drawn with the same key: an estimate, for nothing closer is at hand."""
        keys = jax.random.split(seed_key(0), self.draws)
        return jax.lax.map(lambda key: self._draw(self.context, key, 1.0), keys).mean(axis=0)

    def _draw(self, context: Array, key: PRNGKey, temperature: float) -> Array:
        levels = self.model.sample(self.variables, len(context), key=key, context=context, temperature=temperature)
        count = self.model.num_values
        return jnp.where(levels < count, levels.astype(jnp.float32) / (count - 1), jnp.nan)


class PixelLikelihood(nn.Module):
    """Features that a decoder makes of the latent, [B, H, W, F] -> a record of images drawn pixel by pixel.

    Attributes:
      pixels: a `PixelCNN` or `PixelCNNPP` with `context=F`.
      draws: of which the record's mean is taken.

    Raises (when it is made):
      TypeError: the model of pixels takes no context.
      ValueError: it takes labels too, it has dropout, or there are no draws.
    """

    pixels: PixelCNN | PixelCNNPP
    draws: int = 16

    def __post_init__(self) -> None:
        """Check that the features reach the pixels, and nothing else has to."""
        at_least(1, draws=self.draws)
        if getattr(self.pixels, "context", None) is None:
            kind = type(self.pixels).__name__
            raise TypeError(f"pixels must take the decoder's features: make the {kind} with context=F")
        if self.pixels.num_classes is not None:
            raise ValueError("pixels must have no classes: give the label to the decoder, as the CVAE does")
        if getattr(self.pixels, "dropout", 0.0):
            raise ValueError("pixels must have no dropout, which would never be drawn")
        super().__post_init__()

    def __call__(self, features: Array) -> PixelByPixel:
        """The record of a batch; the model's parameters go with it."""
        if self.is_initializing():
            nothing = jnp.zeros((1, *self.pixels.shape), jnp.int32)
            self.pixels.log_prob(nothing, context=jnp.zeros_like(features[:1]))
        return PixelByPixel(features, self.pixels.variables, self.pixels.clone(parent=None, name=None), self.draws)


def pixel_vae(
    shape: Sequence[int],
    latent_dim: int,
    *,
    num_values: int = 256,
    channels: int = 32,
    layers: int = 2,
    kernel: int = 3,
    features: int = 16,
    hidden: Sequence[int] = (32, 64),
    dense: bool = False,
) -> VAE:
    """A `VAE` with a small PixelCNN for its likelihood (PixelCNN++ where images have several channels).

    Args:
      shape: (H, W, C) of images in [0, 1].
      latent_dim: D.
      num_values: how many values a pixel has, evenly spaced in [0, 1]: 2 for binary images.
      channels: of the model of pixels.
      layers: of it: a pixel sees layers · (kernel // 2) columns to either side, that many rows above and one.
      kernel: of it, odd and at least 3.
      features: F, what each pixel is told of the latent.
      hidden: of the encoder, channels of its convolutions or widths of its dense layers; the decoder is its mirror.
      dense: whether these are dense.

    Raises:
      ValueError: the sizes do not fit.
    """
    shape, hidden = tuple(shape), tuple(hidden)
    sizes: dict[str, Any] = {"channels": channels, "layers": layers, "kernel": kernel, "context": features}
    if len(shape) != 3:
        raise ValueError(f"shape must be (H, W, C), got {shape}")
    pixels = PixelCNN(num_values, shape, **sizes) if shape[2] == 1 else PixelCNNPP(shape, num_values, **sizes)
    output = (*shape[:2], features)
    if dense:
        return VAE(MLPEncoder(latent_dim, hidden), MLPDecoder(output, hidden[::-1]), PixelLikelihood(pixels))
    return VAE(ConvEncoder(latent_dim, hidden), ConvDecoder(output, hidden), PixelLikelihood(pixels))
