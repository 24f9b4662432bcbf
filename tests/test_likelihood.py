"""The importance-sampled log-likelihood against models whose log-likelihood is known in closed form."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxvae.distributions import DiagGaussian
from jaxvae.evaluation import log_likelihood, map_batches
from jaxvae.models.vae import VAE
from jaxvae.objectives.elbo import vae_log_weights

N, D, X = 23, 2, 5
WEIGHTS = np.random.default_rng(0).normal(size=(D, X)).astype(np.float32)
NOISE_LOG_VAR = -1.0


def linear_gaussian(widen=1.0):
    """p(x|z) = N(zW, σ²I), and as q(z|x) the exact posterior's mean with its variances times `widen`.

    The posterior of this W is not diagonal; q ignores the correlation, so its weights vary.
    """
    precision = np.eye(D) + WEIGHTS @ WEIGHTS.T / np.exp(NOISE_LOG_VAR)
    gain = (WEIGHTS.T @ np.linalg.inv(precision) / np.exp(NOISE_LOG_VAR)).astype(np.float32)
    log_var = np.log(widen * np.diag(np.linalg.inv(precision))).astype(np.float32)
    return VAE(
        encoder=lambda x: (x @ gain, jnp.broadcast_to(log_var, (len(x), D))),
        decoder=lambda z: z @ WEIGHTS,
        likelihood=partial(DiagGaussian, log_var=NOISE_LOG_VAR),
        latent_dim=D,
    )


COVARIANCE = WEIGHTS.T @ WEIGHTS + np.exp(NOISE_LOG_VAR) * np.eye(X)
DATA = np.random.default_rng(1).multivariate_normal(np.zeros(X), COVARIANCE, N).astype(np.float32)
EXACT = stats.multivariate_normal(np.zeros(X), COVARIANCE).logpdf(DATA)
SOURCE = {"x": jnp.asarray(DATA), "index": jnp.arange(N, dtype=jnp.int32)}


def indices(batch_size):
    padded = np.full(-(-N // batch_size) * batch_size, -1, np.int32)
    padded[:N] = np.arange(N)
    return jnp.asarray(padded.reshape(-1, batch_size))


MODEL = linear_gaussian(widen=2.0)


def estimate(num_samples, batch_size=10, seed=0, **options):
    return log_likelihood(
        MODEL, {}, (), SOURCE, indices(batch_size), key=jax.random.key(seed), num_samples=num_samples, **options
    )


def test_equals_the_exact_log_likelihood_within_its_own_error():
    result = estimate(2000)
    assert result.log_prob.shape == (N,)
    z_scores = (result.log_prob - EXACT) / result.standard_error
    assert np.abs(z_scores).max() < 4
    assert abs(result.nll - -EXACT.mean()) < 3 * result.nll_standard_error
    assert 0 < result.nll_standard_error < 0.02


def test_the_standard_error_is_the_spread_over_seeds():
    results = [estimate(200, seed=seed) for seed in range(40)]
    spread = np.std([r.nll for r in results], ddof=1)
    claimed = np.mean([r.nll_standard_error for r in results])
    assert 0.65 < spread / claimed < 1.5  # 5 standard errors of a deviation from 40 values


def test_chunks_of_samples_and_of_data_change_nothing():
    whole = estimate(60, batch_size=N, samples_per_pass=60)
    for batch_size, samples_per_pass in ((10, 7), (1, 60), (16, 1), (4, 1000)):
        other = estimate(60, batch_size=batch_size, samples_per_pass=samples_per_pass)
        np.testing.assert_allclose(other.log_prob, whole.log_prob, atol=2e-5)
        np.testing.assert_allclose(other.standard_error, whole.standard_error, rtol=1e-3)


def test_grows_with_the_number_of_samples_and_one_sample_is_the_elbo(key):
    means = [np.mean([estimate(s, seed=seed).log_prob.mean() for seed in range(10)]) for s in (1, 5, 50)]
    assert means[0] < means[1] < means[2] < EXACT.mean() + 0.02
    single = estimate(1)
    assert np.isnan(single.standard_error).all()
    prepare_key, loss_key = jax.random.split(key)
    del prepare_key
    log_weights = vae_log_weights(MODEL, {}, (), SOURCE, key=jax.random.fold_in(loss_key, 0), num_samples=1)
    np.testing.assert_allclose(single.log_prob, log_weights[0], rtol=1e-5)


def test_weights_that_underflow_do_not(key):
    def tiny(params, model_state, batch, *, key, num_samples):
        return jnp.full((num_samples, len(batch["index"])), -5000.0)

    result = log_likelihood(tiny, {}, (), SOURCE, indices(8), key=key, num_samples=100)
    np.testing.assert_array_equal(result.log_prob, np.full(N, -5000.0))
    np.testing.assert_allclose(result.standard_error, 0, atol=1e-3)


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        estimate(0)


def random_log_weights(dtype):
    """log w = 3ε + index, with one draw ε of each sample and example."""

    def log_weights(params, model_state, batch, *, key, num_samples):
        keys = jax.vmap(lambda s: jax.random.fold_in(key, s))(jnp.arange(num_samples))
        noise = jax.vmap(lambda each: jax.random.normal(each, batch["index"].shape, dtype))(keys)
        return 3 * noise + batch["index"].astype(dtype)[None]

    return log_weights


@pytest.mark.parametrize("num_samples", [2, 3, 10])
def test_the_standard_error_divides_by_one_less_than_the_samples(num_samples, key, x64):
    """A few samples, so that S in place of S - 1 is 5 to 30 % off; in float64, to rounding."""
    log_weights = random_log_weights(jnp.float64)
    result = log_likelihood(log_weights, {}, (), SOURCE, indices(N), key=key, num_samples=num_samples)
    assert result.log_prob.dtype == result.standard_error.dtype == np.float64
    loss_key = jax.random.split(key)[1]
    drawn = [
        log_weights({}, (), SOURCE, key=jax.random.fold_in(loss_key, s), num_samples=1)[0] for s in range(num_samples)
    ]
    weights = np.exp(np.array(drawn))
    np.testing.assert_allclose(result.log_prob, np.log(weights.mean(axis=0)), rtol=1e-12)
    error = weights.std(axis=0, ddof=1) / np.sqrt(num_samples) / weights.mean(axis=0)
    np.testing.assert_allclose(result.standard_error, error, rtol=1e-9)


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16])
def test_log_weights_of_any_floating_type_are_summed_in_float32_or_wider(dtype, key, x64):
    def half(params, model_state, batch, *, key, num_samples):
        return jnp.full((num_samples, len(batch["index"])), -0.5, dtype)

    result = log_likelihood(half, {}, (), SOURCE, indices(10), key=key, num_samples=1000, samples_per_pass=7)
    assert result.log_prob.dtype == (np.float64 if dtype == jnp.float64 else np.float32)
    np.testing.assert_allclose(result.log_prob, -0.5, rtol=1e-6)


def test_a_float64_model_is_estimated_in_float64(key, x64):
    source = {"x": jnp.asarray(DATA, jnp.float64), "index": SOURCE["index"]}
    exact = linear_gaussian()
    wide = log_likelihood(exact, {}, (), source, indices(10), key=key, num_samples=50)
    assert wide.log_prob.dtype == np.float64
    narrow = log_likelihood(exact, {}, (), SOURCE, indices(10), key=key, num_samples=50)
    np.testing.assert_allclose(wide.log_prob, narrow.log_prob, atol=2e-5)


def test_a_model_and_its_log_weights_are_one():
    by_function = log_likelihood(
        partial(vae_log_weights, MODEL), {}, (), SOURCE, indices(10), key=jax.random.key(0), num_samples=20
    )
    np.testing.assert_array_equal(by_function.log_prob, estimate(20).log_prob)


def test_what_gives_no_log_weights_is_refused(key):
    for wrong, kind in ((None, "NoneType"), (nn.Dense(3), "Dense")):
        with pytest.raises(TypeError, match=f"must have `terms`, or be a function of log weights .*, got a {kind}"):
            log_likelihood(wrong, {}, (), SOURCE, indices(10), key=key, num_samples=2)

    def summed(params, model_state, batch, *, key, num_samples):
        return jnp.zeros(len(batch["index"]))

    with pytest.raises(ValueError, match=r"log weights must be \[num_samples, B\], here \(1, 10\), got \(10,\)"):
        log_likelihood(summed, {}, (), SOURCE, indices(10), key=key, num_samples=2)
    for number, error, said in ((0, ValueError, "at least 1, got 0"), (2.5, TypeError, "an integer, got 2.5")):
        with pytest.raises(error, match=f"samples_per_pass must be {said}"):
            estimate(2, samples_per_pass=number)


def test_map_batches_keeps_the_order_and_drops_the_padding(key):
    seen = []
    out = map_batches(
        lambda params, model_state, batch, *, key: {"index": batch["index"], "x": batch["x"] * params},
        2.0, (), SOURCE, indices(10), key=key, progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    np.testing.assert_array_equal(out["index"], np.arange(N))
    np.testing.assert_array_equal(out["x"], 2 * DATA)
    assert seen == [(1, 3), (2, 3), (3, 3)]


def scale(params, model_state, batch, *, key, by=1.0, shift=0.0, traced=None):
    if traced is not None:
        traced.append(by)
    return by * batch["x"] + shift


class Recorder:
    """What was traced; equal by identity, as a list that grows is not."""

    def __init__(self):
        self.seen = []

    def append(self, what):
        self.seen.append(what)


def test_equal_functions_compile_once_and_others_anew(key):
    traced, source = Recorder(), {"x": jnp.arange(3.0), "index": jnp.arange(3)}

    def run(fn, prepare=None):
        return map_batches(fn, {}, (), source, jnp.arange(3)[None], key=key, prepare=prepare)

    class Of:
        def __init__(self, traced):
            self.traced = traced

        def method(self, params, model_state, batch, *, key):
            self.traced.append("method")
            return batch["x"]

    weights, holder = np.ones(3, np.float32), Of(traced)
    kinds = (
        lambda: partial(scale, by=2.0, traced=traced),
        lambda: partial(partial(scale, traced=traced), by=3.0),
        lambda: partial(scale, by=weights, traced=traced),
        lambda: holder.method,
    )
    for number, make in enumerate(kinds, start=1):
        for _ in range(3):
            run(make())
        assert len(traced.seen) == number
    for by in (2, np.float32(2), 0.0, -0.0, True, 1):  # equal numbers of another kind compile to another program
        before = len(traced.seen)
        np.testing.assert_allclose(run(partial(scale, by=by, traced=traced)), by * np.arange(3))
        assert len(traced.seen) == before + 1
    assert np.signbit(run(partial(scale, by=-0.0, traced=traced))[1])
    run(partial(scale, by=weights.copy(), traced=traced))  # arrays are equal by what they hold
    assert len(traced.seen) == len(kinds) + 6
    weights[:] = 5
    np.testing.assert_array_equal(run(partial(scale, by=weights, traced=traced)), 5 * np.arange(3))
    assert len(traced.seen) == len(kinds) + 7


TRACED = []


def recording_encoder(x):
    TRACED.append(x.shape)
    return x[:, :D], jnp.zeros_like(x[:, :D])


def widened(z):
    return z @ WEIGHTS


def unit_gaussian(mean):
    return DiagGaussian(mean, jnp.zeros_like(mean))


def test_an_equal_model_compiles_once(key):
    def run(num_samples):
        model = VAE(recording_encoder, decoder=widened, likelihood=unit_gaussian, latent_dim=D)
        return log_likelihood(model, {}, (), SOURCE, indices(8), key=key, num_samples=num_samples)

    first = run(3)
    traced = len(TRACED)
    assert 0 < traced < 8
    np.testing.assert_array_equal(run(3).log_prob, first.log_prob)
    assert len(TRACED) == traced
    run(np.int64(4))
    assert len(TRACED) == 2 * traced


def test_a_fresh_partial_of_log_weights_and_of_prepare_compiles_once(key):
    traced = Recorder()

    def log_weights(model, params, model_state, batch, *, key, num_samples):
        traced.append(num_samples)
        return jnp.zeros((num_samples, len(batch["x"])))

    def prepare(factor, batch, *, key):
        traced.append("prepare")
        return batch | {"x": factor * batch["x"]}

    for _ in range(3):
        log_likelihood(
            partial(log_weights, linear_gaussian), {}, (), SOURCE, indices(8),
            key=key, num_samples=4, prepare=partial(prepare, 2.0),
        )  # fmt: skip
        assert traced.seen.count("prepare") == 1
        first = len(traced.seen)
    assert len(traced.seen) == first < 5


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int64])
def test_indices_of_any_integer_type_are_the_same(dtype, key):
    out = map_batches(scale, {}, (), SOURCE, np.asarray(indices(10)).astype(dtype), key=key)
    np.testing.assert_array_equal(out, DATA)
    unsigned = map_batches(scale, {}, (), SOURCE, np.array([[22, 3]], np.uint8), key=key)
    np.testing.assert_array_equal(unsigned, DATA[[22, 3]])
    many = {"x": jnp.arange(300.0)}
    np.testing.assert_array_equal(map_batches(scale, {}, (), many, np.array([[255, 7]], np.uint8), key=key), [255, 7])


def test_sources_and_indices_that_cannot_be_used_are_refused(key):
    def run(indices, source=SOURCE, fn=scale, key=key):
        return map_batches(fn, {}, (), source, indices, key=key)

    for wrong in (np.zeros((0, 4), int), np.full((2, 3), -1), np.arange(4)):
        with pytest.raises(ValueError, match=r"indices must be \[n, B\] with one of 0 or more, got \("):
            run(wrong)
    for wrong, said in (([[0, 23]], "0 to 23"), ([[-2, 3]], "-2 to 3"), (np.array([[0, 255]], np.uint8), "0 to 255")):
        with pytest.raises(ValueError, match=rf"indices must lie in 0 \.\. 22, or be -1 for padding, got {said}"):
            run(wrong)
    with pytest.raises(TypeError, match=r"indices must be integers \[n, B\], got float32"):
        run(np.zeros((1, 2), np.float32))
    with pytest.raises(TypeError, match=r"source\['x'\] is a masked array"):
        run([[0]], SOURCE | {"x": np.ma.masked_invalid(DATA)})
    with pytest.raises(ValueError, match=r"fn must return arrays \[2, \.\.\.\], one entry per example, got \(\)"):
        run([[0, 1]], fn=lambda params, model_state, batch, *, key: batch["x"].mean())
    with pytest.raises(TypeError, match=r"key must come from jax\.random\.key"):
        run([[0]], key=jax.random.PRNGKey(0))
    with pytest.raises(TypeError, match="key must be a threefry key"):
        run([[0]], key=jax.random.key(0, impl="rbg"))
