"""Top-down hierarchies, against linear Gaussian chains of which everything is known."""

import math
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from scipy import stats
from variants import SHAPE, VARIANTS, batch

import jaxvae
from jaxvae.distributions import DiagGaussian, rate
from jaxvae.models import TopDownVAE, merged_posterior, residual_posterior, top_down_vae
from jaxvae.networks import Rung, Stage, StateDecoder
from jaxvae.objectives import hierarchical_vae_loss, vae_log_weights

D, X, N = 3, 5, 4
NOISE = 0.3  # the variance of x given z_1


def chain(num_groups, seed=0):
    """z_L ~ N(0, I), z_l = a_l z_{l+1} + N(0, v_l) by dimension, x = z_1 W + N(0, NOISE), the rows of W orthogonal.

    So every posterior of a group given the one above and x is diagonal. Returns (a, v) of each group, z_1 first, and W.
    """
    rng = np.random.default_rng(seed)
    steps = [(rng.uniform(0.5, 1.5, D), rng.uniform(0.2, 1.0, D)) for _ in range(num_groups - 1)]
    basis, _ = np.linalg.qr(rng.normal(size=(X, D)))
    return [*steps, (np.zeros(D), np.ones(D))], (basis * rng.uniform(0.5, 2.0, D)).T


def seen(steps, weights):
    """Of every group, what x says of it given nothing else: z_l's own estimate from x and that one's variance.

    x W' / |w|² = z_1 + N(0, NOISE / |w|²), and z_1 / a_1 = z_2 + N(0, v_1 / a_1²), and so on.
    """
    square = (weights**2).sum(axis=1)
    gain, variance = weights.T / square, NOISE / square
    found = [(gain, variance)]
    for a, v in steps[:-1]:
        gain, variance = gain / a, (variance + v) / a**2
        found.append((gain, variance))
    return found


class ChainRung:
    """A group of the chain, whose state is the latent above. What x says is exact."""

    def __init__(self, step, said, form):
        self.factor, self.variance = (each[None] for each in step)
        self.gain, self.said = said[0], said[1][None]
        self.form = form

    def start(self, num):
        return jnp.zeros((num, D))

    def prior(self, state):
        mean = state * self.factor
        return state, mean, jnp.log(self.variance)

    def posterior(self, state, features):
        """(mean, log_var) for the form that the model joins them by."""
        prior = DiagGaussian(state * self.factor, jnp.log(self.variance))
        mean, log_var = features @ self.gain, jnp.broadcast_to(jnp.log(self.said), (len(features), D))
        if self.form is merged_posterior:
            return mean, log_var
        exact = 1 / (1 / self.variance + 1 / self.said)
        exact_mean = exact * (prior.mean / self.variance + mean / self.said)
        return exact_mean - prior.mean, jnp.broadcast_to(jnp.log(exact / self.variance), mean.shape)

    def merge(self, state, latent):
        return latent


def chain_model(num_groups, form):
    steps, weights = chain(num_groups)
    rungs = [ChainRung(*pair, form) for pair in zip(steps, seen(steps, weights), strict=True)]

    def encoder(x):
        return [x] * num_groups

    return TopDownVAE(
        encoder, rungs, lambda z: z @ weights, partial(DiagGaussian, log_var=math.log(NOISE)), posterior=form
    )


def marginal(num_groups):
    """The covariance of x."""
    steps, weights = chain(num_groups)
    variance = np.ones(D)
    for a, v in reversed(steps[:-1]):
        variance = a**2 * variance + v
    return (weights.T * variance) @ weights + NOISE * np.eye(X)


