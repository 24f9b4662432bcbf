"""`GumbelCodebook` against NumPy in float64, and as a discrete VAE in training."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from scipy import special, stats

from jaxvae import VQVAE, init_train_state, make_eval_step, make_train_step, vq_vae_loss
from jaxvae.quantizers import GumbelCodebook, Residual

D, K = 3, 5


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


@pytest.fixture(scope="module")
def params():
    made, state = GumbelCodebook(K).init(D, key=jax.random.key(3))
    assert state == {}
    return made | {"bias": normal(4, K)}


def logits_of(params, encoded):
    exact = {name: np.asarray(values, np.float64) for name, values in params.items()}
    return np.asarray(encoded, np.float64) @ exact["kernel"] + exact["bias"]


def test_codes_are_drawn_from_the_softmax_and_belong_to_the_example(params):
    quantizer, draws = GumbelCodebook(K), 20_000
    vector = jnp.array([0.3, -0.2, 0.6])
    assert quantizer.needs_key
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))(jnp.arange(draws))
    drawn = jax.jit(partial(quantizer, params, {}))(jnp.tile(vector, (draws, 1)), key=keys)
    logits = logits_of(params, vector)
    assert stats.chisquare(np.bincount(drawn.indices, minlength=K), draws * special.softmax(logits)).pvalue > 1e-3
    assert quantizer(params, {}, vector[None], key=keys[17:18]).indices[0] == drawn.indices[17]
    assert quantizer(params, {}, vector[None]).indices[0] == logits.argmax()


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_training_mixes_the_codes_as_the_relaxation_says(params, temperature):
    """The noise of the draw is that of the mixture: where it is sharp, the mixture is the code that was drawn."""
    encoded, key = normal(1, 4, 2, D), jax.random.key(8)
    soft = GumbelCodebook(K, temperature)(params, {}, encoded, key=key)
    gumbel = np.asarray(jax.random.gumbel(key, (4 * 2 * K,))).reshape(4, 2, K).astype(np.float64)
    noisy = logits_of(params, encoded) + gumbel
    np.testing.assert_array_equal(soft.indices, noisy.argmax(axis=-1))
    expected = special.softmax(noisy / temperature, axis=-1) @ np.asarray(params["codes"], np.float64)
    np.testing.assert_allclose(soft.latent, expected, rtol=1e-5, atol=1e-6)
    sharp = GumbelCodebook(K, 1e-4)(params, {}, encoded, key=key)
    np.testing.assert_allclose(sharp.latent, soft.vectors, atol=1e-6)


def test_one_code_may_be_given_with_the_gradient_of_the_mixture(params):
    encoded, key = normal(1, 4, 2, D), jax.random.key(8)

    def read(straight_through, params, encoded):
        latent = GumbelCodebook(K, 0.5, straight_through)(params, {}, encoded, key=key).latent
        return jnp.vdot(latent, jnp.cos(jnp.arange(latent.size)).reshape(latent.shape)), latent

    grad = jax.jit(jax.grad(read, argnums=(1, 2), has_aux=True), static_argnums=0)
    (hard_grads, hard), (soft_grads, _) = grad(True, params, encoded), grad(False, params, encoded)
    chex.assert_trees_all_close(hard_grads, soft_grads, rtol=1e-5, atol=1e-6)
    drawn = GumbelCodebook(K, 0.5)(params, {}, encoded, key=key).vectors
    np.testing.assert_array_equal(hard, drawn)
    most_probable = GumbelCodebook(K)(params, {}, encoded)
    np.testing.assert_array_equal(most_probable.latent, most_probable.vectors)


def test_the_loss_is_the_kl_to_uniform_codes(params):
    """log K - H, in float64, also where the logits are huge; with a mask the mean over what is there."""
    encoded = normal(1, 4, 2, D).at[0, 0].set(1e4)
    log_q = special.log_softmax(logits_of(params, encoded), axis=-1)
    kl = (np.exp(log_q) * (log_q + np.log(K))).sum(axis=-1)
    assert (kl >= 0).all()
    quantizer = GumbelCodebook(K, kl_weight=2.0)
    quantized = quantizer(params, {}, encoded)
    np.testing.assert_allclose(quantized.loss, 2 * kl.mean(axis=1), rtol=1e-5)
    np.testing.assert_allclose(quantized.metrics["rate"], kl.sum(axis=1).mean(), rtol=1e-5)
    mask = jnp.array([[True, False], [True, True], [False, False], [False, True]])
    masked = quantizer(params, {}, encoded.at[2].set(jnp.nan), mask=mask)
    np.testing.assert_allclose(masked.loss, 2 * np.array([kl[0, 0], kl[1].mean(), 0, kl[3, 1]]), rtol=1e-5)
    grads = jax.grad(lambda encoded: quantizer(params, {}, encoded).loss.sum())(encoded)
    assert np.isfinite(grads).all()


def test_the_vectors_tell_the_scale_of_the_logits():
    encoded = 50 * normal(1, 4_000, D)
    made, _ = GumbelCodebook(64).init(D, key=jax.random.key(0), encoded=encoded)
    assert float(jnp.std(encoded @ made["kernel"])) == pytest.approx(1, rel=0.2)
    zero, _ = GumbelCodebook(64).init(D, key=jax.random.key(0), encoded=0 * encoded)
    assert np.isfinite(zero["kernel"]).all()


def test_a_discrete_vae_trains_counts_its_steps_and_draws_nothing_in_evaluation():
    """The temperature of step n is the schedule's at n: a schedule that falls at once makes the second step hard."""
    quantizer = GumbelCodebook(K, optax.piecewise_constant_schedule(5.0, {1: 1e-5}))
    model = VQVAE(nn.Dense(D), nn.Dense(3), Residual(quantizer, 2))
    x = normal(1, 6, 4, 3)
    loss_fn = partial(vq_vae_loss, model)
    optimizer = optax.sgd(1e-3)
    batch = {"x": x, "index": jnp.arange(6)}
    state = init_train_state(partial(model.init_with_quantizer, x), optimizer, key=jax.random.key(0))
    step = jax.jit(make_train_step(loss_fn, optimizer))
    for expected in (1, 2):
        state, metrics = step(state, batch)
        assert state.first_bad == -1
        np.testing.assert_array_equal(state.model_state["quantizer"]["steps"], [expected] * 2)
    assert 1 <= metrics["batch_perplexity"] <= K

    params, held = state.params["quantizer"], state.model_state["quantizer"]
    key = jax.random.key(1)
    for steps, hard in ((0, False), (1, True)):
        quantized = model.quantizer(params, {"steps": held["steps"] * 0 + steps}, normal(2, 6, D), key=key)
        assert (np.abs(quantized.latent - quantized.vectors).max() < 1e-5) == hard

    evaluate = jax.jit(make_eval_step(loss_fn))
    examples = batch | {"weight": jnp.ones(6)}
    one, other = (
        evaluate(state.params, state.model_state, examples, key=jax.random.key(seed), step=0) for seed in (1, 2)
    )
    chex.assert_trees_all_equal(one, other)
    assert "rate" in one[0]


