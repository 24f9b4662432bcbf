"""Sets of features, their distances in blocks, and what an estimate's spread is."""

from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxvae._checks import at_least
from jaxvae._host import host_array, host_reals

TABLE = 2_000_000  # entries of the tables [rows, N] that are held at once: sets the memory and nothing else
SLACK = 1e-12  # of |x|² + |y|²: what rounding may do to a squared distance


class Estimate(NamedTuple):
    """A figure and its standard error over draws."""

    value: float
    standard_error: float


def jackknife(
    measure: Callable[[np.ndarray], Mapping[str, float]], samples: ArrayLike, *, groups: int = 10
) -> dict[str, Estimate]:
    r"""What `measure` says of all samples, and how far it would move with another draw of as many.

    .. math:: \mathrm{SE}^2 = \frac{G - 1}{G} \sum_g \left(\theta_{(g)} - \bar\theta\right)^2

    with θ₍g₎ of all samples but group g, which is every G-th of them. It is the spread over draws of the samples alone:
    what they are compared with stays as it is, and so does the bias that a figure has at this number of samples.

    Args:
      measure: samples [M, ...] -> numbers under their names.
      samples: [M, ...], independent draws; M of 2 G or more.
      groups: G.

    Raises:
      TypeError: masked samples, or a number of groups that is no integer.
      ValueError: fewer than two groups, or fewer than two samples for each.

    References:
      Efron and Stein, The Jackknife Estimate of Variance, 1981.

    >>> jackknife(lambda x: {"mean": x.mean()}, np.arange(10.0), groups=5)["mean"]
    Estimate(value=4.5, standard_error=0.707...)
    """
    at_least(2, groups=groups)
    drawn = host_array(samples, "samples")
    if drawn.ndim == 0 or len(drawn) < 2 * groups:
        raise ValueError(f"samples must be at least {2 * groups}, two for each of {groups} groups, got {drawn.shape}")
    group = np.arange(len(drawn)) % groups
    without = [measure(drawn[group != g]) for g in range(groups)]
    found = {}
    for name, value in measure(drawn).items():
        parts = np.array([part[name] for part in without], np.float64)
        variance = (groups - 1) / groups * np.square(parts - parts.mean()).sum()
        found[name] = Estimate(float(value), float(np.sqrt(variance)))
    return found


def check_pair(data: ArrayLike, samples: ArrayLike, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Both as float64 [N, D] and [M, D]; raise unless each has `least` examples or more."""
    both = check_features(data, "data", least), check_features(samples, "samples", least)
    if both[0].shape[1] != both[1].shape[1]:
        raise ValueError(f"data and samples must have the same features, got {both[0].shape} and {both[1].shape}")
    return both


def check_features(values: ArrayLike, name: str, least: int) -> np.ndarray:
    """As float64 [N, D], finite, with N of `least` or more."""
    features = host_reals(values, name)
    if features.ndim != 2 or not features.shape[1]:
        raise ValueError(f"{name} must be features [N, D], got {features.shape}")
    if len(features) < least:
        raise ValueError(f"{name} must have at least {least} examples, got {features.shape}")
    finite = np.isfinite(features)
    if not finite.all():
        row, column = map(int, np.argwhere(~finite)[0])
        raise ValueError(f"{name} must be finite: example {row} has {features[row, column]} as feature {column}")
    return features


def check_neighbours(k: int, **counts: int) -> None:
    """Raise unless k is below the number of examples of each set."""
    at_least(1, k=k)
    for name, count in counts.items():
        if k >= count:
            raise ValueError(f"k must be below the {count} examples of {name}, got {k}")


def distances(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, np.ndarray, np.ndarray]]:
    """Squared distances of rows of a [N, D] to all of b [M, D], and what rounding may have done to them.

    Yields, from the first block of rows to the last: which, their distances [R, M], their slack [R, M].
    """
    lengths_a, lengths_b = (np.einsum("nd,nd->n", each, each) for each in (a, b))
    rows = max(1, TABLE // len(b))
    for start in range(0, len(a), rows):
        block = slice(start, start + rows)
        lengths = lengths_a[block, None] + lengths_b
        squared = lengths - 2 * (a[block] @ b.T)
        yield block, np.maximum(squared, 0), SLACK * lengths


def radii(features: np.ndarray, k: int) -> np.ndarray:
    """The squared distance of each example [N, D] to its k-th nearest other one, [N]."""
    squared_radius = np.empty(len(features))
    for block, squared, _ in distances(features, features):
        own = np.arange(len(features))[block]
        squared[np.arange(len(own)), own] = np.inf
        squared_radius[block] = np.partition(squared, k - 1, axis=1)[:, k - 1]
    return squared_radius
