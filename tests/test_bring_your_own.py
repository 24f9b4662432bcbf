"""What users plug in is trained, saved and checked, or refused by name with the way out."""

import functools
import pickle
from functools import partial
from typing import NamedTuple

import chex
import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from flax import nnx
from variants import SHAPE, batch, mlp

import jaxvae
from jaxvae import checkpoint, data
from jaxvae.distributions import Bernoulli, DiagGaussian
from jaxvae.keys import noise
from jaxvae.objectives import needs_whole_batch

B, D = 6, 3
ZEROS = jnp.zeros((1, *SHAPE))


def flat(x):
    return x.reshape(len(x), -1)


class NNXEncoder(nnx.Module):
    def __init__(self, *, rngs):
        self.hidden = nnx.Linear(64, 16, rngs=rngs)
        self.mean, self.log_var = nnx.Linear(16, D, rngs=rngs), nnx.Linear(16, D, rngs=rngs)
        self.latent_dim = D

    def __call__(self, x):
        features = nnx.relu(self.hidden(flat(x)))
        return self.mean(features), self.log_var(features)


class NNXDecoder(nnx.Module):
    def __init__(self, *, rngs):
        self.layers = nnx.List([nnx.Linear(D, 16, rngs=rngs), nnx.Linear(16, 64, rngs=rngs)])

    def __call__(self, latent):
        return self.layers[1](nnx.relu(self.layers[0](latent))).reshape(-1, *SHAPE)


class LinenEncoder(nn.Module):
    latent_dim: int = D

    @nn.compact
    def __call__(self, x):
        features = nn.relu(nn.Dense(16, name="hidden")(flat(x)))
        return nn.Dense(D, name="mean")(features), nn.Dense(D, name="log_var")(features)


class LinenDecoder(nn.Module):
    @nn.compact
    def __call__(self, latent):
        return nn.Dense(64, name="1")(nn.relu(nn.Dense(16, name="0")(latent))).reshape(-1, *SHAPE)


class Moving(nn.Module):
    """Batch statistics and dropout, by the usual argument."""

    latent_dim: int = D
    rate: float = 0.0

    @nn.compact
    def __call__(self, x, train):
        features = nn.BatchNorm(use_running_average=not train, momentum=0.9)(nn.Dense(16)(flat(x)))
        features = nn.Dropout(self.rate, deterministic=not train)(nn.relu(features))
        return nn.Dense(D)(features), nn.Dense(D)(features)


class Dropping(nn.Module):
    latent_dim: int = D

    @nn.compact
    def __call__(self, x, *, deterministic):
        features = nn.Dropout(0.5, deterministic=deterministic)(nn.relu(nn.Dense(16)(flat(x))))
        return nn.Dense(D)(features), nn.Dense(D)(features)


def start(model, optimizer, key, loss=jaxvae.vae_loss):
    state = jaxvae.init_train_state(lambda *, key: (model.init(key, ZEROS), ()), optimizer, key=key)
    return state, jaxvae.make_train_step(partial(loss, model), optimizer)


def evaluate(model, state, examples, key, loss=jaxvae.vae_loss):
    step = jax.jit(jaxvae.make_eval_step(partial(loss, model)))
    sums, weight = step(
        state.params, state.model_state, {**examples, "weight": jnp.ones(B)}, key=key, step=jnp.int32(0)
    )
    return {name: value / weight for name, value in sums.items()}


