"""What a user plugs into a model: taken so that it is trained and saved, or refused by name with the way out."""

import dataclasses
import dis
import functools
import inspect
import sys
import types
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxvae._checks import integers, out_of_range
from jaxvae.networks._run import run
from jaxvae.types import Array, Distribution

DEPTH = 6  # of objects within objects that are looked into
LIBRARIES = ("jax.", "jaxlib.", "flax.", "optax.", "jaxvae.")


def adopt_parts(model: nn.Module) -> None:
    """Check the parts of a model as it is made, so that nothing in them is silently not trained.

    NNX modules become `NNXNetwork`s.

    Raises:
      TypeError: a part is a name or a class where it should be a network, or hides JAX arrays where no training
        reaches them.
    """
    for field in dataclasses.fields(model):
        if field.name in ("parent", "name"):
            continue
        part, name = getattr(model, field.name), f"{type(model).__name__}.{field.name}"
        if part is None and field.default is not None:
            raise TypeError(f"{name} must be a network or a function, got None")
        setattr(model, field.name, adopted(part, name))
    _check_nothing_is_shared(model)


def adopted(part: Any, name: str) -> Any:
    """A part as a model takes it, or the error that `adopt_parts` raises of it."""
    if type(part) in (list, tuple):  # a named tuple is a record
        return tuple(adopted(each, f"{name}[{i}]") for i, each in enumerate(part))
    if isinstance(part, str):
        raise TypeError(f"{name} must be a network or a function, got the name {part!r}: pass the thing itself")
    if inspect.isclass(part) and (issubclass(part, nn.Module) or _is_nnx(part)):
        raise TypeError(f"{name} must be a network, got the class {part.__name__}: make one of it first")
    taken = _is_nnx(part)  # what it holds is trained; what its methods read from elsewhere is not
    inside = dict(_of_classes(type(part))) if taken else part
    for path, found in _hidden(inside, name, DEPTH, set()):
        if _is_nnx(found):
            raise TypeError(
                f"{path} is an NNX module inside another object, where no training reaches it: pass it as the part "
                "itself, or make it a Linen module by flax.nnx.bridge.to_linen"
            )
        raise TypeError(
            f"{path} holds a JAX array {found.dtype}{list(found.shape)} that no training reaches and no checkpoint "
            "saves: make the network a Flax module (Linen or NNX; of Equinox and others use jaxvae.losses in your own "
            "training loop), or make it a NumPy array where it is a constant"
        )
    if taken:
        from jaxvae.models._nnx import Held, NNXNetwork

        return NNXNetwork(Held(part))
    return part


def _check_nothing_is_shared(model: nn.Module) -> None:
    """Raise where two NNX modules share a variable: each is trained by itself, which would untie them."""
    found: dict[int, str] = {}
    for name, part in _adopted_in(model, ""):
        for variable in part.variables_held():
            first = found.setdefault(id(variable), name)
            if first != name:
                raise TypeError(
                    f"{type(model).__name__}{first} and {name} share an NNX variable of shape {list(variable.shape)}, "
                    "which would be trained as two: share a Linen module, or give each its own"
                )


def _adopted_in(part: Any, name: str) -> Iterator[tuple[str, Any]]:
    """The NNX modules among the parts of a model, those in sequences and in models within it too."""
    if type(part).__module__ == "jaxvae.models._nnx":
        yield name, part
    elif isinstance(part, tuple | list):
        for i, each in enumerate(part):
            yield from _adopted_in(each, f"{name}[{i}]")
    elif isinstance(part, nn.Module):
        for field in dataclasses.fields(part):
            if field.name not in ("parent", "name") and hasattr(part, field.name):
                yield from _adopted_in(getattr(part, field.name), f"{name}.{field.name}")


def _is_nnx(value: Any) -> bool:
    """Whether it is an NNX module, or a class of them; NNX is not loaded for it."""
    nnx = sys.modules.get("flax.nnx")
    kind = value if inspect.isclass(value) else type(value)
    return nnx is not None and issubclass(kind, nnx.Module)


def _hidden(value: Any, path: str, depth: int, seen: set[int]) -> Iterator[tuple[str, Any]]:
    """Floating JAX arrays and NNX modules within an object; scalars, which are options, aside."""
    if id(value) in seen or depth < 0 or inspect.isclass(value) or inspect.ismodule(value):
        return
    seen.add(id(value))
    if isinstance(value, jax.core.Tracer):  # an argument of what is being traced, where the caller differentiates it
        return
    if isinstance(value, jax.Array):
        if value.ndim and jnp.issubdtype(value.dtype, jnp.inexact):
            yield path, value
    elif _is_nnx(value):
        yield path, value
    else:
        for name, inner in _contents(value):
            yield from _hidden(inner, f"{path}.{name}" if name.isidentifier() else f"{path}{name}", depth - 1, seen)


