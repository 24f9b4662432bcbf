"""Inverse problems: what is drawn given a part or a function of x, against the closed forms of a linear Gaussian."""

from functools import cache, partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

import jaxvae
from jaxvae import evaluation
from jaxvae.distributions import Bernoulli, Categorical, DiagGaussian
from jaxvae.evaluation import Gibbs, Importance, Langevin, Linear, TrainedEncoder, Visible
from jaxvae.objectives import init_partial_encoder, partial_encoder_loss

N, D, K, DRAWS = 5, 4, 2, 500
WEIGHTS = np.float32([[1.0, 0.5, -0.5, 1.0], [0.6, -0.8, 0.4, 0.0]])  # orthogonal: the exact posterior is diagonal
OFFSET = np.float32([1.0, -2.0, 0.5, 0.0])
VARIANCE = 0.5
MASK = np.array([True, False, True, False])
MIX = np.float32([[0.5, 0.5, 0.0, 0.0], [0.0, 0.3, -0.3, 1.0]])
NOISE = 0.4
PART, ALL = Visible(MASK), Visible(np.ones(D, bool))
POSTERIOR = 1 / (1 + np.square(WEIGHTS).sum(axis=1) / VARIANCE)  # variances of p(z|x)


class Posterior(nn.Module):
    """The exact posterior, or what its parameters make of it."""

    latent_dim: int = K

    @nn.compact
    def __call__(self, x):
        shrink = self.param("shrink", nn.initializers.ones, ())
        widen = self.param("widen", nn.initializers.zeros, ())
        mean = shrink * POSTERIOR.astype(np.float32)[None] * ((x - OFFSET[None]) @ WEIGHTS.T) / VARIANCE
        return mean, jnp.broadcast_to(widen + np.log(POSTERIOR).astype(np.float32)[None], mean.shape)


MODEL = jaxvae.VAE(
    Posterior(), lambda z: z @ WEIGHTS + OFFSET[None], partial(DiagGaussian, log_var=float(np.log(VARIANCE)))
)


def encoding(shrink=1.0, widen=1.0):
    """x = z W + b + noise, z ~ N(0, I); the encoder is exact, unless told to be wrong."""
    return {"params": {"encoder": {"shrink": jnp.float32(shrink), "widen": jnp.log(jnp.float32(widen))}}}


EXACT, WRONG = encoding(), encoding(0.6, 2.0)


def source_of(x, **arrays):
    source = {"x": jnp.float32(x), "index": jnp.arange(len(x)), **arrays}
    return source, jnp.arange(len(x))[None]


@cache
def examples():
    rng = np.random.default_rng(1)
    return rng.normal(size=(N, K)) @ WEIGHTS + OFFSET + np.sqrt(VARIANCE) * rng.normal(size=(N, D))


def covariance():
    return WEIGHTS.T.astype(float) @ WEIGHTS + VARIANCE * np.eye(D)


def exact_latent(matrix, y, noise):
    """Mean [N, K] and covariance of p(z|y), y = matrix x + noise."""
    loading = matrix @ WEIGHTS.T.astype(float)
    total = VARIANCE * matrix @ matrix.T + noise**2 * np.eye(len(matrix))
    cov = np.linalg.inv(np.eye(K) + loading.T @ np.linalg.solve(total, loading))
    return (y - OFFSET @ matrix.T) @ np.linalg.solve(total, loading) @ cov, cov


def invert(observation, method, *, model=MODEL, params=EXACT, x=None, num_draws=DRAWS, key=None, **arrays):
    feed = source_of(np.where(MASK, examples(), np.nan) if x is None else x, **arrays)
    key = jax.random.key(3) if key is None else key
    return evaluation.invert(*(model, params, (), *feed, observation), key=key, method=method, num_draws=num_draws)


GIBBS = Gibbs(steps=40, burn_in=5, start=Importance(2))
METHODS = {
    "importance": (Importance(1000), EXACT),
    "gibbs": (GIBBS, EXACT),
    "gibbs with a wrong encoder": (GIBBS, WRONG),
    "langevin": (Langevin(0.5, steps=30, burn_in=30, start=Importance(2)), EXACT),
}


@pytest.fixture(scope="module")
def drawn():
    return {name: invert(PART, method, params=params) for name, (method, params) in METHODS.items()}


