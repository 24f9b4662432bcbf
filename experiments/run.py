"""What every experiment shares: its command line, its run directory, its ending.

A run directory holds config.json, metrics.jsonl (one object per evaluation), result.json, checkpoints/ and pictures.
"""

import dataclasses
import json
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

import jax
import optax
import tyro
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import jaxvae
from jaxvae import data
from jaxvae.checkpoint import Checkpointer, check_settings
from jaxvae.progress import ProgressBar
from jaxvae.training.mesh import everywhere, local, split
from jaxvae.training.state import TrainState
from jaxvae.types import Array, Batch, LossFn, Metrics, Prepare, PyTree

console = Console(soft_wrap=True)
STREAM_ABOVE_BYTES = 2**30  # larger training sets stay on the host
ConfigT = TypeVar("ConfigT", bound="RunConfig")


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The options that every experiment has."""

    preset: tyro.conf.Suppress[str]
    """Which preset the run began from."""
    epochs: Annotated[int, tyro.conf.arg(aliases=["--passes"])]
    """Passes over the training images."""
    batch_size: int
    """Images per step."""
    seed: int = 0
    """Decides the initial parameters, the order of the images and all noise; 0 to 2**32 - 1."""
    out: Path | None = None
    """The run directory. Default: runs/EXPERIMENT-PRESET-TIME, or with --resume the newest of those."""
    resume: bool = False
    """Continue the run in --out from its newest checkpoint, bit for bit."""
    smoke: bool = False
    """A few seconds on a few images, to see that everything works."""
    devices: int | None = None
    """Devices of this machine to split each batch over. Default: all of them; one of a CPU's, which share its cores."""
    distributed: bool = False
    """Join the processes that were started together, on this machine or others; --out must be one that all see."""
    profile: bool = False
    """Write a trace of a few training steps to the run directory: experiments/profiling.md."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        jaxvae.keys.check_seed(self.seed)
        if self.distributed and self.out is None:
            raise ValueError("distributed needs a run directory that all processes see: pass --out DIR")


# What changes how long or where a run runs or how it is looked at, and, but for rounding, none of its steps.
MAY_CHANGE_ON_RESUME = {
    *("epochs", "out", "resume", "evaluate_every", "patience", "nll_samples"),
    *("devices", "distributed", "compare", "profile"),
}


def parse(presets: Mapping[str, tuple[str, ConfigT]], doc: str, argv: Sequence[str] | None = None) -> ConfigT:
    """Read the command line: a preset, then options that change it. With --distributed, join the other processes."""
    with user_errors():
        given = sys.argv[1:] if argv is None else argv
        if given and not given[0].startswith("-") and given[0] not in presets:
            close = get_close_matches(given[0], presets, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"there is no preset {given[0]!r} among {', '.join(presets)}{hint}")
        prog = f"python -m {sys.modules['__main__'].__spec__.name}" if argv is None else None
        config = tyro.extras.overridable_config_cli(dict(presets), prog=prog, description=doc, args=argv)
        if config.distributed:
            _join()
        return config


def _join() -> None:
    """Join the processes that were started together; all but the first fall silent. Before JAX looks for devices."""
    # Unset, these are found by JAX on SLURM, Open MPI, Kubernetes and TPU; the address it reads by itself.
    count, index = (os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    try:
        jax.distributed.initialize(
            num_processes=None if count is None else int(count), process_id=None if index is None else int(index)
        )
    except ValueError as error:
        raise ValueError(
            f"cannot join other processes ({error}): set JAX_COORDINATOR_ADDRESS=HOST:PORT, where HOST runs process 0, "
            "JAX_NUM_PROCESSES=P and JAX_PROCESS_ID=0 .. P-1"
        ) from error
    console.quiet = jax.process_index() > 0


@contextmanager
def user_errors() -> Iterator[None]:
    """Where a mistake is the user's, say it in one line and exit with 2."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError) as error:
        complain("error", error)
        sys.exit(2)


@contextmanager
def file_errors() -> Iterator[None]:
    """Where a result or a picture cannot be written, say so in one line and exit with 1."""
    try:
        yield
    except OSError as error:
        complain("error", f"{error}; once that can be written, continue with --resume")
        sys.exit(1)


def complain(kind: str, message: object) -> None:
    """Print an error or a warning in one line, from whichever process."""
    Console(soft_wrap=True).print(f"[bold red]{kind}:[/] {escape(str(message))}", highlight=False)


def counter(label: str) -> Callable[[int, int], None]:
    """A `progress` callback: a counting line on a terminal, one line at the end elsewhere."""

    def show(done: int, total: int) -> None:
        if done == total or console.is_terminal:
            end = "\n" if done == total else "\r"
            console.print(f"{label}: {done:,} of {total:,}", end=end, highlight=False)

    return show


