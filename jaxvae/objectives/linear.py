"""The linear VAE's objective, exactly.

References:
  Lucas, Tucker, Grosse and Norouzi, Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse, 2019.
"""

import jax.numpy as jnp

from jaxvae import losses
from jaxvae._checks import check_shape
from jaxvae.distributions import DiagGaussian, StandardNormal
from jaxvae.models.linear import LinearEncoder
from jaxvae.models.vae import VAE
from jaxvae.networks import MLPDecoder, SharedScale
from jaxvae.objectives._apply import apply, refuse_missing
from jaxvae.types import Array, Batch, Metrics, PRNGKey, PyTree


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

    .. math:: E_q[-\log p(x|z)] = -\log N(x; W\mu + b, \mathrm{diag}(\sigma^2))
              + \sum_{ij} \frac{s_j^2 W_{ij}^2}{2\sigma_i^2}

    Args:
      model: from `linear_vae`.
      params: what `model.init` returned.
      model_state: handed through; a linear VAE has none.
      batch: "x" [B, ...] floating.
      key: not used.
      step: not used.

    Returns:
      The loss in nats per example (of a density, so it may be negative) and `(model_state, metrics)`: "loss", "rate",
      "distortion" and "negative_elbo", means over the batch.

    Raises:
      TypeError: x is not floating, or the model is not a linear VAE.
      ValueError: x does not have the model's shape.
    """
    del key, step
    refuse_missing(batch, "linear_vae_loss")
    x = batch["x"]
    linear = isinstance(model.encoder, LinearEncoder) and getattr(model.decoder, "hidden", None) == ()
    gaussian = model.posterior is DiagGaussian and isinstance(model.likelihood, SharedScale)
    if not (linear and gaussian and isinstance(model.decoder, MLPDecoder) and isinstance(model.prior, StandardNormal)):
        raise TypeError("linear_vae_loss is exact for a model from linear_vae alone; train others by vae_loss")
    posterior, _ = apply(model, params, model_state, x, method="encode")
    likelihood, _ = apply(model, params, model_state, posterior.mean, method="decode")
    check_shape(likelihood.mean.shape, x.shape)
    kernel = params["params"]["decoder"]["output"]["kernel"]  # Wᵀ, [D, elements]
    precision = jnp.broadcast_to(jnp.exp(-likelihood.log_var), (1, *x.shape[1:])).reshape(-1)
    spread = 0.5 * jnp.exp(posterior.log_var) @ (jnp.square(kernel) @ precision)
    distortion = spread - likelihood.log_prob(x)
    rate = losses.gaussian_kl(posterior.mean, posterior.log_var)
    metrics = {"rate": rate, "distortion": distortion, "negative_elbo": distortion + rate}
    metrics = {name: values.mean() for name, values in metrics.items()}
    metrics["loss"] = metrics["negative_elbo"]
    return metrics["loss"], (model_state, metrics)
