"""Pictures of a run: arrays in, files out, and two GIFs (matplotlib).

Images are [..., H, W, C] with C = 1 or 3, drawn on the fixed scale [0, 1], each pixel a whole number of the file's
pixels. What a model made is its likelihood's mean: a Gaussian's may lie beyond [0, 1], and there the nearer end is
drawn. Images of the data must lie in [0, 1]. Latents are numbered from 1: z₁, z₂, ...

The ending of `path` decides the format: .png, exact to the pixel, or .svg and .pdf, whose text and lines are vectors.

Every function makes the folders on the way to `path`, replaces the file there in one step and returns its `Path`. It
raises `ValueError` for a wrong shape and for values that no picture can show (not finite, or as far from [0, 1] as
logits and values of 0 .. 255 are), `TypeError` for masked arrays, and `ImportError` where matplotlib is missing.
"""

from jaxvae.figures._charts import (
    factor_information,
    frontier,
    group_rates,
    kl_bars,
    learning_curves,
    metrics_by_beta,
    probe_accuracy,
    rate_distortion,
)
from jaxvae.figures._codebooks import code_usage, codebook_health, codec_curves, index_maps
from jaxvae.figures._page import latent_name
from jaxvae.figures._pictures import (
    captioned,
    completions,
    image_grid,
    interpolation,
    labelled_rows,
    reconstructions,
    traversal_gif,
    traversals,
)
from jaxvae.figures._plane import Panel, code_grid, latent_scatter, manifold, prior_grid, side_by_side
from jaxvae.figures._signals import spectrograms, video_frames, video_gif

__all__ = [
    "Panel",
    "captioned",
    "code_grid",
    "code_usage",
    "codebook_health",
    "codec_curves",
    "completions",
    "factor_information",
    "frontier",
    "group_rates",
    "image_grid",
    "index_maps",
    "interpolation",
    "kl_bars",
    "labelled_rows",
    "latent_name",
    "latent_scatter",
    "learning_curves",
    "manifold",
    "metrics_by_beta",
    "prior_grid",
    "probe_accuracy",
    "rate_distortion",
    "reconstructions",
    "side_by_side",
    "spectrograms",
    "traversal_gif",
    "traversals",
    "video_frames",
    "video_gif",
]
