"""Priors and the rate: closed forms, mixtures, and one seam for every objective and estimate."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from scipy import special, stats
from variants import SHAPE, batch, mlp

import jaxvae
from jaxvae import losses
from jaxvae.distributions import Categorical, DiagGaussian, EqualMixture, Mixture, StandardNormal, rate
from jaxvae.keys import example_keys, sample_keys
from jaxvae.losses import categorical_kl, gaussian_kl
from jaxvae.networks import TableEncoder
from jaxvae.priors import Examples, VampPrior
from jaxvae.types import Column

B, D, NUM = 6, 3, 20_000
MIXTURE = Mixture(
    jnp.float32([0.0, 1.0]),
    jnp.float32([[-1.0, 0.5, 2.0], [1.0, 0.0, 0.0]]),
    jnp.float32([[0.0, -1.0, 0.5], [0.3] * 3]),
)


def model_of(prior):
    return jaxvae.VAE(*mlp(D), prior=prior)


@partial(jax.jit, static_argnums=0)
def init(model):
    return model.init(jax.random.key(0), jnp.zeros((1, *SHAPE)))


def test_a_mixtures_density_is_scipys_and_its_samples_follow_it(key):
    z = np.random.default_rng(0).normal(size=(7, D))
    logits, mean, log_var = (np.asarray(leaf, np.float64) for leaf in MIXTURE)
    of_each = stats.norm.logpdf(z[None], mean[:, None], np.exp(log_var / 2)[:, None]).sum(axis=-1)
    expected = special.logsumexp(special.log_softmax(logits)[:, None] + of_each, axis=0)
    np.testing.assert_allclose(MIXTURE.log_prob(jnp.float32(z)), expected, rtol=1e-5)

    samples = np.asarray(MIXTURE.sample(NUM, key=key), np.float64)
    share = special.softmax(logits)
    np.testing.assert_allclose(samples.mean(axis=0), share @ mean, atol=0.04)
    np.testing.assert_allclose(MIXTURE.mean[0], share @ mean, rtol=1e-6)
    second = share @ (np.exp(log_var) + mean**2)
    np.testing.assert_allclose((samples**2).mean(axis=0), second, rtol=0.04)
    left = stats.norm.cdf(0, mean[:, 0], np.exp(log_var[:, 0] / 2)) @ share  # shares of the components, seen in z1
    np.testing.assert_allclose((samples[:, 0] < 0).mean(), left, atol=0.015)


def exact_mixture(logits, mean, log_var, x):
    """The sum over components, whatever it costs: what the gradient's products must agree with."""
    of_each = -0.5 * (jnp.square(x[None] - mean[:, None]) * jnp.exp(-log_var)[:, None]).sum(axis=-1)
    of_each -= 0.5 * (log_var + jnp.log(2 * jnp.pi)).sum(axis=1)[:, None]
    return jax.nn.logsumexp(jax.nn.log_softmax(logits)[:, None] + of_each, axis=0)


@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_a_mixtures_derivatives_are_those_of_its_sum_forward_and_back_to_the_second(offset):
    draw = np.random.default_rng(1)
    with jax.enable_x64(True):
        given = [draw.normal(size=4), offset + draw.normal(size=(4, 19)), draw.normal(size=(4, 19)) - 1]
        given = [jnp.asarray(np.float32(each), jnp.float64) for each in (*given, offset + draw.normal(size=(5, 19)))]
        weight, moved = jnp.asarray(draw.normal(size=5)), [jnp.asarray(draw.normal(size=each.shape)) for each in given]

        def nats(of, *arguments):
            return (weight * of(*arguments)).sum()

        ours = partial(nats, lambda logits, *rest: -losses.gaussian_mixture_nll(logits, *rest))
        exact = partial(nats, exact_mixture)
        for form in (
            lambda of: of(*given),
            lambda of: jax.grad(of, argnums=(0, 1, 2, 3))(*given),
            lambda of: jax.jvp(of, given, moved)[1],
            lambda of: jax.jvp(jax.grad(of, argnums=(0, 1, 2, 3)), given, moved)[1],
        ):
            jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), form(ours), form(exact))
        wanted = jax.grad(exact, argnums=(0, 1, 2, 3))(*given)
        narrow = jax.grad(ours, argnums=(0, 1, 2, 3))(*(each.astype(jnp.float32) for each in given))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), narrow, wanted)


