"""The command line that every experiment has, and what it says to the person who typed it."""

import dataclasses
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from types import TracebackType
from typing import Annotated, Literal, TypeVar

import jax
import numpy as np
import tyro
from rich.markup import escape

from experiments.sweep_processes import cores, run_all
from jaxvae._cache import keep_programs
from jaxvae._terminal import complain, console, counter, user_errors
from jaxvae.keys import check_seed

__all__ = [
    "PictureFormat",
    "RunConfig",
    "check_guidance",
    "complain",
    "console",
    "counter",
    "file_errors",
    "keep_programs",
    "parse",
    "run_or_leave",
    "user_errors",
]
ConfigT = TypeVar("ConfigT", bound="RunConfig")
PictureFormat = Literal["png", "svg", "pdf"]


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """The options that every experiment has."""

    preset: tyro.conf.Suppress[str]
    """Which preset the run began from."""
    epochs: Annotated[int, tyro.conf.arg(aliases=["--passes"])]
    """Passes over the training images."""
    batch_size: int
    """Images per step."""
    seed: int = 0
    """Decides the initial parameters, the order of the images and all noise; 0 to 2**32 - 1."""
    out: Path | None = None
    """The run directory. Default: runs/EXPERIMENT-PRESET-TIME, or with --resume the newest of those."""
    resume: bool = False
    """Continue the run in --out from its newest checkpoint, bit for bit."""
    smoke: bool = False
    """A few seconds on a few images, to see that everything works."""
    devices: int | None = None
    """Devices of this machine to split each batch over. Default: all of them; one of a CPU's, which share its cores."""
    distributed: bool = False
    """Join the processes that were started together, on this machine or others; --out must be one that all see."""
    picture_format: PictureFormat = "png"
    """What pictures are: pixels, or vectors for print. With --resume a finished run draws them again."""
    profile: bool = False
    """Write a trace of a few training steps to the run directory: experiments/profiling.md."""

    def __post_init__(self) -> None:
        self.check_numbers(counts=("epochs", "batch_size"))
        check_seed(self.seed)
        if self.distributed and self.out is None:
            raise ValueError("distributed needs a run directory that all processes see: pass --out DIR")

    def check_numbers(
        self, *, counts: Sequence[str] = (), weights: Sequence[str] = (), positive: Sequence[str] = ()
    ) -> None:
        """Raise `ValueError` where a count, or one of several, is below 1, a weight negative, a rate not positive."""
        for name in counts:
            if np.min(getattr(self, name), initial=1) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in weights:
            value = getattr(self, name)
            if value is not None and not (value >= 0 and np.isfinite(value)):
                raise ValueError(f"{name} must be a finite number, zero or more, got {value}")
        for name in positive:
            if not (getattr(self, name) > 0 and np.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")


def check_guidance(guidance: float, condition_dropout: float) -> None:
    """Raise `ValueError` where guided samples would ask a model what it never learns to say without its condition."""
    if guidance != 1 and not condition_dropout:
        raise ValueError(
            f"guidance {guidance} needs what the model says without its condition, which it never learns with "
            "condition_dropout 0: set guidance to 1, or condition_dropout above 0"
        )


def parse(presets: Mapping[str, tuple[str, ConfigT]], doc: str, argv: Sequence[str] | None = None) -> ConfigT:
    """Read the command line: a preset, then options that change it. With --distributed, join the other processes."""
    if argv is None:
        sys.excepthook = _say_of_interrupts
    with user_errors():
        first = next(iter(sys.argv[1:] if argv is None else argv), "-")
        if not first.startswith("-") and first not in presets:
            close = get_close_matches(first, presets, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            raise ValueError(f"there is no preset {first!r} among {', '.join(presets)}{hint}")
        prog = f"python -m {sys.modules['__main__'].__spec__.name}" if argv is None else None
        config = tyro.extras.overridable_config_cli(dict(presets), prog=prog, description=doc, args=argv)
        if config.distributed:
            _join()  # processes that compile together must not have different programs kept
        else:
            keep_programs()
        return config


def _say_of_interrupts(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """In place of a traceback where Ctrl-C came while nothing was trained, such as amid a measurement."""
    if issubclass(kind, KeyboardInterrupt):
        complain("stopped", "by Ctrl-C; what is in the run directory is whole: continue with --out DIR --resume")
    else:
        sys.__excepthook__(kind, error, trace)


def _join() -> None:
    """Join the processes that were started together; all but the first print nothing. Before JAX looks for devices."""
    # Unset, these are found by JAX on SLURM, Open MPI, Kubernetes and TPU; the address it reads by itself.
    count, index = (os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
    try:
        jax.distributed.initialize(
            num_processes=None if count is None else int(count), process_id=None if index is None else int(index)
        )
    except ValueError as error:
        raise ValueError(
            f"cannot join other processes ({error}): set JAX_COORDINATOR_ADDRESS=HOST:PORT, where HOST runs process 0, "
            "JAX_NUM_PROCESSES=P and JAX_PROCESS_ID=0 .. P-1"
        ) from error
    console.quiet = jax.process_index() > 0


@contextmanager
def file_errors(again: str = "continue with --resume") -> Iterator[None]:
    """Where a result or a picture cannot be written, say so and what to do then in one line, and exit with 1."""
    try:
        yield
    except OSError as error:
        complain("error", f"{error}; once that can be written, {again}")
        sys.exit(1)


def run_or_leave(commands: Mapping[str, Sequence[str]], logs: Path, *, go_on: str) -> None:
    """`run_all` for a program: it says what is done, and exits where a command failed or Ctrl-C stopped it."""
    console.print(f"{len(commands)} processes on {len(cores())} cores; each writes to {logs}/NAME.log", highlight=False)
    try:
        run_all(commands, logs, report=lambda name, done, total: console.print(f"{name}: done, {done} of {total}"))
    except RuntimeError as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False, markup=True)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print(f"stopped; {go_on}", highlight=False)
        sys.exit(130)
