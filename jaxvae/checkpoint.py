"""Checkpoints that cannot be wrong silently: orbax for the files, checksums and a keep policy of our own.

A checkpoint is a directory named by its step with two orbax items: `state`, a flat dictionary from path to
array, and `meta`, a JSON record of each array's type and SHA-256, the settings, the environment and the best
step. Whatever happens to the files, they restore exactly or raise `DamagedCheckpointError`.

Only one process may write to a directory; any number may read it, and reading changes nothing there.
"""

import hashlib
import json
import logging
import math
import os
import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxvae.types import PyTree

Model = TypeVar("Model")
Result = TypeVar("Result")

logging.getLogger("absl").setLevel(logging.WARNING)  # orbax logs some 60 lines per save otherwise


class DamagedCheckpointError(ValueError):
    """A checkpoint whose files cannot be read, or do not hold what was saved."""


class Checkpointer:
    """Saves states in the background, keeps the newest and the best, and restores them bit for bit.

    Args:
      directory: absolute; made if it does not exist. What killed saves left there is removed.
      meta: the seed and the settings of the run, as JSON, stored with every checkpoint.
      keep: how many of the newest checkpoints to keep, besides the best.

    Attributes:
      latest_step: the newest sound checkpoint, or None. A save counts once `wait` or the next save returns.
      best_step, best_value: the checkpoint with the smallest finite value, and that value in nats, or None.
      saved_meta: what `meta` was when the newest checkpoint found in the directory was saved, or None.

    Raises:
      TypeError: `meta` is not JSON.
      ValueError: `directory` is relative, a file, or cannot be written; `keep` is below one.
      DamagedCheckpointError: the directory holds checkpoints and none is readable.
    """

    def __init__(self, directory: str | Path, *, meta: Mapping[str, Any], keep: int = 2) -> None:
        if keep < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        self.directory = _absolute(directory, "directory")
        self._meta = _as_json(meta)
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.directory):
                pass
        except OSError as error:
            raise ValueError(f"cannot write checkpoints in {self.directory}: {error}") from error
        self.latest_step: int | None = None
        self.best_step: int | None = None
        self.best_value: float | None = None
        self.saved_meta: dict[str, Any] | None = None
        if _steps(self.directory):
            step, record = _newest_sound(self.directory, _read_record)
            self.saved_meta = record["meta"]
            self._adopt(step, record)
        self._empty_trash()
        self._pending: tuple[int, dict[str, Any]] | None = None
        self._policy = _KeepPolicy(keep)
        self._manager = ocp.CheckpointManager(
            self.directory,
            item_names=("state", "meta"),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=self._policy,
                cleanup_tmp_directories=True,
                todelete_subdir="trash",  # renames: a kill amid a deletion would leave half a checkpoint
                lightweight_initialize=True,
                # Made in the background, a directory that cannot be made delays the exit by five minutes.
                async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
            ),
        )

    def save(self, state: PyTree, *, value: float | None = None) -> None:
        """Save a state under its own `step`; the smallest finite `value` so far marks the best one.

        Copies the arrays to the host and writes them in the background, so the state may be donated at once.
        What fails in the background raises from the next `save`, `wait` or `close`.

        Raises:
          ValueError: there already is a checkpoint of that step or a later one.
        """
        self.wait()
        step, latest = int(state.step), self.latest_step
        if latest is not None and step <= latest:
            raise ValueError(
                f"cannot save step {step}: {self.directory} already holds step {latest}; "
                "resume from it or choose another directory"
            )
        for damaged in [found for found in self._manager.all_steps() if latest is None or found > latest]:
            self._manager.delete(damaged)  # newer than the newest sound one: `restore` has warned of it
        best_step, best_value = self.best_step, self.best_value
        if value is not None and math.isfinite(value) and (best_value is None or value < best_value):
            best_step, best_value = step, float(value)
        arrays, record = self._prepare(state, best_step, best_value)
        self._policy.best = best_step
        self._manager.save(step, args=_save_args(arrays, record))
        self._pending = step, record

    def save_failed(self, state: PyTree) -> Path:
        """Save a state that stopped at a non-finite step apart from the others, and return where.

        It replaces an earlier one. `read_checkpoint` reads it.
        """
        final, new, old = (self.directory / name for name in ("failed", "failed.new", "failed.old"))
        arrays, record = self._prepare(state, self.best_step, self.best_value)
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
            writer.save(new, args=_save_args(arrays, record), force=True)
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
          target: a pytree of arrays or of `jax.ShapeDtypeStruct`.
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
        changes = "; ".join(_differences(record["environment"], _environment()))
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
        self._manager.wait_until_finished()
        if pending is not None:
            self._adopt(*pending)
            self._empty_trash()

    def close(self) -> None:
        """Finish what is being saved; raise if it failed."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _prepare(
        self, state: PyTree, best_step: int | None, best_value: float | None
    ) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        """The arrays of a state, copied to the host, and the record that will prove them."""
        leaves = _flatten(state)
        data = {name: jax.random.key_data(leaf) if _is_key(leaf) else leaf for name, leaf in leaves.items()}
        arrays = {name: np.array(values) for name, values in jax.device_get(data).items()}
        record = {
            "step": int(state.step),
            "meta": self._meta,
            "best": {"step": best_step, "value": best_value},
            "environment": _environment(),
            "arrays": {
                name: {
                    "type": _type(leaf),
                    "key": str(jax.random.key_impl(leaf)) if _is_key(leaf) else None,
                    "sha256": _array_digest(arrays[name]),
                }
                for name, leaf in leaves.items()
            },
        }
        return arrays, record

    def _adopt(self, step: int, record: Mapping[str, Any]) -> None:
        """Make `step` the latest, and the best that it recorded the best, if that is still there."""
        self.latest_step = step
        best = record["best"]
        found = best["step"] in _steps(self.directory)
        self.best_step, self.best_value = (best["step"], best["value"]) if found else (None, None)

    def _empty_trash(self) -> None:
        shutil.rmtree(self.directory / "trash", ignore_errors=True)


def read_checkpoint(path: str | Path, target: PyTree) -> tuple[PyTree, dict[str, Any]]:
    """Read one checkpoint directory: the state, like `target`, and the record stored with it.

    The record holds `step`, `meta`, `best`, `environment`, and the type and checksum of each of the `arrays`.

    Raises:
      ValueError: `path` is relative, or the checkpoint does not fit `target`: lists every array that differs.
      DamagedCheckpointError: the files cannot be read, or do not hold what was saved.
    """
    path = _absolute(path, "path")
    arrays, record = _read(path)
    wanted = _flatten(target)
    problems = _differences(
        {name: saved["type"] for name, saved in record["arrays"].items()},
        {name: _type(leaf) for name, leaf in wanted.items()},
    )
    if problems:
        listed = "\n  ".join(problems)
        raise ValueError(f"checkpoint {path} does not fit; arrays that differ (saved -> wanted):\n  {listed}")
    leaves = [_place(arrays[name], leaf) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(target), leaves), record


def load(
    run_dir: str | Path, make_model: Callable[[SimpleNamespace], Model], *, step: int | None = None
) -> tuple[Model, PyTree, PyTree, SimpleNamespace]:
    """Load a trained model from a run directory: `(model, params, model_state, config)`.

    `params` and `model_state` are nested dictionaries of arrays; a model without state has `()`.

    >>> model, params, _, config = load("/runs/digits", make_model)  # doctest: +SKIP
    >>> images = model.apply(params, 16, key=key, method="sample").mean  # doctest: +SKIP

    Args:
      run_dir: absolute; holds `config.json` and `checkpoints/`.
      make_model: builds the model from the configuration; nested settings stay dictionaries.
      step: the checkpoint; None takes the best one, or the newest sound one where none is recorded as best.

    Raises:
      FileNotFoundError: `run_dir`, its configuration, or the checkpoint does not exist.
      ValueError: `run_dir` is relative.
      DamagedCheckpointError: the checkpoint is damaged.
    """
    run_dir = _absolute(run_dir, "run_dir")
    config_file = run_dir / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"no run in {run_dir}: {config_file} does not exist")
    config = SimpleNamespace(**json.loads(config_file.read_text()))
    directory = run_dir / "checkpoints"
    if step is None:
        _, (arrays, record) = _newest_sound(directory, _read)
        best = record["best"]["step"]
        if best in _steps(directory) and best != record["step"]:
            arrays, _ = _read(directory / str(best))
    else:
        arrays, _ = _read(_existing(directory, step))
    return make_model(config), _nested(arrays, "params/"), _nested(arrays, "model_state/") or (), config


def check_settings(saved: Mapping[str, Any], current: Mapping[str, Any], *, may_change: Collection[str] = ()) -> None:
    """Raise `ValueError` listing every setting, outside `may_change`, that is not what it was when saved."""
    saved, current = (
        {name: value for name, value in _as_json(settings).items() if name not in may_change}
        for settings in (saved, current)
    )
    differences = _differences(saved, current)
    if differences:
        raise ValueError("settings differ from those of the saved run (saved -> current): " + "; ".join(differences))


class _KeepPolicy:
    """Keep the newest checkpoints and the best one (orbax's own policies lose one or the other)."""

    def __init__(self, newest: int) -> None:
        self.newest = newest
        self.best: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: object) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self.newest :], self.best}
        return [step in kept for step in steps]


