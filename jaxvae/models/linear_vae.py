"""The linear VAE: encoder, decoder and prior all linear and Gaussian, so that everything is known in closed form.

Its best ELBO is the log-likelihood of probabilistic PCA (`jaxvae.classical`), reached where the decoder's columns are
orthogonal: an oracle for a whole training stack.

References:
  Lucas, Tucker, Grosse and Norouzi, Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse, 2019.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxvae import losses
from jaxvae.likelihoods import SharedScale
from jaxvae.models.vae import VAE, apply_to_images, check_shape
from jaxvae.networks import MLPDecoder
from jaxvae.types import Array, Batch, Metrics, PRNGKey, PyTree


class LinearEncoder(nn.Module):
    """Images [B, ...] -> (mean, log_var), each [B, D]: a linear mean, and the same variances for all images."""

    latent_dim: int

    @nn.compact
    def __call__(self, image: Array) -> tuple[Array, Array]:
        """Encode a batch."""
        if self.latent_dim < 1:
            raise ValueError(f"latent_dim must be at least 1, got {self.latent_dim}")
        mean = nn.Dense(self.latent_dim, name="mean")(image.reshape(image.shape[0], -1))
        log_var = self.param("log_var", nn.initializers.zeros, (self.latent_dim,), jnp.float32)
        return mean, jnp.broadcast_to(log_var, mean.shape)


def linear_vae(image_shape: Sequence[int], latent_dim: int) -> VAE:
    """A `VAE` with q(z|x) = N(Vx + c, diag(s²)) and p(x|z) = N(Wz + b, σ²I); all of V, c, s, W, b, σ are learned."""
    return VAE(LinearEncoder(latent_dim), MLPDecoder(image_shape, hidden=()), SharedScale())


def linear_vae_loss(
    model: VAE,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""The exact negative ELBO of a linear VAE, mean over the batch: nothing is sampled.

    .. math:: E_q[-\log p(x|z)] = -\log N(x; W\mu + b, \sigma^2 I) + \frac{1}{2\sigma^2} \sum_j s_j^2 \|W_j\|^2

    Args:
      model: from `linear_vae`.
      params: what `model.init` returned.
      model_state: handed through.
      batch: "image" [B, ...] floating.
      key: not used.
      step: not used.

    Returns:
      The loss in nats per image (of a density, so it may be negative) and `(model_state, metrics)`: "loss", "rate",
      "distortion" and "negative_elbo", means over the batch.

    Raises:
      TypeError: the images are not floating.
      ValueError: they do not have the model's shape.
    """
    del key, step
    image = batch["image"]
    posterior = apply_to_images(model, params, image, method="encode")
    likelihood: Any = model.apply(params, posterior.mean, method="decode")
    check_shape(likelihood.mean.shape, image.shape)
    columns = jnp.square(params["params"]["decoder"]["output"]["kernel"]).sum(axis=1)  # ‖W_j‖², [D]
    spread = 0.5 * jnp.exp(-likelihood.log_var) * (jnp.exp(posterior.log_var) @ columns)
    distortion = spread - likelihood.log_prob(image)
    rate = losses.gaussian_kl(posterior.mean, posterior.log_var)
    metrics = {"rate": rate, "distortion": distortion, "negative_elbo": distortion + rate}
    metrics = {name: values.mean() for name, values in metrics.items()}
    metrics["loss"] = metrics["negative_elbo"]
    return metrics["loss"], (model_state, metrics)
