"""What samples show: classes as a classifier reads them, modes where these are known."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxvae._checks import at_least
from jaxvae._host import host_reals
from jaxvae.evaluation.samples._features import Estimate, check_features


class ClassBalance(NamedTuple):
    """Which classes samples are of.

    Attributes:
      share: [K], of samples by the class that the classifier reads.
      kl: KL(share || expected) in nats: 0 where they are as expected, log K where all are of one of K classes that
        should be equal.
    """

    share: np.ndarray
    kl: float


class ModeCoverage(NamedTuple):
    """Which modes of a known mixture samples are of.

    Attributes:
      covered: how many of the modes have samples enough.
      good: the share of samples that are of any mode, and not between them.
      share: [K], of those by mode; zeros where there are none.
      kl: KL(share || expected) in nats; infinite where no sample is good.
    """

    covered: int
    good: float
    share: np.ndarray
    kl: float


def class_balance(logits: ArrayLike, expected: ArrayLike | None = None) -> ClassBalance:
    r"""The classes that a classifier reads in samples, beside those that there should be.

    .. math:: \sum_k s_k \log \frac{s_k}{e_k}

    Of M fair samples of K classes the divergence is about (K - 1) / (2 M), not 0.

    Args:
      logits: [M, K], of the classifier; a tie is read as the first.
      expected: [K] shares of the classes, such as those of the data; equal ones unless given.

    Raises:
      TypeError: masked arrays, or no real numbers.
      ValueError: wrong shapes, values that are not finite, or expected shares that are not positive and do not add up
        to one.

    >>> class_balance([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 3.0]])
    ClassBalance(share=array([0.5, 0.5]), kl=0.0)
    """
    read = check_features(logits, "logits", 1)
    share = np.bincount(read.argmax(axis=1), minlength=read.shape[1]) / len(read)
    return ClassBalance(share, _divergence(share, _expected(expected, len(share))))


def read_rate(logits: ArrayLike, *, sure: float = 0.9) -> Estimate:
    """The share of samples that a classifier reads with a probability above `sure`, whichever class it is.

    Args:
      logits: [M, K], of the classifier.
      sure: a probability; below 1/K every sample is read.

    Returns:
      The share, and its standard error over draws of the samples.

    Raises:
      TypeError: masked arrays, or no real numbers.
      ValueError: wrong shapes, values that are not finite, or a `sure` outside [0, 1).

    >>> read_rate([[5.0, 0.0], [0.1, 0.0]]).value
    0.5
    """
    read = check_features(logits, "logits", 1)
    if not 0 <= sure < 1:
        raise ValueError(f"sure must lie in [0, 1), got {sure}")
    probability = 1 / np.exp(read - read.max(axis=1, keepdims=True)).sum(axis=1)  # the largest one
    share = float((probability > sure).mean())
    return Estimate(share, float(np.sqrt(share * (1 - share) / len(read))))


def mode_coverage(
    samples: ArrayLike,
    centres: ArrayLike,
    scale: float | ArrayLike,
    *,
    within: float = 3.0,
    min_count: int = 1,
    expected: ArrayLike | None = None,
) -> ModeCoverage:
    """Which modes of a mixture samples are of: each of the nearest centre's, if it is near enough.

    Args:
      samples: [M, D].
      centres: [K, D], of the modes.
      scale: of the modes, or [K], of each: the standard deviation along an axis.
      within: how many of them a good sample may be away. Of draws of an isotropic mode in two dimensions, 1 - exp(-9/2)
        are within 3.
      min_count: how many good samples cover a mode.
      expected: [K] shares of the modes; equal ones unless given.

    Raises:
      TypeError: masked arrays, no real numbers, or a `min_count` that is no integer.
      ValueError: wrong shapes, values that are not finite, or a scale that is not positive.

    References:
      Srivastava et al., VEEGAN: Reducing Mode Collapse in GANs using Implicit Variational Learning, 2017, for rings and
      grids of Gaussians and "within three standard deviations".
    """
    drawn, modes = check_features(samples, "samples", 1), check_features(centres, "centres", 1)
    if drawn.shape[1] != modes.shape[1]:
        raise ValueError(f"samples and centres must be [M, D] and [K, D], got {drawn.shape} and {modes.shape}")
    at_least(1, min_count=min_count)
    sizes = host_reals(scale, "scale")
    if sizes.shape not in ((), modes.shape[:1]) or not (np.isfinite(sizes) & (sizes > 0)).all():
        raise ValueError(f"scale must be positive, one or [{len(modes)}], got {scale!r}")
    if not within > 0:
        raise ValueError(f"within must be a positive number, got {within}")
    shares = _expected(expected, len(modes))
    distance = np.stack([np.linalg.norm(drawn - centre, axis=1) for centre in modes], axis=1)
    nearest = distance.argmin(axis=1)
    good = distance[np.arange(len(drawn)), nearest] <= within * np.broadcast_to(sizes, len(modes))[nearest]
    counts = np.bincount(nearest[good], minlength=len(modes))
    share = counts / max(1, counts.sum())
    kl = _divergence(share, shares) if good.any() else float("inf")
    return ModeCoverage(int((counts >= min_count).sum()), float(good.mean()), share, kl)


def _expected(expected: ArrayLike | None, count: int) -> np.ndarray:
    """Shares of `count` classes or modes that add up to one."""
    if expected is None:
        return np.full(count, 1 / count)
    shares = host_reals(expected, "expected")
    if shares.shape != (count,) or not (shares > 0).all() or not abs(shares.sum() - 1) < 1e-6:
        raise ValueError(f"expected must be [{count}] positive shares that add up to one, got {expected}")
    return shares


def _divergence(share: np.ndarray, expected: np.ndarray) -> float:
    """KL(share || expected), nats."""
    there = share > 0  # 0 log 0 = 0
    return float((share[there] * np.log(share[there] / expected[there])).sum())
