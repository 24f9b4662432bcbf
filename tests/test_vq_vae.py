from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from variants import SHAPE, VARIANTS, batch

import jaxvae
from jaxvae import codebook
from jaxvae.models.vq_vae import grouped, look_up, quantize

B = 6
VARIANT = VARIANTS["vq-vae"]


def step_of(variant, key, images=None, **options):
    params, model_state = variant.init(key=jax.random.key(1))
    images = batch(B) if images is None else images
    loss = partial(jaxvae.vq_vae_loss, variant.model, **options)
    value, (state, metrics) = jax.jit(loss)(params, model_state, images, key=key, step=0)
    return params, model_state, value, state, metrics


def test_the_loss_equals_a_float64_reference(key):
    params, model_state, value, _, metrics = step_of(VARIANT, key, variance=0.1)
    image = batch(B)["image"]
    encoded = VARIANT.model.apply(params, image, method="encode")
    codes = np.asarray(codebook.vectors(model_state), np.float64)
    z = np.asarray(encoded, np.float64).reshape(-1, 4)
    indices = ((z[:, None] - codes[None]) ** 2).sum(-1).argmin(1)
    quantized = codes[indices].reshape(encoded.shape)
    shown = VARIANT.model.apply(params, jnp.asarray(quantized, jnp.float32), method="decode").mean
    distortion = ((np.asarray(shown, np.float64) - np.asarray(image)) ** 2).mean() / 0.1
    commitment = ((np.asarray(encoded, np.float64) - quantized) ** 2).mean()
    np.testing.assert_allclose(metrics["distortion"], distortion, rtol=1e-5)
    np.testing.assert_allclose(metrics["commitment"], commitment, rtol=1e-4)
    np.testing.assert_allclose(value, distortion + 0.25 * commitment, rtol=1e-5)
    share = np.bincount(indices, minlength=8) / len(indices)
    entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
    np.testing.assert_allclose(metrics["batch_perplexity"], np.exp(entropy), rtol=1e-5)


@pytest.mark.parametrize("name", ["vq-vae", "vq-vae, groups"])
def test_an_entropy_weight_prefers_frequent_codes(name, key):
    variant = VARIANTS[name]
    params, model_state = variant.init(key=jax.random.key(1))
    frequency = jnp.linspace(0.01, 1.0, 8)
    frequency = jnp.broadcast_to(frequency / frequency.sum(), model_state.frequency.shape)
    moment = model_state.moment * (frequency / model_state.frequency)[..., None]  # the same vectors
    model_state = codebook.CodebookState(frequency, moment)

    def state_after(weight):
        loss = partial(jaxvae.vq_vae_loss, variant.model, restart_threshold=0.0, decay=0.5, entropy_weight=weight)
        return loss(params, model_state, batch(B), key=key, step=0)[1][0]

    last_code = [state_after(weight).frequency[..., -1] for weight in (0.0, 1e3)]
    assert np.all(last_code[0] < 0.4)
    np.testing.assert_allclose(last_code[1], 0.5 + 0.5 * frequency[..., -1], rtol=1e-5)  # every position took it


def test_the_state_is_one_ema_update_and_its_restarts(key):
    params, model_state, _, state, metrics = step_of(VARIANT, key, decay=0.5, restart_threshold=0.0)
    encoded = VARIANT.model.apply(params, batch(B)["image"], method="encode")
    indices, _ = quantize(encoded, codebook.vectors(model_state))
    expected = codebook.ema_update(model_state, encoded, indices, decay=0.5)
    chex.assert_trees_all_close(state, expected, rtol=1e-6)
    assert metrics["restarts"] == 0

    _, _, _, state, metrics = step_of(VARIANT, key, decay=0.5, restart_threshold=0.9)
    dead = np.asarray(expected.frequency) < 0.9 / 8
    assert metrics["restarts"] == dead.sum() > 0
    np.testing.assert_allclose(state.frequency[dead], 1 / 8, rtol=1e-6)
    outputs = np.asarray(encoded).reshape(-1, 4)
    for vector in np.asarray(codebook.vectors(state))[dead]:
        assert np.abs(outputs - vector).max(axis=1).min() < 1e-5


def test_gradients_go_where_they_belong(key):
    """Distortion reaches both networks through the codes, commitment the encoder alone, the codebook loss the codes."""
    params, model_state = VARIANT.init(key=jax.random.key(1))

    def gradient(**options):
        loss = partial(jaxvae.vq_vae_loss, VARIANT.model, **options)
        grads = jax.jit(jax.grad(lambda p: loss(p, model_state, batch(B), key=key, step=0)[0]))(params)["params"]
        return {part: float(optax.tree.norm(grads[part])) for part in ("encoder", "decoder")}

    through = gradient(variance=0.1, commitment_weight=0.0)
    assert min(through.values()) > 0
    heavy = gradient(variance=0.1, commitment_weight=100.0)
    assert heavy["decoder"] == pytest.approx(through["decoder"], rel=1e-5)
    assert heavy["encoder"] > 2 * through["encoder"]

    learned = VARIANTS["vq-vae, gradient codes"]
    params, model_state = learned.init(key=jax.random.key(1))
    grads = jax.jit(jax.grad(lambda p: learned.loss_fn(p, model_state, batch(B), key=key, step=0)[0]))(params)
    encoded = jax.jit(partial(learned.model.apply, method="encode"))(params, batch(B)["image"])
    pull = jax.grad(lambda codes: jaxvae.losses.codebook_loss(encoded, quantize(encoded, codes)[1]).mean())
    expected = pull(params["codebook"]["codes"])
    np.testing.assert_allclose(grads["codebook"]["codes"], expected, rtol=1e-5, atol=1e-7)
    assert np.any(expected)


