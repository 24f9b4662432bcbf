"""Calls networks of the user's in training or evaluation mode, by whichever name they take it, and with a key."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from jaxvae.types import PRNGKey

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


def run(network: Callable[..., Any], *arguments: Any, train: bool, key: PRNGKey | None = None) -> Any:
    """`network(*arguments)`, told the mode where it asks, and the key of its noise where it asks and there is one.

    A network asks by a parameter `train`, `training` or `deterministic`, and by `key`; a value that `functools.partial`
    has fixed stays.
    """
    kind: Any = type(network)
    names = _names_of_method(kind, "__call__") if isinstance(network, nn.Module) else _names(network)
    own = {"key": key} if key is not None and "key" in names else {}
    return network(*arguments, **_values(names, train), **own)


def mode_of(network: object, method: str, *, train: bool) -> dict[str, bool]:
    """What tells a method of a module the mode, where it asks."""
    kind: Any = type(network)
    return _values(_names_of_method(kind, method), train)


def _values(names: tuple[str, ...], train: bool) -> dict[str, bool]:
    return {name: (not train) if name == "deterministic" else train for name in names if name != "key"}


@functools.lru_cache(maxsize=256)
def _names_of_method(kind: Any, method: str) -> tuple[str, ...]:
    return _names(getattr(kind, method))


def _names(function: Callable[..., Any]) -> tuple[str, ...]:
    """Those of the parameters for the mode and the key that the function takes by name and nobody has fixed."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # functions of C have none
        return ()
    fixed = function.keywords if isinstance(function, functools.partial) else {}
    return tuple(
        name
        for name in ("train", "training", "deterministic", "key")
        if name not in fixed and name in parameters and parameters[name].kind in _BY_NAME
    )
