"""Factor analysis in closed form, and the linear VAE with a variance for each element, which is it."""

import json
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import result_of
from scipy import stats

import jaxvae
from experiments import factors
from jaxvae.evaluation import classical
from jaxvae.objectives import linear_vae_loss

SHAPE, D, K = (3, 2, 1), 6, 2
RNG = np.random.default_rng(0)
MODEL = classical.FactorAnalysis(
    RNG.normal(size=SHAPE), RNG.normal(size=(D, K)), np.array([0.3, 1.0, 0.2, 0.5, 2.0, 0.7])
)
COVARIANCE = MODEL.weights @ MODEL.weights.T + np.diag(MODEL.noise_variance)
X = RNG.normal(size=(7, *SHAPE))


def test_the_density_is_scipys_and_the_posterior_that_of_the_joint_gaussian():
    flat, mean = X.reshape(7, D), MODEL.mean.ravel()
    np.testing.assert_allclose(MODEL.log_prob(X), stats.multivariate_normal.logpdf(flat, mean, COVARIANCE), rtol=1e-10)
    gain = MODEL.weights.T @ np.linalg.inv(COVARIANCE)
    means, covariance = MODEL.posterior(X)
    np.testing.assert_allclose(means, (flat - mean) @ gain.T, rtol=1e-10)
    np.testing.assert_allclose(covariance, np.eye(K) - gain @ MODEL.weights, rtol=1e-10)


def test_the_elbo_of_a_diagonal_encoder_is_that_of_its_terms():
    """KL(q || p(z|x)) of the Gaussian with the posterior's mean and the inverse of its precision's diagonal."""
    means, covariance = MODEL.posterior(X)
    variances = 1 / np.diag(np.linalg.inv(covariance))
    inverse = np.linalg.inv(covariance)
    kl = 0.5 * (np.trace(inverse * variances) - K - np.log(variances).sum() + np.linalg.slogdet(covariance)[1])
    np.testing.assert_allclose(MODEL.elbo(X), MODEL.log_prob(X) - kl, rtol=1e-10)
    assert kl > 0.01
    assert means.shape == (7, K)


def test_samples_have_its_moments(key):
    samples = MODEL.sample(40_000, key=key)
    assert samples.shape == (40_000, *SHAPE)
    np.testing.assert_allclose(samples.mean(axis=0), MODEL.mean, atol=0.05)
    np.testing.assert_allclose(np.cov(samples.reshape(-1, D).T), COVARIANCE, atol=0.12)


def test_fitting_finds_the_factors_and_leaves_a_diagonal_posterior(key):
    data = MODEL.sample(5000, key=key)
    fitted = classical.fit_factor_analysis(data, K)
    assert fitted.log_prob(data).mean() >= MODEL.log_prob(data).mean() - 1e-9
    np.testing.assert_allclose(fitted.noise_variance, MODEL.noise_variance, rtol=0.2)
    np.testing.assert_allclose(fitted.elbo(data), fitted.log_prob(data), rtol=1e-9)
    assert fitted.mean.shape == SHAPE
    assert classical.fit_ppca(data, K).log_prob(data).mean() < fitted.log_prob(data).mean() - 0.1


def test_what_cannot_be_fitted_is_refused(monkeypatch):
    still = np.concatenate([X, np.ones((7, 1, 2, 1))], axis=1)
    with pytest.raises(ValueError, match="element 6 of x is the same in all examples: leave it out"):
        classical.fit_factor_analysis(still, K)
    for wrong in (0, D):
        with pytest.raises(ValueError, match=rf"latent_dim must lie in 1 .. 5, below the size of x, got {wrong}"):
            classical.fit_factor_analysis(X, wrong)
    with pytest.raises(ValueError, match="data must be finite and not empty"):
        classical.fit_factor_analysis(np.full((3, 4), np.nan), 1)
    monkeypatch.setitem(sys.modules, "sklearn.decomposition", None)
    with pytest.raises(ImportError, match=r"needs scikit-learn: pip install 'jaxvae\[data\]'"):
        classical.fit_factor_analysis(X, K)


def test_the_linear_vae_at_its_best_is_factor_analysis(x64):
    """The exact loss at the best decoder and encoder is -log p(x), and at any other encoder above it."""
    fitted = classical.fit_factor_analysis(MODEL.sample(500, key=jax.random.key(1)), K)
    vae = jaxvae.models.linear_vae(SHAPE, K, per_element=True)
    _, covariance = fitted.posterior(np.zeros((1, *SHAPE)))
    gain = (fitted.weights / fitted.noise_variance[:, None]) @ covariance
    params = {
        "encoder": {
            "mean": {"kernel": gain, "bias": -fitted.mean.ravel() @ gain},
            "log_var": np.log(np.diag(covariance)),
        },
        "decoder": {"output": {"kernel": fitted.weights.T, "bias": fitted.mean.ravel()}},
        "likelihood": {"scale": 20 * np.arctanh(np.log(fitted.noise_variance) / 20).reshape(SHAPE)},
    }
    loss = partial(linear_vae_loss, vae, model_state=(), batch={"x": jnp.asarray(X)}, key=None, step=0)
    value = loss({"params": jax.tree.map(jnp.asarray, params)})[0]
    np.testing.assert_allclose(value, -fitted.log_prob(X).mean(), rtol=1e-9)
    params["encoder"]["log_var"] += 0.1
    assert loss({"params": jax.tree.map(jnp.asarray, params)})[0] > value + 1e-3
    fresh = jax.eval_shape(vae.init, jax.random.key(0), jnp.asarray(X))["params"]
    assert jax.tree.map(jnp.shape, params) == jax.tree.map(lambda leaf: leaf.shape, fresh)


@pytest.mark.slow
def test_the_experiment_reaches_factor_analysis_and_never_exceeds_it(tmp_path):
    result, _ = result_of(factors.main, tmp_path / "run", "digits", "--latent-dim", 2, "--epochs", 6000)
    for split in ("train", "test"):
        assert result[split]["ppca"] < result[split]["linear_vae"]
    assert -1e-6 < result["gap"] < 0.05
    assert (tmp_path / "run" / "factors.png").stat().st_size > 1000
    assert json.loads((tmp_path / "run" / "config.json").read_text())["latent_dim"] == 2
