"""JSON from a file that anyone may have written: bounded, strict, and wrong only in one way, a `ValueError`.

JSON has no NaN: a number that is not finite is written as null, and numbers are read with NaN in its place.
"""

import json
import math
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

MOST_BYTES = 64 * 2**20


def read_file(path: Path, most_bytes: int | None = None) -> bytes:
    """The bytes of a regular file; `ValueError` where it is something else, such as a pipe, or larger than allowed."""
    kind = path.stat()
    if not stat.S_ISREG(kind.st_mode):
        raise ValueError(f"{path} is no regular file")
    if most_bytes is not None and kind.st_size > most_bytes:
        raise ValueError(f"{path} has {kind.st_size} bytes, more than {most_bytes}")
    return path.read_bytes()


def read_json(path: Path) -> Any:
    """What a file holds; `ValueError` names the file where it is damaged."""
    try:
        return parse_json(read_file(path, MOST_BYTES))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def read_json_object(path: Path) -> dict[str, Any]:
    """The object that a file holds; `ValueError` names the file where it is damaged or holds something else."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError(f"{path} is damaged: it holds no object")
    return value


def read_numbers(path: Path) -> dict[str, Any]:
    """As `read_json_object`, of what was measured: NaN where null stands for it."""
    numbers = read_json_object(path)
    try:
        return dict(with_nan(numbers))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from error


def parse_json(content: bytes) -> Any:
    """What UTF-8 text holds; `ValueError` for anything else, two entries of one name and endless nesting included."""
    try:
        return json.loads(content.decode(), object_pairs_hook=_once_each)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def to_json(value: Any, *, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    """The text of a value; null where a number is not finite, which Python would write as no JSON has it."""
    finite = _with(value, lambda number: number if number is not None and math.isfinite(number) else None)
    return json.dumps(finite, indent=indent, default=default)


def with_nan(value: Any) -> Any:
    """What `to_json` has written of numbers, with NaN in the place of null; `ValueError` for endless nesting."""
    try:
        return _with(value, lambda number: math.nan if number is None else number)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _with(value: Any, change: Callable[[float | None], float | None]) -> Any:
    if isinstance(value, float | None):
        return change(value)
    if isinstance(value, Mapping):
        return {name: _with(each, change) for name, each in value.items()}
    return [_with(each, change) for each in value] if isinstance(value, list | tuple) else value


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("it has two entries of one name")
    return entries