def test_an_nnx_model_reaches_the_loss_of_the_same_linen_one_and_survives_save_and_load(key, tmp_path):
    def make(config):
        return jaxvae.VAE(NNXEncoder(rngs=nnx.Rngs(0)), NNXDecoder(rngs=nnx.Rngs(1)))

    model, optimizer = make(None), optax.adam(1e-2)
    state, step = start(model, optimizer, key)
    given = model.encoder.held.module
    np.testing.assert_array_equal(state.params["params"]["encoder"]["mean"]["kernel"], given.mean.kernel[...])
    linen = jaxvae.VAE(LinenEncoder(), LinenDecoder())
    params = {
        "params": {"encoder": state.params["params"]["encoder"], "decoder": state.params["params"]["decoder"]["layers"]}
    }
    chex.assert_trees_all_equal_shapes(params, linen.init(key, ZEROS))
    other = jaxvae.init_train_state(lambda *, key: (params, ()), optimizer, key=key)
    other_step = jaxvae.make_train_step(partial(jaxvae.vae_loss, linen), optimizer)

    def run(step, state):
        step, losses = jax.jit(step), []
        for i in range(50):
            state, metrics = step(state, batch(B, seed=i))
            losses.append(float(metrics["loss"]))
        return state, losses

    (state, losses), (other, expected) = run(step, state), run(other_step, other)
    np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert losses[-1] < losses[0] - 1
    assert not np.array_equal(given.mean.kernel[...], state.params["params"]["encoder"]["mean"]["kernel"])

    run_dir = tmp_path / "run"
    with checkpoint.Checkpointer(run_dir / "checkpoints", meta={}) as saver:
        saver.save(state)
    (run_dir / "config.json").write_text("{}")
    loaded, params, model_state, _ = checkpoint.load(run_dir, make)
    expected = model.apply(state.params, batch(B)["x"]).mean
    np.testing.assert_array_equal(loaded.apply(params, batch(B)["x"]).mean, expected)
    assert model_state == ()


@pytest.mark.slow
def test_an_nnx_networks_statistics_and_streams_are_the_steps(key):
    class Encoder(nnx.Module):
        def __init__(self, *, rngs):
            self.linear, self.norm = nnx.Linear(64, 2 * D, rngs=rngs), nnx.BatchNorm(2 * D, rngs=rngs)
            self.dropout, self.latent_dim = nnx.Dropout(0.5, rngs=rngs), D

        def __call__(self, x):
            return tuple(jnp.split(self.dropout(self.norm(self.linear(flat(x)))), 2, axis=1))

    model = jaxvae.VAE(Encoder(rngs=nnx.Rngs(0)), mlp(D)[1])
    state, step = start(model, optax.sgd(0.0), key)
    assert set(state.model_state) == {"batch_stats"}
    losses = []
    for _ in range(3):  # the parameters stand still: what differs is the noise
        state, metrics = jax.jit(step)(state, batch(B))
        losses.append(float(metrics["distortion"]))
    assert len(set(losses)) == 3
    features = flat(batch(B)["x"]) @ state.params["params"]["encoder"]["linear"]["kernel"]
    moved = 1 - 0.99**3
    np.testing.assert_allclose(
        state.model_state["batch_stats"]["encoder"]["norm"]["mean"], moved * features.mean(axis=0), rtol=1e-4, atol=1e-6
    )
    one, two = (evaluate(model, state, batch(B), key)["rate"] for _ in range(2))
    np.testing.assert_array_equal(one, two)


def test_batch_statistics_move_by_their_own_rule_and_are_frozen_in_evaluation(key):
    model = jaxvae.VAE(Moving(), mlp(D)[1])
    state, step = start(model, optax.adam(1e-2), key)
    assert set(state.params) == {"params"}
    before = evaluate(model, state, batch(B), key)
    features = flat(batch(B)["x"]) @ state.params["params"]["encoder"]["Dense_0"]["kernel"]
    after, metrics = jax.jit(step)(state, batch(B))
    stats = after.model_state["batch_stats"]["encoder"]["BatchNorm_0"]
    np.testing.assert_allclose(stats["mean"], 0.1 * features.mean(axis=0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * features.var(axis=0), rtol=1e-4)
    assert not np.allclose(metrics["loss"], before["loss"], rtol=1e-3)  # of the batch, not of the running average
    adam = jax.tree.leaves(after.opt_state)
    assert not any(leaf.shape == (16,) and np.array_equal(leaf, stats["mean"]) for leaf in adam)
    paths = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(after.opt_state)}
    assert not any("batch_stats" in path for path in paths)

    state = after
    for i in range(60):
        state, metrics = jax.jit(step)(state, batch(B, seed=i % 3))
    assert evaluate(model, state, batch(B), key)["loss"] < before["loss"] - 1
    together, single = evaluate(model, state, batch(B), key), []
    for i in range(B):
        alike = {name: jnp.repeat(values[i : i + 1], B, axis=0) for name, values in batch(B).items()}
        single.append(evaluate(model, state, alike, key)["loss"])
    np.testing.assert_allclose(together["loss"], np.mean(single), rtol=1e-5)


