"""Checkpoints restore exactly or raise: round trips, the keep policy, errors. Kills and faults: test_faults.py."""

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, struct

from jaxvae._directory import RunDirectory
from jaxvae.checkpoint import Checkpointer, DamagedCheckpointError, check_settings, load, read_checkpoint
from jaxvae.training.state import init_train_state
from jaxvae.training.step import make_train_step

# Where one array cannot be read, orbax leaves its event loop without the others, and asyncio complains.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


class State(struct.PyTreeNode):
    step: Any
    params: Any
    model_state: Any
    opt_state: Any
    key: Any


class Codebook(NamedTuple):
    frequency: jax.Array
    moment: jax.Array


def make_state(step, seed=0, model_state=()):
    key = jax.random.key(seed)
    kernel = jax.random.normal(key, (40, 3))
    params = {"dense": {"kernel": kernel, "bias": jnp.arange(3, dtype=jnp.bfloat16)}}
    optimizer = optax.adam(1e-3)
    _, opt_state = optimizer.update(params, optimizer.init(params), params)
    return State(jnp.int32(step), params, model_state, opt_state, jax.random.fold_in(key, step))


def assert_same(restored, state):
    assert jax.tree.structure(restored) == jax.tree.structure(state)
    for got, want in zip(jax.tree.leaves(restored), jax.tree.leaves(state), strict=True):
        assert type(got) is type(want)
        assert got.dtype == want.dtype
        assert got.shape == want.shape
        if jnp.issubdtype(want.dtype, jax.dtypes.prng_key):
            got, want = jax.random.key_data(got), jax.random.key_data(want)
        assert np.asarray(got).tobytes() == np.asarray(want).tobytes()


def steps(directory):
    return sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdecimal())


def save_all(directory, values, **options):
    """Save steps 10, 20, ..., one for each value."""
    with Checkpointer(directory, meta={"seed": 3}, **options) as checkpointer:
        for index, value in enumerate(values, start=1):
            checkpointer.save(make_state(10 * index, seed=index), value=value)


@pytest.mark.parametrize(
    "model_state",
    [
        (),
        Codebook(jnp.ones(4), jnp.full((4, 2), 0.1)),
        {"batch_stats": {"mean": jnp.zeros(2)}, "quantizer": {"frequency": jnp.ones(4), "moment": jnp.ones((4, 2))}},
    ],
)
def test_a_state_comes_back_bit_for_bit(tmp_path, model_state):
    state = make_state(7, model_state=model_state)
    with Checkpointer(tmp_path, meta={"seed": 0}) as checkpointer:
        checkpointer.save(state)
        assert_same(checkpointer.restore(state), state)
    shapes = jax.eval_shape(lambda: make_state(0, model_state=model_state))
    with Checkpointer(tmp_path, meta={}) as checkpointer:
        assert_same(checkpointer.restore(shapes), state)


def test_numpys_arrays_and_scalars_come_back_as_such(tmp_path):
    state = make_state(1, model_state={"mean": np.arange(3.0), "count": np.int32(7), "sum": np.array(0.5, np.float32)})
    with Checkpointer(tmp_path, meta={}) as checkpointer:
        checkpointer.save(state)
        restored = checkpointer.restore(state)
    assert_same(restored, state)


def test_a_saved_state_may_be_donated_at_once(tmp_path):
    def forward(state):
        return state.replace(params=jax.tree.map(lambda leaf: leaf * 2, state.params), step=state.step + 1)

    step = jax.jit(forward, donate_argnums=0)
    state, expected = step(make_state(0)), step(make_state(0))
    with Checkpointer(tmp_path, meta={}) as checkpointer:
        checkpointer.save(state)
        step(state)
        restored = checkpointer.restore(make_state(0))
        assert_same(restored, expected)
        step(restored)  # what was restored may be donated too
        assert_same(checkpointer.restore(make_state(0)), expected)