def test_a_narrow_component_keeps_its_density_in_float32():
    """Where squares are large and cancel, sums of products would lose a nat."""
    z = np.float32(30) + np.float32(0.01) * np.random.default_rng(2).normal(size=(3, 50)).astype(np.float32)
    mean, log_var = np.full((2, 50), 30, np.float32), np.full((2, 50), 2 * np.log(0.01), np.float32)
    nats = -losses.gaussian_mixture_nll(jnp.zeros(2), jnp.asarray(mean), jnp.asarray(log_var), jnp.asarray(z))
    std = np.exp(log_var[0].astype(np.float64) / 2)
    expected = stats.norm.logpdf(z.astype(np.float64), 30, std).sum(axis=1)
    np.testing.assert_allclose(nats, expected, atol=1e-4)


def test_a_components_frequency_is_its_weight_and_keys_may_be_one_for_each(key):
    apart = Mixture(jnp.log(jnp.float32([0.2, 0.8])), jnp.float32([[-100.0], [100.0]]), jnp.zeros((2, 1)))
    keys = example_keys(key, jnp.arange(NUM))
    for each in (key, keys):
        samples = np.asarray(apart.sample(NUM, key=each))
        np.testing.assert_allclose((samples < 0).mean(), 0.2, atol=5 * np.sqrt(0.16 / NUM))
        np.testing.assert_allclose(
            samples.std(axis=0, where=samples > 0), 1, atol=0.03
        )  # the noise is not the choice's
    np.testing.assert_array_equal(apart.sample(NUM, key=keys)[3:5], apart.sample(2, key=keys[3:5]))


@pytest.mark.parametrize("loss", [jaxvae.vae_loss, jaxvae.sampled_vae_loss, partial(jaxvae.iwae_loss, num_samples=5)])
def test_a_mixture_of_one_is_the_standard_normal(loss, key):
    plain, mixture = model_of(StandardNormal()), model_of(jaxvae.GaussianMixture(1, D))
    params = init(mixture)
    loss = jax.jit(loss, static_argnums=0)
    expected = loss(plain, init(plain), (), batch(B), key=key, step=0)[0]
    np.testing.assert_allclose(loss(mixture, params, (), batch(B), key=key, step=0)[0], expected, atol=2e-5)
    z = jax.random.normal(key, (4, D))
    record = mixture.apply(params, method="latent_prior")
    np.testing.assert_allclose(record.log_prob(z), StandardNormal().log_prob(z), rtol=1e-6)


@pytest.mark.parametrize(
    "prior", [pytest.param(StandardNormal(), marks=pytest.mark.slow), jaxvae.GaussianMixture(4, D)]
)
def test_every_objective_and_the_likelihood_agree_on_any_prior(prior, key):
    """All within five Monte Carlo errors of the mean of many sampled terms."""
    model = model_of(prior)
    params, examples = init(model), batch(B)
    log_weights = jax.jit(partial(jaxvae.objectives.vae_log_weights, model, num_samples=4000))
    log_w = np.asarray(log_weights(params, (), examples, key=jax.random.key(9)), np.float64)
    expected, error = -log_w.mean(), log_w.std(axis=0).mean() / np.sqrt(B)
    for loss in (jaxvae.vae_loss, jaxvae.sampled_vae_loss, partial(jaxvae.iwae_loss, num_samples=1)):
        many = jax.jit(jax.vmap(lambda key, loss=loss: loss(model, params, (), examples, key=key, step=0)[0]))
        values = many(jax.vmap(jax.random.key)(np.arange(40)))
        np.testing.assert_allclose(np.mean(values), expected, atol=5 * error / np.sqrt(40))
    estimate = jaxvae.log_likelihood(model, params, (), examples, jnp.arange(B)[None], key=key, num_samples=2000)
    bound = special.logsumexp(log_w, axis=0) - np.log(len(log_w))
    np.testing.assert_allclose(estimate.log_prob, bound, atol=5 * estimate.standard_error.max() + 1e-3)
    assert estimate.nll < expected


