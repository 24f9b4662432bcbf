"""Models with an adversary: whose gradient each term is, what training with them keeps, and bad input."""

import itertools
import pickle
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from variants import SHAPE, batch, mlp

import jaxvae
from jaxvae import losses
from jaxvae.distributions import DiagGaussian
from jaxvae.losses import HINGE, MINIMAX, NON_SATURATING, WASSERSTEIN
from jaxvae.models import GAN
from jaxvae.networks import MLPDiscriminator, PatchDiscriminator
from jaxvae.objectives import (
    feature_vae_loss,
    gan_loss,
    init_feature_vae,
    init_with_discriminator,
    vae_gan_loss,
    vq_gan_loss,
)
from jaxvae.training import adversarial_optimizer, evaluation_params, with_ema

B, D, CLASSES = 6, 3, 3
CRITIC = MLPDiscriminator((16, 8))
MODEL = GAN(mlp(D)[1], CRITIC, D, output=jax.nn.sigmoid)
VAE = jaxvae.VAE(*mlp(D))
X = batch(B)["x"]


def norms(tree):
    """The norm of the gradient of each part."""
    return {name: float(optax.tree.norm(part)) for name, part in tree["params"].items()}


@pytest.fixture(scope="module")
def params():
    return jax.jit(MODEL.init)(jax.random.key(0), X)


@pytest.fixture(scope="module")
def joined():
    """Of a VAE with a discriminator."""
    return jax.jit(lambda key: init_with_discriminator(VAE, CRITIC, X, key=key)[0])(jax.random.key(1))


@pytest.fixture(scope="module")
def wgan():
    """The loss of WGAN-GP and its gradient, compiled once: (params, key, step, batch)."""
    loss = partial(gan_loss, MODEL, loss=WASSERSTEIN, penalty=10.0, r1=0.5, critic_steps=3)
    value_and_gradient = jax.value_and_grad(loss, has_aux=True)
    return jax.jit(lambda params, key, step, examples: value_and_gradient(params, (), examples, key=key, step=step))


def test_a_gan_pays_its_formula(params, key, wgan):
    """Each example's latent and its point between come from its own key."""
    (value, (state, metrics)), _ = wgan(params, key, jnp.int32(0), batch(B))
    assert state == ()
    keys = [jax.random.split(jax.random.fold_in(key, i)) for i in range(B)]
    latent = jnp.stack([jax.random.normal(each[0], (D,)) for each in keys])
    fake = MODEL.apply(params, latent, method="generate")
    np.testing.assert_allclose(MODEL.apply(params, jnp.stack([k[0] for k in keys]), method="simulate"), fake, rtol=1e-5)
    critic = jax.jit(partial(MODEL.apply, params))
    real_logits, fake_logits = critic(X), critic(fake)
    np.testing.assert_allclose(metrics["discriminator"], (fake_logits - real_logits).mean(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["generator"], -fake_logits.mean(), rtol=1e-4, atol=1e-6)
    penalty = losses.gradient_penalty(critic, X, fake, key=jnp.stack([each[1] for each in keys])).mean()
    np.testing.assert_allclose(metrics["penalty"], penalty, rtol=1e-4)
    np.testing.assert_allclose(metrics["r1"], losses.r1_penalty(critic, X).mean(), rtol=1e-4)
    weighted = metrics["discriminator"] + metrics["generator"] + 10 * metrics["penalty"] + 0.5 * metrics["r1"]
    np.testing.assert_allclose(value, weighted, rtol=1e-6)
    assert value == metrics["loss"]


def test_the_generator_has_a_gradient_in_the_last_of_each_round(params, key, wgan):
    """Its value counts in every step, and the critic's gradient is that of its own terms in every step."""
    seen = [wgan(params, key, jnp.int32(step), batch(B)) for step in range(4)]
    for step, ((value, (_, metrics)), gradient) in enumerate(seen):
        of = norms(gradient)
        assert of["discriminator"] > 1e-3
        assert (of["generator"] > 1e-4) == (step == 2)
        assert value == seen[0][0][0]
        assert metrics.keys() == seen[0][0][1][1].keys()
    chex.assert_trees_all_close(seen[0][1]["params"]["discriminator"], seen[2][1]["params"]["discriminator"], rtol=1e-5)


def test_noise_belongs_to_the_example_and_all_are_means_over_examples(params, key, wgan):
    """Shuffled, the batch pays the same and has the same gradient; with other indices it draws anew."""
    order, examples = jnp.array([4, 0, 5, 2, 1, 3]), batch(B)
    (value, _), gradient = wgan(params, key, jnp.int32(2), examples)
    (same, _), again = wgan(params, key, jnp.int32(2), {name: each[order] for name, each in examples.items()})
    np.testing.assert_allclose(same, value, rtol=1e-5)
    chex.assert_trees_all_close(again, gradient, rtol=1e-4, atol=1e-6)
    other = {**examples, "index": examples["index"] + 100}
    assert abs(wgan(params, key, jnp.int32(2), other)[0][0] - value) > 1e-3
    halves = [{name: each[half] for name, each in examples.items()} for half in (slice(3), slice(3, 6))]
    each = [wgan(params, key, jnp.int32(2), half) for half in halves]
    chex.assert_trees_all_close(jax.tree.map(lambda a, b: (a + b) / 2, *each)[1], gradient, rtol=1e-4, atol=1e-6)


def test_the_generator_descends_what_it_pays_and_the_critic_its_own(params, key):
    """Against gradients of each term alone, for the parameters that are its own."""
    loss = partial(gan_loss, MODEL, model_state=(), batch=batch(B), key=key, step=0)
    keys = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i))[0])(jnp.arange(B))

    def paid(params, kind):
        fake = MODEL.apply(params, keys, method="simulate")
        if kind == "generator":
            return NON_SATURATING.generator(MODEL.apply(params, fake)).mean()
        return NON_SATURATING.discriminator(MODEL.apply(params, X), MODEL.apply(params, fake)).mean()

    gradient = jax.jit(jax.grad(lambda params: loss(params)[0]))(params)
    for kind in ("generator", "discriminator"):
        alone = jax.jit(jax.grad(partial(paid, kind=kind)))(params)
        chex.assert_trees_all_close(gradient["params"][kind], alone["params"][kind], rtol=1e-4, atol=1e-7)


