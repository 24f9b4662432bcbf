"""Likelihoods of counts: exact in both tails and both types, their samples, modes and means, and a cell's library."""

from functools import cache, partial
from itertools import product

import chex
import exact
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy import special, stats

import jaxvae
from jaxvae import losses
from jaxvae.distributions import NegativeBinomial, Poisson, ZeroInflatedNegativeBinomial, ZeroInflatedPoisson
from jaxvae.keys import example_keys

MEANS, DISPERSIONS = (1e-6, 1e-2, 1.0, 30.0, 1e3, 1e6), (1e-4, 0.1, 1.0, 7.9, 8.5, 1e3, 1e6, 1e12)
COUNTS = (0, 1, 2, 7, 8, 9, 50, 1000, 10**6)


def grid():
    """Log means, log dispersions and counts, which float32 holds; also counts within a few deviations of the mean."""
    points = []
    for mean, r in product(MEANS, DISPERSIONS):
        deviation = np.sqrt(mean + mean**2 / r)
        likely = {max(0, round(mean + k * deviation)) for k in (-3, -1, 0, 1, 3)}
        points += [(np.log(mean), np.log(r), x) for x in sorted({*COUNTS, *likely}) if x <= 1e6]
    return np.float32(points).astype(np.float64).T


LOG_MEAN, LOG_R, X = grid()
MEAN, R = np.exp(LOG_MEAN), np.exp(LOG_R)
D_LOG_MEAN = R * (MEAN - X) / (R + MEAN)
D_LOG_R = R * (special.digamma(R) - special.digamma(X + R) + np.log1p(MEAN / R) + (X - MEAN) / (R + MEAN))


@jax.jit
def log_prob(record, x):
    return record.log_prob(x)


def columns(*arrays, dtype):
    return [jnp.asarray(a, dtype).reshape(-1, 1) for a in arrays]


@pytest.mark.parametrize(("dtype", "roundings"), [("float32", 8), ("float64", 64)])  # XLA's log1p is 50 off at -0.4
def test_the_error_is_that_of_rounded_parameters(dtype, roundings):
    """Where float32's sums of lgamma and logarithms are wrong by a nat and more."""
    eps = np.finfo(dtype).eps
    with jax.enable_x64(dtype == "float64"):
        nats = jax.jit(losses.negative_binomial_nll)(*columns(LOG_MEAN, LOG_R, X, dtype=dtype))
        poisson = jax.jit(losses.poisson_nll)(*columns(LOG_MEAN, X, dtype=dtype))
        assert nats.dtype == poisson.dtype == dtype
    expected = exact.negative_binomial(LOG_MEAN, LOG_R, X)
    off = np.abs(LOG_MEAN * D_LOG_MEAN) + np.abs(LOG_R * D_LOG_R)
    np.testing.assert_array_less(np.abs(np.asarray(nats) - expected), roundings * eps * (1 + expected + off))
    expected = exact.poisson(LOG_MEAN, X)
    off = np.abs(LOG_MEAN * (MEAN - X))
    np.testing.assert_array_less(np.abs(np.asarray(poisson) - expected), roundings * eps * (1 + expected + off))


def scipy_inflated(logits, log_mass, x):
    return np.logaddexp(np.where(x == 0, special.log_expit(logits), -np.inf), special.log_expit(-logits) + log_mass)


def test_every_likelihood_equals_scipy(x64):
    mean, r, logits, x = (
        a.ravel() for a in np.meshgrid([0.01, 3.0, 500.0], [0.1, 2.0, 40.0], [-3, 0.5], [0, 1, 4, 900])
    )
    log_mean, log_r = np.log(mean), np.log(r)
    poisson, negative_binomial = stats.poisson.logpmf(x, mean), stats.nbinom.logpmf(x, r, r / (r + mean))
    expected = {
        Poisson: ((log_mean,), poisson),
        NegativeBinomial: ((log_mean, log_r), negative_binomial),
        ZeroInflatedPoisson: ((log_mean, logits), scipy_inflated(logits, poisson, x)),
        ZeroInflatedNegativeBinomial: ((log_mean, log_r, logits), scipy_inflated(logits, negative_binomial, x)),
    }
    for kind, (parameters, of_scipy) in expected.items():
        record = kind(*columns(*parameters, dtype=x64))
        np.testing.assert_allclose(log_prob(record, jnp.asarray(x[:, None])), of_scipy, rtol=1e-11, atol=1e-13)


