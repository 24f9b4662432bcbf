"""How well single latents name the factors of variation: MIG, SAP, DCI, the FactorVAE and the BetaVAE score.

Functions of arrays on the host, NumPy's or JAX's, of any model: `codes` [N, D], usually the posterior means, and the
`factors` [N, F] that made the data, as integers. Definitions and settings are those of the study by Locatello et al.,
Challenging Common Assumptions in the Unsupervised Learning of Disentangled Representations, 2019, so that the figures
compare with its tables.

Every score draws its points with replacement from the N that it is given, as that study draws from the factor grid: a
grid smaller than `num_train` serves too. The seed decides every draw. `fixed_points` says what a score is worth.
"""

import importlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

CHUNK = 500  # batches of points that are held at once: sets the memory and nothing else
DEAD = 0.05  # the FactorVAE score drops latents whose standard deviation is below


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
      TypeError: the factors are not integers.
      ValueError: the shapes do not match, a code is not finite, a factor has one value only, or `bins` is below 2.

    >>> mutual_information([[0.0], [0.1], [5.0], [5.1]], [[0], [0], [1], [1]])  # log 2
    array([[0.69314718]])
    """
    codes, factors = _check(codes, factors)
    _check_sizes(2, bins=bins)
    binned = [np.digitize(code, np.linspace(code.min(), code.max(), bins + 1)[:-1]) for code in codes.T]
    return np.array([[_information(bin_, factor) for factor in factors.T] for bin_ in binned])


def factor_entropy(factors: ArrayLike) -> np.ndarray:
    """H(v_k) of every factor from its frequencies: [N, F] integers -> [F] nats.

    Raises:
      TypeError: the factors are not integers.
      ValueError: they are not [N, F], or a factor has one value only.

    >>> factor_entropy([[0], [1], [2], [3]])  # log 4
    array([1.38629436])
    """
    return np.array([_information(factor, factor) for factor in _check_factors(factors).T])


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
      TypeError: the factors are not integers.
      ValueError: the shapes do not match, a code is not finite, a factor has one value only, or an option is too small.

    References:
      Chen, Li, Grosse and Duvenaud, Isolating Sources of Disentanglement in Variational Autoencoders, 2018.
    """
    codes, factors = _check(codes, factors, min_latents=2)
    _check_sizes(2, num_points=num_points)
    codes, factors = _draw(codes, factors, num_points, np.random.default_rng(seed))
    return _lead(mutual_information(codes, factors, bins=bins) / factor_entropy(factors))


