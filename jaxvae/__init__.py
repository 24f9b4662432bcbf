"""Variational autoencoders as pure functions.

Data, checkpoints, figures and progress bars are imported by name (`jaxvae.data`, `jaxvae.checkpoint`,
`jaxvae.figures`, `jaxvae.progress`): they need more than JAX, Flax and Optax.
"""

from jaxvae import distributions, evaluation, keys, losses, models, networks, training, types
from jaxvae.distributions import Bernoulli, Categorical, DiagGaussian
from jaxvae.evaluation.likelihood import LogLikelihood, active_units, log_likelihood, map_batches
from jaxvae.keys import example_keys, sample_keys, seed_key
from jaxvae.losses import bernoulli_nll, categorical_nll, gaussian_kl, gaussian_kl_between, gaussian_nll
from jaxvae.models.vae import VAE, vae_log_weights, vae_loss
from jaxvae.networks import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from jaxvae.training.epoch import make_evaluate, make_train_epoch
from jaxvae.training.fit import FitResult, NonFiniteError, Progress, fit
from jaxvae.training.parallel import data_mesh, jit_train_step, shard_batch
from jaxvae.training.state import TrainState, init_train_state
from jaxvae.training.step import make_eval_step, make_train_step

__all__ = [
    "VAE",
    "Bernoulli",
    "Categorical",
    "ConvDecoder",
    "ConvEncoder",
    "DiagGaussian",
    "FitResult",
    "LogLikelihood",
    "MLPDecoder",
    "MLPEncoder",
    "NonFiniteError",
    "Progress",
    "TrainState",
    "active_units",
    "bernoulli_nll",
    "categorical_nll",
    "data_mesh",
    "distributions",
    "evaluation",
    "example_keys",
    "fit",
    "gaussian_kl",
    "gaussian_kl_between",
    "gaussian_nll",
    "init_train_state",
    "jit_train_step",
    "keys",
    "log_likelihood",
    "losses",
    "make_eval_step",
    "make_evaluate",
    "make_train_epoch",
    "make_train_step",
    "map_batches",
    "models",
    "networks",
    "sample_keys",
    "seed_key",
    "shard_batch",
    "training",
    "types",
    "vae_log_weights",
    "vae_loss",
]
