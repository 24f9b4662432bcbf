"""Checkpoints that cannot be wrong silently: orbax for the files, checksums and a keep policy of our own.

A checkpoint is a directory named by its step with two orbax items: `state`, a flat dictionary from path to
array, and `meta`, a JSON record of each array's type and SHA-256, the settings, the environment and the best
step. Whatever happens to the files, they restore exactly or raise `DamagedCheckpointError`.

Only one process may write to a directory, and a second is refused; any number may read it, and reading changes nothing
there. Of the processes of a distributed run (`jax.distributed`) the first writes and all read: the directory must be
one that all of them see.
"""

import json
import math
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxvae._checks import at_least
from jaxvae._json import read_json_object, to_json
from jaxvae._sealed import (
    DamagedCheckpointError,
    KeepPolicy,
    check_codes_are_found,
    differences,
    environment,
    flatten,
    hold,
    nested,
    orbax_files,
    orbax_manager,
    place,
    read_arrays,
    read_record,
    seal,
    type_of,
)
from jaxvae.types import PyTree

Model = TypeVar("Model")
Result = TypeVar("Result")


class Checkpointer:
    """Saves states in the background, keeps the newest and the best, and restores them bit for bit.

    In a distributed run every process makes one, with the same directory, and calls the same methods.

    Args:
      directory: absolute, or below `~`; made if it does not exist. What killed saves left there is removed.
      meta: the seed and the settings of the run, as JSON, stored with every checkpoint.
      keep: how many of the newest checkpoints to keep, besides the best.

    Attributes:
      latest_step: the newest sound checkpoint, or None. A save counts once `wait` or the next save returns.
      best_step, best_value: the checkpoint with the smallest finite value, and that value in nats, or None.
      notes: what was saved beside the state of the latest step.
      saved_meta: what `meta` was when the newest checkpoint found in the directory was saved, or None.

    Raises:
      TypeError: `meta` is not JSON, `keep` is not an integer.
      ValueError: `directory` is relative, a file, cannot be written, or another process does; `keep` is below one.
      DamagedCheckpointError: the directory holds checkpoints and none is readable.
    """

    def __init__(self, directory: str | Path, *, meta: Mapping[str, Any], keep: int = 2) -> None:
        at_least(1, keep=keep)
        self.directory = _absolute(directory, "directory")
        self._meta = _as_json(meta)
        self._writes = jax.process_index() == 0
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.directory):
                pass
        except OSError as error:
            raise ValueError(f"cannot write checkpoints in {self.directory}: {error}") from error
        self._release = hold(self, self.directory) if self._writes else None
        self.latest_step: int | None = None
        self.best_step: int | None = None
        self.best_value: float | None = None
        self.notes: dict[str, Any] = {}
        self.saved_meta: dict[str, Any] | None = None
        if _steps(self.directory):
            step, record = _newest_sound(self.directory, read_record)
            self.saved_meta = record["meta"]
            self._adopt(step, record)
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._policy = KeepPolicy(keep)
        if not self._writes:
            return
        self._empty_trash()
        self._manager = orbax_manager(self.directory, self._policy)

    def save(self, state: PyTree, *, value: float | None = None, notes: Mapping[str, Any] | None = None) -> None:
        """Save a state under its own `step`; the smallest finite `value` so far marks the best one.

        `notes`, as JSON, are kept beside it: what a run must remember that is in no state.

        Copies the arrays to the host and writes them in the background, so the state may be donated at once.
        What fails in the background raises from the next `save`, `wait` or `close`.

        Raises:
          ValueError: there already is a checkpoint of that step or a later one.
          OSError: it cannot be written; says why, and which checkpoint is the last good one.
        """
        self.wait()
        step, latest = int(state.step), self.latest_step
        if latest is not None and step <= latest:
            raise ValueError(
                f"cannot save step {step}: {self.directory} already holds step {latest}; "
                "resume from it or choose another directory"
            )
        best_step, best_value = self.best_step, self.best_value
        if value is not None and math.isfinite(value) and (best_value is None or value < best_value):
            best_step, best_value = step, float(value)
        args, record = seal(state, meta=self._meta, best=(best_step, best_value), notes=notes)
        self._policy.best = best_step
        with self._writing():
            if self._writes:
                for damaged in [found for found in self._manager.all_steps() if latest is None or found > latest]:
                    self._manager.delete(damaged)  # newer than the newest sound one: `restore` has warned of it
                self._manager.save(step, args=args)
        self._pending = step, record

    def save_failed(self, state: PyTree) -> Path:
        """Save a state that stopped at a non-finite step apart from the others, and return where.

        It replaces an earlier one. `read_checkpoint` reads it.
        """
        final, new, old = (self.directory / name for name in ("failed", "failed.new", "failed.old"))
        args, _ = seal(state, meta=self._meta, best=(self.best_step, self.best_value))
        with self._writing():
            if self._writes:
                with orbax_files() as writer:
                    writer.save(new, args=args, force=True)
                shutil.rmtree(old, ignore_errors=True)
                if final.exists():
                    final.rename(old)
                new.rename(final)
                shutil.rmtree(old, ignore_errors=True)
        return final

    def restore(self, target: PyTree, *, step: int | None = None) -> PyTree:
        """Read a state with the structure, shapes, types and shardings of `target`.

        Warns where the environment has changed since the save: results may then differ in the last bits.

        Args:
          target: a pytree of arrays, JAX's or NumPy's, or of `jax.ShapeDtypeStruct`.
          step: the checkpoint; None takes the newest sound one, and warns if there are damaged ones after it.

        Raises:
          FileNotFoundError: there is no such checkpoint.
          ValueError: the checkpoint does not fit `target`; every array that differs is listed.
          DamagedCheckpointError: the checkpoint asked for, or every checkpoint, is damaged.
        """
        self.wait()
        if step is None:
            step, (state, record) = _newest_sound(self.directory, lambda path: read_checkpoint(path, target))
            self._adopt(step, record)
        else:
            state, record = read_checkpoint(_existing(self.directory, step), target)
        changes = "; ".join(differences(record["environment"], environment()))
        if changes:
            warnings.warn(
                f"the environment changed since {self.directory / str(step)} was saved, "
                f"so results may differ in the last bits: {changes}",
                stacklevel=2,
            )
        return state

    def wait(self) -> None:
        """Return when everything saved so far is on disk; raise if a save failed."""
        pending, self._pending = self._pending, None
        with self._writing():
            if self._writes:
                self._manager.wait_until_finished()
        if pending is not None:
            self._adopt(*pending)
            self._empty_trash()

    def close(self) -> None:
        """Finish what is being saved; raise if it failed."""
        try:
            self.wait()
        finally:
            try:
                with self._writing():
                    if self._writes:
                        self._manager.close()
            finally:
                if self._release is not None:
                    self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turn whatever a full disk or a vanished directory provokes in the libraries below into one short error.

        All processes wait here for the first, and fail where it fails.
        """
        failed = True
        try:
            yield
            failed = False
        except Exception as error:
            code = re.search(r"os_error_code='(\d+)'", str(error))  # TensorStore's, amid hundreds of characters
            reason = os.strerror(int(code[1])) if code else f"{type(error).__name__}: {error}".splitlines()[0][:200]
            good = "no checkpoint was saved before"
            if self.latest_step is not None:
                good = f"the last good checkpoint is step {self.latest_step}"
            raise OSError(f"cannot save in {self.directory}: {reason}; {good}") from error
        finally:
            failed_anywhere = multihost_utils.process_allgather(np.bool_(failed)).any()
        if failed_anywhere:
            raise OSError(f"the first process cannot save in {self.directory}")

    def _adopt(self, step: int, record: Mapping[str, Any]) -> None:
        """Make `step` the latest, and the best that it recorded the best, if that is still there."""
        self.latest_step, self.notes = step, record.get("notes", {})  # which older checkpoints lack
        best = record["best"]
        found = best["step"] in _steps(self.directory)
        self.best_step, self.best_value = (best["step"], best["value"]) if found else (None, None)

    def _empty_trash(self) -> None:
        if self._writes:
            shutil.rmtree(self.directory / "trash", ignore_errors=True)


def read_checkpoint(path: str | Path, target: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """Read one checkpoint directory: the state, like `target`, and the record stored with it.

    The record holds `step`, `meta`, `best`, `environment`, and the type and checksum of each of the `arrays`.

    Raises:
      ValueError: `path` is relative, or the checkpoint does not fit `target`: lists every array that differs.
      DamagedCheckpointError: the files cannot be read, or do not hold what was saved.
    """
    path = _absolute(path, "path")
    arrays, record = read_arrays(path)
    wanted = flatten(target)
    problems = differences(
        {name: saved["type"] for name, saved in record["arrays"].items()},
        {name: type_of(leaf) for name, leaf in wanted.items()},
    )
    if problems:
        check_codes_are_found(path, record)
        listed = "\n  ".join(problems)
        raise ValueError(f"checkpoint {path} does not fit; arrays that differ (saved -> wanted):\n  {listed}")
    leaves = [place(arrays[name], leaf) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(target), leaves), record


def load(
    run_dir: str | Path, make_model: Callable[[SimpleNamespace], Model], *, step: int | None = None
) -> tuple[Model, PyTree, PyTree, SimpleNamespace]:
    """Load a trained model from a run directory: `(model, params, model_state, config)`.

    `params` and `model_state` are nested dictionaries of arrays, as models take them; a model without state has `()`.
    A list or tuple of arrays comes back as a dictionary by position.

    >>> model, params, _, config = load("~/runs/digits", make_model)  # doctest: +SKIP
    >>> x = model.apply(params, 16, key=key, method="sample").mean  # doctest: +SKIP

    Args:
      run_dir: absolute, or below `~`; holds `config.json` and `checkpoints/`.
      make_model: builds the model from the configuration; nested settings stay dictionaries.
      step: the checkpoint; None takes the best one, or the newest sound one where none is recorded as best.

    Raises:
      FileNotFoundError: `run_dir`, its configuration, or the checkpoint does not exist.
      ValueError: `run_dir` is relative, its configuration is damaged or of another model, or the checkpoint holds a
        VQ-VAE of an earlier version, which kept its codes elsewhere.
      DamagedCheckpointError: the checkpoint is damaged.
    """
    run_dir = _absolute(run_dir, "run_dir")
    config_file = run_dir / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"no run in {run_dir}: {config_file} does not exist")
    config = SimpleNamespace(**read_json_object(config_file))
    directory = run_dir / "checkpoints"
    if step is None:
        step, (arrays, record) = _newest_sound(directory, read_arrays)
        best = record["best"]["step"]
        if best in _steps(directory) and best != step:
            try:
                arrays, record = read_arrays(directory / str(best))
            except DamagedCheckpointError as error:
                others = [found for found in _steps(directory) if found != best]
                raise DamagedCheckpointError(f"{error}: it was the best; pass step=, one of {others}") from error
            step = best
    else:
        arrays, record = read_arrays(_existing(directory, step))
    check_codes_are_found(directory / str(step), record)
    model = _made(make_model, config, config_file)
    return model, nested(arrays, record, "params"), nested(arrays, record, "model_state"), config


def _made(make_model: Callable[[SimpleNamespace], Model], config: SimpleNamespace, file: Path) -> Model:
    """The model of a configuration; `ValueError` where that lacks what the model is made of."""
    try:
        return make_model(config)
    except AttributeError as error:
        if error.obj is not config:
            raise
        raise ValueError(
            f"{file} has no setting {error.name!r}, which this model is made of: it is of a run of another kind"
        ) from error


def check_settings(saved: Mapping[str, Any], current: Mapping[str, Any], *, may_change: Collection[str] = ()) -> None:
    """Raise `ValueError` listing every setting, outside `may_change`, that is not what it was when saved."""
    saved, current = (
        {name: value for name, value in _as_json(settings).items() if name not in may_change}
        for settings in (saved, current)
    )
    changed = differences(saved, current)
    if changed:
        raise ValueError("settings differ from those of the saved run (saved -> current): " + "; ".join(changed))


def _newest_sound(directory: Path, read: Callable[[Path], Result]) -> tuple[int, Result]:
    """The newest step that `read` accepts, and what it returned; damaged ones after it are warned of."""
    failures: list[str] = []
    for step in reversed(_steps(directory)):
        try:
            result = read(directory / str(step))
        except DamagedCheckpointError as error:
            failures.append(str(error))
            continue
        if failures:
            warnings.warn(f"{'; '.join(failures)}; falling back to step {step}", stacklevel=3)
        return step, result
    if failures:
        raise DamagedCheckpointError(f"no sound checkpoint in {directory}: {'; '.join(failures)}")
    raise FileNotFoundError(f"no checkpoint in {directory}")


def _steps(directory: Path) -> list[int]:
    """The checkpoints in a directory, oldest first: orbax renames one to its step once it is complete."""
    if not directory.is_dir():
        return []
    return sorted(int(entry.name) for entry in directory.iterdir() if entry.name.isdecimal())


def _existing(directory: Path, step: int) -> Path:
    steps = _steps(directory)
    if step not in steps:
        raise FileNotFoundError(f"no checkpoint of step {step} in {directory}, which holds {steps}")
    return directory / str(step)


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As they will come back from a file: tuples as lists, every key a string, null for what is not finite."""
    as_json: dict[str, Any] = json.loads(to_json(settings))
    return as_json


def _absolute(path: str | Path, argument: str) -> Path:
    try:
        path = Path(path).expanduser()
    except RuntimeError as error:  # nobody's home
        raise ValueError(f"{argument} {str(path)!r}: {error}") from error
    if not path.is_absolute():
        raise ValueError(f"{argument} must be absolute, got {path}; use Path({str(path)!r}).resolve()")
    return path
