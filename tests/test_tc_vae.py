"""β-TCVAE's terms against float64 NumPy and against a Gaussian whose total correlation is known."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import errors
from flax import linen as nn
from scipy.special import logsumexp
from scipy.stats import norm
from variants import SHAPE, VARIANTS, batch, mlp

import jaxvae
from jaxvae.distributions import DiagGaussian, StandardNormal
from jaxvae.networks import MLPDiscriminator
from jaxvae.objectives import init_with_discriminator, rate_terms, semi_amortized_vae_loss, vae_gan_loss
from jaxvae.priors import VampPrior

B = 6
VARIANT = VARIANTS["bernoulli"]
ESTIMATORS = pytest.mark.parametrize("estimator", ["stratified", "weighted"])


def correlated(num, seed=0, rho=0.9):
    """Posteriors whose means are correlated, and one draw of each."""
    rng = np.random.default_rng(seed)
    mean = rng.multivariate_normal([0, 0, 0], [[0.9, 0.9 * rho, 0], [0.9 * rho, 0.9, 0], [0, 0, 0.9]], num)
    log_var = np.log(rng.uniform(0.05, 0.15, mean.shape))
    latent = mean + np.exp(0.5 * log_var) * rng.standard_normal(mean.shape)
    return mean, log_var, latent


def log_densities(mean, log_var, latent):
    """log q(z_i[d] | x_j), [i, j, d]."""
    squares = (latent[:, None] - mean[None]) ** 2 * np.exp(-log_var)[None]
    return -0.5 * (squares + log_var[None] + np.log(2 * np.pi))


def exact_terms(mean, log_var, latent):
    """The three terms where q(z) is the mixture over all examples, in float64."""
    density = log_densities(mean, log_var, latent)
    own = np.einsum("iid->id", density).sum(1)
    joint = logsumexp(density.sum(2), axis=1) - np.log(len(mean))
    marginals = (logsumexp(density, axis=1) - np.log(len(mean))).sum(1)
    return own - joint, joint - marginals, marginals - norm.logpdf(latent).sum(1)


compiled_rate_terms = jax.jit(rate_terms, static_argnames=("num_examples", "estimator"))


def estimated(mean, log_var, latent, **options):
    mean, log_var, latent = (jnp.asarray(a, jnp.float32) for a in (mean, log_var, latent))
    return compiled_rate_terms(DiagGaussian(mean, log_var), latent, **options)


def test_the_stratified_estimate_is_exact_where_the_batch_is_the_set():
    posteriors = correlated(500)
    for term, exact in zip(estimated(*posteriors, num_examples=500), exact_terms(*posteriors), strict=True):
        np.testing.assert_allclose(term, exact, atol=1e-4)
        np.testing.assert_allclose(term.mean(), exact.mean(), atol=1e-5)


def test_plain_weighting_is_off_by_log_n_there():
    posteriors = correlated(500)
    terms, exact = estimated(*posteriors, num_examples=500, estimator="weighted"), exact_terms(*posteriors)
    for term, value, shift in zip(terms, exact, (1, 2, -3), strict=True):  # log q(z) once, Σ log q(z_j) three times
        np.testing.assert_allclose(term - value, shift * np.log(500), atol=1e-4)


@ESTIMATORS
@pytest.mark.parametrize("num_examples", [6, 50, 10_000])
def test_the_terms_add_up_to_the_sampled_rate(estimator, num_examples):
    mean, log_var, latent = correlated(6)
    terms = estimated(mean, log_var, latent, num_examples=num_examples, estimator=estimator)
    ratio = (norm.logpdf(latent, mean, np.exp(0.5 * log_var)) - norm.logpdf(latent)).sum(1)
    np.testing.assert_allclose(sum(terms), ratio, rtol=1e-4, atol=1e-4)


def test_the_weights_by_hand():
    """Three of ten examples: 1/10 of the own density, (10 - 1)/(10 · 2) of each of the two others."""
    mean, log_var, latent = correlated(3)
    density = np.exp(log_densities(mean, log_var, latent).sum(2))
    own = np.diag(density)
    q = own / 10 + 9 / 20 * (density.sum(1) - own)
    terms = estimated(mean, log_var, latent, num_examples=10)
    np.testing.assert_allclose(terms.mutual_information, np.log(own) - np.log(q), rtol=1e-4, atol=1e-5)
    weighted = estimated(mean, log_var, latent, num_examples=10, estimator="weighted")
    np.testing.assert_allclose(weighted.mutual_information, np.log(own / density.sum(1) * 30), rtol=1e-4, atol=1e-5)


def test_the_stratified_density_is_unbiased_over_batches():
    """Averaged over which other examples share the batch, q̂(z) is q(z); plain weighting is not."""
    mean, log_var, latent = correlated(200)
    target = np.exp(-exact_terms(mean, log_var, latent)[0][0])  # q(z_0) / q(z_0|x_0)
    rng = np.random.default_rng(1)

    @jax.jit
    def ratios(rows):
        picked = (jnp.asarray(a, jnp.float32)[rows] for a in (mean, log_var, latent))
        m, v, z = picked
        return [
            jnp.exp(-rate_terms(DiagGaussian(m, v), z, num_examples=200, estimator=e).mutual_information[0])
            for e in ("stratified", "weighted")
        ]

    batches = np.stack([np.r_[0, 1 + rng.choice(199, 15, replace=False)] for _ in range(4000)])
    stratified, weighted = jax.vmap(ratios)(jnp.asarray(batches))
    error = stratified.std() / np.sqrt(len(batches))
    assert abs(stratified.mean() - target) < 4 * error < 0.06 * target
    assert abs(weighted.mean() - target) > 0.5 * target


@pytest.mark.slow
def test_the_error_at_a_batch_of_64_of_2000():
    """A Gaussian aggregate with known total correlation -½ log(1 - ρ²): how far each estimator is (`pytest -s`)."""
    rho, spread = 0.9, 0.1
    mean, _, _ = correlated(2000)
    rng = np.random.default_rng(2)
    log_var = np.full(mean.shape, np.log(spread))
    latent = mean + np.sqrt(spread) * rng.standard_normal(mean.shape)
    known = -0.5 * np.log(1 - (0.9 * rho / (0.9 + spread)) ** 2)
    exact = exact_terms(mean, log_var, latent)[1].mean()
    assert abs(exact - known) < 0.05  # 2000 draws of a Gaussian are nearly that Gaussian

    rows = np.random.default_rng(3).permutation(2000)[: 31 * 64].reshape(31, 64)
    found = {
        estimator: np.mean(
            [estimated(mean[r], log_var[r], latent[r], num_examples=2000, estimator=estimator)[1].mean() for r in rows]
        )
        for estimator in ("stratified", "weighted")
    }
    error = {name: abs(value - known) for name, value in found.items()}
    print(
        f"total correlation {known:.3f} nats; error at 64 of 2000:", {k: round(float(v), 3) for k, v in error.items()}
    )
    assert error["stratified"] < 0.15
    assert error["weighted"] > 10 * error["stratified"]


def computed(losses, model, *arguments, key):
    """What each returns, in one program."""
    return jax.jit(lambda *arguments: [loss(model, *arguments, key=key, step=0) for loss in losses])(*arguments)


@ESTIMATORS
def test_with_unit_weights_the_loss_is_the_sampled_elbo(estimator, key):
    params, model_state = VARIANT.init(key=jax.random.key(1))
    arguments = (VARIANT.model, params, model_state, batch(B))
    options = {"num_examples": 100, "beta": 1.0, "estimator": estimator}
    losses = (jaxvae.sampled_vae_loss, partial(jaxvae.tc_vae_loss, **options), jaxvae.vae_loss)
    (sampled, _), (value, (_, metrics)), (_, (_, plain)) = computed(losses, *arguments, key=key)
    np.testing.assert_allclose(value, sampled, rtol=1e-5)
    for name in ("rate", "distortion", "negative_elbo"):
        np.testing.assert_allclose(metrics[name], plain[name], rtol=1e-5)


def test_each_term_has_its_weight(key):
    params, model_state = VARIANT.init(key=jax.random.key(1))
    loss = partial(
        *(jaxvae.tc_vae_loss, VARIANT.model),
        step=3,
        num_examples=100,
        beta=lambda step: 2.0 * step,
        information_weight=0.5,
        dimension_weight=3.0,
    )
    value, (_, m) = jax.jit(loss)(params, model_state, batch(B), key=key)
    expected = m["distortion"] + 0.5 * m["mutual_information"] + 6 * m["total_correlation"] + 3 * m["dimension_kl"]
    np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("num", "options", "message"),
    [
        (1, {"num_examples": 10}, "needs a batch of at least 2 examples, got 1"),
        (6, {"num_examples": 5}, "at least the batch's 6, got 5"),
        (6, {"num_examples": 10, "estimator": "plain"}, "estimator must be 'stratified' or 'weighted', got 'plain'"),
    ],
)
def test_impossible_batches_are_refused(num, options, message):
    with pytest.raises(ValueError, match=message):
        estimated(*correlated(num), **options)


def test_a_posterior_that_does_not_factorise_is_refused():
    mean = jnp.zeros((4, 2))
    with pytest.raises(TypeError, match=r"density factorises over latents .* a DiagGaussian, got Bernoulli over"):
        rate_terms(jaxvae.Bernoulli(mean), mean, num_examples=10)


def test_the_prior_of_the_model_is_the_one_that_each_dimension_is_compared_with(key):
    """With all weights 1 it is the sampled negative ELBO, whatever the prior."""
    model = jaxvae.VAE(*mlp(), prior=jaxvae.GaussianMixture(4, 3))
    params = jax.jit(model.init)(key, jnp.zeros((1, *SHAPE)))
    losses = (partial(jaxvae.tc_vae_loss, num_examples=9, beta=1.0), jaxvae.sampled_vae_loss)
    (value, _), (sampled, _) = computed(losses, model, params, (), batch(6), key=key)
    np.testing.assert_allclose(value, sampled, rtol=1e-5)


def test_a_prior_is_told_that_its_networks_are_in_training(key):
    """As in `vae_loss`; a dropout of a prior's own is drawn here and beside a discriminator too."""
    told = []

    class Told(nn.Module):
        @nn.compact
        def __call__(self, *, train):
            told.append(train)
            return StandardNormal(2)

    model, judge = jaxvae.VAE(*mlp(2), prior=Told()), MLPDiscriminator((4,))
    params, state = init_with_discriminator(model, judge, batch(3)["x"], key=key)
    losses = (
        jaxvae.vae_loss,
        partial(jaxvae.tc_vae_loss, num_examples=9),
        partial(vae_gan_loss, discriminator=judge),
    )
    for loss in losses:
        told.clear()
        loss(model, params, state, batch(3), key=key, step=0)
        assert told
        assert all(told)


