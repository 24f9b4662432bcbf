"""All that is worth measuring on an accelerator, in one command that writes what it has as it goes.

    python -m benchmarks.accelerator --out FOLDER [--minutes 25] [--peers PYTHON] [--only NAME ...] [--smoke]

The parts run one after the other, each in a process of its own, the most telling first: the contests with PyTorch
(eager, compiled, CUDA graphs; where PYTHON has benchmarks/requirements.txt), bfloat16, the device's limits, how cost
grows with the batch, sampling, start-up; what time is left is shared by three long runs. A part that is done has
FOLDER/NAME.json, which appears whole or not at all; parts.json says how each went, logs/NAME.txt what it printed. The
contests' tables are also put together in tables.json and drawn, beside the limits, in tables.png.

Killed at any moment, what is there stays. The same command goes on: parts that are done are left alone, long runs
continue from their checkpoints. A part that takes longer than its share is stopped and the next begins. --smoke is a
rehearsal at small sizes, for a CPU; its numbers mean nothing.

On a bare machine with an NVIDIA GPU, in a clone of this repository:

    python3 -m venv .venv && .venv/bin/pip install -e '.[all,cuda]'
    python3 -m venv peers && peers/bin/pip install -r benchmarks/requirements.txt 'jax[cuda13]'
    .venv/bin/python -m benchmarks.accelerator --peers peers/bin/python --out results

Where PyTorch cannot be had, leave out the second line and --peers. The Burda table needs MNIST, the VQ-VAE CIFAR-10, in
TFDS_DATA_DIR: without them these two fail within seconds, and say so.
"""

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks import picture
from benchmarks.runner import ROOT, console

GRACE = 45.0  # seconds for a part that was told to stop: a long run saves its state
LEAST = 10.0  # seconds; with less left no part begins
PYTHON = sys.executable


@dataclass(frozen=True)
class Part:
    """One measurement.

    Attributes:
      name: of its files.
      command: what follows `python -m`; FILE stands for the JSON file that it writes, RUN for a run directory.
      minutes: the most that it may take.
      smoke: what is added in a rehearsal.
      contest: whether its file holds tables of the runner.
      long: a run that takes its share of what time is left, and goes on from a checkpoint.
    """

    name: str
    command: tuple[str, ...]
    minutes: float = 2.0
    smoke: tuple[str, ...] = ()
    contest: bool = False
    long: bool = False


def contest(name, *options, minutes=3.0, steps=("--steps", "10")):
    workload = name.removesuffix("_bfloat16")
    command = (f"benchmarks.{workload}", *options, "--rounds", "5", "--out", "FILE")
    return Part(name, command, minutes, ("--rounds", "1", *steps), contest=True)


def measurement(name, *options, minutes=2.0, smoke=("--rounds", "1")):
    return Part(name, (f"benchmarks.{name}", *options, "--json", "FILE"), minutes, smoke)


def long_run(name, *command):
    return Part(name, (*command, "--out", "RUN", "--resume"), smoke=("--smoke",), long=True)


PARTS = (
    contest("vae", "--steps", "4680"),
    contest("vq_vae_bfloat16", "--bfloat16", "--tolerance", "0.02", "--steps", "500"),
    contest("vq_vae", "--steps", "500"),
    measurement("limits"),
    contest("iwae", "--steps", "2000"),
    contest("beta_vae", "--steps", "500"),
    measurement("scaling", "--only", "batch", "--sizes", "batch=128,512,2048,8192,32768"),
    measurement("sampling", minutes=1.0, smoke=("--rounds", "1", "--num", "200")),
    contest("top_down", "--steps", "500"),
    measurement("transformer_prior", smoke=("--rounds", "1", "--num", "2", "--positions", "1")),
    measurement("pixel_cnn", smoke=("--rounds", "1", "--num", "2", "--positions", "1")),
    measurement("startup", smoke=("--processes", "1", "--workloads", "VAE")),
    contest("quantizer", "--calls", "500", steps=("--calls", "3")),
    long_run("sprites_300000_steps", "experiments.beta_vae", "sprites", "--epochs", "27"),
    long_run("burda_3280_passes", "experiments.vae", "burda", "--passes", "3280"),
    long_run("vq_vae_10000_steps", "experiments.vq_vae", "cifar10", "--epochs", "7"),
)


