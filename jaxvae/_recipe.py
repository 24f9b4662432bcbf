"""Models, objectives and data sets as data: JSON that names parts which are known, and is never code.

A part is rebuilt by its constructor, a function found by its name, and both only where they are on the list below:
modules, records and functions of jaxvae that compute, layers of `flax.linen`, functions of `jax.nn` and a few of
`jax.numpy`. Nothing here reads or writes a file, and no name in a file makes Python import what is not on the list.
What is the user's own is found among the parts that the user hands over.
"""

import dataclasses
import functools
import importlib
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import flax.core
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
OF_NN = "celu elu gelu glu hard_sigmoid hard_silu hard_swish hard_tanh identity leaky_relu log_sigmoid log_softmax mish"
OF_NN += " relu relu6 selu sigmoid silu soft_sign softmax softplus sparse_plus sparse_sigmoid squareplus standardize"
OF_NN += " swish tanh"
NAMESPACES: dict[str, tuple[Any, str]] = {
    "jax.nn": (jax.nn, OF_NN),
    "jax.numpy": (jnp, OF_NUMPY),
    "jax.nn.initializers": (jax.nn.initializers, INITIALIZERS),
    "flax.linen": (nn, LAYERS),
}


class UnknownPartError(TypeError):
    """A part that no file describes, or that is the user's own and was not handed over."""


class Describer:
    """Turns values into JSON, and collects the arrays that they hold.

    Attributes:
      arrays: name -> array, of all that was described.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self._known: list[tuple[Any, str]] = []
        self._modules: dict[int, tuple[Any, str, dict[str, Any]]] = {}

    def remember(self, value: Any, name: str) -> None:
        """From now on write a reference where this very value is met."""
        self._known.append((value, name))

    def describe(self, value: Any, where: str) -> Any:
        """The value as JSON; `UnknownPartError` says where, from `where` on, there is something that is no data."""
        for known, name in self._known:
            if value is known:
                return {"same": name}
        if id(value) in self._modules:  # met twice it is one, and has its parameters once
            _, name, recipe = self._modules[id(value)]
            recipe["as"] = name
            return {"same": name}
        if isinstance(value, np.generic):
            return {"scalar": [value.dtype.name, self.describe(value.item(), where)]}
        if isinstance(value, float) and not math.isfinite(value):
            return {"float": repr(value)}
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, _Named):
            return {"array": value.name}
        if isinstance(value, np.ndarray | jax.Array):
            return self._array(value, where)
        if isinstance(value, np.dtype):
            return {"dtype": value.name}
        return self._container(value, where)

    def _container(self, value: Any, where: str) -> Any:
        if type(value) is tuple:
            return [self.describe(each, f"{where}[{i}]") for i, each in enumerate(value)]
        if type(value) is list:
            return {"list": self.describe(tuple(value), where)}
        if isinstance(value, flax.core.FrozenDict):
            return {"frozen": self.describe(dict(value), where)}
        if type(value) is dict:
            entries = [
                [self.describe(key, where), self.describe(each, f"{where}[{key!r}]")] for key, each in value.items()
            ]
            return {"dict": entries}
        if type(value) is functools.partial:
            args = [self.describe(each, f"{where}.args[{i}]") for i, each in enumerate(value.args)]
            keywords = {name: self.describe(each, f"{where}.{name}") for name, each in value.keywords.items()}
            return {"partial": self.describe(value.func, where), "args": args, "keywords": keywords}
        if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
            return {"name": name_of(value, where)}
        return self._instance(value, where)

    def _array(self, value: Any, where: str) -> dict[str, str]:
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) or value.dtype.kind not in "biufcV":
            raise UnknownPartError(f"{where} is an array of {value.dtype}, which no file of arrays holds")
        self.arrays[where] = np.asarray(value)
        return {"numpy" if isinstance(value, np.ndarray) else "array": where}

    def _instance(self, value: Any, where: str) -> dict[str, Any]:
        """A record or a module by what it was made with; any other object of the user's by its attributes."""
        kind = type(value)
        name = name_of(kind, where)
        if _is_record(kind):
            recipe = {"new": name, "with": dict(self._arguments(value, where))}
            if isinstance(value, nn.Module):
                self._modules[id(value)] = (value, where, recipe)
            return recipe
        if name.split(".")[0].split(":")[0] in ("jaxvae", "jax", "flax", "builtins") or not hasattr(value, "__dict__"):
            raise UnknownPartError(f"{where} is {_article(kind.__name__)}, which is no data")
        attributes = {key: self.describe(each, f"{where}.{key}") for key, each in vars(value).items()}
        return {"new": name, "attributes": attributes}

    def _arguments(self, value: Any, where: str) -> Iterator[tuple[str, Any]]:
        if isinstance(value, tuple):
            for name, each in zip(value._fields, value, strict=True):  # type: ignore[attr-defined]
                yield name, self.describe(each, f"{where}.{name}")
            return
        of_linen = isinstance(value, nn.Module)
        for field in dataclasses.fields(value):
            each = getattr(value, field.name)
            if not field.init or (of_linen and (field.name == "parent" or (field.name == "name" and each is None))):
                continue
            try:
                yield field.name, self.describe(each, f"{where}.{field.name}")
            except UnknownPartError:
                if each is not field.default:  # such as an initialiser, a closure: the constructor has it
                    raise


