"""One device or several, by `jit`, `shard_map` or `pmap`: the same parameters, codebook and metrics."""

import os
import subprocess
import sys
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from variants import SHAPE, VARIANTS, batch, vq_vae

import jaxvae
from jaxvae import data

STEPS, BATCH, CLASSES = 20, 16, 3


class Case(NamedTuple):
    """An objective and a model's start, and what turns a batch of the table into one of its own."""

    loss_fn: Any
    init: Any
    examples: Any = lambda images: images


def with_labels(images):
    return {**images, "condition": (images["index"] % CLASSES).astype(jnp.int32)}


def with_codes(images):
    return {"code": jnp.rint(images["image"][..., 0] * 4).astype(jnp.int32), "index": images["index"]}


def conditional():
    model = jaxvae.CVAE(
        jaxvae.Conditioned(jaxvae.MLPEncoder(3, (16,))),
        jaxvae.Conditioned(jaxvae.MLPDecoder(SHAPE, (16,))),
        prior=jaxvae.MLPEncoder(3, (8,)),
        embed=jaxvae.LabelEmbedding(CLASSES, 4),
    )
    init = lambda *, key: (model.init(key, jnp.zeros((1, *SHAPE)), jnp.zeros(1, jnp.int32)), ())  # noqa: E731
    return Case(partial(jaxvae.cvae_loss, model), init, with_labels)


def autoregressive():
    model = jaxvae.PixelCNN(5, SHAPE[:2], channels=4, layers=1)
    init = lambda *, key: (model.init(key, jnp.zeros((1, *SHAPE[:2]), jnp.int32)), ())  # noqa: E731
    return Case(partial(jaxvae.pixel_cnn_loss, model), init, with_codes)


def of_the_table(name):
    return Case(VARIANTS[name].loss_fn, VARIANTS[name].init)


RESTARTING = vq_vae(restart_threshold=0.9, decay=0.5)
MEANS_OVER_EXAMPLES = {
    name: of_the_table(name)
    for name in (
        "convolutional",
        "beta schedule",
        "iwae",
        "doubly reparameterised",
        "hierarchical",
        "autoencoder",
        "semi-supervised",
    )
} | {"conditional": conditional(), "pixel-cnn": autoregressive()}
OF_THE_WHOLE_BATCH = {name: of_the_table(name) for name in ("capacity", "total correlation", "vq-vae, groups")} | {
    "vq-vae with restarts": Case(RESTARTING.loss_fn, RESTARTING.init)
}
CASES = MEANS_OVER_EXAMPLES | OF_THE_WHOLE_BATCH
COMPILERS = {
    "jit": jaxvae.jit_train_step,
    "shard_map": jaxvae.shard_map_train_step,
    "pmap": jaxvae.pmap_train_step,
}


def train(case, optimizer, compiler, mesh=None, steps=STEPS):
    """The state and the last metrics, on the host."""
    state = jaxvae.init_train_state(case.init, optimizer, key=jax.random.key(0), mesh=mesh)
    step = compiler(case.loss_fn, optimizer, mesh=mesh)
    for i in range(steps):
        images = case.examples(batch(BATCH, seed=i))
        # Virtual devices on one CPU can wait for each other forever unless every step is awaited.
        state, metrics = jax.block_until_ready(step(state, images))
    return jax.device_get((state.params, state.model_state, metrics))


def assert_agree(one, many):
    chex.assert_trees_all_close(many, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_four_devices_reach_what_one_reaches(name):
    case, optimizer = CASES[name], optax.sgd(1e-2)  # Adam would hide a gradient four times too large
    one = train(case, optimizer, jaxvae.jit_train_step)
    assert name != "vq-vae with restarts" or one[2]["restarts"] > 0
    for compiler in COMPILERS if name in MEANS_OVER_EXAMPLES else ["jit"]:
        assert_agree(one, train(case, optimizer, COMPILERS[compiler], jaxvae.data_mesh(4)))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [optax.sgd(1e-2), optax.adam(1e-3)], ids=["sgd", "adam"])
@pytest.mark.parametrize("name", CASES)
def test_eight_devices_too(name, optimizer):
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: JAX_NUM_CPU_DEVICES=8")
    one = train(CASES[name], optimizer, jaxvae.jit_train_step)
    for compiler in COMPILERS if name in MEANS_OVER_EXAMPLES else ["jit"]:
        for devices in (4, 8):
            assert_agree(one, train(CASES[name], optimizer, COMPILERS[compiler], jaxvae.data_mesh(devices)))


