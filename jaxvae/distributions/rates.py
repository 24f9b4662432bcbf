"""The rate: how far a posterior is from a prior."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxvae import losses
from jaxvae.distributions.gaussian import DiagGaussian, Mixture, StandardNormal
from jaxvae.distributions.one_hot import OneHotCategorical, RelaxedOneHot, SharedOneHot, StraightThroughOneHot
from jaxvae.distributions.pixels import Categorical
from jaxvae.types import Array

ONE_HOT = (OneHotCategorical, RelaxedOneHot, StraightThroughOneHot)


def rate(posterior: Any, prior: Any, latent: Array, log_posterior: Array) -> Array:
    """KL(posterior || prior) of each example: by dimension and in closed form, where the pair has one.

    Those are two diagonal Gaussians (a mixture of one is one) and two categoricals, one-hot ones and relaxed posteriors
    too; for any other pair it is log q(z) - log p(z) at the draws.

    Args:
      posterior: q, over [B, ...].
      prior: p, of the same shape, or one for every example.
      latent: z ~ q, [S, B, ...].
      log_posterior: log q(z), [S, B] nats.

    Returns:
      Nats, [1, B, D] in closed form, with D the size of one latent; otherwise [S, B, 1].
    """
    if type(prior) is Mixture and len(prior.log_weights) == 1:
        prior = DiagGaussian(prior.component_mean, prior.component_log_var)
    pair = type(posterior), type(prior)  # exactly these: a class made from one may have another density
    if pair == (DiagGaussian, StandardNormal):
        zero = jnp.zeros((), posterior.mean.dtype)
        return losses.gaussian_kl_terms(posterior.mean, posterior.log_var, zero, zero)[None]
    if pair == (DiagGaussian, DiagGaussian):
        return losses.gaussian_kl_terms(posterior.mean, posterior.log_var, prior.mean, prior.log_var)[None]
    if pair == (Categorical, Categorical):
        return losses.categorical_kl_terms(posterior.logits, prior.logits)[None]
    if pair[0] in ONE_HOT and pair[1] in (OneHotCategorical, SharedOneHot):
        logits = jnp.broadcast_to(prior.logits, posterior.logits.shape)
        return losses.categorical_kl_terms(posterior.logits, logits)[None]
    return (log_posterior - jax.vmap(prior.log_prob)(latent))[..., None]
