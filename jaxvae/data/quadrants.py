"""Completing images: some quadrants are given, the pixels of the others are to be predicted (Sohn, Lee and Yan, 2015).

Of 1, 2 or 3 visible quadrants the first is the bottom left, the second the top left, the third the top right.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np

from jaxvae.types import Array, Batch, Prepare, PRNGKey


def pixels(shape: Sequence[int], visible: int) -> tuple[np.ndarray, np.ndarray]:
    """Which of the H · W · C values of an image are visible [V] and which are hidden [M], in reading order.

    >>> pixels((2, 4, 1), visible=2)
    (array([0, 1, 4, 5]), array([2, 3, 6, 7]))

    Args:
      shape: of an image, (H, W, C).
      visible: how many quadrants are given.

    Raises:
      ValueError: a shape that is not (H, W, C), or other than 1, 2 or 3 quadrants.
    """
    if len(shape) != 3:
        raise ValueError(f"x must be images (H, W, C), got {tuple(shape)}")
    if visible not in (1, 2, 3):
        raise ValueError(f"visible must be 1, 2 or 3 quadrants, got {visible}")
    bottom, right = shape[0] // 2, shape[1] // 2
    quadrants = [np.s_[bottom:, :right], np.s_[:bottom, :right], np.s_[:bottom, right:]]
    is_visible = np.zeros(shape, bool)
    for quadrant in quadrants[:visible]:
        is_visible[quadrant] = True
    return np.flatnonzero(is_visible), np.flatnonzero(~is_visible)


def split(x: Array, visible: int) -> tuple[Array, Array]:
    """Images [B, H, W, C] -> their visible pixels, the condition [B, V], and the hidden ones, the target [B, M]."""
    seen, hidden = pixels(x.shape[1:], visible)
    flat = x.reshape(len(x), -1)
    return flat[:, seen], flat[:, hidden]


def join(condition: Array, target: Array, shape: Sequence[int], visible: int) -> Array:
    """The inverse of `split`: visible pixels [B, V] and hidden ones [B, M] -> images [B, H, W, C]."""
    order = np.argsort(np.concatenate(pixels(shape, visible)))
    return jnp.concatenate([condition, target], axis=1)[:, order].reshape(-1, *shape)


def make_prepare(prepare: Prepare, visible: int) -> Prepare:
    """Return `prepare`, followed by `split`: "condition" becomes the visible pixels, "x" the hidden ones."""
    return _AndSplit(prepare, visible)


@dataclass(frozen=True)
class _AndSplit:
    prepare: Prepare
    visible: int

    def __call__(self, batch: Batch, *, key: PRNGKey) -> Batch:
        batch = self.prepare(batch, key=key)
        condition, target = split(batch["x"], self.visible)
        return batch | {"condition": condition, "x": target}