def test_the_gradient_is_that_of_the_closed_form(x64):
    at_the_seam = np.array(
        [[2.0, 8.0, 3], [2.0, 5.0, 3], [3.0, 4.0, 8]]
    ).T  # r, x + r and x at 8, where the series starts
    ordinary = (MEAN <= 1e3) & (R <= 1e3)
    mean, r, x = np.concatenate([at_the_seam, np.stack([MEAN, R, X])[:, ordinary]], axis=1)
    d_mean, d_r = jax.jit(jax.grad(lambda *a: losses.negative_binomial_nll(*a).sum(), (0, 1)))(
        *columns(np.log(mean), np.log(r), x, dtype=x64)
    )
    np.testing.assert_allclose(d_mean[:, 0], r * (mean - x) / (r + mean), rtol=1e-9, atol=1e-9)
    expected = r * (special.digamma(r) - special.digamma(x + r) + np.log1p(mean / r) + (x - mean) / (r + mean))
    np.testing.assert_allclose(d_r[:, 0], expected, rtol=1e-9, atol=1e-8)
    d_rate = jax.grad(lambda a: losses.poisson_nll(a, x[:, None]).sum())(np.log(mean)[:, None])
    np.testing.assert_allclose(d_rate[:, 0], mean - x, rtol=1e-9, atol=1e-9)


def test_the_gradient_of_added_zeros_is_that_of_the_closed_form(x64):
    logits, log_rate, x = (a.ravel() for a in np.meshgrid([-30.0, -1.0, 0.0, 1.0, 30.0], [-9.0, 0.0, 3.0], [0.0, 2.0]))
    d_rate, d_logits = jax.jit(jax.grad(lambda *a: losses.zero_inflated_poisson_nll(*a).sum(), (0, 1)))(
        *columns(log_rate, logits, x, dtype=x64)
    )
    rate, zero = np.exp(log_rate), x == 0
    kept = special.expit(-logits - rate)  # how probably a zero is the Poisson's own
    np.testing.assert_allclose(d_rate[:, 0], np.where(zero, rate * kept, rate - x), rtol=1e-12)
    expected = special.expit(logits) - np.where(zero, 1 - kept, 0)
    np.testing.assert_allclose(d_logits[:, 0], expected, rtol=1e-9, atol=1e-15)


def test_a_large_dispersion_is_a_poisson_and_an_impossible_zero_adds_none():
    log_mean, x = jnp.float32([[-3.0, 0.0, 9.0]]), jnp.float32([[0, 2, 8000]])
    poisson = log_prob(Poisson(log_mean), x)
    np.testing.assert_allclose(log_prob(NegativeBinomial(log_mean, jnp.float32(60.0)), x), poisson, rtol=1e-6)
    for logits in (-1e4, -90.0):
        never = ZeroInflatedPoisson(log_mean, jnp.float32(logits))
        np.testing.assert_allclose(log_prob(never, x), poisson, rtol=1e-6)
    always = ZeroInflatedPoisson(log_mean, jnp.float32(1e4))
    np.testing.assert_array_equal(log_prob(always, jnp.zeros((1, 3))), [0])
    assert log_prob(always, x) < -2e4


EXTREMES = [-1e4, -90.0, -1.0, 0.0, 20.0, 80.0]


def test_value_and_gradient_are_finite_at_the_extremes():
    extremes = np.meshgrid(EXTREMES, EXTREMES, [-1e4, 0.0, 1e4], [0, 1, 1000, 10**6])
    *parameters, counts = columns(*extremes, dtype=jnp.float32)
    for loss, num in ((losses.zero_inflated_poisson_nll, 2), (losses.zero_inflated_negative_binomial_nll, 3)):
        used = parameters if num == 3 else parameters[::2]
        of = jax.jit(jax.value_and_grad(lambda *a, loss=loss: loss(*a).sum(), tuple(range(num))))
        chex.assert_tree_all_finite(of(*used, counts))


def test_integers_of_every_width_are_the_floating_count():
    log_mean, counts = jnp.float32([[0.5, 2.0, 4.0]]), [[0, 3, 127]]
    for record in (Poisson(log_mean), ZeroInflatedNegativeBinomial(log_mean, jnp.float32(1.0), jnp.float32(0.0))):
        expected = record.log_prob(jnp.float32(counts))
        for dtype in (jnp.int8, jnp.uint8, jnp.int16, jnp.uint16, jnp.int32, jnp.bfloat16):
            nats = record.log_prob(jnp.asarray(counts, dtype))
            assert nats.dtype == jnp.float32
            np.testing.assert_array_equal(nats, expected)
    narrow, many = Poisson(log_mean.astype(jnp.bfloat16)), [[300, 257, 65535]]
    np.testing.assert_array_equal(narrow.log_prob(jnp.uint16(many)), Poisson(log_mean).log_prob(jnp.float32(many)))


