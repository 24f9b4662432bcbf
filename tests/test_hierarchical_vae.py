"""Two stochastic layers, against float64 densities and against a linear model where everything is known."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from variants import SHAPE, VARIANTS, batch

import jaxvae
from jaxvae.distributions import DiagGaussian

# z2 ~ N(0, I), z1 = z2 A + N(0, τ²), x = z1 W + N(0, σ²).
D1, D2, X, N = 3, 2, 4, 6
RNG = np.random.default_rng(0)
A = RNG.normal(size=(D2, D1))
W = RNG.normal(size=(D1, X))
LAYER_LOG_VAR, NOISE_LOG_VAR = -0.5, -1.0


def condition(cov, cross, marginal):
    """Of jointly Gaussian rows y, x with covariance `marginal` of x: E[y|x] = x G, and y's covariance given x."""
    gain = np.linalg.solve(marginal, cross.T)
    return gain, cov - cross @ gain


COV_1 = A.T @ A + np.exp(LAYER_LOG_VAR) * np.eye(D1)
COV_X = W.T @ COV_1 @ W + np.exp(NOISE_LOG_VAR) * np.eye(X)
GAIN_1, POSTERIOR_1 = condition(COV_1, COV_1 @ W, COV_X)
GAIN_2, POSTERIOR_2 = condition(np.eye(D2), A, COV_1)
GAIN_2_FROM_X, _ = condition(np.eye(D2), A @ W, COV_X)
DATA = np.random.default_rng(1).multivariate_normal(np.zeros(X), COV_X, N).astype(np.float32)
EXACT = stats.multivariate_normal(np.zeros(X), COV_X).logpdf(DATA)
SOURCE = {"x": jnp.asarray(DATA), "index": jnp.arange(N, dtype=jnp.int32)}


class Linear:
    """x -> a Gaussian with mean x `weights` and one variance for each latent."""

    def __init__(self, weights, variance):
        self.weights, self.log_var = np.float32(weights), np.log(np.float32(variance))
        self.latent_dim = self.weights.shape[1]

    def __call__(self, x):
        mean = x @ self.weights
        return mean, jnp.broadcast_to(self.log_var, mean.shape)


VAR_1, VAR_2 = 1.5 * np.diag(POSTERIOR_1), 1.5 * np.diag(POSTERIOR_2)  # wider than the posterior: safe weights
MODEL = jaxvae.HierarchicalVAE(
    encoders=(Linear(GAIN_1, VAR_1), Linear(GAIN_2, VAR_2)),
    decoders=(lambda z: z @ np.float32(W), Linear(A, np.exp(LAYER_LOG_VAR))),
    likelihood=partial(DiagGaussian, log_var=NOISE_LOG_VAR),
)


@partial(jax.jit, static_argnames="num_samples")
def propose(x, key, num_samples):
    return MODEL.apply({}, x, key=key, num_samples=num_samples, method="propose")


@partial(jax.jit, static_argnames=("model", "num_samples"))
def posterior_means(model, x, key, num_samples):
    return model.apply({}, x, key=key, num_samples=num_samples, method="posterior_means")


def dense(layer, x):
    return x @ np.float64(layer["kernel"]) + np.float64(layer["bias"])


def moments(network, x):
    """The mean and log variance of a small MLP of the variants, float64."""
    features = np.maximum(dense(network["Dense_0"], x), 0)
    return dense(network["head"]["mean"], features), 20 * np.tanh(dense(network["head"]["log_var"], features) / 20)


def log_normal(z, mean, log_var):
    return stats.norm.logpdf(z, mean, np.exp(log_var / 2)).sum(axis=-1)


