"""The pages of the documentation say what is so: their names exist, their figures are those of the experiments."""

import importlib
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / ".github" / "docs"
NAMES = ("notes", "coming-from", "numbers", "speed", "trust", "gallery")
PAGES = {name: (DOCS / f"{name}.md").read_text() for name in NAMES}
EXPERIMENTS = (ROOT / "experiments" / "README.md").read_text()
BLOCKS = [(name, block) for name in NAMES for block in re.findall(r"```python\n(.*?)```", PAGES[name], re.DOTALL)]


def found(name):
    """The object of a dotted name."""
    parts = name.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            value = getattr(value, part)
        return value
    raise AssertionError(name)


def anchor(heading):
    """What a heading is called in a link."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def anchors(text):
    return {anchor(heading) for heading in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}


@pytest.mark.parametrize("name", NAMES)
def test_every_public_name_exists(name):
    for target in re.findall(r"\{py:\w+\}`([^`<]+)`", PAGES[name]):
        assert found(target.strip("~")) is not None, target


@pytest.mark.parametrize("name", NAMES)
def test_every_test_benchmark_and_experiment_exists(name):
    for file in re.findall(r"`(?:pytest -m slow )?(tests/\w+\.py)", PAGES[name]):
        assert (ROOT / file).exists(), file
    for module, preset in re.findall(r"python -m ((?:experiments|benchmarks)\.\w+) ?([\w-]*)", PAGES[name]):
        text = (ROOT / (module.replace(".", "/") + ".py")).read_text()
        assert '__name__ == "__main__"' in text, module
        assert not preset or preset.isupper() or preset.startswith("-") or f'"{preset}"' in text, (module, preset)


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_pages_and_sections_that_exist(name):
    texts = PAGES | {"numbers": EXPERIMENTS}
    for target in re.findall(r"\]\(([^):]+)\)", PAGES[name]):
        page, _, section = target.partition("#")
        if page.removesuffix(".md") not in PAGES:
            assert page.endswith(".md") or (DOCS / page).exists(), target  # other pages are the site's to check
        elif section:
            assert section in anchors(texts[page.removesuffix(".md")]), target


def test_the_measured_figures_of_the_notes_are_those_of_the_experiments():
    figures = re.findall(r"\*\*([\d.,]+)\*\*", PAGES["notes"])
    assert len(figures) > 50
    known = set(re.findall(r"(?<![\d.])\d*\.?\d+(?![\d])", EXPERIMENTS.replace(",", " ")))
    for figure in figures:
        assert figure.strip(",") in known, figure


@pytest.mark.parametrize(("name", "block"), BLOCKS, ids=[f"{name} {i}" for i, (name, _) in enumerate(BLOCKS)])
def test_a_python_block_runs(name, block, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, f"{name}.md", "exec"), {})


def test_every_picture_of_the_gallery_is_there_small_and_has_its_command():
    pieces = re.split(r"^## ", PAGES["gallery"], flags=re.MULTILINE)[1:]
    drawn = [re.findall(r"!\[[^]]+\]\(([^)]+)\)", piece) for piece in pieces]
    assert all(drawn)
    assert all("`python -m experiments." in piece for piece in pieces)
    new = {picture for piece in drawn for picture in piece} - {
        "../pictures/analogies.png",
        "../pictures/traversals.png",
    }
    sizes = [(DOCS / picture).stat().st_size for picture in new]
    assert max(sizes) <= 60_000
    assert sum(sizes) <= 900_000
