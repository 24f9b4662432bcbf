"""`hierarchical_vae_loss`, by hand from the model's own rates."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import VARIANTS, batch

import jaxvae
from jaxvae.objectives import hierarchical_vae_loss

MODEL, _, INIT = VARIANTS["top-down"][:3]


@pytest.fixture(scope="module")
def params():
    return INIT(key=jax.random.key(0))[0]


@pytest.fixture(scope="module")
def measured(params):
    """The objective, and by hand each group's rate, the distortion and the groups' sizes."""
    loss = partial(hierarchical_vae_loss, MODEL, params, (), batch(6), key=jax.random.key(3), step=7)
    terms = MODEL.apply(
        params,
        batch(6)["x"],
        key=jaxvae.keys.example_keys(jax.random.key(3), jnp.arange(6)),
        num_samples=1,
        method="terms",
    )
    rates = np.array([np.float64(r).sum(axis=-1).mean() for r in terms.rates.values()])
    return loss, rates, -np.float64(terms.log_likelihood).mean(), np.array([32, 3])


def test_without_options_it_is_the_bound(measured, params):
    loss, rates, distortion, _ = measured
    value, (_, metrics) = loss()
    np.testing.assert_allclose(value, distortion + rates.sum(), rtol=1e-5)
    np.testing.assert_allclose([metrics[f"rate_z{i}"] for i in (1, 2)], rates, rtol=1e-4)
    plain, (_, of_plain) = jaxvae.vae_loss(MODEL, params, (), batch(6), key=jax.random.key(3), step=7)
    np.testing.assert_allclose(value, plain, rtol=1e-6)
    for name in ("rate", "distortion", "negative_elbo"):
        np.testing.assert_allclose(metrics[name], of_plain[name], rtol=1e-5)


def test_a_group_pays_nothing_for_its_first_nats(measured):
    loss, rates, distortion, _ = measured
    floor = float(rates.mean())
    value, (_, metrics) = loss(beta=0.5, free_bits=floor)
    np.testing.assert_allclose(value, distortion + 0.5 * np.maximum(rates, floor).sum(), rtol=1e-5)
    np.testing.assert_allclose(metrics["rate"], rates.sum(), rtol=1e-4)
    by_schedule, _ = loss(beta=lambda step: 0.5 * step / 7, free_bits=lambda step: floor * step / 7)
    np.testing.assert_allclose(by_schedule, value, rtol=1e-6)


def test_balanced_groups_pay_by_their_rate_for_each_latent(measured):
    loss, rates, distortion, sizes = measured
    shares = (rates + 0.01) / sizes
    expected = distortion + 0.5 * (rates * shares / shares.mean()).sum()
    value, _ = loss(beta=0.5, balanced=True)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    at_one, _ = loss(beta=lambda step: step / 7, balanced=True)
    np.testing.assert_allclose(at_one, distortion + rates.sum(), rtol=1e-5)


def test_no_gradient_goes_through_the_balance(measured, params):
    _, rates, _, sizes = measured
    shares = (rates + 0.01) / sizes
    factors = jnp.asarray(shares / shares.mean(), jnp.float32)

    def by_hand(params):
        keys = jaxvae.keys.example_keys(jax.random.key(3), jnp.arange(6))
        terms = MODEL.apply(params, batch(6)["x"], key=keys, num_samples=1, method="terms")
        each = jnp.stack([r.sum(axis=-1).mean() for r in terms.rates.values()])
        return -terms.log_likelihood.mean() + 0.5 * (each * factors).sum()

    def loss(params):
        options = {"key": jax.random.key(3), "step": 7, "beta": 0.5, "balanced": True}
        return hierarchical_vae_loss(MODEL, params, (), batch(6), **options)[0]

    expected, found = (jax.jit(jax.grad(each))(params) for each in (by_hand, loss))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), found, expected)


@pytest.mark.parametrize("options", [{"beta": -1.0}, {"free_bits": -0.1}, {"free_bits": math.nan}])
def test_numbers_that_are_no_weights(measured, options):
    with pytest.raises(ValueError, match="finite number, zero or more"):
        measured[0](**options)


@pytest.mark.parametrize("options", [{"free_bits": 0.1}, {"balanced": True, "beta": 0.5}])
def test_what_crosses_the_batch_is_refused_in_evaluation(params, options):
    step = partial(jaxvae.make_eval_step(partial(hierarchical_vae_loss, MODEL, **options)), key=jax.random.key(0))
    with pytest.raises(ValueError, match="hierarchical_vae_loss with free bits or balanced"):
        jax.eval_shape(partial(step, step=0), params, (), batch(2) | {"weight": jnp.ones(2)})


def test_a_balance_that_would_balance_nothing(measured):
    with pytest.raises(ValueError, match=r"balanced while β < 1, and it is 1.0: pass beta=optax\.linear_schedule"):
        measured[0](balanced=True)