def test_every_density_is_the_float64_one_at_the_draws(key):
    model, loss_fn, init = VARIANTS["hierarchical"][:3]
    params, _ = init(key=key)
    examples = batch(5)
    keys = jaxvae.keys.example_keys(key, examples["index"])

    @jax.jit
    def densities(params, x, keys):
        latents, log_posterior = model.apply(params, x, key=keys, num_samples=1, method="propose")
        same = model.apply(params, x, latents, method="log_posterior")
        joint = model.apply(params, x, latents, method="log_joint")
        terms = model.apply(params, x, key=keys, num_samples=1, method="terms")
        return latents, log_posterior, same, joint, terms

    latents, log_posterior, same, (log_likelihood, log_prior), terms = densities(params, examples["x"], keys)
    z1, z2 = (np.asarray(z, np.float64) for z in latents)
    networks = params["params"]
    x = np.asarray(examples["x"], np.float64).reshape(5, -1)
    log_q1 = log_normal(z1, *moments(networks["encoders_0"], x))
    log_q2 = log_normal(z2, *moments(networks["encoders_1"], z1))
    log_p1 = log_normal(z1, *moments(networks["decoders_1"], z2))
    log_p2 = log_normal(z2, 0, 0)
    logits = dense(networks["decoders_0"]["output"], np.maximum(dense(networks["decoders_0"]["Dense_0"], z1), 0))
    log_x = (x * logits - np.logaddexp(0, logits)).sum(axis=-1)

    close = partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5)
    close(log_posterior, log_q1 + log_q2)
    close(same, log_posterior)
    close(log_likelihood, log_x)
    close(log_prior, log_p1 + log_p2)
    log_weights = log_x + log_p1 + log_p2 - log_q1 - log_q2
    close(terms.log_likelihood + terms.log_ratio, log_weights)
    mean, log_var = moments(networks["encoders_1"], z1)  # of the top layer, whose divergence has a closed form
    close(terms.rates["z2"], 0.5 * (np.exp(log_var) - 1 - log_var + mean**2))
    close(terms.rates["z1"][..., 0], log_q1 - log_p1)
    value, (_, metrics) = loss_fn(params, (), examples, key=key, step=jnp.int32(0))
    close(value, -log_weights.mean())
    close(metrics["loss"], -log_weights.mean())
    close(metrics["negative_elbo"], -log_weights.mean())
    close(metrics["distortion"], -log_x.mean())
    close(metrics["rate"], (log_q1 + log_q2 - log_p1 - log_p2).mean())


def test_the_log_likelihood_of_a_linear_model_is_exact_within_its_own_error(key):
    indices = jnp.arange(N)[None]
    result = jaxvae.log_likelihood(MODEL, {}, (), SOURCE, indices, key=key, num_samples=10_000, samples_per_pass=500)
    assert (np.abs(result.log_prob - EXACT) < 4 * result.standard_error).all()
    assert result.standard_error.max() < 0.03


def test_a_draw_depends_on_its_example_and_its_number_alone(key):
    """Not on the batch, and the first S draws are the same for every larger S."""
    keys = jaxvae.keys.example_keys(key, SOURCE["index"])
    chosen = np.array([4, 1])
    whole, log_whole = propose(SOURCE["x"], keys, 5000)
    part, log_part = propose(SOURCE["x"][chosen], keys[chosen], 4)
    for all_, some in zip(whole, part, strict=True):
        np.testing.assert_allclose(np.asarray(all_)[:4, chosen], some, rtol=1e-5, atol=1e-6)
        assert len(np.unique(some)) == some.size
    np.testing.assert_allclose(np.asarray(log_whole)[:4, chosen], log_part, rtol=1e-4)


def test_the_noise_of_the_layers_is_standard_and_independent(key):
    keys = jaxvae.keys.example_keys(key, SOURCE["index"])
    z1, z2 = (np.asarray(z, np.float64) for z in propose(SOURCE["x"], keys, 5000)[0])
    noise_1 = (z1 - DATA @ GAIN_1) / np.sqrt(VAR_1)
    noise_2 = (z2 - z1 @ GAIN_2) / np.sqrt(VAR_2)
    noise = np.concatenate([noise_1, noise_2], axis=-1).reshape(-1, D1 + D2)
    covariance = noise.T @ noise / len(noise)
    np.testing.assert_allclose(covariance, np.eye(D1 + D2), atol=5 * np.sqrt(2 / len(noise)))
    np.testing.assert_allclose(noise.mean(axis=0), 0, atol=5 / np.sqrt(len(noise)))


