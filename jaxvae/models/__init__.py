"""Models: thin Linen modules, one file a family."""

from jaxvae.models._schedules import CosineSchedule, LinearSchedule, log_snr_of_levels
from jaxvae.models.autoencoder import Autoencoder
from jaxvae.models.cvae import CVAE
from jaxvae.models.diffusion import Diffusion, DiffusionBound
from jaxvae.models.diffusion_prior import DiffusionPrior
from jaxvae.models.gan import GAN
from jaxvae.models.hierarchical_vae import HierarchicalVAE
from jaxvae.models.linear import linear_vae
from jaxvae.models.partial_encoder import PartialEncoder
from jaxvae.models.pixel_cnn import PixelCNN
from jaxvae.models.pixel_cnn_pp import PixelCNNPP
from jaxvae.models.pixel_rnn import PixelRNN
from jaxvae.models.pixel_vae import PixelLikelihood, pixel_vae
from jaxvae.models.semi_supervised import SemiSupervisedVAE
from jaxvae.models.table import table_vae
from jaxvae.models.top_down import TopDownVAE, merged_posterior, residual_posterior, top_down_vae
from jaxvae.models.transformer import TransformerPrior
from jaxvae.models.translator import Translator
from jaxvae.models.vae import VAE
from jaxvae.models.vq_vae import VQVAE

__all__ = [
    "CVAE",
    "GAN",
    "VAE",
    "VQVAE",
    "Autoencoder",
    "CosineSchedule",
    "Diffusion",
    "DiffusionBound",
    "DiffusionPrior",
    "HierarchicalVAE",
    "LinearSchedule",
    "PartialEncoder",
    "PixelCNN",
    "PixelCNNPP",
    "PixelLikelihood",
    "PixelRNN",
    "SemiSupervisedVAE",
    "TopDownVAE",
    "TransformerPrior",
    "Translator",
    "linear_vae",
    "log_snr_of_levels",
    "merged_posterior",
    "pixel_vae",
    "residual_posterior",
    "table_vae",
    "top_down_vae",
]
