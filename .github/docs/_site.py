"""What the site needs of its own: names in docstrings as links, formulas as MathML, signatures as they are written."""

import inspect
import re
from typing import Any

import _reference
import latex2mathml.converter
from docutils import nodes
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.roles import XRefRole

ALIASES = _reference.aliases()


class Name(XRefRole):
    """Text in single backticks: a link where it is a public name, and code otherwise."""

    def __init__(self) -> None:
        super().__init__(warn_dangling=False)

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        code = nodes.literal(self.rawtext, self.text, classes=["code"])
        said = self.text.partition("(")[0]
        if documented(said) is None:
            return [code], []
        link = pending_xref(self.rawtext, code, refdomain="py", reftype="obj", reftarget=said, refexplicit=True)
        link["may_fail"] = True
        return [link], []


def documented(said: str) -> str | None:
    """The full name under which the reference has a name or a member of a class, if it is one of ours."""
    if said in ALIASES:
        return ALIASES[said]
    owner, _, member = said.rpartition(".")
    is_class = owner in ALIASES and ALIASES[owner] not in _reference.rooms()
    return f"{ALIASES[owner]}.{member}" if is_class else None


def resolve(app: Sphinx, env: Any, node: pending_xref, content: nodes.Node) -> nodes.Node | None:
    """Find a name under its home, whichever room or file it was said by; a field, at its record."""
    if node.get("refdomain") != "py":
        return None
    target = documented(node.get("reftarget", ""))
    for name in (target, target.rpartition(".")[0]) if target else ():
        found = env.get_domain("py").resolve_xref(env, node["refdoc"], app.builder, "obj", name, node, content)
        if found is not None:
            return found
        if not node.get("may_fail"):
            return None
    return content if node.get("may_fail") else None


def as_written(app: Sphinx, what: str, name: str, value: Any, options: Any, given: str, returned: str) -> Any:
    """A signature as its source has it, so that aliases of types keep their names."""
    written = _reference.signature(value)
    if written is None and inspect.isclass(value) and not issubclass(value, BaseException):
        return "", ""  # a protocol: nothing makes one
    return None if written is None else (written, _reference.returns(value) or returned)


def skip(app: Sphinx, what: str, name: str, value: Any, skipped: bool, options: Any) -> bool | None:
    """Leave out fields and their defaults, which the docstring's "Attributes" tell."""
    field = (inspect.getdoc(value) or "").startswith("Alias for field number")
    default = callable(value) and not (getattr(value, "__module__", None) or "jaxvae").startswith("jaxvae")
    return True if field or default else None


def prose(app: Sphinx, what: str, name: str, value: Any, options: Any, lines: list[str]) -> None:
    """Docstrings are plain text with names in backticks and formulas; before napoleon reads their sections."""
    lines[:] = _reference.plain_lines(lines)


def where_assigned(app: Sphinx, room: str, name: str) -> str | None:
    """The file of a constant, which does not know it itself."""
    return _reference.constants(room)[name][0] if name in _reference.constants(room) else None


def back(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Let the links from sources back to the reference lead to where a name is documented."""
    if page.startswith("_modules/jaxvae"):

        def home(link: re.Match[str]) -> str:
            short = link[1].rpartition(".")[2]
            return f'#{documented(link[1]) or ALIASES.get(short, link[1])}"'

        context["body"] = re.sub(r'#(jaxvae\.[\w.]+)"', home, context["body"])


def to_mathml(text: str, display: str) -> str:
    """A formula as browsers draw it by themselves: no script, no font to load."""
    return latex2mathml.converter.convert(text, display=display)


def inline(self: Any, node: nodes.math) -> None:
    """Write a formula within a line."""
    self.body.append(to_mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def block(self: Any, node: nodes.math_block) -> None:
    """Write a formula on lines of its own."""
    self.body.append(f'<div class="formula">{to_mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, Any]:
    """Register it all."""
    app.add_role("name", Name())
    app.connect("missing-reference", resolve)
    app.connect("autodoc-process-signature", as_written)
    app.connect("autodoc-skip-member", skip)
    app.connect("autodoc-process-docstring", prose, priority=400)
    app.connect("viewcode-follow-imported", where_assigned)
    app.connect("html-page-context", back)
    app.add_html_math_renderer("mathml", (inline, None), (block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
