"""One device or several, by `jit`, `shard_map` or `pmap`: the same parameters, codebook and metrics."""

import os
import subprocess
import sys
from functools import cache, partial
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
from jaxvae._whole_batch import needs_whole_batch
from jaxvae.losses import WASSERSTEIN
from jaxvae.models import GAN
from jaxvae.networks import MLPDiscriminator, StyleGenerator
from jaxvae.objectives import gan_loss, init_with_discriminator, vae_gan_loss, vq_gan_loss
from jaxvae.training.mesh import data_mesh, replicated
from jaxvae.training.parallel import pmap_train_step, shard_batch, shard_map_train_step

STEPS, BATCH, CLASSES = 20, 16, 3


class Case(NamedTuple):
    """An objective and a model's start, and what turns a batch of the table into one of its own."""

    loss_fn: Any
    init: Any
    examples: Any = lambda batch: batch


def with_labels(batch):
    return {**batch, "condition": (batch["index"] % CLASSES).astype(jnp.int32)}


def with_codes(batch):
    return {"code": jnp.rint(batch["x"][..., 0] * 4).astype(jnp.int32), "index": batch["index"]}


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


def adversarial(objective, generator=None, **options):
    """A GAN with its penalty, the generator's turn every second step; or a VAE and its discriminator."""
    critic = MLPDiscriminator((16,))
    if objective is gan_loss:
        model = GAN(generator or jaxvae.MLPDecoder(SHAPE, (16,)), critic, 3)
        init = lambda *, key: (model.init(key, jnp.zeros((1, *SHAPE))), ())  # noqa: E731
        return Case(partial(objective, model, **options), init)
    model = jaxvae.VAE(jaxvae.MLPEncoder(3, (16,)), jaxvae.MLPDecoder(SHAPE, (16,)))
    init = partial(init_with_discriminator, model, critic, jnp.zeros((1, *SHAPE)))
    return Case(partial(objective, model, discriminator=critic, **options), init)


def quantized_adversarially():
    critic = MLPDiscriminator((16,))
    model = vq_vae(jaxvae.EMACodebook(8, restart_threshold=0.0)).model
    init = partial(init_with_discriminator, model, critic, jnp.zeros((8, *SHAPE)))
    return Case(partial(vq_gan_loss, model, discriminator=critic, variance=0.1), init)


def of_the_table(name):
    return Case(VARIANTS[name].loss_fn, VARIANTS[name].init)


RESTARTING = vq_vae(jaxvae.EMACodebook(8, decay=0.5, restart_threshold=0.9))
MEANS_OVER_EXAMPLES = {
    name: of_the_table(name)
    for name in (
        "convolutional",
        "beta schedule",
        "iwae",
        "doubly reparameterised",
        "hierarchical",
        "top-down",
        "autoencoder",
        "semi-supervised",
        "pixelcnn++",
        "pixelrnn",
    )
} | {
    "conditional": conditional(),
    "pixel-cnn": autoregressive(),
    "wgan-gp": adversarial(gan_loss, loss=WASSERSTEIN, penalty=10.0, critic_steps=2),
    "gan of styles": adversarial(gan_loss, StyleGenerator(SHAPE, channels=(4,), mapping=(8,))),
    "vae/gan": adversarial(vae_gan_loss),
}
OF_THE_WHOLE_BATCH = {
    name: of_the_table(name) for name in ("capacity", "total correlation", "ladder, free bits", "vq-vae, groups")
} | {"vq-vae with restarts": Case(RESTARTING.loss_fn, RESTARTING.init), "vq-gan": quantized_adversarially()}
CASES = MEANS_OVER_EXAMPLES | OF_THE_WHOLE_BATCH
COMPILERS = {
    "jit": jaxvae.jit_train_step,
    "shard_map": shard_map_train_step,
    "pmap": pmap_train_step,
}


