"""Completing images: some quadrants are given, the pixels of the others are to be predicted (Sohn, Lee and Yan, 2015).

Of 1, 2 or 3 visible quadrants the first is the bottom left, the second the top left, the third the top right.
"""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from jaxvae.types import Array, Batch, Prepare, PRNGKey


def pixels(image_shape: Sequence[int], visible: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of the H · W · C values of an image are visible [V] and which are hidden [M], in reading order.

    >>> pixels((2, 4, 1), visible=2)
    (array([0, 1, 4, 5]), array([2, 3, 6, 7]))

    Args:
      image_shape: (H, W, C).
      visible: how many quadrants are given.

    Raises:
      ValueError: a shape that is not (H, W, C), or other than 1, 2 or 3 quadrants.
    """
    if len(image_shape) != 3:
        raise ValueError(f"image_shape must be (H, W, C), got {tuple(image_shape)}")
    if visible not in (1, 2, 3):
        raise ValueError(f"visible must be 1, 2 or 3 quadrants, got {visible}")
    bottom, right = image_shape[0] // 2, image_shape[1] // 2
    quadrants = [np.s_[bottom:, :right], np.s_[:bottom, :right], np.s_[:bottom, right:]]
    given = np.zeros(image_shape, bool)
    for quadrant in quadrants[:visible]:
        given[quadrant] = True
    return np.flatnonzero(given), np.flatnonzero(~given)


def split(image: Array, visible: int) -> tuple[Array, Array]:
    """Images [B, H, W, C] -> their visible pixels, the condition [B, V], and the hidden ones, the target [B, M]."""
    given, hidden = pixels(image.shape[1:], visible)
    flat = image.reshape(len(image), -1)
    return flat[:, given], flat[:, hidden]


def join(condition: Array, target: Array, image_shape: Sequence[int], visible: int) -> Array:
    """The inverse of `split`: visible pixels [B, V] and hidden ones [B, M] -> images [B, H, W, C]."""
    order = np.argsort(np.concatenate(pixels(image_shape, visible)))
    return jnp.concatenate([condition, target], axis=1)[:, order].reshape(-1, *image_shape)


def make_prepare(prepare: Prepare, visible: int) -> Prepare:
    """Return `prepare`, followed by `split`: "condition" becomes the visible pixels, "image" the hidden ones."""

    def prepare_and_split(batch: Batch, *, key: PRNGKey) -> Batch:
        batch = prepare(batch, key=key)
        condition, target = split(batch["image"], visible)
        return batch | {"condition": condition, "image": target}

    return prepare_and_split
