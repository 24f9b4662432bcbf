"""Arrays in the safetensors format: a header of JSON, then their bytes. Reading checks everything and runs nothing.

Written here, and not by the package safetensors, because a run is saved and loaded where no extra is installed; other
programs read these files by that package. The format: https://github.com/huggingface/safetensors
"""

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxvae._json import parse_json

NAMES = {
    **{"BOOL": "bool", "U8": "uint8", "I8": "int8", "U16": "uint16", "I16": "int16", "U32": "uint32", "I32": "int32"},
    **{"U64": "uint64", "I64": "int64", "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"},
    **{"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "C64": "complex64"},
}
LARGEST_HEADER = 100_000_000  # bytes; that of the package
MOST_AXES = 32
METADATA = "__metadata__"  # an entry of the header that is no array


def write_tensors(path: Path, arrays: Mapping[str, np.ndarray]) -> str:
    """Write arrays by their names; returns the SHA-256 of the file.

    Raises:
      TypeError: an element type that the format does not have.
    """
    types = check_types(arrays)
    # The widest first, so that each lies where a processor wants it.
    order = sorted(arrays, key=lambda name: (-arrays[name].dtype.itemsize, name))
    header, end = {}, 0
    for name in order:
        values = arrays[name]
        begin, end = end, end + values.nbytes
        code = types[name]
        header[name] = {"dtype": code, "shape": list(values.shape), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for part in (struct.pack("<Q", len(text)), text, *(_bytes(arrays[name]) for name in order)):
            digest.update(part)
            file.write(part)
    return digest.hexdigest()


def check_types(arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Name -> what the format calls its element type; `TypeError` where it has none, or has no array of that name."""
    if METADATA in arrays:
        raise TypeError(f"no file of weights holds an array called {METADATA}, which means something else there")
    of_type = {jnp.dtype(name): code for code, name in NAMES.items()}
    types = {name: values.dtype.newbyteorder("=") for name, values in arrays.items()}
    if strange := [f"{name} is {dtype}" for name, dtype in types.items() if dtype not in of_type]:
        raise TypeError(f"no file of weights holds such an element type: {', '.join(strange)}")
    return {name: of_type[dtype] for name, dtype in types.items()}


def _bytes(values: np.ndarray) -> Any:
    little = np.ascontiguousarray(values).astype(values.dtype.newbyteorder("<"), copy=False)
    return little.reshape(-1).view(np.uint8).data


def parse_tensors(content: bytes) -> dict[str, np.ndarray]:
    """The arrays in a file's bytes, views of them that nobody can write to; `ValueError` says what is wrong."""
    if len(content) < 8:
        raise ValueError("there is no header")
    length = struct.unpack("<Q", content[:8])[0]
    if length > min(LARGEST_HEADER, len(content) - 8):
        raise ValueError(f"a header of {length} bytes does not fit the file of {len(content)}")
    header = parse_json(content[8 : 8 + length])
    if not isinstance(header, dict):
        raise ValueError("the header is no object")
    header.pop(METADATA, None)
    data = memoryview(content)[8 + length :]
    found = {name: _parsed(name, entry, len(data)) for name, entry in header.items()}
    expected = 0
    for name, (begin, end, _, _) in sorted(found.items(), key=lambda each: each[1][:2]):
        if begin != expected:
            raise ValueError(f"{name} begins at {begin} where {expected} was expected")
        expected = end
    if expected != len(data):
        raise ValueError(f"the arrays end at {expected}, the file at {len(data)}")
    return {
        name: np.frombuffer(data[begin:end], dtype).reshape(shape) for name, (begin, end, dtype, shape) in found.items()
    }


def _parsed(name: str, entry: Any, size: int) -> tuple[int, int, np.dtype, tuple[int, ...]]:
    """Where an array begins and ends, its type and its shape."""
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ValueError(f"the entry of {name} is malformed")
    code, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(code, str) or code not in NAMES:
        raise ValueError(f"the element type {code!r} of {name} is unknown")
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or not all(type(each) is int and each >= 0 for each in numbers):
            raise ValueError(f"the entry of {name} has no shape and offsets of integers from zero up")
    if len(offsets) != 2 or not offsets[0] <= offsets[1] <= size or len(shape) > MOST_AXES:
        raise ValueError(f"{name} does not lie within the file")
    dtype = jnp.dtype(NAMES[code]).newbyteorder("<")
    if math.prod(shape) * dtype.itemsize != offsets[1] - offsets[0]:
        raise ValueError(f"{name} of shape {shape} is not as long as its bytes")
    return offsets[0], offsets[1], dtype, tuple(shape)