@pytest.mark.parametrize("form", [residual_posterior, merged_posterior])
@pytest.mark.parametrize("num_groups", [1, 2, 3, 4, 5])
def test_with_the_exact_posterior_every_log_weight_is_log_p_of_x(num_groups, form):
    covariance = marginal(num_groups)
    x = np.random.default_rng(1).multivariate_normal(np.zeros(X), covariance, N)
    exact = stats.multivariate_normal(np.zeros(X), covariance).logpdf(x)
    with jax.enable_x64(True):
        model = chain_model(num_groups, form)
        source = {"x": jnp.asarray(x), "index": jnp.arange(N)}
        log_weights = partial(vae_log_weights, model, {}, (), key=jax.random.key(0), num_samples=7)
        np.testing.assert_allclose(log_weights(source), np.broadcast_to(exact, (7, N)), rtol=0, atol=1e-10)


def test_merged_and_residual_are_the_same_posterior_where_they_say_the_same():
    prior = DiagGaussian(jnp.array([[0.5, -2.0]]), jnp.array([[0.3, -1.0]]))
    mean, log_var = jnp.array([[1.5, -1.0]]), jnp.array([[-0.7, 0.4]])
    merged = merged_posterior(prior, mean, log_var)
    precisions = np.exp(-np.float64(prior.log_var)), np.exp(-np.float64(log_var))
    np.testing.assert_allclose(merged.log_var, -np.log(sum(precisions)), rtol=1e-6)
    weighted = np.float64(prior.mean) * precisions[0] + np.float64(mean) * precisions[1]
    np.testing.assert_allclose(merged.mean, weighted / sum(precisions), rtol=1e-6)
    residual = residual_posterior(prior, merged.mean - prior.mean, merged.log_var - prior.log_var)
    np.testing.assert_allclose(residual.mean, merged.mean, rtol=1e-6)
    np.testing.assert_allclose(residual.log_var, merged.log_var, rtol=1e-6)


def kl(q, p):
    return rate(q, p, q.mean[None], jnp.zeros((1, len(q.mean)))).sum()


def test_what_x_does_not_say_costs_nothing():
    prior = DiagGaussian(jnp.array([[0.5, -2.0]]), jnp.array([[0.3, -1.0]]))
    mean = jnp.array([[3.0, 3.0]])
    found = [kl(merged_posterior(prior, mean, jnp.full((1, 2), log_var)), prior) for log_var in (0.0, 5.0, 10.0, 20.0)]
    assert all(np.diff(found) < 0)
    assert found[0] > 1
    assert found[-1] < 1e-8
    assert kl(residual_posterior(prior, jnp.zeros((1, 2)), jnp.zeros((1, 2))), prior) == 0


def test_the_residual_kl_is_the_papers_and_so_is_its_gradient():
    prior = DiagGaussian(jnp.array([[0.5, -2.0]]), jnp.array([[0.3, -1.0]]))
    mean, log_var = jnp.array([[0.7, -0.2]]), jnp.array([[-0.5, 0.6]])
    own = jax.value_and_grad(lambda m, v: kl(residual_posterior(prior, m, v), prior), argnums=(0, 1))
    value, (of_mean, of_log_var) = own(mean, log_var)
    variance, m, v = (np.exp(np.float64(prior.log_var)), *map(np.float64, (mean, log_var)))
    np.testing.assert_allclose(value, 0.5 * (m**2 / variance + np.exp(v) - v - 1).sum(), rtol=1e-6)
    np.testing.assert_allclose(of_mean, m / variance, rtol=1e-5)
    np.testing.assert_allclose(of_log_var, 0.5 * np.expm1(v), rtol=1e-5)


MODEL, LOSS_FN, INIT = VARIANTS["top-down"][:3]


@pytest.fixture(scope="module")
def params():
    return INIT(key=jax.random.key(0))[0]


def applied(params, *arguments, method, **options):
    return jax.jit(partial(MODEL.apply, method=method, **options))(params, *arguments)


