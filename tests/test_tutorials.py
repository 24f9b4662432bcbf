"""The tutorials of the site: their cells in order, small. At full size the site's build runs them.

A line `name = value  # smoke: small` of a cell tagged `parameters` is run with the small value, and an assert that ends
with `# at full size` is left out.
"""

import re
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

FOLDER = Path(__file__).parents[1] / ".github" / "docs" / "tutorials"
TUTORIALS = sorted(FOLDER.glob("*.md"))
ORDINARY = ("01", "07")  # the others take longer, and what they use has tests of its own
CELL = re.compile(r"^```\{code-cell\} ipython3\n((?::[^\n]*\n)*)(.*?)^```$", flags=re.MULTILINE | re.DOTALL)
SMALL = re.compile(r"^(\w+) = .*  # smoke: (.+)$", flags=re.MULTILINE)
AT_FULL_SIZE = re.compile(r"^( *)assert .*  # at full size$", flags=re.MULTILINE)


def cells(notebook):
    """The options and the code of each cell."""
    return CELL.findall(notebook.read_text())


@pytest.mark.parametrize(
    "notebook",
    [
        pytest.param(each, id=each.stem, marks=() if each.stem[:2] in ORDINARY else pytest.mark.slow)
        for each in TUTORIALS
    ],
)
def test_the_cells_run_at_smoke_size(notebook, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = {}
    with plt.rc_context({"backend": "agg"}):
        for i, (_, code) in enumerate(cells(notebook)):
            small = AT_FULL_SIZE.sub(r"\1pass", SMALL.sub(r"\1 = \2", code))
            exec(compile(small, f"{notebook.name}, code cell {i + 1}", "exec"), names)
    plt.close("all")


@pytest.mark.parametrize("notebook", TUTORIALS, ids=lambda each: each.stem)
def test_a_tutorial_is_a_short_notebook_that_checks_its_numbers(notebook):
    text = notebook.read_text()
    assert "format_name: myst" in text.split("---")[1]
    found = cells(notebook)
    assert text.count("```{code-cell}") == len(found)
    prose = [part for part in CELL.sub("\0", text.split("---", 2)[2]).split("\0") if part.strip()]
    assert len(found) + len(prose) <= 15
    options, first = found[0]
    assert "parameters" in options
    assert all(SMALL.fullmatch(line) for line in first.strip().splitlines())
    assert any("assert " in code for _, code in found)
    assert "## Exercises" in text


def test_there_are_tutorials_to_run():
    assert [each.stem[:2] for each in TUTORIALS] == [f"{i:02}" for i in range(1, 8)]
