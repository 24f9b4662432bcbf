from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from variants import VARIANTS, batch

import jaxvae
from jaxvae.objectives import beta_from_normalized, cyclical_schedule, normalized_beta

B = 6
VARIANT = VARIANTS["bernoulli"]


def evaluate(loss, key, step=0, **options):
    params, model_state = VARIANT.init(key=jax.random.key(1))
    value, (_, metrics) = loss(VARIANT.model, params, model_state, batch(B), key=key, step=step, **options)
    return float(value), {name: float(metric) for name, metric in metrics.items()}


def rates_per_dimension():
    """The batch's mean KL of every latent, from the formula, in float64."""
    params, _ = VARIANT.init(key=jax.random.key(1))
    posterior = jax.jit(partial(VARIANT.model.apply, method="encode"))(params, batch(B)["x"])
    mean, log_var = (np.asarray(leaf, np.float64) for leaf in posterior)
    return 0.5 * (np.exp(log_var) + mean**2 - 1 - log_var).mean(axis=0)


def test_without_options_it_is_the_plain_objective(key):
    plain, metrics = evaluate(jaxvae.vae_loss, key, beta=4.0)
    value, others = evaluate(jaxvae.beta_vae_loss, key, beta=4.0)
    np.testing.assert_allclose(value, plain, rtol=1e-6)
    assert others.keys() == metrics.keys()
    for name in metrics:
        np.testing.assert_allclose(others[name], metrics[name], rtol=1e-5)


def test_the_capacity_is_a_target_for_the_batchs_rate(key):
    rate = rates_per_dimension().sum()
    capacity = optax.linear_schedule(0.0, 2 * rate, 100)
    for step, target in ((0, 0.0), (25, rate / 2), (100, 2 * rate), (10_000, 2 * rate)):
        value, metrics = evaluate(jaxvae.beta_vae_loss, key, step, beta=30.0, capacity=capacity)
        np.testing.assert_allclose(metrics["capacity"], target, rtol=1e-6)
        np.testing.assert_allclose(metrics["rate"], rate, rtol=1e-5)
        np.testing.assert_allclose(value, metrics["distortion"] + 30 * abs(rate - target), rtol=1e-5)


def test_the_capacity_pulls_the_rate_from_both_sides(key):
    params, model_state = VARIANT.init(key=jax.random.key(1))
    rate = rates_per_dimension().sum()

    def mean_rate(params):
        posterior = VARIANT.model.apply(params, batch(B)["x"], method="encode")
        return jaxvae.losses.gaussian_kl(*posterior).mean()

    def loss(params, capacity):
        return jaxvae.beta_vae_loss(
            VARIANT.model, params, model_state, batch(B), key=key, step=0, beta=1e4, capacity=capacity
        )[0]

    for capacity, direction in ((0.0, 1), (2 * rate, -1)):
        gradients = jax.jit(jax.grad(loss))(params, capacity), jax.jit(jax.grad(mean_rate))(params)
        product = sum(jax.tree.leaves(jax.tree.map(lambda a, b: (a * b).sum(), *gradients)))
        assert np.sign(product) == direction


def test_free_bits_are_per_latent_and_of_the_batchs_mean(key):
    rates = rates_per_dimension()
    assert len(set(rates)) == 3
    for free in (0.0, *(rates + 1e-3)):
        value, metrics = evaluate(jaxvae.beta_vae_loss, key, beta=2.0, free_bits=float(free))
        np.testing.assert_allclose(metrics["rate"], rates.sum(), rtol=1e-5)
        np.testing.assert_allclose(value - metrics["distortion"], 2 * np.maximum(rates, free).sum(), rtol=1e-4)
        # The bound is of the rate there is, whatever is paid for it.
        np.testing.assert_allclose(metrics["negative_elbo"], metrics["distortion"] + rates.sum(), rtol=1e-6)


def test_a_latent_within_its_free_bits_pays_nothing(key):
    params, model_state = VARIANT.init(key=jax.random.key(1))

    @jax.jit
    def gradient(beta, free_bits):
        loss = partial(jaxvae.beta_vae_loss, VARIANT.model, beta=beta, free_bits=free_bits)
        return jax.grad(lambda p: loss(p, model_state, batch(B), key=key, step=0)[0])(params)

    free, unpaid = gradient(1.0, 1e3), gradient(0.0, 0.0)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), free, unpaid)


@pytest.mark.parametrize("name", ["beta", "capacity", "free_bits"])
@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_impossible_weights_are_refused(name, value, key):
    with pytest.raises(ValueError, match=f"{name} must be a finite number, zero or more, got {value}"):
        evaluate(jaxvae.beta_vae_loss, key, **{name: value})


def test_normalised_beta_of_the_paper_and_back():
    """β = 4 on dSprites: 4 · 10 / 4096."""
    size = {"latent_dim": 10, "num_pixels": 64 * 64}
    assert normalized_beta(4.0, **size) == 0.009765625
    for beta in (0.5, 1.0, 16.0, 250.0):
        assert beta_from_normalized(normalized_beta(beta, **size), **size) == pytest.approx(beta, rel=1e-12)


def test_normalised_beta_weighs_means_as_beta_weighs_sums(key):
    """Distortion per pixel + normalised β · rate per latent is the loss divided by the pixels."""
    _, metrics = evaluate(jaxvae.vae_loss, key, beta=4.0)
    normalized = normalized_beta(4.0, latent_dim=3, num_pixels=64)
    per_pixel = metrics["distortion"] / 64 + normalized * metrics["rate"] / 3
    np.testing.assert_allclose(metrics["loss"], 64 * per_pixel, rtol=1e-6)


def test_the_cycles():
    schedule = cyclical_schedule(4.0, period=10, num_cycles=3, ramp=0.5)
    once = [0, 0.8, 1.6, 2.4, 3.2, 4, 4, 4, 4, 4]
    np.testing.assert_allclose([schedule(step) for step in range(50)], 3 * once + 20 * [4.0], rtol=1e-6)
    traced = jax.vmap(lambda peak: cyclical_schedule(peak, period=10, num_cycles=2)(13))(jnp.float32([1, 4]))
    np.testing.assert_allclose(traced, [0.6, 2.4], rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"period": 0, "num_cycles": 1}, "period must be at least 1, got 0"),
        ({"period": 5, "num_cycles": 0}, "num_cycles must be at least 1, got 0"),
        ({"period": 5, "num_cycles": 1, "ramp": 0.0}, r"ramp must lie in \(0, 1\], got 0.0"),
    ],
)
def test_impossible_cycles_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        cyclical_schedule(1.0, **options)