def test_ancestral_samples_have_the_marginal_covariance(key):
    num = 40_000

    @jax.jit
    def sample(key):
        sample_key, noise_key = jax.random.split(key)
        record = MODEL.apply({}, num, key=sample_key, method="sample")
        return record.mean, record.sample(key=noise_key)

    for x, covariance in zip(sample(key), (COV_X - np.exp(NOISE_LOG_VAR) * np.eye(X), COV_X), strict=True):
        x = np.asarray(x, np.float64)
        variance = np.diag(covariance)
        # Of an entry of a sample covariance: (C_ii C_jj + C_ij²) / n.
        error = np.sqrt((np.outer(variance, variance) + covariance**2) / num)
        np.testing.assert_array_less(np.abs(x.T @ x / num - covariance), 5 * error)
        np.testing.assert_array_less(np.abs(x.mean(axis=0)), 5 * np.sqrt(variance / num))


def test_a_sample_needs_the_size_of_the_top_latent(key):
    model = MODEL.clone(encoders=(MODEL.encoders[0], lambda z: MODEL.encoders[1](z)))
    with pytest.raises(ValueError, match="sample needs the size of the top latent: its encoder has no latent_dim"):
        model.apply({}, 3, key=key, method="sample")


def test_posterior_means_are_exact_below_and_averaged_above(key):
    num_samples = 5000
    keys = jaxvae.keys.example_keys(key, SOURCE["index"])
    first, second = posterior_means(MODEL, SOURCE["x"], keys, num_samples)
    np.testing.assert_allclose(first, DATA @ GAIN_1, rtol=1e-5, atol=1e-6)
    error = np.sqrt(VAR_1 @ GAIN_2**2 / num_samples)
    difference = np.abs(second - DATA @ GAIN_2_FROM_X)
    np.testing.assert_array_less(difference, np.broadcast_to(5 * error, difference.shape))
    assert jaxvae.evaluation.diagnostics.active_units(first) == D1
    assert difference.any()


def test_a_layer_that_ignores_its_input_has_no_active_units(key):
    """The means of its draws would vary from example to example; those of its conditional means do not."""

    def constant(z):
        return jnp.full((len(z), D2), 0.3), jnp.zeros((len(z), D2))

    model = MODEL.clone(encoders=(MODEL.encoders[0], constant))
    first, second = posterior_means(model, SOURCE["x"], jaxvae.keys.example_keys(key, SOURCE["index"]), 5)
    assert second.shape == (N, D2)
    np.testing.assert_array_equal(second, np.broadcast_to(second[0], second.shape))
    np.testing.assert_allclose(second, 0.3, rtol=1e-6)
    assert jaxvae.evaluation.diagnostics.active_units(second) == 0
    assert jaxvae.evaluation.diagnostics.active_units(first) == D1


@pytest.mark.parametrize("count", [0, 1, 3])
def test_every_encoder_needs_a_decoder(count):
    with pytest.raises(ValueError, match=f"as many decoders as encoders, got {count} and 2"):
        jaxvae.HierarchicalVAE(encoders=MODEL.encoders, decoders=(jaxvae.MLPDecoder(SHAPE),) * count)


def test_every_layer_of_a_sample_has_noise_of_its_own(key):
    """z_1 = z_2 + ε has variance 2; with one key for both layers ε would be z_2, and the variance 4."""
    model = jaxvae.HierarchicalVAE(
        encoders=(jaxvae.MLPEncoder(2), jaxvae.MLPEncoder(2)),
        decoders=(lambda z: z, lambda z: (z, jnp.zeros_like(z))),
        likelihood=partial(DiagGaussian, log_var=0.0),
    )
    latent = model.apply({}, 20_000, key=key, method="sample").mean
    np.testing.assert_allclose(np.var(latent, axis=0), 2, rtol=0.05)
