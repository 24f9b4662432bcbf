"""The contract that every variant keeps."""

from functools import cache, partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from variants import SHAPE, VARIANTS, batch, mlp

import jaxvae
from jaxvae import losses
from jaxvae.distributions import Bernoulli, DiagGaussian

B = 6
# Which the slow run takes: their likelihoods and objectives have tests of their own, their networks others here.
SELDOM = {
    *("categorical", "one learned variance, four draws", "a variance per pixel", "continuous bernoulli"),
    *("negative binomial", "beta", "free bits", "hierarchical", "gaussian", "discretised logistic", "capacity"),
    *("flow posterior and prior", "mixture posterior", "categorical latents", "vq-vae, finite scalar"),
    *("pixelcnn++", "pixelrnn", "pixel vae"),
    "diffusion, simple",
}


def over(names, seldom=SELDOM):
    """A test of these variants, some of them slow."""
    marks = {name: [pytest.mark.slow] * (name in seldom) for name in names}
    return pytest.mark.parametrize(
        "variant", [pytest.param(VARIANTS[name], id=name, marks=marks[name]) for name in names]
    )


def names_where(condition):
    return [name for name, variant in VARIANTS.items() if condition(variant)]


def first_of_each(names, with_options=True):
    """The first variant of each objective and kind of model."""
    kinds = {}
    for name in names:
        objective = VARIANTS[name].loss_fn.__wrapped__
        options = frozenset(objective.keywords) - {"beta"} if with_options else ()
        kinds.setdefault((objective.func.__qualname__, options, type(VARIANTS[name].model)), name)
    return kinds.values()


every_variant = over(VARIANTS)
every_random_variant = over(names_where(lambda v: v.draws))
every_variant_of_one_size = over(names_where(lambda v: not v.any_size))
every_variant_of_floats = over(names_where(lambda v: not v.levels))
gaussian = names_where(lambda v: type(v.model) is jaxvae.VAE and v.model.posterior is DiagGaussian)
every_vae = over(gaussian)
means_over_examples = names_where(lambda v: not v.pairs)
every_mean_over_examples = over(
    means_over_examples, {*means_over_examples} - {*first_of_each(means_over_examples)} | SELDOM
)
# One that is sampled, one that looks at the batch, one with a state.
every_objective = over(
    first_of_each(VARIANTS, with_options=False), {*VARIANTS} - {"iwae", "total correlation", "vq-vae"}
)
plain = [name for name in gaussian if VARIANTS[name].model.prior == jaxvae.StandardNormal()]
# The first of each model: its log weights know nothing of the objective.
every_plain_vae = over({VARIANTS[name].model: name for name in reversed(plain)}.values())


@cache
def init(variant, seed=1):
    return variant.init(key=jax.random.key(seed))


@cache
def value_and_gradient(loss_fn):
    return jax.jit(jax.value_and_grad(loss_fn, has_aux=True))


def loss(variant, params, model_state, examples, key, step=0):
    """Of the program that has the gradient too, which is compiled anyway."""
    return value_and_gradient(variant.loss_fn)(params, model_state, examples, key=key, step=jnp.int32(step))[0]


@every_variant
def test_init_is_a_function_of_the_key(variant):
    chex.assert_trees_all_equal(init(variant), variant.init(key=jax.random.key(1)))
    leaves = zip(jax.tree.leaves(init(variant)), jax.tree.leaves(init(variant, seed=2)), strict=True)
    assert any(not np.array_equal(a, b) for a, b in leaves)
    for leaf in jax.tree.leaves(init(variant)):
        assert leaf.dtype == jnp.float32


@every_variant
def test_the_loss_is_a_float32_scalar_with_float32_metrics_and_finite_gradients(variant, key):
    params, model_state = init(variant)
    (value, (_, metrics)), grads = value_and_gradient(variant.loss_fn)(
        params, model_state, batch(B), key=key, step=jnp.int32(0)
    )
    chex.assert_shape([value, *metrics.values()], ())
    assert {m.dtype for m in (value, *metrics.values())} == {jnp.dtype(jnp.float32)}
    chex.assert_tree_all_finite(grads)
    assert value == metrics["loss"]
    assert float(optax.tree.norm(grads)) > 0
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.any(grad), f"no gradient reaches {jax.tree_util.keystr(path)}"


