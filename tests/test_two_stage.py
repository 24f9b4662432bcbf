"""A prior fitted to the codes of a trained model: its objective, and the two experiments with learned priors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import result_of, run
from variants import SHAPE, batch, mlp

import jaxvae
from experiments import latents, two_stage
from jaxvae.objectives import init_prior, prior_loss, with_fitted_prior
from jaxvae.priors import VampPrior

B, D = 40, 3
PLAIN = jaxvae.VAE(*mlp(D))
TWO = PLAIN.clone(prior=jaxvae.GaussianMixture(1, D))


@pytest.fixture(scope="module")
def trained():
    """Codes that are not N(0, I)."""
    params = jax.jit(PLAIN.init)(jax.random.key(0), batch(1)["x"])
    return jax.tree.map(lambda leaf: 1.7 * leaf, params)


def start(trained, model=TWO):
    return init_prior(model, trained, (), batch(1), key=jax.random.key(1))


def test_the_loss_is_minus_log_p_at_draws_of_the_frozen_posterior(trained, key):
    params, state = start(trained)
    loss, (again, metrics) = prior_loss(TWO, params, state, batch(B), key=key, step=0, num_samples=2000)
    posterior = PLAIN.apply(trained, batch(B)["x"], method="encode")
    second = np.square(posterior.mean) + np.exp(posterior.log_var)
    assert loss == pytest.approx(0.5 * (D * np.log(2 * np.pi) + second.sum(axis=1).mean()), rel=5e-3)
    assert metrics["loss"] == loss
    jax.tree.map(np.testing.assert_array_equal, again["frozen"], dict(trained))


def test_training_moves_the_prior_alone_to_the_aggregate_posterior(trained, key):
    """Of one Gaussian the best is known: the mean and the variance of all codes together."""
    loss_fn = partial(prior_loss, TWO)
    optimizer = optax.adam(optax.cosine_decay_schedule(0.05, 300))
    state = jaxvae.init_train_state(partial(init_prior, TWO, trained, (), batch(1)), optimizer, key=jax.random.key(2))
    step = jax.jit(jaxvae.make_train_step(loss_fn, optimizer))
    for _ in range(300):
        state, _ = step(state, batch(B))
    whole = with_fitted_prior(state.params, state.model_state)
    posterior = PLAIN.apply(trained, batch(B)["x"], method="encode")
    mean = np.asarray(posterior.mean, float)
    variance = mean.var(axis=0) + np.exp(np.asarray(posterior.log_var, float)).mean(axis=0)
    record = TWO.apply(whole, method="latent_prior")
    np.testing.assert_allclose(record.component_mean[0], mean.mean(axis=0), atol=0.1)
    np.testing.assert_allclose(np.exp(record.component_log_var[0]), variance, rtol=0.1)
    for part in ("encoder", "decoder"):
        jax.tree.map(np.testing.assert_array_equal, whole["params"][part], trained["params"][part])
    # The ELBO gains what N(0, I) missed of all codes together, and nothing else changes.
    terms = jax.jit(partial(jaxvae.objectives.terms_of, num_samples=200), static_argnums=0)
    before, _ = terms(PLAIN, trained, (), batch(B), key=key)
    after, _ = terms(TWO, whole, (), batch(B), key=key)
    np.testing.assert_allclose(after.log_likelihood, before.log_likelihood, rtol=1e-5)
    missed = 0.5 * (variance + mean.mean(axis=0) ** 2 - 1 - np.log(variance)).sum()
    assert (after.log_ratio - before.log_ratio).mean() == pytest.approx(missed, rel=0.05)


def test_pseudo_inputs_are_fitted_through_the_frozen_encoder(trained, key):
    model = PLAIN.clone(prior=VampPrior(5, SHAPE))
    params, state = start(trained, model)
    gradient = jax.grad(lambda params: prior_loss(model, params, state, batch(B), key=key, step=0)[0])(params)
    assert jax.tree.map(jnp.shape, gradient) == {"params": {"prior": {"x": (5, *SHAPE)}}}
    assert np.abs(gradient["params"]["prior"]["x"]).max(axis=(1, 2, 3)).min() > 0


def test_what_has_no_codes_or_no_parameters_is_refused(trained, key):
    with pytest.raises(ValueError, match="there is nothing to fit: StandardNormal has no parameters"):
        start(trained, PLAIN)
    with pytest.raises(TypeError, match="a prior is fitted to the codes of a VAE or CVAE, and a VQVAE has none"):
        init_prior(jaxvae.VQVAE(*mlp(D), jaxvae.EMACodebook(8)), {}, (), batch(1), key=key)
    params, _ = start(trained)
    with pytest.raises(ValueError, match="model_state must hold 'frozen', the trained model's variables: init_prior"):
        prior_loss(TWO, params, (), batch(B), key=key, step=0)
    wide = PLAIN.clone(prior=jaxvae.GaussianMixture(1, D + 1))
    with pytest.raises(ValueError, match=r"the prior is over latents of shape \(4,\), but those of the encoder are"):
        prior_loss(wide, *start(trained, wide), batch(B), key=key, step=0)


def test_every_row_of_the_table_is_a_preset():
    for name, (_, changed) in latents.ROWS.items():
        config = latents.PRESETS[name][1]
        assert (config.data, config.epochs, config.hidden) == ("mnist", 121, (200, 200))
        assert all(getattr(config, option) == value for option, value in changed.items())


def test_other_networks_are_refused():
    done = run(latents.main, "digits", "--network", "mlp")
    assert done.code == 2
    assert "latents are compared in one network: --network burda" in done.said


@pytest.mark.slow
@pytest.mark.parametrize("options", [("--prior", "mixture"), ("--posterior", "iaf", "--prior", "flow")])
def test_a_run_of_latents_is_measured_and_drawn(options, tmp_path):
    small = ("digits", "--smoke", "--hidden", 16, 16, "--latent-dim", 2, "--posterior-hidden", 8, "--prior-hidden", 8)
    result, _ = result_of(latents.main, tmp_path / "run", *small, *options)
    test = result["test"]
    assert test["nll"] < test["negative_elbo"] + 3 * test["nll_standard_error"]
    assert test["negative_elbo"] == pytest.approx(test["rate"] + test["distortion"], rel=1e-5)
    assert ("aggregate_kl" in test) == ("iaf" not in options)
    for picture in ("samples", "prior", "reconstructions", "posteriors"):
        assert (tmp_path / "run" / f"{picture}.png").stat().st_size > 1000


@pytest.mark.slow
def test_two_stages_are_measured_and_resume_to_the_same_figures(tmp_path):
    small = ("digits", "--hidden", 64, "--latent-dim", 8, "--epochs", 40, "--prior-epochs", 60)
    small = (
        *small,
        "--classifier-steps",
        300,
        "--samples",
        500,
        "--nll-samples",
        20,
        "--prior-hidden",
        32,
        "--prior-layers",
        4,
    )
    result, _ = result_of(two_stage.main, tmp_path / "run", *small)
    test = result["test"]
    for prior in ("mixture", "flow"):
        assert test[f"aggregate_kl_{prior}"] < test["aggregate_kl_normal"] - 0.05
        gained = test["negative_elbo_normal"] - test[f"negative_elbo_{prior}"]
        assert gained == pytest.approx(test["aggregate_kl_normal"] - test[f"aggregate_kl_{prior}"], abs=0.02)
        assert 0 <= test[f"read_{prior}"] <= test["read_test_images"] <= 1
    again, _ = result_of(two_stage.main, tmp_path / "run", *small, "--resume")
    assert again["test"] == pytest.approx(test, rel=1e-5)
