"""What single latents tell of single factors: their mutual information, and its gap."""

import numpy as np
from numpy.typing import ArrayLike

from jaxvae._checks import at_least
from jaxvae.evaluation.disentanglement._points import check_factors, check_points, lead, sample_points


def mutual_information(codes: ArrayLike, factors: ArrayLike, *, bins: int = 20) -> np.ndarray:
    r"""I(z_j; v_k) of every latent and every factor, from histograms of all N points.

    .. math:: \sum_{b, v} p(b, v) \log \frac{p(b, v)}{p(b) \, p(v)}

    with b the bin of z_j among `bins` of equal width over its range. Too large by about
    (bins - 1)(values - 1) / 2N.

    Args:
      codes: [N, D] finite.
      factors: [N, F] integers.
      bins: the information cannot exceed log(bins).

    Returns:
      [D, F] nats.

    Raises:
      TypeError: the factors are not integers, or an argument is masked.
      ValueError: the shapes do not match, a code is not finite, a factor has one value only, or `bins` is below 2.

    >>> mutual_information([[0.0], [0.1], [5.0], [5.1]], [[0], [0], [1], [1]])  # log 2
    array([[0.69314718]])
    """
    codes, factors = check_points(codes, factors)
    at_least(2, bins=bins)
    binned = [np.digitize(code, np.linspace(code.min(), code.max(), bins + 1)[:-1]) for code in codes.T]
    return np.array([[_information(bin_, factor) for factor in factors.T] for bin_ in binned])


def factor_entropy(factors: ArrayLike) -> np.ndarray:
    """H(v_k) of every factor from its frequencies: [N, F] integers -> [F] nats.

    Raises:
      TypeError: the factors are not integers, or an argument is masked.
      ValueError: they are not [N, F], or a factor has one value only.

    >>> factor_entropy([[0], [1], [2], [3]])  # log 4
    array([1.38629436])
    """
    return np.array([_information(factor, factor) for factor in check_factors(factors).T])


def mig(codes: ArrayLike, factors: ArrayLike, *, seed: int = 0, num_points: int = 10_000, bins: int = 20) -> float:
    r"""Mutual information gap: by how much the best latent of each factor leads the second best.

    .. math:: \frac1F \sum_k \frac{1}{H(v_k)} \left(I(z_{(1)}; v_k) - I(z_{(2)}; v_k)\right)

    From 0 to 1, but a factor of more values than `bins` cannot reach 1: the true factors of dSprites score .896.

    Args:
      codes: [N, D] finite, D of 2 or more.
      factors: [N, F] integers.
      seed: of the draws.
      num_points: drawn for the histograms.
      bins: of each latent.

    Raises:
      TypeError: the factors are not integers, or an argument is masked.
      ValueError: the shapes do not match, a code is not finite, a factor has one value only, or an option is too small.

    References:
      Chen, Li, Grosse and Duvenaud, Isolating Sources of Disentanglement in Variational Autoencoders, 2018.
    """
    codes, factors = check_points(codes, factors, min_latents=2)
    at_least(2, num_points=num_points)
    codes, factors = sample_points(codes, factors, num_points, np.random.default_rng(seed))
    return lead(mutual_information(codes, factors, bins=bins) / factor_entropy(factors))


def _information(a: np.ndarray, b: np.ndarray) -> float:
    """I(a; b) of two integer arrays [N] from the table of how often each pair of values occurs, in nats."""
    (_, a), (_, b) = np.unique(a, return_inverse=True), np.unique(b, return_inverse=True)
    shape = a.max() + 1, b.max() + 1
    joint = np.bincount(a * shape[1] + b, minlength=shape[0] * shape[1]).reshape(shape) / len(a)
    product = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / product[seen])).sum())