@every_mean_over_examples
def test_loss_and_gradient_do_not_change_when_the_batch_is_doubled(variant, key):
    params, model_state = init(variant)
    once = batch(B)
    twice = jax.tree.map(lambda x: jnp.concatenate([x, x]), once)
    grad = partial(value_and_gradient(variant.loss_fn), params, model_state, key=key, step=jnp.int32(0))
    (value, (_, metrics)), gradient = grad(once)
    (value2, (_, metrics2)), gradient2 = grad(twice)
    tolerance = variant.tolerance
    np.testing.assert_allclose(value, value2, rtol=tolerance)
    chex.assert_trees_all_close(metrics, metrics2, rtol=tolerance)
    chex.assert_trees_all_close(gradient, gradient2, rtol=tolerance, atol=tolerance)


@every_random_variant
def test_the_noise_belongs_to_the_example_and_the_step(variant, key):
    params, model_state = init(variant)
    examples = batch(B)
    order = jnp.array([4, 0, 5, 2, 1, 3])
    shuffled = {name: values[order] for name, values in examples.items()}
    value, (_, metrics) = loss(variant, params, model_state, examples, key)
    np.testing.assert_allclose(value, loss(variant, params, model_state, shuffled, key)[0], rtol=1e-5)
    _, (_, other) = loss(variant, params, model_state, examples, jax.random.key(5))
    assert metrics["loss"] != other["loss"]
    elsewhere = {**examples, "index": examples["index"] + 100}
    assert value != loss(variant, params, model_state, elsewhere, key)[0]


@every_objective
def test_training_compiles_once_and_lowers_the_loss(variant, key):
    optimizer = optax.adam(1e-2)
    state = jaxvae.init_train_state(lambda *, key: init(variant), optimizer, key=key)  # compiles nothing anew
    examples = batch(B)
    step = jax.jit(chex.assert_max_traces(jaxvae.make_train_step(variant.loss_fn, optimizer).__call__, n=1))
    before = loss(variant, state.params, state.model_state, examples, key, step=100)[0]
    for _ in range(60):
        state, _ = step(state, examples)
    after = loss(variant, state.params, state.model_state, examples, key, step=100)[0]
    assert int(state.step) == 60
    assert int(state.first_bad) == -1
    assert after < before - 1


@every_variant_of_floats
def test_eight_bit_x_is_refused(variant, key):
    examples = {**batch(B), "x": jnp.zeros((B, *SHAPE), jnp.uint8)}
    with pytest.raises(TypeError, match=r"x must be floating, got uint8; scale it first"):
        loss(variant, *init(variant), examples, key)


@every_variant_of_one_size
@pytest.mark.parametrize("shape", [(8, 8, 1), (B, 4, 16, 1)])  # no batch axis; as many pixels, in another shape
def test_x_of_another_shape_is_refused(variant, shape, key):
    examples = {"x": jnp.zeros(shape), "index": jnp.arange(shape[0])}
    without_size = rf"x \({shape[0]}, .*\) is not \(batch, \.\.\.\) as the model's"  # of latents, by which x's is found
    with pytest.raises(ValueError, match=rf"expected x \(batch, 8, 8, 1\), got \({shape[0]}, |{without_size}"):
        loss(variant, *init(variant), examples, key)


@every_random_variant
def test_an_old_style_key_is_refused(variant):
    with pytest.raises(TypeError, match=r"key must come from jax.random.key, got uint32\[2\]"):
        loss(variant, *init(variant), batch(B), jax.random.PRNGKey(0))


@every_vae
def test_methods_have_their_shapes(variant, key):
    model, x = variant.model, batch(B)["x"]

    def call(params, *arguments, method, then=lambda output: output, **keywords):
        return jax.eval_shape(lambda: then(model.apply(params, *arguments, method=method, **keywords)))

    params, _ = init(variant)
    posterior = call(params, x, method="encode")
    chex.assert_shape(jax.tree.leaves(posterior), (B, 3))
    latent = jnp.zeros((B, 3))
    for shape, then in (
        ((B, *SHAPE), lambda record: record.mean),
        ((B, *SHAPE), lambda record: record.mode()),
        ((B, *SHAPE), lambda record: record.sample(key=key)),
        ((B,), lambda record: record.log_prob(x)),
    ):
        chex.assert_shape(call(params, latent, method="decode", then=then), shape)
    sample = call(params, 4, key=key, method="sample", then=lambda record: record.mean)
    chex.assert_shape(sample, (4, *SHAPE))
    terms = call(params, x, key=key, num_samples=5, method="terms")
    chex.assert_shape([terms.log_likelihood, terms.log_ratio], (5, B))
    assert {name: rate.shape[:2] in ((1, B), (5, B)) for name, rate in terms.rates.items()} == {"z": True}