@pytest.mark.parametrize("name", METHODS)
def test_every_method_draws_the_conditional_distribution(drawn, name):
    inverted, seen = drawn[name], np.eye(D)[MASK]
    x, hidden = examples(), ~MASK
    means, cov = exact_latent(seen, x[:, MASK], 0.0)
    gain = covariance()[np.ix_(hidden, MASK)] @ np.linalg.inv(covariance()[np.ix_(MASK, MASK)])
    expected = OFFSET[hidden] + (x[:, MASK] - OFFSET[MASK]) @ gain.T
    spread = covariance()[np.ix_(hidden, hidden)] - gain @ covariance()[np.ix_(MASK, hidden)]
    # What is visible is itself; what stands in the rest is never read: it was NaN.
    np.testing.assert_array_equal(inverted.mean[:, MASK], np.float32(x[:, MASK]))
    np.testing.assert_array_equal(inverted.draws[..., MASK], np.repeat(np.float32(x[:, None, MASK]), DRAWS, axis=1))
    assert (inverted.std[:, MASK] == 0).all()
    error = np.sqrt(np.diag(spread) / DRAWS)
    assert np.abs((inverted.mean[:, hidden] - expected) / error).max() < 4
    np.testing.assert_allclose(inverted.std[:, hidden], np.broadcast_to(np.sqrt(np.diag(spread)), (N, 2)), rtol=0.12)
    deviations = (inverted.draws[..., hidden] - expected[:, None]).reshape(-1, 2)
    np.testing.assert_allclose(np.cov(deviations.T), spread, atol=0.05)
    latent = (inverted.latent - means[:, None]).reshape(-1, K)
    np.testing.assert_allclose(np.cov(latent.T), cov, atol=0.03)
    assert np.abs(latent.mean(axis=0)).max() < 0.05
    # Each draw is of its own latent: hidden entries less their means given z are the likelihood's noise.
    noise = inverted.draws[..., hidden] - (inverted.latent @ WEIGHTS + OFFSET)[..., hidden]
    assert noise.var() == pytest.approx(VARIANCE, rel=0.05)


def test_what_weighted_samples_and_chains_say_of_themselves(drawn):
    exact = stats.multivariate_normal.logpdf(examples()[:, MASK], OFFSET[MASK], covariance()[np.ix_(MASK, MASK)])
    weighted = drawn["importance"].diagnostics
    np.testing.assert_allclose(weighted["log_evidence"], exact, atol=0.2)
    assert ((weighted["effective_samples"] > 20) & (weighted["effective_samples"] < 1000)).all()
    np.testing.assert_allclose(drawn["gibbs"].diagnostics["acceptance"], 1, atol=1e-4)  # the encoder is exact
    wrong = drawn["gibbs with a wrong encoder"].diagnostics["acceptance"]
    assert ((wrong > 0.3) & (wrong < 0.9)).all()
    langevin = drawn["langevin"].diagnostics
    np.testing.assert_allclose(langevin["acceptance"], 0.574, atol=0.12)
    assert (langevin["step_size"] < 0.5).all()
    for name in ("gibbs", "langevin"):
        np.testing.assert_allclose(drawn[name].diagnostics["r_hat"], 1, atol=0.25)


@pytest.mark.parametrize("adjusted", [False, True])
def test_the_bias_of_langevin_steps_is_the_known_one_and_the_correction_removes_it(adjusted):
    """Of N(0, s²) with step h the variance is s² / (1 - h / (2 s²)), latent by latent."""
    step_size = 0.15
    method = Langevin(step_size, steps=60, burn_in=0, adjusted=adjusted, start=Importance(2))
    everything = invert(ALL, method, x=examples(), num_draws=2000)
    means, cov = exact_latent(np.eye(D), examples(), 0.0)
    np.testing.assert_allclose(np.diag(cov), POSTERIOR, rtol=1e-5)
    deviations = (everything.latent - means[:, None]).reshape(-1, K)
    expected = POSTERIOR if adjusted else POSTERIOR / (1 - step_size / (2 * POSTERIOR))
    np.testing.assert_allclose(deviations.var(axis=0), expected, rtol=0.05)  # 5 · 2000 draws: 1.4 %
    assert not np.allclose(POSTERIOR / (1 - step_size / (2 * POSTERIOR)), POSTERIOR, rtol=0.15)
    np.testing.assert_allclose(everything.diagnostics["step_size"], step_size, rtol=1e-5)  # nothing adapts it
    assert np.abs(deviations.mean(axis=0) / np.sqrt(expected / len(deviations))).max() < 4