def test_every_gradient_of_a_vae_gan_reaches_its_own_part_alone(joined, key):
    """Six routes: what a part pays moves it, and what the two others pay does not."""
    loss = partial(vae_gan_loss, VAE, discriminator=CRITIC, model_state=(), batch=batch(B), key=key, step=0)

    @jax.jit
    def gradient(weights, gamma, beta):
        """That of the terms which these weights leave, of what the critic and the decoder pay for logits."""
        critic, decoder = weights
        game = losses.AdversarialLoss(
            lambda logits: critic * losses.real_nll(logits),
            lambda logits: critic * losses.fake_nll(logits),
            lambda logits: decoder * losses.real_nll(logits),
        )
        return jax.grad(lambda params: loss(params, gamma=gamma, beta=beta, loss=game)[0])(joined)

    take = lambda critic, decoder, gamma, beta: norms(gradient((critic, decoder), gamma, beta))  # noqa: E731
    features = take(0.0, 0.0, 0.0, 0.0)  # the features, as the encoder pays for them
    assert features["encoder"] > 1e-3
    assert features["decoder"] == features["discriminator"] == 0
    kl = take(0.0, 0.0, 0.0, 1.0)
    assert kl["encoder"] != features["encoder"]
    assert kl["decoder"] == kl["discriminator"] == 0
    for name, part in (("as the decoder pays", take(0.0, 0.0, 1.0, 0.0)), ("opinion", take(0.0, 1.0, 0.0, 0.0))):
        assert part["decoder"] > 1e-3, name
        assert part["discriminator"] == 0, name
        assert part["encoder"] == pytest.approx(features["encoder"], rel=1e-6), name  # nothing more
    critic = take(1.0, 0.0, 0.0, 0.0)
    assert critic["discriminator"] > 1e-3
    assert critic["decoder"] == 0
    assert critic["encoder"] == pytest.approx(features["encoder"], rel=1e-6)