@every_plain_vae
def test_log_weights_are_the_sampled_elbo(variant, key):
    """log p(x|z) + log p(z) - log q(z|x), each from its own float64 formula, at the same draws."""
    params, model_state = init(variant)
    examples = batch(B)
    model = variant.model
    log_weights = variant.log_weights_fn(params, model_state, examples, key=key, num_samples=3)

    @jax.jit
    def steps(key):
        posterior = model.apply(params, examples["x"], method="encode")
        keys = jaxvae.keys.sample_keys(jaxvae.keys.example_keys(key, examples["index"]), 3)
        latents = [posterior.sample(key=keys[s]) for s in range(3)]
        return posterior, latents, [model.apply(params, z, method="decode").log_prob(examples["x"]) for z in latents]

    posterior, latents, log_probs = steps(key)
    for s, (z, log_x) in enumerate(zip(latents, log_probs, strict=True)):
        z, mean, log_var = (np.asarray(a, np.float64) for a in (z, *posterior))
        log_ratio = 0.5 * ((z - mean) ** 2 / np.exp(log_var) + log_var - z**2).sum(1)
        np.testing.assert_allclose(log_weights[s], log_x + log_ratio, rtol=2 * variant.tolerance)


def test_more_log_weights_begin_with_the_same_ones(key):
    variant = VARIANTS["bernoulli"]
    few, more = (variant.log_weights_fn(*init(variant), batch(B), key=key, num_samples=n) for n in (3, 5))
    np.testing.assert_allclose(more[:3], few, rtol=variant.tolerance)


def test_the_elbo_equals_a_float64_sum_over_the_example(key):
    """Nothing is averaged over pixels, so beta = 1 means the same at every resolution."""
    variant = VARIANTS["bernoulli"]
    params, model_state = init(variant)
    examples = batch(B)
    value, (_, metrics) = loss(variant, params, model_state, examples, key)
    posterior = variant.model.apply(params, examples["x"], method="encode")
    z = posterior.sample(key=jaxvae.keys.sample_keys(jaxvae.keys.example_keys(key, examples["index"]), 1)[0])
    logits = np.asarray(variant.model.apply(params, z, method="decode").logits, np.float64)
    x, mean, log_var = (np.asarray(a, np.float64) for a in (examples["x"], *posterior))
    distortion = (np.logaddexp(0, logits) - x * logits).reshape(B, -1).sum(1).mean()
    rate = 0.5 * (np.exp(log_var) + mean**2 - 1 - log_var).sum(1).mean()
    np.testing.assert_allclose(metrics["distortion"], distortion, rtol=1e-6)
    np.testing.assert_allclose(metrics["rate"], rate, rtol=1e-5)
    np.testing.assert_allclose(value, distortion + rate, rtol=1e-6)


def test_beta_weighs_the_rate_and_a_schedule_follows_the_step(key):
    params, model_state = init(VARIANTS["bernoulli"])
    plain = loss(VARIANTS["bernoulli"], params, model_state, batch(B), key)[1][1]
    four = loss(VARIANTS["beta"], params, model_state, batch(B), key)[1][1]
    assert {k: four[k] for k in ("rate", "distortion", "negative_elbo")} == {
        k: plain[k] for k in ("rate", "distortion", "negative_elbo")
    }
    np.testing.assert_allclose(four["loss"], plain["distortion"] + 4 * plain["rate"], rtol=1e-6)
    for step, weight in ((0, 0.25), (1, 0.5), (3, 1.0), (50, 1.0)):
        value, (_, metrics) = loss(VARIANTS["beta schedule"], params, model_state, batch(B), key, step)
        np.testing.assert_allclose(value, metrics["distortion"] + weight * metrics["rate"], rtol=1e-6)


@pytest.mark.parametrize("beta", [-1.0, float("nan"), float("inf")])
def test_an_impossible_beta_is_refused(beta, key):
    variant = VARIANTS["bernoulli"]
    with pytest.raises(ValueError, match=f"beta must be a finite number, zero or more, got {beta}"):
        jaxvae.vae_loss(variant.model, *init(variant), batch(B), key=key, step=0, beta=beta)


