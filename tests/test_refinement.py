"""Inference for each example by itself, against a linear-Gaussian model whose gaps are known."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxvae
from jaxvae import evaluation
from jaxvae.distributions import DiagGaussian, GaussianMixtures
from jaxvae.flows import FullCovariance
from jaxvae.posteriors import FlowPosterior

N, D, K = 6, 4, 2
WEIGHTS = np.float32([[1.0, 0.5, -0.5, 1.0], [0.8, 0.6, -0.4, 1.0]])  # nearly parallel: a correlated posterior
VARIANCE = 0.5
PRECISION = np.eye(K) + WEIGHTS.astype(float) @ WEIGHTS.T / VARIANCE
GAP = 0.5 * (np.log(np.diag(PRECISION)).sum() - np.linalg.slogdet(PRECISION)[1])
X = np.random.default_rng(0).normal(size=(N, K)) @ WEIGHTS + np.sqrt(VARIANCE) * np.random.default_rng(1).normal(
    size=(N, D)
)


class Encoder(nn.Module):
    """The exact mean, and the best variances, moved by what is said."""

    shift: float = 0.0
    widen: float = 0.0

    @nn.compact
    def __call__(self, x):
        gain = np.linalg.solve(PRECISION, WEIGHTS / VARIANCE).astype(np.float32)
        mean = x @ gain.T + self.shift
        return mean, jnp.broadcast_to(self.widen - np.log(np.diag(PRECISION)).astype(np.float32)[None], mean.shape)


def model_of(shift=0.0, widen=0.0, posterior=DiagGaussian):
    likelihood = partial(DiagGaussian, log_var=float(np.log(VARIANCE)))
    return jaxvae.VAE(Encoder(shift, widen), lambda z: z @ WEIGHTS, likelihood, posterior=posterior, latent_dim=K)


def refined(model, params=None, rows=slice(None), **options):
    index = np.arange(N)[rows]
    source = {"x": jnp.float32(X[rows]), "index": jnp.asarray(index, jnp.int32)}
    options = {"key": jax.random.key(0), "steps": 200, "evaluation_samples": 30_000} | options
    return evaluation.refine(model, params or {}, (), source, np.arange(len(index))[None], **options)


def log_p():
    return stats.multivariate_normal.logpdf(X, np.zeros(D), WEIGHTS.T.astype(float) @ WEIGHTS + VARIANCE * np.eye(D))


def test_both_gaps_are_the_known_ones():
    """A shifted and widened encoder: KL between Gaussians of known precision; the best diagonal one is GAP away."""
    found = refined(model_of(0.7, 1.0))
    np.testing.assert_allclose(log_p() - found.refined, GAP, atol=0.03)
    np.testing.assert_allclose(found.log_likelihood, log_p(), atol=0.1)  # heavy weights: q is far too narrow
    assert found.approximation_gap.mean() == pytest.approx(GAP, abs=0.05)
    lost = 0.5 * (0.7**2 * PRECISION.sum() + K * (np.e - 1) - K)  # of the shift, and of variances e times too large
    np.testing.assert_allclose(found.amortization_gap, lost, atol=0.15)
    np.testing.assert_allclose(found.mean, X @ np.linalg.solve(PRECISION, WEIGHTS / VARIANCE).T, atol=0.06)
    assert GAP > 0.5


def test_an_encoder_that_is_best_already_gains_nothing():
    found = refined(model_of())
    np.testing.assert_allclose(found.amortization_gap, 0, atol=0.03)
    assert (found.amortization_gap > -0.03).all()


@pytest.mark.slow
def test_a_richer_family_has_no_gap_left():
    model = model_of(0.3, 0.0, FullCovariance())
    params = model.init(jax.random.key(0), jnp.float32(X[:1]))
    found = refined(model, params, steps=500)
    np.testing.assert_allclose(found.approximation_gap, 0, atol=0.03)


def test_a_narrow_covariance_stays_one(monkeypatch):
    """Posteriors of standard deviations near .02, below one step of Adam: the scale must not be taken below zero."""
    monkeypatch.setitem(globals(), "VARIANCE", 1e-3)
    monkeypatch.setitem(globals(), "PRECISION", np.eye(K) + WEIGHTS.astype(float) @ WEIGHTS.T / 1e-3)
    model = model_of(0.02, 1.0, FullCovariance())
    params = model.init(jax.random.key(0), jnp.float32(X[:1]))
    found = refined(model, params, steps=100, evaluation_samples=2000)
    exact = stats.multivariate_normal.logpdf(X, np.zeros(D), WEIGHTS.T.astype(float) @ WEIGHTS + 1e-3 * np.eye(D))
    assert (exact - found.amortized > 1.5).all()
    np.testing.assert_allclose(found.refined, exact, atol=0.8)


def test_an_example_is_refined_alike_in_any_batch():
    whole, some = refined(model_of(0.5), steps=20), refined(model_of(0.5), steps=20, rows=slice(2, 4))
    for one, other in zip(whole, some, strict=True):
        np.testing.assert_allclose(one[2:4], other, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"steps": 0}, ValueError, "steps must be at least 1, got 0"),
        ({"learning_rate": -1.0}, ValueError, "learning_rate must be a positive number, got -1.0"),
        ({"learning_rate": float("nan")}, ValueError, "learning_rate must be a positive number, got nan"),
    ],
)
def test_numbers_out_of_range_are_refused(options, error, text):
    with pytest.raises(error, match=text):
        refined(model_of(), **options)


def test_models_and_posteriors_that_have_no_parameters_of_each_example_are_refused():
    flow = FlowPosterior((jaxvae.flows.AffineCoupling((4,)),))
    model = model_of(posterior=flow)
    with pytest.raises(TypeError, match="the posterior is a Pushforward, whose parameters are not arrays of"):
        refined(model, model.init(jax.random.key(0), jnp.float32(X[:1])))
    pixels = jaxvae.PixelCNN(2, (2, 2))
    with pytest.raises(TypeError, match="only the posteriors of a VAE or CVAE are refined, and PixelCNN has no encode"):
        refined(pixels)
    assert GaussianMixtures._fields == ("logits", "component_mean", "component_log_var")  # [B, K], [B, K, D]: taken
