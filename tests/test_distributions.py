"""Records: their log-probabilities normalise, their samples follow them, their keys are theirs alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxvae.distributions import (
    Bernoulli,
    Categorical,
    DiagGaussian,
    DiscretizedLogistic,
    FullGaussian,
    GaussianMixtures,
    OneHotCategorical,
    UnitInterval,
)
from jaxvae.keys import example_keys

RECORDS = {
    "gaussian": DiagGaussian(jnp.float32([[0.5, -2.0]]), jnp.float32([[0.3, -1.0]])),
    "gaussian, one variance": DiagGaussian(jnp.float32([[0.5, -2.0]]), jnp.float32(-1.0)),
    "bernoulli": Bernoulli(jnp.float32([[0.5, -2.0]])),
}
NUM = 20_000


def tile(record, num):
    return jax.tree.map(lambda x: jnp.tile(x, (num, *[1] * (x.ndim - 1))) if x.ndim else x, record)


@pytest.mark.parametrize("record", RECORDS.values(), ids=RECORDS)
def test_samples_have_the_mean_and_variance(record, key):
    samples = np.asarray(tile(record, NUM).sample(key=key), np.float64)
    mean = np.asarray(record.mean, np.float64)[0]
    var = np.exp(np.broadcast_to(record.log_var, (1, 2))[0]) if hasattr(record, "log_var") else mean * (1 - mean)
    np.testing.assert_allclose(samples.mean(0), mean, atol=5 * np.sqrt(var.max() / NUM))
    np.testing.assert_allclose(samples.var(0), var, rtol=0.06)


def test_categorical_samples_have_their_frequencies(key):
    logits = jnp.float32([[0.0, 1.0, -1.0]])
    samples = np.asarray(Categorical(jnp.tile(logits, (NUM, 1))).sample(key=key))
    p = np.asarray(jax.nn.softmax(logits))[0]
    _, p_value = stats.chisquare(np.bincount(samples, minlength=3), NUM * p / p.sum())
    assert p_value > 1e-4


def test_log_prob_equals_scipy():
    x = jnp.float32([[0.1, -1.0]])
    gaussian = RECORDS["gaussian"]
    expected = stats.norm.logpdf(x[0], gaussian.mean[0], np.exp(gaussian.log_var[0] / 2)).sum()
    np.testing.assert_allclose(gaussian.log_prob(x), [expected], rtol=1e-5)
    expected = stats.bernoulli.logpmf([1, 0], RECORDS["bernoulli"].mean[0]).sum()
    np.testing.assert_allclose(RECORDS["bernoulli"].log_prob(jnp.float32([[1, 0]])), [expected], rtol=1e-5)


def test_categorical_probabilities_sum_to_one_over_integers_and_over_intensities():
    logits = jax.random.normal(jax.random.key(1), (1, 17))
    of_integers = [Categorical(logits).log_prob(jnp.array([v])) for v in range(17)]
    of_intensities = [Categorical(logits).log_prob(jnp.float32([v / 16])) for v in range(17)]
    np.testing.assert_allclose(np.exp(of_integers).sum(), 1, rtol=1e-6)
    np.testing.assert_array_equal(of_integers, of_intensities)


def test_pictures_lie_in_the_unit_interval():
    logits = 1e4 * jax.random.normal(jax.random.key(1), (3, 4, 17))
    for record in (Bernoulli(logits), Categorical(logits)):
        assert 0 <= record.mean.min() <= record.mean.max() <= 1
    np.testing.assert_allclose(Categorical(jnp.zeros((1, 17))).mean, [0.5], rtol=1e-6)


def test_modes():
    np.testing.assert_array_equal(Bernoulli(jnp.float32([[-1, 2]])).mode(), [[0, 1]])
    np.testing.assert_array_equal(Categorical(jnp.float32([[0, 3, 1]])).mode(), [1])
    np.testing.assert_array_equal(DiagGaussian(jnp.float32([[4]]), jnp.float32(0)).mode(), [[4]])


class Logistic9(DiscretizedLogistic):
    levels = 9


LOCATIONS = jnp.float32([-1.5, -0.97, 0.0, 0.3, 0.99, 2.0])
VALUES = jnp.linspace(-1, 1, 9)


def logistic(log_scale):
    return Logistic9(LOCATIONS[:, None], jnp.full((6, 1), log_scale))


def masses(record):
    """[6, 9]: the probability of each value at each location."""
    return np.exp(np.stack([record.log_prob(jnp.full((6, 1), v)) for v in VALUES], axis=1).astype(np.float64))


@pytest.mark.parametrize("log_scale", [-4.0, -1.0, 1.0])
def test_the_discretised_logistic_samples_its_masses_and_knows_its_mode(log_scale, key):
    record = logistic(log_scale)
    p = masses(record)
    np.testing.assert_allclose(p.sum(1), 1, atol=1e-5)
    np.testing.assert_array_equal(record.mode()[:, 0], VALUES[p.argmax(1)])
    samples = jax.vmap(lambda k: record.sample(key=k))(jax.random.split(key, NUM))[..., 0]
    index = np.asarray(jnp.rint((samples + 1) * 4), np.int64)
    np.testing.assert_allclose(samples, VALUES[index], atol=1e-6)  # on the grid
    for location in range(6):
        counts = np.bincount(index[:, location], minlength=9)
        spread = np.sqrt(NUM * p[location] * (1 - p[location]))
        np.testing.assert_array_less(np.abs(counts - NUM * p[location]), 5 * spread + 1)


def test_an_open_end_may_hold_the_mode():
    """A wide logistic has more mass beyond an end than in any inner bin."""
    assert float(Logistic9(jnp.float32([[0.3]]), jnp.float32([[1.0]])).mode()[0, 0]) == 1


def test_the_unit_interval_is_the_same_distribution_over_images(key):
    record = logistic(-1.0)
    images = UnitInterval(record)
    for value in VALUES:
        x = jnp.full((6, 1), value)
        np.testing.assert_allclose(images.log_prob((x + 1) / 2), record.log_prob(x), rtol=1e-6)
    np.testing.assert_allclose(images.sample(key=key), (record.sample(key=key) + 1) / 2)
    np.testing.assert_allclose(images.mode(), (record.mode() + 1) / 2)
    expected = [np.exp(np.float64(record.log_prob(jnp.full((6, 1), value)))) * (value + 1) / 2 for value in VALUES]
    np.testing.assert_allclose(images.mean[:, 0], np.sum(expected, axis=0), rtol=1e-5)


def test_the_mean_of_eight_bit_pixels_is_that_of_their_masses():
    record = DiscretizedLogistic(jnp.float32([[0.9], [-0.3], [3.0]]), jnp.float32(0.5))
    values = np.linspace(-1, 1, 256)
    masses = np.array([np.exp(np.float64(record.log_prob(jnp.full((3, 1), value)))) for value in values])
    np.testing.assert_allclose(UnitInterval(record).mean[:, 0], (values + 1) / 2 @ masses, rtol=1e-5)


@pytest.mark.parametrize(
    "record",
    [*RECORDS.values(), Categorical(jnp.zeros((1, 2, 3))), DiscretizedLogistic(jnp.zeros((1, 2)), jnp.float32(-1.0))],
    ids=[*RECORDS, "categorical", "discretised logistic"],
)
def test_an_example_draws_from_its_own_key(record, key):
    batch = tile(record, 6)
    index = jnp.array([7, 3, 0, 9, 4, 1])
    together = batch.sample(key=example_keys(key, index))
    order = jnp.array([4, 2, 5])
    some = tile(record, 3).sample(key=example_keys(key, index[order]))
    np.testing.assert_array_equal(some, together[order])
    assert len(np.unique(together, axis=0)) > 1


def test_the_gaussian_sample_is_reparameterised(key):
    def draw(mean, log_var):
        return DiagGaussian(mean, log_var).sample(key=key).sum()

    mean, log_var = RECORDS["gaussian"]
    d_mean, d_log_var = jax.grad(draw, (0, 1))(mean, log_var)
    np.testing.assert_array_equal(d_mean, jnp.ones_like(mean))
    noise = (DiagGaussian(mean, log_var).sample(key=key) - mean) / jnp.exp(log_var / 2)
    np.testing.assert_allclose(d_log_var, 0.5 * jnp.exp(log_var / 2) * noise, rtol=1e-4)


def test_what_is_not_a_typed_key_is_refused():
    for not_a_key, said in ((0, "got 0"), (jnp.zeros(2, jnp.uint32), r"got uint32\[2\]")):
        with pytest.raises(TypeError, match=rf"key must come from jax\.random\.key, {said}"):
            RECORDS["gaussian"].sample(key=not_a_key)
    with pytest.raises(ValueError, match=r"key must have shape \(\) or \(1,\) \(one per example\), got \(3,\)"):
        RECORDS["gaussian"].sample(key=jax.random.split(jax.random.key(0), 3))


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_a_density_is_summed_in_float32_whatever_the_type_of_its_parameters(dtype, key):
    normal = lambda i, *shape: jax.random.normal(jax.random.fold_in(key, i), shape).astype(dtype)  # noqa: E731
    factor = jnp.tril(normal(1, 3, 8, 8)) + 4 * jnp.eye(8, dtype=dtype)[None]
    one_hot = jax.nn.one_hot(jnp.arange(3 * 40).reshape(3, 40) % 5, 5, dtype=dtype)
    for record, x in (
        (GaussianMixtures(normal(2, 3, 4), 3 * normal(3, 3, 4, 60), normal(4, 3, 4, 60)), normal(5, 3, 60)),
        (FullGaussian(normal(6, 3, 8), factor), normal(7, 3, 8)),
        (OneHotCategorical(4 * normal(8, 3, 40, 5)), one_hot),
    ):
        wide, wide_x = jax.tree.map(jnp.float32, (record, x))
        np.testing.assert_array_equal(record.log_prob(x), wide.log_prob(wide_x))