def test_the_target_says_where_arrays_go(tmp_path):
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("data",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    state = make_state(1, model_state={"rows": jax.device_put(jnp.arange(8.0), rows)})
    with Checkpointer(tmp_path, meta={}) as checkpointer:
        checkpointer.save(state)
        restored = checkpointer.restore(jax.device_put(state, everywhere))
        assert all(leaf.sharding == everywhere for leaf in jax.tree.leaves(restored))
        assert checkpointer.restore(state).model_state["rows"].sharding == rows
    assert_same(restored, state)


def test_settings_and_value_are_stored(tmp_path):
    save_all(tmp_path, [3.0])
    with Checkpointer(tmp_path, meta={"seed": 4}) as checkpointer:
        assert checkpointer.saved_meta == {"seed": 3}
        assert (checkpointer.latest_step, checkpointer.best_step, checkpointer.best_value) == (10, 10, 3.0)
    _, record = read_checkpoint(tmp_path / "10", make_state(0))
    assert record["step"] == 10
    assert record["environment"]["jax"] == jax.__version__
    assert record["arrays"]["params/dense/kernel"]["type"] == "float32[40, 3]"


@pytest.mark.parametrize(
    ("values", "keep", "kept", "best"),
    [
        ([None] * 4, 2, [30, 40], None),
        ([3.0, 1.0, 2.0, 4.0, 5.0], 2, [20, 40, 50], 20),
        ([3.0, 1.0, float("nan"), float("-inf"), float("nan")], 1, [20, 50], 20),
        ([float("nan"), float("inf")], 1, [20], None),
        ([3.0, 2.0, 1.0], 1, [30], 30),
        ([1.0, 1.0, 1.0], 1, [10, 30], 10),
    ],
)
def test_the_newest_and_the_best_are_kept(tmp_path, values, keep, kept, best):
    save_all(tmp_path, values, keep=keep)
    assert steps(tmp_path) == kept
    with Checkpointer(tmp_path, meta={}, keep=keep) as checkpointer:
        assert checkpointer.best_step == best
        assert checkpointer.latest_step == kept[-1]


def test_the_best_survives_restarts(tmp_path):
    save_all(tmp_path, [1.0, 2.0], keep=1)
    for step, value in ((30, 1.5), (40, float("nan")), (50, None)):
        with Checkpointer(tmp_path, meta={}, keep=1) as checkpointer:
            checkpointer.save(make_state(step), value=value)
        assert steps(tmp_path) == [10, step]
    with Checkpointer(tmp_path, meta={}, keep=1) as checkpointer:
        assert (checkpointer.best_step, checkpointer.best_value) == (10, 1.0)
        checkpointer.save(make_state(60), value=0.5)
    assert steps(tmp_path) == [60]


def test_a_save_counts_once_it_is_on_disk(tmp_path):
    with Checkpointer(tmp_path, meta={}) as checkpointer:
        checkpointer.save(make_state(10), value=1.0)
        assert (checkpointer.latest_step, checkpointer.best_step) == (None, None)
        checkpointer.wait()
        assert (checkpointer.latest_step, checkpointer.best_step) == (10, 10)


@pytest.mark.parametrize("step", [5, 10])
def test_an_existing_or_lower_step_is_refused(tmp_path, step):
    save_all(tmp_path, [None])
    with Checkpointer(tmp_path, meta={}) as checkpointer:
        with pytest.raises(ValueError, match=f"cannot save step {step}: .* already holds step 10"):
            checkpointer.save(make_state(step))
        assert_same(checkpointer.restore(make_state(0)), make_state(10, seed=1))


def test_unusable_directories_are_refused_at_once(tmp_path):
    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    for directory in (in_the_way, in_the_way / "below"):
        with pytest.raises(ValueError, match=f"cannot write checkpoints in {directory}"):
            Checkpointer(directory, meta={})
    with pytest.raises(ValueError, match=r"directory must be absolute, got runs/one; use .*resolve\(\)"):
        Checkpointer("runs/one", meta={})
    with pytest.raises(ValueError, match="keep must be at least 1, got 0"):
        Checkpointer(tmp_path, meta={}, keep=0)
    with pytest.raises(TypeError, match="not JSON serializable"):
        Checkpointer(tmp_path, meta={"out": tmp_path})


def test_a_directory_that_vanished_raises_at_once(tmp_path):
    directory = tmp_path / "checkpoints"
    with Checkpointer(directory, meta={}) as checkpointer:
        for thread in threading.enumerate():  # orbax cleans up there at first, in the background
            if "_target_setting_result" in thread.name:
                thread.join()
        shutil.rmtree(directory)
        directory.write_text("in the way")
        with pytest.raises(OSError, match="Not a directory"):
            checkpointer.save(make_state(1))
        assert checkpointer.latest_step is None


@pytest.mark.parametrize("notice", ["wait", "close", "save"])
def test_a_save_that_fails_in_the_background_raises(tmp_path, notice):
    state = make_state(10, model_state=jax.random.normal(jax.random.key(0), (200, 1000)))
    checkpointer = Checkpointer(tmp_path, meta={})
    checkpointer.save(make_state(5))
    checkpointer.wait()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # as a full disk
    try:
        checkpointer.save(state)
        actions = {
            "wait": checkpointer.wait,
            "close": checkpointer.close,
            "save": lambda: checkpointer.save(state),
        }
        with pytest.raises(OSError, match=f"cannot save in {tmp_path}: File too large; the last good .* is step 5"):
            actions[notice]()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpointer.latest_step == 5
    checkpointer.close()
    assert steps(tmp_path) == [5]


def test_nothing_to_restore_is_an_error(tmp_path):
    with Checkpointer(tmp_path, meta={}) as checkpointer:
        with pytest.raises(FileNotFoundError, match=f"no checkpoint in {tmp_path}"):
            checkpointer.restore(make_state(0))
        checkpointer.save(make_state(10))
        with pytest.raises(FileNotFoundError, match=r"no checkpoint of step 20 in .*, which holds \[10\]"):
            checkpointer.restore(make_state(0), step=20)


def test_every_array_that_does_not_fit_is_listed(tmp_path):
    save_all(tmp_path, [None])
    state = make_state(0)
    dense = {"kernel": jnp.zeros((40, 4)), "bias": jnp.zeros(3), "scale": jnp.zeros(())}
    checkpointer = Checkpointer(tmp_path, meta={})
    with checkpointer, pytest.raises(ValueError, match="does not fit") as raised:
        checkpointer.restore(state.replace(params={"dense": dense}, opt_state=()))
    lines = str(raised.value).splitlines()[1:]
    assert [line.strip() for line in lines] == [
        "opt_state/0/count: int32[] -> absent",
        "opt_state/0/mu/dense/bias: bfloat16[3] -> absent",
        "opt_state/0/mu/dense/kernel: float32[40, 3] -> absent",
        "opt_state/0/nu/dense/bias: bfloat16[3] -> absent",
        "opt_state/0/nu/dense/kernel: float32[40, 3] -> absent",
        "params/dense/bias: bfloat16[3] -> float32[3]",
        "params/dense/kernel: float32[40, 3] -> float32[40, 4]",
        "params/dense/scale: absent -> float32[]",
    ]


def test_states_that_cannot_be_told_apart_are_refused(tmp_path):
    state = make_state(1)
    with Checkpointer(tmp_path, meta={}) as checkpointer:
        with pytest.raises(ValueError, match="two arrays have the path params/a/b"):
            checkpointer.save(state.replace(params={"a": {"b": state.step}, "a/b": state.step}))
        with pytest.raises(TypeError, match=r"params/rate must be an array, got 0\.1"):
            checkpointer.save(state.replace(params={"rate": 0.1}))


def test_a_failed_state_is_kept_apart(tmp_path):
    broken = make_state(30, seed=9)
    with Checkpointer(tmp_path, meta={}) as checkpointer:
        checkpointer.save(make_state(30, seed=1), value=1.0)
        first = checkpointer.save_failed(make_state(29))
        assert checkpointer.save_failed(broken) == first == tmp_path / "failed"
    restored, _ = read_checkpoint(first, make_state(0))
    assert_same(restored, broken)
    with Checkpointer(tmp_path, meta={}) as checkpointer:
        assert (checkpointer.latest_step, checkpointer.best_step) == (30, 30)
        assert_same(checkpointer.restore(broken), make_state(30, seed=1))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == [".lock", "30", "failed"]


def test_a_changed_environment_is_named(tmp_path, monkeypatch):
    save_all(tmp_path, [None])
    flags = os.environ.get("XLA_FLAGS", "")
    monkeypatch.setenv("XLA_FLAGS", "--xla_cpu_enable_fast_math=true")
    changed = f"XLA_FLAGS: {flags} -> --xla_cpu_enable_fast_math=true"
    checkpointer = Checkpointer(tmp_path, meta={})
    with checkpointer, pytest.warns(UserWarning, match=changed) as caught:
        checkpointer.restore(make_state(0))
    (said,) = [str(warning.message) for warning in caught if "the environment changed" in str(warning.message)]
    assert "python" not in said


def test_check_settings_lists_what_differs():
    saved = {"seed": 1, "hidden": [500, 500], "epochs": 5, "beta": 1.0}
    check_settings(saved, {"seed": 1, "hidden": (500, 500), "epochs": 9, "beta": 1.0}, may_change={"epochs"})
    with pytest.raises(ValueError, match=r"beta: 1\.0 -> absent; epochs: 5 -> 9; new: absent -> True; seed: 1 -> 2$"):
        check_settings(saved, {"seed": 2, "hidden": [500, 500], "epochs": 9, "new": True})


class Network(nn.Module):
    size: int

    @nn.compact
    def __call__(self, x, training=False):
        return nn.BatchNorm(use_running_average=not training)(nn.Dense(self.size)(x))


def make_model(config):
    return Network(config.network["size"])


def variables_of(params, model_state):
    return {"params": params["params"], "batch_stats": model_state["batch_stats"]}


def loss_fn(params, model_state, batch, *, key, step):
    """It reads every part of the parameters and of the state, and moves each."""
    features, moved = Network(2).apply(
        variables_of(params, model_state), batch["x"], training=True, mutable="batch_stats"
    )
    quantizer = jax.tree.map(lambda leaf: 0.9 * leaf, model_state["quantizer"])
    loss = jnp.mean((features - params["quantizer"]["codes"] + model_state["quantizer"]["moment"]) ** 2)
    return loss, ({**moved, "quantizer": quantizer}, {"loss": loss})


def init(*, key):
    variables = Network(2).init(key, jnp.zeros((1, 3)))
    quantizer = {"frequency": jnp.ones(4), "moment": jnp.full((1, 2), 0.5)}
    params = {"params": variables["params"], "quantizer": {"codes": jnp.arange(2.0)[None]}}
    return params, {"batch_stats": variables["batch_stats"], "quantizer": quantizer}


def write_run(run_dir, values, start=init):
    """A run with a checkpoint after each step; its states and its step."""
    optimizer = optax.sgd(0.1)
    step = jax.jit(make_train_step(loss_fn, optimizer))
    batch = {"x": jax.random.normal(jax.random.key(1), (8, 3)), "index": jnp.arange(8, dtype=jnp.int32)}
    states = [init_train_state(start, optimizer, key=jax.random.key(0))]
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.json").write_text(json.dumps({"seed": 3, "network": {"size": 2}}))
    with Checkpointer(run_dir / "checkpoints", meta={}) as checkpointer:
        for value in values:
            states.append(step(states[-1], batch)[0])
            checkpointer.save(states[-1], value=value)
    return states


@pytest.mark.parametrize(
    ("values", "step", "loaded"), [([2.0, 3.0], None, 1), ([None, None], None, 2), ([2.0, 3.0], 2, 2)]
)
def test_a_trained_model_loads_in_two_lines(tmp_path, values, step, loaded):
    states = write_run(tmp_path, values)
    model, params, model_state, config = load(tmp_path, make_model, step=step)
    assert config.seed == 3
    assert_same(params, states[loaded].params)
    assert_same(model_state, states[loaded].model_state)
    features = model.apply(variables_of(params, model_state), jnp.ones((4, 3)))
    kept = variables_of(states[loaded].params, states[loaded].model_state)
    np.testing.assert_array_equal(features, model.apply(kept, jnp.ones((4, 3))))


def test_training_goes_on_from_what_was_loaded(tmp_path):
    states = write_run(tmp_path / "run", [None] * 4)
    _, params, model_state, _ = load(tmp_path / "run", make_model, step=3)
    _, further = write_run(tmp_path / "further", [None], start=lambda *, key: (params, model_state))
    assert_same(further.params, states[4].params)
    assert_same(further.model_state, states[4].model_state)


def save_one(run_dir, params, model_state=()):
    run_dir.mkdir(exist_ok=True)
    (run_dir / "config.json").write_text('{"network": {"size": 2}}')
    with Checkpointer(run_dir / "checkpoints", meta={}) as checkpointer:
        checkpointer.save(make_state(1).replace(params=params, model_state=model_state))
    return run_dir


@pytest.mark.parametrize(
    ("model_state", "loaded"),
    [
        ((), ()),
        ({}, ()),
        (jnp.float32(3.0), jnp.float32(3.0)),
        ({"layers": {0: jnp.zeros(1), 10: jnp.ones(1)}}, {"layers": {0: jnp.zeros(1), 10: jnp.ones(1)}}),
        ({"0": jnp.zeros(1), "a/b": jnp.ones(1)}, {"0": jnp.zeros(1), "a/b": jnp.ones(1)}),
        ([jnp.zeros(1), (jnp.ones(1),)], {0: jnp.zeros(1), 1: {0: jnp.ones(1)}}),
        (Codebook(jnp.ones(2), jnp.zeros((2, 1))), {"frequency": jnp.ones(2), "moment": jnp.zeros((2, 1))}),
    ],
)
def test_a_state_loads_as_dictionaries_by_the_same_names(tmp_path, model_state, loaded):
    save_one(tmp_path, {"params": {"kernel": jnp.ones(2)}}, model_state)
    _, params, restored, _ = load(tmp_path, make_model)
    assert_same(params, {"params": {"kernel": jnp.ones(2)}})
    assert_same(restored, loaded)


def test_a_network_of_nnx_loads_with_the_numbers_of_its_layers(tmp_path):
    layers = nnx.bridge.ToLinen(lambda rngs: nnx.Sequential(nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)))
    variables = layers.init(jax.random.key(0), jnp.ones((1, 3)))
    save_one(tmp_path, variables)
    params = load(tmp_path, make_model)[1]
    assert jax.tree.structure(params) == jax.tree.structure(variables)
    np.testing.assert_array_equal(layers.apply(params, jnp.ones((5, 3))), layers.apply(variables, jnp.ones((5, 3))))


