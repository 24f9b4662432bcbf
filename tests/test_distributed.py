"""Runs over many devices and processes: what one device computes, by one writer, resumed on any number of either."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import chex
import commands
import jax
import numpy as np
import optax
import pytest
from variants import SHAPE, VARIANTS

import jaxvae
from experiments import beta_vae, cvae, pixelcnn, rate_distortion, semi_supervised, vae, vq_vae
from jaxvae import checkpoint, data, figures
from jaxvae.training.mesh import replicated, split

pytestmark = pytest.mark.usefixtures("networks_start_as_for_users")

ROOT = Path(__file__).parents[1]
SMALL = (
    *("digits", "--network", "mlp", "--hidden", "16", "--latent-dim", "3"),
    *("--validation", "0", "--evaluate-every", "2", "--nll-samples", "20"),
)
ORDER = data.Order(32, 8, epochs=2, seed=0)


@contextlib.contextmanager
def reserved_port():
    """A port of this machine that is nobody else's: it is held, not listened at, and gRPC may listen beside that."""
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("localhost", 0))
        yield holder.getsockname()[1]


def together(number, *arguments, devices=2, timeout=900, meanwhile=lambda processes: None):
    """What processes that know of each other print on this machine, and their exit codes.

    They also print what libraries say, such as gloo whom it is connected to, amid lines of ours.
    """
    with reserved_port() as port, contextlib.ExitStack() as stack:
        environment = {
            **os.environ,
            **commands.QUICK,
            "JAX_COORDINATOR_ADDRESS": f"localhost:{port}",
            "JAX_NUM_PROCESSES": str(number),
            "JAX_NUM_CPU_DEVICES": str(devices),
            "PYTHONPATH": f"{ROOT}:{ROOT}/tests",
        }
        processes = []
        for index in range(number):
            process = subprocess.Popen(
                [sys.executable, *map(str, arguments)],
                env={**environment, "JAX_PROCESS_ID": str(index)},
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
            stack.callback(process.kill)
            processes.append(process)
        meanwhile(processes)
        said = [process.communicate(timeout=timeout)[0] for process in processes]
    return said, [process.returncode for process in processes]


def assert_only_the_first_reports(said):
    """The first says where the run is, how it goes and where its results are; the others say nothing of that."""
    reports = ("run directory", "examples/s", "result.json")
    assert "run directory" in said[0]
    assert "result.json" in said[0]
    assert [report for report in reports for words in said[1:] if report in words] == []


class Counted(np.ndarray):
    """Examples that remember which of them were read."""

    read = ()

    def __getitem__(self, indices):
        if isinstance(indices, np.ndarray):
            Counted.read += tuple(indices.tolist())
        return super().__getitem__(indices)


def train_on(feed, mesh):
    """The parameters after all steps by SGD."""
    variant, optimizer = VARIANTS["beta schedule"], optax.sgd(1e-2)
    state = jaxvae.init_train_state(variant.init, optimizer, key=jax.random.key(0), mesh=mesh)
    train_epoch = jaxvae.make_train_epoch(jaxvae.make_train_step(variant.loss_fn, optimizer), mesh=mesh)
    for start in range(0, ORDER.total_steps, feed.chunk):
        state, _ = jax.block_until_ready(train_epoch(state, *feed(start, min(feed.chunk, ORDER.total_steps - start))))
    return jax.device_get(state.params)


def noise():
    return data.from_arrays("noise", np.random.default_rng(0).random((32, *SHAPE)))


def stream(out):
    """What each process does after its run: the parameters that a stream leads to, and the examples that it read."""
    mesh, dataset = jaxvae.data_mesh(), noise()
    dataset.arrays["x"] = dataset.x.view(Counted)  # past its constructor, which would make it a plain array
    params = train_on(data.Streamed(dataset, ORDER, chunk=3, device=split(mesh)), mesh)
    np.savez(f"{out}/streamed-{jax.process_index()}.npz", *jax.tree.leaves(params), read=np.array(Counted.read))


WORK = """
import sys
from types import SimpleNamespace
from experiments import vae

vae.measure, vae.save_pictures = lambda *_, **__: SimpleNamespace(test={"nll": 0.0}, kl=None), lambda *_: []
vae.main([*sys.argv[2:], "--distributed", "--out", sys.argv[1] + "/run"])
import test_distributed  # computes as it is imported, which must not be before the processes are joined

test_distributed.stream(sys.argv[1])
"""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    """The directory where two processes of two devices each have worked, and what they said."""
    out = tmp_path_factory.mktemp("two")
    said, codes = together(2, "-c", WORK, out, *SMALL, "--epochs", 2, "--devices", 2)
    assert codes == [0, 0], "\n".join(said)
    return out, said


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    """The run of four epochs on one device; it keeps checkpoints of epochs 2 (step 44) and 4 (step 88)."""
    out = tmp_path_factory.mktemp("one") / "run"
    run(*SMALL, "--epochs", 4, "--out", out)
    return out


def run(*arguments):
    """What a run says. After its training it measures and draws nothing, which would take longer than all else; a
    process does both by itself, and the slow tests look at that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vae, "measure", lambda *_, **__: SimpleNamespace(test={"nll": 0.0}, kl=None))
        patch.setattr(vae, "save_pictures", lambda *_: [])
        done = commands.run(vae.main, *arguments)
    assert done.code == 0, done.said
    return done.said


def assert_same_parameters(run_dir, other, step):
    one, another = (checkpoint.load(d, vae.make_model, step=step)[1] for d in (run_dir, other))
    chex.assert_trees_all_close(one, another, rtol=1e-5, atol=1e-5)


def records(run_dir):
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_reach_what_one_device_reaches_and_one_of_them_writes_it(two_processes, one_device):
    out, said = two_processes
    assert_same_parameters(out / "run", one_device, step=44)
    assert_only_the_first_reports(said)
    assert sorted(os.listdir(out / "run" / "checkpoints")) == [".lock", "44"]
    (two,), (one, _) = records(out / "run"), records(one_device)
    assert two["test"] == pytest.approx(one["test"], rel=1e-5)
    assert two["train"] == pytest.approx(one["train"], rel=1e-5)
    result = json.loads((out / "run" / "result.json").read_text())
    assert result["test"]["negative_elbo"] == pytest.approx(two["test"]["negative_elbo"], rel=1e-5)


@pytest.mark.slow
def test_one_process_goes_on_where_two_stopped(two_processes, one_device, tmp_path):
    shutil.copytree(two_processes[0] / "run", tmp_path / "run")
    said = run(*SMALL, "--epochs", 4, "--out", tmp_path / "run", "--resume")
    assert "resumed at step 44" in said
    assert "device count: 4 -> " in said or jax.device_count() == 4
    assert_same_parameters(tmp_path / "run", one_device, step=88)


@pytest.mark.slow
def test_a_process_reads_what_its_own_devices_take_and_no_more(two_processes):
    out, _ = two_processes
    resident = jax.tree.leaves(train_on(data.Resident(noise(), ORDER), None))
    by_step = ORDER.indices(0, ORDER.total_steps).reshape(ORDER.total_steps, 2, 4)  # two processes, half a batch each
    for process in range(2):
        saved = np.load(out / f"streamed-{process}.npz")
        wanted = np.zeros(9 * 4, int)  # three calls of three steps, of which the last is not taken: example 0
        wanted[: 8 * 4] = by_step[:, process].ravel()
        assert sorted(saved["read"]) == sorted(wanted)
        for i, leaf in enumerate(resident):
            np.testing.assert_allclose(saved[f"arr_{i}"], leaf, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_four_devices_resume_one_and_one_resumes_four(one_device, tmp_path):
    shutil.copytree(one_device, tmp_path / "from one", ignore=shutil.ignore_patterns("88"))
    assert "resumed at step 44" in run(
        *SMALL, "--epochs", 4, "--devices", 4, "--out", tmp_path / "from one", "--resume"
    )
    run(*SMALL, "--epochs", 2, "--devices", 4, "--out", tmp_path / "from four")
    assert "resumed at step 44" in run(*SMALL, "--epochs", 4, "--out", tmp_path / "from four", "--resume")
    for name in ("from one", "from four"):
        assert_same_parameters(tmp_path / name, one_device, step=88)
        assert records(tmp_path / name)[1]["test"] == pytest.approx(records(one_device)[1]["test"], rel=1e-5)


def test_a_stream_over_devices_is_the_resident_set_and_gathers_no_x():
    mesh, variant, optimizer = jaxvae.data_mesh(), VARIANTS["beta schedule"], optax.sgd(1e-2)
    streamed = train_on(data.Streamed(noise(), ORDER, chunk=3, device=split(mesh)), mesh)
    resident = train_on(data.Resident(noise(), ORDER, chunk=3, device=replicated(mesh)), mesh)
    chex.assert_trees_all_close(streamed, resident, rtol=1e-6, atol=1e-7)

    state = jaxvae.init_train_state(variant.init, optimizer, key=jax.random.key(0), mesh=mesh)
    source, indices = data.Streamed(noise(), ORDER, chunk=5, device=split(mesh))(0, 5)
    assert source["x"].addressable_shards[0].data.shape == (5 * 8 // mesh.size, *SHAPE)
    train_epoch = jaxvae.make_train_epoch(jaxvae.make_train_step(variant.loss_fn, optimizer), mesh=mesh)
    program = (
        jax.jit(lambda state, indices: train_epoch(state, source, indices)).lower(state, indices).compile().as_text()
    )
    assert "all-reduce" in program  # of the gradient
    assert "all-gather" not in program


def numbers(run_dir):
    """Every number of result.json but those that time the run."""
    result = json.loads((run_dir / "result.json").read_text())
    result.pop("seconds"), result.pop("examples_per_second")
    return [leaf for leaf in jax.tree.leaves(result) if not isinstance(leaf, str)]


SWEEP = ("digits", "--smoke", "--hidden", 16, "--latent-dim", 3)


@pytest.mark.slow
def test_a_sweep_over_devices_is_the_sweep_on_one(tmp_path, monkeypatch):
    fit, programs = rate_distortion.Run.fit, []
    for picture in ("rate_distortion", "metrics_by_beta"):  # drawing would take longer than all else
        monkeypatch.setattr(figures, picture, lambda path, *_, **__: path)

    def compile_and_fit(self, state, train_epoch, feed, **options):
        program = train_epoch.lower(state, *feed(0, 2)).compile()
        programs.append(program.as_text())
        return fit(self, state, program, feed, **options)

    def sweep(name, *options):
        done = commands.run(rate_distortion.main, *SWEEP, *options, "--out", tmp_path / name)
        assert done.code == 0, done.said
        return numbers(tmp_path / name)

    one = sweep("one", "--how", "map")
    monkeypatch.setattr(rate_distortion.Run, "fit", compile_and_fit)
    np.testing.assert_allclose(sweep("resident", "--how", "map", "--devices", 4), one, rtol=1e-5)
    monkeypatch.setattr("jaxvae.data.STREAM_ABOVE_BYTES", 0)
    np.testing.assert_allclose(sweep("streamed", "--how", "vmap", "--devices", 4), one, rtol=1e-5)
    for program in programs:
        assert "all-reduce" in program  # of the gradients: each device has its share of the batch
        assert "all-gather" not in program


@pytest.mark.parametrize(
    ("main", "arguments", "said"),
    [
        (
            vae.main,
            (*SMALL, "--devices", 3),
            "batch_size 64 is not a multiple of the 3 devices that share it: pass --batch-size 66, or fewer --devices",
        ),
        (vae.main, (*SMALL, "--devices", 0), "num_devices must lie in 1 .. "),
        (vae.main, (*SMALL, "--distributed"), "distributed needs a run directory that all processes see: pass --out"),
        *(
            (rate_distortion.main, ("digits", "--how", "processes", *option), "leave out --distributed and --devices")
            for option in (("--devices", 4), ("--distributed", "--out", "run"))
        ),
    ],
)
def test_an_impossible_split_is_one_line_on_the_error(main, arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = commands.run(main, *arguments)
    assert done.code == 2
    assert said in done.said
    assert not list(tmp_path.iterdir())


def test_processes_that_cannot_find_each_other_say_what_is_missing(tmp_path):
    command = [sys.executable, "-m", "experiments.vae", *SMALL, "--distributed", "--out", str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "set JAX_COORDINATOR_ADDRESS=HOST:PORT, where HOST runs process 0, JAX_NUM_PROCESSES=P" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "arguments", "tolerance"),
    [
        (vae, ("digits",), 1e-5),
        (vae, ("linear", "--data", "digits"), 1e-5),
        (vae, ("illustration", "--data", "digits"), 1e-5),
        (beta_vae, ("mnist", "--data", "digits"), 1e-5),
        (beta_vae, ("sprites", "--channels", 8, 8), 1e-2),  # the scores sort codes into bins
        (rate_distortion, ("digits", "--how", "map"), 1e-5),
        (rate_distortion, ("digits", "--how", "vmap"), 1e-5),
        (vq_vae, ("digits",), 1e-5),
        (pixelcnn, ("digits",), 1e-5),
        (cvae, ("digits",), 1e-5),
        (cvae, ("quadrants", "--data", "digits", "--validation", 200), 1e-5),
        (semi_supervised, ("digits",), 1e-5),
    ],
)
def test_two_processes_run_every_experiment_to_its_end(experiment, arguments, tolerance, tmp_path):
    arguments = (*arguments, "--smoke", "--batch-size", 64)
    name = experiment.__name__
    said, codes = together(2, "-m", name, *arguments, "--distributed", "--out", tmp_path / "two", devices=1)
    assert codes == [0, 0], "\n".join(said)
    assert_only_the_first_reports(said)
    done = commands.run(experiment.main, *arguments, "--out", tmp_path / "one")
    assert done.code == 0, done.said
    files = [
        {path.relative_to(tmp_path / run) for path in (tmp_path / run).rglob("*") if "checkpoints" not in path.parts}
        for run in ("one", "two")
    ]
    assert files[0] == files[1]
    assert {path.suffix for path in files[1]} >= {".json", ".jsonl", ".png"}
    np.testing.assert_allclose(numbers(tmp_path / "two"), numbers(tmp_path / "one"), rtol=tolerance, atol=1e-6)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_the_same_step(tmp_path):
    out = tmp_path / "run"
    options = ("--epochs", 100_000, "--devices", 2, "--distributed", "--out", out)

    def stop_one(processes):
        while not ((out / "metrics.jsonl").exists() and records(out)):
            assert [process.poll() for process in processes] == [None, None]
            time.sleep(0.1)
        processes[1].send_signal(signal.SIGTERM)

    said, codes = together(2, "-m", "experiments.vae", *SMALL, *options, meanwhile=stop_one)
    assert codes == [143, 143], said
    stopped_at = said[0].split("stopped by SIGTERM at step ")[1].split(";")[0]
    assert stopped_at in os.listdir(out / "checkpoints")
    assert_same_parameters(out, out, step=int(stopped_at))
