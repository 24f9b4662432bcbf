"""The importance-sampled log-likelihood against models whose log-likelihood is known in closed form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxvae
from jaxvae.distributions import DiagGaussian

N, D, X = 23, 2, 5
WEIGHTS = np.random.default_rng(0).normal(size=(D, X)).astype(np.float32)
NOISE_LOG_VAR = -1.0


def linear_gaussian(widen=1.0):
    """p(x|z) = N(zW, σ²I), and as q(z|x) the exact posterior's mean with its variances times `widen`.

    The posterior of this W is not diagonal; q ignores the correlation, so its weights vary.
    """
    precision = np.eye(D) + WEIGHTS @ WEIGHTS.T / np.exp(NOISE_LOG_VAR)
    gain = jnp.asarray(WEIGHTS.T @ np.linalg.inv(precision) / np.exp(NOISE_LOG_VAR), jnp.float32)
    log_var = jnp.asarray(np.log(widen * np.diag(np.linalg.inv(precision))), jnp.float32)
    return jaxvae.VAE(
        encoder=lambda x: (x @ gain, jnp.broadcast_to(log_var, (len(x), D))),
        decoder=lambda z: z @ WEIGHTS,
        likelihood=partial(DiagGaussian, log_var=NOISE_LOG_VAR),
        latent_dim=D,
    )


COVARIANCE = WEIGHTS.T @ WEIGHTS + np.exp(NOISE_LOG_VAR) * np.eye(X)
DATA = np.random.default_rng(1).multivariate_normal(np.zeros(X), COVARIANCE, N).astype(np.float32)
EXACT = stats.multivariate_normal(np.zeros(X), COVARIANCE).logpdf(DATA)
SOURCE = {"image": jnp.asarray(DATA), "index": jnp.arange(N, dtype=jnp.int32)}


def rows(batch_size):
    padded = np.full(-(-N // batch_size) * batch_size, -1, np.int32)
    padded[:N] = np.arange(N)
    return jnp.asarray(padded.reshape(-1, batch_size))


LOG_WEIGHTS = partial(jaxvae.vae_log_weights, linear_gaussian(widen=2.0))


def estimate(num_samples, batch_size=10, seed=0, **options):
    return jaxvae.log_likelihood(
        LOG_WEIGHTS, {}, (), SOURCE, rows(batch_size), key=jax.random.key(seed), num_samples=num_samples, **options
    )


def test_equals_the_exact_log_likelihood_within_its_own_error():
    result = estimate(2000)
    assert result.log_prob.shape == (N,)
    z_scores = (result.log_prob - EXACT) / result.standard_error
    assert np.abs(z_scores).max() < 4
    assert abs(result.nll - -EXACT.mean()) < 3 * result.nll_standard_error
    assert 0 < result.nll_standard_error < 0.02


def test_the_standard_error_is_the_spread_over_seeds():
    results = [estimate(200, seed=seed) for seed in range(40)]
    spread = np.std([r.nll for r in results], ddof=1)
    claimed = np.mean([r.nll_standard_error for r in results])
    assert 0.65 < spread / claimed < 1.5  # 5 standard errors of a deviation from 40 values


def test_chunks_of_samples_and_of_data_change_nothing():
    whole = estimate(60, batch_size=N, samples_per_pass=60)
    for batch_size, samples_per_pass in ((10, 7), (1, 60), (16, 1), (4, 1000)):
        other = estimate(60, batch_size=batch_size, samples_per_pass=samples_per_pass)
        np.testing.assert_allclose(other.log_prob, whole.log_prob, atol=2e-5)
        np.testing.assert_allclose(other.standard_error, whole.standard_error, rtol=1e-3)


def test_grows_with_the_number_of_samples_and_one_sample_is_the_elbo(key):
    means = [np.mean([estimate(s, seed=seed).log_prob.mean() for seed in range(10)]) for s in (1, 5, 50)]
    assert means[0] < means[1] < means[2] < EXACT.mean() + 0.02
    single = estimate(1)
    assert np.isnan(single.standard_error).all()
    prepare_key, loss_key = jax.random.split(key)
    del prepare_key
    weights = jaxvae.vae_log_weights(
        linear_gaussian(widen=2.0), {}, (), SOURCE, key=jax.random.fold_in(loss_key, 0), num_samples=1
    )
    np.testing.assert_allclose(single.log_prob, weights[0], rtol=1e-5)


def test_weights_that_underflow_do_not(key):
    def tiny(params, model_state, batch, *, key, num_samples):
        return jnp.full((num_samples, len(batch["index"])), -5000.0)

    result = jaxvae.log_likelihood(tiny, {}, (), SOURCE, rows(8), key=key, num_samples=100)
    np.testing.assert_array_equal(result.log_prob, np.full(N, -5000.0))
    np.testing.assert_allclose(result.standard_error, 0, atol=1e-3)


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        estimate(0)


def test_active_units_are_those_whose_mean_moves():
    codes = np.random.default_rng(0).normal(size=(1000, 4)) * [1.0, 0.2, 0.05, 0.0] + 7.0
    assert jaxvae.active_units(codes) == 2
    assert jaxvae.active_units(codes, threshold=1e-4) == 3


def test_map_batches_keeps_the_order_and_drops_the_padding(key):
    seen = []
    out = jaxvae.map_batches(
        lambda params, model_state, batch, *, key: {"index": batch["index"], "x": batch["image"] * params},
        2.0, (), SOURCE, rows(10), key=key, progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    np.testing.assert_array_equal(out["index"], np.arange(N))
    np.testing.assert_array_equal(out["x"], 2 * DATA)
    assert seen == [(1, 3), (2, 3), (3, 3)]
