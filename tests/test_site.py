"""The site's reference has every public name once, with what is said of it; Sphinx is not needed to see that."""

import importlib
import importlib.util
import inspect
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest

import jaxvae

DOCS = Path(__file__).parents[1] / ".github" / "docs"
DIRECTIVE = re.compile(r"^\.\. (?:autofunction|autoclass|py:data):: (\S+)", flags=re.MULTILINE)


@pytest.fixture(scope="module")
def reference():
    spec = importlib.util.spec_from_file_location("_reference", DOCS / "_reference.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def documented(reference):
    """How often the pages document each full name."""
    found = Counter()
    for room in reference.rooms():
        names = DIRECTIVE.findall(reference.page(room))
        found.update(name if name.startswith("jaxvae.") else f"{room}.{name}" for name in names)
    return found


def test_every_room_has_a_page(reference):
    files = Path(jaxvae.__file__).parent.glob("[!_]*")
    rooms = {f"jaxvae.{path.stem}" for path in files if path.suffix == ".py" or (path / "__init__.py").exists()}
    inner = {f"jaxvae.evaluation.{name}" for name in ("classical", "disentanglement", "samples")}
    inner |= {f"jaxvae.data.{name}" for name in ("moving_sprites", "pairs", "quadrants", "speech", "sprites")}
    assert set(reference.rooms()) == {"jaxvae", *rooms, *inner}
    index = reference.index()
    assert all(f"\n   {room}\n" in index for room in reference.rooms())


def test_every_public_name_is_documented_once(reference, documented):
    assert set(documented.values()) == {1}
    exported = set()
    for room in reference.rooms():
        module = importlib.import_module(room)
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if isinstance(value, ModuleType):
                continue
            exported.add(id(value))
            home, known = reference.homes()[f"{room}.{name}"]
            assert f"{home}.{known}" in documented
            assert getattr(importlib.import_module(home), known) is value
    assert len(documented) >= len(exported) > 250


def test_something_is_said_of_every_name(reference, documented):
    for name in documented:
        room, _, last = name.rpartition(".")
        if last in reference.constants(room):
            assert reference.comment(room, last), f"{name} has no comment"
        else:
            assert reference.first_line(getattr(importlib.import_module(room), last)), f"{name} has no docstring"


def test_a_name_is_found_by_each_way_to_say_it(reference):
    aliases = reference.aliases()
    for said in ("jaxvae.vae_loss", "jaxvae.objectives.elbo.vae_loss", "objectives.vae_loss", "vae_loss"):
        assert aliases[said] == "jaxvae.objectives.vae_loss"
    assert aliases["jaxvae.train"] == "jaxvae.run.train"
    assert "mean" not in aliases
    assert "train" not in aliases


def test_signatures_are_as_the_source_writes_them(reference):
    assert reference.signature(jaxvae.losses.gaussian_kl) == "(mean: jaxvae.types.Array, log_var: jaxvae.types.Array)"
    assert reference.signature(jaxvae.Poisson) == "(log_rate: jaxvae.types.Array)"
    written = reference.signature(jaxvae.vae_loss)
    assert "batch: jaxvae.types.Batch" in written
    assert "beta: float | jaxvae.types.Array | jaxvae.types.Schedule" in written


def test_prose_is_plain_and_what_is_set_in_is_code(reference):
    lines = ["q(z|x) of `a|b`.", "", ".. math:: |x|", "", "Such as", "", "    f(*x)", "", "then * more."]
    assert reference.plain_lines(lines) == [
        *("q(z\\|x) of `a|b`.", "", ".. math:: |x|", "", "Such as", ""),
        *(".. code-block:: python", "", "    f(*x)", "", "then \\* more."),
    ]


def test_a_dimension_that_is_one_letter_begins_no_list(reference):
    lines = ["Args:", "  num_samples: S.", "  num: N, of all.", "", "More of S."]
    assert reference.plain_lines(lines) == ["Args:", "  num_samples: S\\.", *lines[2:]]


def test_the_call_of_a_protocol_is_told_with_its_methods(reference):
    def listed(room, name):
        return "   :special-members: __call__" in list(reference.entry(room, name))

    assert all(listed("jaxvae.types", name) for name in ("Quantizer", "LossFn", "Prepare", "LogWeightsFn", "Feed"))
    assert not listed("jaxvae.models", "VAE")


def test_no_backtick_is_left_where_names_are_taken_out(reference, documented):
    """A plural's s behind a name, such as that of two Columns, leaves the backticks on the page."""
    for name in documented:
        room, _, last = name.rpartition(".")
        value = getattr(importlib.import_module(room), last)
        for each in (value, *(vars(value).values() if isinstance(value, type) else ())):
            ours = callable(each) and (getattr(each, "__module__", None) or "").startswith("jaxvae")
            text = (inspect.getdoc(each) or "") if ours else ""
            assert "`" not in re.sub(r"``.*?``|(?<!\w)`[^`]+`(?!\w)", "", text), f"{name}: {text}"


@pytest.mark.slow
def test_the_example_on_the_first_page_runs(monkeypatch, tmp_path):
    """The other pages are run where the site is built."""
    monkeypatch.chdir(tmp_path)
    [block] = re.findall(r"```python\n(.*?)```", (DOCS / "index.md").read_text(), flags=re.DOTALL)
    made = {}
    exec(compile(block.replace("epochs=60", "epochs=2"), "index.md", "exec"), made)
    assert made["pictures"].shape == (16, 8, 8, 1)
    assert made["codes"].shape == (360, 8)


def test_the_pages_and_the_index_name_each_other():
    listed = set(re.findall(r"^([\w/*-]+)$", (DOCS / "index.md").read_text(), flags=re.MULTILINE))
    pages = {str(path.relative_to(DOCS).with_suffix("")) for path in DOCS.rglob("*.md")} - {"index"}
    covered = {page for page in pages if page in listed or f"{Path(page).parent}/*" in listed}
    assert pages - covered == set()
