"""Objectives: what a model minimises, each a `LossFn` once its model is bound."""

from jaxvae._whole_batch import needs_whole_batch
from jaxvae.objectives._adversary import init_with_discriminator
from jaxvae.objectives._apply import terms_of
from jaxvae.objectives.adversarial import gan_loss
from jaxvae.objectives.combined import combined_iwae_loss, multiple_iwae_loss, partial_iwae_loss
from jaxvae.objectives.conditional import cvae_loss, cvae_prior_log_weights
from jaxvae.objectives.density import autoencoder_loss, code_prior_loss, pixel_cnn_loss
from jaxvae.objectives.diffusion import bounded_vae_loss, diffusion_loss, init_diffusion_prior
from jaxvae.objectives.elbo import (
    beta_from_normalized,
    beta_vae_loss,
    cyclical_schedule,
    normalized_beta,
    sampled_vae_loss,
    vae_log_weights,
    vae_loss,
)
from jaxvae.objectives.enumerated import enumerated_vae_loss
from jaxvae.objectives.hierarchical import hierarchical_vae_loss
from jaxvae.objectives.iwae import iwae_loss
from jaxvae.objectives.linear import linear_vae_loss
from jaxvae.objectives.partial import init_partial_encoder, partial_encoder_loss
from jaxvae.objectives.prior import init_prior, prior_loss, with_fitted_prior
from jaxvae.objectives.quantized import vq_vae_loss
from jaxvae.objectives.semi_amortized import semi_amortized_vae_loss
from jaxvae.objectives.semi_supervised import semi_supervised_loss
from jaxvae.objectives.tc import RateTerms, rate_terms, tc_vae_loss
from jaxvae.objectives.translation import translation_loss
from jaxvae.objectives.vae_gan import feature_vae_loss, init_feature_vae, vae_gan_loss
from jaxvae.objectives.vq_gan import vq_gan_loss

__all__ = [
    "RateTerms",
    "autoencoder_loss",
    "beta_from_normalized",
    "beta_vae_loss",
    "bounded_vae_loss",
    "code_prior_loss",
    "combined_iwae_loss",
    "cvae_loss",
    "cvae_prior_log_weights",
    "cyclical_schedule",
    "diffusion_loss",
    "enumerated_vae_loss",
    "feature_vae_loss",
    "gan_loss",
    "hierarchical_vae_loss",
    "init_diffusion_prior",
    "init_feature_vae",
    "init_partial_encoder",
    "init_prior",
    "init_with_discriminator",
    "iwae_loss",
    "linear_vae_loss",
    "multiple_iwae_loss",
    "needs_whole_batch",
    "normalized_beta",
    "partial_encoder_loss",
    "partial_iwae_loss",
    "pixel_cnn_loss",
    "prior_loss",
    "rate_terms",
    "sampled_vae_loss",
    "semi_amortized_vae_loss",
    "semi_supervised_loss",
    "tc_vae_loss",
    "terms_of",
    "translation_loss",
    "vae_gan_loss",
    "vae_log_weights",
    "vae_loss",
    "vq_gan_loss",
    "vq_vae_loss",
    "with_fitted_prior",
]