def test_what_are_no_counts_is_refused_where_it_can_be_seen():
    log_mean = jnp.zeros((2, 3))
    for targets in (jnp.zeros((2, 3), bool), jnp.zeros((2, 3), jnp.complex64)):
        with pytest.raises(TypeError, match=f"targets must be counts, integer or floating, got {targets.dtype}"):
            losses.negative_binomial_nll(log_mean, log_mean, targets)
    with pytest.raises(TypeError, match="log_dispersion must be floating, got int32; convert it first"):
        losses.negative_binomial_nll(log_mean, jnp.int32(0), log_mean)
    with pytest.raises(ValueError, match=r"log_dispersion must broadcast to log_mean \(2, 3\), got \(2,\)"):
        losses.negative_binomial_nll(log_mean, jnp.zeros(2), log_mean)
    with pytest.raises(ValueError, match=r"zero_logits must broadcast to log_rate \(1, 3\), got \(2, 3\)"):
        losses.zero_inflated_poisson_nll(log_mean[:1], log_mean, log_mean[:1])
    with pytest.raises(ValueError, match=r"log_rate must have a batch axis, \[B, \.\.\.\], got a scalar"):
        losses.poisson_nll(jnp.float32(0), jnp.int32(0))
    nats = log_prob(NegativeBinomial(log_mean, jnp.float32(-3.0)), jnp.int8([[-1, 0, 0], [0, 0, 0]]))
    np.testing.assert_array_equal(jnp.isnan(nats), [True, False])


def test_a_dispersion_is_of_an_element_a_gene_a_cell_or_of_all():
    log_mean, x = jnp.float32([[0.0, 1.0, 2.0], [3.0, -1.0, 0.5]]), jnp.int32([[0, 2, 5], [9, 1, 0]])
    for values in (jnp.float32([-1.0, 0.0, 3.0]), jnp.float32([[-1.0], [2.0]]), jnp.float32(0.7)):
        some, everywhere = (NegativeBinomial(log_mean, v) for v in (values, jnp.broadcast_to(values, (2, 3))))
        np.testing.assert_array_equal(log_prob(some, x), log_prob(everywhere, x))
        np.testing.assert_array_equal(some.mode(), everywhere.mode())


RATES = jnp.log(jnp.float32([[0.3, 4.7, 20.5, 3e4]]))
RECORDS = {
    "poisson": Poisson(RATES),
    "negative binomial": NegativeBinomial(RATES, jnp.log(jnp.float32([0.2, 2.0, 50.0, 3.0]))),
    "inflated poisson": ZeroInflatedPoisson(RATES[:, :3], jnp.float32([0.5, -2.0, 3.0])),
    "inflated negative binomial": ZeroInflatedNegativeBinomial(
        RATES[:, :3], jnp.float32([1.6]), jnp.float32([[-2.5, -4.0, 0.5]])
    ),
}
every_record = pytest.mark.parametrize("name", RECORDS)
NUM, ENOUGH = 20_000, 400


@cache
def masses(name):
    """[3, 400]: the probability of each count of the first three elements; of more there is next to none."""
    record = RECORDS[name]
    kind, counts = type(record), jnp.arange(ENOUGH)[:, None]
    of = jax.jit(lambda values: kind(*(jnp.full((ENOUGH, 1), value) for value in values)).log_prob(counts))
    parameters = [jnp.broadcast_to(each, record[0].shape)[0, :3] for each in record]
    return np.exp(np.float64([of(values) for values in zip(*parameters, strict=True)]))


@every_record
def test_the_masses_sum_to_one_and_have_the_mean_and_the_mode(name):
    p, record = masses(name), RECORDS[name]
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(record.mean[0, :3], p @ np.arange(ENOUGH), rtol=1e-4)
    np.testing.assert_array_equal(record.mode()[0, :3], p.argmax(axis=1))


@every_record
def test_samples_follow_the_masses(name, key):
    record = RECORDS[name]
    draws = jax.jit(jax.vmap(lambda key: record.sample(key=key)))(jax.random.split(key, NUM))
    draws = np.asarray(draws[:, 0], np.float64)
    for column, p in zip(draws.T[:3], masses(name), strict=True):
        counts = np.bincount(column.astype(int), minlength=ENOUGH)
        some = NUM * p > 5  # and all the others together
        observed, expected = np.r_[counts[some], counts[~some].sum()], NUM * np.r_[p[some], 1 - p[some].sum()]
        assert stats.chisquare(observed, expected).pvalue > 1e-4
    if draws.shape[1] == 4:  # far too many counts to tell apart
        r = float(jnp.exp(record[1][3])) if len(record) == 2 else np.inf
        variance = 3e4 + 3e4**2 / r
        np.testing.assert_allclose(draws[:, 3].mean(), 3e4, atol=5 * np.sqrt(variance / NUM))
        np.testing.assert_allclose(draws[:, 3].var(), variance, rtol=0.08)


