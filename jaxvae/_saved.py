"""A run in a directory: files that are data, each proved by a checksum, and never code.

`run.json` describes the model, its objective and how its data is prepared (`jaxvae._recipe`) and holds the checksums
of the others; `weights.safetensors` has the parameters and the state, `data.safetensors` the first examples,
`history.json` the evaluations.
"""

import hashlib
import importlib.metadata
import json
import re
import tempfile
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae._json import MOST_BYTES, parse_json, read_file, to_json, with_nan
from jaxvae._names import UnknownPartError
from jaxvae._recipe import Describer, Parts, Rebuilder, describe_tree, described, foreign_names
from jaxvae._tensors import check_types, parse_tensors, write_tensors

RECORD, WEIGHTS, EXAMPLES, HISTORY = "run.json", "weights.safetensors", "data.safetensors", "history.json"
FORMER = "run.pickle"  # the model as Python objects, which ran code when they were read
FORMAT = 1
MOST_PARTS = 100  # of the user's own
FIELDS = {"jaxvae", "model", "objective", "dataset", "params", "model_state", "step", "stopped", "files"}


class DamagedRunError(ValueError):
    """A run whose files cannot be read, do not hold what was saved, or name what no file may name."""


def describe(run: Any) -> tuple[dict[str, Any], dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What `run.json` says of a run, the arrays that its parts hold, and those of its parameters and its state.

    Raises:
      TypeError: the objective or how the data is prepared holds something that is no data, such as a lambda; or the
        state does.
      ValueError: two arrays would have one name.
    """
    record: dict[str, Any] = {}
    held: dict[str, np.ndarray] = {}
    weights: dict[str, np.ndarray] = {}
    for field, model in (("model", None), ("objective", run.model), ("dataset", run.model)):
        try:
            record[field], describer = described(getattr(run, field), field, model)
            held |= describer.arrays
        except UnknownPartError as error:
            if field != "model":
                raise TypeError(f"the run cannot be saved: {error}") from error
            record[field] = {"missing": str(error)}  # whoever loads it has to bring the model
    for field, prefix in (("params", ""), ("model_state", "model_state/")):
        record[field], arrays = _describe_tree(getattr(run, field), field, prefix)
        if both := arrays.keys() & weights.keys():
            raise ValueError(f"two arrays have the name {min(both)} in {WEIGHTS}: use names without '/'")
        weights |= arrays
    return record, held, weights


def _describe_tree(tree: Any, field: str, prefix: str) -> tuple[Any, dict[str, np.ndarray]]:
    arrays: dict[str, np.ndarray] = {}
    names = {}
    for i, (path, leaf) in enumerate(jax.tree_util.tree_leaves_with_path(tree)):
        name = names[i] = prefix + jax.tree_util.keystr(path, simple=True, separator="/")
        if name in arrays:
            raise ValueError(f"two arrays have the name {name} in {WEIGHTS}: use names without '/'")
        if jax.dtypes.issubdtype(getattr(leaf, "dtype", None), jax.dtypes.extended):
            raise TypeError(f"{name} is an array of {leaf.dtype}, which no file of weights holds")
        if isinstance(leaf, np.ma.MaskedArray):
            raise TypeError(f"{name} is a masked array, whose mask no file of weights holds")
        number = type(leaf) in (bool, int, float)  # of the type that JAX would give it
        arrays[name] = np.asarray(jnp.asarray(leaf) if number else jax.device_get(leaf))
    check_types(arrays)
    describer = Describer()
    recipe = describe_tree(describer, tree, field, names)
    again = Rebuilder(arrays, Parts(describer.parts)).rebuild(recipe)
    made, given = (str(jax.tree.structure(each)) for each in (again, tree))
    if made != given:
        raise TypeError(f"{field} is a tree that is another when it is made again: use dictionaries of arrays")
    return recipe, arrays


def write(run: Any, out: Path) -> None:
    """Write a run to a directory, over one that is there only once all of this one is on disk."""
    record, held, arrays = describe(run)
    record |= {"jaxvae": _version(), "step": int(run.step), "stopped": run.stopped}
    history = (to_json(run.history, indent=1) + "\n").encode()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".saving-", dir=out) as scratch:
        new = Path(scratch)
        record["files"] = {
            WEIGHTS: write_tensors(new / WEIGHTS, arrays),
            EXAMPLES: write_tensors(new / EXAMPLES, held),
            HISTORY: hashlib.sha256(history).hexdigest(),
        }
        (new / HISTORY).write_bytes(history)
        sealed = {"format": FORMAT, "sha256": _digest(record), "record": record}
        (new / RECORD).write_text(json.dumps(sealed, indent=1, allow_nan=False) + "\n")
        (out / RECORD).unlink(missing_ok=True)
        for file in sorted(new.iterdir(), key=lambda file: file.name == RECORD):  # last: what has it is whole
            file.replace(out / file.name)


def read(place: Path, parts: Parts, model: Any) -> dict[str, Any]:
    """The fields of the run in a directory; see `jaxvae.load`."""
    _check_is_there(place)
    record = _record(place)
    weights, examples = (parse_tensors(_sealed(place, record, name)) for name in (WEIGHTS, EXAMPLES))
    history = with_nan(parse_json(_sealed(place, record, HISTORY)))
    if not isinstance(history, list) or not all(isinstance(each, dict) for each in history):
        raise ValueError(f"{HISTORY} holds no list of evaluations")
    if type(record["step"]) is not int or not isinstance(record["stopped"], str | None):
        raise ValueError(f"{RECORD} says no step, or not why the run ended")
    _check_parts(place, record, parts, model)
    _warn_of_wide(place, weights)
    rebuilder = Rebuilder(examples, parts)
    model = rebuilder.rebuild(record["model"]) if model is None else model
    rebuilder.remember(model, "model")
    trees = Rebuilder(weights, parts)
    return {
        "model": model,
        "params": trees.rebuild(record["params"]),
        "model_state": trees.rebuild(record["model_state"]),
        "objective": rebuilder.rebuild(record["objective"]),
        "dataset": rebuilder.rebuild(record["dataset"]),
        "history": history,
        "step": record["step"],
        "stopped": record["stopped"],
    }


def guarded(place: Path, function: Callable[[], Any]) -> Any:
    """Call it; whatever damaged or hostile files provoke becomes a `DamagedRunError`, short and of one kind."""
    try:
        return function()
    except (FileNotFoundError, UnknownPartsError, FormerFormatError):
        raise
    except MemoryError as error:
        raise DamagedRunError(f"the run in {place} asks for more memory than there is") from error
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DamagedRunError(f"the run in {place} is damaged ({_quoted(reason)})") from error


class UnknownPartsError(TypeError):
    """A run that needs parts of the user's own."""


class FormerFormatError(ValueError):
    """A run that an earlier version saved as Python objects."""


def _check_is_there(place: Path) -> None:
    if (place / RECORD).exists():
        return
    if (place / FORMER).exists():
        raise FormerFormatError(
            f"the run in {place} was saved as Python objects ({FORMER}), which are no longer read because they run "
            "code: train it again, or load it with the version that saved it"
        )
    raise FileNotFoundError(f"no run in {place}: {place / RECORD} does not exist")


def _record(place: Path) -> dict[str, Any]:
    """What run.json says, checked against its own checksum."""
    sealed = parse_json(read_file(place / RECORD, MOST_BYTES))
    match sealed:
        case {"format": int(version), "sha256": str(digest), "record": dict(record)} if len(sealed) == 3:
            if version != FORMAT:
                raise ValueError(f"{RECORD} has format {version}, and this version reads {FORMAT}")
            if _digest(record) != digest:
                raise ValueError(f"{RECORD} does not match its checksum")
            if record.keys() != FIELDS:
                raise ValueError(f"{RECORD} has other entries than a run")
            return record
    raise ValueError(f"{RECORD} holds no run")


def _sealed(place: Path, record: Mapping[str, Any], name: str) -> bytes:
    content = read_file(place / name, MOST_BYTES if name == HISTORY else None)
    files = record["files"]
    if not isinstance(files, dict) or files.get(name) != hashlib.sha256(content).hexdigest():
        raise ValueError(f"{name} does not match its checksum")
    return content


def _check_parts(place: Path, record: Mapping[str, Any], parts: Parts, model: Any) -> None:
    """Raise `UnknownPartsError` that names all parts which are missing, and how to hand them over."""
    about = record["model"]
    if model is None and isinstance(about, dict) and isinstance(why := about.get("missing"), str):
        raise UnknownPartsError(
            f"the run in {place} needs its model, which no file describes ({_quoted(why)}): pass "
            "load(directory, model=...), made as it was"
        )
    fields = ("objective", "dataset", "params", "model_state", *(("model",) if model is None else ()))
    names = sorted({name for field in fields for name in foreign_names(record[field]) if not parts.find(name)})
    if strange := [name for name in names if not re.fullmatch(r"[\w.]{1,200}:[\w.]{1,200}", name)]:
        raise ValueError(f"{strange[0]} is no name")
    if len(names) > MOST_PARTS:
        raise ValueError(f"it names {len(names)} parts that are not jaxvae's")
    if names:
        listed = ", ".join(name.replace(":", ".") for name in names)
        short = ", ".join(name.rpartition(":")[2] for name in names)
        raise UnknownPartsError(
            f"the run in {place} has parts that are not jaxvae's: {listed}. No file makes Python import them: pass "
            f"load(directory, parts=[{short}])"
        )


def _warn_of_wide(place: Path, weights: Mapping[str, np.ndarray]) -> None:
    """Say where an array of 64 bits becomes one of 32, as all do unless JAX is told to keep them."""
    narrow = {name: jax.dtypes.canonicalize_dtype(values.dtype) for name, values in weights.items()}
    if changed := sorted(name for name, values in weights.items() if values.dtype.itemsize > narrow[name].itemsize):
        first = changed[0]
        warnings.warn(
            f"the run in {place} was saved with {_quoted(first)} in {weights[first].dtype.name}, which is read as "
            f"{narrow[first].name}: to keep it, call jax.config.update('jax_enable_x64', True) before",
            stacklevel=6,  # whoever calls jaxvae.load
        )


def _quoted(text: str) -> str:
    """What a file says, for a terminal: short, and without signs that would move its cursor."""
    return "".join(each if each.isprintable() else "?" for each in text[:200])


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _version() -> str:
    try:
        return importlib.metadata.version("jaxvae")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"