def test_the_parts_of_a_vae_gan_pay_their_formulas(joined, key):
    """Values and gradients against terms of Larsen et al., written out with stopped parameters."""
    loss = partial(vae_gan_loss, VAE, discriminator=CRITIC, layer="layer_0", gamma=0.7, beta=2.0, loss=MINIMAX)
    (value, (_, metrics)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        joined, (), batch(B), key=key, step=0
    )
    split = jax.vmap(lambda i: jax.random.split(jax.random.fold_in(key, i)))(jnp.arange(B))
    noise = jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 0), (D,)))(split[:, 0])
    prior_latent = jax.vmap(lambda k: jax.random.normal(k, (D,)))(split[:, 1])

    def judge(part, x):
        return CRITIC.apply({"params": part}, x, layer="layer_0", method="with_features")

    def terms(encoder, decoder, critic):
        mean, log_var = VAE.encoder.apply({"params": encoder}, X)
        decode = lambda z: jax.nn.sigmoid(VAE.decoder.apply({"params": decoder}, z))  # noqa: E731
        made, drawn = decode(mean + jnp.exp(0.5 * log_var) * noise), decode(prior_latent)
        logits, features = judge(critic, made)
        kl = losses.gaussian_kl(mean, log_var)
        distance = 0.5 * jnp.square(features - judge(critic, X)[1]).sum(axis=1)
        gan = losses.real_nll(judge(critic, X)[0]) + losses.fake_nll(logits) + losses.fake_nll(judge(critic, drawn)[0])
        return kl.mean(), distance.mean(), gan.mean()

    parts = [joined["params"][name] for name in ("encoder", "decoder", "discriminator")]
    kl, distance, gan = jax.jit(terms)(*parts)
    np.testing.assert_allclose([metrics["rate"], metrics["feature_distortion"]], [kl, distance], rtol=1e-4)
    np.testing.assert_allclose(metrics["discriminator"], gan, rtol=1e-4)
    real = losses.real_nll(judge(parts[2], X)[0]).mean()
    np.testing.assert_allclose(metrics["generator"], real - gan, rtol=1e-4)  # minus L_GAN, but for the term of x
    np.testing.assert_allclose(value, 2 * kl + 1.7 * distance + (real - gan) + gan, rtol=1e-4)
    assert value == metrics["loss"]
    np.testing.assert_allclose(metrics["negative_elbo"], metrics["distortion"] + kl, rtol=1e-4)

    @jax.jit
    def expected(*parts):
        _, back = jax.vjp(terms, *parts)
        pull = lambda *weights: back(tuple(jnp.float32(weight) for weight in weights))  # noqa: E731
        return {"encoder": pull(2, 1, 0)[0], "decoder": pull(0, 0.7, -1)[1], "discriminator": pull(0, 0, 1)[2]}

    chex.assert_trees_all_close(gradient["params"], expected(*parts), rtol=1e-3, atol=1e-6)


def test_a_feature_vae_compares_by_a_frozen_discriminator(params, joined, key):
    """The gradients of encoder and decoder are those that VAE/GAN gives the encoder alone, and γ = 1 the decoder."""
    own, state = init_feature_vae(VAE, CRITIC, joined, X, key=jax.random.key(3))
    assert own["params"].keys() == {"encoder", "decoder"}
    chex.assert_trees_all_equal(state["frozen"]["params"], joined["params"]["discriminator"])
    both = {"params": {name: joined["params"][name] for name in ("encoder", "decoder")}}
    loss = partial(feature_vae_loss, VAE, discriminator=CRITIC, batch=batch(B), step=0, beta=2.0)
    (value, (after, metrics)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        both, model_state=state, key=key
    )
    chex.assert_trees_all_equal(after, state)
    np.testing.assert_allclose(value, 2 * metrics["rate"] + metrics["feature_distortion"], rtol=1e-6)
    assert all(norm > 1e-3 for norm in norms(gradient).values())
    with pytest.raises(ValueError, match=r"model_state must hold 'frozen'.*init_feature_vae"):
        feature_vae_loss(VAE, both, (), batch(B), key=key, step=0, discriminator=CRITIC)


VQ = jaxvae.VQVAE(jaxvae.MLPDecoder((2, 2, 4), (16,)), jaxvae.MLPDecoder(SHAPE, (16,)), jaxvae.GradientCodebook(8))
PATCHES = PatchDiscriminator((8,))


@pytest.fixture(scope="module")
def quantised():
    init = lambda key: init_with_discriminator(VQ, PATCHES, X, key=key)  # noqa: E731
    return jax.jit(init)(jax.random.key(2))


