"""Pictures with a drawing of each: what a model of one picture given another learns from (pix2pix, Isola et al., 2017).

The drawing is the condition and is made in the compiled step, so that no pairs are stored: `outlines` of shapes of
zeros and ones, such as the sprites, and `edges` of grey pictures, such as MNIST.
"""

from collections.abc import Callable
from dataclasses import dataclass

import jax.numpy as jnp

from jaxvae.data.dataset import Dataset
from jaxvae.types import Array, Batch, Prepare, PRNGKey

EDGE = 0.5  # of the range of grey values: a smaller step is none


def paired(dataset: Dataset, drawing: Callable[[Array], Array]) -> Dataset:
    """The same pictures, each with a drawing of it as its condition.

    Args:
      dataset: pictures [N, H, W, C].
      drawing: x [B, H, W, C] in [0, 1], as the set's `prepare` makes it -> a condition, such as `outlines` or `edges`.

    Raises:
      ValueError: the set holds no pictures, or pictures that are not in [0, 1] where `outlines` or `edges` are to be
        drawn, or it has conditions already.
    """
    if len(dataset.shape) != 3:
        raise ValueError(f"{dataset.name!r} must hold pictures [N, H, W, C], one x of it is {dataset.shape}")
    if drawing in (outlines, edges) and dataset.domain.kind not in ("levels", "unit interval"):
        raise ValueError(
            f"{dataset.name!r} is of domain {dataset.domain.kind!r}, and outlines and edges are of values in [0, 1]: "
            "pass a drawing of yours"
        )
    if "condition" in dataset.arrays:
        raise ValueError(f"{dataset.name!r} has conditions already, which a drawing would replace")
    return dataset.with_prepare(make_prepare(dataset.prepare, drawing))


def make_prepare(prepare: Prepare, drawing: Callable[[Array], Array]) -> Prepare:
    """Return `prepare`, followed by "condition" = `drawing` of x."""
    return _WithDrawing(prepare, drawing)


def outlines(x: Array) -> Array:
    """The pixels of shapes that touch the outside, above, below or beside; the same shape, zeros and ones.

    Args:
      x: [B, H, W, C] in [0, 1], where from one half on a pixel belongs to a shape; beyond the picture none does.

    Raises:
      TypeError: x is not floating.
      ValueError: x is not [B, H, W, C].
    """
    shape = _pictures(x) >= 0.5
    inner = jnp.all(jnp.stack(_cross(shape, False)), axis=0)
    return (shape & ~inner).astype(x.dtype)


def edges(x: Array) -> Array:
    """The pixels at which a grey picture has a step of half its range or more; the same shape, zeros and ones.

    The step is the largest less the smallest of a pixel and its four neighbours: the morphological gradient. Both sides
    of an edge are drawn, and nothing is where all is one grey.

    Args:
      x: [B, H, W, C] in [0, 1]; the picture goes on beyond its borders as it is there.

    Raises:
      TypeError: x is not floating.
      ValueError: x is not [B, H, W, C].

    References:
      Rivest, Soille and Beucher, Morphological Gradients, 1993.
    """
    around = jnp.stack(_cross(_pictures(x), None))
    return (around.max(axis=0) - around.min(axis=0) >= EDGE).astype(x.dtype)


@dataclass(frozen=True)
class _WithDrawing:
    prepare: Prepare
    drawing: Callable[[Array], Array]

    def __call__(self, batch: Batch, *, key: PRNGKey) -> Batch:
        batch = self.prepare(batch, key=key)
        return batch | {"condition": self.drawing(batch["x"])}


def _cross(x: Array, beyond: bool | None) -> list[Array]:
    """Each pixel and its neighbours above, below, left and right; `beyond` the picture, or the border's own value."""
    ends = ((0, 0), (1, 1), (1, 1), (0, 0))
    wide = jnp.pad(x, ends, mode="edge") if beyond is None else jnp.pad(x, ends, constant_values=beyond)
    height, width = x.shape[1:3]
    places = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
    return [wide[:, down : down + height, right : right + width] for down, right in places]


def _pictures(x: Array) -> Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"x must be floating, in [0, 1], got {x.dtype}; scale it first (jaxvae.data.make_prepare)")
    if x.ndim != 4:
        raise ValueError(f"x must be pictures [B, H, W, C], got {x.shape}")
    return x
