"""experiments.cvae, from the command line, on scikit-learn's digits."""

import dataclasses
import json
import shutil
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import result_of, run
from flax import linen as nn
from matplotlib import image as png

import jaxvae
from experiments import classifier, cvae, pixelcnn
from experiments.splits import with_condition
from jaxvae import checkpoint, data
from jaxvae.distributions import Categorical

SMALL = (
    *("digits", "--smoke", "--network", "mlp", "--hidden", 64, "--latent-dim", 4),
    *("--validation", 0, "--batch-size", 16, "--learning-rate", 0.01),
)
FEW = slice(256)  # the test images of a smoke run


@pytest.fixture
def no_pictures(monkeypatch):
    """They are half of so small a run; `trained` draws them."""
    monkeypatch.setattr(cvae, "save_pictures", lambda *_: [])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    out = tmp_path_factory.mktemp("cvae") / "run"
    result, said = result_of(cvae.main, out, *SMALL, "--prior", "learned")
    return out, result, said


def arrays(run_dir):
    return jax.tree.leaves(checkpoint.load(run_dir, cvae.make_model)[1])


@pytest.mark.slow
def test_the_label_costs_at_most_its_own_nats(trained):
    out, result, _ = trained
    test = result["test"]
    model, params, _, config = checkpoint.load(out, cvae.make_model)
    images = data.load("digits", "test").take(FEW)
    log_prob = cvae.label_log_probs(
        model,
        SimpleNamespace(params=params, model_state=()),
        with_condition(images, images.label),
        config.num_classes,
        nll_samples=5,
    ).astype(np.float64)
    assert log_prob.shape == (256, 10)
    true = log_prob[np.arange(256), images.label]
    marginal = np.log(np.exp(log_prob - true[:, None]).mean(axis=1)) + true
    assert (-marginal <= -true + np.log(10)).all()
    assert test["nll"] == pytest.approx(-true.mean(), rel=1e-5)
    assert test["nll_marginal"] == pytest.approx(-marginal.mean(), rel=1e-5)
    assert test["nll_marginal"] <= test["nll"] + np.log(10)
    assert test["bayes_accuracy"] == (log_prob.argmax(axis=1) == images.label).mean()


@pytest.mark.slow
def test_a_run_is_measured_beside_the_unconditional_model(trained):
    out, result, said = trained
    test, other = result["test"], result["unconditional"]
    for measured in (test, other):
        assert measured["nll"] < measured["negative_elbo"] + 3 * measured["nll_standard_error"]
        assert measured["negative_elbo"] == pytest.approx(measured["rate"] + measured["distortion"], rel=1e-5)
        assert measured["negative_elbo"] < 64 * np.log(17)  # better than guessing every pixel
    assert test["margin_negative_elbo"] == other["negative_elbo"] - test["negative_elbo"]
    assert test["margin_nll_marginal"] == other["nll"] - test["nll_marginal"]
    assert f"-log p(x|y): {test['nll']:.3f}, unconditional model {other['nll']:.3f}" in said
    assert sum(result["kl_per_dimension"]) == pytest.approx(test["rate"], rel=1e-4)  # of p(z|c), not of N(0, I)

    conditional, params, _, _ = checkpoint.load(out, cvae.make_model)
    unconditional, other_params, _, _ = checkpoint.load(out / "unconditional", cvae.make_model)
    assert isinstance(conditional, jaxvae.CVAE)
    assert isinstance(unconditional, jaxvae.VAE)
    assert {"encoder", "decoder", "prior", "embed"} == params["params"].keys()
    assert {"encoder", "decoder"} == other_params["params"].keys()
    records = [json.loads(line) for line in (out / "unconditional" / "metrics.jsonl").read_text().splitlines()]
    assert records[-1]["test"]["negative_elbo"] == pytest.approx(other["negative_elbo"], rel=1e-5)

    share = result["read_as_condition_per_class"]
    assert test["read_as_condition"] == pytest.approx(np.mean(share))
    assert test["read_as_condition_worst"] == min(share) >= 0
    assert max(share) <= 1
    cell, line, margin, title = 96, 4, 12, 24
    side = 10 * (cell + line) + line
    assert png.imread(out / "samples.png").shape[:2] == (title + side + 2 * margin, side + 2 * margin)
    assert png.imread(out / "analogies.png").shape[:2] == (title + side + 2 * margin, side + 100 + 2 * margin)
    for name in ("reconstructions", "learning_curves", "kl_per_dimension"):
        assert str(out / f"{name}.png") in said
        assert png.imread(out / f"{name}.png")[..., :3].std() > 0.01


