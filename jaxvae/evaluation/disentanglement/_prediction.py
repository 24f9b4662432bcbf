"""How well classifiers predict the factors: from one latent each (SAP), and from all of them (DCI)."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxvae._checks import at_least
from jaxvae.evaluation.disentanglement._points import check_points, lead, sample_points, scikit_learn


class DCI(NamedTuple):
    """Three answers to how codes relate to factors, each at most 1.

    Attributes:
      disentanglement: 1 where each latent helps to predict one factor only.
      completeness: 1 where each factor is predicted from one latent only.
      informativeness: how often a factor is predicted correctly, the mean over the factors. Its floor is chance.
    """

    disentanglement: float
    completeness: float
    informativeness: float


def sap(
    codes: ArrayLike, factors: ArrayLike, *, seed: int = 0, num_train: int = 10_000, num_test: int = 5_000
) -> float:
    r"""Separated attribute predictability: by how much the best latent predicts each factor better than the second.

    .. math:: \frac1F \sum_k \left(A_{(1) k} - A_{(2) k}\right)

    with A_jk the test accuracy of a linear support vector machine (C = 0.01, balanced classes) that sees latent j and
    predicts factor k, one value against the others. A constant latent has A = 0. Such a machine cannot tell the middle
    values of one number apart, so the true factors of dSprites score .21, and .18 to .25 in other units.

    Args:
      codes: [N, D] finite, D of 2 or more. Their scale and mean matter: the penalty depends on both.
      factors: [N, F] integers.
      seed: of the draws.
      num_train: points drawn to fit.
      num_test: points drawn for the accuracy.

    Raises:
      TypeError: the factors are not integers, or an argument is masked.
      ValueError: the shapes do not match, a code is not finite, a factor has one value only, or an option is too small.
      ImportError: scikit-learn is missing.

    References:
      Kumar, Sattigeri and Balakrishnan, Variational Inference of Disentangled Latent Concepts from Unlabeled
      Observations, 2018.
    """
    codes, factors = check_points(codes, factors, min_latents=2)
    at_least(2, num_train=num_train, num_test=num_test)
    svm = scikit_learn("sklearn.svm")
    rng = np.random.default_rng(seed)
    x, y = sample_points(codes, factors, num_train, rng)
    x_test, y_test = sample_points(codes, factors, num_test, rng)
    accuracy = np.zeros((x.shape[1], y.shape[1]))
    for j in np.flatnonzero(np.ptp(x, axis=0) > 0):
        for k in range(y.shape[1]):
            classifier = svm.LinearSVC(C=0.01, class_weight="balanced", dual=False)
            classifier.fit(x[:, j : j + 1], y[:, k])
            accuracy[j, k] = classifier.score(x_test[:, j : j + 1], y_test[:, k])
    return lead(accuracy)


def dci(
    codes: ArrayLike,
    factors: ArrayLike,
    *,
    seed: int = 0,
    num_train: int = 10_000,
    num_test: int = 5_000,
    num_jobs: int = -1,
) -> DCI:
    r"""Disentanglement, completeness and informativeness, from gradient-boosted trees that predict each factor.

    .. math:: D = \sum_j \frac{R_{j \cdot}}{R} \left(1 - H_F(R_{jk} / R_{j \cdot})\right), \quad
              C = \sum_k \frac{R_{\cdot k}}{R} \left(1 - H_D(R_{jk} / R_{\cdot k})\right)

    with R_jk the importance of latent j for factor k, H_F the entropy over the factors to base F, and H_D that over
    the latents to base D. Informativeness is the accuracy on test points. The time grows with the number of values of
    all factors: minutes for the 113 of dSprites.

    Args:
      codes: [N, D] finite, D of 2 or more.
      factors: [N, F] integers, F of 2 or more.
      seed: of the draws and of the trees.
      num_train: points drawn to fit.
      num_test: points drawn for the accuracy.
      num_jobs: threads, each with a factor of its own; -1 for all cores. Changes no figure.

    Raises:
      TypeError: the factors are not integers, or an argument is masked.
      ValueError: the shapes do not match, a code is not finite, a factor has one value only, or an option is too small.
      ImportError: scikit-learn is missing.

    References:
      Eastwood and Williams, A Framework for the Quantitative Evaluation of Disentangled Representations, 2018.
    """
    codes, factors = check_points(codes, factors, min_latents=2, min_factors=2)
    at_least(2, num_train=num_train, num_test=num_test)
    joblib, ensemble = scikit_learn("joblib"), scikit_learn("sklearn.ensemble")
    rng = np.random.default_rng(seed)
    x, y = sample_points(codes, factors, num_train, rng)
    x_test, y_test = sample_points(codes, factors, num_test, rng)
    random_state = int(rng.integers(2**31))

    def fit(k: int) -> tuple[np.ndarray, float]:
        classifier = ensemble.GradientBoostingClassifier(random_state=random_state)
        classifier.fit(x, y[:, k])
        return classifier.feature_importances_, classifier.score(x_test, y_test[:, k])

    # A tree for each value in each round: the factor of most values takes longest, so it starts first.
    order = np.argsort([-len(np.unique(factor)) for factor in y.T], kind="stable")
    fitted = joblib.Parallel(n_jobs=num_jobs, prefer="threads")(joblib.delayed(fit)(k) for k in order)
    importances = np.stack([importance for importance, _ in fitted], axis=1)  # whose order changes no sum below
    return DCI(
        disentanglement=_concentration(importances),
        completeness=_concentration(importances.T),
        informativeness=float(np.mean([accuracy for _, accuracy in fitted])),
    )


def _concentration(importances: np.ndarray) -> float:
    """1 - the entropy of each row, to the base of its length; the mean weighted by the rows' sums."""
    shares = importances + 1e-11  # an unused latent has no share anywhere, and no weight below
    shares /= shares.sum(axis=1, keepdims=True)
    concentration = 1 + (shares * np.log(shares)).sum(axis=1) / np.log(importances.shape[1])
    return float(np.average(concentration, weights=importances.sum(axis=1) + 1e-11))
