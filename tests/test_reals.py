"""Likelihoods of real and of positive numbers and of the unit interval: exact in both tails, and their samples."""

import chex
import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxvae import losses
from jaxvae.distributions import ContinuousBernoulli, Laplace, LogNormal, StudentT
from jaxvae.keys import example_keys

every_type = pytest.mark.parametrize("dtype", ["float32", "float64"])


def columns(*arrays, dtype):
    return [jnp.asarray(a, dtype).reshape(-1, 1) for a in arrays]


def pairs(first, second):
    """All pairs, in numbers that float32 holds."""
    return [np.float32(a).astype(np.float64).ravel() for a in np.meshgrid(first, second)]


@every_type
def test_student_t_is_exact_from_heavy_tails_to_a_gaussian(dtype):
    """For 0.1 to 10¹⁰ degrees of freedom, whose gamma functions float32 cannot subtract."""
    degrees = [0.1, 0.5, 1, 2, 5, 15.9, 16, 16.1, 100, 1e4, 1e6, 1e10]
    distance, log_degrees = pairs([0, 1e-6, 1e-3, 0.3, 1, 3, 10, 1e3, 1e6, 1e15], np.log(degrees))
    with jax.enable_x64(dtype == "float64"):
        x, log_nu = columns(distance, log_degrees, dtype=dtype)
        nats = np.asarray(jax.jit(losses.student_t_nll)(jnp.zeros_like(x), jnp.zeros_like(x), log_nu, x))
    expected = exact.student_t(distance, log_degrees)
    np.testing.assert_array_less(np.abs(nats - expected), 16 * np.finfo(dtype).eps * (1 + np.abs(expected)))


@every_type
def test_the_continuous_bernoulli_is_exact_at_every_logit(dtype):
    logits = [0, 1e-8, 1e-4, 1e-3, 0.1, 0.4999, 0.5, 0.5001, 0.7, 1, 5, 30, 110, 1e4]
    logits, x = pairs(np.r_[logits, np.negative(logits)], [0, 0.125, 0.3, 0.5, 1])
    of = jax.jit(jax.vmap(jax.value_and_grad(lambda *a: losses.continuous_bernoulli_nll(*a)[0], (0, 1))))
    with jax.enable_x64(dtype == "float64"):
        arguments = columns(logits, x, dtype=dtype)
        nats, gradient = of(*arguments)
        mean = ContinuousBernoulli(arguments[0]).mean
        nats, d_logits, d_x, mean = (np.ravel(np.asarray(a)) for a in (nats, *gradient, mean))
    eps, expected = np.finfo(dtype).eps, exact.continuous_bernoulli(logits, x)
    np.testing.assert_array_less(np.abs(nats - expected), 2 * eps * (1 + np.abs(expected)))
    expected_mean = exact.continuous_bernoulli_mean(logits)
    np.testing.assert_allclose(mean, expected_mean, rtol=4 * eps)
    np.testing.assert_allclose(d_logits, expected_mean - x, atol=2 * eps)
    np.testing.assert_array_equal(d_x, -logits)


def test_laplace_and_the_log_normal_equal_scipy(x64):
    rng = np.random.default_rng(0)
    location, log_scale, x = (rng.normal(size=(5, 3, 2)) for _ in range(3))
    x[0] *= 30
    nats = losses.laplace_nll(*map(jnp.asarray, (location, log_scale, x)))
    expected = -stats.laplace.logpdf(x, location, np.exp(log_scale)).reshape(5, -1).sum(axis=1)
    np.testing.assert_allclose(nats, expected, rtol=1e-13)
    x = np.exp(5 * rng.normal(size=(5, 3, 2)))
    nats = losses.log_normal_nll(*map(jnp.asarray, (location, log_scale, x)))
    expected = -stats.lognorm.logpdf(x, np.exp(log_scale / 2), scale=np.exp(location)).reshape(5, -1).sum(axis=1)
    np.testing.assert_allclose(nats, expected, rtol=1e-13)
    centred = [np.asarray(location), log_scale, np.full_like(x, np.log(3.0)), np.log(x)]
    nats = losses.student_t_nll(*map(jnp.asarray, centred))
    expected = -stats.t.logpdf(np.log(x), 3.0, location, np.exp(log_scale)).reshape(5, -1).sum(axis=1)
    np.testing.assert_allclose(nats, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("loss", "ranges"),
    [
        (losses.laplace_nll, [(-1, 0, 1), (-80, 0, 80), (-1, 0, 1)]),
        (losses.student_t_nll, [(-1e4, 0, 1e4), (-60, 0, 80), (-20, 0, 14), (0, 1)]),
        (losses.log_normal_nll, [(-100, 0, 100), (-40, 0, 80), (1e-10, 1, 1e10)]),
        (losses.continuous_bernoulli_nll, [(-1e4, -110, -1e-30, 0, 1e-30, 110, 1e4), (0, 0.5, 1)]),
    ],
    ids=["laplace", "student_t", "log_normal", "continuous_bernoulli"],
)
def test_value_and_gradient_are_finite_at_the_extremes(loss, ranges):
    arguments = columns(*np.meshgrid(*ranges), dtype=jnp.float32)
    of = jax.jit(jax.value_and_grad(lambda *a: loss(*a).sum(), tuple(range(len(arguments)))))
    chex.assert_tree_all_finite(of(*arguments))