def test_the_adaptive_weight_of_a_vq_gan_is_taken_at_the_last_layer(quantised, key):
    """λ, the loss and all gradients against the terms by themselves."""
    options = {"discriminator": PATCHES, "variance": 0.08, "feature_weight": 0.3, "adversarial_weight": 0.5}
    loss = partial(vq_gan_loss, VQ, **options)
    (value, (state, metrics)), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        *quantised, batch(B), key=key, step=0
    )
    assert jax.tree.structure(state) == jax.tree.structure(quantised[1])
    plain = partial(jaxvae.vq_vae_loss, VQ, model_state=quantised[1], batch=batch(B), key=key, step=0, variance=0.08)
    at = lambda params: params["params"]["decoder"]["output"]["kernel"]  # noqa: E731

    def terms(params):
        """What the VQ-VAE pays, its distortion, the weighted features, the generator's and the discriminator's."""
        still = jax.lax.stop_gradient(params["params"]["discriminator"])
        judge = lambda part, x: PATCHES.apply({"params": part}, x, method="with_features")  # noqa: E731
        encoded = VQ.apply({"params": params["params"]}, X, method="encode")
        quantised_to = VQ.quantizer(params["quantizer"], {}, encoded)
        latent = jaxvae.codebook.straight_through(encoded, quantised_to.vectors)
        x = VQ.apply({"params": params["params"]}, latent, method="decode").mean
        logits, features = judge(still, x)
        seen = 0.3 * 0.5 * jnp.square(features - judge(still, X)[1]).mean()
        whole, (_, metrics) = plain(params)
        critic = params["params"]["discriminator"]
        judged = HINGE.discriminator(judge(critic, X)[0], judge(critic, jax.lax.stop_gradient(x))[0]).mean()
        return whole, metrics["distortion"], seen, HINGE.generator(logits).mean(), judged

    @jax.jit
    def expected(params):
        values, back = jax.vjp(terms, params)
        of = lambda *weights: back(tuple(jnp.float32(weight) for weight in weights))[0]  # noqa: E731
        reconstruction, generator = at(of(0, 1, 1, 0, 0)), at(of(0, 0, 0, 1, 0))
        weight = jnp.linalg.norm(reconstruction) / (jnp.linalg.norm(generator) + 1e-4)
        weights = (1, 0, 1, 0.5 * weight, 1)
        return weight, sum(w * v for w, v in zip(weights, values, strict=True)), of(*weights)

    weight, whole, gradients = expected(quantised[0])
    np.testing.assert_allclose(metrics["adaptive_weight"], weight, rtol=1e-4)
    np.testing.assert_allclose(value, whole, rtol=1e-5)
    chex.assert_trees_all_close(gradient, gradients, rtol=2e-3, atol=1e-6)
    assert metrics["loss"] == value


def test_a_vq_gan_needs_the_whole_batch_but_for_evaluation(quantised, key):
    loss = partial(vq_gan_loss, VQ, discriminator=PATCHES)
    sums, weight = jax.jit(jaxvae.make_eval_step(loss))(
        *quantised, {**batch(B), "weight": jnp.ones(B)}, key=key, step=jnp.int32(0)
    )
    assert weight == B
    assert "adaptive_weight" not in sums
    assert sums["loss"] > 0
    step = jaxvae.training.shard_map_train_step(loss, optax.sgd(0.1), mesh=jaxvae.data_mesh(2))
    state = jaxvae.init_train_state(lambda *, key: quantised, optax.sgd(0.1), key=key)
    with pytest.raises(ValueError, match=r"vq_gan_loss is not a mean over examples.*jit_train_step"):
        step(state, batch(B))
    with pytest.raises(ValueError, match="there are no parameters decoder/last/kernel: pass last_layer="):
        jax.eval_shape(partial(loss, last_layer=("decoder", "last", "kernel"), key=key, step=0), *quantised, batch(B))


# ---- training keeps what it keeps elsewhere


CONDITIONAL = GAN(
    jaxvae.Conditioned(mlp(D)[1]),
    MLPDiscriminator((16,), num_classes=CLASSES),
    D,
    prior=jaxvae.GaussianMixture(2, D),
    embed=jaxvae.LabelEmbedding(CLASSES, 4),
)
OPTIMIZER = with_ema(adversarial_optimizer(optax.adam(1e-2), optax.adam(2e-2)), 0.9)


