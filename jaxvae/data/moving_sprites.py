"""Moving sprites: procedural video with known factors.

A sprite of `jaxvae.data.sprites` that moves by the same columns and rows in every frame and comes back where it reaches
the border. As there, what is stored are factors, and the pixels follow from them inside a compiled step.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae._checks import at_least, integers
from jaxvae.data import sprites
from jaxvae.data.dataset import Dataset
from jaxvae.data.domain import Domain
from jaxvae.keys import check_seed
from jaxvae.types import Array, Batch, PRNGKey

VELOCITIES = (-3, -2, -1, 1, 2, 3)  # columns or rows a frame, of the 32 in which a sprite may be
FACTORS = {**sprites.FACTORS, "velocity_x": len(VELOCITIES), "velocity_y": len(VELOCITIES)}
FRAMES = 16
SIZE = 32
SIZES = (64, 32, 16)
SPLITS = {"train": (3000, 0), "test": (300, 1)}  # how many, from which seed


def load_moving_sprites(split: str) -> Dataset:
    """What `jaxvae.data.load` gives: `make`, 3,000 videos of seed 0 to "train", 300 of seed 1 to "test".

    Raises:
      ValueError: no such split.
    """
    if split not in SPLITS:
        raise ValueError(f"'moving_sprites' has no split {split!r}; it has {', '.join(SPLITS)}")
    count, seed = SPLITS[split]
    return make(count, seed=seed)


def make(count: int, *, seed: int = 0, frames: int = FRAMES, size: int = SIZE) -> Dataset:
    """Videos of random factors as a `Dataset`, labelled by their shape; models see x [B, T, H, W, 1] in [0, 1].

    What is stored as x are the factors [N, 7] that each is drawn from. Video i has the shape i mod 3; its other factors
    are random, and the same however many videos there are.

    Args:
      count: N.
      seed: decides all of them.
      frames: T.
      size: H and W: 64, or 32 or 16, whose pixels are the means of 2×2 or 4×4 of those.

    Raises:
      ValueError: no videos, no frames, another size, or a seed out of range.
    """
    at_least(1, count=count, frames=frames)
    check_seed(seed)
    if size not in SIZES:
        raise ValueError(f"size must be one of {', '.join(map(str, SIZES))}, got {size}")
    factors = np.empty((count, len(FACTORS)), np.int32)
    for i in range(count):
        factors[i] = np.random.default_rng([seed, i]).integers(list(FACTORS.values()))
    factors[:, 0] = np.arange(count) % len(sprites.SHAPES)
    arrays: dict[str, np.ndarray] = {"x": factors.astype(np.uint8), "label": factors[:, 0], "factors": factors}
    domain, names = Domain("levels", (sprites.SIZE // size) ** 2 + 1), tuple(FACTORS)
    return Dataset("moving_sprites", arrays, _Draw(frames, size), domain, names, label_names=sprites.SHAPES)


def positions(factors: Array, frames: int) -> Array:
    """The column and the row of the sprite in each frame, [B, T, 2] int32, of integer factors [B, 7].

    Both move by their velocity in every frame and turn round at 0 and 31, where a step that goes beyond is reflected.

    Raises:
      TypeError: factors that are not integers.
    """
    factors = integers(factors, "factors", "[B, 7]").astype(jnp.int32)
    last = sprites.FACTORS["x"] - 1  # and that of y
    velocity = jnp.array(VELOCITIES)[factors[:, None, 5:]]
    there_and_back = (factors[:, None, 3:5] + velocity * jnp.arange(frames)[None, :, None]) % (2 * last)
    return jnp.minimum(there_and_back, 2 * last - there_and_back)


def render(factors: Array, *, frames: int = FRAMES, size: int = SIZE) -> Array:
    """Videos [B, T, H, W, 1] float32 in [0, 1] of integer factors [B, 7]. Those out of range are not checked.

    Raises:
      TypeError: factors that are not integers.
    """
    factors = integers(factors, "factors", "[B, 7]")
    places, patches = positions(factors, frames), jax.vmap(sprites.patch)(factors[:, :3])
    drawn = jax.vmap(jax.vmap(sprites.place, (None, 0)))(patches, places)
    block = sprites.SIZE // size
    return drawn.reshape(len(factors), frames, size, block, size, block, 1).mean(axis=(3, 5))


@dataclass(frozen=True)
class _Draw:
    """The `prepare` of `make`."""

    frames: int
    size: int

    def __call__(self, batch: Batch, *, key: PRNGKey) -> Batch:
        del key
        return batch | {"x": render(batch["x"], frames=self.frames, size=self.size)}
