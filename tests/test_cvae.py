"""Conditional VAEs: exact where everything is linear and Gaussian, and the routes that a condition takes."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from variants import SHAPE

import jaxvae
from jaxvae.distributions import DiagGaussian
from jaxvae.models.cvae import CVAE

B, CLASSES = 5, 3
RNG = np.random.default_rng(0)
# x = W z + V c + offset + noise, z ~ N(A c + shift, diag(spread)): W's columns are orthogonal, so q(z|x, c) is diagonal
W = np.linalg.qr(RNG.normal(size=(6, 2)))[0] * [1.5, 0.7]
V, OFFSET, NOISE = RNG.normal(size=(6, 3)), RNG.normal(size=6), 0.3
A, SHIFT, SPREAD = RNG.normal(size=(2, 3)), RNG.normal(size=2), np.array([0.5, 2.0])


def linear_gaussian(dependent, off=0.0, wider=0.0):
    """The model with its exact posterior, moved by `off` and widened by `wider` in log σ²; and its exact log p(x|c)."""
    spread = SPREAD if dependent else np.ones(2)
    variance = 1 / (1 / spread + np.square(np.linalg.norm(W, axis=0)) / NOISE)

    def prior_mean(c):
        return c @ A.T + SHIFT if dependent else np.zeros((len(c), 2))

    def spread_out(log_var, c):
        return jnp.broadcast_to(jnp.asarray(log_var, c.dtype), (len(c), 2))

    def prior(c):
        return c @ A.T + SHIFT[None], spread_out(np.log(SPREAD), c)

    def encoder(x, c):
        mean = prior(c)[0] if dependent else jnp.zeros((len(c), 2), c.dtype)
        residual = x - mean @ W.T - c @ V.T - OFFSET[None]
        return mean + residual @ W * (variance / NOISE)[None] + off, spread_out(np.log(variance) + wider, c)

    def decoder(z, c):
        return z @ W.T + c @ V.T + OFFSET[None]

    def log_prob(x, c):
        covariance = W @ np.diag(spread) @ W.T + NOISE * np.eye(6)
        mean = prior_mean(c) @ W.T + c @ V.T + OFFSET
        return np.array(
            [scipy.stats.multivariate_normal(m, covariance).logpdf(row) for m, row in zip(mean, x, strict=True)]
        )

    gap = 0.5 * (np.expm1(wider) - wider + off**2 / variance).sum()  # KL(q || posterior)
    likelihood = partial(DiagGaussian, log_var=jnp.log(NOISE))
    return CVAE(encoder, decoder, likelihood, latent_dim=2, **({"prior": prior} if dependent else {})), log_prob, gap


@pytest.fixture
def pairs():
    rng = np.random.default_rng(1)
    return {"x": rng.normal(size=(B, 6)), "condition": rng.normal(size=(B, 3)), "index": np.arange(B)}


def compiled(fn, *arguments, **options):
    return jax.jit(partial(fn, *arguments, **options))


both_priors = pytest.mark.parametrize("dependent", [False, True], ids=["p(z)", "p(z|c)"])


@both_priors
def test_at_the_exact_posterior_every_weight_is_the_likelihood(dependent, pairs, key, x64):
    model, log_prob, _ = linear_gaussian(dependent)
    batch = {name: jnp.asarray(values) for name, values in pairs.items()}
    exact = log_prob(pairs["x"], pairs["condition"])
    log_weights = compiled(jaxvae.objectives.vae_log_weights, model, num_samples=7)({}, (), batch, key=key)
    np.testing.assert_allclose(log_weights, np.broadcast_to(exact, (7, B)), rtol=1e-6)
    for loss_fn in (jaxvae.cvae_loss, jaxvae.sampled_vae_loss, partial(jaxvae.iwae_loss, num_samples=3)):
        if loss_fn is jaxvae.cvae_loss:  # its rate is in closed form, so only many draws agree
            loss_fn = partial(loss_fn, num_samples=20_000)
        value = compiled(loss_fn, model)({}, (), batch, key=key, step=0)[0]
        np.testing.assert_allclose(value, -exact.mean(), atol=0.02)


@both_priors
def test_the_elbo_is_the_likelihood_less_the_divergence_from_the_posterior(dependent, pairs, key, x64):
    model, log_prob, gap = linear_gaussian(dependent, off=0.2, wider=0.5)
    assert gap > 0.1
    batch = {name: jnp.asarray(values) for name, values in pairs.items()}
    exact = log_prob(pairs["x"], pairs["condition"]).mean() - gap
    loss = compiled(jaxvae.cvae_loss, model, num_samples=50_000)
    value, (_, metrics) = loss({}, (), batch, key=key, step=0)
    np.testing.assert_allclose(-value, exact, atol=0.02)
    np.testing.assert_allclose(metrics["rate"] + metrics["distortion"], value, rtol=1e-12)
    heavy, (_, same) = compiled(loss, beta=3.0)({}, (), batch, key=key, step=0)
    np.testing.assert_allclose(heavy, same["distortion"] + 3 * same["rate"], rtol=1e-12)


@both_priors
def test_three_estimates_of_the_likelihood_in_their_order(dependent, pairs, key, x64):
    model, log_prob, _ = linear_gaussian(dependent, off=0.2, wider=0.5)
    batch = {name: jnp.asarray(values) for name, values in pairs.items()}
    exact = log_prob(pairs["x"], pairs["condition"])
    log_weights = compiled(jaxvae.objectives.vae_log_weights, model, num_samples=5000)({}, (), batch, key=key)
    assert np.all(jaxvae.losses.iwae_bound(log_weights[:100]) >= log_weights[:100].mean(axis=0))
    np.testing.assert_allclose(jaxvae.losses.iwae_bound(log_weights), exact, atol=0.02)
    prior_log_weights = compiled(jaxvae.objectives.cvae_prior_log_weights, model, num_samples=200_000)
    from_prior = prior_log_weights({}, (), batch, key=key)
    np.testing.assert_allclose(jaxvae.losses.iwae_bound(from_prior), exact, atol=0.1)


def labelled(prior=False, **options):
    """A small model of x and labels."""
    options |= {"prior": jaxvae.MLPEncoder(3, (16,))} if prior else {}
    return CVAE(
        jaxvae.Conditioned(jaxvae.MLPEncoder(3, (16,))),
        jaxvae.Conditioned(jaxvae.MLPDecoder(SHAPE, (16,))),
        embed=jaxvae.LabelEmbedding(CLASSES, 4),
        **options,
    )


def labelled_batch(dtype=jnp.int32):
    x = jax.random.uniform(jax.random.key(3), (B, *SHAPE))
    return {"x": x, "condition": jnp.array([0, 1, 2, 0, 1], dtype), "index": jnp.arange(B)}


@partial(jax.jit, static_argnums=0)
def init(model):
    batch = labelled_batch()
    return model.init(jax.random.key(1), batch["x"][:1], batch["condition"][:1])


@partial(jax.jit, static_argnums=0, static_argnames="method")
def apply(model, params, *arguments, **options):
    return model.apply(params, *arguments, **options)


def test_a_prior_network_at_the_standard_normal_changes_nothing(key):
    model, batch = labelled(), labelled_batch()
    params = init(model)

    def standard(features):
        return jnp.zeros((len(features), 3)), jnp.zeros((len(features), 3))

    loss = jax.jit(jaxvae.cvae_loss, static_argnums=0)
    plain = loss(model, params, (), batch, key=key, step=0)
    same = loss(model.clone(prior=standard), params, (), batch, key=key, step=0)
    chex.assert_trees_all_equal(plain, same)
    posterior = apply(model, params, batch["x"], batch["condition"], method="encode")
    compiled_kl = jax.jit(lambda mean, log_var: jaxvae.losses.gaussian_kl(mean, log_var).mean())
    np.testing.assert_array_equal(plain[1][1]["rate"], compiled_kl(*posterior))


def test_the_gradient_reaches_the_prior_network_and_the_embedding(key):
    model = labelled(prior=True)
    params = init(model)
    grads = jax.jit(jax.grad(lambda p: jaxvae.cvae_loss(model, p, (), labelled_batch(), key=key, step=0)[0]))(params)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.any(grad), f"no gradient reaches {jax.tree_util.keystr(path)}"
    assert {"prior", "embed", "encoder", "decoder"} == set(params["params"])


@pytest.mark.parametrize("prior", [False, True])
def test_a_sample_is_decoded_from_the_prior_given_its_own_condition(prior, key):
    model, label = labelled(prior), jnp.array([2, 0, 2])
    params = init(model)
    keys = jax.random.split(key, 2)[jnp.array([0, 1, 0])]
    mean = apply(model, params, label, key=keys, method="sample").mean
    np.testing.assert_array_equal(mean[0], mean[2])  # one key, one class: one image
    assert not np.allclose(mean[0], mean[1])
    record = model.apply(params, label, method="latent_prior")
    latent = record.sample(key=keys) if prior else record.sample(3, key=keys)
    np.testing.assert_allclose(mean, apply(model, params, latent, label, method="decode").mean, rtol=1e-6)
    if not prior:
        np.testing.assert_allclose(latent, DiagGaussian(jnp.zeros((3, 3)), jnp.zeros((3, 3))).sample(key=keys))


def test_transfer_keeps_the_latent_and_changes_the_condition():
    model, batch = labelled(), labelled_batch()
    params = init(model)
    image, label = batch["x"], batch["condition"]
    latent = apply(model, params, image, label, method="encode").mean
    other = (label + 1) % CLASSES
    moved = apply(model, params, image, label, other, method="transfer").mean
    np.testing.assert_allclose(moved, apply(model, params, latent, other, method="decode").mean, rtol=1e-6)
    same = apply(model, params, image, label).mean
    np.testing.assert_allclose(same, apply(model, params, image, label, label, method="transfer").mean)
    assert np.abs(moved - same).max() > 0.01


def test_conditions_join_as_a_vector_or_as_channels():
    def seen(joined):
        return joined

    image, plane = jnp.arange(32.0).reshape(2, 4, 4, 1), jnp.ones((2, 4, 4, 3))
    vector = jnp.array([[5.0, 6.0], [7.0, 8.0]])
    flat = jaxvae.Conditioned(seen).apply({}, image, vector)
    np.testing.assert_array_equal(flat, np.concatenate([image.reshape(2, 16), vector], axis=1))
    spread = jaxvae.Conditioned(seen, as_channels=True).apply({}, image, vector)
    assert spread.shape == (2, 4, 4, 3)
    np.testing.assert_array_equal(spread[..., 1:], np.broadcast_to(vector[:, None, None], (2, 4, 4, 2)))
    beside = jaxvae.Conditioned(seen, as_channels=True).apply({}, image, plane)
    np.testing.assert_array_equal(beside, np.concatenate([image, plane], axis=-1))
    np.testing.assert_array_equal(jaxvae.Unconditioned(seen).apply({}, image, vector), image)


def test_a_label_out_of_range_is_refused_and_under_jit_not_a_number(key):
    model, batch = labelled(), labelled_batch()
    params = init(model)
    loss = partial(jaxvae.cvae_loss, model, params, (), key=key, step=0)
    traced = jax.jit(loss)
    for label, index in ((3, 3), (-1, 1)):
        wrong = {**batch, "condition": batch["condition"].at[index].set(label)}
        with pytest.raises(ValueError, match=rf"label {label} at index {index} is outside 0 \.\. 2"):
            loss(wrong)
        assert np.isnan(traced(wrong)[0])
    assert np.isfinite(traced(batch)[0])


@pytest.mark.parametrize(
    ("condition", "error", "message"),
    [
        (jnp.zeros(B), TypeError, r"labels must be integers \(batch,\), got float32"),
        (jnp.zeros((B, 1), jnp.int32), ValueError, r"labels must be integers \(batch,\), got \(5, 1\)"),
        (jnp.zeros(4, jnp.int32), ValueError, r"expected 5 conditions \(5, \.\.\.\), got \(4,\)"),
    ],
)
def test_wrong_labels_are_refused(condition, error, message, key):
    model = labelled()
    with pytest.raises(error, match=message):
        jaxvae.cvae_loss(model, init(model), (), {**labelled_batch(), "condition": condition}, key=key, step=0)


def test_a_batch_without_conditions_and_integers_without_an_embedding_are_refused(key):
    model, batch = labelled(), labelled_batch()
    params = init(model)
    bare = {name: values for name, values in batch.items() if name != "condition"}
    with pytest.raises(ValueError, match=r"needs batch\['condition'\], got index, x"):
        jaxvae.cvae_loss(model, params, (), bare, key=key, step=0)
    with pytest.raises(TypeError, match=r"labels need CVAE\(..., embed=LabelEmbedding\(K\)\)"):
        jaxvae.cvae_loss(model.clone(embed=None), params, (), batch, key=key, step=0)
    nameless = model.clone(encoder=lambda x, features: (features, features))
    with pytest.raises(ValueError, match=r"pass VAE\(..., latent_dim=D\)"):
        nameless.apply(params, batch["condition"], key=key, method="sample")
