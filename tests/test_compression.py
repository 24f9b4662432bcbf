"""Bits back: the files are as long as the ELBO says, and what comes out is what went in."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvae
from jaxvae.distributions import DiagGaussian
from jaxvae.evaluation import compress, compression, decompress

SHAPE, N, D = (6, 6, 1), 300, 3
LN2 = np.log(2)


def model_of(**options):
    return jaxvae.VAE(jaxvae.MLPEncoder(D, (16,)), jaxvae.MLPDecoder(SHAPE, (16,)), **options)


def stripes(num, seed=0):
    """Binary pictures of three numbers."""
    phase, width, angle = np.random.default_rng(seed).normal(size=(3, num, 1, 1))
    row, column = np.mgrid[:6, :6]
    waves = np.sin(phase + (1 + 0.3 * width) * (row * np.cos(angle) + column * np.sin(angle)))
    return (waves > 0)[..., None].astype(np.uint8)


X = stripes(N)
MODEL = model_of()


@pytest.fixture(scope="module")
def params():
    """Trained a little, so that the posteriors say something."""
    own = jaxvae.data.from_arrays("stripes", stripes(2000, seed=1), levels=2)
    run = jaxvae.train(MODEL, own, epochs=40, batch_size=100, validation=0, progress=False)
    return run.params


@pytest.fixture(scope="module")
def compressed(params):
    return compress(MODEL, params, (), X)


def test_what_comes_out_is_what_went_in(params, compressed):
    again = decompress(MODEL, params, (), compressed)
    np.testing.assert_array_equal(again, X)
    assert again.dtype == np.uint8


def test_a_file_is_as_long_as_the_elbo_says(params, compressed):
    """Net of what was borrowed: within 5 standard deviations of the draws, which one draw of each latent has."""
    batch = {"x": jnp.float32(X), "index": jnp.arange(N)}
    terms, _ = jaxvae.objectives.terms_of(MODEL, params, (), batch, key=jax.random.key(0), num_samples=400)
    bits = -np.asarray(terms.log_likelihood + terms.log_ratio, float) / LN2
    expected, deviation = bits.mean(axis=0).sum(), np.sqrt(bits.var(axis=0).sum())
    _, _, _, borrowed, _, words = compression._parsed(compressed)
    assert 32 * (len(words) - borrowed) == pytest.approx(expected, abs=5 * deviation + 64)
    assert deviation < 0.02 * expected
    assert expected < 0.8 * X.size  # the model knows something


@pytest.mark.parametrize("batch_size", [7, *(pytest.param(each, marks=pytest.mark.slow) for each in (1, 1000))])
def test_batches_of_any_size_and_numbers_of_any_type(params, batch_size):
    some = X[:50].astype({1: bool, 7: np.float64, 1000: np.int8}[batch_size])
    seen = []
    coded = compress(MODEL, params, (), some, batch_size=batch_size, progress=lambda *done: seen.append(done))
    np.testing.assert_array_equal(decompress(MODEL, params, (), coded), X[:50])
    batches = -(-50 // batch_size)
    assert seen == [(i + 1, batches) for i in range(batches)]


def test_noise_costs_more_than_it_has_and_comes_back_too(params):
    noise = np.random.default_rng(3).integers(0, 2, (40, *SHAPE))
    coded = compress(MODEL, params, (), noise)
    assert 8 * len(coded) > noise.size
    np.testing.assert_array_equal(decompress(MODEL, params, (), coded), noise)


def test_certain_decoders_and_far_latents_are_coded_too(params):
    """Probabilities of 0 and 1 that are wrong, and codes beyond the range of the bins."""
    sure = jax.tree.map(lambda leaf: 30 * leaf, params)
    coded = compress(MODEL, sure, (), X[:20])
    np.testing.assert_array_equal(decompress(MODEL, sure, (), coded), X[:20])


def test_latents_that_are_certain_are_coded_too():
    """An encoder of one's own, whose standard deviation exp(-150) is zero in float32."""
    model = jaxvae.VAE(lambda x: (x[:, :2], 0 * x[:, :2] - 300), lambda z: jnp.tile(z, 2))
    x = np.random.default_rng(0).integers(0, 2, (5, 4))
    coded = compress(model, {"params": {}}, (), x)
    np.testing.assert_array_equal(decompress(model, {"params": {}}, (), coded), x)