def test_batch_statistics_need_the_whole_batch(key):
    model = jaxvae.VAE(Moving(), mlp(D)[1])
    state, _ = start(model, optax.sgd(0.1), key)
    from jaxvae.training.parallel import shard_map_train_step

    step = shard_map_train_step(partial(jaxvae.vae_loss, model), optax.sgd(0.1))
    examples = batch(8)
    with pytest.raises(ValueError, match=r"networks keep batch_stats is not a mean over examples.*jit_train_step"):
        step(state, examples)


def test_a_network_that_moves_its_statistics_in_evaluation_too_is_refused(key):
    class Stubborn(nn.Module):
        latent_dim: int = D

        @nn.compact
        def __call__(self, x):
            features = nn.BatchNorm(use_running_average=False)(nn.Dense(2 * D)(flat(x)))
            return tuple(jnp.split(features, 2, axis=1))

    model = jaxvae.VAE(Stubborn(), mlp(D)[1])
    state, step = start(model, optax.sgd(0.1), key)
    jax.jit(step)(state, batch(B))
    with pytest.raises(
        ValueError, match="give its __call__ an argument train, and write use_running_average=not train"
    ):
        evaluate(model, state, batch(B), key)


@pytest.mark.parametrize("encoder", [Moving(rate=0.5), Dropping()], ids=["train", "deterministic"])
def test_dropout_draws_anew_in_training_and_not_in_evaluation(encoder, key):
    model = jaxvae.VAE(encoder, mlp(D)[1])
    state, step = start(model, optax.sgd(0.0), key)
    step = jax.jit(step)
    first, metrics = step(state, batch(B))
    again = step(state, batch(B))[1]
    later = step(first, batch(B))[1]
    assert metrics["rate"] == again["rate"]
    assert metrics["rate"] != later["rate"]  # the rate has no other noise
    plain = jax.jit(partial(model.apply, method="encode"))(
        {**state.params, **dict(state.model_state or {})}, batch(B)["x"]
    )
    rate = float(jaxvae.losses.gaussian_kl(*plain).mean())
    for k in range(2):
        np.testing.assert_allclose(evaluate(model, state, batch(B), jax.random.key(k))["rate"], rate, rtol=1e-5)


class Affine:
    """A network that keeps its weights where training cannot see them."""

    def __init__(self, weights):
        self.weights = weights

    def __call__(self, x):
        return tuple(jnp.split(flat(x) @ self.weights, 2, axis=1))


WEIGHTS = np.random.default_rng(0).normal(size=(64, 2 * D)).astype(np.float32)


def closed_over(weights):
    return lambda x: Affine(weights)(x)


class Nested(nn.Module):
    inner: object
    latent_dim: int = D

    def __call__(self, x):
        return self.inner(x)


def equinox(x=None):
    return eqx.nn.MLP(64, 2 * D, 8, 1, key=jax.random.key(0))


HIDING = {
    "equinox": equinox,
    "object": lambda: Affine(jnp.asarray(WEIGHTS)),
    "closure": lambda: closed_over(jnp.asarray(WEIGHTS)),
    "partial": lambda: partial(lambda x, w: Affine(w)(x), w=jnp.asarray(WEIGHTS)),
    "bound method": lambda: Affine(jnp.asarray(WEIGHTS)).__call__,
    "jitted": lambda: jax.jit(closed_over(jnp.asarray(WEIGHTS))),
    "within a Linen module": lambda: Nested(Affine(jnp.asarray(WEIGHTS))),
}


