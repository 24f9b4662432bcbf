"""experiments.densities: families of q beside exact posteriors of two variables."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from commands import run

from experiments import densities


def test_a_fitted_gaussian_is_the_target_where_that_is_one():
    """And log q on the grid is its density: the integral of q is one, the divergence nothing."""
    config = densities.Config(steps=600, samples=128, learning_rate=0.03)
    target = lambda z: -0.5 * jnp.square((z - jnp.array([[1.0, -0.5]])) / jnp.array([[0.5, 1.2]])).sum(axis=1)  # noqa: E731
    grid, area = densities.make_grid()
    log_q = densities.fit(densities.FAMILIES["diagonal"], target, config, grid)
    exact = np.asarray(target(grid), np.float64)
    exact -= np.log(np.exp(exact).sum() * area)
    assert np.exp(log_q).sum() * area == pytest.approx(1, abs=1e-3)
    assert (np.exp(log_q) * (log_q - exact)).sum() * area == pytest.approx(0, abs=5e-3)


def test_wrong_options_are_one_line():
    for option, value, text in (
        ("--steps", 0, "steps must be at least 1"),
        ("--learning-rate", 0.0, "learning_rate must"),
    ):
        done = run(densities.main, option, value)
        assert done.code == 2
        assert text in done.said


@pytest.mark.slow
def test_richer_families_come_nearer_to_every_density(tmp_path):
    done = run(densities.main, "--steps", 2500, "--out", tmp_path, "--picture-format", "pdf")
    assert done.code == 0, done.said
    kl = json.loads((tmp_path / "densities.json").read_text())["kl"]
    assert set(kl) == {"banana", "ring", "wave", "two modes"}
    for name, of in kl.items():
        assert -1e-3 < of["flow"] < 0.05 < of["mixture"] < of["Cholesky"] < of["diagonal"], name
    assert (tmp_path / "densities.pdf").stat().st_size > 1000