def _save_args(arrays: dict[str, np.ndarray], record: dict[str, Any]) -> ocp.args.Composite:
    sealed = {"sha256": _digest(record), "record": record}
    return ocp.args.Composite(state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(sealed))


def _read_record(path: Path) -> dict[str, Any]:
    with _reading(path):
        sealed = _read_item(path, meta=ocp.args.JsonRestore()).meta
        record: dict[str, Any] = sealed["record"]
        if _digest(record) != sealed["sha256"]:
            raise ValueError("the record does not match its checksum")
        return record


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every array as it was saved, keys as keys, checked against the record; and the record."""
    record = _read_record(path)
    with _reading(path):
        arrays = _read_item(path, state=ocp.args.StandardRestore()).state
        restored = {}
        for name, saved in record["arrays"].items():
            values: Any = np.asarray(arrays[name])
            if _array_digest(values) != saved["sha256"]:
                raise ValueError(f"{name} does not match its checksum")
            if saved["key"] is not None:
                values = jax.random.wrap_key_data(jnp.asarray(values), impl=saved["key"])
            restored[name] = values
        return restored, record


def _read_item(path: Path, **item: Any) -> Any:
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
        return reader.restore(path, args=ocp.args.Composite(**item))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file provokes in the libraries below into one short error."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise DamagedCheckpointError(f"checkpoint {path} is damaged ({reason})") from error


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


def _flatten(tree: PyTree) -> dict[str, Any]:
    """The leaves by their path, such as `params/Dense_0/kernel`, in the order of the tree."""
    flat: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        if not hasattr(leaf, "dtype"):
            raise TypeError(f"{name} must be an array, got {leaf!r}")
        if name in flat:
            raise ValueError(f"two arrays have the path {name}; use names without '/'")
        flat[name] = leaf
    return flat


def _nested(arrays: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """The arrays below `prefix` as nested dictionaries on the default device."""
    tree: dict[str, Any] = {}
    for name, values in arrays.items():
        if name.startswith(prefix):
            *folders, last = name.removeprefix(prefix).split("/")
            branch = tree
            for folder in folders:
                branch = branch.setdefault(folder, {})
            branch[last] = jnp.asarray(values)
    return tree


def _place(values: Any, like: Any) -> Any:
    """Put restored values where `like` is, copied, so that the result may be donated."""
    if isinstance(like, np.ndarray):
        return values
    sharding = like.sharding if getattr(like, "committed", True) else None
    return jax.device_put(values, sharding, may_alias=False)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _type(leaf: Any) -> str:
    return f"{leaf.dtype}{list(leaf.shape)}"


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One `name: old -> new` for each entry that differs or that only one of the two has."""
    names = sorted(old.keys() | new.keys())
    return [
        f"{name}: {old.get(name, 'absent')} -> {new.get(name, 'absent')}"
        for name in names
        if old.get(name, "absent") != new.get(name, "absent")
    ]


def _environment() -> dict[str, Any]:
    """What may change the last bits of a result."""
    packages = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
    has_affinity = hasattr(os, "sched_getaffinity")  # Linux
    return {
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "XLA_FLAGS": os.environ.get("XLA_FLAGS", ""),
        "device kind": jax.devices()[0].device_kind,
        "device count": jax.device_count(),
        "CPU count": len(os.sched_getaffinity(0)) if has_affinity else os.cpu_count(),
    }


def _array_digest(values: np.ndarray) -> str:
    digest = hashlib.sha256(f"{values.dtype}{values.shape}".encode())
    digest.update(np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _as_json(settings: Mapping[str, Any]) -> dict[str, Any]:
    """As they will come back from a file: tuples as lists, every key a string."""
    as_json: dict[str, Any] = json.loads(json.dumps(dict(settings)))
    return as_json


def _absolute(path: str | Path, argument: str) -> Path:
    path = Path(path)
    if not path.is_absolute():
        raise ValueError(f"{argument} must be absolute, got {path}; use Path({str(path)!r}).resolve()")
    return path