@pytest.mark.parametrize("make", HIDING.values(), ids=HIDING)
@pytest.mark.parametrize("wrap", [lambda part: part, jaxvae.Unconditioned], ids=["plain", "wrapped"])
def test_hidden_arrays_are_refused_by_name(make, wrap):
    with pytest.raises(TypeError, match=r"VAE\.encoder.* holds a JAX array float32\[.*\] that no training reaches"):
        jaxvae.VAE(wrap(make()), mlp(D)[1])


def test_hidden_arrays_are_refused_in_every_part_of_every_model():
    hiding, (encoder, decoder) = equinox(), mlp(D)
    for part in ("encoder", "decoder", "likelihood", "posterior", "prior"):
        parts = {"encoder": encoder, "decoder": decoder, part: hiding}
        with pytest.raises(TypeError, match=rf"VAE\.{part}.* holds a JAX array"):
            jaxvae.VAE(**parts)
    with pytest.raises(TypeError, match=r"CVAE\.embed.* holds a JAX array"):
        jaxvae.CVAE(encoder, decoder, embed=hiding)
    with pytest.raises(TypeError, match=r"Autoencoder\.decoder.* holds a JAX array"):
        jaxvae.Autoencoder(decoder, hiding)
    with pytest.raises(TypeError, match=r"HierarchicalVAE\.encoders\[1\].* holds a JAX array"):
        jaxvae.HierarchicalVAE((encoder, hiding), (decoder, decoder))
    with pytest.raises(TypeError, match=r"SemiSupervisedVAE\.classifier.* holds a JAX array"):
        jaxvae.SemiSupervisedVAE(jaxvae.CVAE(encoder, decoder, embed=jaxvae.LabelEmbedding(3)), hiding)
    with pytest.raises(TypeError, match=r"VQVAE\.encoder.* holds a JAX array"):
        jaxvae.VQVAE(hiding, decoder, jaxvae.EMACodebook(8))
    with pytest.raises(TypeError, match=r"NNX module inside another object.*to_linen"):
        jaxvae.VAE(Nested(NNXEncoder(rngs=nnx.Rngs(0))), decoder)
    with pytest.raises(TypeError, match="must be a network, got the class MLPEncoder: make one of it first"):
        jaxvae.VAE(jaxvae.MLPEncoder, decoder)


def test_constants_are_numpy_arrays_and_scalars_of_any_kind(key):
    model = jaxvae.VAE(Affine(WEIGHTS), mlp(D)[1], partial(DiagGaussian, log_var=jnp.float32(-1.0)))
    params = model.init(key, ZEROS)
    assert set(params["params"]) == {"decoder"}
    assert np.isfinite(jaxvae.vae_loss(model, params, (), batch(B), key=key, step=0)[0])


class Scalar(NamedTuple):
    """A record whose log_prob forgets the batch."""

    mean: jax.Array

    def log_prob(self, x):
        return Bernoulli(self.mean).log_prob(x).sum()

    def sample(self, *, key):
        return self.mean


class Halved(DiagGaussian):
    def log_prob(self, x):
        return super().log_prob(x)[:, None]


@pytest.mark.parametrize(
    "loss", [jaxvae.vae_loss, jaxvae.sampled_vae_loss, partial(jaxvae.iwae_loss, num_samples=2), jaxvae.beta_vae_loss]
)
def test_a_log_prob_that_is_not_one_number_for_each_example_is_refused(loss, key):
    encoder, decoder = mlp(D)
    for name, parts in (
        ("the likelihood", {"likelihood": Scalar}),
        ("the posterior", {"posterior": Halved}),
        ("the prior", {"prior": lambda: Halved(jnp.zeros((B, D)), jnp.zeros((B, D)))}),
    ):
        model = jaxvae.VAE(encoder, decoder, **parts)
        with pytest.raises(ValueError, match=rf"{name}'s log_prob must be \((6|12),\), one number of nats .* got \("):
            jax.eval_shape(partial(loss, model, step=0), jax.jit(model.init)(key, ZEROS), (), batch(B), key=key)


