"""A run survives kills, damaged files, NaNs and full disks, or says in one line what is wrong and loses nothing."""

import contextlib
import hashlib
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import time
import warnings
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from commands import run

import jaxvae
from experiments import beta_vae, pixelcnn, rate_distortion, vae, vq_vae
from jaxvae import _sealed
from jaxvae._sealed import read_arrays
from jaxvae.checkpoint import Checkpointer, DamagedCheckpointError

ROOT = Path(__file__).parents[1]
# Where one array cannot be read, orbax leaves its event loop without the others, and asyncio complains.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


def bits(tree):
    """Every leaf as bytes; keys too."""
    data = [
        jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x for x in jax.tree.leaves(tree)
    ]
    return [np.asarray(x).tobytes() for x in data]


def steps(directory):
    names = os.listdir(directory) if directory.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def hashes(directory):
    """Of each file below."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# Kills. The trainer imports once, then forks a process for each line it reads. That process trains from the newest
# checkpoint, saves after each step, and prints the newest step that is known to be on disk.
TRAINER = """
import json, os, sys
import jax, jax.numpy as jnp, numpy as np, optax
import jaxvae
from jaxvae import data
from jaxvae.checkpoint import Checkpointer

class Confirming(Checkpointer):
    def wait(self):
        super().wait()
        print(self.latest_step or 0, flush=True)

class Restarted(data.Resident):
    def __call__(self, start, count):
        return super().__call__(start - self.begun, count)

def loss_fn(params, model_state, batch, *, key, step):
    noise = jax.random.normal(key, batch["x"].shape)
    loss = jnp.mean((batch["x"] + noise - params["mean"]) ** 2)
    return loss, (0.9 * model_state + 0.1 * loss, {"loss": loss})

def init(*, key):
    return {"mean": jax.random.normal(key, (8, 8, 1))}, jnp.zeros(())

