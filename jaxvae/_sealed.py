"""What a checkpoint is on disk: arrays by their path, and a record that proves them. Nothing else meets orbax.

`state` is a flat dictionary from path to array, `meta` a JSON record of each array's type and SHA-256, the settings,
the environment and the best step, itself under a checksum. Both are orbax items.
"""

import errno
import hashlib
import json
import logging
import os
import platform
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.types import PyTree

try:
    import orbax.checkpoint as ocp
except ImportError as error:
    raise ImportError("checkpoints need orbax-checkpoint: pip install 'jaxvae[checkpoints]'") from error

# Orbax logs some 60 lines per save, and pages of traceback for each error, which it raises too.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)

LOCK = ".lock"  # an empty file: whoever writes to the directory holds a lock of it

# Where a VQVAE kept its codes before there was a "quantizer" in its parameters and its state.
FORMER_CODES = ({"model_state/frequency", "model_state/moment"}, {"params/codebook/codes"})


class DamagedCheckpointError(ValueError):
    """A checkpoint whose files cannot be read, or do not hold what was saved."""


def seal(
    state: PyTree,
    *,
    meta: Mapping[str, Any],
    best: tuple[int | None, float | None],
    notes: Mapping[str, Any] | None = None,
) -> tuple[ocp.args.Composite, dict[str, Any]]:
    """What to give orbax to save: the arrays of a state, copied to the host, and their record; and the record."""
    leaves, paths = flatten(state), _paths(state)
    data = {name: jax.random.key_data(leaf) if _is_key(leaf) else leaf for name, leaf in leaves.items()}
    arrays = {name: np.array(values) for name, values in jax.device_get(data).items()}
    record = {
        "step": int(state.step),
        "meta": meta,
        "best": {"step": best[0], "value": best[1]},
        "notes": dict(notes or {}),
        "environment": environment(),
        "arrays": {
            name: {
                "path": paths[name],
                "type": type_of(leaf),
                "key": str(jax.random.key_impl(leaf)) if _is_key(leaf) else None,
                "sha256": _array_digest(arrays[name]),
            }
            for name, leaf in leaves.items()
        },
    }
    sealed = {"sha256": _digest(record), "record": record}
    return ocp.args.Composite(state=ocp.args.StandardSave(arrays), meta=ocp.args.JsonSave(sealed)), record


def read_record(path: Path) -> dict[str, Any]:
    """The record of a checkpoint, checked against its own checksum; raises `DamagedCheckpointError`."""
    with _reading(path):
        sealed = _read_item(path, meta=ocp.args.JsonRestore()).meta
        record: dict[str, Any] = sealed["record"]
        if _digest(record) != sealed["sha256"]:
            raise ValueError("the record does not match its checksum")
        if path.name.isdecimal() and record["step"] != int(path.name):
            raise ValueError(f"it holds step {record['step']}: call it that again")
        return record


