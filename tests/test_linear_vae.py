"""The linear VAE is probabilistic PCA: its ELBO, its optimum and what every latent carries, in closed form."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from scipy import stats

import jaxvae
from jaxvae.evaluation import classical, diagnostics
from jaxvae.objectives import linear_vae_loss, vae_log_weights

N, X, D = 300, 6, 2
RNG = np.random.default_rng(0)
DATA = RNG.normal(size=(N, X)) * [2.0, 1.2, 0.6, 0.5, 0.4, 0.3] @ np.linalg.qr(RNG.normal(size=(X, X)))[0] + 0.5
GAUSSIAN = classical.fit_gaussian(DATA)
PPCA = classical.ppca_from_gaussian(GAUSSIAN, D)
BEST = classical.ppca_max_log_prob(GAUSSIAN.eigenvalues, D)
TURN = np.array([[np.cos(0.6), -np.sin(0.6)], [np.sin(0.6), np.cos(0.6)]])
MODEL = jaxvae.models.linear_vae((X,), D)


def source(dtype=jnp.float32):
    return {"x": jnp.asarray(DATA, dtype), "index": jnp.arange(N, dtype=jnp.int32)}


def best_params(ppca, dtype=jnp.float32):
    """The decoder of `ppca`, and the best encoder for it: mean M⁻¹Wᵀ(x - mean), variances σ²/Mᵢᵢ."""
    scaled_precision = ppca.weights.T @ ppca.weights + ppca.noise_variance * np.eye(D)
    gain = ppca.weights @ np.linalg.inv(scaled_precision)
    scale = 20 * np.arctanh(np.log(ppca.noise_variance) / 20)  # SharedScale bounds it softly
    params = {
        "encoder": {
            "mean": {"kernel": gain, "bias": -ppca.mean @ gain},
            "log_var": np.log(ppca.noise_variance / np.diag(scaled_precision)),
        },
        "decoder": {"output": {"kernel": ppca.weights.T, "bias": ppca.mean}},
        "likelihood": {"scale": scale},
    }
    return {"params": jax.tree.map(lambda p: jnp.asarray(p, dtype), params)}


@jax.jit
def elbo(params, examples):
    return -linear_vae_loss(MODEL, params, (), examples, key=None, step=0)[0]


def worse_params():
    flat, unravel = ravel_pytree(best_params(PPCA))
    return unravel(flat + np.random.default_rng(1).normal(scale=0.3, size=flat.shape).astype(np.float32))


def test_the_loss_is_the_float64_negative_elbo():
    """With the expected distortion as that of x ~ N(Wμ + b, W S Wᵀ + σ²I): a trace, by another way."""
    params = worse_params()
    value, (_, metrics) = jax.jit(partial(linear_vae_loss, MODEL, key=None, step=0))(params, (), source())
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["params"])
    weights, bias = p["decoder"]["output"]["kernel"], p["decoder"]["output"]["bias"]
    mean = DATA @ p["encoder"]["mean"]["kernel"] + p["encoder"]["mean"]["bias"]
    variance = np.exp(p["encoder"]["log_var"])
    noise = np.exp(20 * np.tanh(p["likelihood"]["scale"] / 20))
    log_prob = stats.norm.logpdf(DATA, mean @ weights + bias, np.sqrt(noise)).sum(axis=1)
    distortion = -log_prob.mean() + np.trace(weights.T * variance @ weights) / (2 * noise)
    rate = 0.5 * (variance + mean**2 - 1 - np.log(variance)).sum(axis=1).mean()
    np.testing.assert_allclose(metrics["distortion"], distortion, rtol=1e-5)
    np.testing.assert_allclose(metrics["rate"], rate, rtol=1e-5)
    np.testing.assert_allclose(value, distortion + rate, rtol=1e-5)
    assert value == metrics["loss"] == metrics["negative_elbo"]


def test_the_loss_is_what_the_sampled_one_averages_to(key):
    params = worse_params()

    def sampled(key):
        return jaxvae.vae_loss(MODEL, params, (), source(), key=key, step=0)[0]

    values = np.asarray(jax.jit(jax.vmap(sampled))(jax.random.split(key, 2000)), np.float64)
    error = values.std(ddof=1) / np.sqrt(len(values))
    assert abs(values.mean() + elbo(params, source())) < 4 * error
    assert error < 0.02


def test_at_the_optimum_the_elbo_is_log_p_and_the_weights_do_not_vary(x64, key):
    params = best_params(PPCA, x64)
    np.testing.assert_allclose(elbo(params, source(x64)), PPCA.log_prob(DATA).mean(), atol=1e-10)
    np.testing.assert_allclose(elbo(params, source(x64)), BEST, atol=1e-10)
    # Not under jit: as the tests compile, a program may draw its float32 noise twice and round it differently.
    weights = vae_log_weights(MODEL, params, (), source(x64), key=key, num_samples=5)
    np.testing.assert_allclose(weights, np.broadcast_to(PPCA.log_prob(DATA), weights.shape), atol=1e-10)


def test_a_rotated_decoder_costs_exactly_its_correlations(x64):
    """As likely, but its posterior is not diagonal: ½ (Σ log Mᵢᵢ - log |M|)."""
    rotated = PPCA._replace(weights=PPCA.weights @ TURN)
    scaled_precision = rotated.weights.T @ rotated.weights + PPCA.noise_variance * np.eye(D)
    cost = 0.5 * (np.log(np.diag(scaled_precision)).sum() - np.linalg.slogdet(scaled_precision).logabsdet)
    assert cost > 0.1
    np.testing.assert_allclose(elbo(best_params(rotated, x64), source(x64)), BEST - cost, atol=1e-10)
    np.testing.assert_allclose(rotated.elbo(DATA).mean(), BEST - cost, atol=1e-10)


def test_no_other_parameters_have_a_higher_elbo(x64):
    flat, unravel = ravel_pytree(best_params(PPCA, x64))

    def value(flat):
        return elbo(unravel(flat), source(x64))

    noise = np.random.default_rng(2).normal(size=(200, len(flat))) * np.geomspace(1e-3, 0.3, 200)[:, None]
    assert jax.jit(jax.vmap(value))(np.asarray(flat) + noise).max() < BEST
    assert abs(jax.jit(jax.grad(value))(flat)).max() < 1e-10


def test_what_each_latent_carries(x64):
    """Var(μᵢ) = 1 - σ²/λᵢ and KLᵢ = ½ log(λᵢ/σ²), with λ the data's eigenvalues."""
    encode = jax.jit(partial(MODEL.apply, method="encode"))
    posterior = encode(best_params(PPCA, x64), source(x64)["x"])
    ratio = GAUSSIAN.eigenvalues[:D] / PPCA.noise_variance
    variance = 1 - 1 / ratio
    np.testing.assert_allclose(np.var(posterior.mean, axis=0), variance, rtol=1e-10)
    np.testing.assert_allclose(diagnostics.kl_per_dimension(*posterior), 0.5 * np.log(ratio), rtol=1e-10)
    assert jaxvae.evaluation.diagnostics.active_units(posterior.mean) == 2
    assert jaxvae.evaluation.diagnostics.active_units(posterior.mean, threshold=variance.mean()) == 1


def test_training_reaches_the_closed_form_and_never_exceeds_it(key):
    steps = 2000
    optimizer = optax.adam(optax.cosine_decay_schedule(0.03, steps))
    train_step = jaxvae.make_train_step(partial(linear_vae_loss, MODEL), optimizer)
    state = jaxvae.init_train_state(lambda *, key: (MODEL.init(key, jnp.zeros((1, X))), ()), optimizer, key=key)
    rows = jnp.broadcast_to(jnp.arange(N, dtype=jnp.int32), (steps, N))
    state, metrics = jaxvae.make_train_epoch(train_step)(state, source(), rows)
    values = -np.asarray(metrics["loss"], np.float64)
    assert values[0] < BEST - 5
    assert values.max() < BEST + 1e-4
    assert values[-1] > BEST - 0.05
    log_var = MODEL.apply(state.params, jnp.zeros((1, D)), method="decode").log_var
    np.testing.assert_allclose(log_var, np.log(PPCA.noise_variance), atol=0.02)