def test_chains_run_where_float64_is_on():
    """Their own arithmetic stays that of the model: float32 weights, whose noise was float64."""
    with jax.enable_x64(True):
        found = invert(PART, Langevin(0.1, steps=2, burn_in=1, start=Importance(2)), x=examples()[:1], num_draws=2)
    assert found.latent.dtype == np.float32
    assert np.isfinite(found.draws).all()


def test_a_chain_that_runs_away_is_no_result():
    method = Langevin(3.0, steps=60, burn_in=0, adjusted=False, start=Importance(2))
    with pytest.raises(ValueError, match=r"the chains of 5 examples .* ran away .* take a step_size below 3.0"):
        invert(ALL, method, x=examples(), num_draws=2000)


def test_chains_that_have_not_met_say_so():
    short = Langevin(1e-5, steps=60, burn_in=0, start=Importance(2))
    assert (invert(ALL, short, x=examples(), num_draws=2000).diagnostics["r_hat"] > 1.5).all()


def y_of():
    return np.float32(examples() @ MIX.T + NOISE * np.random.default_rng(2).normal(size=(N, 2)))


@pytest.mark.parametrize(("operator", "of_mean"), [(MIX, True), (lambda x: x @ MIX.T, False)])
def test_a_linear_observation_has_the_density_of_its_closed_form(operator, of_mean, key):
    mean, log_var = jax.random.normal(key, (3, D)), jnp.float32([[0.1, -1.0, 0.3, 0.5]])
    observation, y = Linear(operator, NOISE, of_mean=of_mean), jnp.float32(y_of()[:3])
    found = observation.log_prob(DiagGaussian(mean, log_var), {"y": y})
    total = NOISE**2 * np.eye(2) + (0 if of_mean else MIX * np.exp(np.float64(log_var)) @ MIX.T)
    expected = [stats.multivariate_normal.logpdf(y[i], MIX @ np.float64(mean[i]), total) for i in range(3)]
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    drawn = observation.observe(jnp.zeros((20_000, D)), key=key)
    np.testing.assert_allclose(np.cov(drawn.T), NOISE**2 * np.eye(2), atol=0.01)
    np.testing.assert_allclose(observation(mean), np.asarray(mean) @ MIX.T, rtol=1e-5)


def test_an_observation_is_as_exact_of_a_narrow_type_and_in_a_wide_one_after_it():
    matrix = np.linspace(0.1, 0.9, 2 * D, dtype=np.float32).reshape(2, D)
    observation, y = Linear(matrix, NOISE), {"y": jnp.ones((3, 2))}
    wide, narrow = (
        DiagGaussian(jnp.zeros((3, D), dtype), jnp.zeros((1, D), dtype)) for dtype in ("float32", "float16")
    )
    expected = Linear(matrix, NOISE).log_prob(wide, y)
    for record in (narrow, wide):
        np.testing.assert_array_equal(observation.log_prob(record, y), expected)


@pytest.mark.parametrize(
    "method",
    [
        Importance(1000),
        pytest.param(Langevin(0.3, steps=30, burn_in=30, start=Importance(2)), marks=pytest.mark.slow),
    ],
)
def test_a_linear_observation_is_inverted(method):
    source = {"y": jnp.asarray(y_of()), "index": jnp.arange(N)}  # nobody has x
    inverted = evaluation.invert(
        *(MODEL, EXACT, (), source, jnp.arange(N)[None], Linear(MIX, NOISE)),
        key=jax.random.key(5),
        method=method,
        num_draws=DRAWS,
    )
    means, cov = exact_latent(MIX.astype(float), y_of(), NOISE)
    deviations = (inverted.latent - means[:, None]).reshape(-1, K)
    np.testing.assert_allclose(np.cov(deviations.T), cov, atol=0.04)
    np.testing.assert_allclose(inverted.mean, means @ WEIGHTS + OFFSET, atol=0.2)
    if isinstance(method, Importance):
        total = MIX @ covariance() @ MIX.T + NOISE**2 * np.eye(2)
        exact = stats.multivariate_normal.logpdf(y_of(), OFFSET @ MIX.T, total)
        np.testing.assert_allclose(inverted.diagnostics["log_evidence"], exact, atol=0.15)


