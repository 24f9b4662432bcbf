"""What each layer of a style-based generator decides, in one picture (Karras et al., 2019, figure 3)."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.command import file_errors
from experiments.report import as_pictures
from jaxvae import figures
from jaxvae.keys import seed_key
from jaxvae.models import GAN
from jaxvae.types import Array, PRNGKey, PyTree

COLUMNS, ROWS = 8, 3


def mix(model: GAN, first: Array, second: Array, layer: int, *, key: PRNGKey) -> Array:
    """x [B, ...] of a GAN with a `StyleGenerator`: styles of the first latents below a layer, of the second from it."""
    x = model.generator.mix(first, second, layer, key=key)  # type: ignore[attr-defined]
    return x if model.output is None else model.output(x)


@file_errors()
def save(path: Path, model: GAN, params: PyTree) -> Path:
    """Draw samples at the top and on the left, and where they meet the left one's coarse styles, the top one's fine.

    A block of rows for each layer from which on the styles are those of the top; the noise is the same everywhere.
    """
    coarse, fine = jax.random.split(seed_key(3))
    draw = partial(model.apply, params, method=lambda model, num, key: model.latent_prior().sample(num, key=key))
    left, top = draw(ROWS, coarse), draw(COLUMNS, fine)
    mixed = jax.jit(partial(model.apply, params, method=mix), static_argnums=2)
    last = model.generator.num_layers  # type: ignore[attr-defined]

    def pictures(first: Array, second: Array, layer: int) -> np.ndarray:
        noise = jnp.broadcast_to(seed_key(4), (len(first),))
        return as_pictures(mixed(first, second, layer, key=noise))

    tops, lefts = pictures(top, top, 0), pictures(left, left, last)
    blank = np.ones_like(tops[:1])
    rows = [blank, tops]
    for layer in range(1, last - 1):  # what the last layer decides alone is next to nothing
        made = pictures(left.repeat(COLUMNS, axis=0), jnp.tile(top, (ROWS, 1)), layer)
        for i in range(ROWS):
            rows += [lefts[i : i + 1], made[i * COLUMNS : (i + 1) * COLUMNS]]
    title = f"coarse styles of the left, fine of the top, from layer 1 .. {last - 2} on"
    return figures.image_grid(path, np.concatenate(rows), columns=1 + COLUMNS, title=title)