def labelled(examples):
    return {**examples, "label": (examples["index"] % CLASSES).astype(jnp.int32)}


@pytest.fixture(scope="module")
def trained():
    """A conditional WGAN-GP after 12 steps, and each step's state."""
    loss_fn = partial(gan_loss, CONDITIONAL, loss=WASSERSTEIN, penalty=1.0, critic_steps=3)
    init = lambda *, key: (CONDITIONAL.init(key, X, jnp.zeros(B, jnp.int32)), ())  # noqa: E731
    state = jaxvae.init_train_state(init, OPTIMIZER, key=jax.random.key(4))
    body = jaxvae.make_train_step(loss_fn, OPTIMIZER)
    step = jax.jit(chex.assert_max_traces(body.__call__, n=1))
    states = [state]
    for i in range(12):
        state, metrics = step(state, labelled(batch(B, seed=i)))
        states.append(state)
    return step, states, metrics


def test_the_generator_and_its_moments_move_every_third_step(trained):
    _, states, metrics = trained
    assert metrics.keys() == {"loss", "discriminator", "generator", "penalty", "grad_norm"}
    moments = lambda state: state.opt_state.inner.inner_states["generator"].inner_state  # noqa: E731
    for i, (before, after) in enumerate(itertools.pairwise(states)):
        change = jax.tree.map(lambda a, b: a - b, after.params, before.params)
        moved = {name for name, norm in norms(change).items() if norm > 0}
        assert moved == ({"generator", "embed", "prior", "discriminator"} if i % 3 == 2 else {"discriminator"})
        if i % 3 != 2:
            chex.assert_trees_all_equal(moments(before), moments(after))
    counts = {int(leaf) for leaf in jax.tree.leaves(moments(states[-1])) if leaf.dtype == jnp.int32}
    assert counts == {4}


def test_samples_come_from_the_average_given_labels(trained, key):
    state = trained[1][-1]
    sample = partial(CONDITIONAL.apply, evaluation_params(state), method="sample")
    label = jnp.array([0, 1, 2, 0])
    drawn = sample(4, key=key, label=label)
    assert drawn.shape == (4, *SHAPE)
    other = sample(4, key=key, label=(label + 1) % CLASSES)
    assert np.abs(np.asarray(drawn) - np.asarray(other)).reshape(4, -1).max(axis=1).min() > 0
    keys = jax.random.split(key, 4)
    one_by_one = [sample(1, key=each[None], label=label[i : i + 1]) for i, each in enumerate(keys)]
    np.testing.assert_allclose(sample(4, key=keys, label=label), jnp.concatenate(one_by_one), rtol=1e-5, atol=1e-6)


def test_a_resumed_run_is_the_same_bit_for_bit(trained):
    step, states, _ = trained
    saved = pickle.dumps(jax.device_get(states[5].replace(key=jax.random.key_data(states[5].key))))
    state = jax.device_put(pickle.loads(saved))
    state = state.replace(key=jax.random.wrap_key_data(state.key))
    for i in range(5, 12):
        state, _ = step(state, labelled(batch(B, seed=i)))
    chex.assert_trees_all_equal(state, states[12])


def test_a_nan_stops_both_parts_and_names_the_step(trained):
    step, states, _ = trained
    bad = labelled(batch(B, seed=3))
    state, _ = step(states[5], {**bad, "x": bad["x"].at[0, 0].set(jnp.nan)})
    assert int(state.first_bad) == 5
    after, _ = step(state, labelled(batch(B)))
    chex.assert_trees_all_equal(after.params, states[5].params)
    chex.assert_trees_all_equal(after.opt_state, states[5].opt_state)


# ---- bad input


