"""Mixtures as the posterior: their density, their draws, and gradients that are unbiased in the weights too."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats
from variants import SHAPE, batch, mlp

import jaxvae
from jaxvae.distributions import DiagGaussian, GaussianMixtures
from jaxvae.keys import example_keys
from jaxvae.posteriors import MixturePosterior

B, K, D, NUM = 4, 3, 2, 200_000
RNG = np.random.default_rng(0)
RECORD = GaussianMixtures(
    jnp.float32(RNG.normal(size=(1, K))),
    jnp.float32(1.5 * RNG.normal(size=(1, K, D))),
    jnp.float32(0.5 * RNG.normal(size=(1, K, D)) - 1),
)


def many(record, num=NUM):
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (num, *leaf.shape[1:])), record)


def in_float64():
    return (np.asarray(leaf[0], np.float64) for leaf in RECORD)


def test_the_density_is_scipys_and_draws_follow_it(key):
    logits, means, log_vars = in_float64()
    x = RNG.normal(size=(5, D))
    of_each = stats.norm.logpdf(x[:, None], means, np.exp(log_vars / 2)).sum(axis=-1)
    expected = special.logsumexp(special.log_softmax(logits) + of_each, axis=1)
    np.testing.assert_allclose(many(RECORD, 5).log_prob(jnp.float32(x)), expected, rtol=1e-5)
    draws = np.asarray(jax.jit(lambda key: many(RECORD).sample(key=key))(key), np.float64)
    weights = special.softmax(logits)
    np.testing.assert_allclose(draws.mean(axis=0), weights @ means, atol=0.02)
    np.testing.assert_allclose(RECORD.mean[0], weights @ means, rtol=1e-5)
    second = np.einsum("k,kd,ke->de", weights, means, means) + np.diag(weights @ np.exp(log_vars))
    np.testing.assert_allclose(draws.T @ draws / NUM, second, atol=0.03)
    for d in range(D):
        cdf = lambda z, d=d: stats.norm.cdf(z[:, None], means[:, d], np.exp(log_vars[:, d] / 2)) @ weights  # noqa: E731
        assert stats.kstest(draws[:5000, d], cdf).pvalue > 1e-3


def test_the_gradient_of_an_expectation_is_unbiased_in_every_parameter(key):
    """Of E[z], E[z²] and E[z₁z₂], which are known: the implicit gradient's mean is theirs, the weights' too."""

    def expected(record):
        weights = jax.nn.softmax(record.logits[0])
        first = weights @ record.component_mean[0]
        square = weights @ (record.component_mean[0] ** 2 + jnp.exp(record.component_log_var[0]))
        product = weights @ record.component_mean[0].prod(axis=1)
        return 3 * first[0] - 2 * first[1] + square @ jnp.array([0.5, 0.2]) + product

    def sampled(record):
        z = many(record).sample(key=key)
        return (3 * z[:, 0] - 2 * z[:, 1] + z**2 @ jnp.array([0.5, 0.2]) + z.prod(axis=1)).mean()

    found, exact = jax.jit(jax.grad(sampled))(RECORD), jax.grad(expected)(RECORD)
    for one, other in zip(found, exact, strict=True):
        np.testing.assert_allclose(one, other, atol=0.05)
    assert np.abs(exact.logits).max() > 0.3


def test_a_mixture_of_one_moves_as_the_gaussian_does(key):
    mean, log_var = jnp.float32(RNG.normal(size=(B, D))), jnp.float32(RNG.normal(size=(B, D)))
    one = GaussianMixtures(jnp.zeros((B, 1)), mean[:, None], log_var[:, None])
    plain = DiagGaussian(mean, log_var)
    np.testing.assert_allclose(one.log_prob(mean + 1), plain.log_prob(mean + 1), rtol=1e-5)
    weight = jnp.float32(RNG.normal(size=(B, D)))
    moved = jax.grad(
        lambda m, v: (weight * GaussianMixtures(one.logits, m[:, None], v[:, None]).sample(key=key)).sum(), (0, 1)
    )
    standard = (one.sample(key=key) - mean) * jnp.exp(-0.5 * log_var)
    by_mean, by_log_var = moved(mean, log_var)
    np.testing.assert_allclose(by_mean, weight, rtol=1e-4)
    np.testing.assert_allclose(by_log_var, 0.5 * weight * standard * jnp.exp(0.5 * log_var), rtol=1e-3, atol=1e-5)


def test_an_example_draws_from_its_own_key(key):
    record, keys = many(RECORD, 6), example_keys(key, jnp.arange(6))
    together = record.sample(key=keys)
    np.testing.assert_array_equal(many(RECORD, 2).sample(key=keys[2:4]), together[2:4])
    assert len(np.unique(together, axis=0)) == 6


def test_extremes_are_finite():
    """Far and narrow components: gradients stay numbers."""
    record = GaussianMixtures(
        jnp.float32([[50.0, 0.0]]),
        jnp.float32([[[-1e3, 0.0], [1e3, 5.0]]]),
        jnp.float32([[[-18.0, 5.0], [8.0, -18.0]]]),
    )
    gradient = jax.grad(lambda record: record.sample(key=jax.random.key(3)).sum())(record)
    assert all(np.isfinite(leaf).all() for leaf in gradient)


@pytest.mark.parametrize("context", [pytest.param(None, marks=pytest.mark.slow), 8])
def test_a_model_of_mixtures_trains_and_agrees_with_itself(context, key):
    encoder, decoder = mlp(D)[0].clone(context_dim=context), mlp(D)[1]
    model = jaxvae.VAE(encoder, decoder, posterior=MixturePosterior(K))
    params = jax.jit(model.init)(key, jnp.zeros((1, *SHAPE)))
    loss = jax.jit(partial(jaxvae.vae_loss, model, step=0, num_samples=400))
    value = loss(params, (), batch(B), key=key)[0]
    bound = jaxvae.log_likelihood(
        *(model, params, (), {k: np.asarray(v) for k, v in batch(B).items()}, np.arange(B)[None]),
        key=key,
        num_samples=400,
    )
    assert bound.nll < float(value)
    _, gradient = jax.value_and_grad(lambda p: jaxvae.vae_loss(model, p, (), batch(B), key=key, step=0)[0])(params)
    moved = gradient["params"]["posterior"]
    assert {name.split("_kernel")[0].split("_bias")[0] for name in moved} == {"offset", "log_var", "logits"}
    for leaf in jax.tree.leaves(moved):
        assert np.any(leaf)
    record = model.apply(params, batch(B)["x"], method="encode")
    assert record.component_mean.shape == (B, K, D)


@pytest.mark.slow
def test_it_goes_beyond_one_gaussian(key):
    """Reverse KL to a posterior with two modes, which one Gaussian must choose between: log 2 nats less."""
    apart = GaussianMixtures(jnp.zeros((1, 2)), jnp.float32([[[-3.0], [3.0]]]), jnp.zeros((1, 2, 1)))
    start = GaussianMixtures(jnp.zeros((1, 2)), jnp.float32([[[-1.0], [1.0]]]), jnp.zeros((1, 2, 1)))

    def divergence(record, key):
        own = many(record, 512)
        z = own.sample(key=key)
        return (own.log_prob(z) - many(apart, 512).log_prob(z)).mean()

    @jax.jit
    def descend(record):
        step = lambda r, k: (jax.tree.map(lambda a, g: a - 0.1 * g, r, jax.grad(divergence)(r, k)), None)  # noqa: E731
        return jax.lax.scan(step, record, jax.random.split(key, 400))[0]

    assert float(divergence(descend(start), jax.random.key(9))) < 0.02


def test_no_components_are_refused(key):
    with pytest.raises(ValueError, match="num_components must be at least 1, got 0"):
        MixturePosterior(0).init(key, jnp.zeros((1, 2)), jnp.zeros((1, 2)))


def test_a_narrow_component_does_not_blur_what_the_others_say_of_the_earlier_latents(key):
    """A density of e^-1.6e7 in one latent was added to a sum and taken from it again: the gradient was off by 3 %."""
    mean, log_var = np.zeros((1, 2, 3)), np.zeros((1, 2, 3))
    mean[0, 1, 0], log_var[0, 1, 1] = 0.5, -18
    latent = np.array([[0.3, 0.7, -0.2]])
    share, _, _ = GaussianMixtures(*map(jnp.float32, (np.zeros((1, 2)), mean, log_var)))._shares(jnp.float32(latent))
    weight = special.expit(stats.norm.logpdf(0.3) - stats.norm.logpdf(0.3, 0.5))  # of the first, given its first latent
    expected = weight * stats.norm.cdf(0.7) + (1 - weight)
    np.testing.assert_allclose(share[0, 1], expected, rtol=1e-6)