def test_the_rates_are_the_divergences_at_the_draws_above(params, key):
    x = batch(5)["x"]
    keys = jaxvae.keys.example_keys(key, jnp.arange(5))
    terms = applied(params, x, method="terms", key=keys, num_samples=3)
    latents, log_posterior = applied(params, x, method="propose", key=keys, num_samples=3)
    log_likelihood, log_prior = applied(params, x, latents, method="log_joint")
    assert {name: rates.shape for name, rates in terms.rates.items()} == {"z1": (3, 5, 32), "z2": (3, 5, 3)}
    np.testing.assert_allclose(terms.log_likelihood, log_likelihood, rtol=1e-5)
    np.testing.assert_allclose(terms.log_ratio, log_prior - log_posterior, rtol=1e-4, atol=1e-3)
    same = applied(params, x, latents, method="log_posterior")
    np.testing.assert_allclose(same, log_posterior, rtol=1e-5)
    # In the mean over many draws the sampled rate is the one in closed form.
    many = applied(params, x[:1], method="terms", key=keys[:1], num_samples=4000)
    closed = sum(rates.sum(axis=-1).mean() for rates in many.rates.values())
    sampled = -many.log_ratio
    assert abs(sampled.mean() - closed) < 5 * sampled.std() / math.sqrt(4000)


class TestSampling:
    def test_the_groups_above_are_shared_and_those_below_are_not(self, params):
        def means(**options):
            return np.asarray(applied(params, method="sample", num=6, key=jax.random.key(1), **options).mean)

        everything, lowest = means(from_group=2), means(from_group=1)
        assert np.array_equal(everything, means())
        assert everything.std(axis=0).mean() > lowest.std(axis=0).mean() > 0
        cold = means(temperature=0.0)
        np.testing.assert_allclose(cold, np.broadcast_to(cold[:1], cold.shape), rtol=1e-5)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"temperature": -1.0}, "temperature must be a finite number, zero or more, got -1.0"),
            ({"temperature": math.nan}, "temperature must be"),
            ({"from_group": 3}, r"from_group must be a group of 1 .. 2, got 3"),
            ({"from_group": 0}, "from_group must be at least 1, got 0"),
            ({"num": 0}, "num must be at least 1, got 0"),
        ],
    )
    def test_bad_options(self, params, options, message):
        with pytest.raises(ValueError, match=message):
            MODEL.apply(params, **{"num": 2, "key": jax.random.key(0), **options}, method="sample")

    def test_latents_at_the_prior_have_its_moments(self):
        """Of the chain, whose covariance is known: x = z_1 W without noise."""
        model = chain_model(3, residual_posterior)
        x = np.asarray(model.apply({}, 20_000, key=jax.random.key(0), method="sample").mean)
        np.testing.assert_allclose(np.cov(x.T), marginal(3) - NOISE * np.eye(X), atol=0.15)
        half = np.asarray(model.apply({}, 20_000, key=jax.random.key(0), temperature=0.5, method="sample").mean)
        np.testing.assert_allclose(half, 0.5 * x, atol=1e-4)


def test_each_rung_brings_the_reconstruction_closer():
    """On the chain, at the posterior's means: what x has decided cannot be further than what the prior says."""
    model = chain_model(3, merged_posterior)
    x = np.random.default_rng(2).multivariate_normal(np.zeros(X), marginal(3), 500).astype(np.float32)
    errors = [np.square(x - model.apply({}, x, up_to=i, method="reconstruct").mean).mean() for i in (3, 2, 1)]
    assert errors[0] > errors[1] > errors[2]
    with pytest.raises(ValueError, match=r"up_to must be a group of 1 .. 3, got 4"):
        model.apply({}, x, up_to=4, method="reconstruct")