REFUSED = {
    "one code": (lambda: GumbelCodebook(1), "num_codes must be at least 2, got 1"),
    "no temperature": (lambda: GumbelCodebook(4, 0.0), "temperature must be a positive number, or a schedule, got 0.0"),
    "a temperature of NaN": (lambda: GumbelCodebook(4, float("nan")), "temperature must be a positive number"),
    "a negative weight": (lambda: GumbelCodebook(4, kl_weight=-1.0), "kl_weight must be a finite number, zero or more"),
    "other vectors": (
        lambda: GumbelCodebook(4).init(3, key=jax.random.key(0), encoded=jnp.zeros((5, 2))),
        r"encoded must be \[..., 3\] for codes of 3 dimensions, got \(5, 2\)",
    ),
    "no parameters": (
        lambda: GumbelCodebook(4)({}, {}, jnp.zeros((1, 3))),
        "GumbelCodebook has no codes without its parameters",
    ),
    "another number of codes": (
        lambda: GumbelCodebook(4)(GumbelCodebook(5).init(3, key=jax.random.key(0))[0], {}, jnp.zeros((1, 3))),
        "num_codes=4 needs codes",
    ),
    "no steps": (
        lambda: GumbelCodebook(4, lambda step: 1.0)(
            GumbelCodebook(4).init(3, key=jax.random.key(0))[0], {}, jnp.zeros((1, 3))
        ),
        "a GumbelCodebook with a schedule needs its state",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
