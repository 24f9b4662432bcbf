"""M2: both bounds against float64 enumerations of a finite world, and what teaches the classifier."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
from flax import nnx
from variants import SHAPE

import jaxvae
from jaxvae.models.cvae import CVAE
from jaxvae.models.semi_supervised import SemiSupervisedVAE
from jaxvae.objectives import semi_supervised_loss

B, M, K, D = 4, 6, 3, 2
HEAVY = 1e4  # logits so far apart that a softmax is 0 and 1


def small(classifier=None):
    """A small model of x and labels."""
    cvae = CVAE(
        jaxvae.Conditioned(jaxvae.MLPEncoder(D, (16,))),
        jaxvae.Conditioned(jaxvae.MLPDecoder(SHAPE, (16,))),
        embed=jaxvae.LabelEmbedding(K, 4),
    )
    return SemiSupervisedVAE(cvae, classifier or jaxvae.MLPDecoder((K,), (8,)))


@partial(jax.jit, static_argnums=0)
def init(model):
    return model.init(jax.random.key(1), jnp.zeros((1, *SHAPE)))


@partial(jax.jit, static_argnums=0)
def classify(model, params, x):
    return model.apply(params, x, method="classify")


def small_batch():
    x = jax.random.uniform(jax.random.key(2), (B + M, *SHAPE))
    label = jnp.array([0, 1, 2, 2, 1, 0], jnp.int32)
    labelled = {"x": x[B:], "label": label, "index": 100 + jnp.arange(M)}
    return {"x": x[:B], "index": jnp.arange(B), "labelled": labelled}


def loss_of(model, params, batch, key, alpha=2.0, weight=1.0):
    """The loss and its metrics."""
    weights = {"classification_weight": alpha, "labelled_weight": weight}
    loss, (_, metrics) = semi_supervised_loss(model, params, (), batch, key=key, step=0, **weights)
    return loss, metrics


value_of = jax.jit(loss_of, static_argnums=0)


def negative_elbos(model, params, batch, key):
    """-ELBO(x, y), [B, K] float64, class by class from the Gaussian and Bernoulli formulas, one noise for all."""
    cvae, params = model.cvae, {"params": params["params"]["cvae"]}
    keys = jaxvae.keys.sample_keys(jaxvae.keys.example_keys(key, batch["index"]), 1)[0]

    @jax.jit
    def run(label):
        posterior = cvae.apply(params, batch["x"], label, method="encode")
        return cvae.apply(params, posterior.sample(key=keys), label, method="decode").logits, posterior

    columns = []
    for y in range(K):
        logits, posterior = run(jnp.full(len(batch["x"]), y))
        x, logits, mean, log_var = (np.asarray(a, np.float64) for a in (batch["x"], logits, *posterior))
        distortion = (np.logaddexp(0, logits) - x * logits).reshape(len(x), -1).sum(1)
        columns.append(distortion + 0.5 * (np.exp(log_var) + mean**2 - 1 - log_var).sum(1) + np.log(K))
    return np.stack(columns, axis=1)


def test_both_bounds_equal_a_float64_enumeration(key):
    model, batch = small(), small_batch()
    params = init(model)
    value, metrics = value_of(model, params, batch, key, 2.0, 0.3)

    cost = negative_elbos(model, params, batch, key)
    log_q = scipy.special.log_softmax(np.asarray(classify(model, params, batch["x"]), float), axis=1)
    unlabelled = (np.exp(log_q) * (cost + log_q)).sum(1).mean()
    np.testing.assert_allclose(metrics["negative_elbo"], unlabelled, rtol=1e-5)
    np.testing.assert_allclose(metrics["rate"] + metrics["distortion"], unlabelled, rtol=1e-5)

    labelled = batch["labelled"]
    rows = np.arange(M), np.asarray(labelled["label"])
    logits = np.asarray(classify(model, params, labelled["x"]), float)
    supervised = negative_elbos(model, params, labelled, key)[rows].mean()
    classification = -scipy.special.log_softmax(logits, axis=1)[rows].mean()
    np.testing.assert_allclose(metrics["labelled_negative_elbo"], supervised, rtol=1e-5)
    np.testing.assert_allclose(metrics["classification"], classification, rtol=1e-5)
    assert metrics["accuracy"] == np.float32((logits.argmax(1) == rows[1]).mean())
    np.testing.assert_allclose(value, unlabelled + 0.3 * supervised + 2 * classification, rtol=1e-5)
    assert value == metrics["loss"]


def test_the_bound_is_the_evidence_over_the_classes_and_the_classifiers_distance_from_their_posterior(key):
    """U = -log Σ_y exp ELBO(x, y) + KL(q(y|x) || softmax ELBO): no q(y|x) does better than the softmax."""
    model, batch = small(), small_batch()
    params = init(model)
    elbo = -negative_elbos(model, params, batch, key)
    logits = np.asarray(classify(model, params, batch["x"]), float)
    q, posterior = scipy.special.softmax(logits, axis=1), scipy.special.softmax(elbo, axis=1)
    gap = scipy.special.rel_entr(q, posterior).sum(1)
    assert gap.min() > 1e-3
    evidence = scipy.special.logsumexp(elbo, axis=1)
    bound = value_of(model, params, batch, key)[1]["negative_elbo"]
    np.testing.assert_allclose(bound, (gap - evidence).mean(), rtol=1e-5)

    best = small(lambda x: jnp.asarray(elbo, jnp.float32))
    bound = value_of(best, params, batch | {"labelled": batch | {"label": jnp.zeros(B, jnp.int32)}}, key)
    np.testing.assert_allclose(bound[1]["negative_elbo"], -evidence.mean(), rtol=1e-5)


def finite_world(classifier):
    """p(x|y) of four binary pixels with no latent worth the name: log p(x) is a sum over K classes."""
    chance = np.random.default_rng(0).uniform(0.1, 0.9, (K, 4))
    logits = scipy.special.logit(chance)

    def embed(label):
        return jax.nn.one_hot(label, K, dtype=logits.dtype)

    def encoder(x, condition):
        zeros = jnp.zeros((len(x), D), logits.dtype)
        return zeros, zeros  # the prior: no rate

    embed.num_classes = K
    cvae = CVAE(encoder, lambda latent, condition: condition @ logits, embed=embed, latent_dim=D)
    x = np.stack(np.meshgrid(*[[0, 1]] * 4), axis=-1).reshape(-1, 4)
    likelihood = np.where(x[:, None] == 1, chance[None], 1 - chance[None]).prod(-1)
    return SemiSupervisedVAE(cvae, classifier), x, likelihood


@pytest.mark.slow
def test_no_classifier_bounds_the_exact_likelihood_from_the_wrong_side(key, x64):
    logits = np.random.default_rng(1).normal(size=(16, K))
    exact = None
    for scale in (0.0, 1.0, HEAVY):
        model, x, likelihood = finite_world(lambda x, scale=scale: jnp.asarray(scale * logits))
        exact = np.log(likelihood.mean(1))
        assert np.exp(exact).sum() == pytest.approx(1)  # all 16 x there are
        batch = {"x": jnp.asarray(x, float), "index": jnp.arange(16), "label": jnp.zeros(16, jnp.int32)}
        q = scipy.special.softmax(scale * logits, axis=1)
        gap = scipy.special.rel_entr(q, likelihood / likelihood.sum(1, keepdims=True)).sum(1)
        bound = value_of(model, {}, batch, key)[1]["negative_elbo"]
        assert bound > -exact.mean()
        np.testing.assert_allclose(bound, (gap - exact).mean(), rtol=1e-12)
    posterior, _, _ = finite_world(lambda image: jnp.log(likelihood))
    bound = value_of(posterior, {}, batch, key)[1]["negative_elbo"]
    np.testing.assert_allclose(bound, -exact.mean(), rtol=1e-12)


def test_where_the_classifier_is_sure_the_bound_is_that_of_the_labelled_image(key):
    label = jnp.array([2, 0, 1, 1])
    model = small(lambda image: HEAVY * jax.nn.one_hot(label, K))
    params = init(small())
    batch = {name: small_batch()[name] for name in ("x", "index")} | {"label": label}
    value, metrics = value_of(model, params, batch, key)
    np.testing.assert_allclose(metrics["negative_elbo"], metrics["labelled_negative_elbo"], rtol=1e-6)
    np.testing.assert_allclose(value, 2 * metrics["negative_elbo"], rtol=1e-6)
    assert metrics["accuracy"] == 1
    assert metrics["classification"] == 0


@pytest.mark.slow
def test_images_without_labels_teach_the_classifier(key):
    """The gradient of U by the logits is q_y (cost_y - Σ q cost), cost = -ELBO + log q; no label is looked at."""
    model, batch = small(), small_batch()
    params = init(model)

    def loss(params, batch):
        return loss_of(model, params, batch, key, alpha=0.0, weight=0.0)[0]

    grad = jax.jit(jax.grad(loss))
    grads = grad(params, batch)
    other = batch["labelled"] | {"label": (batch["labelled"]["label"] + 1) % K}
    chex.assert_trees_all_equal(grads, grad(params, batch | {"labelled": other}))
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.any(grad), f"no gradient reaches {jax.tree_util.keystr(path)}"

    log_q = scipy.special.log_softmax(np.asarray(classify(model, params, batch["x"]), float), axis=1)
    q, cost = np.exp(log_q), negative_elbos(model, params, batch, key) + log_q
    by_logits = q * (cost - (q * cost).sum(1, keepdims=True))
    bias = grads["params"]["classifier"]["output"]["bias"]
    np.testing.assert_allclose(bias, by_logits.mean(0), rtol=1e-3, atol=1e-5)


def test_the_names_of_the_classes_do_not_matter(key):
    model, batch = small(), small_batch()
    params = init(model)
    order = jnp.array([2, 0, 1])  # the class that is now y was order[y]
    inner = params["params"]
    output = {name: leaf[..., order] for name, leaf in inner["classifier"]["output"].items()}
    vectors = {"vectors": {"embedding": inner["cvae"]["embed"]["vectors"]["embedding"][order]}}
    renamed = {
        "cvae": inner["cvae"] | {"embed": vectors},
        "classifier": inner["classifier"] | {"output": output},
    }
    labelled = batch["labelled"] | {"label": jnp.argsort(order)[batch["labelled"]["label"]]}
    one = value_of(model, params, batch, key)[1]
    other = value_of(model, {"params": renamed}, batch | {"labelled": labelled}, key)[1]
    chex.assert_trees_all_close(one, other, rtol=1e-5)


def test_the_loss_is_a_mean_over_examples_of_either_kind(key):
    model, batch = small(), small_batch()
    params = init(model)
    grad = jax.jit(jax.value_and_grad(lambda params, batch: loss_of(model, params, batch, key)[0]))

    def repeated(batch, times):
        return jax.tree.map(lambda x: np.concatenate([x] * times), batch)

    more = repeated(batch, 2) | {"labelled": repeated(batch["labelled"], 3)}  # not as many times: each is its own mean
    chex.assert_trees_all_close(grad(params, batch), grad(params, more), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_test_set_is_measured_by_its_own_labels(key):
    """Through `make_eval_step`, in batches with padding: the metrics of the whole set at once."""
    model = small()
    params = init(model)
    examples = small_batch()["labelled"] | {"index": jnp.arange(M)}
    loss_fn = partial(semi_supervised_loss, model, classification_weight=2.0)
    evaluate = jaxvae.make_evaluate(jaxvae.make_eval_step(loss_fn))
    state = jaxvae.TrainState(jnp.int32(0), params, (), (), key, jnp.int32(-1))
    measured = evaluate(state, examples, jnp.array([[0, 1, 2, 3], [4, 5, -1, -1]]), key=key)
    whole = jax.jit(loss_fn)(params, (), examples, key=jax.random.split(key)[1], step=0)[1][1]
    chex.assert_trees_all_close(measured, whole, rtol=1e-5)


def test_the_cvaes_methods_take_its_part_of_the_parameters(key):
    model, batch = small(), small_batch()
    params = init(model)
    inner = {"params": params["params"]["cvae"]}
    label = model.apply(params, batch["x"], method="classify").argmax(axis=-1)
    rebuilt = model.cvae.apply(inner, batch["x"], label, label, method="transfer").mean
    np.testing.assert_array_equal(model.apply(params, batch["x"]).mean, rebuilt)
    sample = model.cvae.apply(inner, jnp.arange(K), key=key, method="sample").mean
    assert sample.shape == (K, *SHAPE)


def test_what_does_not_fit_is_refused(key):
    model, batch = small(), small_batch()
    params = jax.jit(partial(init, model))()
    labelled = batch["labelled"]
    for wrong, error, message in (
        ({"x": batch["x"].astype(jnp.uint8)}, TypeError, "x must be floating, got uint8"),
        (
            {"labelled": labelled | {"x": jnp.zeros((M, *SHAPE), int)}},
            TypeError,
            "x must be floating, got int32",
        ),
        (
            {"labelled": labelled | {"label": labelled["label"] + 1}},
            ValueError,
            r"label 3 at index 2 is outside 0 \.\. 2",
        ),
        (
            {"labelled": labelled | {"label": jnp.zeros(M)}},
            TypeError,
            r"labels must be integers \(batch,\), got float32",
        ),
        ({"x": jnp.zeros((B, 7, 7, 1))}, ValueError, r"expected x \(batch, 8, 8, 1\), got \(4, 7, 7, 1\)"),
        ({"labelled": {"x": labelled["x"]}}, ValueError, r"needs x, label and index, got x$"),
    ):
        with pytest.raises(error, match=message):
            loss_of(model, params, batch | wrong, key)
    with pytest.raises(ValueError, match=r"needs x, label and index, got index, x$"):
        loss_of(model, params, {name: batch[name] for name in ("x", "index")}, key)
    with pytest.raises(ValueError, match="classification_weight must be a finite number, zero or more, got -1"):
        loss_of(model, params, batch, key, alpha=-1.0)
    with pytest.raises(ValueError, match="labelled_weight must be a finite number, zero or more, got inf"):
        loss_of(model, params, batch, key, weight=float("inf"))
    wide = small(jaxvae.MLPDecoder((K + 1,), (8,)))
    with pytest.raises(ValueError, match=r"the classifier must make logits \(1, 3\), got \(1, 4\)"):
        init(wide)
    with pytest.raises(TypeError, match=r"key must come from jax.random.key, got uint32\[2\]"):
        loss_of(model, params, batch, jax.random.PRNGKey(0))


def test_a_class_that_the_classifier_rules_out_costs_nothing(key):
    """Its logit is -inf, and 0 log 0 is 0: both bounds were NaN."""
    batch = small_batch() | {"label": jnp.arange(B) % 2}
    del batch["labelled"]
    bounds = []
    for lowest in (-1e4, -jnp.inf):
        logits = np.float32([[0.3, 1.0, lowest]])
        model = small(lambda x, logits=logits: jnp.broadcast_to(jnp.asarray(logits), (len(x), K)))
        params = init(model)
        _, metrics = loss_of(model, params, batch, key)
        bounds.append([metrics["negative_elbo"], jaxvae.vae_loss(model, params, (), batch, key=key, step=0)[0]])
    np.testing.assert_allclose(*bounds, rtol=1e-6)
    assert np.isfinite(bounds).all()


class OnTrunk(nnx.Module):
    """Heads on a layer that may be another's too."""

    def __init__(self, trunk, *sizes):
        self.trunk = trunk
        self.heads = nnx.List([nnx.Linear(4, size, rngs=nnx.Rngs(0)) for size in sizes])

    def __call__(self, x, *condition):
        made = tuple(head(self.trunk(x.reshape(len(x), -1))) for head in self.heads)
        return made if len(made) > 1 else made[0]


def test_an_nnx_layer_of_two_parts_is_refused_in_sequences_and_in_models_within_a_model():
    """It was trained as two, and neither the loss nor a checkpoint told."""
    trunk = nnx.Linear(64, 4, rngs=nnx.Rngs(0))
    cvae = CVAE(OnTrunk(trunk, D, D), small().cvae.decoder, embed=jaxvae.LabelEmbedding(K, 4))
    with pytest.raises(TypeError, match=r"SemiSupervisedVAE\.cvae\.encoder and \.classifier share an NNX variable"):
        SemiSupervisedVAE(cvae, OnTrunk(trunk, K))
    encoder = OnTrunk(trunk, D, D)
    with pytest.raises(TypeError, match=r"HierarchicalVAE\.encoders\[0\] and \.encoders\[1\] share an NNX variable"):
        jaxvae.HierarchicalVAE((encoder, encoder), (lambda z: z, lambda z: (z, z)))
