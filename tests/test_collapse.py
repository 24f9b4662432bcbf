"""Posteriors that cannot collapse, and the experiment that shows collapse and its cures."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import run
from scipy import optimize

import jaxvae
from experiments import collapse
from jaxvae.losses import gaussian_kl_terms
from jaxvae.posteriors import CommittedGaussian


@pytest.mark.parametrize("delta", [0.01, 0.5, 3.0, 40.0])
def test_each_latent_costs_at_least_delta_whatever_the_encoder_says(delta):
    posterior = CommittedGaussian(delta)
    root = optimize.brentq(lambda v: 0.5 * (np.exp(v) - 1 - v) - delta, -2 * delta - 1, 0)
    assert posterior.highest == pytest.approx(root, abs=1e-9)
    mean, log_var = jnp.zeros((1, 5)), jnp.float32([[-50.0, -1.0, 0.0, 3.0, 100.0]])
    record = posterior(mean, log_var)
    zero = jnp.zeros(())
    rates = np.asarray(gaussian_kl_terms(record.mean, record.log_var, zero, zero))
    assert (rates >= delta * (1 - 1e-3) - 1e-6).all()
    assert rates[0, -1] == pytest.approx(delta, rel=1e-2)
    narrow = np.minimum(log_var[0, 0], posterior.highest)
    assert record.log_var[0, 0] == pytest.approx(float(narrow), abs=1.0)  # far below the bound it is the encoder's
    gradient = jax.grad(lambda v: posterior(mean, v).log_var.sum())(log_var)
    assert np.isfinite(gradient).all()


def test_a_rate_that_is_none_is_refused():
    for delta in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=f"delta must be a positive number of nats, got {delta}"):
            CommittedGaussian(delta)
    for option, value, text in (
        ("--rate", 0.0, "rate must be a positive"),
        ("--epochs", 0, "epochs must be at least 1"),
        ("--resume", None, "--resume needs the directory of what goes on: pass --out"),
    ):
        done = run(collapse.main, *([option] if value is None else [option, value]))
        assert done.code == 2
        assert text in done.said


@pytest.mark.slow
def test_what_was_stopped_goes_on_to_the_same_bits(tmp_path, monkeypatch):
    """By a signal within the second of two runs: the first is then read."""
    models = collapse.make_models
    monkeypatch.setattr(collapse, "make_models", lambda *of: dict(list(models(*of).items())[:2]))
    options = ("--epochs", 2, "--hidden", 8, "--latent-dim", 2, "--batch-size", 700)
    whole = run(collapse.main, *options, "--out", tmp_path / "whole")
    assert whole.code == 0, whole.said
    train, trained = jaxvae.train, []

    def stopping(*arguments, **keywords):
        trained.append(keywords["out"].name)
        if len(trained) == 2:
            keywords["report"] = lambda progress: signal.raise_signal(signal.SIGTERM) if progress.step < 4 else None
        return train(*arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(jaxvae, "train", stopping)
        done = run(collapse.main, *options, "--out", tmp_path / "run")
    assert done.code == 143
    assert trained == ["variance-1", "free-bits"]
    assert "continue with the same options, --out" in done.said
    done = run(collapse.main, *options, "--out", tmp_path / "run")
    assert (done.code, "continue it with --resume or choose another --out" in done.said) == (2, True)
    done = run(collapse.main, *options, "--rate", 2, "--out", tmp_path / "run", "--resume")
    assert (done.code, "settings differ from those of the saved run" in done.said) == (2, True)
    done = run(collapse.main, *options, "--out", tmp_path / "run", "--resume")
    assert done.code == 0, done.said
    resumed, expected = (json.loads((tmp_path / name / "collapse.json").read_text()) for name in ("run", "whole"))
    assert resumed["test"] == expected["test"]
    assert (tmp_path / "run" / "collapse.png").read_bytes() == (tmp_path / "whole" / "collapse.png").read_bytes()


@pytest.mark.slow
def test_what_collapses_is_cured_in_three_ways(tmp_path):
    done = run(collapse.main, "--epochs", 80, "--out", tmp_path)
    assert done.code == 0, done.said
    test = json.loads((tmp_path / "collapse.json").read_text())["test"]
    plain = test.pop("variance 1")
    assert (plain["active_latents"], round(plain["rate"], 1)) == (0, 0)
    assert set(test) == {"free bits", "committed", "learned variance"}
    for name, of in test.items():
        assert of["active_latents"] >= 5, name
        assert of["error"] < 0.8 * plain["error"], name
        assert of["mutual_information"] > 1, name
    assert (tmp_path / "collapse.png").stat().st_size > 1000


@pytest.mark.slow
def test_pixels_that_see_far_leave_the_latent_unused_but_for_free_bits(tmp_path):
    options = ("--epochs", 12, "--rate", 0.5, "--out", tmp_path, "--picture-format", "svg")
    done = run(collapse.main, "--model", "pixel-vae", *options)
    assert done.code == 0, done.said
    test = json.loads((tmp_path / "collapse.json").read_text())["test"]
    assert set(test) == {"pixels see far", "far, free bits", "pixels see near", "pixels see none"}
    assert test["pixels see far"]["rate"] < 0.5
    assert test["far, free bits"]["rate"] > 2
    assert test["pixels see none"]["rate"] > 1
    assert test["pixels see far"]["negative_elbo"] < test["pixels see none"]["negative_elbo"]
    assert (tmp_path / "collapse.svg").stat().st_size > 1000