class _Named:
    """In place of an array that is kept elsewhere, by its name there."""

    def __init__(self, name: str) -> None:
        self.name = name


def describe_tree(describer: Describer, tree: Any, where: str, names: Mapping[int, str]) -> Any:
    """A tree of arrays as JSON in which leaf i is the array called `names[i]`."""
    _, structure = jax.tree.flatten(tree)
    return describer.describe(jax.tree.unflatten(structure, [_Named(names[i]) for i in range(len(names))]), where)


def name_of(part: Any, where: str) -> str:
    """`module:name` of a class or a function; `UnknownPartError` where it goes by no name."""
    for module, (namespace, names) in NAMESPACES.items():
        for name in names.split():
            if getattr(namespace, name, None) is part:
                return f"{module}:{name}"
    home: str = getattr(part, "__module__", None) or ""
    called: str = getattr(part, "__qualname__", None) or ""
    if isinstance(part, type) and issubclass(part, nn.Module) and getattr(nn, called, None) is part:
        return f"flax.linen:{called}"
    if not home or not called or "<" in called:
        what = called or repr(part)[:80]
        raise UnknownPartError(f"{where} is {what}, which goes by no name: make it a function or a class of a module")
    if not _is_ours(home):
        return f"{home}:{called}"
    packages = home.split(".")
    for length in range(len(packages), 0, -1):  # a package may show what a private file of it makes
        if _may_be_named(room := ".".join(packages[:length]), called, part):
            return f"{room}:{called}"
    raise UnknownPartError(f"{where} is {home}.{called}, which is no part that a file may name")


class Parts:
    """Classes and functions of the user's own, by their names."""

    def __init__(self, parts: Iterable[Any] = ()) -> None:
        self._parts: dict[str, list[Any]] = {}
        for part in parts:
            if not callable(part) or not hasattr(part, "__qualname__"):
                raise TypeError(f"parts must be classes and functions, got {part!r}")
            for name in (f"{part.__module__}:{part.__qualname__}", part.__qualname__):
                self._parts.setdefault(name, []).append(part)

    def find(self, name: str) -> list[Any]:
        """The part of a name `module:name` in a list, which is empty where there is none.

        A part of another module is taken where it alone has the name: a program that is run is called `__main__`.
        """
        found = self._parts.get(name) or self._parts.get(name.partition(":")[2], [])
        if len({id(part) for part in found}) > 1:
            raise ValueError(f"{len(found)} parts are called {name}")
        return found


