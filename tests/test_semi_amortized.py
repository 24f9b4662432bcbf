"""Semi-amortised training: what the steps gain on a model whose best ELBO is known, and its gradient."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from variants import batch, mlp

import jaxvae
from jaxvae.distributions import DiagGaussian, FullGaussian
from jaxvae.flows import FullCovariance
from jaxvae.objectives import semi_amortized_vae_loss
from jaxvae.objectives._refinement import unconstrained

WEIGHTS, VARIANCE, N, D = np.array([[1.0, 0.5, -0.5, 1.0], [0.4, -0.6, 0.2, 0.1]]), 0.5, 6, 4
PRECISION = np.eye(2) + WEIGHTS @ WEIGHTS.T / VARIANCE
X = np.random.default_rng(0).normal(size=(N, D))
BATCH = {"x": jnp.float32(X), "index": jnp.arange(N, dtype=jnp.int32)}
KEY = jax.random.key(0)


class Encoder(nn.Module):
    """The same for every x: a bad one."""

    @nn.compact
    def __call__(self, x):
        start = self.param("start", nn.initializers.constant(0.5), (2, 2))
        mean, log_var = jnp.broadcast_to(start[:, None], (2, len(x), 2)).astype(x.dtype)
        return mean, log_var


class Decoder(nn.Module):
    """Linear, at the weights above."""

    @nn.compact
    def __call__(self, z):
        return z @ self.param("weights", lambda _: jnp.asarray(WEIGHTS, z.dtype)).astype(z.dtype)


MODEL = jaxvae.VAE(Encoder(), Decoder(), partial(DiagGaussian, log_var=float(np.log(VARIANCE))), latent_dim=2)
PARAMS = MODEL.init(KEY, BATCH["x"])


def best():
    """The smallest negative ELBO of a diagonal Gaussian q, mean over the examples."""
    covariance = WEIGHTS.T @ WEIGHTS + VARIANCE * np.eye(D)
    log_p = -0.5 * (np.einsum("ni,ij,nj->n", X, np.linalg.inv(covariance), X) + np.linalg.slogdet(covariance)[1])
    gap = 0.5 * (np.log(np.diag(PRECISION)).sum() - np.linalg.slogdet(PRECISION)[1])
    return gap - (log_p - 0.5 * D * np.log(2 * np.pi)).mean()


def loss_of(params=PARAMS, examples=BATCH, model=MODEL, **options):
    return semi_amortized_vae_loss(model, params, (), examples, **{"key": KEY, "step": 0} | options)


def test_steps_bring_a_bad_encoder_near_the_best_bound():
    """From 1.8 nats away and more to a tenth; the draws of 500 samples say no more."""
    loss = jax.jit(partial(loss_of, num_samples=500), static_argnames="num_steps")
    found = {steps: loss(num_steps=steps)[1][1] for steps in (1, 60)}
    away = {steps: float(metrics["loss"]) - best() for steps, metrics in found.items()}
    assert float(found[1]["amortized"]) - best() > 1.8
    assert away[1] < float(found[1]["amortized"]) - best() - 0.3
    assert away[60] == pytest.approx(0, abs=0.1)
    plain = jaxvae.vae_loss(MODEL, PARAMS, (), BATCH, key=KEY, step=0, num_samples=500)[0]
    assert found[60]["amortized"] == pytest.approx(float(plain), abs=0.3)  # other draws


def test_without_a_step_to_speak_of_it_is_the_elbo_at_the_same_draws():
    loss, (_, metrics) = loss_of(step_size=1e-30)
    plain, (_, expected) = jaxvae.vae_loss(MODEL, PARAMS, (), BATCH, key=KEY, step=0)
    np.testing.assert_allclose(loss, plain, rtol=1e-6)
    for name in ("rate", "distortion", "negative_elbo"):
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-6)


def test_steps_leave_a_covariance_one():
    """A likelihood so narrow that a step of the factor itself would take its diagonal below zero."""
    likelihood = partial(DiagGaussian, log_var=float(np.log(1e-3)))
    model = jaxvae.VAE(lambda x: (x[:, :2], jnp.full((N, 2), -4.0)), Decoder(), likelihood, posterior=FullCovariance())
    params = model.init(KEY, BATCH["x"])
    loss, (_, metrics) = loss_of(params, model=model, num_samples=50)
    _, (_, plain) = jaxvae.vae_loss(model, params, (), BATCH, key=KEY, step=0, num_samples=50)
    assert loss < plain["loss"] - 10
    assert np.isfinite(metrics["rate"])
    free, back = unconstrained(FullGaussian(jnp.zeros((1, 2)), jnp.float32([[[2.0, 0.0], [1.0, 0.5]]])))
    np.testing.assert_allclose(free.factor, [[[np.log(2), 0], [1.0, np.log(0.5)]]], rtol=1e-6)
    np.testing.assert_allclose(back(free).factor, [[[2.0, 0.0], [1.0, 0.5]]], rtol=1e-6)


def test_one_step_is_the_formula():
    """By hand: the gradient of the closed form at the step's draws, cut to its norm."""
    size, longest = 0.2, 1.5
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(BATCH["index"])
    draws = lambda keys: jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 0), (2,)))(keys)  # noqa: E731
    of_step = jax.vmap(lambda k: jax.random.fold_in(jax.random.fold_in(k, 2**32 - 1), 0))(keys)
    first, last = (np.asarray(draws(each), np.float64) for each in (of_step, keys))
    mean, log_var = np.full((N, 2), 0.5), np.full((N, 2), 0.5)

    def distortion_gradient(z):
        return (z @ WEIGHTS - X) / VARIANCE @ WEIGHTS.T

    std = np.exp(0.5 * log_var)
    by_z = distortion_gradient(mean + std * first)
    gradient = np.concatenate([by_z + mean, by_z * first * std / 2 + 0.5 * (np.exp(log_var) - 1)], axis=1)
    gradient *= np.minimum(1, longest / np.linalg.norm(gradient, axis=1, keepdims=True))
    mean, log_var = mean - size * gradient[:, :2], log_var - size * gradient[:, 2:]
    z = mean + np.exp(0.5 * log_var) * last
    error = np.square(z @ WEIGHTS - X).sum(axis=1) / VARIANCE
    distortion = 0.5 * (error + D * np.log(2 * np.pi * VARIANCE)).mean()
    rate = 0.5 * (np.exp(log_var) + mean**2 - 1 - log_var).sum(axis=1).mean()
    _, (_, metrics) = loss_of(num_steps=1, step_size=size, max_norm=longest)
    np.testing.assert_allclose([metrics["distortion"], metrics["rate"]], [distortion, rate], rtol=1e-5)
    assert np.ptp(np.linalg.norm(gradient, axis=1)) > 0.01 or np.allclose(np.linalg.norm(gradient, axis=1), longest)