class Run:
    """A run directory, new or resumed.

    Attributes:
      directory: its absolute path.
      settings: what config.json holds.
      checkpointer: saves to checkpoints/.
      mesh: the devices that share each batch; None where there is one.
    """

    def __init__(self, experiment: str, config: RunConfig, **derived: Any) -> None:
        """Create or reopen the directory.

        Args:
          experiment: the program's name.
          config: its options.
          derived: settings that follow from the data, such as `image_shape`; saved with the others.

        Raises:
          FileExistsError: the directory holds a run and `config.resume` is false.
          ValueError: it holds a run with other settings, each of which is listed, or the devices cannot share a batch.
        """
        self._began = time.perf_counter()
        self.mesh = _mesh(config)
        self._experiment = experiment
        self.directory = _directory(experiment, config)
        self.settings = json.loads(json.dumps({**dataclasses.asdict(config), **derived}, default=str))
        config_file = self.directory / "config.json"
        if config_file.exists():
            if not config.resume:
                raise FileExistsError(
                    f"{self.directory} holds a run already; continue it with --resume or choose another --out"
                )
            saved = json.loads(config_file.read_text())
            check_settings(saved, self.settings, may_change=MAY_CHANGE_ON_RESUME)
        elif config.resume:
            console.print(f"nothing to resume in {self.directory}: starting afresh")
        multihost_utils.sync_global_devices("all have seen what the directory holds")
        self.checkpointer = Checkpointer(self.directory / "checkpoints", meta={"config": self.settings})
        _write(config_file, json.dumps(self.settings, indent=2) + "\n")
        self._metrics_file = self.directory / "metrics.jsonl"
        console.print(f"run directory: {self.directory}", highlight=False)

    def restore(self, state: TrainState) -> TrainState:
        """The newest sound checkpoint, or `state` itself where there is none; forgets later lines of metrics.jsonl."""
        if self.checkpointer.latest_step is not None:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                state = self.checkpointer.restore(state)
            for warning in caught:
                complain("warning", warning.message)
            console.print(f"resumed at step {int(state.step)}")
        kept = [record for record in self.records() if record["step"] <= int(state.step)]
        _write(self._metrics_file, "".join(json.dumps(record) + "\n" for record in kept))
        return state

    def best(self, state: TrainState) -> TrainState:
        """The checkpoint with the smallest monitored value; `state` itself where none was finite."""
        step = self.checkpointer.best_step
        if step is None:
            return state
        console.print(f"best step: {step} ({self.checkpointer.best_value:.3f})", highlight=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `restore` has said what has changed since
            return self.checkpointer.restore(state, step=step)

    def records(self) -> list[dict[str, Any]]:
        """The evaluations so far. A line that a kill cut short is dropped."""
        if not self._metrics_file.exists():
            return []
        lines = self._metrics_file.read_text().splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def train(
        self,
        init_fn: Callable[..., tuple[PyTree, PyTree]],
        loss_fn: LossFn,
        optimizer: optax.GradientTransformation,
        images: data.ImageSet,
        order: data.Order,
        *,
        prepare: Prepare,
        **options: Any,
    ) -> TrainState:
        """Train from the newest checkpoint, or from the seed; the options are those of `fit` below.

        Every batch is split over the devices. The state that comes back is on one device of each process.
        """
        state = jaxvae.init_train_state(init_fn, optimizer, key=jaxvae.seed_key(order.seed))
        with user_errors():
            state = self.restore(state)
        if self.mesh is not None:
            state = everywhere(state, self.mesh)
        train_step = jaxvae.make_train_step(loss_fn, optimizer, prepare=prepare)
        train_epoch = jaxvae.make_train_epoch(train_step, mesh=self.mesh)
        return self.fit(state, train_epoch, make_feed(images, order, self.mesh), **options)

    def fit(
        self,
        state: TrainState,
        train_epoch: jaxvae.training.epoch.TrainEpoch,
        feed: jaxvae.types.Feed,
        *,
        evaluate: Callable[[TrainState], Mapping[str, Any]] | None,
        held_out: str,
        **options: Any,
    ) -> TrainState:
        """`jaxvae.fit` with a progress bar, metrics.jsonl and checkpoints.

        `evaluate`, where there is one, gets the state on one device: every process evaluates by itself.
        Exits with 130 or 143 after Ctrl-C or SIGTERM, with 1 where the loss was not finite or the disk is full.
        """
        if evaluate is not None:
            options["evaluate"] = lambda state: evaluate(self._own(state))
        if self.settings["profile"]:
            train_epoch = _profiled(train_epoch, feed.total_steps, self.directory / "profile")
        with ProgressBar(console) as bar:

            def report(progress: jaxvae.Progress) -> None:
                bar(progress)
                if progress.evaluation is not None and jax.process_index() == 0:
                    record = {
                        "step": progress.step,
                        "epoch": progress.epoch,
                        "train": progress.train,
                        held_out: progress.evaluation,
                        "examples_per_second": progress.examples_per_second,
                    }
                    with self._metrics_file.open("a") as file:
                        file.write(json.dumps(record) + "\n")

            try:
                result = jaxvae.fit(state, train_epoch, feed, checkpointer=self.checkpointer, report=report, **options)
            except (jaxvae.NonFiniteError, OSError) as error:
                complain("error", error)
                with suppress(OSError):  # a full disk has been complained of
                    self.checkpointer.close()
                sys.exit(1)
        if result.stopped in ("SIGINT", "SIGTERM"):
            self.checkpointer.close()
            options = [option for option in sys.argv[1:] if option != "--resume"]
            outer = self.directory.parent  # a run inside another is continued by continuing that one
            directory = outer if (outer / "config.json").exists() else self.directory
            where = [] if any(option.startswith("--out") for option in options) else ["--out", str(directory)]
            again = shlex.join(["python", "-m", f"experiments.{self._experiment}", *options, *where, "--resume"])
            console.print(f"stopped by {result.stopped} at step {int(result.state.step)}; continue with\n  {again}")
            sys.exit(130 if result.stopped == "SIGINT" else 143)
        if result.stopped:
            console.print(f"{result.stopped} at step {int(result.state.step)}")
        return self._own(result.state)

    def _own(self, state: TrainState) -> TrainState:
        return state if self.mesh is None else local(state)

    @file_errors()
    def finish(self, result: dict[str, Any], pictures: Sequence[Path]) -> None:
        """Write result.json, print the table and where the pictures are."""
        self.checkpointer.close()
        records = self.records()
        speed = {"examples_per_second": records[-1]["examples_per_second"]} if records else {}
        result = {**speed, **result, "seconds": time.perf_counter() - self._began}
        _write(self.directory / "result.json", json.dumps(result, indent=2) + "\n")
        multihost_utils.sync_global_devices("the run is finished")
        table = Table("test", "", title=self.settings["preset"])
        for name, value in result["test"].items():
            table.add_row(
                name.replace("_", " "),
                f"{value:.{3 if abs(value) >= 1 else 4}f}" if isinstance(value, float) else str(value),
            )
        console.print(table)
        for path in (*pictures, self.directory / "result.json"):
            console.print(str(path), highlight=False)


def make_feed(
    images: data.ImageSet, order: data.Order, mesh: Mesh | None = None, *, whole: bool = False
) -> data.Resident | data.Streamed:
    """The whole set on every device, unless it is large: then each device's share of the batches, or whole batches."""
    if images.image.nbytes > STREAM_ABOVE_BYTES:
        sharding = jaxvae.replicated if whole else split
        return data.Streamed(images, order, device=None if mesh is None else sharding(mesh))
    return data.Resident(images, order, device=None if mesh is None else jaxvae.replicated(mesh))


def _profiled(
    train_epoch: jaxvae.training.epoch.TrainEpoch, total_steps: int, directory: Path
) -> jaxvae.training.epoch.TrainEpoch:
    """Trace the second program, which compiles nothing; the first, if it is the only one. By the first process."""
    calls = 0

    def profiled(state: TrainState, source: Batch, indices: Array) -> tuple[TrainState, Metrics]:
        nonlocal calls
        calls += 1
        steps = int((indices[:, 0] >= 0).sum()) if calls <= 2 else 0
        only = calls == 1 and int(state.step) + steps == total_steps
        if jax.process_index() > 0 or (calls != 2 and not only):
            return train_epoch(state, source, indices)
        jax.block_until_ready((state, source, indices))
        with jax.profiler.trace(directory, create_perfetto_trace=True):
            taken = jax.block_until_ready(train_epoch(state, source, indices))
        newest = max(directory.rglob("perfetto_trace.json.gz"), key=lambda path: path.stat().st_mtime)
        with_compilation = ", with their compilation: there were no more" if only else ""
        console.print(f"profile of {steps} steps{with_compilation}: open {newest} at https://ui.perfetto.dev")
        return taken

    return profiled


def _mesh(config: RunConfig) -> Mesh | None:
    """The devices that share each batch; None where there is one."""
    devices = config.devices
    if devices is None and jax.default_backend() == "cpu":
        devices = 1
    mesh = jaxvae.data_mesh(devices)
    if config.batch_size % mesh.size:
        raise ValueError(
            f"batch_size {config.batch_size} is not a multiple of the {mesh.size} devices that share it: "
            f"pass --batch-size {-(-config.batch_size // mesh.size) * mesh.size}, or fewer --devices"
        )
    return mesh if mesh.size > 1 else None


def _directory(experiment: str, config: RunConfig) -> Path:
    if config.out is not None:
        directory = config.out.expanduser().resolve()
    else:
        prefix = f"{experiment}-{config.preset}-"
        earlier = sorted(Path("runs").glob(f"{prefix}*")) if config.resume else []
        directory = (earlier[-1] if earlier else Path("runs") / f"{prefix}{time.strftime('%Y%m%d-%H%M%S')}").resolve()
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"--out {directory} is a file; choose a directory")
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _write(path: Path, text: str) -> None:
    """All of it or nothing, so that a kill never leaves half a file; by the first process."""
    if jax.process_index() > 0:
        return
    scratch = path.with_name(f".{path.name}")
    scratch.write_text(text)
    scratch.replace(path)