def _contents(value: Any) -> Iterator[tuple[str, Any]]:
    """What an object refers to, by name, as far as a network can hide arrays there."""
    if isinstance(value, str | bytes | int | float | np.ndarray | None):
        return
    if type(value).__module__ == "jaxvae.models._nnx":  # an NNX module that is taken care of
        return
    if isinstance(value, functools.partial):
        yield "func", value.func
        yield from ((f"[{i}]", each) for i, each in enumerate(value.args))
        yield from value.keywords.items()
    elif isinstance(value, types.MethodType):
        yield "__self__", value.__self__
    elif isinstance(value, types.FunctionType):
        for name, cell in zip(value.__code__.co_freevars, value.__closure__ or (), strict=True):
            yield from _filled(name, cell)
        yield from ((f"[{i}]", each) for i, each in enumerate(value.__defaults__ or ()))
        yield from (value.__kwdefaults__ or {}).items()
        if not value.__globals__.get("__name__", "").startswith(LIBRARIES):
            yield from ((name, value.__globals__[name]) for name in _globals_of(value.__code__, value.__globals__))
    elif isinstance(value, Mapping):
        yield from ((f"[{key!r}]", each) for key, each in value.items())
    elif isinstance(value, list | tuple | set | frozenset):
        names = getattr(value, "_fields", None) or [f"[{i}]" for i in range(len(value))]
        yield from zip(names, value, strict=True)
    elif hasattr(value, "__wrapped__"):  # jax.jit and its like
        yield "__wrapped__", value.__wrapped__
    elif isinstance(value, nn.Module):
        names = [field.name for field in dataclasses.fields(value) if field.name not in ("parent", "name")]
        yield from ((name, getattr(value, name)) for name in names if hasattr(value, name))
        yield from _of_classes(type(value))
    elif not type(value).__module__.startswith(("jax.", "jaxlib")):
        yield from getattr(value, "__dict__", {}).items()
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        yield from ((name, getattr(value, name)) for name in slots if hasattr(value, name))
        yield from _of_classes(type(value))


def _of_classes(kind: type) -> Iterator[tuple[str, Any]]:
    """Arrays among the attributes of a user's classes, and their functions."""
    for each in kind.__mro__:
        if not each.__module__.startswith((*LIBRARIES, "builtins", "typing", "numpy")):
            for name, inner in vars(each).items():
                if isinstance(inner, jax.Array | types.FunctionType):
                    yield name, inner


def _globals_of(code: types.CodeType, known: Mapping[str, Any]) -> list[str]:
    """The global names that a function, or one that is made in it, reads."""
    names = [each.argval for each in dis.get_instructions(code) if each.opname == "LOAD_GLOBAL"]
    inner = [each for each in code.co_consts if isinstance(each, types.CodeType)]
    return sorted({name for name in names if name in known}.union(*(_globals_of(each, known) for each in inner)))


def _filled(name: str, cell: Any) -> Iterator[tuple[str, Any]]:
    try:
        yield name, cell.cell_contents
    except ValueError:  # of a name that is not bound yet
        return


def record_of(posterior: Any, output: Any, count: int, *, train: bool) -> Distribution:
    """What `posterior` makes of an encoder's output for `count` examples, checked where it enters."""
    if not isinstance(output, tuple | list):
        got = f"{output.dtype}{list(output.shape)}" if hasattr(output, "dtype") else type(output).__name__
        raise TypeError(
            "the encoder must return a tuple with an array for each argument of the posterior, such as (mean, "
            f"log_var), got {got}"
        )
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(output)]
    for i, shape in enumerate(shapes):
        if shape[:1] != (count,):
            raise ValueError(f"output {i} of the encoder must be ({count}, ...), one for each example, got {shape}")
    record = run(posterior, *output, train=train)
    mean, log_var = getattr(record, "mean", None), getattr(record, "log_var", None)
    if mean is None or not hasattr(record, "log_prob"):
        raise TypeError(f"the posterior must be a record with log_prob, sample and mean, got {type(record).__name__}")
    if log_var is not None and not _fits(log_var.shape, mean.shape):
        raise ValueError(f"the encoder's log_var must broadcast to its mean {mean.shape}, got {log_var.shape}")
    return record


def _fits(shape: tuple[int, ...], larger: tuple[int, ...]) -> bool:
    """Whether one shape broadcasts to the other."""
    try:
        return jnp.broadcast_shapes(shape, larger) == larger
    except ValueError:
        return False


def check_nats(name: str, nats: Array, count: int) -> Array:
    """The nats of `count` examples; `ValueError` where a record's `log_prob` is not one number for each."""
    if nats.shape != (count,):
        raise ValueError(
            f"{name}'s log_prob must be ({count},), one number of nats for each example, got {nats.shape}: sum over "
            "the example's axes and keep the batch"
        )
    return nats


def checked_label(label: Array | None, batch: int, num_classes: int | None) -> Array | None:
    """The labels [B] of a model with classes; one out of range is an error or, where it is traced, num_classes."""
    if num_classes is None and label is not None:
        raise ValueError("the model has no classes: pass no label, or make it with num_classes")
    if num_classes is None:
        return None
    if label is None:
        raise ValueError(f"the model has {num_classes} classes: pass label [B]")
    label = integers(label, "labels", "(batch,)")
    if label.shape != (batch,):
        raise ValueError(f"labels must be integers ({batch},), got {label.shape}")
    return jnp.where(out_of_range("label", label, num_classes), num_classes, label)