def as_saved_before(run_dir):
    """What an earlier version saved names no paths."""
    file = run_dir / "checkpoints" / "1" / "meta" / "metadata"
    record = json.loads(file.read_text())["record"]
    for array in record["arrays"].values():
        del array["path"]
    digest = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    file.write_text(json.dumps({"sha256": digest, "record": record}))
    return run_dir


NETWORKS = {"encoder": {"Dense_0": {"kernel": jnp.ones((3, 2))}}, "decoder": {"Dense_0": {"bias": jnp.zeros(3)}}}


def test_an_earlier_checkpoint_of_a_vae_loads(tmp_path):
    run_dir = as_saved_before(save_one(tmp_path, {"params": NETWORKS}))
    _, params, model_state, _ = load(run_dir, make_model)
    assert_same(params, {"params": NETWORKS})
    assert model_state == ()
    target = make_state(0).replace(params={"params": NETWORKS})
    with Checkpointer(run_dir / "checkpoints", meta={}) as checkpointer:
        assert_same(checkpointer.restore(target).params, {"params": NETWORKS})


@pytest.mark.parametrize(
    ("params", "model_state", "names"),
    [
        ({}, Codebook(jnp.ones(4), jnp.ones((4, 2))), "model_state/frequency and model_state/moment"),
        ({"codebook": {"codes": jnp.ones((4, 2))}}, (), "params/codebook/codes"),
    ],
)
def test_an_earlier_checkpoint_of_a_vq_vae_is_refused_in_one_line(params, model_state, names, tmp_path):
    run_dir = as_saved_before(save_one(tmp_path, {"params": NETWORKS, **params}, model_state))
    says = (
        f"checkpoint {run_dir}/checkpoints/1 holds the codes of a VQ-VAE in {names}, where an earlier jaxvae kept them,"
        " and not under 'quantizer': train it again, or load it with the version that saved it"
    )
    with pytest.raises(ValueError, match=f"^{says}$"):
        load(run_dir, make_model)
    codes = {"frequency": jnp.ones(4), "moment": jnp.ones((4, 2))}
    target = make_state(0).replace(params={"params": NETWORKS}, model_state={"quantizer": codes})
    with Checkpointer(run_dir / "checkpoints", meta={}) as checkpointer:
        with pytest.raises(ValueError, match=f"^{says}$"):
            checkpointer.restore(target)
        same = make_state(0).replace(params={"params": NETWORKS, **params}, model_state=model_state)
        assert_same(checkpointer.restore(same), make_state(1).replace(params=same.params, model_state=model_state))


