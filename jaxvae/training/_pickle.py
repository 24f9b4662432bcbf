"""Steps and programs as their parts: what pickles is rebuilt from them, and what does not is named."""

import pickle
import sys
from dataclasses import fields
from typing import Any

WAY_OUT = {
    "optimizer": "(optax transformations are closures): rebuild it after loading, or use cloudpickle",
    "mesh": "(its devices belong to this process): rebuild it after loading",
}


class PicklesByParts:
    """A frozen dataclass that pickles as its arguments."""

    def __reduce__(self) -> tuple[type, tuple[Any, ...]]:
        """The class and its arguments; `pickle.PicklingError` names the argument that does not pickle."""
        parts = {part.name: getattr(self, part.name) for part in fields(self) if part.init}  # type: ignore[arg-type]
        caller = sys._getframe(1).f_globals.get("__name__", "")
        if not caller.startswith("cloudpickle"):  # which takes closures by value
            for name, part in parts.items():
                _check_pickles(name, part)
        return type(self), tuple(parts.values())


def _check_pickles(name: str, part: Any) -> None:
    try:
        pickle.dumps(part)
    except Exception as error:
        if isinstance(part, PicklesByParts):
            raise  # it names the part itself
        way_out = WAY_OUT.get(name, "(it is a closure, or holds one): define it in a module, or use cloudpickle")
        raise pickle.PicklingError(f"the {name} does not pickle {way_out}") from error
