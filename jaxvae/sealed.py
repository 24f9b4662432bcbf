"""What a checkpoint is on disk: arrays by their path, and a record that proves them.

`state` is a flat dictionary from path to array, `meta` a JSON record of each array's type and SHA-256, the settings,
the environment and the best step, itself under a checksum. Both are orbax items.
"""

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from jaxvae.types import PyTree


class DamagedCheckpointError(ValueError):
    """A checkpoint whose files cannot be read, or do not hold what was saved."""


def seal(
    state: PyTree, *, meta: Mapping[str, Any], best: tuple[int | None, float | None]
) -> tuple[ocp.args.Composite, dict[str, Any]]:
    """What to give orbax to save: the arrays of a state, copied to the host, and their record; and the record."""
    leaves = flatten(state)
    data = {name: jax.random.key_data(leaf) if _is_key(leaf) else leaf for name, leaf in leaves.items()}
    arrays = {name: np.array(values) for name, values in jax.device_get(data).items()}
    record = {
        "step": int(state.step),
        "meta": meta,
        "best": {"step": best[0], "value": best[1]},
        "environment": environment(),
        "arrays": {
            name: {
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


def alone() -> ocp.options.MultiprocessingOptions:
    """Without these, orbax waits for every process of a distributed run to save or restore the same."""
    process = jax.process_index()
    return ocp.options.MultiprocessingOptions(primary_host=process, active_processes={process})


def orbax_files() -> ocp.Checkpointer:
    """Orbax, to read or write one directory."""
    items = ocp.CompositeCheckpointHandler(composite_options=ocp.CompositeOptions(multiprocessing_options=alone()))
    return ocp.Checkpointer(items, multiprocessing_options=alone())


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


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def type_of(leaf: Any) -> str:
    """Element type and shape, such as `float32[40, 3]`."""
    return f"{leaf.dtype}{list(leaf.shape)}"


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