def test_the_home_directory_may_be_written_as_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    save_one(tmp_path / "run", {"params": {"kernel": jnp.ones(2)}})
    assert_same(load("~/run", make_model)[1], {"params": {"kernel": jnp.ones(2)}})
    with Checkpointer("~/run/checkpoints", meta={}) as checkpointer:
        assert checkpointer.directory == tmp_path / "run" / "checkpoints"
        assert checkpointer.latest_step == 1
    with pytest.raises(ValueError, match=r"run_dir '~no-such-user/run': .*home directory"):
        load("~no-such-user/run", make_model)


def test_load_names_what_is_missing(tmp_path):
    with pytest.raises(ValueError, match="run_dir must be absolute, got runs/one"):
        load("runs/one", make_model)
    with pytest.raises(FileNotFoundError, match=f"no run in {tmp_path}: .*config.json does not exist"):
        load(tmp_path, make_model)
    (tmp_path / "config.json").write_text('{"network": {"size": 2}}')
    with pytest.raises(FileNotFoundError, match=f"no checkpoint in {tmp_path}/checkpoints"):
        load(tmp_path, make_model)
    assert [entry.name for entry in tmp_path.iterdir()] == ["config.json"]


def files_of(checkpoint):
    return sorted(path for path in checkpoint.rglob("*") if path.is_file())