class Folder:
    """What is there already, and the files that a part leaves."""

    def __init__(self, path):
        self.path = path.expanduser().resolve()
        (self.path / "logs").mkdir(parents=True, exist_ok=True)
        file = self.path / "parts.json"
        self.parts = json.loads(file.read_text()) if file.exists() else {}

    def is_done(self, part, command):
        """Whether a part was measured by this very command."""
        earlier = self.parts.get(part.name, {})
        return earlier.get("state") == "done" and earlier["command"] == command[1:]

    def command(self, part, *, peers, smoke):
        """The process of a part, its files named."""
        names = {"FILE": str(self._scratch(part)), "RUN": str(self.path / "runs" / part.name)}
        options = [names.get(word, word) for word in part.command] + list(part.smoke if smoke else ())
        if part.contest and peers:
            options += ["--peers", peers]
        return [PYTHON, "-m", *options]

    def begin(self, part, command):
        """Note it, and remove what a killed run of it left."""
        self._scratch(part).unlink(missing_ok=True)
        self.note(part, state="began", command=command[1:])

    def end(self, part, code, *, seconds, stopped):
        """Keep the part's file, where it wrote one, and say how it went."""
        result = self.path / "runs" / part.name / "result.json" if part.long else self._scratch(part)
        with contextlib.suppress(OSError, ValueError):
            write_whole(self.path / f"{part.name}.json", json.loads(result.read_text()))
        self._scratch(part).unlink(missing_ok=True)
        state = "done" if code == 0 else "stopped" if stopped else "failed"
        self.note(part, state=state, exit=code, seconds=round(seconds, 1))
        if part.contest:
            self._gather()
        return state

    def note(self, part, **facts):
        """Add to what parts.json says of a part."""
        self.parts[part.name] = self.parts.get(part.name, {}) | facts
        write_whole(self.path / "parts.json", self.parts)

    def log(self, part):
        """Where a part's output goes, that of all its runs."""
        return self.path / "logs" / f"{part.name}.txt"

    def _scratch(self, part):
        return self.path / f".{part.name}.scratch.json"

    def _gather(self):
        """All tables in one file and one picture."""
        files = [self.path / f"{part.name}.json" for part in PARTS if part.contest]
        tables = {}
        for file in files:
            if file.exists():
                tables |= json.loads(file.read_text())
        if not tables:
            return
        write_whole(self.path / "tables.json", tables)
        try:
            picture.draw(self.path / "tables.json")
        except ValueError as error:  # nobody beside ours: nothing to draw
            console.print(f"no picture: {error}")


def write_whole(path, content):
    """All of it or nothing."""
    scratch = path.with_name(f".{path.name}")
    scratch.write_text(json.dumps(content, indent=1) + "\n")
    scratch.replace(path)


def run_for(command, seconds, log):
    """The exit code of a process, and whether it was stopped because its time was over.

    It is told by SIGINT, upon which the runner ends its contestants and a training saves its state.
    """
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a script; parts would inherit it
        signal.signal(signal.SIGINT, signal.default_int_handler)
    with log.open("a") as output:
        print(f"$ {' '.join(command)}", file=output, flush=True)
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=output, start_new_session=True)
        try:
            return process.wait(timeout=seconds), False
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=GRACE)
            return process.poll(), True
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def share(part, waiting, left):
    """The seconds that a part may take of those that are left; `waiting` are the long runs that are still to come."""
    return left / max(len(waiting), 1) if part.long else min(60 * part.minutes, left)


def run_all(parts, folder, *, minutes, peers=None, smoke=False):
    """Run what is not done, until the time is over."""
    end = time.monotonic() + 60 * minutes
    commands = {part: folder.command(part, peers=peers, smoke=smoke) for part in parts}
    todo = [part for part, command in commands.items() if not folder.is_done(part, command)]
    for place, part in enumerate(todo):
        left = end - time.monotonic()
        if left < LEAST:
            console.print(f"no time is left for {', '.join(each.name for each in todo[place:])}")
            return
        command = commands[part]
        folder.begin(part, command)
        began = time.monotonic()
        seconds = share(part, [each for each in todo[place:] if each.long], left)
        code, stopped = run_for(command, seconds, folder.log(part))
        state = folder.end(part, code, seconds=time.monotonic() - began, stopped=stopped)
        console.print(f"{part.name}: {state} after {time.monotonic() - began:.0f} s")
        if state == "failed":
            console.print("".join(folder.log(part).read_text().splitlines(keepends=True)[-5:]), markup=False)


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--minutes", type=float, default=25.0, help="for all parts together")
    parser.add_argument("--peers", help="the Python with benchmarks/requirements.txt installed")
    parser.add_argument("--only", nargs="+", choices=[part.name for part in PARTS], metavar="NAME")
    parser.add_argument("--smoke", action="store_true", help="a rehearsal at small sizes")
    args = parser.parse_args(argv)
    folder = Folder(args.out)
    parts = [part for part in PARTS if args.only is None or part.name in args.only]
    run_all(parts, folder, minutes=args.minutes, peers=args.peers, smoke=args.smoke)
    console.print(f"all of it is in {folder.path}", highlight=False)


if __name__ == "__main__":
    main()
