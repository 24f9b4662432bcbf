"""Networks of images for few labels: an encoder that sees the label, and a classifier that a few examples can teach."""

import jax.numpy as jnp
from flax import linen as nn

from jaxvae.convolution import Conv
from jaxvae.networks import GaussianHead
from jaxvae.types import Array


class ImageLabelEncoder(nn.Module):
    """Images [B, ...] and label embeddings [B, E] -> (mean, log_var), each [B, D], through one dense layer.

    As `Conditioned(MLPEncoder(...))`, but M2, which looks at all classes, computes the image's part of the layer once.
    """

    latent_dim: int
    hidden: int

    @nn.compact
    def __call__(self, x: Array, label: Array) -> tuple[Array, Array]:
        """Encode a batch."""
        features = nn.Dense(self.hidden)(x.reshape(len(x), -1))
        features = features + nn.Dense(self.hidden, use_bias=False)(label)
        return GaussianHead(self.latent_dim, name="head")(nn.relu(features))


class PatternClassifier(nn.Module):
    """Images [B, H, W, C] -> logits [B, K], from how well each of 64 patterns fits in each quarter of the image.

    Where exactly in the quarter does not matter: that is what few labels cannot teach. A pattern has at most 10×10
    pixels and moves in steps of two.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Classify a batch."""
        window = [min(10, side // 2) for side in x.shape[1:3]]
        features = nn.relu(Conv(64, window, strides=2, padding="VALID")(x))
        halves = jnp.array_split(features, 2, axis=1)
        quarters = [quarter for half in halves for quarter in jnp.array_split(half, 2, axis=2)]
        best = [quarter.max(axis=(1, 2)) for quarter in quarters]
        return nn.Dense(self.num_classes)(jnp.concatenate(best, axis=1))
