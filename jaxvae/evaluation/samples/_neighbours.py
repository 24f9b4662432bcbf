"""Quality and variety apart, from who is whose nearest neighbour; and whom a sample was copied from."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxvae._checks import at_least
from jaxvae._host import host_array, host_reals
from jaxvae.evaluation.samples._features import (
    TABLE,
    check_neighbours,
    check_pair,
    distances,
    radii,
)


class PrecisionRecall(NamedTuple):
    """Quality and variety of samples, each in [0, 1].

    Attributes:
      precision: the share of samples that lie among the data.
      recall: the share of the data that lies among the samples.
    """

    precision: float
    recall: float


class DensityCoverage(NamedTuple):
    """Quality and variety of samples; both are 1 for a set beside itself.

    Attributes:
      density: how many neighbourhoods of data a sample lies in, on average, over k: 0 and more, about 1 for draws from
        the data's own distribution.
      coverage: the share of the data whose neighbourhood holds a sample.
    """

    density: float
    coverage: float


def precision_recall(data: ArrayLike, samples: ArrayLike, *, k: int = 3) -> PrecisionRecall:
    """How many samples lie within the data, and how much of the data within the samples.

    A set is taken to be the union of balls around its examples, each as far as the k-th nearest other one, its border
    included. An outlier has a large ball: `density_coverage` is what it disturbs less.

    Args:
      data: features [N, D], N above k.
      samples: features [M, D], M above k.
      k: of the neighbours.

    Raises:
      TypeError: masked arrays, no real numbers, or a k that is no integer.
      ValueError: wrong shapes, values that are not finite, or a k that is not below N and M.

    References:
      Kynkäänniemi, Karras, Laine, Lehtinen and Aila, Improved Precision and Recall Metric for Assessing Generative
      Models, 2019, there with k = 3 and N = M = 50,000.
    """
    real, drawn = _pair(data, samples)
    check_neighbours(k, data=len(real), samples=len(drawn))
    of_real, of_drawn = radii(real, k), radii(drawn, k)
    within = 0
    reached = np.zeros(len(real), bool)
    for block, squared, slack in distances(drawn, real):
        within += int((squared <= of_real + slack).any(axis=1).sum())
        reached |= (squared <= of_drawn[block, None] + slack).any(axis=0)
    return PrecisionRecall(within / len(drawn), float(reached.mean()))


def density_coverage(data: ArrayLike, samples: ArrayLike, *, k: int = 5) -> DensityCoverage:
    r"""How densely samples lie among the data, and how much of the data has a sample nearby.

    .. math:: \frac{1}{k M} \sum_{j, i} \mathbb{1}\left[|y_j - x_i| < r_i\right], \quad
              \frac1N \sum_i \mathbb{1}\left[\min_j |y_j - x_i| < r_i\right]

    with rᵢ the distance of xᵢ to its k-th nearest other example. Of two sets of one distribution the expectations are
    1 and 1 - ∏ᵢ (N - i) / (M + N - i), i = 1 .. k, whatever that distribution is: 1 - 2⁻ᵏ for large N = M. The balls
    are open, so examples that the data has more than k times have none.

    Args:
      data: features [N, D], N above k.
      samples: features [M, D].
      k: of the neighbours.

    Raises:
      TypeError: masked arrays, no real numbers, or a k that is no integer.
      ValueError: wrong shapes, values that are not finite, or a k that is not below N.

    References:
      Naeem, Oh, Uh, Choi and Yoo, Reliable Fidelity and Diversity Metrics for Generative Models, 2020.
    """
    real, drawn = _pair(data, samples)
    check_neighbours(k, data=len(real))
    of_real = radii(real, k)
    inside = 0
    covered = np.zeros(len(real), bool)
    for _, squared, slack in distances(drawn, real):
        near = squared < of_real - slack
        inside += int(near.sum())
        covered |= near.any(axis=0)
    return DensityCoverage(inside / (k * len(drawn)), float(covered.mean()))


def nearest_neighbors(data: ArrayLike, samples: ArrayLike, *, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """The k examples of the data that are nearest to each sample, nearest first: was it learned by heart?

    Pixels or features; of equally near ones the first in the data comes first. Blocks of both sets are compared, so the
    memory does not grow with N · M, nor with N.

    Args:
      data: [N, ...], such as the training images.
      samples: [M, ...], examples of the same shape.
      k: how many.

    Returns:
      Their indices [M, k] and their distances [M, k], the root of the sum of squared differences.

    Raises:
      TypeError: masked arrays, no real numbers, or a k that is no integer.
      ValueError: sets that are empty or of different shapes, values that are not finite, or a k above N.
    """
    known, drawn = host_array(data, "data"), host_array(samples, "samples")
    if min(known.ndim, drawn.ndim) < 2 or known.shape[1:] != drawn.shape[1:] or not known.size or not drawn.size:
        raise ValueError(
            f"data and samples must be [N, ...] and [M, ...] of one shape, got {known.shape} and {drawn.shape}"
        )
    at_least(1, k=k)
    if k > len(known):
        raise ValueError(f"k must be at most the {len(known)} examples of data, got {k}")
    indices = np.empty((len(drawn), k), np.int64)
    squared = np.empty((len(drawn), k))
    for rows, some in _blocks(drawn, "samples"):
        best: list[list[tuple[float, int]]] = [[] for _ in some]
        for columns, others in _blocks(known, "data"):
            for row, found in enumerate(_nearest(some, others, k)):
                candidates = best[row] + [(distance, columns.start + i) for distance, i in found]
                best[row] = sorted(candidates)[:k]
        indices[rows] = [[i for _, i in found] for found in best]
        squared[rows] = [[distance for distance, _ in found] for found in best]
    return indices, np.sqrt(squared)


def _pair(data: ArrayLike, samples: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Both less the mean of the data, around which rounding does least."""
    real, drawn = check_pair(data, samples, 1)
    centre = real.mean(axis=0)
    return real - centre, drawn - centre


def _blocks(examples: np.ndarray, name: str) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows of examples [N, ...] in float64 [R, D], so many that neither they nor their distances are too large."""
    rows = max(1, min(int(TABLE**0.5), TABLE // examples[0].size))
    for start in range(0, len(examples), rows):
        some = host_reals(examples[start : start + rows], name)
        flat = some.reshape(len(some), -1)
        finite = np.isfinite(flat).all(axis=1)
        if not finite.all():
            raise ValueError(f"{name} must be finite: example {start + int(finite.argmin())} is not")
        yield slice(start, start + len(some)), flat


def _nearest(a: np.ndarray, b: np.ndarray, k: int) -> Iterator[list[tuple[float, int]]]:
    """Of each row of a [R, D] the k nearest rows of b [C, D], or all of fewer: squared distances and indices."""
    for block, squared, slack in distances(a, b):
        rows = a[block]
        for row, distance, doubt in zip(rows, squared, slack, strict=True):
            reach = np.partition(distance, k - 1)[k - 1] if k < len(b) else np.inf
            near = np.flatnonzero(distance <= reach + 2 * doubt)
            exact = np.square(b[near] - row).sum(axis=1)  # without the rounding of the table
            order = np.lexsort((near, exact))[:k]
            yield list(zip(exact[order].tolist(), near[order].tolist(), strict=True))