def test_the_rate_has_a_closed_form_for_gaussians_and_categoricals_and_is_sampled_otherwise(key):
    mean, log_var = jax.random.normal(key, (2, B, D))
    q, zero = DiagGaussian(mean, log_var), jnp.zeros(D)
    closed = rate(q, StandardNormal(), None, None)
    assert closed.shape == (1, B, D)
    np.testing.assert_allclose(closed.sum(axis=-1)[0], gaussian_kl(mean, log_var), rtol=1e-6)
    np.testing.assert_array_equal(closed, rate(q, DiagGaussian(zero, zero), None, None))

    keys = sample_keys(example_keys(key, jnp.arange(B)), 5000)
    latent = jax.vmap(lambda each: q.sample(key=each))(keys)
    log_q = jax.vmap(q.log_prob)(latent)
    one = Mixture(jnp.zeros(1), jnp.zeros((1, D)), jnp.zeros((1, D)))
    np.testing.assert_array_equal(closed, rate(q, one, None, None))
    two = Mixture(jnp.zeros(2), jnp.zeros((2, D)), jnp.zeros((2, D)))  # the same density
    sampled = rate(q, two, latent, log_q)
    assert sampled.shape == (5000, B, 1)
    np.testing.assert_allclose(sampled.mean(axis=(0, 2)), gaussian_kl(mean, log_var), rtol=0.05)


def test_the_rate_of_categoricals_is_scipys():
    logits, prior = np.random.default_rng(1).normal(size=(2, B, D, 5))
    p, q = special.softmax(logits, axis=-1), special.softmax(prior, axis=-1)
    of_each = rate(Categorical(jnp.float32(logits)), Categorical(jnp.float32(prior)), None, None)
    np.testing.assert_allclose(of_each[0], special.rel_entr(p, q).sum(axis=-1), rtol=1e-5)
    np.testing.assert_allclose(categorical_kl(logits, prior), special.rel_entr(p, q).sum(axis=(1, 2)), rtol=1e-5)
    uniform = np.log(5) - stats.entropy(p, axis=-1)  # log K - H
    np.testing.assert_allclose(categorical_kl(logits, jnp.zeros(5)), uniform.sum(axis=1), rtol=1e-5)
    certain = jnp.float32([[0.0, -jnp.inf, -1e4]])
    np.testing.assert_allclose(categorical_kl(certain, jnp.zeros(3)), [np.log(3)], rtol=1e-6)
    assert np.isfinite(jax.grad(lambda x: categorical_kl(x, jnp.zeros(3)).sum())(jnp.float32([[0.0, 1e4, -1e4]]))).all()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((jnp.zeros((2, 3), jnp.int32), jnp.zeros(3)), TypeError, "logits must be floating, got int32"),
        ((jnp.zeros(3), jnp.zeros(3)), ValueError, r"logits must be \[B, ..., V\], got \(3,\)"),
        ((jnp.zeros((2, 3)), jnp.zeros(4)), ValueError, r"prior_logits must broadcast to logits \(2, 3\), got \(4,\)"),
    ],
)
def test_categorical_kl_refuses_what_does_not_fit(arguments, error, message):
    with pytest.raises(error, match=message):
        categorical_kl(*arguments)


def test_samples_of_a_model_come_from_its_prior(key):
    mixture = model_of(jaxvae.GaussianMixture(2, D))
    params = init(mixture)
    far = {"log_weights": jnp.zeros(2), "mean": jnp.full((2, D), 50.0), "log_var": jnp.full((2, D), -20.0)}
    params = {"params": {**params["params"], "prior": far}}
    pictures = mixture.apply(params, 2, key=key, method="sample").mean
    expected = mixture.apply(params, jnp.full((2, D), 50.0), method="decode").mean
    np.testing.assert_allclose(pictures, expected, atol=1e-3)


