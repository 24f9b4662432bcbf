"""Which factor was held still: told by the latent that varies least, or by a linear classifier of differences."""

import numpy as np
from numpy.typing import ArrayLike

from jaxvae._checks import at_least
from jaxvae.evaluation.disentanglement._points import check_points, scikit_learn

CHUNK = 500  # batches of points that are held at once: sets the memory and nothing else
DEAD = 0.05  # the FactorVAE score drops latents whose standard deviation is below


def factor_vae_score(
    codes: ArrayLike,
    factors: ArrayLike,
    *,
    seed: int = 0,
    num_points: int = 10_000,
    num_train: int = 10_000,
    num_test: int = 5_000,
    batch_size: int = 64,
) -> float:
    r"""How often the latent that varies least tells which factor was held still.

    Each vote draws a factor, one of its values, and a batch of points that all have it. It is cast for

    .. math:: \arg\min_j \; \widehat{\mathrm{Var}}_{\text{batch}}(z_j) \, / \, \widehat{\mathrm{Var}}(z_j)

    Latents with a standard deviation below 0.05 take no part. Each latent stands for the factor that it was voted for
    most often in training, and the score is the accuracy of that rule on the test votes. Chance is 1/F; without a live
    latent it is 0. Most random rotations of the true factors score above .95: a high figure alone proves little.

    Args:
      codes: [N, D] finite.
      factors: [N, F] integers, F of 2 or more.
      seed: of the draws.
      num_points: drawn for the variance of each latent.
      num_train: votes that make the rule.
      num_test: votes that it is tested on.
      batch_size: points of one vote.

    Raises:
      TypeError: the factors are not integers, or an argument is masked.
      ValueError: the shapes do not match, a code is not finite, a factor has one value only, or an option is too small.

    References:
      Kim and Mnih, Disentangling by Factorising, 2018.
    """
    codes, factors = check_points(codes, factors, min_factors=2)
    at_least(2, num_points=num_points, num_train=num_train, num_test=num_test, batch_size=batch_size)
    rng = np.random.default_rng(seed)
    variance = codes[rng.integers(len(codes), size=num_points)].var(axis=0, ddof=1)
    live = np.sqrt(variance) >= DEAD
    if not live.any():
        return 0.0
    scaled = codes[:, live] / np.sqrt(variance[live])

    held = rng.integers(factors.shape[1], size=int(num_train) + int(num_test))
    first = np.tile(rng.integers(len(codes), size=(len(held), 1)), batch_size)
    batches = _sharing(factors, held, first, rng)
    vote = np.concatenate([scaled[points].var(axis=1).argmin(axis=1) for points in _chunks(batches)])
    votes = np.zeros((factors.shape[1], scaled.shape[1]))
    np.add.at(votes, (held[:num_train], vote[:num_train]), 1)
    return float((votes.argmax(axis=0)[vote[num_train:]] == held[num_train:]).mean())


def beta_vae_score(
    codes: ArrayLike,
    factors: ArrayLike,
    *,
    seed: int = 0,
    num_train: int = 10_000,
    num_test: int = 5_000,
    batch_size: int = 64,
) -> float:
    r"""How often a linear classifier tells from differences of codes which factor was held still.

    Each example draws a factor k and pairs of points (a, b) that agree in it, each pair in a value of its own. Logistic
    regression predicts k from

    .. math:: \frac{1}{\text{batch\_size}} \sum_{(a, b)} |z_a - z_b| \quad \in R^D

    and the score is its accuracy on the test examples. Chance is 1/F. Most random rotations of the true factors
    score above .95: a high figure alone proves little.

    Args:
      codes: [N, D] finite. Their scale matters: the penalty depends on it.
      factors: [N, F] integers, F of 2 or more.
      seed: of the draws.
      num_train: examples to fit.
      num_test: examples for the accuracy.
      batch_size: pairs of one example.

    Raises:
      TypeError: the factors are not integers, or an argument is masked.
      ValueError: the shapes do not match, a code is not finite, a factor has one value only, or an option is too small.
      ImportError: scikit-learn is missing.

    References:
      Higgins et al., beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework, 2017.
    """
    codes, factors = check_points(codes, factors, min_factors=2)
    at_least(2, num_train=num_train, num_test=num_test)
    at_least(1, batch_size=batch_size)
    linear_model = scikit_learn("sklearn.linear_model")
    rng = np.random.default_rng(seed)
    held = rng.integers(factors.shape[1], size=int(num_train) + int(num_test))
    first = rng.integers(len(codes), size=(len(held), batch_size))
    second = _sharing(factors, held, first, rng)
    pairs = zip(_chunks(first), _chunks(second), strict=True)
    features = np.concatenate([np.abs(codes[a] - codes[b]).mean(axis=1) for a, b in pairs])
    classifier = linear_model.LogisticRegression(solver="newton-cg")  # converges whatever the units of the codes
    classifier.fit(features[:num_train], held[:num_train])
    return float(classifier.score(features[num_train:], held[num_train:]))


def _sharing(factors: np.ndarray, held: np.ndarray, points: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """For each point of [V, B] a random one, with replacement, of equal value in factor `held` [V] of its row."""
    partners = np.empty_like(points)
    for k in range(factors.shape[1]):
        _, group, sizes = np.unique(factors[:, k], return_inverse=True, return_counts=True)
        members = np.argsort(group, kind="stable")  # all points of the first value, then those of the second, ...
        starts = np.cumsum(sizes) - sizes
        of_points = group[points[held == k]]
        partners[held == k] = members[starts[of_points] + rng.integers(sizes[of_points])]
    return partners


def _chunks(points: np.ndarray) -> list[np.ndarray]:
    return np.array_split(points, -(-len(points) // CHUNK))
