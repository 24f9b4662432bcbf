from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from variants import VARIANTS, batch

import jaxvae
from jaxvae.training import sweep
from jaxvae.training.step import make_train_step

VARIANT = VARIANTS["bernoulli"]
NUMBERS = {"beta": [0.0, 1.0, 4.0, 1.0], "learning_rate": [1e-2, 1e-2, 1e-2, 1e-3]}
SEEDS = [0, 0, 1, 2]
HOWS = pytest.mark.parametrize("how", ["vmap", pytest.param("map", marks=pytest.mark.slow)])
INDICES = jnp.asarray(np.random.default_rng(0).integers(0, 20, (10, 6)), jnp.int32)


def keys(seeds=SEEDS):
    return jax.vmap(jax.random.key)(jnp.asarray(seeds))


def make_step(numbers, optimizer=optax.sgd):
    loss_fn = partial(jaxvae.vae_loss, VARIANT.model, beta=numbers["beta"])
    return make_train_step(loss_fn, optimizer(numbers["learning_rate"]))


def init(numbers=NUMBERS, optimizer=optax.sgd):
    return sweep.init_sweep_state(VARIANT.init, optimizer(0.0), numbers, keys=keys())


@pytest.mark.parametrize(
    ("how", "optimizer"),
    [pytest.param("map", optax.sgd, marks=pytest.mark.slow), pytest.param("vmap", optax.adam, marks=pytest.mark.slow)],
)
def test_a_member_is_the_run_with_its_numbers(how, optimizer):
    examples = batch(20)
    indices = INDICES.at[8:].set(-1)
    state, metrics = sweep.make_sweep_epoch(partial(make_step, optimizer=optimizer), how=how)(
        init(optimizer=optimizer), examples, indices
    )
    assert int(state.step) == 8
    assert state.members.step.tolist() == [8] * 4
    for m in (2, 3):  # which share no number
        seed, numbers = SEEDS[m], {name: values[m] for name, values in NUMBERS.items()}
        one = jaxvae.init_train_state(VARIANT.init, optimizer(0.0), key=jax.random.key(seed))
        one, expected = jaxvae.make_train_epoch(make_step(numbers, optimizer))(one, examples, indices)
        member = jax.tree.map(lambda leaf, m=m: leaf[m], state.members)
        chex.assert_trees_all_close(member.params, one.params, atol=1e-5, rtol=1e-4)
        for name in expected:
            assert metrics[name].shape == (10, 4)
            np.testing.assert_allclose(metrics[name][:, m], expected[name], rtol=1e-4)


@HOWS
def test_other_numbers_do_not_compile_again(how):
    examples = batch(20)
    traced = []

    def step(numbers):
        traced.append(numbers)
        # A schedule of a traced peak, and a traced rate.
        beta = optax.linear_schedule(0.0, numbers["beta"], 5)
        return make_train_step(partial(jaxvae.vae_loss, VARIANT.model, beta=beta), optax.sgd(numbers["learning_rate"]))

    epoch = sweep.make_sweep_epoch(step, how=how)
    losses, programs = [], []
    for beta in (1.0, 3.0):
        state = init({**NUMBERS, "beta": [beta] * 4})
        for _ in range(2):
            state, metrics = epoch(state, examples, INDICES)
            programs.append(len(traced))
        losses.append(metrics["loss"])
    assert programs == programs[:1] * 4
    assert not np.allclose(*losses)


def test_a_member_that_fails_stands_still_and_the_others_go_on():
    examples = batch(20)
    state = init({**NUMBERS, "learning_rate": [1e-2, float("inf"), 1e-2, 1e-3]})
    epoch = sweep.make_sweep_epoch(make_step)
    state, _ = epoch(state, examples, INDICES)
    assert state.members.first_bad.tolist() == [-1, 0, -1, -1]
    assert state.members.step.tolist() == [10, 0, 10, 10]
    assert int(state.step) == 10
    assert int(state.first_bad) == -1

    state, _ = epoch(init({**NUMBERS, "learning_rate": [float("inf")] * 4}), examples, INDICES)
    assert int(state.first_bad) == 0