@pytest.mark.parametrize(("components", "latent_dim", "name"), [(0, 3, "num_components"), (2, 0, "latent_dim")])
def test_impossible_mixtures_are_refused(components, latent_dim, name, key):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        jaxvae.GaussianMixture(components, latent_dim).init(key)


def test_what_cannot_be_sampled_says_why(key):
    with pytest.raises(ValueError, match=r"sample needs the size of the latent: pass VAE\(..., latent_dim=D\)"):
        StandardNormal().sample(3, key=key)
    for record in (StandardNormal(2), MIXTURE):
        with pytest.raises(ValueError, match="num must be at least 1, got 0"):
            record.sample(0, key=key)
        with pytest.raises(TypeError, match=r"key must come from jax\.random\.key"):
            record.sample(2, key=jax.random.PRNGKey(0))
    with pytest.raises(TypeError, match="the prior must return a record with log_prob and sample, got float"):
        model_of(lambda: 3.0).apply({}, method="latent_prior")
    wrong = model_of(lambda: (jnp.zeros((1, D)), jnp.zeros((1, D))))
    with pytest.raises(ValueError, match="the prior's sample returned 1 latents where 4 are asked for"):
        wrong.apply(init(wrong), 4, key=key, method="sample")


# VampPrior

VAMP = VampPrior(4, SHAPE)


def parts_of(params):
    """What a VAE of these networks without the prior takes."""
    return {"params": {part: params["params"][part] for part in ("encoder", "decoder")}}


def test_a_vamp_prior_is_the_mixture_of_the_posteriors_of_its_pseudo_inputs(key):
    model = model_of(VAMP)
    params = init(model)
    record = model.apply(params, method="latent_prior")
    posterior = model_of(StandardNormal()).apply(parts_of(params), params["params"]["prior"]["x"], method="encode")
    mean, deviation = np.asarray(posterior.mean, float), np.exp(np.asarray(posterior.log_var, float) / 2)
    z = np.random.default_rng(0).normal(size=(5, D))
    of_each = stats.norm.logpdf(z[None], mean[:, None], deviation[:, None]).sum(axis=-1)
    np.testing.assert_allclose(
        record.log_prob(jnp.float32(z)), special.logsumexp(of_each, axis=0) - np.log(4), rtol=1e-5
    )
    # The general form, which flows take, says the same and draws the same distribution.
    general = EqualMixture(posterior)
    np.testing.assert_allclose(general.log_prob(jnp.float32(z)), record.log_prob(jnp.float32(z)), rtol=1e-5)
    np.testing.assert_allclose(general.mean, record.mean, rtol=1e-5)
    assert isinstance(record, Mixture)


def test_an_equal_mixture_draws_each_component_as_often_and_with_its_own_noise(key):
    apart = EqualMixture(DiagGaussian(jnp.float32([[-100.0], [0.0], [100.0]]), jnp.zeros((3, 1))))
    samples = np.asarray(jax.jit(lambda: apart.sample(NUM, key=key))())
    for middle in (-100, 0, 100):
        own = samples[np.abs(samples - middle) < 50]
        assert len(own) / NUM == pytest.approx(1 / 3, abs=5 * np.sqrt(2 / 9 / NUM))
        assert own.std() == pytest.approx(1, abs=0.05)
    keys = example_keys(key, jnp.arange(8))
    np.testing.assert_array_equal(apart.sample(8, key=keys)[3:5], apart.sample(2, key=keys[3:5]))


def test_with_the_whole_set_for_pseudo_inputs_it_is_the_aggregate_posterior(key):
    """The mean rate is I(x; z), which cannot exceed log N."""
    x = batch(40)["x"]
    model = model_of(VampPrior(40, SHAPE, Examples(x)))
    params = jax.tree.map(lambda leaf: 4 * leaf, init(model))  # codes that know something
    params["params"]["prior"]["x"] = params["params"]["prior"]["x"] / 4
    np.testing.assert_array_equal(np.sort(params["params"]["prior"]["x"], axis=0), np.sort(x, axis=0))
    terms, _ = jax.jit(partial(jaxvae.objectives.terms_of, model, num_samples=500))(params, (), batch(40), key=key)
    posterior = model.apply(params, x, method="encode")
    whole = jaxvae.evaluation.aggregate_posterior(posterior.mean, posterior.log_var, key=key)
    rate = -np.asarray(terms.log_ratio, float).mean()
    assert rate == pytest.approx(whole.mutual_information, abs=5 * whole.standard_error + 0.02)
    assert 1 < rate < np.log(40)


