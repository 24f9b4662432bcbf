"""The progress bar: live on a terminal, in 80 columns, and in a notebook; lines in a log."""

import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from jaxvae import _terminal, progress
from jaxvae.progress import ProgressBar
from jaxvae.training.fit import Progress

TRAIN = {"negative_elbo": 123.456, "rate": 23.0, "distortion": 100.456, "loss": 123.456}
TEST = {"negative_elbo": 120.0, "rate": 22.5, "distortion": 97.5}
LINE = "epoch   10.0  train -ELBO 123.46 rate 23.00 distortion 100.46  {}26,686 examples/s  10:05 left"
FIRST = LINE.replace("26,686 examples/s  10:05 left", "compiled")
EVALUATED = LINE.format("evaluation -ELBO 120.00 rate 22.50 distortion 97.50  ")


def report(step=4680, train=TRAIN, evaluation=None):
    return Progress(step, 23400, 10.0, train, evaluation, 26_686.4, 605.0)


def printed(*reports, terminal=False, jupyter=False):
    file = io.StringIO()
    console = Console(file=file, width=80, force_terminal=terminal, color_system=None)
    console.is_jupyter = jupyter
    with ProgressBar(console) as bar:
        for one in reports:
            bar(one)
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue())


def test_a_log_gets_one_line_for_each_evaluation():
    """Whole, though a file counts as 80 columns wide."""
    assert printed(report(evaluation=TEST), report(step=4681, evaluation=TEST)).splitlines() == [
        FIRST.format("evaluation -ELBO 120.00 rate 22.50 distortion 97.50  "),
        EVALUATED,
    ]


def test_a_run_of_one_program_has_its_rate():
    assert printed(report(step=23400)).splitlines() == [LINE.format("")]


def test_a_log_without_evaluations_is_not_silent(monkeypatch):
    """A line for the first program, one each half minute, and one for the last."""
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda: clock.now))
    file = io.StringIO()
    with ProgressBar(Console(file=file, force_terminal=False)) as bar:
        lines = []
        for step, now in enumerate((100.0, 101.0, 129.0, 130.0, 131.0, 159.0, 160.0), start=1):
            clock.now = now
            bar(report(step))
            lines.append(len(file.getvalue().splitlines()))
        assert lines == [1, 1, 1, 2, 2, 2, 3]
        bar(report(evaluation=TEST))
        clock.now = 189.0  # not half a minute since the evaluation
        bar(report())
        bar(report(step=23400))
    assert file.getvalue().splitlines() == [FIRST.format(""), *[LINE.format("")] * 2, EVALUATED, LINE.format("")]


@pytest.mark.parametrize("evaluation", [None, TEST])
def test_a_terminal_gets_everything_in_80_columns(evaluation):
    said = printed(report(), report(4681, evaluation=evaluation), terminal=True)
    assert "-ELBO 123.5 rate 23.0 distortion 100.5 · 26,686/s · 10:05 left" in said
    assert "…" not in said
    assert "26,686/s" not in printed(report(evaluation=evaluation), terminal=True)  # nor is compiling a rate
    assert ("evaluation -ELBO" in said) == (evaluation is not None)


def test_a_notebook_has_the_bar(monkeypatch):
    """One line that is written over, without ipywidgets; rich's would warn at every step."""
    shown, written = [], []
    monkeypatch.setattr("rich.jupyter.display", lambda segments, text: shown.append(text))

    def display(line, **options):
        assert options == {"raw": True, "display_id": True}
        written.append(line)
        return SimpleNamespace(update=lambda line, raw: written.append(line))

    monkeypatch.setattr("IPython.display.display", display)
    console = Console(file=io.StringIO(), force_terminal=False, color_system=None)
    console.is_jupyter = True
    with ProgressBar(console) as bar:
        bar(report(evaluation=TEST))
        bar(report(step=23400))
    assert [line["text/plain"][:16] for line in written] == ["  0% compiling", " 20% epoch 10.0 ", "100% epoch 10.0 "]
    assert written[2]["text/plain"].endswith("0:05 left · evaluation -ELBO 120.00 rate 22.50 distortion 97.50")
    assert written[1]["text/html"].startswith('<progress max="1" value="0.2000"></progress> epoch 10.0 · -ELBO 123.5')
    assert not shown


def test_a_bar_tells_the_first_program_of_each_fit_from_the_others():
    """A fit that begins anew, with or without the bar being entered again, compiles anew."""
    file = io.StringIO()
    bar = ProgressBar(Console(file=file, width=80, force_terminal=False))
    for steps in ((1, 2), (1, 2)):
        for step in steps:
            bar(report(step=step, evaluation=TEST))
    with bar:
        bar(report(step=3, evaluation=TEST))
    assert [line.endswith("compiled") for line in file.getvalue().splitlines()] == [True, False, True, False, True]


def test_metrics_of_an_objective_of_your_own_are_shown():
    said = printed(report(train={"loss": 2.5, "accuracy": 0.125}))
    assert "train loss 2.50 accuracy 0.1250  " in said


def test_a_count_in_a_log_has_a_line_every_half_a_minute_and_one_at_the_end(monkeypatch):
    clock, file = SimpleNamespace(now=100.0), io.StringIO()
    monkeypatch.setattr(_terminal, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(_terminal, "console", Console(file=file, force_terminal=False))
    show = _terminal.counter("reading, batch")
    for done, now in enumerate((101.0, 129.0, 130.0, 131.0, 159.0, 160.0, 161.0), start=1):
        clock.now = now
        show(done, 7)
    assert file.getvalue().splitlines() == [f"reading, batch: {done} of 7" for done in (3, 6, 7)]


def test_a_count_on_a_terminal_stays_on_one_line(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(_terminal, "console", Console(file=file, force_terminal=True, color_system=None))
    show = _terminal.counter("reading")
    show(1, 2)
    show(2, 2)
    assert file.getvalue() == "reading: 1 of 2\rreading: 2 of 2\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_brackets_in_the_name_of_a_metric_are_shown(terminal):
    said = printed(report(train={"kl[z]": 2.5, "end[/z]": 1.5}, evaluation={"kl[z]": 3.5}), terminal=terminal)
    assert "train kl[z] 2.50 end[/z] 1.50  evaluation kl[z] 3.50" in said


def test_brackets_in_a_path_are_shown(capsys):
    _terminal.console.print("run directory: /runs/[beta]/[/x]", highlight=False)
    assert capsys.readouterr().out == "run directory: /runs/[beta]/[/x]\n"