class Rebuilder:
    """Turns JSON back into values.

    Args:
      arrays: those that the JSON names.
      parts: the user's own.
    """

    def __init__(self, arrays: Mapping[str, np.ndarray], parts: Parts) -> None:
        self._arrays, self._parts = arrays, parts
        self._known: dict[str, Any] = {}

    def remember(self, value: Any, name: str) -> None:
        """What a reference by this name stands for."""
        self._known[name] = value

    def rebuild(self, recipe: Any) -> Any:
        """The value; raises whatever its constructors do, `UnknownPartError` for a name that is not known."""
        if isinstance(recipe, list):
            return tuple(self.rebuild(each) for each in recipe)
        if not isinstance(recipe, dict):
            return recipe
        if isinstance(name := recipe.get("as"), str):
            made = self.rebuild({key: each for key, each in recipe.items() if key != "as"})
            self.remember(made, name)
            return made
        match recipe:
            case {"new": str(name), "with": dict(arguments)} if len(recipe) == 2:
                kind = self._found(name)
                if not (isinstance(kind, type) and _is_record(kind)):
                    raise ValueError(f"{name} is no record or module")
                return kind(**{key: self.rebuild(each) for key, each in arguments.items()})
            case {"new": str(name), "attributes": dict(attributes)} if len(recipe) == 2:
                return self._with_attributes(name, attributes)
            case {"partial": function, "args": list(args), "keywords": dict(keywords)} if len(recipe) == 3:
                given = {key: self.rebuild(each) for key, each in keywords.items()}
                return functools.partial(self.rebuild(function), *self.rebuild(args), **given)
        if len(recipe) != 1:
            raise ValueError(f"an entry of {', '.join(sorted(recipe))} means nothing")
        [(kind, value)] = recipe.items()
        return self._single(kind, value)

    def _single(self, kind: str, value: Any) -> Any:
        match kind, value:
            case "name", str():
                return self._found(value)
            case "same", str() if value in self._known:
                return self._known[value]
            case "array", str():
                return jnp.asarray(self._arrays[value])
            case "numpy", str():
                return self._arrays[value].copy()
            case "list", list():
                return list(self.rebuild(value))
            case "dict", list():
                return {self.rebuild(key): self.rebuild(each) for key, each in value}
            case "frozen", dict():
                return flax.core.FrozenDict(self.rebuild(value))
            case "float", "nan" | "inf" | "-inf":
                return float(value)
            case "dtype", str():
                return _number_type(value)
            case "scalar", [str(name), number]:
                number = self.rebuild(number)
                return np.str_(number) if name.startswith("str") else _number_type(name).type(number)
        raise ValueError(f"an entry {kind} of {str(value)[:80]} means nothing")

    def _found(self, name: str) -> Any:
        module, _, attribute = name.partition(":")
        if not is_foreign(name):
            return _named_part(module, attribute)
        found = self._parts.find(name)
        if not found:
            raise ValueError(f"{name} is no part that was handed over")
        return found[0]

    def _with_attributes(self, name: str, attributes: Mapping[str, Any]) -> Any:
        if not is_foreign(name):
            raise ValueError(f"{name} is not made of attributes")
        kind = self._found(name)
        made = object.__new__(kind)
        vars(made).update({key: self.rebuild(each) for key, each in attributes.items()})
        return made


def foreign_names(recipe: Any) -> set[str]:
    """The names in JSON that only the user can say what they mean."""
    if isinstance(recipe, list):
        return set().union(*map(foreign_names, recipe))
    if not isinstance(recipe, dict):
        return set()
    found: set[str] = set()
    for key, value in recipe.items():
        if key in ("name", "new") and isinstance(value, str):
            found |= {value} if is_foreign(value) else set()
        elif key in ("with", "attributes", "keywords") and isinstance(value, dict):  # its names are of arguments
            found = found.union(*map(foreign_names, value.values()))
        else:
            found |= foreign_names(value)
    return found


def is_foreign(name: str) -> bool:
    """Whether a name is of neither jaxvae nor a library below it."""
    return not _is_ours(name.partition(":")[0])


def _is_ours(module: str) -> bool:
    return module.split(".")[0] in ("jaxvae", "jax", "jaxlib", "flax", "numpy", "builtins", "functools")


def _is_record(kind: type) -> bool:
    return dataclasses.is_dataclass(kind) or (issubclass(kind, tuple) and hasattr(kind, "_fields"))


def _named_part(module: str, name: str) -> Any:
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
        return _is_record(part)
    return callable(part) and not any(each.startswith("_") for each in f"{module}.{name}".split("."))


def _inside(module: str) -> bool:
    return any(module == room or module.startswith(f"{room}.") for room in ROOMS)


def _number_type(name: str) -> np.dtype:
    dtype = jnp.dtype(name)
    if dtype.kind not in "biufV":
        raise ValueError(f"{name} is no type of numbers")
    return dtype


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
