"""experiments.beta_vae and experiments.rate_distortion, from the command line."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from commands import QUICK, result_of, run

from experiments import beta_vae, rate_distortion
from jaxvae import checkpoint, figures

pytestmark = pytest.mark.usefixtures("networks_start_as_for_users")

SPRITES = ("sprites", "--smoke", "--channels", 4, 4, "--latent-dim", 6, "--batch-size", 32, "--objective", "beta")
DIGITS = ("mnist", "--data", "digits", "--smoke", "--channels", 4, "--batch-size", 32)


@pytest.fixture
def undrawn(monkeypatch):
    """Runs that after their training measure no latents and draw nothing; that on sprites and `sweep` do."""
    monkeypatch.setattr(beta_vae, "measure", lambda *_, **__: SimpleNamespace(test={}, kl=np.zeros(1)))
    monkeypatch.setattr(beta_vae, "save_all_pictures", lambda *_: [])
    monkeypatch.setattr(rate_distortion, "save_pictures", lambda *_: [])


@pytest.mark.slow
def test_a_run_on_sprites_is_scored_beside_the_fixed_points(tmp_path, monkeypatch):
    scored_examples = beta_vae.scored_examples  # a third of the codes is enough to tell the fixed points apart
    monkeypatch.setattr(beta_vae, "scored_examples", lambda dataset, count: scored_examples(dataset, count // 3))
    for picture in ("reconstructions", "learning_curves", "interpolation"):  # test_experiments.py looks at these
        monkeypatch.setattr(figures, picture, lambda path, *_, **__: path)
    result, said = result_of(beta_vae.main, tmp_path, *SPRITES)
    names = {"mig", "sap", "factor_vae_score", "beta_vae_score"}
    assert names <= result["test"].keys()
    assert list(result["scores"]) == ["model", "true_factors", "noise", "rotations"]
    for scores in result["scores"].values():
        assert scores.keys() == names
    assert result["scores"]["true_factors"]["mig"] > 0.6 > 0.3 > result["scores"]["rotations"]["mig"]
    assert all(name in said for name in ("true factors", "noise", "rotations"))
    information = np.array(result["information"])
    assert information.shape == (6, 5)
    assert (information >= 0).all()
    assert (information <= 1).all()
    for name in ("traversals.png", "traversals.gif", "information.png", "kl_per_dimension.png", "samples.png"):
        assert (tmp_path / name).stat().st_size > 1000

    assert "beta 4, normalised 0.005859 = beta · 6 / 4096" in said
    assert result["normalized_beta"] == 24 / 4096
    model, params, _, config = checkpoint.load(tmp_path, beta_vae.make_model)
    assert config.beta == 4.0
    assert model.apply(params, 2, key=jax.random.key(0), method="sample").mean.shape == (2, 64, 64, 1)


def test_a_normalised_beta_is_turned_into_beta():
    config = dataclasses.replace(beta_vae.PRESETS["mnist"][1], normalized_beta=0.1)
    assert beta_vae.with_beta(config, 784).beta == pytest.approx(0.1 * 784 / 10)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--objective", "capacity", "--gamma", 100, "--capacity", 9, "--schedule-steps", 10),
        ("--objective", "total-correlation", "--beta", 6),
        ("--schedule", "linear", "--beta-start", 16, "--schedule-steps", 4, "--free-bits", 0.1),
    ],
)
@pytest.mark.slow
def test_other_objectives_train(arguments, tmp_path, undrawn):
    result, _ = result_of(beta_vae.main, tmp_path / "run", *DIGITS, *arguments)
    assert np.isfinite(result["test"]["negative_elbo"])
    assert "mig" not in result["test"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("sprites", "--beta", -1), "beta must be a finite number, zero or more, got -1.0"),
        (("sprites", "--objective", "capacity", "--schedule", "linear"), "the capacity has the schedule"),
        (("sprites", "--objective", "total-correlation", "--free-bits", 1), "free_bits belong to"),
        (("sprites", "--latent-dim", 0), "latent_dim must be at least 1, got 0"),
    ],
)
def test_wrong_options_of_beta_vae(arguments, said):
    done = run(beta_vae.main, *arguments)
    assert done.code == 2
    assert said in done.said


SWEEP = ("digits", "--betas", 0.5, 4.0, "--num-seeds", 2, "--epochs", 3, "--evaluate-every", 2, "--hidden", 16)


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    out = tmp_path_factory.mktemp("sweep") / "run"
    result, said = result_of(rate_distortion.main, out, *SWEEP, "--how", "map")
    return out, result, said


@pytest.mark.slow
def test_a_sweep_measures_every_member(sweep):
    out, result, said = sweep
    assert [(m["beta"], m["seed"]) for m in result["members"]] == [(0.5, 0), (0.5, 1), (4.0, 0), (4.0, 1)]
    for member in result["members"]:
        assert member["negative_elbo"] == pytest.approx(member["rate"] + member["distortion"], rel=1e-5)
    means = {row["beta"]: row["rate"] for row in result["by_beta"]}
    assert means[0.5] == pytest.approx(np.mean([m["rate"] for m in result["members"][:2]]))
    assert means[0.5] > means[4.0]
    assert result["test"]["rate_falls_with_beta"] is True
    assert (out / "rate_distortion.png").stat().st_size > 1000
    assert "means over 2 seeds" in said


def assert_same_members(members, others):
    for one, other in zip(members, others, strict=True):
        assert (one["beta"], one["seed"]) == (other["beta"], other["seed"])
        np.testing.assert_allclose(one["negative_elbo"], other["negative_elbo"], rtol=1e-3)


@pytest.mark.slow
def test_vmap_trains_the_same_members(sweep, tmp_path, undrawn):
    result, _ = result_of(rate_distortion.main, tmp_path, *SWEEP, "--how", "vmap")
    assert_same_members(sweep[1]["members"], result["members"])


@pytest.mark.slow
def test_processes_train_the_same_members(sweep, tmp_path, monkeypatch, undrawn):
    for name, value in QUICK.items():
        monkeypatch.setenv(name, value)
    result, said = result_of(rate_distortion.main, tmp_path, *SWEEP, "--betas", 4.0, "--how", "processes")
    assert_same_members(sweep[1]["members"][2:], result["members"])
    assert "beta-4: done, 1 of 1" in said


@pytest.mark.slow
def test_a_sweep_resumes(sweep, tmp_path, monkeypatch, undrawn):
    part = tmp_path / "part"
    fit = rate_distortion.Run.fit

    def stop_early(self, state, train_epoch, feed, **options):
        feed.total_steps = 2 * feed.steps_per_epoch
        return fit(self, state, train_epoch, feed, **options)

    with monkeypatch.context() as patch:
        patch.setattr(rate_distortion.Run, "fit", stop_early)
        assert run(rate_distortion.main, *SWEEP, "--how", "map", "--out", part).code == 0
    result, said = result_of(rate_distortion.main, part, *SWEEP, "--how", "map", "--resume")
    assert "resumed at step 44" in said
    assert result["members"] == sweep[1]["members"]


@pytest.mark.slow
def test_a_process_that_fails_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "nonsense")  # of the processes alone: here JAX has started
    done = run(rate_distortion.main, *SWEEP, "--how", "processes", "--out", tmp_path / "run")
    assert done.code == 1
    assert "beta-0.5 ended with 1" in done.said or "beta-4 ended with 1" in done.said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--betas", -1), "betas must be positive numbers, got (-1.0,)"),
        (("--betas", 1, 1), "betas must differ"),
        (("--betas", 1, 1.0000001), "betas must differ, in their first six digits, got (1.0, 1.0000001)"),
        (("--num-seeds", 0), "num_seeds must be at least 1, got 0"),
    ],
)
def test_wrong_options_of_a_sweep(arguments, said):
    done = run(rate_distortion.main, "digits", *arguments)
    assert done.code == 2
    assert said in done.said