def train(directory, epochs, every, keep, broken):
    optimizer = optax.adam(0.01)
    fresh = jaxvae.init_train_state(init, optimizer, key=jax.random.key(0))
    images = data.from_arrays("noise", np.random.default_rng(0).uniform(size=(8, 8, 8, 1)))
    train_step = jaxvae.make_train_step(loss_fn, optimizer)
    feed = (Restarted if broken == "order" else data.Resident)(images, data.Order(8, 2, epochs, seed=0), chunk=4)
    with Confirming(directory, meta={}, keep=keep) as checkpointer:
        state = fresh if checkpointer.latest_step is None else checkpointer.restore(fresh)
        feed.begun = int(state.step)
        if broken == "optimizer":
            state = state.replace(opt_state=fresh.opt_state)
        if broken == "chain":
            state = state.replace(key=fresh.key)
        def step(state, batch):
            state, metrics = train_step(state, batch)
            return state.replace(key=jax.random.split(state.key)[0]) if broken == "chain" else state, metrics
        options = {"evaluate": lambda state: {"value": -(int(state.step) // 5)}, "monitor": "value"}
        train_epoch = jaxvae.make_train_epoch(step)
        jaxvae.fit(state, train_epoch, feed, checkpointer=checkpointer, evaluate_every=every, **options)

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        print("pid", os.getpid(), flush=True)
        train(**json.loads(line))
        sys.exit()
    print("dead", os.waitpid(pid, 0)[1], flush=True)
"""


@pytest.fixture(scope="module")
def trainer(tmp_path_factory):
    """Starts a training process; returns its id and its output, which ends in a line "dead STATUS"."""
    # A kill may leave half an entry in the cache: it is not the one that other tests share.
    cache = {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("cache")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    environment = {**os.environ, **cache, "JAX_PLATFORMS": "cpu"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", TRAINER]
    with subprocess.Popen(command, cwd=ROOT, env=environment, text=True, bufsize=1, **pipes) as server:

        def start(directory, *, epochs=10**6, every=1, keep=2, broken=None):
            settings = {"directory": str(directory), "epochs": epochs, "every": every, "keep": keep, "broken": broken}
            server.stdin.write(json.dumps(settings) + "\n")
            return int(server.stdout.readline().split()[1]), server.stdout

        yield start  # and closes the pipes, which ends it


def finish(trainer, directory, epochs, **options):
    """Train to the end without a kill; the bits of the last state."""
    _, output = trainer(directory, epochs=epochs, **options)
    confirmed = [int(line) for line in iter(output.readline, "dead 0\n")]
    assert confirmed[-1] == 4 * epochs
    return bits(read_arrays(directory / str(4 * epochs))[0])


def kill_and_resume(trainer, directory, *, kills, seed, moments=(), steps_at_least=0, broken=None):
    """Kill a run again and again, then let it finish. What was lost, and whether its end is that of a whole run.

    Where no kill has met one of `moments`, or the run is not that far, up to ten times as many are tried.
    """
    rng = random.Random(seed)
    killed = {"starting": 0, "saving": 0, "deleting": 0, "between": 0}
    lost = torn = best_lost = newest = 0
    for kill in range(10 * kills):
        if kill >= kills and newest >= steps_at_least and all(killed[moment] for moment in moments):
            break
        pid, output = trainer(directory / "killed", keep=1 + kill % 2, broken=broken)
        confirmations = rng.randrange(6)
        confirmed = [int(output.readline()) for _ in range(confirmations)]
        pause = rng.uniform(0, 0.1 if confirmations else 0.6)  # without any: amid the start
        if kill % 5 == 4:  # amid a deletion, which is short
            until = time.perf_counter() + 5
            while not (directory / "killed" / "trash").exists() and time.perf_counter() < until:
                pass
        else:
            time.sleep(pause)
        os.kill(pid, 9)
        confirmed += map(int, iter(output.readline, "dead 9\n"))
        newest = max([newest, *confirmed])

        left = " ".join(path.name for path in (directory / "killed").glob("*"))
        moment = "deleting" if "trash" in left else "saving" if "tmp" in left else "between"
        killed[moment if confirmed else "starting"] += 1
        listed = steps(directory / "killed")
        lost += max(listed, default=0) < newest
        records = []
        for step in listed:
            try:
                records.append(read_arrays(directory / "killed" / str(step))[1])
            except DamagedCheckpointError:
                torn += 1
        if records:  # the value falls at every fifth step
            best = max(1, records[-1]["step"] - records[-1]["step"] % 5)
            best_lost += records[-1]["best"]["step"] != best or best not in listed

    epochs = newest // 4 + 3
    end = finish(trainer, directory / "killed", epochs, broken=broken)
    whole = finish(trainer, directory / "whole", epochs, every=4 * epochs, broken=broken)
    return SimpleNamespace(
        killed=killed, steps=newest, lost=lost, torn=torn, best_lost=best_lost, identical=end == whole
    )


def assert_nothing_lost(outcome):
    assert (outcome.lost, outcome.torn, outcome.best_lost) == (0, 0, 0)
    assert outcome.identical


@pytest.mark.slow
def test_kills_lose_nothing_and_change_nothing(trainer, tmp_path):
    outcome = kill_and_resume(trainer, tmp_path, kills=6, seed=0, moments=("saving",), steps_at_least=6)
    assert_nothing_lost(outcome)
    assert outcome.killed["saving"] >= 1
    assert outcome.steps >= 6


@pytest.mark.slow
def test_500_kills_lose_nothing_and_change_nothing(trainer, tmp_path, capsys):
    outcome = kill_and_resume(trainer, tmp_path, kills=500, seed=1)
    with capsys.disabled():
        print(f"\n{outcome}")
    assert_nothing_lost(outcome)
    assert min(outcome.killed.values()) >= 5


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["chain", "optimizer", "order"])
def test_a_resume_that_forgets_something_differs(broken, trainer, tmp_path):
    """The controls: the optimiser's state is not restored, the order of the data or the chain of keys begins again."""
    outcome = kill_and_resume(trainer, tmp_path, kills=1, seed=0, broken=broken)
    assert not outcome.identical
    assert (outcome.lost, outcome.torn) == (0, 0)


# Damaged files.
def make_state(step):
    """The kernel is large enough that orbax stores it without a checksum of its own."""

    def init(*, key):
        params = {"kernel": jax.random.normal(key, (1000, 3)), "bias": jnp.arange(3, dtype=jnp.bfloat16)}
        return params, jnp.full(4, 0.1)

    state = jaxvae.init_train_state(init, optax.adam(1e-3), key=jax.random.key(step))
    return state.replace(step=jnp.int32(step))


def faults_of(checkpoint, flips):
    """Every fault of every file, the largest first: (file, what to do to its content, None to delete it)."""

    def cut(share):
        return lambda content: content[: int(share * len(content))]

    def flip(share, bit):
        def flipped(content):
            at = int(share * len(content))
            return content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]

        return flipped

    rng = random.Random(0)
    files = [path for path in checkpoint.rglob("*") if path.is_file()]
    for file in sorted(files, key=os.path.getsize, reverse=True):
        yield file, None
        yield from ((file, cut(share)) for share in (0, 0.5, 0.95))
        yield from ((file, flip(rng.random(), rng.randrange(8))) for _ in range(flips))


def restore_damaged(directory, states):
    """What the newest checkpoint restores to: "exact", "error" or "wrong". After an error a resume falls back."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with Checkpointer(directory, meta={}) as checkpointer:
            resumed = bits(checkpointer.restore(states[0]))
            try:
                restored = bits(checkpointer.restore(states[0], step=20))
            except DamagedCheckpointError as error:
                says = str(error)
            else:
                return "exact" if restored == resumed == bits(states[1]) else "wrong"
    damaged = rf"checkpoint {directory}/20 is damaged \(.{{1,200}}\)"
    assert re.fullmatch(damaged, says)
    assert any(re.fullmatch(f"{damaged}; falling back to step 10", str(warning.message)) for warning in caught)
    return "error" if resumed == bits(states[0]) else "wrong"


def damage(tmp_path, *, flips, which):
    """Do faults to a newest checkpoint, each to a fresh copy; count the outcomes."""
    states = make_state(10), make_state(20)
    sound, damaged = tmp_path / "sound", tmp_path / "damaged"
    with Checkpointer(sound, meta={}) as checkpointer:
        for state in states:
            checkpointer.save(state)
    outcomes = {"exact": 0, "error": 0, "wrong": 0}
    for file, change in list(faults_of(sound / "20", flips))[which]:
        shutil.copytree(sound, damaged)
        victim = damaged / file.relative_to(sound)
        if change is None:
            victim.unlink()
        else:
            victim.write_bytes(change(file.read_bytes()))
        outcomes[restore_damaged(damaged, states)] += 1
        shutil.rmtree(damaged)
    return outcomes


def test_damaged_files_never_restore_wrong_values(tmp_path):
    outcomes = damage(tmp_path, flips=5, which=slice(0, None, 4))  # of 9 faults per file, so of every kind
    assert outcomes["wrong"] == 0
    assert min(outcomes["exact"], outcomes["error"]) >= 10


@pytest.mark.slow
def test_every_damaged_file_never_restores_wrong_values(tmp_path, capsys):
    outcomes = damage(tmp_path, flips=30, which=slice(None))
    with capsys.disabled():
        print(f"\n{outcomes}")
    assert outcomes["wrong"] == 0
    assert sum(outcomes.values()) >= 200
    assert min(outcomes["exact"], outcomes["error"]) >= 50


@pytest.mark.slow
def test_without_checksums_a_damaged_file_restores_wrong_values(tmp_path, monkeypatch):
    """The control: the tests above can fail."""
    monkeypatch.setattr(_sealed, "_array_digest", lambda values: "")
    monkeypatch.setattr(_sealed, "_digest", lambda record: "")
    assert damage(tmp_path, flips=10, which=slice(14))["wrong"] > 0  # the largest file


# NaNs.
VAE = (
    *("digits", "--network", "mlp", "--hidden", 16, "--latent-dim", 2, "--validation", 200),
    *("--evaluate-every", 1, "--nll-samples", 20),
)
VQ_VAE = (
    *("digits", "--channels", 8, "--num-codes", 8, "--code-dim", 4, "--residual", 4),
    *("--batch-size", 64, "--evaluate-every", 22),
)


def poison(monkeypatch, objective, bad_step):
    """Make x of one step NaN."""
    loss = getattr(jaxvae, objective)

    def poisoned(model, params, model_state, batch, *, key, step, **options):
        batch = batch | {"x": jnp.where(step == bad_step, jnp.nan, batch["x"])}
        return loss(model, params, model_state, batch, key=key, step=step, **options)

    monkeypatch.setattr(jaxvae, objective, poisoned)


@pytest.fixture(scope="module")
def poisoned(tmp_path_factory):
    """A run that a NaN ended at step 50, its first output, and the options to go on with."""

    def start(experiment, objective, options):
        out = tmp_path_factory.mktemp("poisoned") / "run"
        with pytest.MonkeyPatch.context() as monkeypatch:
            poison(monkeypatch, objective, 50)
            return out, run(experiment.main, *options, "--out", out)

    return cache(start)


@pytest.mark.slow
def test_a_nan_before_any_checkpoint_says_so(tmp_path, monkeypatch):
    poison(monkeypatch, "vae_loss", 5)
    done = run(vae.main, *VAE, "--out", tmp_path)
    assert done.code == 1
    assert "not finite at step 5;" in done.said
    assert "No checkpoint was saved before it" in done.said


@pytest.mark.parametrize(
    ("experiment", "objective", "options", "saved", "best"),
    [
        (vae, "vae_loss", VAE, [19, 38], 38),
        pytest.param(vq_vae, "vq_vae_loss", VQ_VAE, [22, 44], None, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_a_nan_ends_the_run_and_touches_no_checkpoint(
    experiment, objective, options, saved, best, poisoned, tmp_path, monkeypatch
):
    left, first = poisoned(experiment, objective, options)
    out = tmp_path / "run"
    shutil.copytree(left, out)
    checkpoints = out / "checkpoints"
    assert first.code == 1
    says = f"not finite at step 50; training stood still from there. The last good checkpoint is step {saved[-1]}; "
    assert f"{says}the state before the bad step is in {left / 'checkpoints' / 'failed'}" in first.said
    assert steps(checkpoints) == saved
    before = {step: hashes(checkpoints / str(step)) for step in saved}
    metrics = (out / "metrics.jsonl").read_text()
    assert [json.loads(line)["step"] for line in metrics.splitlines()] == saved
    arrays, record = read_arrays(checkpoints / "failed")
    assert record["step"] == arrays["step"] == arrays["first_bad"] == 50
    assert record["best"]["step"] == best
    assert all(np.isfinite(values).all() for name, values in arrays.items() if name != "key")

    poison(monkeypatch, objective, 50)
    again = run(experiment.main, *options, "--out", out, "--resume")
    assert again.code == 1
    assert f"resumed at step {saved[-1]}" in again.said
    assert says in again.said
    assert {step: hashes(checkpoints / str(step)) for step in steps(checkpoints)} == before
    assert (out / "metrics.jsonl").read_text() == metrics
    assert not (out / "result.json").exists()


# Full disks and directories that cannot be written.
@pytest.fixture(scope="module")
def stopped(tmp_path_factory, poisoned):
    """A run with checkpoints 19 and 38 that a NaN ended: it can go on."""
    out = tmp_path_factory.mktemp("stopped") / "run"
    shutil.copytree(poisoned(vae, "vae_loss", VAE)[0], out)
    shutil.rmtree(out / "checkpoints" / "failed")
    return out


def assert_intact(out, stopped):
    assert steps(out / "checkpoints") == [19, 38]
    for step in ("19", "38"):
        assert hashes(out / "checkpoints" / step) == hashes(stopped / "checkpoints" / step)
        read_arrays(out / "checkpoints" / step)


@contextlib.contextmanager
def small_files():
    """No file of this process may grow beyond 20 KiB; no half entry comes into the cache of the other tests."""
    limits, slowest = resource.getrlimit(resource.RLIMIT_FSIZE), "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, slowest)
    jax.config.update(slowest, 1e9)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_480, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        jax.config.update(slowest, before)


@pytest.mark.slow
def test_a_file_that_cannot_grow_ends_the_run_in_one_line(stopped, tmp_path, capfd):
    out = tmp_path / "run"
    shutil.copytree(stopped, out)
    with small_files():
        done = run(vae.main, *VAE, "--out", out, "--resume")
    assert done.code == 1
    says = f"error: cannot save in {out / 'checkpoints'}: File too large; the last good checkpoint is step 38"
    assert f"{says} " in done.said
    said = done.said + "".join(capfd.readouterr())
    assert "Traceback" not in said
    assert said.count("File too large") == 1  # no traceback of orbax's says it again
    assert_intact(out, stopped)


@pytest.fixture
def disk(tmp_path):
    """A file system of 4 MiB, and how to mount it."""

    def mount(*options):
        return subprocess.run(["mount", "-t", "tmpfs", *options, "none", tmp_path], capture_output=True, check=False)

    if mount("-o", "size=4m").returncode:
        pytest.skip("may not mount a file system")
    yield tmp_path, mount
    subprocess.run(["umount", "--lazy", tmp_path], check=True)


@pytest.mark.parametrize(
    ("free", "code", "said"),
    [
        pytest.param(0, 2, "No space left on device", marks=pytest.mark.slow),
        (100_000, 1, "the last good checkpoint is step 38"),
    ],
)
def test_a_full_disk_ends_the_run_in_one_line(free, code, said, disk, stopped):
    directory, _ = disk
    out = directory / "run"
    shutil.copytree(stopped, out)
    room = os.statvfs(directory)
    (directory / "other").write_bytes(bytes(room.f_bavail * room.f_bsize - free))
    done = run(vae.main, *VAE, "--out", out, "--resume")
    assert done.code == code, done.said
    assert said in done.said
    assert "No space left on device" in done.said
    assert_intact(out, stopped)


@pytest.mark.slow
def test_a_disk_that_is_full_when_pictures_are_drawn_ends_the_run_in_one_line(disk, stopped, monkeypatch):
    directory, _ = disk
    out, measure = directory / "run", vae.measure
    shutil.copytree(stopped, out)

    def fill_and_measure(*arguments, **options):
        room = os.statvfs(directory)
        (directory / "other").write_bytes(bytes(room.f_bavail * room.f_bsize))
        return measure(*arguments, **options)

    monkeypatch.setattr(vae, "measure", fill_and_measure)
    done = run(vae.main, *VAE, "--epochs", 3, "--out", out, "--resume")
    assert done.code == 1
    assert re.search(
        r"error: \[Errno 28\] No space left on device.*; once that can be written, continue with --resume", done.said
    )
    assert not (out / "result.json").exists()
    assert steps(out / "checkpoints") == [38, 57]


SWEEP = ("digits", "--smoke", "--hidden", 8, "--latent-dim", 2, "--how", "map")
PIXELS = ("digits", "--smoke", "--channels", 4, "--layers", 1)


@pytest.mark.parametrize(
    ("main", "options", "name"),
    [
        (pixelcnn.main, PIXELS, "result.json"),
        *(
            pytest.param(main, options, name, marks=pytest.mark.slow)
            for main, options, name in (
                (vae.main, (*VAE, "--smoke"), "samples.png"),
                (beta_vae.main, ("mnist", "--data", "digits", "--smoke", "--channels", 4), "traversals.gif"),
                (rate_distortion.main, SWEEP, "rate_distortion.png"),
                (vq_vae.main, (*VQ_VAE, "--smoke"), "index_maps.png"),
                (pixelcnn.main, PIXELS, "samples.png"),
            )
        ),
    ],
)
@pytest.mark.slow
def test_a_result_that_cannot_be_written_ends_the_run_in_one_line(main, options, name, tmp_path):
    (tmp_path / "run" / name).mkdir(parents=True)  # in the way
    done = run(main, *options, "--out", tmp_path / "run")
    assert done.code == 1
    assert re.search(
        r"error: \[Errno \d+\] Is a directory: .*; once that can be written, continue with --resume $", done.said
    )


def test_a_read_only_run_directory_is_refused_before_training(disk, stopped):
    directory, mount = disk
    out = directory / "run"
    shutil.copytree(stopped, out)
    mount("-o", "remount,ro")
    for options in (("--out", out, "--resume"), ("--out", directory / "new")):
        done = run(vae.main, *VAE, *options)
        assert done.code == 2
        assert re.search(r"error: .*Read-only file system", done.said)
    assert_intact(out, stopped)


@pytest.mark.parametrize("below", ["file", "/proc"])
def test_a_directory_that_cannot_be_made_is_refused_before_training(below, tmp_path):
    (tmp_path / "file").write_text("")
    out = tmp_path / below / "run"
    done = run(vae.main, *VAE, "--out", out)
    assert done.code == 2
    assert re.search(r"error: \[Errno \d+\] [\w -]+: '/", done.said)
