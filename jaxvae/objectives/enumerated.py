"""The exact ELBO of a model with few categorical latents: nothing is drawn."""

import itertools
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae._checks import weight_at
from jaxvae.models.vae import log_prob_of_each
from jaxvae.objectives._apply import apply, model_inputs, observed_of
from jaxvae.types import Array, Batch, Metrics, PRNGKey, PyTree, Schedule

MOST = 4096  # codes


def enumerated_vae_loss(
    model: Any,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    beta: float | Array | Schedule = 1.0,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""The negative ELBO of a `VAE` with categorical latents, exactly: the sum over all K^N codes, and its gradient.

    .. math:: -\frac1B \sum_i \sum_z q(z|x_i) \left[\log p(x_i|z) - \beta \log \frac{q(z|x_i)}{p(z)} \right]

    Args:
      model: a `VAE` whose encoder's logits are [B, N, K] and whose posterior is `jaxvae.posteriors.GumbelSoftmax`,
        which draws nothing here; any prior over one-hot [B, N, K]. Its networks are run as in evaluation.
      params: what `model.init` returned.
      model_state: collections that the networks keep; handed through.
      batch: "x" [B, ...]; "condition" and "observed" where the model takes them.
      key: not used.
      step: what a schedule is evaluated at.
      beta: weight of the rate, as of `vae_loss`.

    Returns:
      The loss in nats per example and `(model_state, metrics)`: "loss", "rate", "distortion" and "negative_elbo", means
      over the batch, in nats.

    Raises:
      TypeError: x is not floating, or the model's latents are not categorical.
      ValueError: x does not have the model's shape, there are more than 4,096 codes, or β is negative or not finite.
    """
    del key
    inputs, observed = model_inputs(batch), observed_of(batch, model, "encode")
    posterior, _ = apply(model, params, model_state, *inputs, method="encode", **observed)
    logits = getattr(posterior, "logits", None)
    if logits is None or logits.ndim != 3:
        raise TypeError(
            f"only categorical latents [B, N, K] can be enumerated, and q(z|x) is a {type(posterior).__name__}"
        )
    codes = _all_codes(*logits.shape[1:])
    latent = jnp.broadcast_to(codes[:, None], (len(codes), *logits.shape))
    joint, _ = apply(model, params, model_state, *inputs, latent, method="log_joint", **observed)
    log_likelihood, log_prior = joint
    log_posterior = log_prob_of_each(posterior, latent, "the posterior")
    share = jnp.exp(log_posterior)
    log_ratio = jnp.where(share > 0, log_posterior - log_prior, 0)  # 0 log 0 = 0, where a logit is -inf
    metrics = {
        "rate": (share * log_ratio).sum(axis=0).mean(),
        "distortion": -(share * log_likelihood).sum(axis=0).mean(),
    }
    loss = metrics["distortion"] + weight_at("beta", beta, step) * metrics["rate"]
    metrics["negative_elbo"] = metrics["distortion"] + metrics["rate"]
    return loss, (model_state, {"loss": loss, **metrics})


def _all_codes(num_variables: int, num_categories: int) -> Array:
    """All one-hot codes, [K^N, N, K]."""
    count = num_categories**num_variables
    if count > MOST:
        raise ValueError(
            f"{num_variables} variables of {num_categories} categories have {count} codes, more than {MOST}: train by "
            "vae_loss, with relaxed draws"
        )
    chosen = list(itertools.product(range(num_categories), repeat=num_variables))
    return jax.nn.one_hot(jnp.asarray(chosen), num_categories)