def flip_an_array(checkpoint):
    """Flip one bit of the largest file that holds array values."""
    file = max(files_of(checkpoint / "state" / "d"), key=os.path.getsize)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_resume_falls_back_and_says_so(tmp_path):
    save_all(tmp_path, [2.0, 1.0, 3.0], keep=3)
    flip_an_array(tmp_path / "30")
    with Checkpointer(tmp_path, meta={}, keep=3) as checkpointer:
        with pytest.warns(UserWarning, match=f"checkpoint {tmp_path}/30 is damaged .*; falling back to step 20"):
            restored = checkpointer.restore(make_state(0))
        assert_same(restored, make_state(20, seed=2))
        assert (checkpointer.latest_step, checkpointer.best_step) == (20, 20)
        with pytest.raises(DamagedCheckpointError, match=f"{tmp_path}/30"):
            checkpointer.restore(make_state(0), step=30)
        assert steps(tmp_path) == [10, 20, 30]  # reading removes nothing
        checkpointer.save(make_state(30, seed=5))
    with Checkpointer(tmp_path, meta={}, keep=3) as checkpointer:
        assert_same(checkpointer.restore(make_state(0)), make_state(30, seed=5))


def test_nothing_sound_is_not_nothing(tmp_path):
    save_all(tmp_path, [None, None])
    for step in (10, 20):
        flip_an_array(tmp_path / str(step))
    nothing_sound = f"no sound checkpoint in {tmp_path}: .*/20 .*/10 "
    checkpointer = Checkpointer(tmp_path, meta={})
    with checkpointer, pytest.raises(DamagedCheckpointError, match=nothing_sound):
        checkpointer.restore(make_state(0))


