"""experiments.imputation, from the command line, on a few rows of scikit-learn's breast cancer table."""

import numpy as np
import pytest
from commands import result_of, run

from experiments.imputation import PRESETS, load_table, main, measure
from jaxvae.evaluation import Imputed

SMALL = ("breast-cancer", "--smoke", "--hidden", 16, "--latent-dim", 2, "--num-samples", 3)


@pytest.mark.slow
def test_a_run_compares_what_is_filled_in(tmp_path):
    result, _ = result_of(main, tmp_path / "run", *SMALL)
    test = result["test"]
    # Two epochs teach little.
    assert test["error_iterative_imputer"] < test["error_nearest_neighbours"] < test["error_mean"]
    assert test["error"] == pytest.approx(test["error_mean"], rel=0.3)
    assert 1 <= test["effective_samples"] <= 20
    assert (tmp_path / "run" / "learning_curves.png").exists()


def test_errors_are_of_the_hidden_entries_alone():
    dataset, whole = load_table(PRESETS["breast-cancer"][1])
    observed = dataset.arrays["observed"]
    assert 1 - observed.mean() == pytest.approx(0.3, abs=0.01)
    np.testing.assert_allclose(np.where(observed, whole, np.nan)[:, 3][observed[:, 3]].std(), 1)
    guess = np.where(observed, whole + 100, whole + 0.5)
    filled = Imputed(guess, np.full(whole.shape, 0.2), guess, guess[:, None], np.full(len(whole), 7.0))
    measured = measure(filled, dataset, whole)
    assert measured["error"] == pytest.approx(0.5)
    assert (measured["within_error_bars"], measured["effective_samples"]) == (0, 7)
    assert measure(filled._replace(std=filled.std + 0.1), dataset, whole)["within_error_bars"] == 1


def test_wrong_options_are_one_line():
    done = run(main, "breast-cancer", "--share", 1.0)
    assert done.code == 2
    assert "share must lie between 0 and 1, got 1.0" in done.said
