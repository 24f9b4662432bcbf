"""Importance weighting: the bound and both of its gradients, against models where everything is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxvae
from jaxvae import losses
from jaxvae.distributions import DiagGaussian

N, D, X = 5, 2, 4
LOG_VAR = -1.0
# Orthogonal rows: the exact posterior is diagonal, so the encoder below can be exact.
WEIGHTS = np.linalg.qr(np.random.default_rng(0).normal(size=(X, D)))[0].T * [[1.5], [0.7]]
POSTERIOR_VAR = 1 / (1 + (WEIGHTS**2).sum(1) / np.exp(LOG_VAR))
COVARIANCE = WEIGHTS.T @ WEIGHTS + np.exp(LOG_VAR) * np.eye(X)
DATA = np.random.default_rng(1).multivariate_normal(np.zeros(X), COVARIANCE, N)
EXACT = stats.multivariate_normal(np.zeros(X), COVARIANCE).logpdf(DATA)
BATCH = {"x": jnp.asarray(DATA, jnp.float32), "index": jnp.arange(N)}


class Model:
    """A linear-Gaussian VAE whose parameters are plain arrays; it starts at the exact posterior."""

    latent_dim = D

    @staticmethod
    def apply(params, *arguments, method, **options):
        model = jaxvae.VAE(
            encoder=lambda x: (x @ params["gain"], jnp.broadcast_to(params["log_var"], (len(x), D))),
            decoder=lambda z: z @ params["weights"],
            likelihood=partial(DiagGaussian, log_var=LOG_VAR),
            latent_dim=D,
        )
        return model.apply({}, *arguments, method=method, **options)


MODEL = Model()
PARAMS = jax.tree.map(
    np.float32,  # constants to the model, unless a caller's transformation traces them
    {
        "gain": WEIGHTS.T * POSTERIOR_VAR / np.exp(LOG_VAR),
        "log_var": np.log(POSTERIOR_VAR),
        "weights": WEIGHTS,
    },
)
OFF = {**PARAMS, "gain": 0.8 * PARAMS["gain"], "log_var": PARAMS["log_var"] + 0.5}  # a worse encoder


# Compiled; operation by operation they take longer to test.
log_weights = jax.jit(partial(jaxvae.objectives.vae_log_weights, MODEL), static_argnames="num_samples")
iwae_loss = jax.jit(partial(jaxvae.iwae_loss, MODEL), static_argnames=("num_samples", "doubly_reparameterized"))
sampled_vae_loss = jax.jit(partial(jaxvae.sampled_vae_loss, MODEL))


def bound(params, key, num_samples, **options):
    return -iwae_loss(params, (), BATCH, key=key, step=0, num_samples=num_samples, **options)[0]


@pytest.mark.parametrize("num_samples", [1, 3, 50])
def test_with_the_exact_posterior_the_bound_is_log_p_for_every_number_of_samples(num_samples, key):
    weights = log_weights(PARAMS, (), BATCH, key=key, num_samples=num_samples)
    assert weights.shape == (num_samples, N)
    np.testing.assert_allclose(weights, np.broadcast_to(EXACT, weights.shape), atol=2e-5)  # no variance
    np.testing.assert_allclose(bound(PARAMS, key, num_samples), EXACT.mean(), atol=1e-5)


def test_the_bound_grows_towards_log_p(key):
    keys = jax.random.split(key, 2000)
    values = [np.asarray(jax.jit(jax.vmap(lambda k, s=s: bound(OFF, k, s)))(keys)) for s in (1, 2, 8, 64)]
    means, errors = np.mean(values, axis=1), np.std(values, axis=1) / np.sqrt(len(keys))
    assert (np.diff(means) > 3 * errors[1:]).all()
    assert means[-1] < EXACT.mean()
    assert EXACT.mean() - means[-1] < 0.02


def test_one_sample_is_the_sampled_elbo_and_the_loss_is_the_mean_bound_of_the_log_weights(key):
    one = bound(OFF, key, 1)
    sampled, (_, metrics) = sampled_vae_loss(OFF, (), BATCH, key=key, step=0)
    np.testing.assert_allclose(one, -sampled, rtol=1e-6)
    np.testing.assert_allclose(metrics["negative_elbo"], metrics["rate"] + metrics["distortion"], rtol=1e-6)
    weights = log_weights(OFF, (), BATCH, key=key, num_samples=7)
    np.testing.assert_allclose(bound(OFF, key, 7), losses.iwae_bound(weights).mean(), rtol=1e-6)
    value, (_, metrics) = iwae_loss(OFF, (), BATCH, key=key, step=0, num_samples=7)
    np.testing.assert_allclose(metrics["negative_elbo"], -weights.mean(), rtol=1e-6)
    assert value == metrics["loss"] < metrics["negative_elbo"]


def test_the_sampled_elbo_agrees_with_the_analytic_one_on_average(key):
    keys = jax.random.split(key, 4000)
    sampled, analytic = (
        jax.jit(jax.vmap(lambda k, loss=loss: loss(MODEL, OFF, (), BATCH, key=k, step=0, num_samples=2)[0]))(keys)
        for loss in (jaxvae.sampled_vae_loss, jaxvae.vae_loss)
    )
    error = np.sqrt((sampled.var() + analytic.var()) / len(keys))
    assert abs(sampled.mean() - analytic.mean()) < 4 * error


def test_the_gradient_weighs_each_sample_by_its_share(key):
    """Autodiff of the log-mean-exp: Σ_s (w_s / Σ w) ∇ log w_s, so the best samples count most."""

    of_params = partial(log_weights, model_state=(), batch=BATCH, key=key, num_samples=6)
    weights = np.asarray(of_params(OFF), np.float64)
    shares = np.exp(weights - weights.max(0)) / np.exp(weights - weights.max(0)).sum(0)
    jacobian = jax.jit(jax.jacrev(of_params))(OFF)
    expected = jax.tree.map(lambda j: np.tensordot(shares / N, np.asarray(j, np.float64), axes=2), jacobian)
    gradient = jax.jit(jax.grad(bound), static_argnums=2)(OFF, key, 6)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-4, atol=1e-5), gradient, expected)


def both_gradients(params, keys, num_samples):
    return [
        jax.jit(jax.vmap(lambda k, d=d: jax.grad(bound)(params, k, num_samples, doubly_reparameterized=d)))(keys)
        for d in (False, True)
    ]


def test_the_doubly_reparameterised_loss_has_the_same_value_and_the_same_decoder_gradient(key):
    for num_samples in (1, 6):
        plain, doubly = (bound(OFF, key, num_samples, doubly_reparameterized=d) for d in (False, True))
        np.testing.assert_allclose(plain, doubly, rtol=1e-6)
        plain, doubly = both_gradients(OFF, key[None], num_samples)
        np.testing.assert_allclose(plain["weights"], doubly["weights"], rtol=1e-4, atol=1e-6)


def test_the_doubly_reparameterised_gradient_vanishes_at_the_exact_posterior(key):
    """There log w does not depend on z: no noise at all, where the plain estimate has its variance left."""
    plain, doubly = both_gradients(PARAMS, key[None], 6)
    for name in ("gain", "log_var"):
        np.testing.assert_allclose(doubly[name], 0, atol=2e-5)
        assert np.abs(plain[name]).max() > 1e-2


@pytest.mark.parametrize("num_samples", [1, 5])
def test_both_gradients_have_the_same_mean_and_the_doubly_reparameterised_less_variance(num_samples, key):
    plain, doubly = both_gradients(OFF, jax.random.split(key, 20_000), num_samples)
    for name in ("gain", "log_var"):
        error = np.sqrt((plain[name].var(0) + doubly[name].var(0)) / 20_000)
        np.testing.assert_array_less(np.abs(plain[name].mean(0) - doubly[name].mean(0)), 5 * error)
        assert (doubly[name].var(0) < plain[name].var(0)).all()


def test_no_samples_are_refused(key):
    for loss in (jaxvae.iwae_loss, jaxvae.sampled_vae_loss, jaxvae.vae_loss):
        with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
            loss(MODEL, PARAMS, (), BATCH, key=key, step=0, num_samples=0)