def test_an_error_of_a_prior_is_its_own(key):
    """It sees no x, so nothing is said of x's shape: pseudo-inputs that the encoder has no place for."""
    model = jaxvae.VAE(*mlp(2), prior=VampPrior(3, (5,)))
    params = jaxvae.VAE(*mlp(2)).init(key, batch(3)["x"])
    params = {"params": {**params["params"], "prior": {"x": jnp.zeros((3, 5))}}}
    for loss in (semi_amortized_vae_loss, partial(jaxvae.tc_vae_loss, num_examples=9)):
        with pytest.raises(errors.ScopeParamShapeError):
            loss(model, params, (), batch(3), key=key, step=0)


def test_narrow_types_are_widened_before_densities_are_compared(key):
    """In float16 the precision of a log-variance of -12 was infinite, and all terms NaN."""
    mean, log_var, _ = map(jnp.float32, correlated(6))
    narrow = DiagGaussian(mean.astype(jnp.float16), (log_var - 12).astype(jnp.float16))
    latent = narrow.sample(key=key)
    wide = DiagGaussian(*map(jnp.float32, narrow))
    terms, expected = (rate_terms(each, latent, num_examples=9) for each in (narrow, wide))
    chex.assert_tree_all_finite(expected)
    np.testing.assert_array_equal(terms, expected)
