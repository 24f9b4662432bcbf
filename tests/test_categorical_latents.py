"""Categorical latents: one-hot records, relaxed draws, exact enumeration, and priors over codes."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special, stats
from variants import SHAPE, batch

import jaxvae
from jaxvae.distributions import OneHotCategorical, RelaxedOneHot, SharedOneHot, StraightThroughOneHot, rate
from jaxvae.keys import example_keys
from jaxvae.networks import CategoricalEncoder
from jaxvae.objectives import enumerated_vae_loss
from jaxvae.posteriors import GumbelSoftmax
from jaxvae.priors import AutoregressiveCategorical, CategoricalPrior

B, N, K, NUM = 5, 2, 3, 40_000
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(B, N, K))


def model_of(prior=None, **options):
    return jaxvae.VAE(
        CategoricalEncoder(N, K, (16,)),
        jaxvae.MLPDecoder(SHAPE, (16,)),
        posterior=GumbelSoftmax(**options),
        prior=prior or CategoricalPrior(N, K),
    )


MODEL = model_of()


@pytest.fixture(scope="module")
def params():
    fresh = jax.jit(MODEL.init)(jax.random.key(0), batch(1)["x"])
    return jax.tree.map(lambda leaf: 2 * leaf, fresh)


def codes():
    return np.eye(K)[list(itertools.product(range(K), repeat=N))]  # [K^N, N, K]


# Records


def test_masses_sum_to_one_and_draws_follow_them(key):
    record = OneHotCategorical(jnp.float32(LOGITS[:1]))
    masses = [np.exp(record.log_prob(jnp.float32(code[None])))[0] for code in codes()]
    expected = [special.softmax(LOGITS[0], axis=1)[np.arange(N), code.argmax(axis=1)].prod() for code in codes()]
    np.testing.assert_allclose(masses, expected, rtol=1e-5)
    assert sum(masses) == pytest.approx(1, rel=1e-5)
    many = OneHotCategorical(jnp.broadcast_to(record.logits, (NUM, N, K)))
    np.testing.assert_allclose(np.asarray(many.sample(key=key)).mean(axis=0), record.mean[0], atol=0.01)
    assert set(np.unique(many.sample(key=key))) == {0.0, 1.0}
    np.testing.assert_array_equal(record.mode()[0].argmax(axis=1), LOGITS[0].argmax(axis=1))


def test_the_rate_is_scipys_and_to_the_uniform_one_log_k_less_the_entropy():
    other = RNG.normal(size=(1, N, K))
    p, q = special.softmax(LOGITS, axis=-1), special.softmax(other, axis=-1)
    for kind in (
        OneHotCategorical,
        partial(RelaxedOneHot, temperature=0.5),
        partial(StraightThroughOneHot, temperature=2),
    ):
        posterior = kind(jnp.float32(LOGITS))
        found = rate(posterior, SharedOneHot(jnp.float32(other)), jnp.zeros((1, B, N, K)), jnp.zeros((1, B)))
        np.testing.assert_allclose(found[0], special.rel_entr(p, q).sum(axis=-1), rtol=1e-4)
        uniform = rate(posterior, SharedOneHot(jnp.zeros((1, N, K))), jnp.zeros((1, B, N, K)), jnp.zeros((1, B)))
        np.testing.assert_allclose(uniform[0], np.log(K) - stats.entropy(p, axis=-1), rtol=1e-4)


def test_impossible_categories_cost_nothing_where_they_are_not():
    record = OneHotCategorical(jnp.array([[[0.0, -jnp.inf, 0.0]]]))
    value, gradient = jax.value_and_grad(lambda x: record.log_prob(x).sum())(jnp.array([[[1.0, 0.0, 0.0]]]))
    assert value == pytest.approx(-np.log(2))
    assert np.isfinite(gradient).all()


def test_relaxed_draws_have_the_frequencies_of_the_hard_ones_and_harden_as_they_cool(key):
    logits = jnp.broadcast_to(jnp.float32(LOGITS[:1]), (NUM, N, K))
    probabilities = special.softmax(LOGITS[0], axis=-1)
    for temperature in (0.1, 1.0, 5.0):
        draws = RelaxedOneHot(logits, temperature).sample(key=key)
        np.testing.assert_allclose(draws.sum(axis=-1), 1, rtol=1e-5)
        first = np.eye(K)[np.asarray(draws).argmax(axis=-1)].mean(axis=0)
        np.testing.assert_allclose(first, probabilities, atol=0.01)  # of the largest, at any temperature
    largest = [float(RelaxedOneHot(logits[:1000], t).sample(key=key).max(axis=-1).mean()) for t in (0.1, 1.0, 5.0)]
    assert largest[0] > 0.95 > largest[1] > largest[2]
    hard, pull = jax.vjp(lambda each: StraightThroughOneHot(each, 1.0).sample(key=key), logits[:10])
    _, smooth = jax.vjp(lambda each: RelaxedOneHot(each, 1.0).sample(key=key), logits[:10])
    assert set(np.unique(np.round(hard, 6))) == {0.0, 1.0}
    np.testing.assert_allclose(pull(LOGITS[:1] + 0 * hard), smooth(LOGITS[:1] + 0 * hard), rtol=1e-5)


def test_an_example_draws_from_its_own_key(key):
    keys = example_keys(key, jnp.arange(B))
    for kind in (OneHotCategorical, partial(RelaxedOneHot, temperature=0.5)):
        together = kind(jnp.float32(LOGITS)).sample(key=keys)
        np.testing.assert_array_equal(kind(jnp.float32(LOGITS[2:4])).sample(key=keys[2:4]), together[2:4])


# The exact bound


def test_enumeration_is_the_sum_over_all_codes_and_sampling_agrees(params, key):
    loss, (_, metrics) = enumerated_vae_loss(MODEL, params, (), batch(B), key=key, step=0)
    x = batch(B)["x"]
    posterior = MODEL.apply(params, x, method="encode")
    total = np.zeros(B)
    for code in codes():
        z = jnp.broadcast_to(jnp.float32(code), (B, N, K))
        log_q = np.asarray(posterior.log_prob(z), float)
        total += np.exp(log_q) * (MODEL.apply(params, z, method="decode").log_prob(x) - N * np.log(K) - log_q)
    assert float(loss) == pytest.approx(-float(total.mean()), rel=1e-5)
    kl = rate(posterior, SharedOneHot(jnp.zeros((1, N, K))), z[None], jnp.zeros((1, B)))
    assert float(metrics["rate"]) == pytest.approx(float(kl.sum()) / B, rel=1e-4)


def test_enumeration_passes_over_impossible_codes(key):
    """0 log 0 = 0, where a logit is -inf: the loss and its gradient are those of the categories that there are."""
    weights = np.float32(np.random.default_rng(0).normal(size=(3, 4)))
    few, many = jnp.float32([[0.3, 1.0]]), lambda logits: jnp.pad(logits, ((0, 0), (0, 1)), constant_values=-jnp.inf)

    def loss(logits, extend, weights):
        count = weights.shape[0]
        encoder = lambda x: (jnp.broadcast_to(extend(logits)[None], (len(x), 1, count)),)  # noqa: E731
        prior = lambda: SharedOneHot(jnp.zeros((1, 1, count)))  # noqa: E731
        model = jaxvae.VAE(encoder, lambda z: z[:, 0] @ weights, posterior=GumbelSoftmax(), prior=prior)
        return enumerated_vae_loss(model, {"params": {}}, (), {"x": jnp.ones((2, 4))}, key=key, step=0, beta=0.5)[0]

    expected, of_few = jax.value_and_grad(loss)(few, lambda each: each, weights[:2])
    found, of_many = jax.value_and_grad(loss)(few, many, weights)
    assert float(found) == pytest.approx(float(expected) + 0.5 * np.log(3 / 2), rel=1e-5)  # the prior has three
    np.testing.assert_allclose(of_many, of_few, rtol=1e-4)


def test_in_evaluation_draws_are_one_hot_and_the_sampled_bound_is_the_exact_one(params, key):
    exact = float(enumerated_vae_loss(MODEL, params, (), batch(B), key=key, step=0)[0])
    terms_of = partial(jaxvae.objectives.terms_of, MODEL, num_samples=4000, train=False)
    terms, _ = jax.jit(terms_of)(params, (), batch(B), key=key)
    elbo = np.asarray(terms.log_likelihood + terms.log_ratio, float)
    assert -elbo.mean() == pytest.approx(exact, abs=5 * elbo.std() / np.sqrt(elbo.size) + 1e-3)
    source = {name: np.asarray(values) for name, values in batch(B).items()}
    estimate = jaxvae.log_likelihood(MODEL, params, (), source, np.arange(B)[None], key=key, num_samples=4000)
    decode = partial(MODEL.apply, params, method="decode")
    of_each = [decode(jnp.broadcast_to(jnp.float32(code), (B, N, K))).log_prob(batch(B)["x"]) for code in codes()]
    log_p = special.logsumexp(np.asarray(of_each, float), axis=0) - N * np.log(K)
    assert estimate.nll == pytest.approx(-log_p.mean(), abs=5 * estimate.nll_standard_error + 0.01)


@pytest.mark.slow
def test_relaxed_gradients_approach_the_exact_ones_as_they_cool(params, key):
    """A biased gradient, whose bias falls with the temperature: its direction is the exact one's."""
    exact = jax.grad(lambda p: enumerated_vae_loss(MODEL, p, (), batch(B), key=key, step=0)[0])(params)
    exact = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(exact["params"]["encoder"])])

    def relaxed(temperature):
        loss = partial(jaxvae.vae_loss, model_of(temperature=temperature), num_samples=300)
        gradient = jax.jit(jax.grad(lambda p: loss(p, (), batch(B), key=key, step=0)[0]))(params)
        return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(gradient["params"]["encoder"])])

    cosine = lambda t: relaxed(t) @ exact / np.linalg.norm(relaxed(t)) / np.linalg.norm(exact)  # noqa: E731
    assert cosine(0.3) > 0.95
    assert cosine(0.3) > cosine(10.0)