@HOWS
def test_members_that_overflow_at_steps_of_their_own_take_those_before(how):
    """Side by side they share one loop, which starts again for each of them."""

    def loss_fn(limit, params, model_state, batch, *, key, step):
        loss, (_, metrics) = VARIANT.loss_fn(params, (), batch, key=key, step=step)
        return loss, ({"count": jnp.where(step == limit, jnp.inf, model_state["count"] + 1.0)}, metrics)

    def start(*, key):
        return VARIANT.init(key=key)[0], {"count": jnp.float32(0)}

    numbers = {"limit": [7.0, 99.0, 3.0, 3.0]}
    epoch = sweep.make_sweep_epoch(lambda n: make_train_step(partial(loss_fn, n["limit"]), optax.sgd(1e-2)), how=how)
    examples, state = batch(20), sweep.init_sweep_state(start, optax.sgd(0.0), numbers, keys=keys())
    state, metrics = epoch(state, examples, INDICES)
    assert state.members.first_bad.tolist() == [7, -1, 3, 3]
    assert state.members.step.tolist() == state.members.model_state["count"].tolist() == [7, 10, 3, 3]
    assert int(state.first_bad) == -1
    free = sweep.init_sweep_state(start, optax.sgd(0.0), {"limit": [99.0] * 4}, keys=keys())
    for count, member in ((7, 0), (10, 1), (3, 2), (3, 3)):
        expected, every = epoch(jax.tree.map(jnp.copy, free), examples, INDICES.at[count:].set(-1))
        for got, right in zip(*(jax.tree.leaves(s.members.params) for s in (state, expected)), strict=True):
            np.testing.assert_allclose(got[member], right[member], rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(metrics["loss"][:count, member], every["loss"][:count, member], rtol=1e-5)


def test_a_sweep_ends_where_its_last_member_stops():
    def loss_fn(limit, params, model_state, batch, *, key, step):
        loss, aux = VARIANT.loss_fn(params, model_state, batch, key=key, step=step)
        return jnp.where(step == limit, jnp.nan, loss), aux

    epoch = sweep.make_sweep_epoch(lambda n: make_train_step(partial(loss_fn, n["limit"]), optax.sgd(1e-2)))
    state = sweep.init_sweep_state(VARIANT.init, optax.sgd(0.0), {"limit": [2.0, 5.0, 4.0, 2.0]}, keys=keys())
    state, _ = epoch(state, batch(20), INDICES)
    assert int(state.first_bad) == 5


def test_members_with_one_key_start_alike():
    state = init()
    leaves = jax.tree.leaves(state.members.params)
    assert all(np.array_equal(leaf[0], leaf[1]) for leaf in leaves)
    assert not all(np.array_equal(leaf[0], leaf[2]) for leaf in leaves)


def test_impossible_sweeps_are_refused():
    with pytest.raises(ValueError, match=r"beta must be \[M\], one for each of 4 members, got \(3,\)"):
        init({**NUMBERS, "beta": [1.0, 2.0, 3.0]})
    with pytest.raises(TypeError, match=r"key must come from jax.random.key"):
        sweep.init_sweep_state(VARIANT.init, optax.sgd(0.1), NUMBERS, keys=jnp.arange(4))
    with pytest.raises(TypeError, match="key must be a threefry key"):
        sweep.init_sweep_state(VARIANT.init, optax.sgd(0.1), {"beta": [1.0]}, keys=jax.random.key(0, impl="rbg")[None])
    with pytest.raises(ValueError, match="how must be 'vmap' or 'map', got 'scan'"):
        sweep.make_sweep_epoch(make_step, how="scan")
    with pytest.raises(ValueError, match="how must be 'vmap' or 'map', got 'pmap'"):
        sweep.map_members(jnp.sum, jnp.zeros((2, 3)), how="pmap")
