"""Models, objectives and data sets as data: JSON that names parts which are known, and is never code.

A part is rebuilt by its constructor, a function found by its name, and both only where `jaxvae._names` lists them:
modules, records and functions of jaxvae that compute, layers of `flax.linen`, functions of `jax.nn` and a few of
`jax.numpy`. Nothing here reads or writes a file, and no name in a file makes Python import what is not on the list.
What is the user's own is found among the parts that the user hands over.
"""

import contextlib
import dataclasses
import enum
import functools
import math
from collections.abc import Container, Iterable, Iterator, Mapping
from typing import Any

import flax.core
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxvae._names import UnknownPartError, is_foreign, is_record, name_of, named_part


class Describer:
    """Turns values into JSON, and collects the arrays that they hold.

    Attributes:
      arrays: name -> array, of all that was described.
      parts: classes and functions of the user's own that were named.
      beside: what records keep beside their constructors' arguments.
    """

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}
        self.parts: list[Any] = []
        self.beside: list[Any] = []
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
        if isinstance(value, np.generic) and not isinstance(value.item(), np.generic):  # a longdouble is its own item
            return {"scalar": [value.dtype.name, self.describe(value.item(), where)]}
        if type(value) is float and not math.isfinite(value):
            return {"float": repr(value)}
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, _Named):
            return {"array": value.name}
        if isinstance(value, np.ndarray | jax.Array):
            return self._array(value, where)
        if isinstance(value, np.dtype) and value.isnative:
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
            return {"name": self._name(value, where)}
        if isinstance(value, enum.Enum) and value.name is not None:
            return {"member": {"name": self._name(type(value), where)}, "called": value.name}
        return self._instance(value, where)

    def _name(self, part: Any, where: str) -> str:
        name = name_of(part, where)
        if is_foreign(name):
            self.parts.append(part)
        return name

    def _array(self, value: Any, where: str) -> dict[str, str]:
        if isinstance(value, np.ma.MaskedArray):
            raise UnknownPartError(f"{where} is a masked array, whose mask no file of arrays holds")
        if isinstance(value, np.ndarray) and type(value) not in (np.ndarray, np.memmap):
            raise UnknownPartError(
                f"{where} is {_article(type(value).__name__)}, of which a file keeps the array alone"
            )
        if jnp.issubdtype(value.dtype, jax.dtypes.prng_key) or value.dtype.kind not in "biufcV":
            raise UnknownPartError(f"{where} is an array of {value.dtype}, which no file of arrays holds")
        name = _fresh(where, self.arrays)
        self.arrays[name] = np.asarray(value)
        return {"numpy" if isinstance(value, np.ndarray) else "array": name}

    def _instance(self, value: Any, where: str) -> dict[str, Any]:
        """A record or a module by what it was made with; any other object of the user's by its attributes."""
        kind = type(value)
        if hasattr(kind, "why_not_saved"):
            raise UnknownPartError(f"{where} is {value.why_not_saved()}")
        name = self._name(kind, where)
        if is_record(kind):
            recipe = {"new": name, "with": dict(self._arguments(value, where))}
            if isinstance(value, nn.Module):
                called = _fresh(where, {each for _, each, _ in self._modules.values()})
                self._modules[id(value)] = (value, called, recipe)
            self._look_beside(value, where)
            return recipe
        if name.split(".")[0].split(":")[0] in ("jaxvae", "jax", "flax", "builtins") or _is_slotted(kind):
            raise UnknownPartError(f"{where} is {_article(kind.__name__)}, which is no data")
        attributes = {key: self.describe(each, f"{where}.{key}") for key, each in vars(value).items()}
        return {"new": name, "attributes": attributes}

    def _look_beside(self, record: Any, where: str) -> None:
        """Note what a record keeps beside its arguments, which its constructor has to find again."""
        kind = type(record)
        arguments = (
            {field.name for field in dataclasses.fields(kind) if field.init}
            if dataclasses.is_dataclass(kind)
            else set()
        )
        names = set(vars(record)) if hasattr(record, "__dict__") else set()
        if isinstance(record, nn.Module):  # what Flax keeps beside them is of no account
            names &= {field.name for field in dataclasses.fields(kind)}
        for name in sorted(names - arguments):
            if isinstance(getattr(kind, name, None), functools.cached_property):
                continue
            aside = Describer()
            with contextlib.suppress(UnknownPartError):  # such as a function that the constructor makes
                recipe = aside.describe(getattr(record, name), f"{where}.{name}")
                self.beside.append((recipe, {each: values.tobytes() for each, values in aside.arrays.items()}))

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


