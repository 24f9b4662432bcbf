"""A VAE of four numbers, whose ELBO, optimum and gap are worked out by hand.

x ~ N(μ, σ²), q(z|x) = N(ax + b, 1), p(z) = N(0, 1), p(x|z) = N(cz + d, c²); so p(x) = N(d, 2c²).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

import jaxvae
from jaxvae.distributions import DiagGaussian

MEAN, STD = 0.7, 1.6
# The ELBO is quadratic in x: two points with the mean and the variance of x stand for its whole distribution.
BATCH = {"x": jnp.float32([[MEAN - STD], [MEAN + STD]]), "index": jnp.arange(2)}
ROOT2 = np.sqrt(2)
OPTIMUM = {"a": 1 / (ROOT2 * STD), "b": -MEAN / (ROOT2 * STD), "c": STD / ROOT2, "d": MEAN}
BEST = -0.5 * np.log(np.pi * STD**2) - 1
POINTS = [
    OPTIMUM,
    {"a": 1 / STD, "b": -MEAN / STD, "c": STD, "d": MEAN},
    {"a": 0.3, "b": 0.5, "c": 0.8, "d": -0.4},
    {"a": -0.9, "b": 0.2, "c": 1.4, "d": 1.1},
]
every_point = pytest.mark.parametrize("point", POINTS, ids=["optimum", "likely mistake", "elsewhere", "mirrored"])


class Model:
    """The VAE of the docstring; its parameters are a dictionary of four scalars."""

    latent_dim = 1

    @staticmethod
    def apply(params, *arguments, method, **options):
        model = jaxvae.VAE(
            encoder=lambda x: (params["a"] * x + params["b"], jnp.zeros_like(x)),
            decoder=lambda z: params["c"] * z + params["d"],
            likelihood=partial(DiagGaussian, log_var=jnp.log(jnp.square(params["c"]))),
        )
        return model.apply({}, *arguments, method=method, **options)


def rate(p):
    """KL(q(z|x) || p(z)), its mean over x."""
    return 0.5 * ((p["a"] * MEAN + p["b"]) ** 2 + (p["a"] * STD) ** 2)


def distortion(p):
    """The mean of -log p(x|z) over x and z = ax + b + ε, where x - cz - d = (1 - ac) x - bc - d - cε."""
    left = 1 - p["a"] * p["c"]
    square = (left * MEAN - p["b"] * p["c"] - p["d"]) ** 2 + (left * STD) ** 2 + p["c"] ** 2
    return 0.5 * (jnp.log(2 * jnp.pi * p["c"] ** 2) + square / p["c"] ** 2)


def elbo(p):
    return -distortion(p) - rate(p)


@jax.jit
@jax.grad
def gradient_of_loss(p, beta):
    return distortion(p) + beta * rate(p)


def exactly(p):
    return jax.tree.map(jnp.float64, p)


def narrow(p):
    return jax.tree.map(jnp.float32, p)


def assert_means_equal(values, expected, errors=5):
    """The mean over axis 0 is `expected`, within as many of its standard errors."""
    values = np.asarray(values, np.float64)
    error = values.std(axis=0, ddof=1) / np.sqrt(len(values))
    assert abs(values.mean(axis=0) - expected) < errors * error + 1e-6


@jax.jit
def losses_and_gradients(params, key, beta):
    """Of `vae_loss` with ten samples, for each of 2000 keys."""

    def value(params, key):
        return jaxvae.vae_loss(Model, params, (), BATCH, key=key, step=0, beta=beta, num_samples=10)[0]

    return jax.vmap(jax.value_and_grad(value), in_axes=(None, 0))(params, jax.random.split(key, 2000))


@jax.jit
def iwae_bounds(params, key):
    """Of ten samples, for each of 2000 keys."""

    def bound(key):
        return -jaxvae.iwae_loss(Model, params, (), BATCH, key=key, step=0, num_samples=10)[0]

    return jax.vmap(bound)(jax.random.split(key, 2000))


@jax.jit
def rate_and_distortion(params, key):
    """At β = 0."""
    return jaxvae.vae_loss(Model, params, (), BATCH, key=key, step=0, beta=0.0)[1][1]


def test_the_elbo_is_greatest_at_the_stated_optimum(x64):
    optimum = exactly(OPTIMUM)
    for gradient in gradient_of_loss(optimum, x64(1)).values():
        assert abs(gradient) < 1e-12
    hessian = jax.jit(jax.hessian(elbo))(optimum)
    hessian = [[float(column) for column in row.values()] for row in hessian.values()]
    assert np.linalg.eigvalsh(hessian).max() < -0.1
    np.testing.assert_allclose(elbo(optimum), BEST, rtol=1e-12)


def test_the_gap_to_log_p_is_a_half_less_half_of_log_two(x64):
    expected_log_prob = -0.5 * np.log(2 * np.pi * STD**2) - 0.5  # minus the entropy of x: p(x) is its distribution
    np.testing.assert_allclose(expected_log_prob - elbo(exactly(OPTIMUM)), 0.5 - 0.5 * np.log(2), rtol=1e-12)
    np.testing.assert_allclose(0.5 - 0.5 * np.log(2), 0.153426, atol=5e-7)


def test_explaining_all_of_the_variance_by_the_noise_costs_half_of_log_two(x64):
    """a = 1/σ, c = σ standardises x and restores it, but then p(x) = N(μ, 2σ²)."""
    np.testing.assert_allclose(BEST - elbo(exactly(POINTS[1])), 0.5 * np.log(2), rtol=1e-12)


def test_at_the_optimum_the_model_is_the_distribution_of_the_data(key):
    x = np.linspace(MEAN - 2 * STD, MEAN + 2 * STD, 9).astype(np.float32)
    source = {"x": jnp.asarray(x[:, None]), "index": jnp.arange(9)}
    log_weights = partial(jaxvae.objectives.vae_log_weights, Model)
    estimate = jaxvae.log_likelihood(
        log_weights,
        narrow(OPTIMUM),
        (),
        source,
        jnp.arange(9)[None],
        key=key,
        num_samples=5000,
        samples_per_pass=500,
    )
    exact = stats.norm(MEAN, STD).logpdf(x)
    assert (np.abs(estimate.log_prob - exact) < 4 * estimate.standard_error).all()
    assert estimate.standard_error.max() < 0.03


@every_point
def test_the_loss_is_the_negative_elbo_on_average(point, key):
    values, _ = losses_and_gradients(narrow(point), key, jnp.float32(1))
    assert_means_equal(values, -elbo(point), errors=4)
    assert values.std() < 1


@every_point
@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
def test_the_reparameterised_gradient_is_unbiased(point, beta, key):
    _, gradients = losses_and_gradients(narrow(point), key, jnp.float32(beta))
    expected = gradient_of_loss(narrow(point), jnp.float32(beta))
    for name, values in gradients.items():
        assert_means_equal(values, float(expected[name]))


def best_encoder(beta, c=0.8, d=-0.4):
    """For fixed c and d: the inverse of the decoder at β = 0, the prior at ∞."""
    return {"a": 1 / (c * (1 + beta)), "b": -d / (c * (1 + beta)), "c": c, "d": d}


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0, 1e6])
def test_the_best_encoder_shrinks_with_beta(beta, x64):
    gradient = gradient_of_loss(exactly(best_encoder(beta)), x64(beta))
    assert max(abs(gradient["a"]), abs(gradient["b"])) < 1e-12


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0, 1e6])
def test_at_the_best_encoder_the_loss_has_no_gradient_on_average(beta, key):
    _, sampled = losses_and_gradients(narrow(best_encoder(beta)), key, jnp.float32(beta))
    for name in ("a", "b"):
        assert_means_equal(sampled[name], 0)


def test_the_rate_alone_is_least_where_the_posterior_is_the_prior(key):
    collapsed = narrow({**OPTIMUM, "a": 0, "b": 0})
    gradient = jax.grad(lambda params: rate_and_distortion(params, key)["rate"])(collapsed)
    assert not any(gradient.values())
    assert rate_and_distortion(collapsed, key)["rate"] == 0
    np.testing.assert_allclose(rate_and_distortion(narrow(POINTS[2]), key)["rate"], rate(POINTS[2]), rtol=1e-6)


def test_the_distortion_alone_falls_without_bound(key):
    """With a = 1/c, b = -d/c the mean squared error is c²: a tenth of c saves log 10 nats, again and again."""
    values = []
    for c in (1.0, 0.1, 0.01):
        inverse = {"a": 1 / c, "b": -MEAN / c, "c": c, "d": MEAN}
        np.testing.assert_allclose(distortion(inverse), 0.5 * np.log(2 * np.pi * c**2) + 0.5, rtol=1e-5)
        values.append(rate_and_distortion(narrow(inverse), key)["loss"])
    np.testing.assert_allclose(np.diff(values), -np.log(10), rtol=1e-3)


@every_point
def test_the_iwae_bound_lies_between_the_elbo_and_log_p(point, key):
    log_prob = stats.norm(point["d"], ROOT2 * point["c"]).logpdf(np.asarray(BATCH["x"])).mean()
    values = np.asarray(iwae_bounds(narrow(point), key), np.float64)
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert elbo(point) + 4 * error < values.mean() < log_prob - 4 * error
