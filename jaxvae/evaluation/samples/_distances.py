"""Distances between two sets of features: one number for quality and variety together."""

import numpy as np
from numpy.typing import ArrayLike

from jaxvae.evaluation.samples._features import TABLE, Estimate, check_pair


def frechet_distance(data: ArrayLike, samples: ArrayLike) -> float:
    r"""The squared Fréchet (2-Wasserstein) distance between Gaussians with the means and covariances of two sets.

    .. math:: |\mu_1 - \mu_2|^2 + \mathrm{tr}\left(\Sigma_1 + \Sigma_2 -
              2 \left(\Sigma_1^{1/2} \Sigma_2 \Sigma_1^{1/2}\right)^{1/2}\right)

    With the triangular factors of both, Σ = RᵀR, the last trace is the sum of the singular values of R₁R₂ᵀ, whose
    squares are the eigenvalues of the symmetric product: no covariance is inverted, so singular ones are as good as
    others. Covariances divide by N - 1. The estimate is biased upwards, by about 1/N + 1/M: compare figures of the
    same numbers of examples alone.

    Args:
      data: features [N, D], N above D.
      samples: features [M, D], M above D.

    Returns:
      The distance, in squared units of the features; what the literature on samples calls FID, there in the features
      of an Inception network, with which no other's compare.

    Raises:
      TypeError: masked arrays, or no real numbers.
      ValueError: wrong shapes, values that are not finite, or no more than D examples: their covariance says nothing of
        some directions, and the figure would be that of the number of examples.

    References:
      Dowson and Landau, The Fréchet Distance between Multivariate Normal Distributions, 1982; Heusel et al., GANs
      Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium, 2017.

    >>> frechet_distance([[0.0], [2.0]], [[3.0], [5.0]])
    9.0
    """
    first, second = check_pair(data, samples, 2)
    for name, features in (("data", first), ("samples", second)):
        count, dim = features.shape
        if count <= dim:
            raise ValueError(
                f"{name} must have more examples than features, got {features.shape}: take more, or fewer features "
                "(evaluation.principal_components)"
            )
    (mean_1, factor_1), (mean_2, factor_2) = _moments(first), _moments(second)
    overlap = np.linalg.svd(factor_1 @ factor_2.T, compute_uv=False).sum()
    traces = np.square(factor_1).sum() + np.square(factor_2).sum()
    return float(np.square(mean_1 - mean_2).sum() + max(traces - 2 * overlap, 0.0))


def kernel_distance(data: ArrayLike, samples: ArrayLike) -> Estimate:
    r"""The squared maximum mean discrepancy of two sets, without bias, under a cubic kernel.

    .. math:: \frac{\sum_{i \ne j} k(x_i, x_j)}{N (N - 1)} + \frac{\sum_{i \ne j} k(y_i, y_j)}{M (M - 1)}
              - \frac{2 \sum_{ij} k(x_i, y_j)}{N M}, \quad k(x, y) = \left(\frac{x^T y}{D} + 1\right)^3

    It compares the first three moments. Its mean is 0 where both come from one distribution, whatever the numbers of
    examples, so it may be negative. All pairs are used, not a mean over subsets.

    Args:
      data: features [N, D], N of 3 or more.
      samples: features [M, D], M of 3 or more.

    Returns:
      The estimate; its standard error is that of the delete-one jackknife over the examples of both sets.

    Raises:
      TypeError: masked arrays, or no real numbers.
      ValueError: wrong shapes, values that are not finite, or fewer than three examples.

    References:
      Bińkowski, Sutherland, Arbel and Gretton, Demystifying MMD GANs, 2018 (KID).
    """
    first, second = check_pair(data, samples, 3)
    within = [_kernel_sums(each, each) - _diagonal(each) for each in (first, second)]
    across = [_kernel_sums(first, second), _kernel_sums(second, first)]
    sums = [each.sum() for each in within]
    counts = len(first), len(second)
    pairs = [count * (count - 1) for count in counts]
    between = across[0].sum() / (counts[0] * counts[1])
    value = sums[0] / pairs[0] + sums[1] / pairs[1] - 2 * between
    variance = 0.0
    for this, other in ((0, 1), (1, 0)):
        count = counts[this]
        left = (sums[this] - 2 * within[this]) / ((count - 1) * (count - 2)) + sums[other] / pairs[other]
        left -= 2 * (across[this].sum() - across[this]) / ((count - 1) * counts[other])
        variance += (count - 1) / count * np.square(left - left.mean()).sum()
    return Estimate(float(value), float(np.sqrt(variance)))


def _moments(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The mean [D] and the triangular factor R [D, D] of the covariance RᵀR."""
    mean = features.mean(axis=0)
    return mean, np.linalg.qr(features - mean, mode="r") / np.sqrt(len(features) - 1)


def _kernel_sums(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """The sum over b [M, D] of the kernel with each of a [N, D], [N]."""
    sums = np.empty(len(a))
    rows = max(1, TABLE // len(b))
    for start in range(0, len(a), rows):
        sums[start : start + rows] = _cubic(a[start : start + rows] @ b.T, a.shape[1]).sum(axis=1)
    return sums


def _diagonal(features: np.ndarray) -> np.ndarray:
    """The kernel of each example with itself, [N]."""
    return _cubic(np.einsum("nd,nd->n", features, features), features.shape[1])


def _cubic(products: np.ndarray, dim: int) -> np.ndarray:
    scaled = products / dim + 1
    return scaled * scaled * scaled
