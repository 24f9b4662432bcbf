"""The PixelVAE: on the seam of every VAE, with a likelihood that draws pixel by pixel."""

import dataclasses
import itertools
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvae
from jaxvae.keys import example_keys, sample_keys
from jaxvae.models import PixelCNN, PixelCNNPP, PixelLikelihood, pixel_vae

KEY = jax.random.key(0)
MODEL = pixel_vae((3, 2, 1), 2, num_values=2, channels=8, layers=2, features=3, hidden=(8,), dense=True)
EVERY = np.array(list(itertools.product([0.0, 1.0], repeat=6)), np.float32).reshape(-1, 3, 2, 1)
BATCH = {"x": jnp.asarray(EVERY[10:16]), "index": jnp.arange(6)}


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(KEY, EVERY[:1])


@pytest.fixture(scope="module")
def decoded(params):
    """p(x|z) at two latents, made outside of any compiled function."""
    return jax.jit(partial(MODEL.apply, method="decode"))(params, jnp.array([[0.5, -3.0], [2.0, 1.0]]))


@jax.jit
def log_prob_of(record, x):
    return record.log_prob(x)


@pytest.fixture(scope="module")
def masses(decoded):
    """p(x|z) of every image at both latents, [2, 64]."""
    nats = []
    for i in range(2):
        context = jnp.repeat(decoded.context[i : i + 1], len(EVERY), axis=0)
        nats.append(log_prob_of(dataclasses.replace(decoded, context=context), EVERY))
    return np.exp(np.float64(nats))


def test_given_a_latent_the_probabilities_of_all_images_sum_to_one(masses):
    np.testing.assert_allclose(masses.sum(axis=1), 1, rtol=1e-5)
    assert np.abs(masses[0] - masses[1]).max() > 1e-3  # the latent is told


