"""Divergences, likelihoods and bounds: arrays in, nats out.

Every `_kl` and `_nll` sums over the example and keeps the batch: `[B, ...] -> [B]`, natural logarithm. Take `.mean()`
yourself. The squared errors of VQ-VAE alone are means over the example, and no nats. Arguments in a narrower floating
type are widened to float32 first. This folder needs nothing but JAX.
"""

from jaxvae.losses._arrays import LOG_2PI
from jaxvae.losses.adversarial import (
    HINGE,
    MINIMAX,
    NON_SATURATING,
    WASSERSTEIN,
    AdversarialLoss,
    adaptive_weight,
    fake_nll,
    gradient_penalty,
    r1_penalty,
    real_nll,
)
from jaxvae.losses.counts import (
    negative_binomial_nll,
    negative_binomial_terms,
    poisson_nll,
    poisson_terms,
    zero_inflated_negative_binomial_nll,
    zero_inflated_poisson_nll,
    zero_inflated_terms,
)
from jaxvae.losses.divergences import (
    bits_per_dim,
    categorical_kl,
    categorical_kl_terms,
    codebook_loss,
    commitment,
    gaussian_kl,
    gaussian_kl_between,
    gaussian_kl_terms,
    iwae_bound,
)
from jaxvae.losses.likelihoods import (
    bernoulli_nll,
    categorical_nll,
    discretized_logistic_log_mass,
    discretized_logistic_nll,
    gaussian_nll,
)
from jaxvae.losses.mixtures import (
    discretized_logistic_mixture_log_mass,
    discretized_logistic_mixture_nll,
    gaussian_mixture_nll,
)
from jaxvae.losses.reals import (
    continuous_bernoulli_mean,
    continuous_bernoulli_nll,
    laplace_nll,
    log_normal_nll,
    student_t_nll,
)

__all__ = [
    "HINGE",
    "LOG_2PI",
    "MINIMAX",
    "NON_SATURATING",
    "WASSERSTEIN",
    "AdversarialLoss",
    "adaptive_weight",
    "bernoulli_nll",
    "bits_per_dim",
    "categorical_kl",
    "categorical_kl_terms",
    "categorical_nll",
    "codebook_loss",
    "commitment",
    "continuous_bernoulli_mean",
    "continuous_bernoulli_nll",
    "discretized_logistic_log_mass",
    "discretized_logistic_mixture_log_mass",
    "discretized_logistic_mixture_nll",
    "discretized_logistic_nll",
    "fake_nll",
    "gaussian_kl",
    "gaussian_kl_between",
    "gaussian_kl_terms",
    "gaussian_mixture_nll",
    "gaussian_nll",
    "gradient_penalty",
    "iwae_bound",
    "laplace_nll",
    "log_normal_nll",
    "negative_binomial_nll",
    "negative_binomial_terms",
    "poisson_nll",
    "poisson_terms",
    "r1_penalty",
    "real_nll",
    "student_t_nll",
    "zero_inflated_negative_binomial_nll",
    "zero_inflated_poisson_nll",
    "zero_inflated_terms",
]
