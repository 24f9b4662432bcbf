"""The notebook, from its first cell to its last in a process of its own."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TOUR = Path(__file__).parents[1] / "experiments" / "tour.ipynb"


def test_it_is_kept_as_it_was_executed():
    """With its pictures, which a reader sees without running it."""
    cells = nbformat.read(TOUR, 4).cells
    assert len(cells) == 12
    assert_executed(cells)


@pytest.mark.slow
def test_it_executes_with_a_progress_bar_and_pictures(tmp_path):
    notebook = nbformat.read(TOUR, 4)
    for cell in notebook.cells:
        cell.outputs = []
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": tmp_path}}).execute()
    assert_executed(notebook.cells)
    assert (tmp_path / "tour" / "run.json").exists()


def assert_executed(cells):
    outputs = [output for cell in cells if cell.cell_type == "code" for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error" or output.get("name") == "stderr"]
    shown = [output.data for output in outputs if output.output_type == "display_data"]
    bars = [data["text/html"] for data in shown if "text/html" in data]
    assert [bar[:36] for bar in bars] == ['<progress max="1" value="1.0000"></p'] * 2
    assert all("evaluation -ELBO" in bar for bar in bars)
    assert sum("image/png" in data for data in shown) == 8
