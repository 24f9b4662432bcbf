"""Experiments as a person runs them, in this process."""

import contextlib
import io
import json
import re
from types import SimpleNamespace

import jax

# For the processes that a test starts: compile as conftest.py lets the tests compile.
QUICK = {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
if jax.__version_info__ < (0, 11):
    QUICK["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false"


def run(main, *arguments):
    """The exit code and what was printed, without the lines around boxes."""
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            main([str(argument) for argument in arguments])
            code = 0
        except SystemExit as stop:
            code = stop.code
    return SimpleNamespace(code=code, said=re.sub(r"[│╭╮╰╯─\s]+", " ", said.getvalue()))


def result_of(main, out, *arguments):
    """What a run wrote to result.json, and what it printed."""
    done = run(main, *arguments, "--out", out)
    assert done.code == 0, done.said
    return json.loads((out / "result.json").read_text()), done.said
