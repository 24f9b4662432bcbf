"""What is around the code: one version, types for users, workflows and forms that say what there is."""

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_the_version_comes_from_one_place():
    cited = re.search(r"^version: (\S+)$", (ROOT / ".github" / "CITATION.cff").read_text(), re.M)[1]
    newest = re.search(r"^## \[?(\d+\.\d+\.\d+)", (ROOT / "jaxvae" / "CHANGELOG.md").read_text(), re.M)[1]
    assert PROJECT["version"] == cited == newest == importlib.metadata.version("jaxvae")
    files = [*(ROOT / "jaxvae").rglob("*.py")]
    assert [file.name for file in files if re.search(r"__version__ = ['\"]\d", file.read_text())] == []


def test_the_pythons_that_are_promised_are_those_that_the_workflows_try():
    promised = [each.rpartition(" ")[2] for each in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", each)]
    assert f">={promised[0]}" == PROJECT["requires-python"]
    for name in ("ci.yml", "package.yml"):
        [tried] = re.findall(r"^        python: \[(.*)\]$", (ROOT / ".github" / "workflows" / name).read_text(), re.M)
        assert [each.strip(' "') for each in tried.split(",")] == promised


def test_whoever_reports_a_mistake_is_asked_for_what_the_doctor_says():
    assert "`jaxvae doctor`" in (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("line", "code"), [("", 0), ("assert_type(jaxvae.__version__, int)\n", 1)])
def test_code_of_a_user_is_typed(tmp_path, line, code):
    pytest.importorskip("mypy")
    program = tmp_path / "typing_user.py"
    program.write_text((ROOT / "tests" / "typing_user.py").read_text() + line)
    # Silent about what is imported, as mypy is about packages that are installed; optax has no types.
    options = ["--strict", "--config-file=", "--disable-error-code=import-untyped", "--follow-imports=silent"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, f"--cache-dir={tmp_path / 'cache'}", program],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
        env=os.environ | {"MYPYPATH": str(ROOT)},
    )
    assert done.returncode == code, done.stdout
