"""Data that are no pictures, each from arrays to a measured model by one call: counts, sound and video."""

from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from sklearn.linear_model import LinearRegression

import jaxvae
from jaxvae import data
from jaxvae.distributions import NegativeBinomial, Poisson

CELLS, GENES, FACTORS = 2000, 200, 4
train = partial(jaxvae.train, seed=0, progress=False)


def simulated_counts(seed=0):
    """Counts [2000, 200] of cells, the four factors of each, and log of the sizes of libraries over two decades."""
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(CELLS, FACTORS))
    log_rate = factors @ rng.normal(size=(FACTORS, GENES), scale=0.5) + rng.normal(size=GENES)
    share = np.exp(log_rate) / np.exp(log_rate).sum(axis=1, keepdims=True)
    size = 10 ** rng.uniform(3, 5, (CELLS, 1))
    dispersion = np.exp(rng.normal(1.5, 0.5, GENES))
    counts = rng.poisson(rng.gamma(dispersion, size * share / dispersion))
    return counts, factors, np.float32(np.log(counts.sum(axis=1, keepdims=True)))


class Cells(nn.Module):
    """An encoder of counts that divides by the library's size."""

    @nn.compact
    def __call__(self, x, log_size):
        return jaxvae.MLPEncoder(FACTORS, (256, 256))(jnp.log1p(1e3 * x * jnp.exp(-log_size)))


class Genes(nn.Module):
    """log mean, with the library's size as an offset, and a dispersion of each gene."""

    @nn.compact
    def __call__(self, latent, log_size):
        log_dispersion = self.param("log_dispersion", nn.initializers.zeros, (1, GENES))
        return nn.log_softmax(nn.Dense(GENES)(latent)) + log_size, log_dispersion


def negative_binomial(output):
    return NegativeBinomial(*output)


def poisson(output):
    return Poisson(output[0])


def gaussian_of_logs(output):
    """Of log(1 + count), a variance for each gene."""
    return jaxvae.distributions.DiagGaussian(*output)


class LogGenes(nn.Module):
    @nn.compact
    def __call__(self, latent, log_size):
        log_var = self.param("log_var", nn.initializers.zeros, (1, GENES))
        return nn.Dense(GENES)(jnp.concatenate([latent, log_size], axis=1)), log_var


class LogCells(nn.Module):
    @nn.compact
    def __call__(self, x, log_size):
        return jaxvae.MLPEncoder(FACTORS, (256, 256))(jnp.concatenate([x, log_size], axis=1))


@pytest.mark.slow
def test_counts_have_the_negative_binomials_nats_and_their_factors_are_found(capsys):
    counts, factors, log_size = simulated_counts()
    cells = data.from_arrays("cells", counts, domain="counts", condition=log_size)
    logs = data.from_arrays("logs", np.log1p(counts).astype(np.float32), domain="real", condition=log_size)
    nats, codes = {}, {}
    for name, likelihood in (("negative binomial", negative_binomial), ("Poisson", poisson)):
        model = jaxvae.CVAE(Cells(), Genes(), likelihood=likelihood)
        run = train(model, cells.take(slice(1600)), epochs=300)
        nats[name] = run.evaluate(cells.take(slice(1600, None)), num_samples=200)["nll"]
        codes[name] = run.encode(cells)
    model = jaxvae.CVAE(LogCells(), LogGenes(), likelihood=gaussian_of_logs)
    run = train(model, logs.take(slice(1600)), epochs=300)
    density = run.evaluate(logs.take(slice(1600, None)), num_samples=200)["nll"]
    nats["Gaussian of logs"] = density + np.log1p(counts[1600:]).sum(axis=1).mean()  # in the counts' own nats
    found = LinearRegression().fit(codes["negative binomial"][:1600], factors[:1600])
    explained = found.score(codes["negative binomial"][1600:], factors[1600:])
    with capsys.disabled():
        print(f"\nheld-out -log p { ({name: round(float(nll), 1) for name, nll in nats.items()}) }, R² {explained:.3f}")
    assert nats["negative binomial"] < nats["Poisson"] - 10
    assert nats["negative binomial"] < nats["Gaussian of logs"] - 10
    assert explained >= 0.95


def tones(num, length, seed=0):
    """Sound [num, length, 1]: two sines of random pitch and loudness."""
    rng = np.random.default_rng(seed)
    pitch, loud, phase = (rng.uniform(low, high, (2, num, 1)) for low, high in ((0.005, 0.05), (0.2, 1), (0, 7)))
    return np.float32((loud * np.sin(np.arange(length) * pitch + phase)).sum(axis=0)[..., None])


def moving_squares(num, seed=0):
    """Video [num, 8, 16, 16, 1] in [0, 1]: a square that moves."""
    rng = np.random.default_rng(seed)
    start, speed = rng.uniform(2, 9, (num, 2, 1)), rng.uniform(-0.5, 0.9, (num, 2, 1))
    row, column = np.moveaxis(start + speed * np.arange(8), 1, 0)[..., None]  # [num, 8, 1]
    places = np.arange(16)
    inside = [(places >= at) & (places < at + 4) for at in (row, column)]
    return np.float32(inside[0][..., :, None] & inside[1][..., None, :])[..., None]


def error_and_spread(run, dataset):
    """The mean squared error of reconstructions, and that of the mean over the set."""
    x = np.asarray(dataset.x, np.float64)
    return np.square(run.reconstruct(dataset) - x).mean(), np.square(x - x.mean(axis=0)).mean()


@pytest.mark.slow
def test_sound_is_quantised_in_ten_lines():
    sound = data.from_arrays("tones", tones(512, 4096), domain="real")
    encoder = jaxvae.ResidualEncoder(16, (16, 32, 32))
    decoder = jaxvae.ResidualDecoder(1, (16, 32, 32))
    model = jaxvae.VQVAE(encoder, decoder, jaxvae.EMACodebook(128))
    run = train(model, sound, epochs=10, batch_size=16)
    codes = run.encode(sound)
    assert codes.shape == (512, 512)  # one for every eight samples
    error, spread = error_and_spread(run, data.from_arrays("new", tones(32, 4096, seed=1), domain="real"))
    assert error < spread / 10


@pytest.mark.slow
def test_video_is_trained_on_and_reconstructed():
    video = data.from_arrays("squares", moving_squares(512), domain="unit interval")
    encoder, decoder = jaxvae.ResidualEncoder(8, (16, 32)), jaxvae.ResidualDecoder(1, (16, 32))
    model = jaxvae.VQVAE(encoder, decoder, jaxvae.EMACodebook(64))
    run = train(model, video, epochs=40, batch_size=16)
    assert run.encode(video).shape == (512, 2, 4, 4)
    error, spread = error_and_spread(run, data.from_arrays("new", moving_squares(32, seed=1), domain="unit interval"))
    assert error < spread / 3