def test_codes_decode_to_the_reconstruction(params):
    x = batch(3)["x"]
    posteriors = applied(params, x, method="encode")
    assert [q.mean.shape for q in posteriors] == [(3, 4, 4, 2), (3, 3)]
    decoded = applied(params, tuple(q.mean for q in posteriors), method="decode").mean
    np.testing.assert_allclose(decoded, applied(params, x, method="reconstruct").mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(decoded, jax.jit(MODEL.apply)(params, x).mean, rtol=1e-5, atol=1e-6)


class InNNX(nnx.Module):
    """The methods of a rung, in another framework."""

    prior = posterior = merge = start = lambda self, *arguments: arguments


class Hiding:
    """A rung that is no module, and holds an array."""

    prior = posterior = merge = start = lambda self, *arguments: arguments

    def __init__(self):
        self.scale = jnp.ones(3)


class TestPlugged:
    """What a user plugs in is used, or refused by name."""

    def model(self, **changed):
        parts = {"encoder": lambda x: [x, x], "rungs": [Rung(2, 4), Rung(3, 4)], "decoder": StateDecoder((9,))}
        return TopDownVAE(**parts | changed)

    @pytest.mark.parametrize(
        ("changed", "error", "message"),
        [
            ({"rungs": []}, ValueError, "at least one rung"),
            ({"rungs": [nn.Dense(3)]}, TypeError, r"rungs\[0\], a Dense, has no method prior and no posterior"),
            ({"rungs": [Rung]}, TypeError, "got the class Rung"),
            ({"encoder": None}, TypeError, "encoder must be a network"),
            ({"rungs": [InNNX()]}, TypeError, r"rungs\[0\], a InNNX, is an NNX module, of which only __call__"),
            ({"rungs": [Hiding()]}, TypeError, r"rungs\[0\].*holds a JAX array float32\[3\] that no training reaches"),
        ],
    )
    def test_parts_that_are_none(self, changed, error, message):
        with pytest.raises(error, match=message):
            self.model(**changed)

    @pytest.mark.parametrize(
        ("encoder", "message"),
        [
            (lambda x: [x], "features of each of the 2 groups, got 1 of them"),
            (lambda x: x, "features of each of the 2 groups, got"),
            (lambda x: [x, x[:1]], r"features of z_2 must be \(2, ...\)"),
            (lambda x: [x, x[:, None]], r"features \(2, 1, 9\) must have the positions of this rung's state \(2, 4\)"),
        ],
    )
    def test_features_that_do_not_fit(self, encoder, message):
        with pytest.raises(ValueError, match=message):
            self.model(encoder=encoder).init(jax.random.key(0), jnp.ones((2, 9)))

    @pytest.mark.parametrize(
        ("form", "error", "message"),
        [
            (lambda prior, mean, log_var: mean, TypeError, "posterior of a group must be a DiagGaussian, got"),
            (
                lambda prior, mean, log_var: DiagGaussian(mean[:, :1], log_var),
                ValueError,
                r"q of z_2 must be \(2, 3\), as its prior is, got \(2, 1\)",
            ),
        ],
    )
    def test_posteriors_that_do_not_fit(self, form, error, message):
        with pytest.raises(error, match=message):
            self.model(encoder=lambda x: [x[:, :4]] * 2, posterior=form).init(jax.random.key(0), jnp.ones((2, 9)))

    def test_a_posterior_of_ones_own_may_have_one_variance(self, key):
        model = self.model(encoder=lambda x: [x[:, :4]] * 2, posterior=lambda p, m, v: DiagGaussian(m, jnp.float32(-1)))
        x = jnp.ones((2, 9))
        params = jax.jit(model.init)(key, x)
        terms = model.apply(params, x, key=key, num_samples=2, method="terms")
        assert [rates.shape for rates in terms.rates.values()] == [(2, 2, 2), (2, 2, 3)]

    def test_a_posterior_of_ones_own_is_told_of_training(self, key):
        told = []

        def posterior(prior, mean, log_var, *, train):
            told.append(train)
            return DiagGaussian(mean, log_var)

        model, x = self.model(encoder=lambda x: [x[:, :4]] * 2, posterior=posterior), jnp.ones((2, 9))
        params = model.init(key, x)
        for rngs, train in (({"dropout": key}, True), ({}, False)):
            told.clear()
            model.apply(params, x, key=key, num_samples=1, method="terms", rngs=rngs)
            assert told == [train] * len(told)
            assert told

    def test_latents_that_do_not_fit(self, params):
        with pytest.raises(ValueError, match="tuple of z_1 to z_2, got 1 of them"):
            MODEL.apply(params, (jnp.zeros((2, 3)),), method="decode")
        with pytest.raises(ValueError, match="as many of each group"):
            MODEL.apply(params, (jnp.zeros((2, 4, 4, 2)), jnp.zeros((1, 3))), method="decode")
        with pytest.raises(ValueError, match=r"z_2 must be \(2, 3\), as its prior is, got \(2, 4\)"):
            MODEL.apply(params, (jnp.zeros((2, 4, 4, 2)), jnp.zeros((2, 4))), method="decode")

    def test_integers_and_missing_entries(self, params):
        with pytest.raises(TypeError, match="x must be floating"):
            MODEL.apply(params, jnp.ones((1, *SHAPE), jnp.int32))
        observed = jnp.ones((2, *SHAPE), bool)
        with pytest.raises(TypeError, match=r"TopDownVAE.terms has no argument observed"):
            LOSS_FN(params, (), batch(2) | {"observed": observed}, key=jax.random.key(0), step=0)

    def test_what_is_for_one_array_of_latents_says_so(self, params):
        loss = partial(jaxvae.tc_vae_loss, MODEL, params, (), batch(2), key=jax.random.key(0), step=0, num_examples=9)
        with pytest.raises(TypeError, match="a TopDownVAE has no latent_prior"):
            loss()

    def test_it_pickles(self, params):
        again = pickle.loads(pickle.dumps(MODEL))
        x = batch(2)["x"]
        np.testing.assert_array_equal(jax.jit(again.apply)(params, x).mean, jax.jit(MODEL.apply)(params, x).mean)


@pytest.mark.slow
def test_a_run_of_it_is_asked_kept_and_loaded(tmp_path):
    model = top_down_vae(SHAPE, [Stage(6, (3,)), Stage(4, (2,))], blocks=0, normalization=None)
    x = np.random.default_rng(0).integers(0, 256, (40, *SHAPE), dtype=np.uint8)
    dataset = jaxvae.data.from_arrays("noise", x)
    options = {"epochs": 1, "batch_size": 8, "ema": 0.9, "skip_above": 1e6, "progress": False}
    run = jaxvae.train(model, dataset, **options)
    assert run.history[0]["train"]["skipped"] == 0
    codes = run.encode(x[:3])
    assert [code.shape for code in codes] == [(3, 3), (3, 2)]
    assert run.sample(2).shape == (2, *SHAPE)
    lines = run.interpolate(x[:2], x[2:4], num=3)
    np.testing.assert_allclose(lines[:, 0], run.reconstruct(x[:2]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(lines[:, 2], run.reconstruct(x[2:4]), rtol=1e-4, atol=1e-5)
    again = jaxvae.load(run.save(tmp_path / "run"))
    np.testing.assert_array_equal(again.encode(x[:3])[0], codes[0])
    with pytest.raises(ValueError, match="start and end must be as many, got 1 and 2"):
        run.interpolate(x[:1], x[:2])


def steep_at_times(*arguments, step, **options):
    loss, aux = hierarchical_vae_loss(*arguments, step=step, free_bits=0.5, **options)
    return loss * jnp.where(step % 3 == 2, 1e9, 1.0), aux


@pytest.mark.slow
def test_every_skipped_step_and_the_average_survive_a_kill(tmp_path):
    """Stopped after an epoch and continued, to the bit; some steps are skipped, and the average is of the others."""
    model = top_down_vae(SHAPE, [Stage(4, (1,), 2), Stage(6, (2,))], blocks=0)
    x = np.random.default_rng(0).integers(0, 256, (80, *SHAPE), dtype=np.uint8)
    dataset = jaxvae.data.from_arrays("noise", x)
    train = partial(
        *(jaxvae.train, model, dataset),
        **{"batch_size": 8, "loss": steep_at_times, "ema": 0.9, "progress": False, "skip_above": 1e5},
    )
    whole = train(epochs=3)
    train(epochs=1, out=tmp_path / "run")
    resumed = train(epochs=3, out=tmp_path / "run", resume=True)
    jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
    assert resumed.history == whole.history
    assert [record["train"]["skipped"] for record in whole.history] == pytest.approx([3 / 9] * 3)
