"""What a person watching a run sees: a live bar on a terminal or in a notebook, lines elsewhere. Needs rich."""

import time
from html import escape
from types import TracebackType
from typing import Any

try:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("jaxvae.progress needs rich: pip install 'jaxvae[all]'") from error

from jaxvae._terminal import SECONDS_BETWEEN_LINES
from jaxvae.training.fit import Progress as FitProgress


class ProgressBar:
    """A `report` for `fit`, and a context manager.

    There is a line for each evaluation, and between them a terminal has a live bar; a notebook has a bar with the last
    evaluation beside it. Anything else, such as a file or a pipe, has a line for the first program, for the last, and
    every half a minute.

    >>> with ProgressBar() as bar:  # doctest: +SKIP
    ...     fit(state, train_epoch, feed, report=bar)
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._notebook = _NotebookBar() if self._console.is_jupyter else None
        self._live = self._console.is_terminal
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]:.1f}"),
            BarColumn(bar_width=8),  # the rest fits a terminal of 80 columns
            TextColumn("{task.fields[figures]}", markup=False),  # a metric may have brackets in its name
            console=self._console,
            disable=not self._live or self._notebook is not None,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, epoch=0.0, figures="compiling")
        self._next_line = -float("inf")
        self._step = 0  # of the newest report

    def __enter__(self) -> "ProgressBar":
        self._step = 0
        self._bar.start()
        if self._notebook is not None:
            self._notebook.show(0.0, "compiling")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, progress: FitProgress) -> None:
        """Show where the run is."""
        last = progress.step == progress.total_steps
        first = not 0 < self._step < progress.step  # of this fit
        self._step = progress.step
        if last or not first:
            speed, left = f"{progress.examples_per_second:,.0f}", _clock(progress.seconds_left)
            pace, short_pace = f"{speed} examples/s  {left} left", f"{speed}/s · {left} left"
        else:  # the time of the first program is mostly compilation, and says nothing of those to come
            pace = short_pace = "compiled"
        figures = f"{_nats(progress.train, digits=1)} · {short_pace}"
        self._bar.update(
            self._task, completed=progress.step, total=progress.total_steps, epoch=progress.epoch, figures=figures
        )
        if self._notebook is not None:
            self._notebook.evaluation = progress.evaluation or self._notebook.evaluation
            self._notebook.show(progress.step / progress.total_steps, f"epoch {progress.epoch:.1f} · {figures}")
            return
        evaluated, now = progress.evaluation is not None, time.monotonic()
        if evaluated or (not self._live and (last or now >= self._next_line)):
            self._next_line = now + SECONDS_BETWEEN_LINES
            evaluation = f"  evaluation {_nats(progress.evaluation)}" if progress.evaluation is not None else ""
            self._console.print(
                f"epoch {progress.epoch:6.1f}  train {_nats(progress.train)}{evaluation}  {pace}",
                highlight=False,
                markup=False,
                soft_wrap=not self._live,  # a line stays one, whatever width a file is taken to have
            )


class _NotebookBar:
    """A line that is written over, and stays with the notebook: rich's own needs ipywidgets, and does not."""

    def __init__(self) -> None:
        self._line: Any = None
        self.evaluation: dict[str, float] | None = None

    def show(self, share: float, text: str) -> None:
        """How much is done, from 0 to 1, and what to say of it."""
        from IPython.display import display

        text += f" · evaluation {_nats(self.evaluation)}" if self.evaluation is not None else ""
        html = f'<progress max="1" value="{share:.4f}"></progress> {escape(text)}'
        line = {"text/html": html, "text/plain": f"{share:4.0%} {text}"}
        if self._line is None:
            self._line = display(line, raw=True, display_id=True)
        else:
            self._line.update(line, raw=True)


def _nats(metrics: dict[str, float], digits: int = 2) -> str:
    known = (
        *(("negative_elbo", "-ELBO"), ("rate", "rate"), ("distortion", "distortion")),
        *(("perplexity", "perplexity"), ("codes_used", "codes used")),
        *(("nll", "-log p"), ("nats_per_value", "per value")),
    )
    found = [(label, metrics[name]) for name, label in known if name in metrics]
    found = found or list(metrics.items())[:3]  # those of an objective of your own
    return " ".join(f"{label} {value:.{digits if abs(value) >= 1 else 4}f}" for label, value in found)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