@pytest.mark.slow
def test_training_relaxed_and_enumerated_lowers_the_exact_bound(params, key):
    fresh = jax.jit(MODEL.init)(jax.random.key(3), batch(1)["x"])
    examples = batch(64)
    evaluate = jax.jit(lambda p: enumerated_vae_loss(MODEL, p, (), examples, key=key, step=0)[0])
    found = {}
    for name, loss in {
        "enumerated": partial(enumerated_vae_loss, MODEL),
        "relaxed": partial(jaxvae.vae_loss, MODEL),
        "straight through": partial(jaxvae.vae_loss, model_of(straight_through=True)),
    }.items():
        optimizer = optax.adam(0.01)
        state = jaxvae.init_train_state(lambda *, key: (fresh, ()), optimizer, key=jax.random.key(1))
        step = jax.jit(jaxvae.make_train_step(loss, optimizer))
        for _ in range(150):
            state, _ = step(state, examples)
        found[name] = float(evaluate(state.params))
    assert max(found.values()) < float(evaluate(fresh)) - 1
    assert max(found.values()) < found["enumerated"] + 1.5


def test_the_temperature_follows_its_schedule_in_training_alone(params, key):
    model = model_of(temperature=optax.linear_schedule(2.0, 0.5, 3))
    variables = jax.jit(model.init)(key, batch(1)["x"])
    collections = {name: tree for name, tree in variables.items() if name != "params"}
    assert jax.tree.leaves(collections) == [0]
    loss = jax.jit(partial(jaxvae.vae_loss, model))
    state, seen = collections, []
    for _ in range(4):
        value, (state, _) = loss({"params": variables["params"]}, state, batch(B), key=key, step=0)
        seen.append(float(value))
    assert int(jax.tree.leaves(state)[0]) == 4
    at = [
        float(
            jax.jit(partial(jaxvae.vae_loss, model_of(temperature=t)))(
                params | {"params": variables["params"]}, (), batch(B), key=key, step=0
            )[0]
        )
        for t in (2.0, 1.5, 1.0, 0.5)
    ]
    np.testing.assert_allclose(seen, at, rtol=1e-5)
    evaluate = jaxvae.make_eval_step(partial(jaxvae.vae_loss, model))
    evaluate({"params": variables["params"]}, state, batch(B) | {"weight": jnp.ones(B)}, key=key, step=jnp.int32(0))
    assert int(jax.tree.leaves(state)[0]) == 4