@cache
def started(init, optimizer):
    """A state at step 0, compiled once for all that train from it."""
    return jaxvae.init_train_state(init, optimizer, key=jax.random.key(0))


def train(case, optimizer, compiler, mesh=None, steps=STEPS):
    """The state and the last metrics, on the host."""
    state = jax.tree.map(jnp.copy, started(case.init, optimizer))  # a step may give its memory away
    state = jax.device_put(state, None if mesh is None else replicated(mesh))
    step = compiler(case.loss_fn, optimizer, mesh=mesh)
    for i in range(steps):
        examples = case.examples(batch(BATCH, seed=i))
        # Virtual devices on one CPU can wait for each other forever unless every step is awaited.
        state, metrics = jax.block_until_ready(step(state, examples))
    return jax.device_get((state.params, state.model_state, metrics))


def assert_agree(one, many):
    chex.assert_trees_all_close(many, one, rtol=1e-5, atol=1e-5)


SGD = optax.sgd(1e-2)  # Adam would hide a gradient four times too large


@cache
def on_one_device(name):
    return train(CASES[name], SGD, jaxvae.jit_train_step)


@pytest.mark.parametrize(
    ("name", "compiler"),
    [
        *(("beta schedule", compiler) for compiler in COMPILERS),  # every case by every compiler: eight devices, below
        ("total correlation", "jit"),
        ("wgan-gp", "shard_map"),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("capacity", "jit"),
                ("conditional", "pmap"),
                ("convolutional", "jit"),
                ("semi-supervised", "shard_map"),
                ("gan of styles", "pmap"),
                ("top-down", "pmap"),
                ("vae/gan", "pmap"),
                ("vq-gan", "jit"),
                ("ladder, free bits", "jit"),
            )
        ),
    ],
)
def test_four_devices_reach_what_one_reaches(name, compiler):
    assert_agree(on_one_device(name), train(CASES[name], SGD, COMPILERS[compiler], data_mesh(4)))


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [optax.sgd(1e-2), optax.adam(1e-3)], ids=["sgd", "adam"])
@pytest.mark.parametrize("name", CASES)
def test_eight_devices_too(name, optimizer):
    if jax.device_count() < 8:
        pytest.skip("needs 8 devices: JAX_NUM_CPU_DEVICES=8")
    one = train(CASES[name], optimizer, jaxvae.jit_train_step)
    for compiler in COMPILERS if name in MEANS_OVER_EXAMPLES else ["jit"]:
        for devices in (4, 8):
            assert_agree(one, train(CASES[name], optimizer, COMPILERS[compiler], data_mesh(devices)))


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
    def forgetful(loss_fn, optimizer, *, mesh):
        spec = jax.sharding.PartitionSpec
        body = jaxvae.make_train_step(loss_fn, optimizer)
        sharded = jax.shard_map(
            body, mesh=mesh, in_specs=(spec(), spec("data")), out_specs=(spec(), spec()), check_vma=False
        )
        return jax.jit(sharded)

    with pytest.raises(AssertionError, match="Not equal"):
        assert_agree(on_one_device("beta schedule"), train(CASES["beta schedule"], SGD, forgetful, data_mesh(4)))


@pytest.mark.parametrize("compiler", COMPILERS)
def test_every_device_skips_the_same_steps(compiler):
    def uneven_loss(params, model_state, batch, *, key, step):
        loss, (model_state, metrics) = mean_loss(params, model_state, batch, key=key, step=step)
        return loss * jnp.where(step % 3 == 2, 1e6, 1.0), (model_state, metrics)

    case, skipping = Case(uneven_loss, linear), partial(COMPILERS[compiler], skip_above=1e3)
    one, many = (train(case, SGD, skipping, mesh, steps=6) for mesh in (data_mesh(1), data_mesh(4)))
    assert_agree(one, many)
    assert many[2]["skipped"] == 1
    assert np.abs(many[0]["w"]).max() < 1  # a step of a million would have moved it away


