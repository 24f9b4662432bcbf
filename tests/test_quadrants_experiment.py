"""experiments.quadrants on scikit-learn's digits: a baseline, and a CVAE around it."""

import json
import shutil
from functools import partial

import jax
import numpy as np
import pytest
from commands import result_of, run

import jaxvae
from experiments import cvae, quadrants
from jaxvae import checkpoint, data
from jaxvae.data.quadrants import make_prepare

SMALL = (
    *("--data", "digits", "--visible", 2, "--validation", 100, "--hidden", 16, "--latent-dim", 4),
    *("--batch-size", 256, "--epochs", 3, "--baseline-epochs", 3, "--nll-samples", 5),
)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("quadrants") / "run"
    return out, result_of(cvae.main, out, "quadrants", *SMALL)[0]


@pytest.mark.slow
def test_a_run_reports_three_estimates_and_the_baseline(trained):
    out, result = trained
    test = result["test"]
    assert test["negative_elbo"] == pytest.approx(test["rate"] + test["distortion"], rel=1e-6)
    assert test["nll"] < test["negative_elbo"]
    for name in ("nll", "nll_from_prior", "negative_elbo"):
        assert 0 < test[f"{name}_standard_error"] < 1
    baseline, params, _, _ = checkpoint.load(out / "baseline", quadrants.make_baseline)
    x = data.load("digits", "test").x / np.float64(16)
    logits = np.asarray(baseline.apply(params, x[:, :, :4].reshape(360, 32).astype(np.float32)), np.float64)
    target = x[:, :, 4:].reshape(360, 32)
    nll = (np.logaddexp(0, logits) - target * logits).sum(axis=1).mean()
    assert test["baseline_nll"] == pytest.approx(nll, rel=1e-5)
    for name in ("completions", "learning_curves", "baseline/learning_curves"):
        assert (out / f"{name}.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_baseline_inside_the_prior_stays_as_it_was(trained):
    out, _ = trained
    model, params, _, _ = checkpoint.load(out, quadrants.make_model)
    alone = checkpoint.load(out / "baseline", quadrants.make_baseline)[1]
    jax.tree.map(np.testing.assert_array_equal, params["params"]["prior"]["baseline"], alone["params"])

    test = data.load("digits", "test")
    batch = {"x": test.x[:8], "index": np.arange(8)}
    batch = make_prepare(data.make_prepare(17), visible=2)(batch, key=jax.random.key(0))
    loss = partial(jaxvae.cvae_loss, model, key=jax.random.key(0), step=0)
    gradient = jax.jit(jax.grad(lambda params: loss(params, (), batch)[0]))(params)["params"]
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient["prior"]["baseline"]))
    assert all(np.any(leaf) for leaf in jax.tree.leaves(gradient["prior"]["network"]))


@pytest.mark.slow
def test_a_run_cut_off_in_either_phase_ends_the_same(trained, tmp_path, monkeypatch):
    out, result = trained
    for name in ("save_pictures", "draw_baseline"):  # half of so small a run
        monkeypatch.setattr(quadrants, name, lambda *_: [])
    for phase in ("baseline", "."):
        cut = tmp_path / phase / "cut"
        shutil.copytree(out, cut)
        shutil.rmtree(cut / phase / "checkpoints" / "15")  # the last of three
        (cut / phase / "result.json").unlink()
        if phase == "baseline":
            shutil.rmtree(cut / "checkpoints")
        resumed, _ = result_of(cvae.main, cut, "quadrants", *SMALL, "--resume")
        assert resumed["test"] == result["test"]
    alone = [json.loads((run / "baseline" / "result.json").read_text())["seconds"] for run in (out, cut)]
    assert alone[0] == alone[1]  # a finished baseline was not trained again


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--visible", 4), "invalid choice '4'"),
        (("--baseline-epochs", 0), "baseline_epochs must be at least 1, got 0"),
        (("--learning-rate", -1), "learning_rate must be a positive number, got -1.0"),
    ],
)
def test_wrong_options_are_one_line(arguments, said):
    done = run(cvae.main, "quadrants", *arguments)
    assert done.code == 2
    assert said in done.said