@pytest.mark.parametrize("max_norm", [0.5, pytest.param(50.0, marks=pytest.mark.slow)])
def test_the_gradient_goes_through_the_steps(max_norm):
    """Against finite differences in float64; to first order the value is the same, and the gradient another one."""
    with jax.enable_x64(True):
        params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), PARAMS)
        examples = {**BATCH, "x": jnp.asarray(X)}
        options = {"num_steps": 3, "max_norm": max_norm, "examples": examples}
        loss = jax.jit(lambda params: loss_of(params, **options)[0])
        gradient = jax.jit(jax.grad(loss))(params)
        leaves, tree = jax.tree.flatten(params)
        rng = np.random.default_rng(1)
        for _ in range(3):
            along = tree.unflatten([jnp.asarray(rng.normal(size=leaf.shape)) for leaf in leaves])
            at = lambda t: float(loss(jax.tree.map(lambda leaf, by: leaf + t * by, params, along)))  # noqa: E731, B023
            slope = sum(float(jnp.vdot(g, by)) for g, by in zip(*map(jax.tree.leaves, (gradient, along)), strict=True))
            assert slope == pytest.approx((at(1e-5) - at(-1e-5)) / 2e-5, rel=1e-5)
        first_order = lambda params: loss_of(params, first_order=True, **options)[0]  # noqa: E731
        value, other = jax.jit(jax.value_and_grad(first_order))(params)
        np.testing.assert_allclose(value, loss(params), rtol=1e-12)
        for name in ("encoder", "decoder"):
            one, first = (jax.tree.leaves(each["params"][name])[0] for each in (gradient, other))
            assert float(jnp.abs(one - first).max()) > 1e-3


def test_bad_input_is_named():
    encoder, posterior = jaxvae.MLPEncoder(3, (4,), context_dim=2), jaxvae.flows.FlowPosterior((jaxvae.flows.Planar(),))
    flow = jaxvae.VAE(encoder, mlp()[1], posterior=posterior)
    params = flow.init(KEY, batch(2)["x"])
    for call, error, text in (
        (lambda: loss_of(num_steps=0), ValueError, "num_steps must be at least 1, got 0"),
        (lambda: loss_of(num_samples=0), ValueError, "num_samples must be at least 1, got 0"),
        (lambda: loss_of(step_size=lambda step: 0.1), TypeError, "step_size must be a number, the same at every step"),
        (lambda: loss_of(step_size=0.0), ValueError, "step_size must be a positive number, got 0.0"),
        (lambda: loss_of(max_norm=float("inf")), ValueError, "max_norm must be a positive number, got inf"),
        (lambda: loss_of(params, batch(2), flow), TypeError, "whose parameters are not arrays of each example"),
        (lambda: loss_of(model=jaxvae.PixelCNN(2, (2, 2))), TypeError, "only the posteriors of a VAE or CVAE"),
    ):
        with pytest.raises(error, match=text):
            call()