def test_bad_input_is_named(params, joined, key):
    def loss(model=MODEL, own=params, change=None, **options):
        fields = {**batch(B), **(change or {})}
        return jax.eval_shape(lambda: gan_loss(model, own, (), fields, **({"key": key, "step": 0} | options)))

    def vae_gan(critic=CRITIC, own=joined, **options):
        fields = batch(B)
        return jax.eval_shape(
            lambda: vae_gan_loss(VAE, own, (), fields, key=key, step=0, discriminator=critic, **options)
        )

    conditional = jax.eval_shape(lambda: CONDITIONAL.init(key, X, jnp.zeros(B, jnp.int32)))
    for call, error, says in (
        (lambda: loss(critic_steps=0), ValueError, "critic_steps must be at least 1, got 0"),
        (lambda: loss(penalty=-1.0), ValueError, "penalty must be a finite number, zero or more, got -1.0"),
        (lambda: loss(r1=float("nan")), ValueError, "r1 must be a finite number, zero or more, got nan"),
        (lambda: loss(key=0), TypeError, "key must come from jax.random.key, got 0"),
        (lambda: loss(change={"x": jnp.zeros((B, *SHAPE), jnp.uint8)}), TypeError, "x must be floating, got uint8"),
        (lambda: loss(change={"x": jnp.zeros((B, 4, 4, 1))}), ValueError, r"expected x \(batch, 8, 8, 1\)"),
        (lambda: loss(change={"index": None}), ValueError, r"batch\['index'\] must be integers"),
        (lambda: loss(change={"mask": jnp.ones(B, bool)}), ValueError, "the batch has padding"),
        (lambda: loss(change={"observed": jnp.ones((B, *SHAPE), bool)}), ValueError, "gan_loss would read as values"),
        (lambda: loss(CONDITIONAL, conditional), ValueError, "the model takes labels, and the batch has no 'label'"),
        (
            lambda: loss(CONDITIONAL, conditional, {"label": jnp.zeros((B, 1), jnp.int32)}),
            ValueError,
            r"the model takes labels \(6,\), got \(6, 1\)",
        ),
        (
            lambda: MODEL.apply(params, 2, key=key, label=jnp.zeros(2, int), method="sample"),
            ValueError,
            "takes no label",
        ),
        (lambda: MODEL.apply(params, 0, key=key, method="sample"), ValueError, "num must be at least 1, got 0"),
        (lambda: MODEL.apply(params, 2, key=0, method="sample"), TypeError, "key must come from jax.random.key"),
        (lambda: GAN(mlp(D)[1], CRITIC, 0), ValueError, "latent_dim must be at least 1, got 0"),
        (lambda: GAN(mlp(D)[1], "critic", D), TypeError, "GAN.discriminator must be a network or a function"),
        (lambda: vae_gan(gamma=-1.0), ValueError, "gamma must be a finite number"),
        (lambda: vae_gan(layer="layer_7"), ValueError, "there is no layer 'layer_7', only layer_0, layer_1"),
        (lambda: vae_gan(mlp(D)[1]), TypeError, r"must be a Linen module with with_features\(x, layer=\)"),
        (lambda: vae_gan(own={"params": {}}), ValueError, "must hold 'discriminator': init_with_discriminator"),
    ):
        with pytest.raises(error, match=says):
            call()


class BatchNormed(nn.Module):
    """A discriminator whose logits depend on the other examples."""

    def __call__(self, x, train=False):
        return self.with_features(x, train=train)[0]

    @nn.compact
    def with_features(self, x, layer=None, train=False):
        features = nn.BatchNorm(use_running_average=not train)(x.reshape(len(x), -1))
        return nn.Dense(1)(features)[:, 0], features


def test_batch_statistics_in_a_discriminator_are_refused(key):
    with pytest.raises(ValueError, match="keeps parameters alone, this one batch_stats too"):
        init_with_discriminator(VAE, BatchNormed(), X, key=key)
    model = GAN(mlp(D)[1], BatchNormed(), D)
    variables = model.init(key, X)
    own, state = {"params": variables["params"]}, {"batch_stats": variables["batch_stats"]}
    with pytest.raises(ValueError, match="a discriminator with batch statistics judges no example by itself"):
        jax.eval_shape(lambda: gan_loss(model, own, state, batch(B), key=key, step=0))


def test_a_likelihood_of_its_own_parameters_is_the_decoders(key):
    model = jaxvae.VAE(*mlp(D), jaxvae.SharedScale(DiagGaussian))
    params = jax.jit(lambda key: init_with_discriminator(model, CRITIC, X, key=key)[0])(key)
    assert params["params"].keys() == {"encoder", "decoder", "likelihood", "discriminator"}
    loss = lambda params: vae_gan_loss(model, params, (), batch(B), key=key, step=0, discriminator=CRITIC)[0]  # noqa: E731
    gradient = jax.jit(jax.grad(loss))(params)
    assert norms(gradient)["likelihood"] == 0  # only the mean is judged
    assert norms(gradient)["decoder"] > 0
