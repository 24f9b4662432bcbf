"""The progress bar: a line per evaluation in a log, and a live line that fits 80 columns on a terminal."""

import io
import re

import pytest
from rich.console import Console

from jaxvae.progress import ProgressBar
from jaxvae.training.fit import Progress

TRAIN = {"negative_elbo": 123.456, "rate": 23.0, "distortion": 100.456, "loss": 123.456}
TEST = {"negative_elbo": 120.0, "rate": 22.5, "distortion": 97.5}


def shown(*, terminal, evaluation):
    file = io.StringIO()
    console = Console(file=file, width=80 if terminal else 200, force_terminal=terminal, color_system=None)
    with ProgressBar(console) as bar:
        bar(Progress(4680, 23400, 10.0, TRAIN, evaluation, 26_686.4, 605.0))
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())


def test_a_log_gets_one_line_for_each_evaluation():
    line = (
        "epoch   10.0  train -ELBO 123.46 rate 23.00 distortion 100.46  "
        "held out -ELBO 120.00 rate 22.50 distortion 97.50  26,686 examples/s  10:05 left"
    )
    assert shown(terminal=False, evaluation=TEST).strip() == line
    assert shown(terminal=False, evaluation=None).strip() == ""


@pytest.mark.parametrize("evaluation", [None, TEST])
def test_a_terminal_gets_everything_in_80_columns(evaluation):
    said = shown(terminal=True, evaluation=evaluation)
    assert "-ELBO 123.5 rate 23.0 distortion 100.5 · 26,686/s · 10:05 left" in said
    assert "…" not in said
