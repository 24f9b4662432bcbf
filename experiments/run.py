"""What every experiment shares: its run directory, from the first step to the last number.

A run directory holds config.json, metrics.jsonl (one object per evaluation), result.json, checkpoints/ and pictures.
"""

import dataclasses
import json
import re
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import jax
import optax
from jax.experimental import multihost_utils
from jax.sharding import Mesh
from rich.table import Table

import jaxvae
from experiments.command import RunConfig, complain, console, file_errors, user_errors
from jaxvae import data
from jaxvae._directory import RunDirectory, write_whole
from jaxvae._json import to_json
from jaxvae._run import absolute
from jaxvae.keys import seed_key
from jaxvae.progress import ProgressBar
from jaxvae.training.epoch import TrainEpoch
from jaxvae.training.fit import FitResult, Progress
from jaxvae.training.mesh import everywhere, local, replicated, split
from jaxvae.types import Array, Batch, Feed, LossFn, Metrics, PRNGKey, PyTree

InitFn = Callable[..., tuple[PyTree, PyTree]]


# What changes how long or where a run runs or how it is looked at, and, but for rounding, none of its steps.
MAY_CHANGE_ON_RESUME = {
    *("epochs", "out", "resume", "evaluate_every", "patience", "nll_samples"),
    *("devices", "distributed", "compare", "profile", "picture_format", "experiment"),
}


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
        self._suffix = f".{config.picture_format}"
        self.directory = _directory(experiment, config)
        settings = {"experiment": experiment, **dataclasses.asdict(config), **derived}
        self.settings = json.loads(json.dumps(settings, default=str))
        self._files = RunDirectory(
            self.directory,
            self.settings,
            resume=config.resume,
            may_change=MAY_CHANGE_ON_RESUME,
            way_out="continue it with --resume or choose another --out",
        )
        self.checkpointer = self._files.checkpointer
        if config.resume and not self._files.resumed:
            console.print(f"nothing to resume in {self.directory}: starting afresh")
        console.print(f"run directory: {self.directory}", highlight=False)

    def restore(self, state: jaxvae.TrainState) -> jaxvae.TrainState:
        """The newest sound checkpoint, or `state` itself where there is none; forgets later lines of metrics.jsonl."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            state = self._files.restore(state)
        for warning in caught:
            complain("warning", warning.message)
        if self.checkpointer.latest_step is not None:
            console.print(f"resumed at step {int(state.step)}")
        return state

    def best(self, state: jaxvae.TrainState) -> jaxvae.TrainState:
        """The checkpoint with the smallest monitored value; `state` itself where none was finite."""
        with user_errors():
            best = self._files.best(state)
        if best is None:
            return state
        console.print(f"best step: {int(best.step)} ({self.checkpointer.best_value:.3f})", highlight=False)
        return best

    def picture(self, name: str) -> Path:
        """Where a picture of this name goes, in the format of the run."""
        return self.directory / (name + self._suffix)

    def records(self) -> list[dict[str, Any]]:
        """The evaluations so far. A line that a kill cut short is dropped."""
        return self._files.records()

    def train(
        self,
        init_fn: InitFn,
        loss_fn: LossFn,
        optimizer: optax.GradientTransformation,
        dataset: data.Dataset,
        order: data.Order,
        *,
        monitor: str | None = None,
        skip_above: float | None = None,
        **options: Any,
    ) -> jaxvae.TrainState:
        """Train from the newest checkpoint, or from the seed; the options are those of `fit` below.

        `skip_above` is that of `jaxvae.make_train_step`.

        Every batch is split over the devices. The state that comes back is on one device of each process: the last
        one, or where `monitor` names what is to be small, the best one.
        """
        state = jaxvae.init_train_state(init_fn, optimizer, key=seed_key(order.seed))
        with user_errors():
            state = self.restore(state)
        if self.mesh is not None:
            state = everywhere(state, self.mesh)
        train_step = jaxvae.make_train_step(loss_fn, optimizer, prepare=dataset.prepare, skip_above=skip_above)
        train_epoch = jaxvae.make_train_epoch(train_step, mesh=self.mesh)
        state = self.fit(state, train_epoch, make_feed(dataset, order, self.mesh), monitor=monitor, **options)
        return state if monitor is None else self.best(state)

    def fit(
        self,
        state: jaxvae.TrainState,
        train_epoch: TrainEpoch,
        feed: Feed,
        *,
        evaluate: Callable[[jaxvae.TrainState], Mapping[str, Any]] | None,
        split: str,
        **options: Any,
    ) -> jaxvae.TrainState:
        """`jaxvae.fit` with a progress bar, metrics.jsonl and checkpoints.

        `evaluate`, where there is one, gets the state on one device: every process evaluates by itself. `split` names
        the examples that it looks at.
        Exits with 130 or 143 after Ctrl-C or SIGTERM, with 1 where the loss was not finite or the disk is full.
        """
        if evaluate is not None:
            options["evaluate"] = lambda state: evaluate(self._own(state))
        every = options.get("evaluate_every") or feed.steps_per_epoch
        if self.settings["profile"]:
            train_epoch = _profiled(train_epoch, feed.total_steps, self.directory / "profile")
        with user_errors():
            self._files.check_end(int(state.step), feed.total_steps, feed.total_steps // feed.steps_per_epoch)
            earlier = self._files.earlier(split, options.get("monitor"))
        try:
            with ProgressBar(console) as bar:
                result = jaxvae.fit(
                    *(state, train_epoch, feed),
                    checkpointer=self._files,
                    report=partial(self._report, bar, split, every),
                    earlier=earlier,
                    **options,
                )
        except (jaxvae.NonFiniteError, OSError) as error:
            complain("error", error)
            with suppress(OSError):  # a full disk has been complained of
                self.checkpointer.close()
            sys.exit(1)
        if result.stopped in ("SIGINT", "SIGTERM"):
            self._leave(result)
        if result.stopped:
            console.print(f"{result.stopped} at step {int(result.state.step)}")
        return self._own(result.state)

    def _report(self, bar: ProgressBar, split: str, every: int, progress: Progress) -> None:
        """Move the bar; where there was an evaluation, add its line to metrics.jsonl."""
        bar(progress)
        self._files.note(progress, interval_ends=progress.step % every == 0)
        if progress.evaluation is None:
            return
        record = {
            "step": progress.step,
            "epoch": progress.epoch,
            "train": progress.train,
            split: progress.evaluation,
            "examples_per_second": progress.examples_per_second,
        }
        self._files.append(record)

    def _leave(self, result: FitResult) -> None:
        """Say how to continue a run that a signal stopped, and exit."""
        self.checkpointer.close()
        options = [option for option in sys.argv[1:] if option != "--resume"]
        outer = self.directory.parent  # a run inside another is continued by continuing that one
        directory = outer if (outer / "config.json").exists() else self.directory
        where = [] if any(option.startswith("--out") for option in options) else ["--out", str(directory)]
        again = shlex.join(["python", "-m", f"experiments.{self._experiment}", *options, *where, "--resume"])
        console.print(f"stopped by {result.stopped} at step {int(result.state.step)}; continue with\n  {again}")
        sys.exit(130 if result.stopped == "SIGINT" else 143)

    def _own(self, state: jaxvae.TrainState) -> jaxvae.TrainState:
        return state if self.mesh is None else local(state)

    @file_errors()
    def finish(self, result: dict[str, Any], save_pictures: Callable[[], Sequence[Path]]) -> None:
        """Write result.json and the pictures, print the table and where it is; a picture that fails loses no number."""
        self.checkpointer.close()
        records = self.records()
        speed = {"examples_per_second": records[-1]["examples_per_second"]} if records else {}
        result = {**speed, **result, "seconds": time.perf_counter() - self._began}
        write_whole(self.directory / "result.json", to_json(result, indent=2) + "\n")
        pictures = save_pictures()
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


def init_of(model: Any, *inputs: Array) -> InitFn:
    """What `init_train_state` takes for a model that keeps no state: its parameters for inputs of these shapes."""

    def init(*, key: PRNGKey) -> tuple[PyTree, PyTree]:
        return model.init(key, *inputs), ()

    return init


def reached(state: jaxvae.TrainState) -> dict[str, Any]:
    """For result.json: where a run ended, and on what."""
    return {"step": int(state.step), "device": jax.devices()[0].device_kind}


def make_feed(
    dataset: data.Dataset, order: data.Order, mesh: Mesh | None = None, *, whole: bool = False
) -> data.Resident | data.Streamed:
    """The whole set on every device, unless it is large: then each device's share of the batches, or whole batches."""
    if dataset.x.nbytes > data.STREAM_ABOVE_BYTES:
        sharding = replicated if whole else split
        return data.Streamed(dataset, order, device=None if mesh is None else sharding(mesh))
    return data.Resident(dataset, order, device=None if mesh is None else replicated(mesh))


def _profiled(train_epoch: TrainEpoch, total_steps: int, directory: Path) -> TrainEpoch:
    """Trace the second program, which compiles nothing; the first, if it is the only one. By the first process."""
    calls = 0

    def profiled(state: jaxvae.TrainState, source: Batch, indices: Array) -> tuple[jaxvae.TrainState, Metrics]:
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
        directory = absolute(config.out, "--out")
    else:
        prefix = f"{experiment}-{config.preset}-"
        of_this = re.compile(re.escape(prefix) + r"\d{8}-\d{6}")  # no other preset's, nor one that --out named
        earlier = [path for path in sorted(Path("runs").glob("*")) if config.resume and of_this.fullmatch(path.name)]
        directory = (earlier[-1] if earlier else Path("runs") / f"{prefix}{time.strftime('%Y%m%d-%H%M%S')}").resolve()
    if directory.exists() and not directory.is_dir():
        raise NotADirectoryError(f"--out {directory} is a file; choose a directory")
    directory.mkdir(parents=True, exist_ok=True)
    return directory