def test_another_model_damage_and_strange_bytes_are_noticed(params, compressed):
    other = jax.tree.map(lambda leaf: leaf * 1.001, params)
    with pytest.raises(ValueError, match="did not come back: the model, its parameters or the machine are not those"):
        decompress(MODEL, other, (), compressed)
    for place in (25, 200, -1):
        damaged = bytearray(compressed)
        damaged[place] ^= 1
        with pytest.raises(ValueError, match="the file is damaged or cut off: its checksum is another"):
            decompress(MODEL, params, (), bytes(damaged))
    with pytest.raises(ValueError, match="the file is damaged or cut off"):
        decompress(MODEL, params, (), compressed[:-4])
    for strange in (b"", b"GIF89a" * 20):
        with pytest.raises(ValueError, match=r"these bytes are not of jaxvae.evaluation.compress"):
            decompress(MODEL, params, (), strange)
    narrow = jaxvae.VAE(jaxvae.MLPEncoder(2, (4,)), jaxvae.MLPDecoder(SHAPE, (4,)))
    with pytest.raises(ValueError, match="of a model with 3 latents, and this one has 2"):
        decompress(narrow, narrow.init(jax.random.key(0), jnp.float32(X[:1])), (), compressed)


REFUSED = {
    "grey": (MODEL, X * 0.5 + 0.2, ValueError, r"x\[0\] has 0\.\d+: bits back codes zeros and ones"),
    "NaN": (MODEL, np.full((2, *SHAPE), np.nan), ValueError, r"x\[0\] has nan"),
    "none": (MODEL, X[:0], ValueError, r"expected x \[N, ...\], at least one number"),
    "prior": (
        model_of(prior=jaxvae.GaussianMixture(2, D)),
        X,
        TypeError,
        "a StandardNormal as the prior, and .* Mixture",
    ),
    "likelihood": (
        *(model_of(likelihood=partial(DiagGaussian, log_var=0.0)), X, TypeError),
        "a Bernoulli as the likelihood, and this model's is a DiagGaussian",
    ),
    "model": (jaxvae.PixelCNN(2, (6, 6)), X, TypeError, "bits back needs a VAE, and PixelCNN has no encode"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_coded_is_refused(name):
    model, x, error, text = REFUSED[name]
    params = {} if name == "model" else model.init(jax.random.key(0), jnp.float32(X[:1]))
    with pytest.raises(error, match=text):
        compress(model, params, (), x)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_parameters_that_are_no_numbers_are_noticed(params, part):
    broken = {"params": params["params"] | {part: jax.tree.map(lambda leaf: leaf * np.nan, params["params"][part])}}
    with pytest.raises(ValueError, match=f"the {part}'s output is not finite: its parameters are damaged"):
        compress(MODEL, broken, (), X[:4])


def test_the_package_that_is_missing_is_named(params, monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    with pytest.raises(ImportError, match=r"compression needs constriction: pip install 'jaxvae\[compression\]'"):
        compress(MODEL, params, (), X)


def test_what_is_borrowed_suffices_however_little_is_expected(params, monkeypatch):
    monkeypatch.setattr(compression, "_words_of_first", lambda coders, x: 1)
    seen = []
    coded = compress(MODEL, params, (), X[:40], progress=lambda *done: seen.append(done))
    np.testing.assert_array_equal(decompress(MODEL, params, (), coded), X[:40])
    assert seen == [(i + 1, 5) for i in range(5)]  # it is noticed at the first batch