def fixed(*outputs):
    return lambda x: outputs if len(outputs) != 1 else outputs[0]


@pytest.mark.parametrize(
    ("encoder", "error", "message"),
    [
        (fixed(jnp.zeros(())), TypeError, r"must return a tuple with an array for each argument .*, got float32\[\]"),
        (lambda x: jnp.zeros((len(x), D)), TypeError, r"such as \(mean, log_var\), got float32\[6, 3\]"),
        (lambda x: (jnp.zeros((len(x), D)), jnp.zeros(D)), ValueError, r"output 1 of the encoder must be \(6, ...\)"),
        (
            lambda x: (jnp.zeros((1, D)),) * 2,
            ValueError,
            r"output 0 of the encoder must be \(6, ...\), .* got \(1, 3\)",
        ),
        (
            lambda x: (jnp.zeros((len(x), 1)), jnp.zeros((len(x), D))),
            ValueError,
            r"log_var must broadcast to its mean \(6, 1\), got \(6, 3\)",
        ),
    ],
)
def test_an_encoders_output_is_checked_where_it_enters(encoder, error, message, key):
    model = jaxvae.VAE(encoder, mlp(D)[1])
    with pytest.raises(error, match=message):
        model.apply({}, batch(B)["x"], method="encode")


@pytest.mark.parametrize("error", [ValueError, TypeError, KeyError, RuntimeError])
def test_an_exception_of_the_users_arrives_as_it_was_raised(error, key):
    class Picky(nn.Module):
        latent_dim: int = D

        @nn.compact
        def __call__(self, x):
            if x.shape[1] != 8:
                raise error("only eight will do")
            return jaxvae.MLPEncoder(D)(x)

    model = jaxvae.VAE(Picky(), mlp(D)[1])
    params = model.init(key, ZEROS)
    examples = {"x": jnp.zeros((B, 7, 7, 1)), "index": jnp.arange(B)}
    with pytest.raises(error, match="only eight will do"):
        jaxvae.vae_loss(model, params, (), examples, key=key, step=0)


class Laplace(NamedTuple):
    """A posterior of a user's own, and its record."""

    mean: jax.Array
    log_scale: jax.Array

    def log_prob(self, z):
        return (-jnp.abs(z - self.mean) * jnp.exp(-self.log_scale) - self.log_scale - jnp.log(2.0)).sum(axis=-1)

    def sample(self, *, key):
        return self.mean + jnp.exp(self.log_scale) * noise(jax.random.laplace, key, self.mean.shape)


class Uniform(NamedTuple):
    """What the prior below says: uniform on (-limit, limit), with soft walls."""

    limit: jax.Array

    def log_prob(self, z):
        walls = 10.0 * jax.nn.relu(jnp.abs(z) - self.limit)
        return -(walls + jnp.log(2 * self.limit)).sum(axis=-1)

    def sample(self, num, *, key):
        return self.limit * (2 * jax.random.uniform(key, (num, D)) - 1)


class LearnedUniform(nn.Module):
    @nn.compact
    def __call__(self):
        return Uniform(jnp.exp(self.param("log_limit", nn.initializers.ones, ())))


def own_model(config=None):
    encoder, decoder = mlp(D)
    return jaxvae.VAE(encoder, decoder, posterior=Laplace, prior=LearnedUniform())


