"""The deterministic autoencoder: its distortion in float64, and principal components as what a linear one learns."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from variants import VARIANTS, batch

import jaxvae
from jaxvae.distributions import DiagGaussian

N, X, D = 200, 8, 3


def test_the_loss_is_the_float64_distortion(key):
    variant = VARIANTS["autoencoder"]
    params, model_state = variant.init(key=key)
    value, (_, metrics) = variant.loss_fn(params, model_state, batch(6), key=key, step=0)

    features = np.asarray(batch(6)["x"], np.float64).reshape(6, -1)
    image = features
    for network in ("encoder", "decoder"):
        for layer in ("Dense_0", "output"):
            dense = params["params"][network][layer]
            features = features @ np.asarray(dense["kernel"], np.float64) + np.asarray(dense["bias"], np.float64)
            if layer == "Dense_0":
                features = np.maximum(features, 0)
    expected = (np.logaddexp(0, features) - image * features).sum(axis=1).mean()
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert metrics["loss"] == metrics["distortion"] == value


def test_nothing_is_drawn(key):
    variant = VARIANTS["autoencoder"]
    params, model_state = variant.init(key=key)
    one, other = (variant.loss_fn(params, model_state, batch(6), key=k, step=0)[0] for k in jax.random.split(key))
    assert one == other


@pytest.mark.slow
def test_a_linear_autoencoder_finds_the_principal_components(key):
    """Its least squared error is the sum of the discarded eigenvalues (Baldi and Hornik, 1989)."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(X, D)))[0].T * [[3.0], [2.0], [1.5]]
    data = rng.normal(size=(N, D)) @ basis + 0.3 * rng.normal(size=(N, X)) + 1.0
    discarded = np.linalg.eigvalsh(np.cov(data.T, ddof=0))[:-D].sum()
    model = jaxvae.Autoencoder(
        jaxvae.MLPDecoder((D,), hidden=()),
        jaxvae.MLPDecoder((X,), hidden=()),
        partial(DiagGaussian, log_var=jnp.float32(0.0)),
    )
    optimizer = optax.adam(optax.cosine_decay_schedule(0.02, 1500))
    train_step = jaxvae.make_train_step(partial(jaxvae.autoencoder_loss, model), optimizer)
    state = jaxvae.init_train_state(lambda *, key: (model.init(key, jnp.zeros((1, X))), ()), optimizer, key=key)
    source = {"x": jnp.asarray(data, jnp.float32), "index": jnp.arange(N, dtype=jnp.int32)}
    rows = jnp.broadcast_to(source["index"], (1500, N))
    _, metrics = jaxvae.make_train_epoch(train_step)(state, source, rows)
    squared_error = 2 * np.asarray(metrics["distortion"], np.float64) - X * np.log(2 * np.pi)
    assert squared_error.min() > discarded * (1 - 1e-4)
    assert squared_error[0] > 10 * discarded
    np.testing.assert_allclose(squared_error[-1], discarded, rtol=0.01)
