"""What a person watching a run sees: a live bar on a terminal, a line per evaluation everywhere. Needs rich."""

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from jaxvae.training.fit import Progress as FitProgress


class ProgressBar:
    """A `report` for `fit`, and a context manager.

    >>> with ProgressBar() as bar:  # doctest: +SKIP
    ...     fit(state, train_epoch, feed, report=bar)
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]:.1f}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._console.is_terminal,
            transient=True,
        )
        self._task = self._bar.add_task("", total=None, epoch=0.0, metrics="")

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def __call__(self, progress: FitProgress) -> None:
        """Show where the run is."""
        speed = f"{progress.examples_per_second:,.0f} examples/s"
        self._bar.update(
            self._task,
            completed=progress.step,
            total=progress.total_steps,
            epoch=progress.epoch,
            metrics=f"{_nats(progress.train)} · {speed}",
        )
        if progress.evaluation is not None:
            self._console.print(
                f"epoch {progress.epoch:6.1f}  train {_nats(progress.train)}  held out "
                f"{_nats(progress.evaluation)}  {speed}  {_clock(progress.seconds_left)} left",
                highlight=False,
            )


def _nats(metrics: dict[str, float]) -> str:
    shown = ("negative_elbo", "-ELBO"), ("rate", "rate"), ("distortion", "distortion")
    return " ".join(f"{label} {metrics[name]:.2f}" for name, label in shown if name in metrics)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes}:{seconds:02d}"