# Priors


def test_an_autoregressive_prior_sums_to_one_is_causal_and_draws_what_it_scores(key):
    prior = AutoregressiveCategorical(3, K, (12,))
    variables = jax.jit(prior.init)(key)
    rng = np.random.default_rng(5)
    variables = jax.tree.map(lambda leaf: leaf + jnp.float32(rng.normal(size=leaf.shape)), variables)
    record = prior.apply(variables)
    every = jnp.float32(np.eye(K)[list(itertools.product(range(K), repeat=3))])
    masses = np.exp(np.asarray(record.log_prob(every), np.float64))
    assert masses.sum() == pytest.approx(1, rel=1e-5)
    draws = np.asarray(jax.jit(lambda: record.sample(NUM, key=key))()).argmax(axis=-1)
    frequency = np.bincount(draws @ [K * K, K, 1], minlength=K**3) / NUM
    np.testing.assert_allclose(frequency, masses, atol=5 * np.sqrt(0.25 / NUM))
    jacobian = np.abs(jax.jacfwd(lambda x: record._logits(x[None])[0])(every[5])).max(axis=(1, 3))  # [3, 3]
    assert (np.triu(jacobian) == 0).all()
    assert (jacobian[np.tril_indices(3, -1)] > 0).all()
    keys = example_keys(key, jnp.arange(6))
    np.testing.assert_array_equal(record.sample(6, key=keys)[2:4], record.sample(2, key=keys[2:4]))


