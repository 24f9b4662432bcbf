"""Calls networks of the user's in training or evaluation mode, by whichever name they take it, and with a key."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

from flax import linen as nn

from jaxvae.types import PRNGKey

_BY_NAME = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
_BY_PLACE = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_ASKED = ("train", "training", "deterministic", "key")


def run(network: Callable[..., Any], *arguments: Any, train: bool, key: PRNGKey | None = None) -> Any:
    """`network(*arguments)`, told the mode where it asks, and the key of its noise where it asks and there is one.

    A network asks by a parameter `train`, `training` or `deterministic`, and by `key`; a value that `functools.partial`
    has fixed stays.

    Raises:
      TypeError: the network takes another number of arrays than the model has for it, such as no condition.
    """
    kind: Any = type(network)
    module = isinstance(network, nn.Module)
    least, most = _counts_of_method(kind, "__call__") if module else _counts(network)
    if not least <= len(arguments) <= most:
        name = kind.__name__ if module else getattr(network, "__name__", repr(network))
        raise TypeError(_wrong_count(name, least, most, len(arguments)))
    names = _names_of_method(kind, "__call__") if module else _names(network)
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
        name for name in _ASKED if name not in fixed and name in parameters and parameters[name].kind in _BY_NAME
    )


@functools.lru_cache(maxsize=256)
def _counts_of_method(kind: Any, method: str) -> tuple[int, float]:
    least, most = _counts(getattr(kind, method))
    return least - 1, most - 1  # without self


def _counts(function: Callable[..., Any]) -> tuple[int, float]:
    """How many arrays a function must be given by place, and how many it can be."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return 0, math.inf
    told = [each.name for each in parameters if each.kind in _BY_NAME and each.name in _ASKED]
    places = [each for each in parameters if each.kind in _BY_PLACE and each.name not in told]
    endless = any(each.kind is inspect.Parameter.VAR_POSITIONAL for each in parameters)
    return sum(each.default is each.empty for each in places), math.inf if endless else len(places)


def _wrong_count(name: str, least: int, most: float, given: int) -> str:
    if given > most:
        way_out = (
            "what comes beside the first is the batch's condition or label: wrap the network in jaxvae.Conditioned, or "
            "in jaxvae.Unconditioned where it should not see it, or train on batches without"
        )
        return f"{name} takes {most} array{'s' * (most != 1)}, and the model has {given} for it: {way_out}"
    way_out = "give the batches the condition or label that it needs, or take a network that needs none"
    return f"{name} needs {least} arrays, and the model has {given} for it: {way_out}"