def test_draws_and_the_mean_are_those_of_the_probabilities(decoded, masses):
    num = 20_000
    many = dataclasses.replace(decoded, context=jnp.repeat(decoded.context, num // 2, axis=0))
    drawn = many.sample(key=KEY)
    expected = np.einsum("zn,nhwc->zhwc", masses, EVERY)
    assert np.abs(expected[0] - expected[1]).max() > 0.05
    halves = drawn.reshape(2, num // 2, 3, 2, 1).mean(axis=1)
    np.testing.assert_allclose(halves, expected, atol=4 * 0.5 / np.sqrt(num // 2))
    np.testing.assert_allclose(dataclasses.replace(decoded, draws=4000).mean, expected, atol=4 * 0.5 / np.sqrt(4000))
    np.testing.assert_array_equal(drawn[:2] > 0, drawn[:2] == 1)
    keys = example_keys(KEY, jnp.arange(num))
    np.testing.assert_array_equal(many.sample(key=keys), drawn)
    greedy = np.asarray(decoded.mode())
    assert greedy.shape == (2, 3, 2, 1)
    first = masses[0][EVERY[:, 0, 0, 0] == 1].sum()
    assert greedy[0, 0, 0, 0] == (first > 0.5)


def test_the_terms_are_those_of_the_record_and_every_objective_reads_them(params):
    @jax.jit
    def values(params):
        terms = MODEL.apply(params, BATCH["x"], key=example_keys(KEY, BATCH["index"]), num_samples=2, method="terms")
        posterior = MODEL.apply(params, BATCH["x"], method="encode")
        latent = posterior.sample(key=sample_keys(example_keys(KEY, BATCH["index"]), 2)[1])
        second = MODEL.apply(params, latent, method="decode").log_prob(BATCH["x"])
        options = {"key": KEY, "step": 0}
        vae = jaxvae.vae_loss(MODEL, params, (), BATCH, num_samples=2, **options)[0]
        iwae = jaxvae.iwae_loss(MODEL, params, (), BATCH, num_samples=2, **options)[0]
        free = jaxvae.beta_vae_loss(MODEL, params, (), BATCH, beta=1.0, free_bits=5.0, **options)
        return terms, second, vae, iwae, free

    terms, second, vae, iwae, (free, (_, metrics)) = values(params)
    np.testing.assert_allclose(terms.log_likelihood[1], second, rtol=1e-5)
    rate = terms.rates["z"].sum(axis=-1).mean()
    np.testing.assert_allclose(vae, rate - terms.log_likelihood.mean(), rtol=1e-5)
    weights = np.float64(terms.log_likelihood + terms.log_ratio)
    np.testing.assert_allclose(iwae, -np.log(np.exp(weights).mean(axis=0)).mean(), rtol=1e-5)
    np.testing.assert_allclose(free, metrics["distortion"] + 10, rtol=1e-5)


def test_importance_sampling_gives_a_density_that_sums_to_one(params):
    source = {"x": EVERY, "index": np.arange(64, dtype=np.int32)}
    found = jaxvae.log_likelihood(
        MODEL, params, (), source, np.arange(64, dtype=np.int32).reshape(1, 64), key=KEY, num_samples=500
    )
    np.testing.assert_allclose(np.exp(np.float64(found.log_prob)).sum(), 1, atol=0.02)


def test_the_gradient_reaches_encoder_decoder_and_pixels(params):
    loss = lambda params: jaxvae.vae_loss(MODEL, params, (), BATCH, key=KEY, step=0)[0]  # noqa: E731
    largest = {
        jax.tree_util.keystr(path): np.abs(g).max()
        for path, g in jax.tree.leaves_with_path(jax.jit(jax.grad(loss))(params))
    }
    assert {name.split("'")[3] for name in largest} == {"encoder", "decoder", "likelihood"}
    assert min(largest.values()) > 1e-6, largest


def test_images_of_several_channels_have_a_mixture():
    model = pixel_vae((4, 4, 3), 2, channels=4, layers=1, features=2, hidden=(4,))
    assert isinstance(model.likelihood.pixels, PixelCNNPP)
    x = jax.random.uniform(KEY, (2, 4, 4, 3))

    @jax.jit
    def run(key):
        params = model.init(key, x)
        record = model.apply(params, 2, key=key, method="sample")
        return record.sample(key=key), record.log_prob(x)

    drawn, nats = run(KEY)
    assert drawn.shape == x.shape
    assert nats.shape == (2,)
    assert (nats < -100).all()


def test_what_does_not_fit_is_refused(params, decoded):
    small = {"channels": 4, "layers": 1}
    for call, error, message in (
        (lambda: PixelLikelihood(PixelCNN(2, (3, 3), **small)), TypeError, "make the PixelCNN with context=F"),
        (
            lambda: PixelLikelihood(PixelCNN(2, (3, 3), context=2, num_classes=3, **small)),
            ValueError,
            "pixels must have no classes: give the label to the decoder",
        ),
        (
            lambda: PixelLikelihood(PixelCNNPP((3, 3, 3), context=2, dropout=0.1, **small)),
            ValueError,
            "pixels must have no dropout",
        ),
        (lambda: PixelLikelihood(PixelCNN(2, (3, 3), context=2, **small), 0), ValueError, "draws must be at least 1"),
        (lambda: pixel_vae((3, 3), 2), ValueError, r"shape must be \(H, W, C\), got \(3, 3\)"),
        (
            lambda: jaxvae.distributions.Masked(decoded, jnp.array(True)).log_prob(jnp.asarray(EVERY[:2])),
            TypeError,
            "nothing says that the elements of a PixelByPixel are independent",
        ),
        (
            lambda: jaxvae.vae_loss(MODEL, params, (), BATCH | {"x": jnp.zeros((6, 4, 4, 1))}, key=KEY, step=0),
            ValueError,
            r"expected x \(batch, 3, 2, 1\), got \(6, 4, 4, 1\)",
        ),
    ):
        with pytest.raises(error, match=message):
            call()
    assert pickle.loads(pickle.dumps(MODEL)) == MODEL