def sap(
    codes: ArrayLike, factors: ArrayLike, *, seed: int = 0, num_train: int = 10_000, num_test: int = 5_000
) -> float:
    r"""Separated attribute predictability: by how much the best latent predicts each factor better than the second.

    .. math:: \frac1F \sum_k \left(A_{(1) k} - A_{(2) k}\right)

    with A_jk the test accuracy of a linear support vector machine (C = 0.01, balanced classes) that sees latent j and
    predicts factor k, one value against the others. A constant latent has A = 0. Such a machine cannot tell the middle
    values of one number apart, so the true factors of dSprites score .21, and .18 to .25 in other units.

    Args:
      codes: [N, D] finite, D of 2 or more. The penalty minds their scale and their mean.
      factors: [N, F] integers.
      seed: of the draws.
      num_train: points drawn to fit.
      num_test: points drawn for the accuracy.

    Raises:
      TypeError: the factors are not integers.
      ValueError: the shapes do not match, a code is not finite, a factor has one value only, or an option is too small.
      ImportError: scikit-learn is missing.

    References:
      Kumar, Sattigeri and Balakrishnan, Variational Inference of Disentangled Latent Concepts from Unlabeled
      Observations, 2018.
    """
    codes, factors = _check(codes, factors, min_latents=2)
    _check_sizes(2, num_train=num_train, num_test=num_test)
    svm = _scikit_learn("sklearn.svm")
    rng = np.random.default_rng(seed)
    x, y = _draw(codes, factors, num_train, rng)
    x_test, y_test = _draw(codes, factors, num_test, rng)
    accuracy = np.zeros((x.shape[1], y.shape[1]))
    for j in np.flatnonzero(np.ptp(x, axis=0) > 0):
        for k in range(y.shape[1]):
            classifier = svm.LinearSVC(C=0.01, class_weight="balanced", dual=False)
            classifier.fit(x[:, j : j + 1], y[:, k])
            accuracy[j, k] = classifier.score(x_test[:, j : j + 1], y_test[:, k])
    return _lead(accuracy)


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
      TypeError: the factors are not integers.
      ValueError: the shapes do not match, a code is not finite, a factor has one value only, or an option is too small.
      ImportError: scikit-learn is missing.

    References:
      Eastwood and Williams, A Framework for the Quantitative Evaluation of Disentangled Representations, 2018.
    """
    codes, factors = _check(codes, factors, min_latents=2, min_factors=2)
    _check_sizes(2, num_train=num_train, num_test=num_test)
    joblib, ensemble = _scikit_learn("joblib"), _scikit_learn("sklearn.ensemble")
    rng = np.random.default_rng(seed)
    x, y = _draw(codes, factors, num_train, rng)
    x_test, y_test = _draw(codes, factors, num_test, rng)
    random_state = int(rng.integers(2**31))

    def fit(k: int) -> tuple[np.ndarray, float]:
        classifier = ensemble.GradientBoostingClassifier(random_state=random_state)
        classifier.fit(x, y[:, k])
        return classifier.feature_importances_, classifier.score(x_test, y_test[:, k])

    # A tree for each value in each round: the factor of most values takes longest, so it starts first.
    order = np.argsort([-len(np.unique(factor)) for factor in y.T], kind="stable")
    fitted = joblib.Parallel(n_jobs=num_jobs, prefer="threads")(joblib.delayed(fit)(k) for k in order)
    importances = np.stack([importance for importance, _ in fitted], axis=1)  # in that order: nothing below minds
    return DCI(
        disentanglement=_concentration(importances),
        completeness=_concentration(importances.T),
        informativeness=float(np.mean([accuracy for _, accuracy in fitted])),
    )


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
      TypeError: the factors are not integers.
      ValueError: the shapes do not match, a code is not finite, a factor has one value only, or an option is too small.

    References:
      Kim and Mnih, Disentangling by Factorising, 2018.
    """
    codes, factors = _check(codes, factors, min_factors=2)
    _check_sizes(2, num_points=num_points, num_train=num_train, num_test=num_test, batch_size=batch_size)
    rng = np.random.default_rng(seed)
    variance = codes[rng.integers(len(codes), size=num_points)].var(axis=0, ddof=1)
    live = np.sqrt(variance) >= DEAD
    if not live.any():
        return 0.0
    scaled = codes[:, live] / np.sqrt(variance[live])

    held = rng.integers(factors.shape[1], size=num_train + num_test)
    first = np.tile(rng.integers(len(codes), size=(len(held), 1)), batch_size)
    batches = _sharing(factors, held, first, rng)
    vote = np.concatenate([scaled[rows].var(axis=1).argmin(axis=1) for rows in _chunks(batches)])
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
      codes: [N, D] finite. The penalty of the regression minds their scale.
      factors: [N, F] integers, F of 2 or more.
      seed: of the draws.
      num_train: examples to fit.
      num_test: examples for the accuracy.
      batch_size: pairs of one example.

    Raises:
      TypeError: the factors are not integers.
      ValueError: the shapes do not match, a code is not finite, a factor has one value only, or an option is too small.
      ImportError: scikit-learn is missing.

    References:
      Higgins et al., beta-VAE: Learning Basic Visual Concepts with a Constrained Variational Framework, 2017.
    """
    codes, factors = _check(codes, factors, min_factors=2)
    _check_sizes(2, num_train=num_train, num_test=num_test)
    _check_sizes(1, batch_size=batch_size)
    linear_model = _scikit_learn("sklearn.linear_model")
    rng = np.random.default_rng(seed)
    held = rng.integers(factors.shape[1], size=num_train + num_test)
    first = rng.integers(len(codes), size=(len(held), batch_size))
    second = _sharing(factors, held, first, rng)
    pairs = zip(_chunks(first), _chunks(second), strict=True)
    features = np.concatenate([np.abs(codes[a] - codes[b]).mean(axis=1) for a, b in pairs])
    classifier = linear_model.LogisticRegression(solver="newton-cg")  # converges whatever the units of the codes
    classifier.fit(features[:num_train], held[:num_train])
    return float(classifier.score(features[num_train:], held[num_train:]))


Score = Callable[..., float | DCI]  # (codes, factors, *, seed)
CHEAP_SCORES: Mapping[str, Score] = {
    "mig": mig,
    "sap": sap,
    "factor_vae_score": factor_vae_score,
    "beta_vae_score": beta_vae_score,
}
SCORES: Mapping[str, Score] = {**CHEAP_SCORES, "dci": dci}


def disentanglement_scores(
    codes: ArrayLike, factors: ArrayLike, *, seed: int = 0, scores: Mapping[str, Score] = SCORES
) -> dict[str, float]:
    """All five scores by name, DCI as "dci_disentanglement", "dci_completeness" and "dci_informativeness".

    Args:
      codes: [N, D] finite, D of 2 or more.
      factors: [N, F] integers, F of 2 or more.
      seed: passed to each of them.
      scores: which ones, by name: `CHEAP_SCORES` leaves out DCI, which takes minutes on dSprites. For other settings
        use `functools.partial(mig, num_points=1000)`.
    """
    results: dict[str, float] = {}
    for name, score in scores.items():
        value = score(codes, factors, seed=seed)
        if isinstance(value, DCI):
            results |= {f"{name}_{part}": number for part, number in value._asdict().items()}
        else:
            results[name] = value
    return results


def fixed_points(
    factors: ArrayLike,
    *,
    latent_dim: int = 10,
    seed: int = 0,
    rotations: int = 20,
    scores: Mapping[str, Score] = SCORES,
    rotation_scores: Mapping[str, Score] = CHEAP_SCORES,
) -> dict[str, dict[str, float]]:
    """What the scores give codes that are known to be good, worthless and entangled: to print beside a model's.

    "true_factors" are the factors themselves, from 0 up and scaled to variance 1, and dead latents for the rest.
    "noise" is independent of the factors, N(0, I). "rotations" is the median over random rotations of the scaled
    factors into all latents: no latent stands for a factor, yet some scores come close to 1.

    Args:
      factors: [N, F] integers, F of 2 or more.
      latent_dim: D, at least F: the model's.
      seed: of the codes and of the scores.
      rotations: how many.
      scores: of the true factors and of noise, by name, as for `disentanglement_scores`.
      rotation_scores: of each rotation: all but DCI, of which 20 would take an hour on dSprites.

    Returns:
      The scores by the name of the codes, then by that of the score.

    Raises:
      TypeError: the factors are not integers.
      ValueError: they are not [N, F], a factor has one value only, or `latent_dim` or `rotations` is too small.

    References:
      Locatello et al., A Sober Look at the Unsupervised Learning of Disentangled Representations and their
      Evaluation, 2020, for how far the scores agree.
    """
    factors = _check_factors(factors)
    num, num_factors = factors.shape
    if latent_dim < num_factors:
        raise ValueError(f"latent_dim must be at least the number of factors, {num_factors}, got {latent_dim}")
    _check_sizes(1, rotations=rotations)
    rng = np.random.default_rng(seed)
    scaled = (factors - factors.min(axis=0)) / factors.std(axis=0)
    padded = np.pad(scaled, ((0, 0), (0, latent_dim - num_factors)))
    noise = rng.normal(size=(num, latent_dim))
    rotated = []
    for _ in range(rotations):
        orthonormal, _ = np.linalg.qr(rng.normal(size=(latent_dim, num_factors)))
        codes = scaled @ orthonormal.T
        rotated.append(disentanglement_scores(codes, factors, seed=seed, scores=rotation_scores))
    return {
        "true_factors": disentanglement_scores(padded, factors, seed=seed, scores=scores),
        "noise": disentanglement_scores(noise, factors, seed=seed, scores=scores),
        "rotations": {name: float(np.median([each[name] for each in rotated])) for name in rotated[0]},
    }


def _check(
    codes: ArrayLike, factors: ArrayLike, *, min_latents: int = 1, min_factors: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Codes as float64 and factors as they are, or an error that says what is wrong with them."""
    factors = _check_factors(factors)
    codes = np.asarray(codes, np.float64)
    if codes.ndim != 2 or codes.shape[1] < min_latents:
        raise ValueError(f"codes must be [N, D] with D of {min_latents} or more, got {codes.shape}")
    if len(codes) != len(factors):
        raise ValueError(f"codes and factors must describe the same points, got {len(codes)} and {len(factors)}")
    if factors.shape[1] < min_factors:
        raise ValueError(f"factors must be [N, F] with F of {min_factors} or more, got {factors.shape}")
    finite = np.isfinite(codes).all(axis=1)
    if not finite.all():
        row = int(finite.argmin())
        raise ValueError(f"codes must be finite: point {row} has {codes[row][~np.isfinite(codes[row])][0]}")
    return codes, factors


