"""experiments.inpaint on scikit-learn's digits: the pieces, and a whole run."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import result_of, run

import jaxvae
from experiments import inpaint
from experiments.completion import Completed, batches_of, figures_of, halves, look_at, look_at_cvae, look_at_vae
from jaxvae import checkpoint, data
from jaxvae.evaluation import Visible

SHAPE = (5, 2, 1)  # an odd height: two rows are hidden
HIDDEN = 4


def test_an_image_falls_into_what_is_hidden_and_what_is_visible(key):
    x = jnp.arange(20.0).reshape(2, *SHAPE)
    upper, lower = halves(x)
    np.testing.assert_array_equal(upper, [[0, 1, 2, 3], [10, 11, 12, 13]])
    np.testing.assert_array_equal(lower[0], np.arange(4, 10))
    np.testing.assert_array_equal(inpaint.lower_half(SHAPE).ravel(), [False] * 4 + [True] * 6)
    batch = inpaint.Halves(lambda batch, *, key: batch | {"x": batch["x"] + 1})({"x": x}, key=key)
    np.testing.assert_array_equal(batch["x"], upper + 1)
    np.testing.assert_array_equal(batch["condition"], lower + 1)


def test_completions_are_worth_what_their_latents_say(key):
    """Of the VAE and of the CVAE alike: log of the mean of p(hidden | z), and the error of the mean completion."""
    x = jnp.round(jax.random.uniform(key, (3, *SHAPE)))
    latent = np.random.default_rng(0).normal(size=(3, 7, 2)).astype(np.float32)
    weights = np.random.default_rng(1).normal(size=(2, 10)).astype(np.float32)
    upper, lower = halves(x)
    vae = jaxvae.VAE(lambda x: x, lambda z: (z @ weights).reshape(-1, *SHAPE))
    cvae = jaxvae.CVAE(lambda x, c: x, lambda z, c: (z @ weights)[:, :HIDDEN])
    logits = latent @ weights[:, :HIDDEN]
    each = (np.asarray(upper)[:, None] * logits - np.logaddexp(0, logits)).sum(axis=-1)
    mean = 1 / (1 + np.exp(-logits))
    source = {"x": x, "index": jnp.arange(3)}
    state = SimpleNamespace(params={}, model_state=())
    for look, batch in (
        (partial(look_at_vae, vae, Visible(inpaint.lower_half(SHAPE))), source),
        (partial(look_at_cvae, cvae), source | {"x": upper, "condition": lower}),
    ):
        completed = look_at(look, state, batch, latent, 1.0, {})
        np.testing.assert_allclose(completed.log_prob, np.log(np.exp(each).mean(axis=1)), rtol=1e-4)
        np.testing.assert_allclose(completed.mean.reshape(3, -1), mean.mean(axis=1), rtol=1e-4)
        np.testing.assert_allclose(completed.singles.reshape(3, 3, -1), mean[:, :3], rtol=1e-4)
        assert completed.error == pytest.approx(np.square(mean.mean(axis=1) - upper).mean(), rel=1e-4)
        assert completed.spread == pytest.approx(latent.std(axis=1, ddof=1).mean(), rel=1e-4)


def test_every_example_is_in_one_batch():
    for count in (3, 50, 51):
        indices = np.asarray(batches_of({"x": np.zeros(count)}))
        assert indices.shape == {3: (1, 3), 50: (1, 50), 51: (2, 50)}[count]
        np.testing.assert_array_equal(indices[indices >= 0], np.arange(count))


def test_figures_have_the_names_of_the_methods():
    completed = Completed(np.array([-1.0, -3.0]), np.zeros(2), np.zeros(2), 0.25, 0.5, 9.0)
    assert figures_of({"unadjusted 0.1": completed}) == {
        "error_unadjusted_0.1": 0.25,
        "nll_unadjusted_0.1": 2.0,
        "latent_std_unadjusted_0.1": 0.5,
        "seconds_unadjusted_0.1": 9.0,
    }


def test_wrong_options_are_one_line():
    for *arguments, text in (
        ("--draws", 1, "draws must be at least 2, got 1"),
        ("--step-sizes", 0.0, "step_sizes must be positive numbers, got (0.0,)"),
        ("--step-sizes", 0.01, 0.01, "step_sizes must differ, in their first six digits, got (0.01, 0.01)"),
    ):
        done = run(inpaint.main, "digits", *arguments)
        assert done.code == 2
        assert text in done.said


@pytest.mark.slow
def test_a_run_compares_every_method_and_resumes_to_the_same_figures(tmp_path):
    out = tmp_path / "run"
    small = ("digits", "--smoke", "--hidden", 16, "--latent-dim", 2)
    result, _ = result_of(inpaint.main, out, *small)
    test = result["test"]
    for name in ("prior", "encoder", "gibbs", "langevin", "unadjusted_0.01", "unadjusted_0.1", "cvae"):
        assert 0 < test[f"error_{name}"] < 0.3
        assert 0 < test[f"nll_{name}"] < 32  # half of 64 pixels
    assert len(result["diagnostics"]) == 6  # of all but the CVAE
    assert result["diagnostics"]["Gibbs"]["acceptance"] < 1
    assert (out / "completions.png").stat().st_size > 1000
    again, _ = result_of(inpaint.main, out, *small, "--resume")
    for figure, value in again["test"].items():
        if "seconds" not in figure:
            assert value == pytest.approx(test[figure], rel=1e-6)
    for where, make in ((out, inpaint.make_model), (out / "cvae", inpaint.make_cvae)):
        model, params, _, _ = checkpoint.load(where, make)
        upper, lower = halves(jnp.zeros((1, *data.load("digits", "test").shape)))
        inputs = (upper, lower) if isinstance(model, jaxvae.CVAE) else (jnp.zeros((1, 8, 8, 1)),)
        assert np.isfinite(model.apply(params, *inputs).mean).all()