@pytest.mark.usefixtures("no_pictures")
@pytest.mark.slow
def test_a_resumed_run_equals_a_whole_one(trained, tmp_path):
    out, result, _ = trained
    again = tmp_path / "run"
    shutil.copytree(out, again)
    for directory in (again, again / "unconditional"):
        shutil.rmtree(directory / "checkpoints" / "32")
    resumed, said = result_of(cvae.main, again, *SMALL, "--prior", "learned", "--resume")
    assert said.count("resumed at step 16") == 2
    assert resumed["test"] == result["test"]
    for directory in ("", "unconditional"):
        for whole, parts in zip(arrays(out / directory), arrays(again / directory), strict=True):
            np.testing.assert_array_equal(whole, parts)


@pytest.mark.slow
@pytest.mark.usefixtures("no_pictures")
def test_a_run_alone_with_the_importance_weighted_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(cvae, "read_samples", lambda *_: (np.ones(10), 1.0))  # `trained` has them read
    options = ("--objective", "iwae", "--num-samples", 3, "--no-compare")
    result, _ = result_of(cvae.main, tmp_path, *SMALL, *options)
    assert not (tmp_path / "unconditional").exists()
    assert "unconditional" not in result
    assert "margin_nll" not in result["test"]
    assert result["test"]["nll"] < result["test"]["negative_elbo"] < 64 * np.log(17)
    record = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[-1])
    assert record["test"]["loss"] < record["test"]["negative_elbo"]


def test_the_classifier_learns_and_counts_what_it_reads():
    train, test = data.load("digits", "train"), data.load("digits", "test")
    reader = classifier.train(train, num_classes=10, steps=100, seed=0)
    right = classifier.read(*reader, test.x / np.float32(16)) == test.label
    assert classifier.accuracy(*reader, test) == pytest.approx(right.mean())
    assert right.mean() > 0.9


class FirstPixels(nn.Module):
    """Reads an image whose brightest pixel of the first is the class."""

    num_classes: int

    def __call__(self, x):
        assert x.dtype == jnp.float32
        return x.reshape(len(x), -1)[:, : self.num_classes]


def test_a_sample_is_read_beside_its_own_condition():
    def paints(swap):
        """A model whose image of class c has one pixel of full value: c; but class 2 paints 1 where `swap`."""

        def decode(latent, condition):
            painted = condition.at[:, 1].add(condition[:, 2]).at[:, 2].set(0) if swap else condition
            on = jnp.zeros((len(latent), 16)).at[:, :3].set(painted).reshape(-1, 4, 4, 1)
            return jnp.stack([100 * (1 - on), jnp.zeros_like(on), 100 * on], axis=-1)

        embed = partial(jax.nn.one_hot, num_classes=3)
        return jaxvae.CVAE(lambda *_: None, decode, Categorical, embed=embed, latent_dim=2)

    read = partial(cvae.read_as_condition, params={}, reader=FirstPixels(3), reader_params={}, per_class=8)
    np.testing.assert_array_equal(read(paints(swap=False), grey=data.make_prepare(3)), [1, 1, 1])
    np.testing.assert_array_equal(read(paints(swap=True), grey=data.make_prepare(3)), [1, 1, 0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--label-features", 0), "label_features must be at least 1, got 0"),
        (("--beta", -1), "beta must be a finite number, zero or more, got -1.0"),
        (("--learning-rate", 0), "learning_rate must be a positive number, got 0.0"),
        (("--objective", "iwae", "--beta", 2), "beta belongs to --objective vae"),
        (("--data", "digitz"), "did you mean 'digits'?"),
    ],
)
def test_wrong_options_are_one_line(arguments, said, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
    done = run(cvae.main, "digits", *arguments, "--out", tmp_path / "run")
    assert done.code == 2
    assert said in done.said
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [(), ("--data", "digits", "--class-conditional")])
def test_labels_that_count_from_one_are_refused_before_training(arguments, tmp_path, monkeypatch):
    def load(name, split, **options):
        images = digits(name, split, **options)
        return dataclasses.replace(images, arrays={**images.arrays, "label": images.label + 1})

    digits = data.load
    monkeypatch.setattr(data, "load", load)
    main = pixelcnn.main if arguments else cvae.main
    done = run(main, "digits", *arguments, "--out", tmp_path / "run")
    assert done.code == 2
    assert "'digits', train, of 10 classes: label[" in done.said
    assert "is 10, outside 0 .. 9: labels count from 0, so pass label - 1" in done.said
    assert not (tmp_path / "run").exists()