def test_what_does_not_fit_is_refused():
    zeros = jnp.zeros((5, 3))
    with pytest.raises(ValueError, match=r"log_scale must broadcast to mean \(5, 3\), got \(5, 4\)"):
        losses.laplace_nll(zeros, jnp.zeros((5, 4)), zeros)
    with pytest.raises(ValueError, match=r"log_degrees must broadcast to mean \(5, 3\), got \(5,\)"):
        losses.student_t_nll(zeros, zeros, zeros[:, 0], zeros)
    with pytest.raises(TypeError, match="targets must be floating, got uint8; convert it first"):
        losses.continuous_bernoulli_nll(zeros, zeros.astype(jnp.uint8))
    with pytest.raises(ValueError, match=r"location must have a batch axis, \[B, \.\.\.\], got a scalar"):
        losses.log_normal_nll(jnp.float32(0), zeros, zeros)


LOCATION = jnp.float32([[0.5, -1.0, 0.0, 2.0, -5.0]])
RECORDS = {  # with SciPy's
    "laplace": (Laplace(LOCATION, jnp.float32(-0.7)), lambda m: stats.laplace(m, np.exp(-0.7))),
    "student t": (
        StudentT(LOCATION, jnp.float32([0.3]), jnp.log(jnp.float32(0.7))),
        lambda m: stats.t(0.7, m, np.exp(0.3)),
    ),
    "log-normal": (LogNormal(LOCATION, jnp.float32(-0.7)), lambda m: stats.lognorm(np.exp(-0.35), scale=np.exp(m))),
    "continuous bernoulli": (
        ContinuousBernoulli(LOCATION),
        lambda m: stats.truncexpon(max(abs(m), 1e-3), scale=1 / max(abs(m), 1e-3)),
    ),
}
every_record = pytest.mark.parametrize(("record", "reference"), RECORDS.values(), ids=RECORDS)
each_way_of_drawing = pytest.mark.parametrize(
    ("record", "reference"),  # the others invert their distribution functions too, or draw as a Gaussian does
    [
        pytest.param(*RECORDS[name], id=name, marks=[pytest.mark.slow] * (name not in ("laplace", "student t")))
        for name in RECORDS
    ],
)
NUM = 20_000


@every_record
def test_samples_have_the_distribution_function(record, reference, key):
    tiled = type(record)(*(jnp.broadcast_to(each, (NUM, 5)) for each in record))
    draws = np.asarray(jax.jit(lambda record, key: record.sample(key=key))(tiled, key), np.float64)
    for location, column in zip(np.asarray(LOCATION[0], np.float64), draws.T, strict=True):
        if isinstance(record, ContinuousBernoulli) and location > 0:
            column = 1 - column  # the reference falls
        assert stats.kstest(column, reference(location).cdf).pvalue > 1e-4


@every_record
def test_means_and_modes(record, reference):
    mean, mode = np.asarray(record.mean[0], np.float64), record.mode()
    if isinstance(record, ContinuousBernoulli):
        np.testing.assert_allclose(mean, exact.continuous_bernoulli_mean(np.asarray(LOCATION[0])), rtol=1e-6)
        np.testing.assert_array_equal(mode, [[1, 0, 0, 1, 0]])
        return
    expected = LOCATION[0] if isinstance(record, StudentT) else [reference(m).mean() for m in np.asarray(LOCATION[0])]
    np.testing.assert_allclose(mean, expected, rtol=1e-6)
    d_mode = jax.grad(lambda x: record.log_prob(x).sum())(mode)
    np.testing.assert_allclose(d_mode * np.maximum(1, np.abs(mode)), np.zeros((1, 5)), atol=1e-3)


@each_way_of_drawing
def test_an_example_draws_from_its_own_key(record, reference, key):
    batch = type(record)(*(jnp.broadcast_to(each, (6, 5)) for each in record))
    keys = example_keys(key, jnp.array([7, 3, 0, 9, 4, 1]))
    together, order = batch.sample(key=keys), jnp.array([4, 2, 5])
    some = jax.tree.map(lambda a: a[order], batch).sample(key=keys[order])
    np.testing.assert_array_equal(some, together[order])
    assert len(np.unique(together, axis=0)) == 6


@each_way_of_drawing
def test_samples_move_with_their_parameters(record, reference, key):
    """The gradient of a draw is that of its quantile at the same noise: dx/dθ = -(dF/dθ)/p(x)."""
    batch = type(record)(*(jnp.broadcast_to(each, (4, 5)) for each in record))
    draws, pullback = jax.vjp(lambda record: record.sample(key=key), batch)
    (gradient,) = pullback(jnp.ones_like(draws))
    moved = batch._replace(**{batch._fields[0]: batch[0] + 1e-2}), batch._replace(**{batch._fields[0]: batch[0] - 1e-2})
    difference = (moved[0].sample(key=key) - moved[1].sample(key=key)) / 2e-2
    np.testing.assert_allclose(gradient[0], difference, rtol=2e-2, atol=1e-3)


@pytest.mark.parametrize("uniform", [0.0, 1 - 2.0**-23])
def test_the_continuous_bernoulli_draws_within_the_unit_interval_from_the_ends_of_its_noise(uniform, monkeypatch):
    """One draw in eight million of a large logit was -inf."""
    monkeypatch.setattr("jaxvae.distributions.reals.noise", lambda sampler, key, shape: jnp.full(shape, uniform))
    logits = jnp.float32([[-1e4, -20, -3, -1e-4, 0, 1e-4, 3, 16, 20, 1e4]])
    draw = lambda logits: ContinuousBernoulli(logits).sample(key=None)  # noqa: E731
    drawn, slopes = draw(logits), jax.grad(lambda logits: draw(logits).sum())(logits)
    assert ((drawn >= 0) & (drawn <= 1)).all()
    chex.assert_tree_all_finite(slopes)