class DropsOut(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        features = nn.Dropout(0.5, deterministic=not train)(nn.Dense(16)(x.reshape(len(x), -1)))
        return nn.Dense(D)(features), nn.Dense(D)(features)


class OfNNX(nnx.Module):
    """With statistics of the batch too, in which pseudo-inputs have no part."""

    def __init__(self, rngs):
        self.norm, self.drop = nnx.BatchNorm(12, rngs=rngs), nnx.Dropout(0.5, rngs=rngs)
        self.head = nnx.Linear(12, 2 * D, rngs=rngs)

    def __call__(self, x):
        return tuple(jnp.split(self.head(self.drop(self.norm(x.reshape(len(x), -1)))), 2, axis=1))


@pytest.mark.parametrize("encoder", ["linen", "nnx", "table"])
def test_pseudo_inputs_are_encoded_as_in_evaluation(encoder, key):
    columns = (Column("a", "real"),) * 12
    made = {"linen": DropsOut(), "nnx": OfNNX(nnx.Rngs(0)), "table": TableEncoder(columns, DropsOut())}[encoder]
    model = jaxvae.VAE(made, mlp(D)[1], prior=VampPrior(3, (12,)), latent_dim=D)
    params = jax.jit(model.init)(key, jnp.zeros((1, 12)))
    still = model.apply(params, method="latent_prior")
    options = {"rngs": {"dropout": key}, "mutable": ["batch_stats"]}
    other, moved = model.apply(params, method="latent_prior", **options)
    jax.tree.map(np.testing.assert_array_equal, still, other)
    jax.tree.map(np.testing.assert_array_equal, moved, {k: v for k, v in params.items() if k == "batch_stats"})


def test_a_vamp_prior_that_does_not_fit_says_so(key):
    with pytest.raises(ValueError, match="num_pseudo_inputs must be at least 1, got 0"):
        VampPrior(0, SHAPE).init(key)
    for count, shape in ((3, SHAPE), (2, (9,))):
        with pytest.raises(ValueError, match=rf"expected at least {count} examples .*, got \(2, {SHAPE[0]}, "):
            VampPrior(count, shape, Examples(batch(2)["x"])).init(key)
    with pytest.raises(TypeError, match=r"x must be floating, as dataset.prepared\(.*, got uint8"):
        Examples(np.zeros((2, *SHAPE), np.uint8))  # of 256 levels, where a model sees [0, 1]
    with pytest.raises(ValueError, match="x must be finite"):
        Examples(np.full((2, *SHAPE), np.nan, np.float32))
    cvae = jaxvae.CVAE(*map(jaxvae.Conditioned, mlp(D)), prior=VAMP)
    with pytest.raises(TypeError, match="a VampPrior mixes posteriors of x alone"):
        cvae.init(key, batch(1)["x"], jnp.zeros((1, 2)))


def test_the_gradient_of_narrow_components_far_apart_is_that_of_each_alone():
    mean = jnp.asarray([[-30.0, 20.0], [30.0, -20.0]])
    log_var = jnp.full((2, 2), -12.0)
    x = mean + jnp.asarray([[0.5], [-2.0]]) * jnp.exp(-6.0)  # in standard deviations, but for the rounding of x
    gradient = jax.grad(lambda log_var: losses.gaussian_mixture_nll(jnp.zeros(2), mean, log_var, x).sum())(log_var)
    squares = ((np.float64(x) - np.float64(mean)) * np.exp(6.0)) ** 2
    np.testing.assert_allclose(gradient, 0.5 - 0.5 * squares, rtol=1e-4)
    nobody = losses.gaussian_mixture_nll(jnp.zeros(2), mean, log_var, jnp.zeros((0, 2)))
    assert nobody.shape == (0,)