def described(value: Any, where: str, model: Any = None) -> tuple[Any, Describer]:
    """The value as JSON that was seen to give an equal one; `UnknownPartError` where it does not.

    So what is written can be read: not so a class whose constructor changes what it is given, or keeps none of it.
    """
    describer, second = Describer(), Describer()
    try:
        if model is not None:
            describer.remember(model, "model")
            second.remember(model, "model")
        recipe = describer.describe(value, where)
        rebuilder = Rebuilder(describer.arrays, Parts(describer.parts))
        rebuilder.remember(model, "model")
        same = second.describe(rebuilder.rebuild(recipe), where) == recipe and second.beside == describer.beside
    except UnknownPartError:
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UnknownPartError(f"{where} cannot be made again from what it holds ({reason})") from error
    if not same or any(values.tobytes() != second.arrays[name].tobytes() for name, values in describer.arrays.items()):
        raise UnknownPartError(
            f"{where}, made again from what it holds, is another: a constructor changes what it gets"
        )
    return recipe, describer


def _fresh(name: str, taken: Container[str]) -> str:
    """The name, marked where it is taken: a partial's keyword may be called as an attribute of its function is."""
    while name in taken:
        name += "'"
    return name


class _Named:
    """In place of an array that is kept elsewhere, by its name there."""

    def __init__(self, name: str) -> None:
        self.name = name


def describe_tree(describer: Describer, tree: Any, where: str, names: Mapping[int, str]) -> Any:
    """A tree of arrays as JSON in which leaf i is the array called `names[i]`."""
    _, structure = jax.tree.flatten(tree)
    return describer.describe(jax.tree.unflatten(structure, [_Named(names[i]) for i in range(len(names))]), where)


def _is_slotted(kind: type) -> bool:
    """Whether its objects keep something outside of their `__dict__`, as those without one do."""
    slots = {name for each in kind.__mro__ for name in np.atleast_1d(vars(each).get("__slots__", ()))}
    return bool(slots - {"__dict__", "__weakref__"}) or kind.__dictoffset__ == 0


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
                if not (isinstance(kind, type) and is_record(kind)):
                    raise ValueError(f"{name} is no record or module")
                return kind(**{key: self.rebuild(each) for key, each in arguments.items()})
            case {"new": str(name), "attributes": dict(attributes)} if len(recipe) == 2:
                return self._with_attributes(name, attributes)
            case {"partial": function, "args": list(args), "keywords": dict(keywords)} if len(recipe) == 3:
                # In the order in which they were described: a module is made where it is first met.
                given = self.rebuild(args)
                named = {key: self.rebuild(each) for key, each in keywords.items()}
                return functools.partial(self.rebuild(function), *given, **named)
            case {"member": {"name": str(name)}, "called": str(called)} if len(recipe) == 2:
                kind = self._found(name)
                if not (isinstance(kind, type) and issubclass(kind, enum.Enum)):
                    raise ValueError(f"{name} has no members")
                return kind[called]
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
            return named_part(module, attribute)
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


def _number_type(name: str) -> np.dtype:
    dtype = jnp.dtype(name)
    if dtype.kind not in "biufV":
        raise ValueError(f"{name} is no type of numbers")
    return dtype


def _article(name: str) -> str:
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
