"""The API reference, written from what the package exports: one page for each room, each public name on one of them.

A name's home is the room in whose folder or file it is defined; where other rooms export it too, such as `jaxvae`
itself, they list it with a link.
"""

import ast
import copy
import functools
import importlib
import inspect
import pkgutil
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

PACKAGE = "jaxvae"


@functools.cache
def rooms() -> list[str]:
    """The modules that a user imports from: `jaxvae`, what lies in it, and in these folders and exported modules."""
    found = [PACKAGE]
    for room in found:
        module = importlib.import_module(room)
        exported = getattr(module, "__all__", ())
        for entry in pkgutil.iter_modules(getattr(module, "__path__", ())):
            is_exported = entry.name in exported and isinstance(getattr(module, entry.name), ModuleType)
            if entry.name[0] != "_" and (room == PACKAGE or entry.ispkg or is_exported):
                found.append(f"{room}.{entry.name}")
    return sorted(found)


@functools.cache
def tree(module: str) -> ast.Module:
    """The parsed file of a module."""
    return ast.parse(inspect.getsource(importlib.import_module(module)))


def assigned(module: str) -> dict[str, ast.Assign | ast.AnnAssign]:
    """The names that a file assigns: aliases of types and constants."""
    result: dict[str, ast.Assign | ast.AnnAssign] = {}
    for node in tree(module).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(target, ast.Name):
            result[target.id] = node
    return result


@functools.cache
def constants(room: str) -> dict[str, tuple[str, ast.Assign | ast.AnnAssign]]:
    """What the files of a room assign, private files too: name -> (the file, the node)."""
    files = [room]
    if hasattr(importlib.import_module(room), "__path__") and room != PACKAGE:
        files += [f"{room}.{entry.name}" for entry in pkgutil.iter_modules(importlib.import_module(room).__path__)]
    return {name: (file, node) for file in files for name, node in assigned(file).items()}