@pytest.mark.slow
def test_beta_may_be_traced(key):
    variant = VARIANTS["bernoulli"]
    params, model_state = init(variant)

    def value(beta):
        return jaxvae.vae_loss(variant.model, params, model_state, batch(B), key=key, step=0, beta=beta)[0]

    values = jax.jit(jax.vmap(value))(jnp.float32([0, 1, 4]))
    np.testing.assert_allclose(values, [value(0.0), value(1.0), value(4.0)], rtol=1e-5)


def test_any_callables_make_a_vae_and_one_without_latent_dim_says_so(key):
    model = jaxvae.VAE(
        encoder=lambda x: (x.reshape(len(x), -1)[:, :2], jnp.zeros((len(x), 2))),
        decoder=lambda latent: jnp.broadcast_to(latent.sum(-1)[:, None, None, None], (len(latent), *SHAPE)),
        likelihood=partial(DiagGaussian, log_var=0.0),
    )
    value, _ = jaxvae.vae_loss(model, {}, (), batch(B), key=key, step=0)
    assert np.isfinite(value)
    with pytest.raises(ValueError, match=r"pass VAE\(..., latent_dim=D\)"):
        model.apply({}, 3, key=key, method="sample")
    known = model.clone(latent_dim=2)
    assert known.apply({}, 3, key=key, method="sample").mean.shape == (3, *SHAPE)


@pytest.mark.slow
def test_the_likelihood_of_images_of_any_size_is_that_of_their_pixels(key):
    """Three halvings end at 8×16 for 7×12 pixels: what lies beyond is in no sum, and moves nothing."""
    shape, channels = (7, 12, 3), (4, 4, 4)
    decoder, whole = jaxvae.ConvDecoder(shape, channels), jaxvae.ConvDecoder((8, 16, 3), channels)
    model = jaxvae.VAE(jaxvae.ConvEncoder(2, channels), decoder)
    x = jax.random.uniform(key, (2, *shape))
    params, latent = jax.jit(model.init)(key, x), jnp.float32([[0.3, -1.0], [0.1, 0.7]])
    log_prob = model.apply(params, x, latent[None], method="log_likelihood")[0]
    logits = np.asarray(whole.apply({"params": params["params"]["decoder"]}, latent), np.float64)[:, :7, :12]
    expected = np.asarray(x, np.float64) * logits - np.logaddexp(0, logits)
    np.testing.assert_allclose(log_prob, expected.sum(axis=(1, 2, 3)), rtol=1e-5)

    batch = {"x": x, "index": jnp.arange(2)}
    gradient = jax.jit(jax.grad(lambda p: jaxvae.vae_loss(model, p, (), batch, key=key, step=0)[0]))(params)
    assert all(np.isfinite(leaf).all() and np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_impossible_sizes_are_refused(key):
    with pytest.raises(ValueError, match="latent_dim must be at least 1, got 0"):
        jaxvae.VAE(*mlp(latent_dim=0), Bernoulli).init(key, jnp.zeros((1, *SHAPE)))
    variant = VARIANTS["bernoulli"]
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        variant.log_weights_fn(*init(variant), batch(B), key=key, num_samples=0)


def test_the_posterior_stays_finite_however_far_the_network_runs():
    mean, log_var = jnp.float32([[0.0]]), jaxvae.networks.soft_bound(jnp.float32([[1e6]]), 20.0)
    assert np.isfinite(losses.gaussian_kl(mean, log_var))
    x = jnp.linspace(-2, 2, 9)
    np.testing.assert_allclose(jaxvae.networks.soft_bound(x, 20.0), x, rtol=4e-3)
    assert jax.grad(lambda x: jaxvae.networks.soft_bound(x, 20.0))(jnp.float32(60.0)) > 0


def test_bfloat16_computes_nearly_the_same(key):
    narrow, wide = VARIANTS["bfloat16"], VARIANTS["convolutional"]
    params, model_state = init(wide)
    chex.assert_trees_all_equal(params, init(narrow)[0])
    one, other = (float(loss(v, params, model_state, batch(B), key)[0]) for v in (wide, narrow))
    assert one != other
    np.testing.assert_allclose(one, other, rtol=1e-2)
