"""A run's directory, from its first step to its last: settings, metrics and checkpoints, new or resumed."""

import warnings
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxvae._json import parse_json, read_json_object, to_json, with_nan
from jaxvae.checkpoint import Checkpointer, DamagedCheckpointError, check_settings
from jaxvae.training.fit import Earlier, Progress
from jaxvae.training.state import TrainState

CONFIG, METRICS, CHECKPOINTS = "config.json", "metrics.jsonl", "checkpoints"


class RunDirectory:
    """`config.json`, `metrics.jsonl` (one object per evaluation) and `checkpoints/`, a `Checkpointer` for `fit`.

    In a distributed run every process makes one of the same directory; the first writes.

    Args:
      path: absolute; made if it does not exist.
      settings: as JSON; kept in config.json and with every checkpoint.
      resume: whether the directory may hold a run.
      may_change: the settings that a resumed run may have other values of.
      last_step: where training will end; the run must not be beyond it.
      way_out: what the caller can do where there is a run and `resume` is false.

    Attributes:
      path: as given.
      resumed: whether there was a run.
      checkpointer: saves to checkpoints/.

    Raises:
      FileExistsError: the directory holds a run and `resume` is false.
      NotADirectoryError: it is a file.
      ValueError: it holds a run with other settings, each of which is listed, or beyond `last_step`, or cannot be
        written. A run that is refused is left as it was.
    """

    def __init__(
        self,
        path: Path,
        settings: Mapping[str, Any],
        *,
        resume: bool,
        may_change: Collection[str] = (),
        last_step: int | None = None,
        way_out: str,
    ) -> None:
        self.path, self._step, self._by_step = path, 0, dict[str, Any]()
        config_file = path / CONFIG
        described = config_file.exists()
        self.resumed = described or _holds_parts(path)
        if self.resumed and not resume:
            raise FileExistsError(f"{path} holds a run already; {way_out}")
        if described:
            check_settings(read_json_object(config_file), settings, may_change=may_change)
        multihost_utils.sync_global_devices("all have seen what the directory holds")
        self.checkpointer = Checkpointer(path / CHECKPOINTS, meta={"config": settings})
        if self.resumed and not described:
            with self._closed_by_errors():
                check_settings(self._settings_of_checkpoint(), settings, may_change=may_change)
        if last_step is not None and (self.latest_step or 0) > last_step:
            epochs = settings.get("epochs")
            self.checkpointer.close()
            raise ValueError(f"the run in {path} is at step {self.latest_step}, epochs={epochs} end at {last_step}")
        self._former = config_file.read_text() if described else None
        write_whole(config_file, to_json(settings, indent=2) + "\n")

    def check_end(self, step: int, last_step: int, epochs: int) -> None:
        """Raise `ValueError` where a resumed run is beyond its end, and leave its settings as they were."""
        if step <= last_step:
            return
        if self._former is not None:
            write_whole(self.path / CONFIG, self._former)
        raise ValueError(
            f"the run in {self.path} is at step {step}, and {epochs} epochs end at {last_step}: ask for more, or "
            "begin another run in another directory"
        )

    @contextmanager
    def _closed_by_errors(self) -> Iterator[None]:
        try:
            yield
        except Exception:
            self.checkpointer.close()
            raise

    def _settings_of_checkpoint(self) -> dict[str, Any]:
        """What config.json held, which is missing: every checkpoint has it too."""
        saved = (self.checkpointer.saved_meta or {}).get("config")
        if not isinstance(saved, dict):
            raise ValueError(
                f"{self.path} holds parts of a run and no {CONFIG}, so nothing says what they are of: put it back, or "
                "choose another directory"
            )
        return saved

    def restore(self, state: TrainState) -> TrainState:
        """The newest sound checkpoint, or `state` itself where there is none; forgets later lines of metrics.jsonl."""
        if self.checkpointer.latest_step is not None:
            state = self.checkpointer.restore(state)
        self._step = int(state.step)
        self._by_step = self.checkpointer.notes.get("by_step", {}) if self._step else {}
        if self._step and not (self.path / METRICS).exists():
            lost = "the history begins anew, and early stopping knows nothing of what came before"
            warnings.warn(f"{self.path / METRICS} is missing at step {self._step}: {lost}", stacklevel=3)
        kept = [record for record in self.records() if record["step"] <= int(state.step)]
        write_whole(self.path / METRICS, "".join(to_json(record) + "\n" for record in kept))
        return state

    def best(self, state: TrainState) -> TrainState | None:
        """The checkpoint with the smallest monitored value, like `state`; None where there is none."""
        step = self.checkpointer.best_step
        if step is None:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # `restore` has said what has changed since
                return self.checkpointer.restore(state, step=step)
        except DamagedCheckpointError as error:
            instead = f"remove it and resume, to end on the newest, step {self.latest_step}"
            raise DamagedCheckpointError(f"{error}: it was the best; {instead}") from error

    def earlier(self, split: str, metric: str | None) -> Earlier:
        """What is known of the steps before the state that `restore` gave; `metric` is what `fit` monitors."""
        by_step = {name: np.asarray(one["values"], one["dtype"]) for name, one in self._by_step.items()}
        evaluated = [record[split] for record in self.records() if split in record]
        if metric is not None and not all(isinstance(each, dict) and metric in each for each in evaluated):
            raise ValueError(
                f"{self.path / METRICS} is damaged: an evaluation lacks {split} {metric}, which the best state was "
                "chosen by; remove its line to go on"
            )
        return Earlier(by_step, [] if metric is None else [each[metric] for each in evaluated])

    def note(self, progress: Progress, *, interval_ends: bool) -> None:
        """Take down what the steps since the last evaluation gave; the next checkpoint keeps it beside its state.

        `interval_ends` says that the next step begins anew.
        """
        self._step, self._by_step = progress.step, {}
        if not interval_ends:
            self._by_step = {
                name: {"dtype": values.dtype.name, "values": values.tolist()}
                for name, values in progress.by_step.items()
            }

    @property
    def latest_step(self) -> int | None:
        """The newest checkpoint that is known to be sound."""
        return self.checkpointer.latest_step

    def save(self, state: TrainState, *, value: float | None = None) -> None:
        """Save a state that was noted.

        Raises:
          RuntimeError: it was not: something failed between a step and its evaluation, which a run resumed from here
            would lack. The checkpoint before it leads there again.
        """
        if int(state.step) != self._step:
            raise RuntimeError("it was not evaluated yet; resume from the checkpoint before it")
        self.checkpointer.save(state, value=value, notes={"by_step": self._by_step})

    def save_failed(self, state: TrainState) -> Path:
        """Save a state that stopped at a non-finite step apart from the others."""
        return self.checkpointer.save_failed(state)

    def wait(self) -> None:
        """Return when everything saved so far is on disk."""
        self.checkpointer.wait()

    def records(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl so far. One that a kill cut short is dropped; `ValueError` names a damaged one."""
        if not (self.path / METRICS).exists():
            return []
        lines = (self.path / METRICS).read_bytes().splitlines(keepends=True)
        return [self._record(line, i) for i, line in enumerate(lines, 1) if line.endswith(b"\n")]

    def _record(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            match parse_json(line):
                case {"step": int()} as record:
                    numbers: dict[str, Any] = with_nan(record)
                    return numbers
            reason = "it holds no evaluation"
        except ValueError as error:
            reason = str(error)
        raise ValueError(f"line {number} of {self.path / METRICS} is damaged: {reason}; remove it to go on")

    def append(self, record: Mapping[str, Any]) -> None:
        """Add a line to metrics.jsonl; by the first process."""
        if jax.process_index() == 0:
            with (self.path / METRICS).open("a") as file:
                file.write(to_json(record) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.checkpointer.close()


def _holds_parts(path: Path) -> bool:
    """Whether there are metrics or checkpoints, which a run would go on from or write over."""
    metrics = path / METRICS
    steps = any(entry.name.isdecimal() for entry in (path / CHECKPOINTS).glob("*"))
    return steps or (metrics.exists() and metrics.stat().st_size > 0)


def write_whole(path: Path, text: str) -> None:
    """All of it or nothing, so that a kill never leaves half a file; by the first process."""
    if jax.process_index() == 0:
        scratch = path.with_name(f".{path.name}")
        scratch.write_text(text)
        scratch.replace(path)
