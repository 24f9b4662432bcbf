"""Mixtures of discretised logistics: masses that sum to one, a float64 reference, draws, extremes, use in a VAE."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special, stats

import jaxvae
from jaxvae import losses
from jaxvae.distributions import DiscretizedLogisticMixture, Masked, UnitInterval
from jaxvae.networks import logistic_mixture_features, logistic_mixture_image

M = 3


def parameters(shape, channels, seed=0, scale=-1.0):
    """Random ones of pixels [*shape], float32."""
    rng = np.random.default_rng(seed)
    draws = (
        rng.normal(size=(*shape, M)),
        rng.normal(scale=0.7, size=(*shape, M, channels)),
        rng.normal(scale, 0.5, size=(*shape, M, channels)),
        rng.uniform(-1, 1, size=(*shape, M, channels * (channels - 1) // 2)),
    )
    return tuple(jnp.asarray(each, jnp.float32) for each in draws)


def every_colour(levels, channels):
    values = np.linspace(-1, 1, levels)
    return np.array(list(itertools.product(values, repeat=channels)))


def reference(logits, locations, log_scales, coefficients, x, levels):
    """The mass of one pixel's colour, in float64, as the formula says it."""
    half, total = 1 / (levels - 1), 0.0
    weights = special.softmax(np.float64(logits))
    for m, weight in enumerate(weights):
        mass = weight
        for c, value in enumerate(x):
            pairs = {1: [0], 2: [1, 2]}.get(c, [])
            location = locations[m, c] + sum(coefficients[m, pair] * x[d] for d, pair in enumerate(pairs))
            logistic = stats.logistic(location, np.exp(log_scales[m, c]))
            upper = 1.0 if value > 1 - half else logistic.cdf(value + half)
            lower = 0.0 if value < half - 1 else logistic.cdf(value - half)
            mass *= upper - lower
        total += mass
    return total


@jax.jit
def log_prob_of(record, x):
    return record.log_prob(x)


def of_all(record, colours):
    """The nats of each colour [N] under a record of one pixel."""
    repeated = jax.tree.map(lambda each: jnp.broadcast_to(each, (len(colours), *each.shape[1:])), record)
    return np.float64(log_prob_of(repeated, jnp.asarray(colours, jnp.float32)))


