"""Encoder and decoder bodies as thin Linen modules.

An encoder maps x [B, ...] to the parameters of a posterior, such as `(mean, log_var)`, each [B, D]; a decoder maps
latents [B, D] to those of a likelihood. Any module or function that does the same fits the models. Parameters are
float32; `dtype` is the type a network computes in (bfloat16 on accelerators); what leaves it is float32 again.

All of them can be hashed and pickled, as long as what they are given can: a `kernel_init` of yours is a function of a
module, not what `nn.initializers.orthogonal()` returns.
"""

from jaxvae.networks import _pickling as _pickling  # so that activations pickle
from jaxvae.networks.conditioning import Conditioned, LabelEmbedding, Unconditioned
from jaxvae.networks.convolutional import ConvDecoder, ConvEncoder
from jaxvae.networks.denoising import DenoisingMLP, NoiseEmbedding
from jaxvae.networks.discriminators import ConvDiscriminator, MLPDiscriminator, PatchDiscriminator
from jaxvae.networks.mlp import CategoricalEncoder, GaussianHead, MLPDecoder, MLPEncoder
from jaxvae.networks.residual import ResidualDecoder, ResidualEncoder
from jaxvae.networks.scales import (
    PixelScale,
    SharedScale,
    logistic_image,
    logistic_mixture_features,
    logistic_mixture_image,
    soft_bound,
)
from jaxvae.networks.style import ModulatedConv, StyleGenerator
from jaxvae.networks.tables import InUnits, TableEncoder, TableLikelihood
from jaxvae.networks.top_down import BottomUp, Rung, Stage, StateDecoder
from jaxvae.networks.unet import UNet

__all__ = [
    "BottomUp",
    "CategoricalEncoder",
    "Conditioned",
    "ConvDecoder",
    "ConvDiscriminator",
    "ConvEncoder",
    "DenoisingMLP",
    "GaussianHead",
    "InUnits",
    "LabelEmbedding",
    "MLPDecoder",
    "MLPDiscriminator",
    "MLPEncoder",
    "ModulatedConv",
    "NoiseEmbedding",
    "PatchDiscriminator",
    "PixelScale",
    "ResidualDecoder",
    "ResidualEncoder",
    "Rung",
    "SharedScale",
    "Stage",
    "StateDecoder",
    "StyleGenerator",
    "TableEncoder",
    "TableLikelihood",
    "UNet",
    "Unconditioned",
    "logistic_image",
    "logistic_mixture_features",
    "logistic_mixture_image",
    "soft_bound",
]
