"""Sprites: procedural images with known factors, in the spirit of dSprites (Matthey et al., 2017).

A white square, ellipse or heart on black, 64×64, in every combination of 3 shapes, 6 scales, 40 orientations, 32
columns and 32 rows: 737,280 images, none of which is stored. The factors of an image follow from its index and its
pixels from its factors, by pure functions for use inside a compiled step. Orientations are 40 even steps of the full
turn; those of a square repeat every quarter, those of an ellipse every half.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae._checks import integers
from jaxvae.data.dataset import Dataset
from jaxvae.data.domain import Domain
from jaxvae.types import Array, Batch, PRNGKey

FACTORS = {"shape": 3, "scale": 6, "orientation": 40, "x": 32, "y": 32}  # as the index counts: y fastest
SHAPES = ("square", "ellipse", "heart")
NUM_IMAGES = math.prod(FACTORS.values())
SIZE = 64
PATCH = 28  # pixels that hold any sprite in any orientation, centred between the middle four
SUPERSAMPLING = 4  # points across a pixel
FIRST = 3  # the row and column of the image where the patch of x = y = 0 begins: its centre is at 17
SMALLEST = 0.5  # the first scale; the last is 1


def load_sprites(split: str) -> Dataset:
    """All of them, as `jaxvae.data.load` gives them: x is what an image is drawn from, its factors [N, 5] uint8.

    Raises:
      ValueError: another split than "train".
    """
    if split != "train":
        raise ValueError(f"'sprites' has no split {split!r}; it has train")
    factors = factors_at(np.arange(NUM_IMAGES))
    arrays = {"x": factors.astype(np.uint8), "factors": factors}
    return Dataset("sprites", arrays, prepare, Domain("levels", 2), tuple(FACTORS))


def factors_at(index: np.ndarray) -> np.ndarray:
    """Factors [..., 5] int32 of the images at `index` [...], in the order of `FACTORS`.

    >>> factors_at(np.array([0, 31, 32, NUM_IMAGES - 1]))
    array([[ 0,  0,  0,  0,  0],
           [ 0,  0,  0,  0, 31],
           [ 0,  0,  0,  1,  0],
           [ 2,  5, 39, 31, 31]], dtype=int32)
    """
    return np.stack(np.unravel_index(index, tuple(FACTORS.values())), axis=-1).astype(np.int32)


def render(factors: Array) -> Array:
    """Images [B, 64, 64, 1] float32, zeros and ones, of integer factors [B, 5].

    A pixel is white where at least half of it is covered. Factors outside their range are not checked.

    Raises:
      TypeError: factors that are not integers.
    """
    return jax.vmap(_render)(integers(factors, "factors", "[B, 5]"))


def prepare(batch: Batch, *, key: PRNGKey) -> Batch:
    """Draw x from its factors [B, 5]: the `prepare` of `load_sprites`."""
    del key
    return batch | {"x": render(batch["x"])}


def _render(factors: Array) -> Array:
    return place(patch(factors[:3]), factors[3:])


def patch(factors: Array) -> Array:
    """A sprite of shape, scale and orientation [3] in the middle of its own little image, [28, 28] float32."""
    shape, scale, orientation = factors
    angle = 2 * math.pi / FACTORS["orientation"] * orientation
    size = SMALLEST + (1 - SMALLEST) / (FACTORS["scale"] - 1) * scale

    points = (jnp.arange(PATCH * SUPERSAMPLING) + 0.5) / SUPERSAMPLING - PATCH / 2
    right, up = (points / size)[None, :], (-points / size)[:, None]
    # The sprite's own axes, turned anticlockwise by the angle.
    u = jnp.cos(angle) * right + jnp.sin(angle) * up
    v = jnp.cos(angle) * up - jnp.sin(angle) * right
    square = jnp.maximum(jnp.abs(u), jnp.abs(v)) <= 10
    ellipse = (u / 14) ** 2 + (v / 7) ** 2 <= 1
    a, b = u / 10, v / 10 + 0.1
    heart = (a**2 + b**2 - 1) ** 3 <= a**2 * b**3
    inside = jnp.where(shape == 0, square, jnp.where(shape == 1, ellipse, heart))
    covered = inside.reshape(PATCH, SUPERSAMPLING, PATCH, SUPERSAMPLING).mean(axis=(1, 3))
    return (covered >= 0.5).astype(jnp.float32)


def place(patch: Array, position: Array) -> Array:
    """An image [64, 64, 1] with the patch at a position (x, y)."""
    # A slice of a wide black frame puts the patch where it belongs: gathers and scatters are slower on CPU.
    x, y = position
    low = FIRST + FACTORS["x"] - 1
    frame = jnp.pad(patch, (low, SIZE - FIRST - PATCH))
    return jax.lax.dynamic_slice(frame, (low - FIRST - y, low - FIRST - x), (SIZE, SIZE))[..., None]