def names(room: str) -> list[str]:
    """What a room exports, without other rooms: its `__all__`, or else what its file defines."""
    module = importlib.import_module(room)
    if room == PACKAGE:
        exported = [*module.__all__, *module.HOMES["jaxvae.run"]]
    elif hasattr(module, "__all__"):
        exported = list(module.__all__)
    else:
        defined = [node.name for node in tree(room).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        defined += [name for name in assigned(room) if not name.isupper() or room.endswith(".types")]
        exported = [name for name in defined if not name.startswith("_")]
    return [name for name in exported if not isinstance(getattr(module, name), ModuleType | TypeVar)]


def within(module: str, room: str) -> bool:
    """Whether a module is the room or lies in it."""
    return module == room or module.startswith(room + ".")


@functools.cache
def homes() -> dict[str, tuple[str, str]]:
    """The full name of each export in each room -> (the room and the name under which it is documented)."""
    result: dict[str, tuple[str, str]] = {}
    exported = [(room, name) for room in rooms() for name in names(room)]
    by_object: dict[tuple[str, int], list[str]] = {}
    for room, name in exported:
        by_object.setdefault((name, id(getattr(importlib.import_module(room), name))), []).append(room)
    for (name, _), among in by_object.items():
        value = getattr(importlib.import_module(among[0]), name)
        defined = getattr(value, "__module__", None) or among[0]
        home = max(among, key=lambda room: (room != PACKAGE, within(defined, room), len(room)))
        for room in among:
            result[f"{room}.{name}"] = (home, name)
    return result


def aliases() -> dict[str, str]:
    """Every other way to say a documented name -> the documented one: by another room, by its file, by itself."""
    table = {room: room for room in rooms()}
    short: dict[str, set[str]] = {}
    for full, (home, name) in homes().items():
        target = f"{home}.{name}"
        value = getattr(importlib.import_module(home), name)
        table[full] = target
        table[f"{getattr(value, '__module__', home)}.{name}"] = target
        if "." in full.removeprefix(PACKAGE + "."):
            table[full.removeprefix(PACKAGE + ".")] = target
        short.setdefault(name, set()).add(target)
    taken = arguments_and_fields()
    table.update({name: min(to) for name, to in short.items() if len(to) == 1 and name not in taken})
    return table


def arguments_and_fields() -> set[str]:
    """What arguments and fields are called: alone in backticks, such a name is theirs."""
    found = set()
    for entry in pkgutil.walk_packages(importlib.import_module(PACKAGE).__path__, PACKAGE + "."):
        if entry.name == f"{PACKAGE}.__main__":
            continue
        for node in ast.walk(tree(entry.name)):
            if isinstance(node, ast.arg):
                found.add(node.arg)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found.add(node.target.id)
    return found


def first_line(value: Any) -> str:
    """The first sentence or line of a docstring, without its final full stop."""
    text = inspect.cleandoc(getattr(value, "__doc__", None) or "").split("\n\n")[0]
    return " ".join(text.split()).removesuffix(".")


def section(title: str, mark: str) -> list[str]:
    """A heading of reStructuredText."""
    return [title, mark * len(title), ""]


def entry(room: str, name: str) -> Iterator[str]:
    """The directive that documents a name."""
    value = getattr(importlib.import_module(room), name)
    if name in constants(room):
        yield from alias_entry(room, name)
        return
    yield f".. auto{'class' if inspect.isclass(value) else 'function'}:: {room}.{name}"
    if inspect.isclass(value):
        yield "   :members:"
        yield "   :member-order: bysource"
        if getattr(value, "_is_protocol", False):  # what is called is told nowhere else
            yield "   :special-members: __call__"
        private = [base for base in value.__mro__ if within(base.__module__, PACKAGE) and base.__name__[0] == "_"]
        if private:  # what comes from a base without a page is told here
            stops = [base.__name__ for base in value.__mro__[1:] if base not in private and base is not object]
            yield f"   :inherited-members: {', '.join([*stops, 'object'])}"
    yield ""


def alias_entry(room: str, name: str) -> Iterator[str]:
    """An alias of a type or a constant: its value, and the comment beside it."""
    node = constants(room)[name][1]
    yield f".. py:data:: {name}"
    if isinstance(node.value, ast.Constant | ast.BinOp | ast.Attribute | ast.Name | ast.Subscript):
        yield f"   :value: {ast.unparse(node.value)}"
    yield from ("", f"   {comment(room, name)}", "")


def comment(room: str, name: str) -> str:
    """The comment behind an assignment, or else the one above it."""
    file, node = constants(room)[name]
    lines = inspect.getsource(importlib.import_module(file)).splitlines()
    behind = lines[node.end_lineno - 1].partition("  # ")[2]
    above: list[str] = []
    for line in reversed(lines[: node.lineno - 1]):
        if not line.startswith("# "):
            break
        above.insert(0, line.removeprefix("# "))
    return plain(behind or " ".join(above))


def plain(text: str) -> str:
    """Prose in which stars and bars are what they look like, not marks of reStructuredText."""
    parts = re.split(r"(``.*?``|`[^`]*`)", text)
    parts[::2] = [re.sub(r"([*|])|(?<=\w)(_)(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
    return "".join(parts)


def plain_lines(lines: list[str]) -> list[str]:
    """A docstring as prose; formulas and examples are left as they are, and what is set in is code."""
    result: list[str] = []
    kept = -1  # the indentation of what the lines of a formula or of code are deeper than
    last = 0  # the indentation of the last line of prose
    for number, line in enumerate(lines):
        if re.fullmatch(r" *(Attributes|Raises)[ ,].*:", line):
            line = re.sub(r"[(),`]", "", line)  # the headings that napoleon takes have words alone
        indent = len(line) - len(line.lstrip())
        if line.strip() and indent <= kept:
            kept = -1
        if kept < 0 and line.lstrip().startswith(".. "):
            kept = indent
        elif kept < 0 and number and not lines[number - 1].strip() and indent > last:
            if not result[-2].endswith("::"):
                result += [" " * last + ".. code-block:: python", ""]
            kept = last
        if kept < 0 and line.strip():
            last = indent
            line = re.sub(r"^( *\w+: [A-Z])\.$", r"\1\\.", line)  # "num_samples: S." begins no list
        result.append(line if kept >= 0 or line.lstrip().startswith(">>>") else plain(line))
    return result


def by_file(room: str) -> list[tuple[str, list[str]]]:
    """The names of which a room is the home, by the file that defines them."""
    files: dict[str, list[str]] = {}
    for name in names(room):
        if homes()[f"{room}.{name}"] == (room, name):
            value = getattr(importlib.import_module(room), name)
            module = constants(room)[name][0] if name in constants(room) else getattr(value, "__module__", room)
            files.setdefault(module if within(module, room) else room, []).append(name)
    return sorted(files.items(), key=lambda item: ("._" in item[0], item[0]))  # what many share comes last


def listed(room: str, among: list[str]) -> Iterator[str]:
    """A table of names with their first lines."""
    if not among:
        return
    yield from (".. list-table::", "   :widths: 35 65", "   :class: names", "")
    for name in among:
        home, _ = homes()[f"{room}.{name}"]
        value = getattr(importlib.import_module(home), name)
        told = comment(home, name) if name in constants(home) else plain(first_line(value))
        yield f"   * - :py:obj:`{name} <{home}.{name}>`"
        yield f"     - {told}"
    yield ""


def page(room: str) -> str:
    """The page of a room."""
    module = importlib.import_module(room)
    lines = [f".. py:module:: {room}", "", *section(room, "=")]
    lines += [*plain_lines(inspect.cleandoc(module.__doc__ or "").splitlines()), ""]
    elsewhere = [name for name in names(room) if homes()[f"{room}.{name}"][0] != room]
    files = by_file(room)
    for file, among in files:
        if len(files) > 1:
            lines += section(first_line(importlib.import_module(file)), "-")
        lines += [*listed(room, among)] if len(among) > 1 else []
        for name in among:
            lines += entry(room, name)
    if elsewhere:
        lines += section("Names that live in another room" if files else "Names", "-")
        lines += listed(room, elsewhere)
    return "\n".join(lines)


def index() -> str:
    """The page that leads to the rooms."""
    lines = [*section("Reference", "="), "Every public name once, in the room where it lives.", ""]
    lines += [".. list-table::", "   :widths: 30 70", "   :class: names", ""]
    for room in rooms():
        lines += [f"   * - :doc:`{room}`", f"     - {first_line(importlib.import_module(room))}"]
    lines += ["", ".. toctree::", "   :hidden:", "", *[f"   {room}" for room in rooms()], ""]
    return "\n".join(lines)


def write(directory: Path) -> None:
    """Write the pages; a page that says the same is left alone, and one whose room is gone is removed."""
    pages = {"index": index(), **{room: page(room) for room in rooms()}}
    directory.mkdir(exist_ok=True)
    for path in directory.glob("*.rst"):
        if path.stem not in pages:
            path.unlink()
    for name, text in pages.items():
        path = directory / f"{name}.rst"
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def signature(value: Any) -> str | None:
    """The arguments of a function or class as its source writes them, aliases of types by their names."""
    if inspect.isclass(value):
        return class_signature(value)
    node = definition(value)
    return None if node is None else arguments(node, value.__module__)


def returns(value: Any) -> str | None:
    """What a function returns, as its source writes it."""
    node = None if inspect.isclass(value) else definition(value)
    return None if node is None or node.returns is None else ast.unparse(in_full(node.returns, value.__module__))


def definition(value: Any) -> ast.FunctionDef | None:
    """The parsed source of a function, where it has one."""
    try:
        node = ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(value)))).body[0]
    except (OSError, TypeError, SyntaxError):
        return None
    return node if isinstance(node, ast.FunctionDef) else None


