"""experiments.probe, from the command line, on a few of scikit-learn's digits."""

import pytest
from commands import result_of, run

from experiments.probe import main

SMALL = ("digits", "--smoke", "--hidden", 16, "--latent-dim", 4, "--num-labels", 20)


@pytest.mark.slow
def test_a_run_probes_four_kinds_of_features_by_two_classifiers(tmp_path):
    result, said = result_of(main, tmp_path / "run", *SMALL)
    names = ("autoencoder", "VAE", "principal components", "pixels")
    classifiers = ("logistic regression", "nearest neighbours")
    assert list(result["test"]) == [f"{name}, {classifier}, 20" for name in names for classifier in classifiers]
    for name, accuracies in result["accuracies"].items():
        assert len(accuracies) == 2
        assert sum(accuracies) / 2 == result["test"][name]
    assert result["test"]["pixels, nearest neighbours, 20"] > 0.4  # of ten classes, from two images of each
    assert "20 labels" in said
    assert (tmp_path / "run" / "probe.png").stat().st_size > 1000


def test_labels_that_the_classes_cannot_share_are_refused_in_one_line(tmp_path):
    for count, text in ((0, "at least 1, got (0,)"), (15, "a multiple of the 10 classes, got 15")):
        done = run(main, *SMALL[:-1], count, "--out", tmp_path / "run")
        assert done.code == 2
        assert f"num_labels must be {text}" in done.said