def test_a_posterior_and_a_prior_of_ones_own_train_are_evaluated_saved_and_loaded(key, tmp_path):
    model, optimizer = own_model(), optax.adam(1e-2)
    x = np.asarray(batch(64)["x"])
    dataset = data.from_arrays("mine", x)
    feed = data.Resident(dataset, data.Order(num_examples=64, batch_size=16, epochs=30, seed=0))
    state, step = start(model, optimizer, key)
    before = np.asarray(state.params["params"]["prior"]["log_limit"]), evaluate(model, state, batch(B), key)["loss"]
    with checkpoint.Checkpointer(tmp_path / "run" / "checkpoints", meta={}) as saver:
        result = jaxvae.fit(state, jaxvae.make_train_epoch(step), feed, checkpointer=saver)
    state = result.state
    assert float(state.params["params"]["prior"]["log_limit"]) != float(before[0])
    assert evaluate(model, state, batch(B), key)["loss"] < before[1] - 1

    sampled = evaluate(model, state, batch(B), key, jaxvae.sampled_vae_loss)
    np.testing.assert_allclose(sampled["loss"], evaluate(model, state, batch(B), key)["loss"], rtol=1e-5)
    estimate = jaxvae.log_likelihood(model, state.params, (), batch(B), jnp.arange(B)[None], key=key, num_samples=500)
    assert 0 < estimate.nll < sampled["loss"]

    (tmp_path / "run" / "config.json").write_text("{}")
    loaded, params, model_state, _ = checkpoint.load(tmp_path / "run", own_model)
    chex.assert_trees_all_equal(params, state.params)
    assert model_state == ()
    assert loaded.apply(params, 4, key=key, method="sample").mean.shape == (4, *SHAPE)


def test_a_posterior_that_samples_with_its_density_is_never_asked_twice(key):
    class Together(NamedTuple):
        mean: jax.Array
        log_var: jax.Array

        def log_prob(self, z):
            raise AssertionError("it need not invert")

        def sample(self, *, key):
            raise AssertionError("it need not sample alone")

        def sample_and_log_prob(self, *, key):
            record = DiagGaussian(*self)
            z = record.sample(key=key)
            return z, record.log_prob(z)

    encoder, decoder = mlp(D)
    plain, together = jaxvae.VAE(encoder, decoder), jaxvae.VAE(encoder, decoder, posterior=Together)
    params = plain.init(key, ZEROS)
    for loss in (jaxvae.sampled_vae_loss, partial(jaxvae.iwae_loss, num_samples=4)):
        values = [loss(model, params, (), batch(B), key=key, step=0)[0] for model in (plain, together)]
        np.testing.assert_allclose(*values, rtol=1e-6)


def test_models_pickle(key):
    encoder, decoder = mlp(D)
    cvae = jaxvae.CVAE(*map(jaxvae.Conditioned, mlp(D)), embed=jaxvae.LabelEmbedding(3))
    for model in (
        jaxvae.VAE(encoder, decoder),
        jaxvae.VAE(encoder, decoder, jaxvae.SharedScale(), prior=jaxvae.GaussianMixture(3, D)),
        cvae,
        jaxvae.SemiSupervisedVAE(cvae, jaxvae.MLPDecoder((3,))),
        jaxvae.Autoencoder(jaxvae.MLPDecoder((D,)), decoder),
        jaxvae.HierarchicalVAE((encoder, encoder), (decoder, encoder)),
        jaxvae.VQVAE(jaxvae.ResidualEncoder(4), jaxvae.ResidualDecoder(1), jaxvae.EMACodebook(8)),
        jaxvae.PixelCNN(4, (5, 5)),
        jaxvae.TransformerPrior((4, 3), [5, 5], prefix=[3, 7]),
    ):
        assert pickle.loads(pickle.dumps(model)) == model
        assert hash(pickle.loads(pickle.dumps(model))) == hash(model)
    model = jaxvae.VAE(NNXEncoder(rngs=nnx.Rngs(0)), decoder, partial(DiagGaussian, log_var=0.0))
    copy, params = pickle.loads(pickle.dumps(model)), model.init(key, ZEROS)
    np.testing.assert_array_equal(copy.apply(params, batch(B)["x"]).mean, model.apply(params, batch(B)["x"]).mean)


def wrapped_by_def(loss):
    def plain(params, model_state, batch, *, key, step):
        return loss(params, model_state, batch, key=key, step=step)

    return plain