@pytest.mark.parametrize(
    ("method", "batches"),
    [
        (Importance(20), [[0, 1], [2, 3], [4, -1]]),
        (Gibbs(5, 2, Importance(3)), [[4, -1, 0, 3, 1], [2, -1, -1, -1, -1]]),
        pytest.param(
            *(Langevin(0.1, 5, 2, start=Importance(3)), [[4, -1, 0, 3, 1], [2, -1, -1, -1, -1]]), marks=pytest.mark.slow
        ),
    ],
)
def test_an_example_is_inverted_alike_in_any_batch(method, batches, key):
    source, _ = source_of(np.where(MASK, examples(), 0))
    one, other = (
        evaluation.invert(
            *(MODEL, WRONG, (), source, jnp.asarray(indices), PART),
            key=key,
            method=method,
            num_draws=3,
        )
        for indices in (batches, [[0, 1, 2, 3, 4]])
    )
    order = np.ravel(batches)[np.ravel(batches) >= 0]
    other = jax.tree.map(lambda values: values[order], other)
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), one, other)


def test_examples_may_have_masks_of_their_own():
    visible = jnp.asarray(np.random.default_rng(0).random((N, D)) > 0.4)
    observed = jnp.ones((N, D), bool).at[:, 0].set(False)  # entries that are not there cannot be seen
    inverted = invert(Visible(), Importance(10), num_draws=2, x=examples(), visible=visible, observed=observed)
    assert ((inverted.std == 0) == (visible & observed)).all()
    assert visible[:, 0].any()


class Affine(nn.Module):
    """What the exact posterior given the visible entries is: an affine mean and a constant variance."""

    @nn.compact
    def __call__(self, seen):
        mean = nn.Dense(K)(seen)
        return mean, jnp.broadcast_to(self.param("log_var", nn.initializers.zeros, (1, K)), mean.shape)


@pytest.fixture(scope="module")
def encoder():
    """Trained on 512 examples, and what it was before."""
    rng = np.random.default_rng(4)
    x = rng.normal(size=(512, K)) @ WEIGHTS + OFFSET + np.sqrt(VARIANCE) * rng.normal(size=(512, D))
    batch = {"x": jnp.float32(x), "index": jnp.arange(512)}
    own = jaxvae.models.PartialEncoder(Affine())
    options = {"model": MODEL, "observation": PART}
    init = partial(init_partial_encoder, own, EXACT, (), options["observation"], batch)
    loss_fn, optimizer = partial(partial_encoder_loss, own, **options), optax.adam(3e-2)
    state = jaxvae.init_train_state(init, optimizer, key=jax.random.key(0))
    step = jax.jit(jaxvae.make_train_step(loss_fn, optimizer))
    for _ in range(250):
        state, metrics = step(state, batch)
    return own, state, float(metrics["loss"])


def test_a_partial_encoder_learns_the_posterior_given_what_is_visible(encoder):
    own, state, loss = encoder
    _, cov = exact_latent(np.eye(D)[MASK], examples()[:, MASK], 0.0)
    # The best diagonal Gaussian has the marginal variances; its cross-entropy is what the loss falls to.
    best = 0.5 * np.log(2 * np.pi * np.e * np.diag(cov)).sum()
    assert loss == pytest.approx(best, abs=0.1)
    record = own.apply(state.params, PART.seen(source_of(np.where(MASK, examples(), np.nan))[0]))
    np.testing.assert_allclose(np.exp(record.log_var[0]), np.diag(cov), rtol=0.25)
    np.testing.assert_allclose(record.mean, exact_latent(np.eye(D)[MASK], examples()[:, MASK], 0.0)[0], atol=0.35)
    jax.tree.map(np.testing.assert_array_equal, state.model_state["frozen"], EXACT)  # never moved


def test_a_trained_proposal_is_better_than_the_prior_and_as_right(encoder, drawn):
    own, state, _ = encoder
    proposal = TrainedEncoder(own, state.params, state.model_state)
    inverted = invert(PART, Importance(500, proposal))
    exact = stats.multivariate_normal.logpdf(examples()[:, MASK], OFFSET[MASK], covariance()[np.ix_(MASK, MASK)])
    np.testing.assert_allclose(inverted.diagnostics["log_evidence"], exact, atol=0.1)
    share = inverted.diagnostics["effective_samples"] / 500
    assert share.min() > 0.6
    assert share.min() > drawn["importance"].diagnostics["effective_samples"].max() / 1000
    means, cov = exact_latent(np.eye(D)[MASK], examples()[:, MASK], 0.0)
    latent = (inverted.latent - means[:, None]).reshape(-1, K)
    np.testing.assert_allclose(np.cov(latent.T), cov, atol=0.04)