def read_arrays(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Every array as it was saved, keys as keys, and the record; raises `DamagedCheckpointError`."""
    record = read_record(path)
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


def check_codes_are_found(path: Path, record: Mapping[str, Any]) -> None:
    """Raise `ValueError` where the codes of a VQVAE lie where they lay before; what such records lack is `path`."""
    arrays = record["arrays"]
    for names in FORMER_CODES:
        if names <= arrays.keys() and not any("path" in arrays[name] for name in names):
            raise ValueError(
                f"checkpoint {path} holds the codes of a VQ-VAE in {' and '.join(sorted(names))}, where an earlier "
                "jaxvae kept them, and not under 'quantizer': train it again, or load it with the version that saved it"
            )


def nested(arrays: Mapping[str, Any], record: Mapping[str, Any], field: str) -> PyTree:
    """A field of the saved state as nested dictionaries of arrays on the default device; `()` where it held none.

    The entries of lists and tuples come under their numbers. A field that was one array comes back as it.
    """
    tree: dict[str | int, Any] = {}
    for name, values in arrays.items():
        path = record["arrays"][name].get("path") or name.split("/")
        if path[0] != field:
            continue
        branch = tree
        for folder in path[:-1]:
            branch = branch.setdefault(folder, {})
        branch[path[-1]] = jnp.asarray(values)
    return tree.get(field, ())


def place(values: Any, like: Any) -> Any:
    """Put restored values where `like` is, copied, so that the result may be donated."""
    if isinstance(like, np.ndarray):
        return values
    if isinstance(like, np.generic):
        return values[()]
    sharding = like.sharding if getattr(like, "committed", True) else None
    return jax.device_put(values, sharding, may_alias=False)


def hold(owner: object, directory: Path) -> Callable[[], object] | None:
    """Hold a directory against other processes until this is called, or the owner or the process is no more.

    Two that write would remove each other's unfinished checkpoints and mix their histories. Where files cannot be
    locked nothing is held.
    """
    if sys.platform == "win32":
        return None
    import fcntl

    lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    release = weakref.finalize(owner, os.close, lock)
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            release()
            raise ValueError(
                f"another process writes to {directory}: wait until it has ended, or choose another directory"
            ) from error
    return release


class KeepPolicy:
    """Keep the newest checkpoints and the best one (orbax's own policies lose one or the other)."""

    def __init__(self, newest: int) -> None:
        self.newest = newest
        self.best: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: object) -> list[bool]:
        """Whether to keep each of the checkpoints, which come oldest first."""
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*steps[-self.newest :], self.best}
        return [step in kept for step in steps]


def orbax_manager(directory: Path, policy: KeepPolicy) -> ocp.CheckpointManager:
    """Orbax, to write to a directory of checkpoints in the background."""
    return ocp.CheckpointManager(
        directory,
        item_names=("state", "meta"),
        options=ocp.CheckpointManagerOptions(
            preservation_policy=policy,
            multiprocessing_options=single_process_options(),
            create=False,  # it would wait for the other processes
            cleanup_tmp_directories=True,
            todelete_subdir="trash",  # renames: a kill amid a deletion would leave half a checkpoint
            lightweight_initialize=True,
            # Made in the background, a directory that cannot be made delays the exit by five minutes.
            async_options=ocp.AsyncOptions(create_directories_asynchronously=False),
        ),
    )


def single_process_options() -> ocp.options.MultiprocessingOptions:
    """Without these, orbax waits for every process of a distributed run to save or restore the same."""
    process = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=process, active_processes={process})


def orbax_files() -> ocp.Checkpointer:
    """Orbax, to read or write one directory."""
    items = ocp.CompositeCheckpointHandler(
        composite_options=ocp.CompositeOptions(multiprocessing_options=single_process_options())
    )
    return ocp.Checkpointer(items, multiprocessing_options=single_process_options())


def _read_item(path: Path, **item: Any) -> Any:
    with orbax_files() as reader:
        return reader.restore(path, args=ocp.args.Composite(**item))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turn whatever a damaged file provokes in the libraries below into one short error."""
    try:
        yield
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0][:200]
        raise DamagedCheckpointError(f"checkpoint {path} is damaged ({reason})") from error


def flatten(tree: PyTree) -> dict[str, Any]:
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


def _paths(tree: PyTree) -> dict[str, list[str | int]]:
    """The same paths in parts: what `nested` rebuilds, where a name may contain a slash or be a number."""
    parts = [
        [part if isinstance(part, str | int) else str(part) for part in map(_part, path)]
        for path, _ in jax.tree_util.tree_flatten_with_path(tree)[0]
    ]
    return dict(zip(flatten(tree), parts, strict=True))


def _part(key: Any) -> Any:
    """What a key of JAX's path stands for: of a dictionary, a list or tuple, a record."""
    return next(getattr(key, name) for name in ("key", "idx", "name") if hasattr(key, name))


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def type_of(leaf: Any) -> str:
    """Element type and shape, such as `float32[40, 3]`."""
    return f"{leaf.dtype}{list(leaf.shape)}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One `name: old -> new` for each entry that differs or that only one of the two has."""
    names = sorted(old.keys() | new.keys())
    return [
        f"{name}: {old.get(name, 'absent')} -> {new.get(name, 'absent')}"
        for name in names
        if old.get(name, "absent") != new.get(name, "absent")
    ]


def environment() -> dict[str, Any]:
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