WRAPPERS = {
    "none": lambda f: f,
    "def": wrapped_by_def,
    "jit": jax.jit,
    "wraps": lambda f: functools.wraps(f)(wrapped_by_def(f)),
}
WHOLE = {
    "free bits": partial(jaxvae.beta_vae_loss, free_bits=0.5),
    "capacity": partial(jaxvae.beta_vae_loss, capacity=5.0),
    "total correlation": partial(jaxvae.tc_vae_loss, num_examples=100),
}


@pytest.mark.parametrize("wrap", WRAPPERS.values(), ids=WRAPPERS)
@pytest.mark.parametrize("loss", WHOLE.values(), ids=WHOLE)
def test_a_whole_batch_objective_is_refused_example_by_example_and_on_shares(loss, wrap, key):
    from jaxvae.training.parallel import pmap_train_step, shard_map_train_step

    model = jaxvae.VAE(*mlp(D))
    state, _ = start(model, optax.sgd(0.1), key)
    objective = wrap(partial(loss, model))
    examples = batch(8)
    jax.eval_shape(objective, state.params, state.model_state, examples, key=key, step=jnp.int32(0))
    step = jaxvae.make_eval_step(objective)
    with pytest.raises(ValueError, match="cannot be evaluated example by example; evaluate by vae_loss"):
        step(state.params, state.model_state, {**examples, "weight": jnp.ones(8)}, key=key, step=jnp.int32(0))
    for make in (shard_map_train_step, pmap_train_step):
        with pytest.raises(ValueError, match=r"cannot take a share of the batch each: compile it by jit_train_step"):
            make(objective, optax.sgd(0.1))(state, examples)


def test_an_objective_of_ones_own_declares_itself(key):
    def own(params, model_state, batch, *, key, step):
        needs_whole_batch("own")
        return (params["w"] * batch["x"]).std(), (model_state, {})

    examples = {"x": jnp.arange(4.0), "weight": jnp.ones(4)}
    with pytest.raises(ValueError, match=r"own is not a mean over examples, .*; evaluate by an objective that is one"):
        jaxvae.make_eval_step(own)({"w": jnp.ones(())}, (), examples, key=key, step=0)


def test_other_generators_are_refused_wherever_noise_belongs_to_the_example():
    key, model = jax.random.key(0, impl="rbg"), jaxvae.VAE(*mlp(D))
    params = model.init(jax.random.key(0), ZEROS)
    for call in (
        lambda: jaxvae.vae_loss(model, params, (), batch(B), key=key, step=0),
        lambda: jaxvae.iwae_loss(model, params, (), batch(B), key=key, step=0, num_samples=2),
        lambda: jaxvae.tc_vae_loss(model, params, (), batch(B), key=key, step=0, num_examples=9),
        lambda: model.apply(params, 3, key=key, method="sample"),
        lambda: data.make_prepare(2, binarize=True)(batch(B), key=key),
        lambda: start(model, optax.sgd(0.1), key),
        lambda: jaxvae.log_likelihood(model, params, (), batch(B), jnp.arange(B)[None], key=key, num_samples=2),
        lambda: jaxvae.keys.noise(jax.random.normal, key, (3, 2)),
    ):
        with pytest.raises(TypeError, match=r"must be a threefry key, .* got one of rbg: .*impl='threefry2x32'"):
            call()


def test_terms_of_another_shape_are_refused(key):
    class Wrong(nn.Module):
        def terms(self, x, *, key, num_samples):
            return jaxvae.types.Terms(jnp.zeros(len(x)), jnp.zeros((1, len(x))), {})

    with pytest.raises(ValueError, match=r"the model's terms must have log_likelihood \[S, 6\], got \(6,\)"):
        jaxvae.vae_loss(Wrong(), {}, (), batch(B), key=key, step=0)