@pytest.mark.slow
def test_chains_may_begin_at_a_trained_proposal(encoder):
    own, state, _ = encoder
    proposal = TrainedEncoder(own, state.params, state.model_state)
    still = invert(PART, Langevin(1e-9, steps=2, burn_in=0, start=Importance(500, proposal)))
    means, cov = exact_latent(np.eye(D)[MASK], examples()[:, MASK], 0.0)
    np.testing.assert_allclose(np.cov((still.latent - means[:, None]).reshape(-1, K).T), cov, atol=0.04)


def test_a_partial_encoder_of_a_linear_observation_sees_y_drawn_anew(key):
    """With r = N(y, I) the loss is log 2π + E |z - y|² / 2, z ~ q(z|x) and y = A x + noise."""
    own, batch = jaxvae.models.PartialEncoder(lambda y: (y, jnp.zeros_like(y))), source_of(examples())[0]
    loss_fn = partial(partial_encoder_loss, own, step=0, model=MODEL, observation=Linear(MIX, NOISE))
    _, model_state = init_partial_encoder(own, EXACT, (), Linear(MIX, NOISE), batch, key=key)
    losses = jax.vmap(lambda key: loss_fn({}, model_state, batch, key=key)[0])
    losses = np.asarray(jax.jit(losses)(jax.random.split(key, 4000)), float)
    means, cov = exact_latent(np.eye(D), examples(), 0.0)
    squared = np.square(means - examples() @ MIX.T).sum(axis=1).mean() + np.trace(cov) + K * NOISE**2
    assert losses.mean() == pytest.approx(np.log(2 * np.pi) + squared / 2, abs=4 * losses.std() / np.sqrt(4000))
    assert losses.std() > 0.1


@pytest.mark.slow
def test_conditional_models_are_inverted_given_their_condition(key):
    """x = z + c: what is visible of the first entry leaves z, which tells the second."""
    model = jaxvae.CVAE(
        lambda x, c: (x[:, :1] - c, jnp.full((len(x), 1), -4.0)),
        lambda z, c: jnp.concatenate([z + c, z - c], axis=1),
        partial(DiagGaussian, log_var=-4.0),
        latent_dim=1,
    )
    x, condition = jnp.float32([[1.0, 0.0], [2.0, 0.0]]), jnp.float32([[1.0], [3.0]])
    observation, method = Visible(np.array([True, False])), Gibbs(10, 5)
    inverted = invert(observation, method, model=model, params={}, x=x, num_draws=200, condition=condition, key=key)
    shrunk = 1 / (1 + np.exp(-4.0))
    np.testing.assert_allclose(inverted.mean[:, 1], [0 * shrunk - 1, -1 * shrunk - 3], atol=0.05)


@pytest.mark.slow
def test_likelihoods_of_pixels_are_inverted_too(key):
    """Draws of categories come in the model's units, [0, 1]."""
    shape = (4, 4, 1)
    mask, x = np.arange(16).reshape(shape) >= 8, np.round(np.random.default_rng(0).random((3, *shape)) * 4) / 4
    model = jaxvae.VAE(jaxvae.MLPEncoder(2, (4,)), jaxvae.MLPDecoder((*shape, 5), (4,)), Categorical)
    params, feed = jax.jit(model.init)(key, jnp.zeros((1, *shape))), source_of(x)
    method = Gibbs(4, 2, Importance(2))
    inverted = evaluation.invert(model, params, (), *feed, Visible(mask), key=key, method=method, num_draws=6)
    assert set(np.unique(inverted.draws[:, :, ~mask]) * 4) <= set(range(5))
    np.testing.assert_array_equal(inverted.draws[:, 3][:, mask], np.float32(x)[:, mask])
    small = Linear(lambda x: x.reshape(len(x), 2, 2, 2, 2, 1).mean(axis=(2, 4)), 0.1, of_mean=True)
    source = {"y": small(feed[0]["x"]), "index": feed[0]["index"]}
    options = {"key": key, "method": Importance(10), "num_draws": 2}
    assert evaluation.invert(model, params, (), source, feed[1], small, **options).mean.shape == (3, *shape)


