"""Combinations of importance weighted bounds: values from the log weights, gradients part by part."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from scipy import special
from variants import SHAPE, batch, mlp

import jaxvae
from jaxvae.objectives import combined_iwae_loss, multiple_iwae_loss, partial_iwae_loss, vae_log_weights

B, M, K = 5, 3, 4
MODEL = jaxvae.VAE(*mlp(3), prior=jaxvae.GaussianMixture(2, 3))


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, *SHAPE)))


def value_and_gradient(loss, **options):
    loss = partial(loss, MODEL, model_state=(), batch=batch(B), key=jax.random.key(7), step=0, **options)
    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.fixture(scope="module")
def log_w(params):
    weights = vae_log_weights(MODEL, params, (), batch(B), key=jax.random.key(7), num_samples=M * K)
    return np.asarray(weights, np.float64)


def iwae(log_w):
    return special.logsumexp(log_w, axis=0) - np.log(len(log_w))


def test_the_mean_of_several_bounds_is_that_of_groups_of_draws(params, log_w):
    (loss, (_, metrics)), _ = value_and_gradient(multiple_iwae_loss, num_bounds=M, num_samples=K)(params)
    expected = -np.mean([iwae(group).mean() for group in log_w.reshape(M, K, B)])
    assert loss == pytest.approx(expected, rel=1e-5)
    assert metrics["negative_elbo"] == pytest.approx(-log_w.mean(), rel=1e-5)
    assert loss < metrics["negative_elbo"]


def test_at_the_ends_they_are_the_bounds_that_they_combine(params, log_w):
    of = {}
    for name, loss, options in (
        ("iwae", jaxvae.iwae_loss, {"num_samples": M * K}),
        ("one bound", multiple_iwae_loss, {"num_bounds": 1, "num_samples": M * K}),
        ("all weight", combined_iwae_loss, {"num_samples": M * K, "elbo_weight": 0.0}),
        ("elbo", jaxvae.sampled_vae_loss, {"num_samples": M * K}),
        ("of one", multiple_iwae_loss, {"num_bounds": M * K, "num_samples": 1}),
        ("no weight", combined_iwae_loss, {"num_samples": M * K, "elbo_weight": 1.0}),
    ):
        (value, _), gradient = value_and_gradient(loss, **options)(params)
        of[name] = value, gradient
    for one, others in (("iwae", ("one bound", "all weight")), ("elbo", ("of one", "no weight"))):
        for other in others:
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), of[one], of[other])
    (half, _), _ = value_and_gradient(combined_iwae_loss, num_samples=M * K, elbo_weight=0.25)(params)
    assert half == pytest.approx(-(0.25 * log_w.mean() + 0.75 * iwae(log_w).mean()), rel=1e-5)


def test_the_encoder_is_moved_by_several_bounds_and_all_else_by_one(params):
    (value, _), gradient = value_and_gradient(partial_iwae_loss, num_bounds=M, num_samples=K)(params)
    (whole, _), of_one = value_and_gradient(jaxvae.iwae_loss, num_samples=M * K)(params)
    _, of_several = value_and_gradient(multiple_iwae_loss, num_bounds=M, num_samples=K)(params)
    assert value == pytest.approx(float(whole), rel=1e-6)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6)
    for part, expected in (("encoder", of_several), ("decoder", of_one), ("prior", of_one)):
        jax.tree.map(close, gradient["params"][part], expected["params"][part])
    one, several = (ravel_pytree(each["params"]["encoder"])[0] for each in (of_one, of_several))
    assert np.abs(one - several).max() > 1e-3  # or nothing was told apart


@pytest.mark.parametrize(
    ("loss", "options", "text"),
    [
        (multiple_iwae_loss, {"num_bounds": 0, "num_samples": 1}, "num_bounds must be at least 1, got 0"),
        (multiple_iwae_loss, {"num_bounds": 1, "num_samples": 0}, "num_samples must be at least 1, got 0"),
        (combined_iwae_loss, {"num_samples": 2, "elbo_weight": 1.5}, r"elbo_weight must lie in \[0, 1\], got 1.5"),
        (combined_iwae_loss, {"num_samples": 2, "elbo_weight": float("nan")}, "elbo_weight must lie in"),
        (
            *(partial_iwae_loss, {"num_bounds": 2, "num_samples": 2, "proposal": ["q"]}),
            "no parameters are named q, only decoder, encoder, prior: pass proposal=",
        ),
    ],
)
def test_what_makes_no_bound_is_refused(params, loss, options, text):
    with pytest.raises(ValueError, match=text):
        loss(MODEL, params, (), batch(B), key=jax.random.key(0), step=0, **options)
