"""Variational autoencoders as pure functions.

Here are the names that a program starts from; everything else is in its room, such as `jaxvae.losses` or
`jaxvae.objectives`. All of it comes on first use, so that who imports the losses alone waits for JAX alone. Data,
checkpoints, figures and progress bars need more than JAX, Flax, Optax and NumPy.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what `__getattr__` brings, for those who check their types
    from jaxvae import checkpoint as checkpoint
    from jaxvae import codebook as codebook
    from jaxvae import data as data
    from jaxvae import distributions as distributions
    from jaxvae import evaluation as evaluation
    from jaxvae import figures as figures
    from jaxvae import flows as flows
    from jaxvae import keys as keys
    from jaxvae import losses as losses
    from jaxvae import models as models
    from jaxvae import networks as networks
    from jaxvae import objectives as objectives
    from jaxvae import posteriors as posteriors
    from jaxvae import priors as priors
    from jaxvae import progress as progress
    from jaxvae import quantizers as quantizers
    from jaxvae import run as run
    from jaxvae import trackers as trackers
    from jaxvae import training as training
    from jaxvae import types as types
    from jaxvae.distributions import Bernoulli as Bernoulli
    from jaxvae.distributions import Categorical as Categorical
    from jaxvae.distributions import DiagGaussian as DiagGaussian
    from jaxvae.distributions import DiscretizedLogistic as DiscretizedLogistic
    from jaxvae.distributions import NegativeBinomial as NegativeBinomial
    from jaxvae.distributions import Poisson as Poisson
    from jaxvae.distributions import StandardNormal as StandardNormal
    from jaxvae.distributions import UnitInterval as UnitInterval
    from jaxvae.evaluation.likelihood import log_likelihood as log_likelihood
    from jaxvae.models import CVAE as CVAE
    from jaxvae.models import VAE as VAE
    from jaxvae.models import VQVAE as VQVAE
    from jaxvae.models import Autoencoder as Autoencoder
    from jaxvae.models import Diffusion as Diffusion
    from jaxvae.models import HierarchicalVAE as HierarchicalVAE
    from jaxvae.models import PixelCNN as PixelCNN
    from jaxvae.models import PixelCNNPP as PixelCNNPP
    from jaxvae.models import PixelRNN as PixelRNN
    from jaxvae.models import SemiSupervisedVAE as SemiSupervisedVAE
    from jaxvae.models import TopDownVAE as TopDownVAE
    from jaxvae.models import TransformerPrior as TransformerPrior
    from jaxvae.networks import Conditioned as Conditioned
    from jaxvae.networks import ConvDecoder as ConvDecoder
    from jaxvae.networks import ConvEncoder as ConvEncoder
    from jaxvae.networks import LabelEmbedding as LabelEmbedding
    from jaxvae.networks import MLPDecoder as MLPDecoder
    from jaxvae.networks import MLPEncoder as MLPEncoder
    from jaxvae.networks import PixelScale as PixelScale
    from jaxvae.networks import ResidualDecoder as ResidualDecoder
    from jaxvae.networks import ResidualEncoder as ResidualEncoder
    from jaxvae.networks import SharedScale as SharedScale
    from jaxvae.networks import Unconditioned as Unconditioned
    from jaxvae.objectives import autoencoder_loss as autoencoder_loss
    from jaxvae.objectives import beta_vae_loss as beta_vae_loss
    from jaxvae.objectives import code_prior_loss as code_prior_loss
    from jaxvae.objectives import cvae_loss as cvae_loss
    from jaxvae.objectives import diffusion_loss as diffusion_loss
    from jaxvae.objectives import iwae_loss as iwae_loss
    from jaxvae.objectives import pixel_cnn_loss as pixel_cnn_loss
    from jaxvae.objectives import sampled_vae_loss as sampled_vae_loss
    from jaxvae.objectives import semi_supervised_loss as semi_supervised_loss
    from jaxvae.objectives import tc_vae_loss as tc_vae_loss
    from jaxvae.objectives import vae_loss as vae_loss
    from jaxvae.objectives import vq_vae_loss as vq_vae_loss
    from jaxvae.priors import GaussianMixture as GaussianMixture
    from jaxvae.quantizers import EMACodebook as EMACodebook
    from jaxvae.quantizers import GradientCodebook as GradientCodebook
    from jaxvae.quantizers import Grouped as Grouped
    from jaxvae.run import DamagedRunError as DamagedRunError
    from jaxvae.run import Run as Run
    from jaxvae.run import load as load
    from jaxvae.run import pull as pull
    from jaxvae.run import train as train
    from jaxvae.training.epoch import make_evaluate as make_evaluate
    from jaxvae.training.epoch import make_train_epoch as make_train_epoch
    from jaxvae.training.fit import NonFiniteError as NonFiniteError
    from jaxvae.training.fit import fit as fit
    from jaxvae.training.mesh import data_mesh as data_mesh
    from jaxvae.training.parallel import jit_train_step as jit_train_step
    from jaxvae.training.state import TrainState as TrainState
    from jaxvae.training.state import init_train_state as init_train_state
    from jaxvae.training.step import make_eval_step as make_eval_step
    from jaxvae.training.step import make_train_step as make_train_step

try:
    __version__ = importlib.metadata.version("jaxvae")
except importlib.metadata.PackageNotFoundError:  # a checkout that is on the path and not installed
    __version__ = "unknown"

ROOMS = (
    "checkpoint",
    "codebook",
    "data",
    "distributions",
    "evaluation",
    "figures",
    "flows",
    "keys",
    "losses",
    "models",
    "networks",
    "objectives",
    "posteriors",
    "priors",
    "progress",
    "quantizers",
    "run",
    "trackers",
    "training",
    "types",
)
NEED_EXTRAS = ("checkpoint", "data", "figures", "progress", "run", "trackers")
HOMES = {
    "jaxvae.distributions": (
        "Bernoulli",
        "Categorical",
        "DiagGaussian",
        "DiscretizedLogistic",
        "NegativeBinomial",
        "Poisson",
        "StandardNormal",
        "UnitInterval",
    ),
    "jaxvae.evaluation.likelihood": ("log_likelihood",),
    "jaxvae.models": (
        "Autoencoder",
        "CVAE",
        "Diffusion",
        "HierarchicalVAE",
        "PixelCNN",
        "PixelCNNPP",
        "PixelRNN",
        "SemiSupervisedVAE",
        "TopDownVAE",
        "TransformerPrior",
        "VAE",
        "VQVAE",
    ),
    "jaxvae.networks": (
        "Conditioned",
        "ConvDecoder",
        "ConvEncoder",
        "LabelEmbedding",
        "MLPDecoder",
        "MLPEncoder",
        "PixelScale",
        "ResidualDecoder",
        "ResidualEncoder",
        "SharedScale",
        "Unconditioned",
    ),
    "jaxvae.objectives": (
        "autoencoder_loss",
        "beta_vae_loss",
        "code_prior_loss",
        "cvae_loss",
        "diffusion_loss",
        "iwae_loss",
        "pixel_cnn_loss",
        "sampled_vae_loss",
        "semi_supervised_loss",
        "tc_vae_loss",
        "vae_loss",
        "vq_vae_loss",
    ),
    "jaxvae.priors": ("GaussianMixture",),
    "jaxvae.quantizers": ("EMACodebook", "GradientCodebook", "Grouped"),
    "jaxvae.run": ("DamagedRunError", "Run", "load", "pull", "train"),
    "jaxvae.training.epoch": ("make_evaluate", "make_train_epoch"),
    "jaxvae.training.fit": ("NonFiniteError", "fit"),
    "jaxvae.training.mesh": ("data_mesh",),
    "jaxvae.training.parallel": ("jit_train_step",),
    "jaxvae.training.state": ("TrainState", "init_train_state"),
    "jaxvae.training.step": ("make_eval_step", "make_train_step"),
}
_HOME_OF = {name: home for home, names in HOMES.items() for name in names}

__all__ = sorted({*ROOMS, *_HOME_OF} - {*NEED_EXTRAS, *HOMES["jaxvae.run"]})


def __getattr__(name: str) -> Any:
    if name not in ROOMS and name not in _HOME_OF:
        raise AttributeError(f"module 'jaxvae' has no attribute {name!r}")
    home = f"jaxvae.{name}" if name in ROOMS else _HOME_OF[name]
    # The outer before what is in it: threads that import a part and its whole at once find them half made.
    for module in ("jax", ".".join(home.split(".")[:2]), home):
        found = importlib.import_module(module)
    return found if name in ROOMS else getattr(found, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *ROOMS, *_HOME_OF})