BAD = {
    "no method": (PART, "gibbs", TypeError, "method must be Importance"),
    "gibbs of a function of x": (Linear(MIX, 1.0), Gibbs(), TypeError, "of a Linear observation no entry is known"),
    "no y": (Linear(MIX, 1.0), Importance(10), ValueError, "the source needs 'y' for Linear, it has index, x"),
    "no mask": (Visible(), Importance(10), ValueError, "nothing says which entries are visible"),
    "a mask of another shape": (Visible(MASK[:3]), Importance(10), ValueError, r"mask must be \(4,\), .* got \(3,\)"),
}


@pytest.mark.parametrize("fault", BAD)
def test_what_does_not_go_together_is_refused(fault):
    observation, method, error, text = BAD[fault]
    with pytest.raises(error, match=text):
        invert(observation, method)


def test_operators_that_are_not_linear_are_refused():
    record, y = DiagGaussian(jnp.zeros((3, D)), jnp.zeros((1, D))), {"y": jnp.zeros((3, D))}
    for operator, text in (
        (jnp.abs, "is not linear"),
        (lambda x: x + 1, "is not linear"),
        (lambda x: x - x.mean(axis=0, keepdims=True), "mixes the examples of a batch"),
        (lambda x: x.sum(axis=0), r"must map x \(3, 4\) to \(3, ...\)"),
    ):
        for of_mean in (False, True):
            with pytest.raises(ValueError, match=text):
                Linear(operator, 1.0, of_mean=of_mean).log_prob(record, y)
    with pytest.raises(ValueError, match=r"y must be \(3, 2\), as A x is, got \(3, 4\)"):
        Linear(MIX, 1.0).log_prob(record, y)
    with pytest.raises(ValueError, match=r"operator \(2, 3\) takes vectors of 3, but x \(4,\) has 4"):
        Linear(MIX[:, :3], 1.0).log_prob(record, y)
    with pytest.raises(TypeError, match=r"no simple density where p\(x\|z\) is a Bernoulli"):
        Linear(MIX, 1.0).log_prob(Bernoulli(jnp.zeros((3, D))), {"y": jnp.zeros((3, 2))})


def test_options_out_of_range_are_refused(key):
    for make, error, text in (
        (lambda: Visible(np.ones(3)), TypeError, "mask must be bool, true where x is visible, got float64"),
        (lambda: Visible(np.ma.array([True, True], mask=[0, 1])), TypeError, "mask is a masked array"),
        (lambda: Linear(np.ma.array(MIX, mask=MIX > 0), 1.0), TypeError, "operator is a masked array"),
        (lambda: Linear(MIX, 0.0), ValueError, "scale must be a positive number"),
        (lambda: Linear(np.ones(3), 1.0), TypeError, "a floating matrix"),
        (lambda: Importance(1), ValueError, "num_samples must be at least 2, got 1"),
        (lambda: Gibbs(steps=1), ValueError, "steps must be at least 2, got 1"),
        (lambda: Langevin(burn_in=-1), ValueError, "burn_in must be at least 0"),
        (lambda: Langevin(step_size=0.0), ValueError, "step_size must be a positive number, got 0"),
        (lambda: Gibbs(start="prior"), TypeError, "start must be Importance"),
        (lambda: invert(PART, Importance(10), num_draws=1), ValueError, "num_draws must be at least 2, got 1"),
    ):
        with pytest.raises(error, match=text):
            make()
    quantised = jaxvae.VQVAE(
        jaxvae.ResidualEncoder(4, (8,), 1, 4), jaxvae.ResidualDecoder(1, (8,), 1, 4), jaxvae.EMACodebook(8)
    )
    layers = {"encoders": (lambda x: (x, x),) * 2, "decoders": (lambda z: z, lambda z: (z, z))}
    for model in (quantised, jaxvae.Autoencoder(lambda x: x, lambda z: z), jaxvae.HierarchicalVAE(**layers)):
        with pytest.raises(TypeError, match="has no latent_prior: invert is for models of one array of latents"):
            invert(PART, Importance(10), model=model)
    with pytest.raises(ValueError, match="none of the 10 samples gives y of 1 examples any probability"):
        invert(PART, Importance(10), x=np.where(np.arange(N)[:, None] == 2, np.nan, examples()), num_draws=2)
    with pytest.raises(ValueError, match="model_state must hold 'frozen'"):
        partial_encoder_loss(None, {}, (), {}, key=key, step=0, model=None, observation=None)