REFUSED = r"not a mean over examples.*jit_train_step\(..., mesh=mesh\)"


@pytest.mark.parametrize("name", OF_THE_WHOLE_BATCH)
@pytest.mark.parametrize("compiler", ["shard_map", "pmap"])
def test_an_objective_of_the_whole_batch_is_refused_where_devices_see_shares(name, compiler):
    with pytest.raises(ValueError, match=REFUSED):
        train(OF_THE_WHOLE_BATCH[name], optax.sgd(1e-2), COMPILERS[compiler], data_mesh(4), steps=1)


def mean_loss(params, model_state, batch, *, key, step):
    loss = ((batch["x"].reshape(len(batch["x"]), -1) @ params["w"] - 1.0) ** 2).mean()
    return loss, (model_state, {"loss": loss})


def whole_loss(params, model_state, batch, *, key, step):
    needs_whole_batch("whole_loss")
    return mean_loss(params, model_state, batch, key=key, step=step)


def plain(*arguments, **keywords):
    return whole_loss(*arguments, **keywords)


def linear(*, key):
    return {"w": 0.01 * jax.random.normal(key, (64,))}, ()


@pytest.mark.parametrize("compiler", ["shard_map", "pmap"])
@pytest.mark.parametrize("wrapper", ["itself", "def", "partial", "jit", "jit traced before", "def in a jitted partial"])
def test_no_wrapper_hides_an_objective_of_the_whole_batch(wrapper, compiler):
    loss_fn = {
        "itself": whole_loss,
        "def": plain,
        "partial": partial(whole_loss),
        "def in a jitted partial": jax.jit(partial(plain)),
    }.get(wrapper, jax.jit(whole_loss))
    case = Case(loss_fn, linear)
    if wrapper == "jit traced before":  # by a step that may, for a batch of a share's size
        train(case, optax.sgd(1e-2), jaxvae.jit_train_step, steps=1)
        loss_fn(linear(key=jax.random.key(0))[0], (), batch(BATCH // 4), key=jax.random.key(0), step=0)
    with pytest.raises(ValueError, match=REFUSED):
        train(case, optax.sgd(1e-2), COMPILERS[compiler], data_mesh(4), steps=1)
    train(case, optax.sgd(1e-2), jaxvae.jit_train_step, data_mesh(4), steps=1)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_an_optimiser_that_wants_the_loss_gets_its_mean_over_the_devices(compiler):
    case, optimizer = Case(mean_loss, linear), optax.polyak_sgd(max_learning_rate=0.1)
    one = train(case, optimizer, jaxvae.jit_train_step, steps=3)  # its rate is chaotic near the minimum
    assert_agree(one, train(case, optimizer, COMPILERS[compiler], data_mesh(4), steps=3))


@pytest.mark.parametrize("compiler", COMPILERS)
def test_a_line_search_is_refused_where_no_device_knows_the_loss(compiler):
    case, mesh = Case(mean_loss, linear), data_mesh(4)
    if compiler == "jit":
        one = train(case, optax.lbfgs(), jaxvae.jit_train_step, steps=3)
        assert_agree(one, train(case, optax.lbfgs(), jaxvae.jit_train_step, mesh, steps=3))
    else:
        with pytest.raises(ValueError, match=r"searches along a line.*jit_train_step\(..., mesh=mesh\)"):
            train(case, optax.lbfgs(), COMPILERS[compiler], mesh, steps=1)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_an_overflow_on_one_device_stops_all_of_them(compiler):
    """Example 3 of 16 belongs to the first of four devices."""

    def loss_fn(params, model_state, batch, *, key, step):
        loss, aux = mean_loss(params, model_state, batch, key=key, step=step)
        bad = jnp.where((batch["index"] == 3) & (step == 2), 1e30, 0.0).mean()
        return loss + bad * params["w"].sum(), aux

    mesh = data_mesh(4)
    optimizer = optax.chain(optax.sgd(1e-2), optax.scale_by_schedule(lambda n: jnp.where(n == 2, 1e12, 1.0)))
    state = jaxvae.init_train_state(linear, optimizer, key=jax.random.key(0), mesh=mesh)
    step = COMPILERS[compiler](loss_fn, optimizer, mesh=mesh)
    for i in range(4):
        state, _ = jax.block_until_ready(step(state, batch(BATCH, seed=i)))
    assert int(state.first_bad) == 2
    assert int(state.step) == 3  # past it, and no further


@pytest.mark.slow
def test_an_epoch_over_a_mesh_is_the_epoch_of_one_device():
    """Of a codebook, whose state is that of the whole batch: each device looks for codes to restart in all of it."""
    case, optimizer, mesh = CASES["vq-vae with restarts"], optax.sgd(1e-2), data_mesh()
    dataset = data.from_arrays("noise", np.random.default_rng(0).random((64, *SHAPE)))
    order = data.Order(64, BATCH, epochs=4, seed=0)

    def epochs(mesh):
        state = jaxvae.init_train_state(case.init, optimizer, key=jax.random.key(0), mesh=mesh)
        device = None if mesh is None else replicated(mesh)
        feed = data.Resident(dataset, order, device=device)
        train_epoch = jaxvae.make_train_epoch(jaxvae.make_train_step(case.loss_fn, optimizer), mesh=mesh)
        state, metrics = jax.block_until_ready(train_epoch(state, *feed(0, order.total_steps)))
        assert state.step == order.total_steps
        if mesh is not None:
            assert all(leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves((state.params, metrics)))
        return jax.device_get((state.params, state.model_state, metrics))

    one = epochs(None)
    assert one[2]["restarts"].sum() > 0
    assert_agree(one, epochs(mesh))


def test_each_device_holds_its_share_of_the_work():
    """The compiled epoch computes a quarter of the batch on each device and adds up the gradients."""
    case, optimizer, mesh = CASES["beta schedule"], optax.sgd(1e-2), data_mesh()
    state = jaxvae.init_train_state(case.init, optimizer, key=jax.random.key(0), mesh=mesh)
    examples = shard_batch(batch(20), mesh)
    assert examples["x"].addressable_shards[0].data.shape == (5, *SHAPE)
    program = jaxvae.jit_train_step(case.loss_fn, optimizer, mesh=mesh).lower(state, examples).compile().as_text()
    assert "all-reduce" in program
    assert "f32[5,64]" in program  # a share of x, flat
    assert "f32[20,64]" not in program


@pytest.mark.parametrize("num", [6, 2, 0])
def test_impossible_splits_are_refused(num):
    mesh, case, optimizer = data_mesh(4), Case(mean_loss, linear), optax.sgd(1e-2)
    says = rf"batch\['(x|index)'\] has {num} examples, not a multiple of the 4 devices" if num else "holds no examples"
    with pytest.raises(ValueError, match=says):
        shard_batch(batch(num), mesh)
    for compiler in COMPILERS.values():
        state = jaxvae.init_train_state(linear, optimizer, key=jax.random.key(0))
        with pytest.raises(ValueError, match=says):
            compiler(case.loss_fn, optimizer, mesh=mesh)(state, batch(num))
    if num:
        train_epoch = jaxvae.make_train_epoch(jaxvae.make_train_step(case.loss_fn, optimizer), mesh=mesh)
        source = jax.device_put(batch(20), replicated(mesh))
        with pytest.raises(ValueError, match=f"a batch of {num} examples is not a multiple of the 4 devices"):
            train_epoch(state, source, jnp.zeros((3, num), jnp.int32))


def test_a_mesh_of_more_devices_than_there_are_is_refused():
    with pytest.raises(ValueError, match=r"num_devices must lie in 1 \.\. \d, got 9"):
        data_mesh(9)
