"""What a network keeps besides its parameters: it moves by its own rule, never by the optimiser."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxvae.training import sweep
from jaxvae.training.epoch import make_evaluate, make_train_epoch
from jaxvae.training.mesh import data_mesh
from jaxvae.training.parallel import jit_train_step, pmap_train_step, shard_map_train_step
from jaxvae.training.state import init_train_state
from jaxvae.training.step import make_eval_step, make_train_step

B, D = 8, 5
INDEX = jnp.arange(B, dtype=jnp.int32)
BATCH = {"x": 3.0 + jax.random.normal(jax.random.key(1), (B, D)), "index": INDEX}


class Network(nn.Module):
    """Keeps batch statistics, and constants that it only reads."""

    @nn.compact
    def __call__(self, x, train=True):
        offset = self.variable("constants", "offset", lambda: jnp.full((1, D), 0.1))
        counts = self.variable("constants", "counts", lambda: jnp.arange(D)[None])
        x = x + offset.value * (counts.value % 2)
        return nn.Dense(1)(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))[:, 0]


NETWORK = Network()


def init(*, key):
    return NETWORK.init(key, jnp.zeros((1, D))), ()


def loss_fn(params, model_state, batch, *, key, step):
    variables = {**params, **model_state}
    output, moved = NETWORK.apply(variables, batch["x"], mutable=["batch_stats"])
    loss = ((output - 1.0) ** 2).mean()
    return loss, ({**model_state, **moved}, {"loss": loss})


def frozen_loss_fn(params, model_state, batch, *, key, step):
    output = NETWORK.apply({**params, **model_state}, batch["x"], train=False)
    loss = ((output - 1.0) ** 2).mean()
    return loss, (model_state, {"loss": loss})


def test_collections_move_to_the_model_state_and_parameters_stay():
    state = init_train_state(init, optax.adam(1e-2), key=jax.random.key(0))
    assert set(state.params) == {"params"}
    assert set(state.model_state) == {"batch_stats", "constants"}
    moments = state.opt_state[0]
    assert jax.tree.structure(moments.mu) == jax.tree.structure(state.params)


@pytest.mark.parametrize("epoch", [False, True], ids=["step", "epoch"])
def test_statistics_move_by_their_own_rule_and_constants_not_at_all(epoch):
    optimizer, num = optax.adam(1e-2), 30
    state = init_train_state(init, optimizer, key=jax.random.key(0))
    start = jax.tree.map(np.array, (state.params, state.model_state))
    step = make_train_step(loss_fn, optimizer)
    if epoch:
        state, _ = make_train_epoch(step)(state, BATCH, jnp.tile(INDEX, (num, 1)))
    else:
        step = jax.jit(step)
        for _ in range(num):
            state, _ = step(state, BATCH)
    assert int(state.step) == num
    seen = np.asarray(BATCH["x"], np.float64) + 0.1 * (np.arange(D) % 2)
    share = 0.9**num
    statistics = state.model_state["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(statistics["mean"], (1 - share) * seen.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(statistics["var"], share + (1 - share) * seen.var(axis=0), rtol=1e-5)
    chex.assert_trees_all_equal(state.model_state["constants"], start[1]["constants"])
    assert all(np.any(a != b) for a, b in zip(*map(jax.tree.leaves, (state.params, start[0])), strict=True))


def test_frozen_statistics_stay_bit_for_bit_whatever_the_gradient():
    optimizer = optax.adamw(1e-1, weight_decay=0.1)
    state = init_train_state(init, optimizer, key=jax.random.key(0))
    before = jax.tree.map(np.array, state.model_state)
    for _ in range(5):
        state, _ = jax.jit(make_train_step(frozen_loss_fn, optimizer))(state, BATCH)
    chex.assert_trees_all_equal(state.model_state, before)


def test_evaluation_moves_nothing():
    state = init_train_state(init, optax.adam(1e-2), key=jax.random.key(0))
    before = jax.tree.map(np.array, state.model_state)
    metrics = make_evaluate(make_eval_step(frozen_loss_fn))(state, BATCH, INDEX.reshape(2, -1), key=jax.random.key(0))
    chex.assert_trees_all_equal(state.model_state, before)
    expected, _ = frozen_loss_fn(state.params, state.model_state, BATCH, key=None, step=0)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)


@pytest.mark.parametrize("compiler", [jit_train_step, shard_map_train_step, pmap_train_step])
def test_constants_of_any_type_pass_through_every_compiler(compiler):
    """Integers are not averaged into floats, and equal numbers keep their bits."""
    optimizer = optax.sgd(0.1)
    state = init_train_state(init, optimizer, key=jax.random.key(0))
    before = jax.tree.map(np.array, state.model_state)
    state, _ = jax.block_until_ready(compiler(frozen_loss_fn, optimizer, mesh=data_mesh(4))(state, BATCH))
    chex.assert_trees_all_equal(state.model_state, before)
    chex.assert_trees_all_equal_dtypes(state.model_state, before)


def test_a_state_of_the_models_own_is_kept_beside_the_collections():
    def with_usage(*, key):
        return init(key=key)[0], {"quantizer": {"usage": jnp.ones(3)}}

    def with_parameters(*, key):
        return {**init(key=key)[0], "quantizer": {"codes": jnp.ones(3)}}, ()

    state = init_train_state(with_usage, optax.sgd(0.1), key=jax.random.key(0))
    assert set(state.model_state) == {"batch_stats", "constants", "quantizer"}
    state = init_train_state(with_parameters, optax.sgd(0.1), key=jax.random.key(0))
    assert set(state.params) == {"params", "quantizer"}
    assert set(state.variables) == {"params", "batch_stats", "constants"}


def test_parameters_without_collections_stay_as_they_are():
    """Also those of other frameworks, in any structure."""
    for params in ({"w": jnp.ones(3), "batch_stats": jnp.ones(2)}, [jnp.ones(2)], jnp.ones(2)):
        state = init_train_state(lambda *, key, params=params: (params, ()), optax.sgd(0.1), key=jax.random.key(0))
        chex.assert_trees_all_equal(state.params, params)
        assert state.model_state == ()


def test_members_of_a_sweep_have_their_own():
    keys = jax.vmap(jax.random.key)(jnp.arange(3))
    state = sweep.init_sweep_state(init, optax.sgd(0.0), {"rate": [0.1, 0.2, 0.1]}, keys=keys)
    assert set(state.members.params) == {"params"}
    assert state.members.model_state["batch_stats"]["BatchNorm_0"]["mean"].shape == (3, D)
    epoch = sweep.make_sweep_epoch(lambda n: make_train_step(loss_fn, optax.sgd(n["rate"])))
    state, _ = epoch(state, BATCH, jnp.tile(INDEX, (4, 1)))
    mean = np.asarray(BATCH["x"], np.float64).mean(axis=0) + 0.1 * (np.arange(D) % 2)
    statistics = state.members.model_state["batch_stats"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(statistics, np.tile((1 - 0.9**4) * mean, (3, 1)), rtol=1e-5)


class TestRefusals:
    def refuse(self, params, model_state, error, match):
        for start in (init_train_state, lambda *a, key: sweep.init_sweep_state(*a, {"rate": [0.1]}, keys=key[None])):
            with pytest.raises(error, match=match):
                start(lambda *, key: (params, model_state), optax.sgd(0.1), key=jax.random.key(0))

    def test_nothing_to_train(self):
        says = r"nothing to train: the parameters hold no floating array.*flax.nnx.bridge.to_linen"
        for params in ({}, (), {"params": {}}, {"params": {}, "batch_stats": {"mean": jnp.ones(2)}}):
            self.refuse(params, (), ValueError, says)
        self.refuse({"params": {"table": jnp.arange(3)}}, (), ValueError, says)

    def test_a_model_state_that_cannot_take_collections(self):
        params = {"params": {"w": jnp.ones(2)}, "batch_stats": {"mean": jnp.ones(2)}}
        says = r"the collections 'batch_stats' belong in the model state, which must be \(\) or a dictionary, got list"
        self.refuse(params, [jnp.ones(2)], TypeError, says)
        self.refuse(
            params, {"batch_stats": jnp.ones(2)}, ValueError, "'batch_stats' is in the parameters and in the model"
        )

    def test_a_loss_that_returns_another_state(self):
        def forgetful(params, model_state, batch, *, key, step):
            loss, (_, metrics) = frozen_loss_fn(params, model_state, batch, key=key, step=step)
            return loss, ((), metrics)

        def narrow(params, model_state, batch, *, key, step):
            loss, (_, metrics) = frozen_loss_fn(params, model_state, batch, key=key, step=step)
            halved = lambda leaf: leaf.astype(jnp.float16) if leaf.dtype == jnp.float32 else leaf  # noqa: E731
            return loss, (jax.tree.map(halved, model_state), metrics)

        state = init_train_state(init, optax.sgd(0.1), key=jax.random.key(0))
        with pytest.raises(ValueError, match="the loss returned a model state of another structure"):
            make_train_step(forgetful, optax.sgd(0.1))(state, BATCH)
        with pytest.raises(
            ValueError, match=r"model_state\['batch_stats'\]\['BatchNorm_0'\]\['mean'\] as float16\(5,\)"
        ):
            make_train_step(narrow, optax.sgd(0.1))(state, BATCH)


def test_a_state_that_stops_being_finite_stops_the_run_at_its_step():
    """Also where parameters and loss never see it."""

    def poisoned(params, model_state, batch, *, key, step):
        loss, (state, metrics) = loss_fn(params, model_state, batch, key=key, step=step)
        factor = jnp.where(step == 3, math.inf, 1.0)
        return loss, (
            {**state, "constants": jax.tree.map(lambda c: (c * factor).astype(c.dtype), state["constants"])},
            metrics,
        )

    optimizer = optax.sgd(0.1)
    state = init_train_state(init, optimizer, key=jax.random.key(0))
    step = jax.jit(make_train_step(poisoned, optimizer))
    for _ in range(6):
        state, _ = step(state, BATCH)
    assert int(state.first_bad) == 3
    assert int(state.step) == 4  # it went past that one, and no further