@pytest.mark.parametrize(("levels", "channels"), [(4, 3), (2, 3), (9, 2), (256, 1)])
def test_the_masses_of_all_colours_sum_to_one_and_are_those_of_the_formula(levels, channels):
    given = parameters((1,), channels)
    colours = every_colour(levels, channels)
    nats = of_all(DiscretizedLogisticMixture(*given, levels), colours)
    np.testing.assert_allclose(np.exp(nats).sum(), 1, rtol=1e-5)
    assert nats.max() - nats.min() > 1
    wide = [np.float64(each[0]) for each in given]
    for i in np.linspace(0, len(colours) - 1, 12).astype(int):  # the ends among them
        np.testing.assert_allclose(np.exp(nats[i]), reference(*wide, colours[i], levels), rtol=2e-4)


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_eight_bits_of_each_channel_sum_to_one_given_the_channels_before(channel):
    """Sums over the channel and those after it: here by their chain, the last channels summed in closed form as 1."""
    logits, locations, log_scales, coefficients = parameters((1,), 3, scale=-4.0)
    kept, pairs = channel + 1, (channel + 1) * channel // 2
    record = DiscretizedLogisticMixture(
        logits, locations[..., :kept], log_scales[..., :kept], coefficients[..., :pairs]
    )
    before = np.array([[0.5, -17 / 255]])[:, :channel]
    colours = np.concatenate([np.repeat(before, 256, axis=0), np.linspace(-1, 1, 256)[:, None]], axis=1)
    nats = of_all(record, colours)
    expected = 0.0  # log p of the channels before
    if channel:
        fewer = DiscretizedLogisticMixture(
            logits,
            locations[..., :channel],
            log_scales[..., :channel],
            coefficients[..., : channel * (channel - 1) // 2],
        )
        expected = of_all(fewer, before)[0]
    np.testing.assert_allclose(special.logsumexp(nats), expected, atol=2e-5 * max(1, abs(expected)))


def test_channels_depend_on_those_before_as_the_order_says():
    zeros = jnp.zeros((1, 1, 3))
    record = partial(DiscretizedLogisticMixture, jnp.zeros((1, 1)), zeros, zeros - 3, levels=5)
    for pair, (of, before) in enumerate([(1, 0), (2, 0), (2, 1)]):
        coefficients = jnp.zeros((1, 1, 3)).at[..., pair].set(1.0)
        x = np.zeros((1, 3))
        x[0, before] = x[0, of] = 0.5  # near only where `of` moves with `before`
        assert of_all(record(coefficients), x)[0] > of_all(record(coefficients * 0), x)[0] + 3


def test_draws_come_as_often_as_they_are_probable(key):
    record = DiscretizedLogisticMixture(*parameters((1,), 3), levels=3)
    colours, num = every_colour(3, 3), 40_000
    many = jax.tree.map(lambda each: jnp.broadcast_to(each, (num, *each.shape[1:])), record)
    drawn = np.asarray(jax.jit(lambda record, key: record.sample(key=key))(many, key))
    index = np.rint(drawn + 1) @ [9, 3, 1]
    expected = num * np.exp(of_all(record, colours))
    common = expected > 5
    counts = np.bincount(index.astype(int), minlength=27)
    observed = [*counts[common], counts[~common].sum() + 1e-9]
    of_rare = max(expected[~common].sum(), 1e-9)
    expected = np.array([*expected[common], of_rare])
    assert stats.chisquare(observed, expected * np.sum(observed) / expected.sum()).pvalue > 1e-3


def test_an_example_draws_by_its_own_key_and_cold_draws_are_all_alike(key):
    record = DiscretizedLogisticMixture(*parameters((4, 2, 2), 3))
    keys = jax.random.split(key, 4)
    draw = jax.jit(lambda record, key, temperature: record.sample(key=key, temperature=temperature))
    drawn = draw(record, keys, 1.0)
    first = jax.tree.map(lambda each: each[:1], record)
    np.testing.assert_array_equal(drawn[:1], draw(first, keys[:1], 1.0))
    assert drawn.shape == (4, 2, 2, 3)
    assert np.abs(drawn - draw(record, key, 1.0)).max() > 0
    cold = [draw(record, each, 0.0) for each in (key, keys[0])]
    np.testing.assert_array_equal(*cold)


def test_the_mean_is_that_of_the_masses_and_the_mode_the_best_colour():
    given = list(parameters((1,), 2, seed=3, scale=-2.5))
    given[1], given[3] = given[1] * 0.3, given[3] * 0.3  # within the ends, where the means of later channels are exact
    record = DiscretizedLogisticMixture(*given, levels=17)
    colours = every_colour(17, 2)
    masses = np.exp(of_all(record, colours))
    np.testing.assert_allclose(record.mean[0], masses @ colours, atol=1e-3)
    np.testing.assert_allclose(record.mean[0, 0], (masses @ colours)[0], atol=1e-5)
    np.testing.assert_allclose(UnitInterval(record).mean, (record.mean + 1) / 2)
    best = colours[masses.argmax()]
    np.testing.assert_allclose(record.mode()[0], best, atol=1e-6)
    assert record.mode().shape == record.mean.shape == (1, 2)


@pytest.mark.parametrize("size", [1e4, -1e4, 1.0])
@pytest.mark.parametrize("value", [0.0, 1.0, 128 / 255])
def test_nats_and_gradients_are_finite_at_extremes(size, value):
    features = logistic_mixture_features(2)
    signs = jnp.asarray(np.random.default_rng(0).choice([-1.0, 1.0], size=(1, 2, features)), jnp.float32)
    for output in (size * jnp.ones_like(signs), size * signs):
        nats, gradient = jax.jit(
            jax.value_and_grad(lambda output: logistic_mixture_image(output).log_prob(jnp.full((1, 2, 3), value))[0])
        )(output)
        assert np.isfinite(nats)
        assert np.isfinite(gradient).all()
        assert nats <= 1e-3


def test_it_is_a_likelihood_of_a_vae(key):
    likelihood = partial(logistic_mixture_image, levels=4)
    decoder = jaxvae.MLPDecoder((4, 4, logistic_mixture_features(2)), (8,))
    model = jaxvae.VAE(jaxvae.MLPEncoder(2, (8,)), decoder, likelihood)
    x = jax.random.randint(key, (3, 4, 4, 3), 0, 4) / 3
    params = jax.jit(model.init)(key, x)
    loss = jax.jit(partial(jaxvae.vae_loss, model))
    value, (_, metrics) = loss(params, (), {"x": x, "index": jnp.arange(3)}, key=key, step=0)
    assert np.isfinite(value)
    assert metrics["distortion"] > 20
    record = jax.jit(lambda params: model.apply(params, 2, key=key, method="sample"))(params)
    mean, mode, drawn = jax.jit(lambda record: (record.mean, record.mode(), record.sample(key=key)))(record)
    assert mean.shape == mode.shape == drawn.shape == (2, 4, 4, 3)
    np.testing.assert_allclose(mode * 3, np.rint(mode * 3), atol=1e-5)
    for each in (record, record.symmetric):
        with pytest.raises(TypeError, match="nothing says that the elements of a DiscretizedLogisticMixture"):
            Masked(each, jnp.array(True)).log_prob(jnp.zeros((2, 4, 4, 3)))


def test_shapes_that_do_not_fit_are_refused():
    logits, locations, log_scales, coefficients = parameters((2, 4), 3)
    nll = partial(losses.discretized_logistic_mixture_nll, levels=4)
    x = jnp.zeros((2, 4, 3))
    assert nll(logits, locations, log_scales, coefficients, x).shape == (2,)
    for arguments, message in (
        ((logits[..., :2], locations, log_scales, coefficients, x), r"logits must be \[B, ..., M\] and locations"),
        ((logits, locations, log_scales[..., :1], coefficients, x), r"log_scales must be \(2, 4, 3, 3\) for locations"),
        ((logits, locations, log_scales, coefficients[..., :1], x), r"coefficients must be \(2, 4, 3, 3\)"),
        ((logits, locations, log_scales, coefficients, x[:1]), r"targets must be \(2, 4, 3\)"),
    ):
        with pytest.raises(ValueError, match=message):
            nll(*arguments)
    with pytest.raises(TypeError, match="targets must be floating, got int32"):
        nll(logits, locations, log_scales, coefficients, x.astype(jnp.int32))
    with pytest.raises(ValueError, match=r"F = 10 for each component of 3 channels .* got \(2, 4, 9\)"):
        logistic_mixture_image(jnp.zeros((2, 4, 9)))
    assert logistic_mixture_features(10) == 100
    assert logistic_mixture_features(5, 1) == 15