def test_evaluation_leaves_the_codebook_alone(key):
    state = jaxvae.init_train_state(VARIANT.init, optax.adam(1e-3), key=key)
    before = jax.tree.map(np.array, state.model_state)
    evaluate = jaxvae.make_evaluate(jaxvae.make_eval_step(VARIANT.loss_fn))
    metrics = evaluate(state, batch(20), jnp.arange(20, dtype=jnp.int32).reshape(4, 5), key=key)
    chex.assert_trees_all_equal(before, jax.tree.map(np.array, state.model_state))
    assert metrics["distortion"] > 0


def test_indices_go_there_and_back(key):
    for name in ("vq-vae", "vq-vae, groups"):
        variant = VARIANTS[name]
        params, model_state = variant.init(key=key)
        codes = jaxvae.code_vectors(params, model_state)
        image = batch(B)["image"]
        indices = variant.model.apply(params, image, codes, method="encode_indices")
        assert indices.dtype == jnp.int32
        assert indices.shape == (B, 4, 4) + (() if codes.ndim == 2 else (2,))
        _, quantized = quantize(variant.model.apply(params, image, method="encode"), codes)
        np.testing.assert_array_equal(look_up(codes, indices), quantized)
        shown = variant.model.apply(params, indices, codes, method="decode_indices").mean
        np.testing.assert_allclose(shown, variant.model.apply(params, quantized, method="decode").mean, rtol=1e-6)
    with pytest.raises(TypeError, match="indices must be integers, got float32"):
        variant.model.apply(params, indices.astype(jnp.float32), codes, method="decode_indices")


def test_each_group_quantises_its_slice():
    rng = np.random.default_rng(0)
    codes, encoded = rng.normal(size=(2, 5, 3)), rng.normal(size=(7, 4, 6))
    indices, quantized = quantize(jnp.float32(encoded), jnp.float32(codes))
    for g in range(2):
        part = encoded[..., 3 * g : 3 * g + 3]
        expected = ((part[..., None, :] - codes[g]) ** 2).sum(-1).argmin(-1)
        np.testing.assert_array_equal(indices[..., g], expected)
        np.testing.assert_allclose(quantized[..., 3 * g : 3 * g + 3], codes[g][expected], rtol=1e-6)
    with pytest.raises(ValueError, match="2 codebooks of dimension 3 need vectors of 6, got"):
        grouped(jnp.zeros((4, 5)), jnp.zeros((2, 5, 3)))


@pytest.mark.parametrize("shape", [(16, 3), (8, 8, 1), (8, 4, 4, 2)])
def test_sound_images_and_video(shape, key):
    """One, two and three dimensions through the same code."""
    model = jaxvae.VQVAE(jaxvae.ResidualEncoder(4, (8, 8), 1, 4), jaxvae.ResidualDecoder(shape[-1], (8, 8), 1, 4))
    images = {"image": jax.random.uniform(key, (B, *shape)), "index": jnp.arange(B)}

    @jax.jit
    def run(key):
        params, state = model.init(key, images["image"]), codebook.init_codebook(8, 4, key=key)
        loss = partial(jaxvae.vq_vae_loss, model, variance=1 / 12)
        grads = jax.grad(lambda p: loss(p, state, images, key=key, step=0)[0])(params)
        indices = model.apply(params, images["image"], codebook.vectors(state), method="encode_indices")
        return grads, indices

    grads, indices = run(key)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(grads))
    assert indices.shape == (B, *(size // 4 for size in shape[:-1]))


def test_statistics_stay_float32_under_bfloat16(key):
    encoder = jaxvae.ResidualEncoder(4, (8,), 1, 4, dtype=jnp.bfloat16)
    model = jaxvae.VQVAE(encoder, jaxvae.ResidualDecoder(1, (8,), 1, 4, dtype=jnp.bfloat16))

    @jax.jit
    def run(key):
        params, state = model.init(key, jnp.zeros((1, *SHAPE))), codebook.init_codebook(8, 4, key=key)
        return jaxvae.vq_vae_loss(model, params, state, batch(B), key=key, step=0, variance=0.1)

    value, (state, metrics) = run(key)
    assert {leaf.dtype for leaf in jax.tree.leaves((value, state, metrics))} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variance": 0.0}, "variance must be positive, got 0.0"),
        ({"commitment_weight": -1.0}, "commitment_weight must be a finite number, zero or more, got -1.0"),
        ({"entropy_weight": float("nan")}, "entropy_weight must be a finite number, zero or more, got nan"),
    ],
)
def test_impossible_weights_are_refused(options, message, key):
    with pytest.raises(ValueError, match=message):
        step_of(VARIANT, key, **options)
