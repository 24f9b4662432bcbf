"""Lets the compiled functions of a module pickle by their name, as its plain functions do.

Activations such as `nn.relu`, `nn.tanh` and `nn.silu` are compiled functions, and a network holds one: without this
neither it nor a model, an objective or a step made of it could be pickled.
"""

import copyreg
import functools
import importlib
from typing import Any

import jax


def _look_up(module: str, name: str) -> Any:
    return functools.reduce(getattr, name.split("."), importlib.import_module(module))


def _reduce(function: Any) -> Any:
    """How to make the function again: by its name where that leads back to it, otherwise as without this file."""
    name = function.__module__, function.__qualname__
    try:
        if _look_up(*name) is function:
            return _look_up, name
    except (AttributeError, ImportError, ValueError):
        pass
    return function.__reduce_ex__(2)


for _kind in {type(jax.nn.relu), type(jax.nn.silu)}:  # jax.custom_jvp, and what jax.jit returns
    copyreg.pickle(_kind, _reduce)