@pytest.mark.parametrize(
    "prior",
    [pytest.param(CategoricalPrior(N, K, learned=True), marks=pytest.mark.slow), AutoregressiveCategorical(N, K, (8,))],
)
def test_learned_priors_train_and_are_drawn_from(prior, key):
    model = model_of(prior)
    params = jax.jit(model.init)(key, batch(1)["x"])
    gradient = jax.grad(lambda p: jaxvae.vae_loss(model, p, (), batch(B), key=key, step=0)[0])(params)["params"][
        "prior"
    ]
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient))
    plain = {"params": {part: params["params"][part] for part in ("encoder", "decoder")}}
    uniform = enumerated_vae_loss(MODEL, plain, (), batch(B), key=key, step=0)[0]
    assert float(enumerated_vae_loss(model, params, (), batch(B), key=key, step=0)[0]) == pytest.approx(
        float(uniform), rel=1e-5
    )
    assert model.apply(params, 7, key=key, method="sample").mean.shape == (7, *SHAPE)


def test_draws_without_a_gradient_and_relaxed_densities_are_refused(params, key):
    """In training; in evaluation one-hot draws are what is asked for."""
    hard = MODEL.clone(posterior=OneHotCategorical)
    with pytest.raises(TypeError, match=r"draws of a OneHotCategorical have no gradient.*GumbelSoftmax\(\)"):
        jaxvae.vae_loss(hard, params, (), batch(B), key=key, step=0)
    exact = [enumerated_vae_loss(model, params, (), batch(B), key=key, step=0)[0] for model in (hard, MODEL)]
    assert exact[0] == exact[1]
    doubly = partial(jaxvae.iwae_loss, MODEL, num_samples=2, doubly_reparameterized=True)
    with pytest.raises(TypeError, match=r"relaxed draws have no density log q\(z\|x\)"):
        doubly(params, (), batch(B), key=key, step=0)
    source = {name: np.asarray(values) for name, values in batch(B).items()}
    with pytest.raises(TypeError, match="draws of categorical latents have no gradient to refine"):
        jaxvae.evaluation.refine(MODEL, params, (), source, np.arange(B)[None], key=key, steps=1)


def test_what_does_not_fit_is_refused(params, key):
    wide = jaxvae.VAE(
        CategoricalEncoder(9, 3, (4,)),
        jaxvae.MLPDecoder(SHAPE, (4,)),
        posterior=GumbelSoftmax(),
        prior=CategoricalPrior(9, 3),
    )
    with pytest.raises(
        ValueError, match="9 variables of 3 categories have 19683 codes, more than 4096: train by vae_loss"
    ):
        enumerated_vae_loss(wide, wide.init(key, batch(1)["x"]), (), batch(B), key=key, step=0)
    with pytest.raises(ValueError, match="beta must be a finite number, zero or more, got -1"):
        enumerated_vae_loss(MODEL, params, (), batch(B), key=key, step=0, beta=-1.0)
    plain = jaxvae.VAE(jaxvae.MLPEncoder(2, (4,)), jaxvae.MLPDecoder(SHAPE, (4,)))
    with pytest.raises(
        TypeError, match=r"only categorical latents \[B, N, K\] can be enumerated, and q\(z\|x\) is a DiagG"
    ):
        enumerated_vae_loss(plain, plain.init(key, batch(1)["x"]), (), batch(B), key=key, step=0)
    for options, text in (({"temperature": 0.0}, "got 0.0"), ({"temperature": float("nan")}, "got nan")):
        with pytest.raises(ValueError, match=f"temperature must be a positive number, {text}"):
            GumbelSoftmax(**options).init(key, jnp.zeros((1, 2, 3)), train=True)
    with pytest.raises(ValueError, match=r"logits must be \[B, N, K\] of at least two categories, got \(1, 3\)"):
        GumbelSoftmax().init(key, jnp.zeros((1, 3)), train=False)
    for make in (partial(CategoricalPrior, 2, 1), partial(AutoregressiveCategorical, 2, 1)):
        with pytest.raises(ValueError, match="num_categories must be at least 2, got 1"):
            make().init(key)
    with pytest.raises(ValueError, match="hidden must hold at least one width"):
        AutoregressiveCategorical(2, 3, ()).init(key)
    with pytest.raises(ValueError, match="num_categories must be at least 2, got 1"):
        CategoricalEncoder(2, 1)