def _check_factors(factors: ArrayLike) -> np.ndarray:
    factors = np.asarray(factors)
    if factors.ndim != 2 or not factors.size:
        raise ValueError(f"factors must be [N, F] with N and F of 1 or more, got {factors.shape}")
    if factors.dtype.kind not in "iu":
        raise TypeError(f"factors must be integers, got {factors.dtype}; number their values 0, 1, ... first")
    constant = (factors == factors[:1]).all(axis=0)
    if constant.any():
        column = int(constant.argmax())
        raise ValueError(f"factors[:, {column}] is {factors[0, column]} everywhere: leave that column out")
    return factors


def _check_sizes(least: int, **sizes: int) -> None:
    for name, size in sizes.items():
        if size < least:
            raise ValueError(f"{name} must be at least {least}, got {size}")


def _scikit_learn(module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            "SAP, DCI and the BetaVAE score need scikit-learn: pip install 'jaxvae[experiments]'"
        ) from error


def _draw(
    codes: np.ndarray, factors: np.ndarray, num_points: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    rows = rng.integers(len(codes), size=num_points)
    return codes[rows], factors[rows]


def _information(a: np.ndarray, b: np.ndarray) -> float:
    """I(a; b) of two integer arrays [N] from the table of how often each pair of values occurs, in nats."""
    (_, a), (_, b) = np.unique(a, return_inverse=True), np.unique(b, return_inverse=True)
    shape = a.max() + 1, b.max() + 1
    joint = np.bincount(a * shape[1] + b, minlength=shape[0] * shape[1]).reshape(shape) / len(a)
    product = joint.sum(axis=1, keepdims=True) * joint.sum(axis=0, keepdims=True)
    seen = joint > 0
    return float((joint[seen] * np.log(joint[seen] / product[seen])).sum())


def _lead(table: np.ndarray) -> float:
    """The largest minus the second largest latent of each factor, [D, F], the mean over the factors."""
    ascending = np.sort(table, axis=0)
    return float((ascending[-1] - ascending[-2]).mean())


def _concentration(importances: np.ndarray) -> float:
    """1 - the entropy of each row, to the base of its length; the mean weighted by the rows' sums."""
    shares = importances + 1e-11  # an unused latent has no share anywhere, and no weight below
    shares /= shares.sum(axis=1, keepdims=True)
    concentration = 1 + (shares * np.log(shares)).sum(axis=1) / np.log(importances.shape[1])
    weights = importances.sum(axis=1) + 1e-11
    return float(np.average(concentration, weights=weights))


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


def _chunks(rows: np.ndarray) -> list[np.ndarray]:
    return np.array_split(rows, -(-len(rows) // CHUNK))
