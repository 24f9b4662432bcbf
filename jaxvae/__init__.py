"""Variational autoencoders as pure functions.

Data, checkpoints, figures and progress bars are imported by name (`jaxvae.data`, `jaxvae.checkpoint`,
`jaxvae.figures`, `jaxvae.progress`): they need more than JAX, Flax and Optax.
"""

from jaxvae import (
    classical,
    codebook,
    distributions,
    evaluation,
    keys,
    likelihoods,
    losses,
    models,
    networks,
    training,
    types,
)
from jaxvae.codebook import CodebookState
from jaxvae.distributions import Bernoulli, Categorical, DiagGaussian, DiscretizedLogistic, UnitInterval
from jaxvae.evaluation.diagnostics import AggregatePosterior, aggregate_posterior, kl_per_dimension, sharpness_ratio
from jaxvae.evaluation.likelihood import LogLikelihood, active_units, log_likelihood, map_batches
from jaxvae.keys import example_keys, sample_keys, seed_key
from jaxvae.likelihoods import PixelScale, SharedScale, logistic_image
from jaxvae.losses import (
    bernoulli_nll,
    bits_per_dim,
    categorical_nll,
    codebook_loss,
    commitment,
    discretized_logistic_nll,
    gaussian_kl,
    gaussian_kl_between,
    gaussian_nll,
    iwae_bound,
)
from jaxvae.models.autoencoder import Autoencoder, autoencoder_loss
from jaxvae.models.beta_vae import beta_from_normalized, beta_vae_loss, cyclical_schedule, normalized_beta
from jaxvae.models.cvae import CVAE, cvae_loss, cvae_prior_log_weights
from jaxvae.models.hierarchical_vae import HierarchicalVAE
from jaxvae.models.iwae import iwae_loss
from jaxvae.models.linear_vae import linear_vae, linear_vae_loss
from jaxvae.models.pixel_cnn import PixelCNN, pixel_cnn_loss
from jaxvae.models.semi_supervised import SemiSupervisedVAE, semi_supervised_loss
from jaxvae.models.tc_vae import RateTerms, rate_terms, tc_vae_loss
from jaxvae.models.vae import VAE, sampled_vae_loss, vae_log_weights, vae_loss
from jaxvae.models.vq_vae import VQVAE, code_vectors, unit_gaussian, vq_vae_loss
from jaxvae.networks import (
    Conditioned,
    ConvDecoder,
    ConvEncoder,
    LabelEmbedding,
    MLPDecoder,
    MLPEncoder,
    ResidualDecoder,
    ResidualEncoder,
    Unconditioned,
)
from jaxvae.training.epoch import make_evaluate, make_train_epoch
from jaxvae.training.fit import FitResult, NonFiniteError, Progress, fit
from jaxvae.training.mesh import data_mesh, replicated
from jaxvae.training.parallel import jit_train_step, pmap_train_step, shard_batch, shard_map_train_step
from jaxvae.training.state import TrainState, init_train_state
from jaxvae.training.step import make_eval_step, make_train_step
from jaxvae.training.sweep import SweepState, init_sweep_state, make_sweep_epoch, map_members

__all__ = [
    "CVAE",
    "VAE",
    "VQVAE",
    "AggregatePosterior",
    "Autoencoder",
    "Bernoulli",
    "Categorical",
    "CodebookState",
    "Conditioned",
    "ConvDecoder",
    "ConvEncoder",
    "DiagGaussian",
    "DiscretizedLogistic",
    "FitResult",
    "HierarchicalVAE",
    "LabelEmbedding",
    "LogLikelihood",
    "MLPDecoder",
    "MLPEncoder",
    "NonFiniteError",
    "PixelCNN",
    "PixelScale",
    "Progress",
    "RateTerms",
    "ResidualDecoder",
    "ResidualEncoder",
    "SemiSupervisedVAE",
    "SharedScale",
    "SweepState",
    "TrainState",
    "Unconditioned",
    "UnitInterval",
    "active_units",
    "aggregate_posterior",
    "autoencoder_loss",
    "bernoulli_nll",
    "beta_from_normalized",
    "beta_vae_loss",
    "bits_per_dim",
    "categorical_nll",
    "classical",
    "code_vectors",
    "codebook",
    "codebook_loss",
    "commitment",
    "cvae_loss",
    "cvae_prior_log_weights",
    "cyclical_schedule",
    "data_mesh",
    "discretized_logistic_nll",
    "distributions",
    "evaluation",
    "example_keys",
    "fit",
    "gaussian_kl",
    "gaussian_kl_between",
    "gaussian_nll",
    "init_sweep_state",
    "init_train_state",
    "iwae_bound",
    "iwae_loss",
    "jit_train_step",
    "keys",
    "kl_per_dimension",
    "likelihoods",
    "linear_vae",
    "linear_vae_loss",
    "log_likelihood",
    "logistic_image",
    "losses",
    "make_eval_step",
    "make_evaluate",
    "make_sweep_epoch",
    "make_train_epoch",
    "make_train_step",
    "map_batches",
    "map_members",
    "models",
    "networks",
    "normalized_beta",
    "pixel_cnn_loss",
    "pmap_train_step",
    "rate_terms",
    "replicated",
    "sample_keys",
    "sampled_vae_loss",
    "seed_key",
    "semi_supervised_loss",
    "shard_batch",
    "shard_map_train_step",
    "sharpness_ratio",
    "tc_vae_loss",
    "training",
    "types",
    "unit_gaussian",
    "vae_log_weights",
    "vae_loss",
    "vq_vae_loss",
]
