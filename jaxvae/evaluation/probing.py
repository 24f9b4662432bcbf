"""What a classifier reads from codes: how useful they are where few examples have labels."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxvae._checks import at_least
from jaxvae._host import host_array, host_reals
from jaxvae.keys import check_seed

STRENGTHS = (0.01, 0.1, 1.0, 10.0)  # of logistic regression: C, the inverse of its penalty
NEIGHBOURS = (1, 3, 5, 9)
FOLDS = 5


class Probe(NamedTuple):
    """How well one classifier reads the classes from one kind of features.

    Attributes:
      features: their name.
      classifier: "logistic regression" or "nearest neighbours".
      num_labels: how many labelled examples it learned from.
      accuracy: [num_draws], the share of the test examples that it read right, by draw of the labelled examples.
    """

    features: str
    classifier: str
    num_labels: int
    accuracy: np.ndarray


def probe(
    features: Mapping[str, tuple[ArrayLike, ArrayLike]],
    label: ArrayLike,
    test_label: ArrayLike,
    *,
    num_labels: Sequence[int] = (100, 1000),
    num_draws: int = 5,
    seed: int = 0,
) -> list[Probe]:
    """Train classifiers on few labelled codes, and measure them on a test set.

    Each draw takes as many examples of every class, the same ones for all features; a classifier's one setting (C of
    logistic regression, k of the nearest neighbours) is chosen by cross-validation among the labelled examples, and
    features are standardised by them.

    Args:
      features: name -> (those of the training examples [N, ...], those of the test examples [M, ...]), such as
        {"VAE": (run.encode(train), run.encode(test)), "pixels": (train.x, test.x)}. See `principal_components` for PCA.
      label: [N] integers.
      test_label: [M] integers.
      num_labels: how many labelled examples, each a multiple of the number of classes.
      num_draws: of labelled examples.
      seed: decides which.

    Returns:
      A `Probe` for each of the features, classifiers and numbers of labels.

    Raises:
      TypeError: labels that are not integers.
      ValueError: features or labels that do not fit each other, values that are not finite, or a number of labels that
        the classes cannot share.
      ImportError: scikit-learn is missing.
    """
    at_least(1, num_draws=num_draws)
    check_seed(seed)
    label, test_label = (_check_label(name, each) for name, each in (("label", label), ("test_label", test_label)))
    arrays = {name: _check_features(name, pair, len(label), len(test_label)) for name, pair in features.items()}
    if not arrays:
        raise ValueError("features must have a name and arrays, got none")
    found: dict[tuple[str, str, int], list[float]] = {}
    with _scikit_learn("threadpoolctl").threadpool_limits(1):  # for so little, threads cost more than they bring
        for count in num_labels:
            for draw in range(num_draws):
                chosen = _draw(label, count, np.random.default_rng((seed, count, draw)))
                for name, (train, test) in arrays.items():
                    for classifier, model in _classifiers(count // len(np.unique(label))).items():
                        model.fit(train[chosen], label[chosen])
                        accuracy = float((model.predict(test) == test_label).mean())
                        found.setdefault((name, classifier, count), []).append(accuracy)
    return [Probe(*which, np.array(accuracy)) for which, accuracy in found.items()]


def principal_components(train: ArrayLike, test: ArrayLike, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """The first `dim` principal components of x [N, ...], and those of a test set in the same basis, [., dim].

    Raises:
      ValueError: more components than examples or dimensions, or values that are not finite.
      ImportError: scikit-learn is missing.
    """
    x, x_test = (_flat("x", each) for each in (train, test))
    at_least(1, dim=dim)
    if dim > min(x.shape):
        raise ValueError(f"dim must be at most {min(x.shape)}, the components of x {x.shape}, got {dim}")
    if x_test.shape[1:] != x.shape[1:]:
        raise ValueError(f"the test set must have {x.shape[1]} dimensions, as the training set has, got {x_test.shape}")
    pca = _scikit_learn("sklearn.decomposition").PCA(dim, svd_solver="full").fit(x)
    return pca.transform(x), pca.transform(x_test)


def _classifiers(per_class: int) -> dict[str, Any]:
    """Pipelines whose one setting cross-validation chooses, where there is more than one example of each class."""
    linear_model, neighbors, pipeline, preprocessing, selection = (
        _scikit_learn(f"sklearn.{name}")
        for name in ("linear_model", "neighbors", "pipeline", "preprocessing", "model_selection")
    )
    folds = min(FOLDS, per_class)

    def tuned(classifier: Any, name: str, values: Sequence[float]) -> Any:
        model = pipeline.make_pipeline(preprocessing.StandardScaler(), classifier)
        if folds < 2:
            return model
        setting = f"{type(classifier).__name__.lower()}__{name}"
        return selection.GridSearchCV(model, {setting: list(values)}, cv=folds)

    return {
        "logistic regression": tuned(linear_model.LogisticRegression(max_iter=2000), "C", STRENGTHS),
        "nearest neighbours": tuned(
            neighbors.KNeighborsClassifier(1),
            "n_neighbors",
            [k for k in NEIGHBOURS if k <= max(1, per_class)],
        ),
    }


def _draw(label: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """As many examples of every class, `count` in all."""
    classes = np.unique(label)
    at_least(1, num_labels=count)
    if count % len(classes):
        raise ValueError(f"num_labels must be a multiple of the {len(classes)} classes, got {count}")
    each = count // len(classes)
    rarest = min(int((label == value).sum()) for value in classes)
    if each > rarest:
        raise ValueError(f"num_labels {count} takes {each} of each class, and one has {rarest}")
    return np.concatenate([rng.choice(np.flatnonzero(label == value), each, replace=False) for value in classes])


def _check_label(name: str, values: ArrayLike) -> np.ndarray:
    label = host_array(values, name)
    if not np.issubdtype(label.dtype, np.integer):
        raise TypeError(f"{name} must be integers, got {label.dtype}")
    if label.ndim != 1 or not label.size:
        raise ValueError(f"{name} must be [N], got {label.shape}")
    return label


def _check_features(name: str, pair: tuple[ArrayLike, ArrayLike], *counts: int) -> tuple[np.ndarray, np.ndarray]:
    train, test = (_flat(f"features {name!r}", each) for each in pair)
    if (len(train), len(test)) != counts or train.shape[1] != test.shape[1]:
        raise ValueError(
            f"features {name!r} must be [{counts[0]}, D] and [{counts[1]}, D], got {train.shape} and {test.shape}"
        )
    return train, test


def _flat(name: str, values: ArrayLike) -> np.ndarray:
    array = host_reals(values, name, np.float32)
    if array.ndim < 2 or not array.size:
        raise ValueError(f"{name} must be [N, ...], got {array.shape}")
    if not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite")
    return array.reshape(len(array), -1)


def _scikit_learn(name: str) -> Any:
    """A module of scikit-learn or what comes with it, loaded on first use."""
    from jaxvae.evaluation.disentanglement._points import scikit_learn

    return scikit_learn(name)