HOLD = """
import fcntl, sys
file = open(sys.argv[1], "ab")
fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="files are not locked there")
def test_a_second_process_that_writes_is_refused_until_the_first_has_ended(tmp_path):
    save_all(tmp_path, [1.0])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-S", "-c", HOLD, tmp_path / ".lock"], **pipes) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match=rf"another process writes to {tmp_path}: wait until it has ended, or"):
            Checkpointer(tmp_path, meta={})
        assert read_checkpoint(tmp_path / "10", make_state(10))[1]["step"] == 10  # any number may read
        other.stdin.close()
        other.wait()
    with Checkpointer(tmp_path, meta={}) as checkpointer:
        held = subprocess.run([sys.executable, "-S", "-c", HOLD, tmp_path / ".lock"], capture_output=True, check=False)
        assert b"BlockingIOError" in held.stderr
        assert checkpointer.latest_step == 10
    freed = subprocess.run([sys.executable, "-S", "-c", HOLD, tmp_path / ".lock"], input=b"", capture_output=True)
    assert freed.stdout == b"held\n"


def test_a_checkpoint_under_another_step_is_not_taken_for_it(tmp_path):
    save_all(tmp_path, [1.0, 2.0])
    (tmp_path / "20").rename(tmp_path / "30")
    said = r"30 is damaged \(ValueError: it holds step 20.*falling back to step 10"
    with pytest.warns(UserWarning, match=said), Checkpointer(tmp_path, meta={}) as checkpointer:
        assert checkpointer.latest_step == 10
    with pytest.raises(DamagedCheckpointError, match="it holds step 20: call it that again"):
        read_checkpoint(tmp_path / "30", make_state(20))


def test_a_damaged_best_checkpoint_is_named_with_the_way_out(tmp_path):
    last = make_state(30, seed=3)
    checkpoints = tmp_path / "checkpoints"
    with RunDirectory(tmp_path, {}, resume=False, way_out="choose another") as files:
        for index, state in enumerate((make_state(10), make_state(20), last), start=1):
            files.checkpointer.save(state, value=float(index))
            files.append({"step": int(state.step)})
        files.wait()
        assert (steps(checkpoints), files.checkpointer.best_step) == ([10, 20, 30], 10)
        flip_an_array(checkpoints / "10")
        with pytest.raises(DamagedCheckpointError, match="was the best; remove it and resume, to end on"):
            files.best(last)

    def make_nothing(config):
        return None

    with pytest.raises(DamagedCheckpointError, match=r"/10 is damaged .*: it was the best; pass step=, .* \[20, 30\]"):
        load(tmp_path, make_nothing)
    assert_same(load(tmp_path, make_nothing, step=30)[1], last.params)
    shutil.rmtree(checkpoints / "10")
    assert_same(load(tmp_path, make_nothing)[1], last.params)
    with RunDirectory(tmp_path, {}, resume=True, way_out="choose another") as files:
        assert_same(files.restore(last), last)
        assert files.best(last) is None


def test_settings_of_another_model_are_named(tmp_path):
    save_all(tmp_path / "checkpoints", [1.0])
    (tmp_path / "config.json").write_text('{"latent_dim": 2}')
    assert load(tmp_path, lambda config: config.latent_dim)[0] == 2
    with pytest.raises(ValueError, match=r"config.json has no setting 'hidden', which this model is made of: it is of"):
        load(tmp_path, lambda config: config.hidden)
    with pytest.raises(AttributeError, match="'int' object has no attribute"):  # no fault of the file's
        load(tmp_path, lambda config: config.latent_dim.nothing)
