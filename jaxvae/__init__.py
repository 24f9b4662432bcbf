"""Variational autoencoders as pure functions.

Here are the names that a program starts from; everything else is in its room, such as `jaxvae.losses` or
`jaxvae.objectives`. Data, checkpoints, figures and progress bars come on first use: they need more than JAX, Flax,
Optax and NumPy.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

from jaxvae import (
    codebook,
    distributions,
    evaluation,
    flows,
    keys,
    losses,
    models,
    networks,
    objectives,
    posteriors,
    priors,
    quantizers,
    training,
    types,
)
from jaxvae.distributions import (
    Bernoulli,
    Categorical,
    DiagGaussian,
    DiscretizedLogistic,
    NegativeBinomial,
    Poisson,
    StandardNormal,
    UnitInterval,
)
from jaxvae.evaluation.likelihood import log_likelihood
from jaxvae.models import (
    CVAE,
    VAE,
    VQVAE,
    Autoencoder,
    Diffusion,
    HierarchicalVAE,
    PixelCNN,
    PixelCNNPP,
    PixelRNN,
    SemiSupervisedVAE,
    TopDownVAE,
    TransformerPrior,
)
from jaxvae.networks import (
    Conditioned,
    ConvDecoder,
    ConvEncoder,
    LabelEmbedding,
    MLPDecoder,
    MLPEncoder,
    PixelScale,
    ResidualDecoder,
    ResidualEncoder,
    SharedScale,
    Unconditioned,
)
from jaxvae.objectives import (
    autoencoder_loss,
    beta_vae_loss,
    code_prior_loss,
    cvae_loss,
    diffusion_loss,
    iwae_loss,
    pixel_cnn_loss,
    sampled_vae_loss,
    semi_supervised_loss,
    tc_vae_loss,
    vae_loss,
    vq_vae_loss,
)
from jaxvae.priors import GaussianMixture
from jaxvae.quantizers import EMACodebook, GradientCodebook, Grouped
from jaxvae.training.epoch import make_evaluate, make_train_epoch
from jaxvae.training.fit import NonFiniteError, fit
from jaxvae.training.mesh import data_mesh
from jaxvae.training.parallel import jit_train_step
from jaxvae.training.state import TrainState, init_train_state
from jaxvae.training.step import make_eval_step, make_train_step

if TYPE_CHECKING:  # what `__getattr__` brings, for those who check their types
    from jaxvae import checkpoint as checkpoint
    from jaxvae import data as data
    from jaxvae import figures as figures
    from jaxvae import progress as progress
    from jaxvae import run as run
    from jaxvae import trackers as trackers
    from jaxvae.run import DamagedRunError as DamagedRunError
    from jaxvae.run import Run as Run
    from jaxvae.run import load as load
    from jaxvae.run import pull as pull
    from jaxvae.run import train as train

try:
    __version__ = importlib.metadata.version("jaxvae")
except importlib.metadata.PackageNotFoundError:  # a checkout that is on the path and not installed
    __version__ = "unknown"

ON_FIRST_USE = ("checkpoint", "data", "figures", "progress", "run", "trackers")
OF_RUN = ("DamagedRunError", "Run", "load", "pull", "train")  # they read data, and so come on first use too

__all__ = [
    "CVAE",
    "VAE",
    "VQVAE",
    "Autoencoder",
    "Bernoulli",
    "Categorical",
    "Conditioned",
    "ConvDecoder",
    "ConvEncoder",
    "DiagGaussian",
    "Diffusion",
    "DiscretizedLogistic",
    "EMACodebook",
    "GaussianMixture",
    "GradientCodebook",
    "Grouped",
    "HierarchicalVAE",
    "LabelEmbedding",
    "MLPDecoder",
    "MLPEncoder",
    "NegativeBinomial",
    "NonFiniteError",
    "PixelCNN",
    "PixelCNNPP",
    "PixelRNN",
    "PixelScale",
    "Poisson",
    "ResidualDecoder",
    "ResidualEncoder",
    "SemiSupervisedVAE",
    "SharedScale",
    "StandardNormal",
    "TopDownVAE",
    "TrainState",
    "TransformerPrior",
    "Unconditioned",
    "UnitInterval",
    "autoencoder_loss",
    "beta_vae_loss",
    "code_prior_loss",
    "codebook",
    "cvae_loss",
    "data_mesh",
    "diffusion_loss",
    "distributions",
    "evaluation",
    "fit",
    "flows",
    "init_train_state",
    "iwae_loss",
    "jit_train_step",
    "keys",
    "log_likelihood",
    "losses",
    "make_eval_step",
    "make_evaluate",
    "make_train_epoch",
    "make_train_step",
    "models",
    "networks",
    "objectives",
    "pixel_cnn_loss",
    "posteriors",
    "priors",
    "quantizers",
    "sampled_vae_loss",
    "semi_supervised_loss",
    "tc_vae_loss",
    "training",
    "types",
    "vae_loss",
    "vq_vae_loss",
]


def __getattr__(name: str) -> Any:
    if name in ON_FIRST_USE:
        return importlib.import_module(f"jaxvae.{name}")
    if name in OF_RUN:
        return getattr(importlib.import_module("jaxvae.run"), name)
    raise AttributeError(f"module 'jaxvae' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *ON_FIRST_USE, *OF_RUN])
