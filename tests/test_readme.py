"""The README is run: every Python block, and what its two lines promise."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


@pytest.mark.parametrize("block", BLOCKS, ids=[f"block {i}" for i in range(len(BLOCKS))])
def test_a_python_block_runs(block, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "README.md", "exec"), {})


def test_there_are_blocks_to_run():
    assert len(BLOCKS) >= 2


def test_the_two_lines_name_what_exists():
    lines = re.findall(r"^python3 -m venv .*$", README, flags=re.MULTILINE)
    assert len(lines) == 2
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for line in lines:
        assert re.search(r"pip install -e '\.\[(\w+)\]'", line)[1] in extras
    assert re.search(r"-m experiments\.(\w+)", lines[0])[1] == "vae"
    assert lines[1].endswith(".venv/bin/pytest")


def test_links_and_pictures_exist():
    targets = re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", README)
    assert any(target.endswith(".png") for target in targets)
    for target in targets:
        assert (ROOT / target).exists(), target
