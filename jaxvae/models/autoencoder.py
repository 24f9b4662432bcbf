"""The deterministic autoencoder: a code instead of a posterior, no rate, no prior to sample from.

References:
  Hinton and Salakhutdinov, Reducing the Dimensionality of Data with Neural Networks, 2006.
"""

from collections.abc import Callable
from typing import Any

from flax import linen as nn

from jaxvae.distributions import Bernoulli
from jaxvae.models.vae import Likelihood, apply_to_images, check_floating, check_shape
from jaxvae.types import Array, Batch, Metrics, PRNGKey, PyTree


class Autoencoder(nn.Module):
    """An encoder, a decoder and a likelihood.

    Attributes:
      encoder: images [B, ...] in [0, 1] -> codes [B, D], such as `MLPDecoder((D,))`.
      decoder: codes [B, D] -> the likelihood's parameters, [B, ...].
      likelihood: as in `VAE`; with a Gaussian of fixed variance the loss is the squared error.
      latent_dim: D; lets an error name the shape of images that would fit.
    """

    encoder: Callable[[Array], Array]
    decoder: Callable[[Array], Array]
    likelihood: Callable[[Array], Likelihood] = Bernoulli
    latent_dim: int | None = None

    def __call__(self, image: Array) -> Likelihood:
        """Reconstruct; also what `init` runs."""
        return self.decode(self.encode(image))

    def encode(self, image: Array) -> Array:
        """Images [B, ...] -> codes [B, D]."""
        check_floating(image)
        return self.encoder(image)

    def decode(self, code: Array) -> Likelihood:
        """Codes [B, D] -> a record over images [B, ...]."""
        return self.likelihood(self.decoder(code))


def autoencoder_loss(
    model: Any, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey, step: Array | int
) -> tuple[Array, tuple[PyTree, Metrics]]:
    """The mean of -log p(x | code(x)): the distortion alone.

    Args:
      model: an `Autoencoder`.
      params: what `model.init` returned.
      model_state: handed through.
      batch: "image" [B, ...] floating in [0, 1].
      key: not used; nothing is drawn.
      step: not used.

    Returns:
      The loss in nats per image and `(model_state, metrics)`, the metrics "loss" and "distortion" being means over
      the batch.

    Raises:
      TypeError: the images are not floating.
      ValueError: the images do not have the model's shape.
    """
    del key, step
    image = batch["image"]
    code = apply_to_images(model, params, image, method="encode")
    reconstruction = model.apply(params, code, method="decode")
    check_shape(reconstruction.mean.shape, image.shape)
    loss = -reconstruction.log_prob(image).mean()
    return loss, (model_state, {"loss": loss, "distortion": loss})
