"""Learned scales, at the optimum that is known and at the outputs that would overflow."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxvae import losses
from jaxvae.distributions import DiagGaussian, DiscretizedLogistic
from jaxvae.networks import PixelScale, SharedScale, logistic_image

GREY = np.arange(256) / 255


def test_the_shared_scale_is_one_number_that_learns_the_mean_squared_error(key):
    """The mean of -log N(x; mean, σ²) is least where σ² is the mean of (x - mean)²."""
    rng = np.random.default_rng(0)
    mean = rng.normal(size=(50, 4, 4, 1)).astype(np.float32)
    x = mean + rng.normal(scale=0.2, size=mean.shape).astype(np.float32)
    likelihood = SharedScale()
    params = likelihood.init(key, mean)
    assert [leaf.shape for leaf in jax.tree.leaves(params)] == [()]

    @jax.jit
    @jax.grad
    def gradient(params):
        return -likelihood.apply(params, mean).log_prob(x).mean() / mean[0].size

    for _ in range(200):
        params = optax.apply_updates(params, jax.tree.map(lambda g: -0.5 * g, gradient(params)))
    record = likelihood.apply(params, mean)
    assert isinstance(record, DiagGaussian)
    assert record.log_var.shape == ()
    np.testing.assert_array_equal(record.mean, mean)
    squared_error = np.square(x.astype(np.float64) - mean).mean()
    np.testing.assert_allclose(record.log_var, np.log(squared_error), atol=1e-3)


@pytest.mark.parametrize("initial", [-19.0, -2.0, 0.1, 15.0])
def test_the_shared_scale_starts_where_it_is_told_and_serves_any_record(key, initial):
    output = jnp.zeros((3, 2))
    likelihood = SharedScale(DiscretizedLogistic, initial=initial)
    params = likelihood.init(key, output)
    np.testing.assert_allclose(jax.tree.leaves(params), [20 * np.arctanh(initial / 20)], rtol=1e-6)
    record = likelihood.apply(params, output)
    assert isinstance(record, DiscretizedLogistic)
    np.testing.assert_allclose(record.log_scale, initial, rtol=1e-6)


def test_the_shared_scale_is_a_bounded_parameter(key):
    """Its start at zero, and what the parameter means, are those of the runs that were measured."""
    params = SharedScale().init(key, jnp.zeros((3, 2)))
    assert params == {"params": {"scale": 0.0}}
    for value in (-70.0, -2.0, 0.0, 1.0, 1e6):
        record = SharedScale().apply({"params": {"scale": jnp.float32(value)}}, jnp.zeros((3, 2)))
        np.testing.assert_allclose(record.log_var, 20 * np.tanh(value / 20), rtol=1e-6)


def test_a_pixels_scale_is_the_last_of_two_channels(key):
    output = np.random.default_rng(0).normal(scale=4.0, size=(5, 3, 3, 1, 2)).astype(np.float32)
    likelihood = PixelScale(lowest=-3.0)
    assert likelihood.init(key, output) == {}
    record = likelihood.apply({}, output)
    assert isinstance(record, DiagGaussian)
    np.testing.assert_array_equal(record.mean, output[..., 0])
    floor = 20 * np.arctanh(-3 / 20)
    smooth = floor + np.logaddexp(0, output[..., 1].astype(np.float64) - floor)
    np.testing.assert_allclose(record.log_var, 20 * np.tanh(smooth / 20), rtol=1e-5, atol=1e-6)
    assert np.abs(record.log_var[output[..., 1] > 3] - output[..., 1][output[..., 1] > 3]).max() < 0.5


@pytest.mark.parametrize("lowest", [-19.0, -7.0, -4.0, 0.0, 2.0])
def test_a_pixels_scale_ends_at_the_lowest(lowest):
    output = jnp.stack([jnp.zeros(201), jnp.linspace(-100, 100, 201)], axis=-1)[None]
    log_var = np.asarray(PixelScale(lowest=lowest).apply({}, output).log_var)[0]
    np.testing.assert_allclose(log_var[0], lowest, rtol=2e-7)
    assert log_var.min() >= lowest
    assert (np.diff(log_var) > -1e-5).all()
    assert log_var[-1] <= 20
    assert log_var[-1] > 19.9


@pytest.mark.parametrize("value", [-20.0, 20.0, 25.0, float("nan"), float("-inf")])
def test_a_scale_that_the_bound_never_reaches_is_refused(value):
    with pytest.raises(ValueError, match=f"initial must lie between -20 and 20, got {value}"):
        SharedScale(initial=value)
    with pytest.raises(ValueError, match=f"lowest must lie between -20 and 20, got {value}"):
        PixelScale(lowest=value)


@pytest.mark.parametrize("record", [DiagGaussian, logistic_image])
def test_no_output_makes_a_pixels_scale_vanish_or_overflow(record):
    """However far the network runs: -log p and its gradient are finite, and the scale keeps to [lowest, 20]."""
    likelihood = PixelScale(record)
    outputs = jnp.float32([[[m, s]] for m in (-1e6, 0.5, 1e6) for s in (-1e6, -30, 0, 30, 1e6)])

    @jax.jit
    @jax.value_and_grad
    def value_and_gradient(outputs):
        return -likelihood.apply({}, outputs).log_prob(jnp.zeros((15, 1))).sum()

    value, gradient = value_and_gradient(outputs)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    log_var = np.asarray(PixelScale().apply({}, outputs).log_var).reshape(3, 5)
    assert (log_var >= -7).all()
    assert (log_var <= 20).all()
    np.testing.assert_array_equal(log_var[:, 0], np.full(3, -7))


@pytest.mark.parametrize("shape", [(5, 3), (5, 4, 4, 1)])
def test_a_pixels_scale_needs_two_channels(shape):
    with pytest.raises(ValueError, match=rf"output must be \[B, ..., 2\], mean and scale, got \({shape[0]}, "):
        PixelScale().apply({}, jnp.zeros(shape))


@jax.jit
def every_grey(mean, log_scale):
    """Log p of each of the 256 grey values, [256] nats, at a mean and a log scale in the units of [-1, 1]."""
    return logistic_image(jnp.full((256, 1), mean), log_scale).log_prob(jnp.float32(GREY)[:, None])


@pytest.mark.parametrize("mean", [-1.3, 0.0, 0.5, 1.0])
@pytest.mark.parametrize("log_scale", [-6.0, -2.0, 3.0])
def test_the_masses_of_all_grey_values_sum_to_one(mean, log_scale):
    np.testing.assert_allclose(np.exp(every_grey(mean, log_scale)).sum(), 1, rtol=2e-5)


@jax.jit
def pictures(log_scale, key):
    record = logistic_image(jnp.tile(jnp.float32([[-5.0, -1.0, 0.3, 5.0]]), (100, 1)), log_scale)
    return record.mean, record.mode(), record.sample(key=key)


@pytest.mark.parametrize("log_scale", [-6.0, -1.0, 5.0])
def test_what_a_logistic_image_shows_is_a_grey_value(log_scale, key):
    mean, mode, sample = pictures(jnp.float32(log_scale), key)
    for picture in (mean, mode, sample):
        assert picture.shape == (100, 4)
        assert picture.min() >= 0
        assert picture.max() <= 1
    for picture in (mode, sample):
        np.testing.assert_allclose(picture * 255, np.rint(picture * 255), atol=1e-4)
    masses = np.exp([every_grey(location, log_scale) for location in (-5.0, -1.0, 0.3, 5.0)])
    np.testing.assert_allclose(mean[0], masses @ GREY, rtol=1e-4)


def test_bits_of_evenly_spread_grey_values_are_scipys_and_never_below_eight():
    bits = []
    for scale in (0.1, 0.4, 1.0, 4.0):
        edges = np.concatenate([[-np.inf], (np.arange(1, 256) - 0.5) / 127.5 - 1, [np.inf]])
        expected = -np.log2(np.diff(stats.logistic(0, scale).cdf(edges))).mean()
        bits.append(losses.bits_per_dim(-every_grey(0.0, np.log(scale)).mean(), 1))
        np.testing.assert_allclose(bits[-1], expected, rtol=1e-5)
    assert min(bits) > 8  # the entropy of 256 even values
    assert min(bits) < 8.3