@pytest.mark.slow
def test_the_tests_for_eight_devices_in_a_process_that_has_them():
    if jax.device_count() >= 8:
        pytest.skip("this process has them")
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-m",
        "slow",
        "-k",
        "eight_devices_too",
        __file__,
    ]
    done = subprocess.run(command, env={**os.environ, "JAX_NUM_CPU_DEVICES": "8"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert f"{2 * len(CASES)} passed" in done.stdout


def test_the_test_sees_a_step_that_forgets_to_average():
    case, optimizer, mesh = CASES["beta schedule"], optax.sgd(1e-2), jaxvae.data_mesh(4)

    def forgetful(loss_fn, optimizer, *, mesh):
        spec = jax.sharding.PartitionSpec
        body = jaxvae.make_train_step(loss_fn, optimizer)
        sharded = jax.shard_map(
            body, mesh=mesh, in_specs=(spec(), spec("data")), out_specs=(spec(), spec()), check_vma=False
        )
        return jax.jit(sharded)

    one = train(case, optimizer, jaxvae.jit_train_step)
    with pytest.raises(AssertionError, match="Not equal"):
        assert_agree(one, train(case, optimizer, forgetful, mesh))


@pytest.mark.parametrize("name", OF_THE_WHOLE_BATCH)
@pytest.mark.parametrize("compiler", ["shard_map", "pmap"])
def test_an_objective_of_the_whole_batch_is_refused_where_devices_see_shares(name, compiler):
    with pytest.raises(ValueError, match=r"not a mean over examples.*jit_train_step\(..., mesh=mesh\)"):
        COMPILERS[compiler](OF_THE_WHOLE_BATCH[name].loss_fn, optax.sgd(1e-2))


@pytest.mark.parametrize("name", ["convolutional", "vq-vae with restarts"])
def test_an_epoch_over_a_mesh_is_the_epoch_of_one_device(name):
    case, optimizer, mesh = CASES[name], optax.sgd(1e-2), jaxvae.data_mesh()
    images = data.from_arrays("noise", np.random.default_rng(0).random((64, *SHAPE)))
    order = data.Order(64, BATCH, epochs=4, seed=0)

    def epochs(mesh):
        state = jaxvae.init_train_state(case.init, optimizer, key=jax.random.key(0), mesh=mesh)
        device = None if mesh is None else jaxvae.replicated(mesh)
        feed = data.Resident(images, order, device=device)
        train_epoch = jaxvae.make_train_epoch(jaxvae.make_train_step(case.loss_fn, optimizer), mesh=mesh)
        state, metrics = jax.block_until_ready(train_epoch(state, *feed(0, order.total_steps)))
        assert state.step == order.total_steps
        if mesh is not None:
            assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves((state.params, metrics)))
        return jax.device_get((state.params, state.model_state, metrics))

    assert_agree(epochs(None), epochs(mesh))


def test_each_device_holds_its_share_of_the_work():
    """The compiled epoch computes a quarter of the batch on each device and adds up the gradients."""
    case, optimizer, mesh = CASES["beta schedule"], optax.sgd(1e-2), jaxvae.data_mesh()
    state = jaxvae.init_train_state(case.init, optimizer, key=jax.random.key(0), mesh=mesh)
    images = jaxvae.shard_batch(batch(20), mesh)
    assert images["image"].addressable_shards[0].data.shape == (5, *SHAPE)
    program = jaxvae.jit_train_step(case.loss_fn, optimizer, mesh=mesh).lower(state, images).compile().as_text()
    assert "all-reduce" in program
    assert "f32[5,64]" in program  # a share of the images, flat
    assert "f32[20,64]" not in program


def test_impossible_splits_are_refused():
    mesh = jaxvae.data_mesh(4)
    with pytest.raises(ValueError, match=r"batch\['image'\] has 6 rows, not a multiple of the 4 devices"):
        jaxvae.shard_batch(batch(6), mesh)
    case = CASES["beta schedule"]
    state = jaxvae.init_train_state(case.init, optax.sgd(1e-2), key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"batch\['image'\] has 6 rows"):
        jaxvae.pmap_train_step(case.loss_fn, optax.sgd(1e-2), mesh=mesh)(state, batch(6))
    with pytest.raises(ValueError, match=r"num_devices must lie in 1 \.\. \d, got 9"):
        jaxvae.data_mesh(9)