def test_a_latent_model_of_ones_own_needs_terms_alone(key):
    class Constant(nn.Module):
        @nn.compact
        def __call__(self, x):
            return self.terms(x, key=jax.random.key(0), num_samples=1)

        @nn.compact
        def terms(self, x, *, key, num_samples):
            logit = self.param("logit", nn.initializers.zeros, ())
            nats = Bernoulli(jnp.broadcast_to(logit, x.shape)).log_prob(x)[None]
            return jaxvae.types.Terms(nats, jnp.zeros_like(nats), {"none": jnp.zeros((1, len(x), 1))})

    model = Constant()
    state, step = start(model, optax.adam(0.1), key)
    assert float(jax.jit(step)(state, batch(B))[1]["loss"]) == pytest.approx(64 * np.log(2), rel=1e-5)
    estimate = jaxvae.log_likelihood(model, state.params, (), batch(B), jnp.arange(B)[None], key=key, num_samples=3)
    assert estimate.nll == pytest.approx(64 * np.log(2), rel=1e-5)


def test_an_autoencoder_gives_x_no_probability(key):
    model = jaxvae.Autoencoder(jaxvae.MLPDecoder((D,)), mlp(D)[1])
    params = model.init(key, ZEROS)
    sampled = jaxvae.sampled_vae_loss, partial(jaxvae.iwae_loss, num_samples=2)
    for loss in (*sampled, jaxvae.vae_loss, jaxvae.beta_vae_loss):
        with pytest.raises(ValueError, match="this model has no prior, so it gives x no probability"):
            loss(model, params, (), batch(B), key=key, step=0)
    with pytest.raises(ValueError, match="leaves out the rate of a model with a prior: train it by vae_loss"):
        jaxvae.autoencoder_loss(own_model(), own_model().init(key, ZEROS), (), batch(B), key=key, step=0)


class MovingDecoder(nn.Module):
    @nn.compact
    def __call__(self, latent, train):
        features = nn.BatchNorm(use_running_average=not train)(nn.Dense(16)(latent))
        return nn.Dense(64)(nn.relu(features)).reshape(-1, *SHAPE)


def test_a_decoders_statistics_move_under_every_objective_or_it_is_refused(key):
    model = jaxvae.VAE(mlp(D)[0], MovingDecoder())
    state, _ = start(model, optax.sgd(0.1), key)
    before = state.model_state["batch_stats"]["decoder"]["BatchNorm_0"]["mean"]
    for loss in (
        jaxvae.vae_loss,
        partial(jaxvae.iwae_loss, num_samples=2),
        partial(jaxvae.tc_vae_loss, num_examples=9),
    ):
        _, (moved, _) = jax.jit(partial(loss, model, step=0))(state.params, state.model_state, batch(B), key=key)
        assert not np.array_equal(moved["batch_stats"]["decoder"]["BatchNorm_0"]["mean"], before)
    twice = partial(jaxvae.iwae_loss, num_samples=2, doubly_reparameterized=True)
    with pytest.raises(ValueError, match="must not keep batch statistics: use doubly_reparameterized=False"):
        jax.eval_shape(partial(twice, model, step=0), state.params, state.model_state, batch(B), key=key)


@pytest.mark.slow
def test_a_semi_supervised_models_cvae_must_not_keep_statistics(key):
    class Decoder(nn.Module):
        @nn.compact
        def __call__(self, latent, condition, train):
            return MovingDecoder()(jnp.concatenate([latent, condition], axis=1), train)

    cvae = jaxvae.CVAE(jaxvae.Conditioned(mlp(D)[0]), Decoder(), embed=jaxvae.LabelEmbedding(3))
    model = jaxvae.SemiSupervisedVAE(cvae, jaxvae.MLPDecoder((3,)))
    state, _ = start(model, optax.sgd(0.1), key)
    examples = batch(B) | {"label": jnp.arange(B) % 3}
    loss = partial(jaxvae.semi_supervised_loss, model, classification_weight=1.0)
    with pytest.raises(ValueError, match="its networks must not keep batch statistics; the classifier may"):
        jax.eval_shape(partial(loss, step=0), state.params, state.model_state, examples, key=key)
