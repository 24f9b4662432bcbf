"""The names of parts: which of jaxvae and the libraries below it a file may name, and what they mean."""

import dataclasses
import functools
import importlib
import inspect
import re
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

# Where public functions compute and do nothing else, and records and modules are made.
ROOMS = (
    *("jaxvae.codebook", "jaxvae.convolution", "jaxvae.distributions", "jaxvae.flows", "jaxvae.losses"),
    *("jaxvae.models", "jaxvae.networks", "jaxvae.objectives", "jaxvae.posteriors", "jaxvae.priors"),
    *("jaxvae.quantizers", "jaxvae.types", "jaxvae.data.dataset", "jaxvae.data.domain", "jaxvae.data.sprites"),
    *("jaxvae.data.moving_sprites", "jaxvae.data.speech", "jaxvae.data.pairs", "jaxvae.data.quadrants"),
)
INITIALIZERS = "zeros ones"
LAYERS = "avg_pool max_pool"
OF_NUMPY = (
    "abs arcsinh arctan clip cos cosh exp expm1 log log10 log1p log2 reciprocal sign sin sinh sqrt square tan tanh"
)
OF_NUMPY += " bfloat16 float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64"
NUMPY = "bool_ float16 float32 float64 int8 int16 int32 int64 uint8 uint16 uint32 uint64"
OF_NN = "celu elu gelu glu hard_sigmoid hard_silu hard_swish hard_tanh identity leaky_relu log_sigmoid log_softmax mish"
OF_NN += " relu relu6 selu sigmoid silu soft_sign softmax softplus sparse_plus sparse_sigmoid squareplus standardize"
OF_NN += " swish tanh"
NAMESPACES: dict[str, tuple[Any, str]] = {
    "jax.nn": (jax.nn, OF_NN),
    "jax.numpy": (jnp, OF_NUMPY),
    "jax.nn.initializers": (jax.nn.initializers, INITIALIZERS),
    "jax.lax": (jax.lax, "Precision"),
    "numpy": (np, NUMPY),
    "flax.linen": (nn, LAYERS),
}


class UnknownPartError(TypeError):
    """A part that no file describes, or that is the user's own and was not handed over."""


def name_of(part: Any, where: str) -> str:
    """`module:name` of a class or a function; `UnknownPartError` where it goes by no name."""
    for module, (namespace, names) in NAMESPACES.items():
        for name in names.split():
            if getattr(namespace, name, None) is part:
                return f"{module}:{name}"
    if inspect.ismethod(part) and not isinstance(part.__self__, type):  # its name would say nothing of the object
        way_out = f"functools.partial({part.__qualname__}, the object)"
        raise UnknownPartError(f"{where} is {part.__qualname__}, a method of an object: make it {way_out}")
    if inspect.ismethod(part) and part.__name__ not in vars(part.__self__):  # its name is of the class it comes from
        found = f"{getattr(part.__self__, '__qualname__', '')}.{part.__name__}"
        raise UnknownPartError(f"{where} is {found}, which goes by the name {part.__qualname__}: make it a function")
    home: str = getattr(part, "__module__", None) or ""
    called: str = getattr(part, "__qualname__", None) or ""
    if isinstance(part, type) and issubclass(part, nn.Module) and getattr(nn, called, None) is part:
        return f"flax.linen:{called}"
    if not home or not called or "<" in called:
        what = called or repr(part)[:80]
        raise UnknownPartError(f"{where} is {what}, which goes by no name: make it a function or a class of a module")
    if not _is_ours(home):
        if _wraps_its_namesake(part, home, called):
            raise UnknownPartError(f"{where} wraps {home}.{called} and has its name: give it one in a module")
        return f"{home}:{called}"
    packages = home.split(".")
    for length in range(len(packages), 0, -1):  # a package may show what a private file of it makes
        if _may_be_named(room := ".".join(packages[:length]), called, part):
            return f"{room}:{called}"
    raise UnknownPartError(f"{where} is {home}.{called}, which is no part that a file may name")


def _wraps_its_namesake(part: Any, home: str, called: str) -> bool:
    """Whether the name of a decorated function means what is inside, which computes something else."""
    named = functools.reduce(lambda at, name: getattr(at, name, None), called.split("."), sys.modules.get(home))
    inside = getattr(part, "__wrapped__", None)
    if named is part or (inside is named and isinstance(part, type(jax.jit(len)))):  # compiled it is the same
        return False
    while inside is not None and inside is not named:
        inside = getattr(inside, "__wrapped__", None)
    return inside is not None


def is_foreign(name: str) -> bool:
    """Whether a name is of neither jaxvae nor a library below it."""
    return not _is_ours(name.partition(":")[0])


def _is_ours(module: str) -> bool:
    return module.split(".")[0] in ("jaxvae", "jax", "jaxlib", "flax", "numpy", "builtins", "functools")


def is_record(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))


def named_part(module: str, name: str) -> Any:
    """A part of jaxvae or of a library below it; `ValueError` where it is not on the list."""
    if module in NAMESPACES:
        namespace, names = NAMESPACES[module]
        part = getattr(namespace, name, None)
        layer = module == "flax.linen" and isinstance(part, type) and issubclass(part, nn.Module)
        if name in names.split() or layer:
            return part
    elif _inside(module) and re.fullmatch(r"[\w.]+", module):
        part = vars(importlib.import_module(module)).get(name)
        if part is not None and _may_be_named(module, name, part):
            return part
    raise ValueError(f"{module}:{name} is no part that a file may name")


def _may_be_named(module: str, name: str, part: Any) -> bool:
    """Whether a part belongs to a room and is a record, a module or a public function made there."""
    if not _inside(module) or module not in sys.modules or vars(sys.modules[module]).get(name) is not part:
        return False
    made_in = getattr(part, "__module__", "") or ""
    if made_in != module and not made_in.startswith(f"{module}."):
        return False
    if isinstance(part, type):
        return is_record(part)
    return callable(part) and not any(each.startswith("_") for each in f"{module}.{name}".split("."))


def _inside(module: str) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in ROOMS)
