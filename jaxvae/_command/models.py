"""The model of `jaxvae train`: chosen by the data where nothing is said, with a likelihood that fits their values."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxvae import data
from jaxvae.distributions import Bernoulli, Categorical, NegativeBinomial
from jaxvae.models import VAE, VQVAE, table_vae
from jaxvae.networks import (
    ConvDecoder,
    ConvEncoder,
    MLPDecoder,
    MLPEncoder,
    PixelScale,
    ResidualDecoder,
    ResidualEncoder,
    SharedScale,
    logistic_image,
)
from jaxvae.quantizers import EMACodebook

Name = Literal["auto", "vae", "conv-vae", "vq-vae"]
MOST_CATEGORIES = 1024  # above them a softmax for each value takes more memory than most machines have
COARSE = 4  # convolutions halve an image down to about this many pixels
NUM_CODES, CODE_DIM = 512, 64  # of van den Oord et al. (2017)


class Likelihood(NamedTuple):
    """Attributes: the decoder's output -> a record, the axes that it adds to x's shape, and what it is called."""

    record: Callable[[Any], Any]
    axes: tuple[int, ...]
    name: str


def shows_pictures(dataset: data.Dataset) -> bool:
    """Whether x can be drawn: [H, W, 1 or 3] of pixels."""
    pixels = dataset.domain.kind in ("levels", "unit interval")
    return pixels and len(dataset.shape) == 3 and dataset.shape[-1] in (1, 3)


def default_name(dataset: data.Dataset) -> Name:
    """The model for data of which nothing else is known."""
    return "conv-vae" if shows_pictures(dataset) else "vae"


def make_model(
    name: Name,
    dataset: data.Dataset,
    *,
    latent_dim: int | None,
    channels: Sequence[int],
    hidden: Sequence[int],
    num_codes: int | None,
) -> tuple[Any, str]:
    """The model, and the name of its likelihood.

    Args:
      name: which; not "auto".
      dataset: what it is to be trained on.
      latent_dim: D; by the data where it is None, and of a VQ-VAE the size of a code.
      channels: of convolutions; by the data where there are none.
      hidden: widths of dense layers; (256, 256) where there are none.
      num_codes: of a VQ-VAE.

    Raises:
      ValueError: a model that cannot take such data, or an option that it has no use for.
    """
    shape, kind = dataset.shape, dataset.domain.kind
    used = {"vae": ("--hidden",), "conv-vae": ("--channels",), "vq-vae": ("--channels", "--num-codes")}[name]
    given = {"--hidden": hidden, "--channels": channels, "--num-codes": num_codes}
    if wrong := [option for option, value in given.items() if value and option not in used]:
        raise ValueError(f"{', '.join(wrong)} has no meaning for {name}, which takes {', '.join(used)}")
    if kind == "table":
        if name != "vae":
            raise ValueError(
                f"{name} is for pictures, sound or video, and {dataset.name!r} is a table: pass --model vae"
            )
        size = default_latent_dim(shape) if latent_dim is None else latent_dim
        return table_vae(dataset.domain.columns, size, tuple(hidden) or (256, 256)), "a likelihood for each column"
    ranks = {"vae": range(1, 99), "conv-vae": (3,), "vq-vae": (2, 3, 4)}[name]
    if len(shape) not in ranks:
        expected = "[N, H, W, C]" if name == "conv-vae" else "[N, ..., C] with 1 to 3 axes in between"
        raise ValueError(f"{name} is for x {expected}, got {('N', *shape)}: pass --model vae")
    if name == "vq-vae":
        if kind in ("counts", "categories"):
            raise ValueError(f"vq-vae measures squared error, which does not fit {kind}: pass --model vae")
        widths = tuple(channels) or ((64, 128) if min(shape[:-1]) >= 4 * COARSE else (128,))
        body = ResidualEncoder(CODE_DIM if latent_dim is None else latent_dim, widths)
        back = ResidualDecoder(shape[-1], widths, spatial=shape[:-1])
        return VQVAE(body, back, EMACodebook(num_codes or NUM_CODES)), "squared error"
    encoder: nn.Module
    decoder: nn.Module
    likelihood = likelihood_of(dataset)
    output, size = (*shape, *likelihood.axes), default_latent_dim(shape) if latent_dim is None else latent_dim
    if name == "conv-vae":
        widths = tuple(channels) or default_channels(shape)
        encoder, decoder = ConvEncoder(size, widths), ConvDecoder(output, widths)
    else:
        widths = tuple(hidden) or (256, 256)
        encoder, decoder = MLPEncoder(size, widths), MLPDecoder(output, widths[::-1])
    if kind == "counts":  # they reach from 0 to thousands, and a network learns where values are near 1
        encoder = nn.Sequential((jnp.log1p, encoder))
    return VAE(encoder, decoder, likelihood.record, latent_dim=size), likelihood.name


def likelihood_of(dataset: data.Dataset) -> Likelihood:
    """The likelihood whose support is the domain of x, or the reals where x is floating.

    Raises:
      ValueError: there are too many levels for a probability of each.
    """
    kind, levels = dataset.domain.kind, dataset.domain.levels
    if kind == "counts":
        return Likelihood(SharedScale(NegativeBinomial), (), "negative binomial")
    if kind == "levels" and levels == 2:
        return Likelihood(Bernoulli, (), "Bernoulli")
    if kind == "levels" and levels == data.files.LEVELS.levels:
        return Likelihood(PixelScale(logistic_image), (2,), "discretised logistic")
    if levels is not None:
        if levels > MOST_CATEGORIES:
            raise ValueError(
                f"x of {levels} levels has no likelihood here beyond {MOST_CATEGORIES}: scale it to 256 levels, or to "
                "floating values in [0, 1]"
            )
        return Likelihood(Categorical, (levels,), f"categorical over {levels} values")
    if kind == "unit interval" and np.isin(dataset.x, (0, 1)).all():
        return Likelihood(Bernoulli, (), "Bernoulli")
    return Likelihood(SharedScale(), (), "Gaussian with a learned scale")


def default_latent_dim(shape: Sequence[int]) -> int:
    """The power of two nearest to the root of the number of values, in 2 .. 128."""
    return int(np.clip(2 ** round(math.log2(math.prod(shape)) / 2), 2, 128))


def default_channels(shape: Sequence[int]) -> tuple[int, ...]:
    """32, 64, 128, 256, 256 ...: as many as halve the shorter side to about four pixels."""
    halvings = max(1, round(math.log2(max(1, min(shape[:2]) / COARSE))))
    return tuple(min(32 * 2**i, 256) for i in range(halvings))
