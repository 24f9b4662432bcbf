"""Pictures of a run: arrays in, PNG files out, and one GIF (matplotlib).

Images are the likelihood's mean in [0, 1], [..., H, W, C] with C = 1 or 3, drawn on that fixed scale, each
pixel a whole number of the file's pixels. Every function makes the folders on the way to `path`, replaces the
file there in one step and returns its `Path`. It raises `ValueError` for a wrong shape and for values that no
picture can show (not finite, or outside [0, 1]), and `ImportError` where matplotlib is missing.
"""

from jaxvae.figures.charts import (
    QUANTITIES,
    SPLITS,
    factor_information,
    frontier,
    kl_bars,
    learning_curves,
    metrics_by_beta,
    rate_distortion,
)
from jaxvae.figures.codebooks import code_usage, codebook_health, index_maps
from jaxvae.figures.page import CELL, COLORS, DPI, FAINT, INK, LINE, MARGIN, SEPARATOR, SPACE, WIDTH
from jaxvae.figures.pictures import completions, image_grid, interpolation, reconstructions, traversal_gif, traversals
from jaxvae.figures.plane import Panel, code_grid, latent_scatter, manifold, prior_grid, side_by_side

__all__ = [
    "CELL",
    "COLORS",
    "DPI",
    "FAINT",
    "INK",
    "LINE",
    "MARGIN",
    "QUANTITIES",
    "SEPARATOR",
    "SPACE",
    "SPLITS",
    "WIDTH",
    "Panel",
    "code_grid",
    "code_usage",
    "codebook_health",
    "completions",
    "factor_information",
    "frontier",
    "image_grid",
    "index_maps",
    "interpolation",
    "kl_bars",
    "latent_scatter",
    "learning_curves",
    "manifold",
    "metrics_by_beta",
    "prior_grid",
    "rate_distortion",
    "reconstructions",
    "side_by_side",
    "traversal_gif",
    "traversals",
]
