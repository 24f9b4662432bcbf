"""Posteriors and priors side by side: rows of `experiments.latents`, several seeds of each, one table.

  python -m experiments.latents_sweep mnist flow iaf --seeds 0 1 2     presets of experiments.latents
  python -m experiments.latents_sweep digits --seeds 0 1 -- --prior flow --epochs 50     options of all after --

Each row and seed is a process with a core and a run directory of its own, OUT/ROW-SEED, as many at a time as there are
cores. The same command with the same --out goes on where it stopped, and does nothing again that has ended; rows and
seeds may be added. Nats are of the test images, means over the seeds with the standard deviation between them.
"""

import dataclasses
import json
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import numpy as np
import tyro
from rich.table import Table

from experiments.command import console, file_errors, run_or_leave, user_errors
from experiments.latents import PRESETS
from jaxvae._directory import write_whole
from jaxvae._json import read_json, read_numbers, to_json
from jaxvae._run import absolute
from jaxvae.keys import check_seed

COLUMNS = ("negative_elbo", "nll", "rate", "active_units", "aggregate_kl", "train_seconds")


@dataclasses.dataclass(frozen=True)
class Config:
    """Rows of experiments.latents."""

    rows: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Presets of experiments.latents, each a row."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of each row."""
    out: Path | None = None
    """Where the runs and the table go. Default: runs/latents-sweep-TIME."""

    def __post_init__(self) -> None:
        for name in ("rows", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} must be given, each once, got {' '.join(map(str, values)) or 'none'}")
        for seed in self.seeds:
            check_seed(seed)
        if unknown := [row for row in self.rows if row not in PRESETS]:
            raise ValueError(f"there is no preset {unknown[0]!r} among {', '.join(PRESETS)}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run all, and put them into one table."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    split = arguments.index("--") if "--" in arguments else len(arguments)
    with user_errors():
        config = tyro.cli(Config, description=__doc__, args=arguments[:split])
        out = absolute(config.out or Path("runs", f"latents-sweep-{time.strftime('%Y%m%d-%H%M%S')}"), "--out")
        options = check_options(arguments[split + 1 :])
        keep_options(options, out)
    train(config, options, out)
    report(config, out)


def check_options(options: list[str]) -> list[str]:
    """What is passed on; `ValueError` for what the sweep decides itself."""
    own = [each for each in options if each.split("=")[0] in ("--seed", "--out", "--resume")]
    if own:
        raise ValueError(f"{own[0]} is not for the runs of a sweep: pass --seeds and --out before --")
    return options


@file_errors()
def keep_options(options: list[str], out: Path) -> None:
    """Write them down; `ValueError` where runs of others are there: they would not compare."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "options.json"
    if file.exists() and read_json(file) != options:
        raise ValueError(f"the runs in {out} had other options, {file.read_text().strip()}: choose another --out")
    write_whole(file, json.dumps(options) + "\n")


def train(config: Config, options: Sequence[str], out: Path) -> None:
    """Whatever has not ended yet; exits with what a failure or a signal says."""
    commands = {}
    for row, seed in ((row, seed) for row in config.rows for seed in config.seeds):
        name = f"{row}-{seed}"
        if not (out / name / "result.json").exists():
            own = ["--seed", str(seed), "--out", str(out / name), "--resume"]
            commands[name] = ["-m", "experiments.latents", row, *options, *own]
    if not commands:
        return
    signal.signal(signal.SIGTERM, _leave)
    run_or_leave(commands, out, go_on=f"the same command with --out {out} goes on")


@file_errors()
def report(config: Config, out: Path) -> None:
    """Print the table and write it to result.json, with every run's own figures."""
    with user_errors():
        rows = {row: [figures_of(out / f"{row}-{seed}") for seed in config.seeds] for row in config.rows}
    table = Table("", *(name.replace("_", " ") for name in COLUMNS), title=f"seeds {' '.join(map(str, config.seeds))}")
    summary: dict[str, dict[str, float]] = {}
    for row, members in rows.items():
        cells, summary[row] = [], {}
        for name in COLUMNS:
            values = [member[name] for member in members if name in member]
            cells.append("")
            if len(values) == len(members):
                mean, std = float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
                summary[row] |= {name: mean, f"{name}_std": std}
                cells[-1] = f"{mean:.2f}" + (f" ± {std:.2f}" if len(values) > 1 else "")
        table.add_row(row, *cells)
    console.print(table)
    result = {"test": summary, "members": {row: dict(zip(config.seeds, of, strict=True)) for row, of in rows.items()}}
    write_whole(out / "result.json", to_json(result, indent=2) + "\n")
    console.print(str(out / "result.json"), highlight=False)


def figures_of(directory: Path) -> dict[str, Any]:
    """What a run measured, and the seconds that it trained."""
    result = read_numbers(directory / "result.json")
    return {**result["test"], "train_seconds": result["train_seconds"]}


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(143)  # through `finally`, so that the processes stop too


if __name__ == "__main__":
    main()