@pytest.mark.parametrize("name", ["inflated negative binomial"])  # which draws as all the others do
def test_an_example_draws_from_its_own_key(name, key):
    """Whichever others are in its batch, and whatever theirs are."""
    num, record = 6, RECORDS[name]
    batch = type(record)(*(jnp.broadcast_to(each, (num, record[0].shape[1])) for each in record))
    batch = batch._replace(**{batch._fields[0]: batch[0] + jnp.arange(num)[:, None]})
    keys = example_keys(key, jnp.array([7, 3, 0, 9, 4, 1]))
    sample = jax.jit(lambda record, keys: record.sample(key=keys))
    together, order = sample(batch, keys), jnp.array([4, 2, 5])
    np.testing.assert_array_equal(sample(jax.tree.map(lambda a: a[order], batch), keys[order]), together[order])
    assert len(np.unique(together, axis=0)) > num - 2
    with pytest.raises(ValueError, match=r"key must have shape \(\) or \(6,\) \(one per example\), got \(3,\)"):
        batch.sample(key=keys[:3])


def test_large_rates_are_drawn_as_finely_as_their_type_can(key):
    """Where 32-bit integers end, and where `jax.random.poisson` accepts by a difference that float32 loses."""
    rate = jnp.broadcast_to(jnp.float32([[1e4, 1e6, 1e10, jnp.nan]]), (NUM, 4))
    draws = np.asarray(jax.jit(lambda key: Poisson(jnp.log(rate)).sample(key=key))(key), np.float64)
    rate = np.exp(np.float64(jnp.log(rate[0, :3])))
    np.testing.assert_allclose(draws[:, :3].mean(axis=0), rate, atol=5 * np.sqrt(rate / NUM).max(), rtol=2e-6)
    np.testing.assert_allclose(draws[:, :2].var(axis=0), rate[:2], rtol=0.06)
    assert np.isnan(draws[:, 3]).all()
    assert (draws[:, :3] == np.rint(draws[:, :3])).all()


def test_a_draw_at_a_large_rate_is_a_quantile(key):
    """Of the normal draw that it starts from: no moment of so few draws would tell a count too many."""
    log_rate = jnp.full((1, 1000), jnp.log(2e4))
    standard = jax.random.normal(jax.random.split(key)[1], (1000,))
    draws = np.asarray(Poisson(log_rate).sample(key=key)[0], np.float64)
    expected = stats.poisson.ppf(stats.norm.cdf(np.float64(standard)), np.exp(np.float64(log_rate[0])))
    assert np.abs(draws - expected).max() <= 1  # to the other side of a half
    assert np.abs(draws - expected).mean() < 0.02


class Genes(nn.Module):
    """What the docstring of `NegativeBinomial` shows."""

    num_genes: int

    @nn.compact
    def __call__(self, latent, log_size):
        log_dispersion = self.param("log_dispersion", nn.initializers.zeros, (self.num_genes,))
        return nn.log_softmax(nn.Dense(self.num_genes)(latent)) + log_size, log_dispersion


def test_the_size_of_a_library_is_an_offset(key):
    encoder = jaxvae.Conditioned(jaxvae.MLPEncoder(2, (8,)))
    model = jaxvae.CVAE(encoder, Genes(5), likelihood=lambda output: NegativeBinomial(*output))
    x = jnp.float32([[0, 3, 1, 0, 6], [100, 0, 20, 3, 1]])
    size = x.sum(axis=1, keepdims=True)
    params = jax.jit(model.init)(key, x, jnp.log(size))
    batch = {"x": x, "condition": jnp.log(size), "index": jnp.arange(2)}
    loss, _ = jax.jit(partial(jaxvae.cvae_loss, model))(params, (), batch, key=key, step=0)
    assert np.isfinite(loss)
    record = model.apply(params, jnp.zeros((2, 2)), jnp.log(size), method="decode")
    np.testing.assert_allclose(record.mean.sum(axis=1), size[:, 0], rtol=1e-5)
    assert record.log_dispersion.shape == (5,)
