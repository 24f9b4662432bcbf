"""A classifier on the codes: few labels, the same ones for all features, and what it reads right."""

import numpy as np
import pytest
from matplotlib import image as png
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from jaxvae import data, figures
from jaxvae.evaluation import Probe, principal_components, probe


def blobs(num=400, seed=0):
    """Three classes, told by the first two of five dimensions."""
    rng = np.random.default_rng(seed)
    label = np.arange(num) % 3
    codes = rng.normal(size=(num, 5))
    codes[:, :2] += 4 * np.array([[0, 0], [1, 0], [0, 1]])[label]
    return codes.astype(np.float32), label


def test_useful_codes_are_read_and_noise_is_not():
    (train, label), (test, test_label) = blobs(), blobs(seed=1)
    noise, more = np.random.default_rng(2).normal(size=(2, *train.shape))
    found = probe({"codes": (train, test), "noise": (noise, more)}, label, test_label, num_labels=(3, 30), num_draws=3)
    assert [(p.features, p.num_labels) for p in found[:2]] == [("codes", 3), ("codes", 3)]
    assert len(found) == 2 * 2 * 2
    for p in found:
        assert p.accuracy.shape == (3,)
        if p.num_labels == 30:
            assert p.accuracy.mean() > 0.8 if p.features == "codes" else p.accuracy.mean() < 0.45


def test_a_draw_is_as_many_of_each_class_and_what_scikit_learn_makes_of_them():
    (train, label), (test, test_label) = blobs(), blobs(seed=1)
    found = {
        p.classifier: p
        for p in probe({"codes": (train, test)}, label, test_label, num_labels=(30,), num_draws=2, seed=7)
    }
    for draw in range(2):
        rng = np.random.default_rng((7, 30, draw))
        chosen = np.concatenate([rng.choice(np.flatnonzero(label == k), 10, replace=False) for k in range(3)])
        for name, classifier, grid in (
            (
                "logistic regression",
                LogisticRegression(max_iter=2000),
                {"logisticregression__C": [0.01, 0.1, 1.0, 10.0]},
            ),
            ("nearest neighbours", KNeighborsClassifier(1), {"kneighborsclassifier__n_neighbors": [1, 3, 5, 9]}),
        ):
            model = GridSearchCV(make_pipeline(StandardScaler(), classifier), grid, cv=5)
            with threadpool_limits(1):
                model.fit(train[chosen], label[chosen])
            assert found[name].accuracy[draw] == (model.predict(test) == test_label).mean()


def test_principal_components_are_those_of_the_training_set():
    digits, other = (data.load("digits", split).x for split in ("train", "test"))
    train, test = principal_components(digits, other, 5)
    pca = PCA(5, svd_solver="full").fit(digits.reshape(len(digits), -1))
    for ours, x in ((train, digits), (test, other)):
        theirs = pca.transform(x.reshape(len(x), -1))
        np.testing.assert_allclose(np.abs(ours), np.abs(theirs), rtol=1e-3, atol=1e-3)
    for dim, text in ((65, "dim must be at most 64"), (0, "dim must be at least 1")):
        with pytest.raises(ValueError, match=text):
            principal_components(digits, other, dim)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"num_labels": (10,)}, ValueError, "num_labels must be a multiple of the 3 classes, got 10"),
        ({"num_labels": (399,)}, ValueError, "takes 133 of each class, and one has 33"),
        ({"num_draws": 0}, ValueError, "num_draws must be at least 1"),
        ({"features": {}}, ValueError, "features must have a name and arrays"),
        ({"features": {"a": (np.zeros((3, 2)), np.zeros((100, 2)))}}, ValueError, r"must be \[100, D\] and \[100, D\]"),
        ({"features": {"a": (np.full((100, 2), np.nan), np.zeros((100, 2)))}}, ValueError, "'a' must be finite"),
        ({"label": np.zeros(100)}, TypeError, "label must be integers, got float64"),
    ],
)
def test_what_does_not_fit_is_refused(change, error, text):
    train, label = blobs(100)
    arguments = {"features": {"codes": (train, train)}, "label": label, "test_label": label, "num_labels": (30,)}
    with pytest.raises(error, match=text):
        probe(**(arguments | change))


def test_the_figure_has_a_panel_for_each_classifier(tmp_path):
    probes = [
        Probe(name, classifier, count, np.array([0.5, 0.6]) + bonus)
        for classifier in ("logistic regression", "nearest neighbours")
        for name, bonus in (("VAE", 0.2), ("pixels", 0.0))
        for count in (100, 1000)
    ]
    two = png.imread(figures.probe_accuracy(tmp_path / "a" / "two.png", probes, title="MNIST"))
    one = png.imread(figures.probe_accuracy(tmp_path / "one.png", probes[:4]))
    assert two.shape[1] > 1.6 * one.shape[1]
    with pytest.raises(ValueError, match="probes must hold one or more"):
        figures.probe_accuracy(tmp_path / "none.png", [])