def in_full(annotation: ast.expr, module: str) -> ast.expr:
    """An annotation in which public names are told by their homes, as the file that wrote them means them."""
    around = vars(importlib.import_module(module))

    class Full(ast.NodeTransformer):
        def visit_Name(self, node: ast.Name) -> ast.expr:
            meant = objects().get((node.id, id(around.get(node.id))))
            return ast.parse(meant, mode="eval").body if meant else node

    return Full().visit(copy.deepcopy(annotation))


@functools.cache
def objects() -> dict[tuple[str, int], str]:
    """A name and the identity of what it stands for -> where that is documented."""
    return {
        (name, id(getattr(importlib.import_module(home), name))): f"{home}.{name}" for home, name in homes().values()
    }


def arguments(node: ast.FunctionDef, module: str) -> str:
    """The arguments of a definition, without self."""
    taken = copy.deepcopy(node.args)
    if taken.args and taken.args[0].arg in ("self", "cls"):
        del taken.args[0]
    for argument in [*taken.posonlyargs, *taken.args, *taken.kwonlyargs, taken.vararg, taken.kwarg]:
        if argument is not None and argument.annotation is not None:
            argument.annotation = in_full(argument.annotation, module)
    return f"({ast.unparse(taken)})"


def class_signature(value: type) -> str | None:
    """The arguments of `__init__`, or the fields in their order."""
    fields: dict[str, str] = {}
    for base in reversed(value.__mro__):
        if not within(base.__module__, PACKAGE):
            continue
        body = next(node for node in ast.walk(tree(base.__module__))
                    if isinstance(node, ast.ClassDef) and node.name == base.__name__).body  # fmt: skip
        for node in body:
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                return arguments(node, base.__module__)
            if isinstance(node, ast.AnnAssign) and "ClassVar" not in ast.unparse(node.annotation):
                told = copy.deepcopy(node)
                told.annotation = in_full(told.annotation, base.__module__)
                fields[ast.unparse(node.target)] = ast.unparse(told)
    return f"({', '.join(fields.values())})" if fields else None
