"""Contestants in processes of their own, alive side by side, taking turns on the same cores. Linux only.

A workload such as `benchmarks.vq_vae` lists them. Each prepares, warms up and then speaks JSON, a line at a time
(`benchmarks.contestants.serve`): first its losses, then the seconds of a turn for each "go". Before any turn the losses
must agree, a turn during which other processes used the cores is taken again, and the order is shuffled every round.

    python -m benchmarks.runner compare BASELINE NEW   fails on other counts (compilations), or a ratio that fell
"""

import argparse
import contextlib
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.timing import ATTEMPTS, DISTURBED, busy_seconds, spent_seconds

ROOT = Path(__file__).parents[1]
console = Console(highlight=False)
if not console.is_terminal:
    console.width = 120


@dataclass(frozen=True)
class Contestant:
    """A row of the table and the command of its process, which calls `benchmarks.contestants.serve`."""

    name: str
    command: list[str]


class ContestantError(Exception):
    """A contestant died, or trains something else than the others."""


class Process:
    """A contestant that is running, on these cores only."""

    def __init__(self, contestant, cores):
        self.name = contestant.name
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, it stays open
        before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, cores)  # the child inherits them
        self.process = subprocess.Popen(
            contestant.command,
            cwd=ROOT,
            env={"XLA_PYTHON_CLIENT_PREALLOCATE": "false", **os.environ},  # they share the device's memory
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
            start_new_session=True,
        )
        os.sched_setaffinity(0, before)

    def answer(self):
        """Wait for its next line."""
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.errors.seek(0)
            tail = "".join(self.errors.readlines()[-20:])
            raise ContestantError(f"{self.name} died with exit code {code}:\n{tail}")
        return json.loads(line)

    def go(self):
        """Have it take a turn."""
        with contextlib.suppress(BrokenPipeError):  # it died; answer() says how
            print("go", file=self.process.stdin, flush=True)
        return self.answer()

    def stop(self):
        """End it and what it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.errors):
            pipe.close()


def foreign_seconds(session, cores):
    """CPU seconds spent on these cores since the machine started by everything but the processes of one session."""
    return busy_seconds(cores) - spent_seconds(lambda pid, parent, its_session: int(its_session) == session)


def take_turn(process, cores, foreign):
    """The least disturbed of up to ATTEMPTS turns; the first undisturbed one ends them."""
    attempts = []
    while not attempts or (attempts[-1]["disturbance"] > DISTURBED and len(attempts) < ATTEMPTS):
        before = foreign(process.process.pid, cores)
        answer = process.go()
        others = foreign(process.process.pid, cores) - before
        attempts.append({**answer, "disturbance": others / (answer["seconds"] * len(cores))})
    best = min(attempts, key=lambda turn: turn["disturbance"])
    return {"name": process.name, **best, "attempts": len(attempts)}


def check_devices(ready):
    """An error unless all run on one kind of device: PyTorch's CPU build beside JAX on a GPU would be no contest."""
    devices = {name: answer["device"] for name, answer in ready.items()}
    if len(set(devices.values())) > 1:
        raise ContestantError(f"the contestants are not on the same device: {devices}")


def check_losses(ready, tolerance):
    """The largest relative difference of anyone's losses from those of the first; an error where it is too large."""
    first, reference = next((name, answer["losses"]) for name, answer in ready.items())
    worst = 0.0
    for name, answer in ready.items():
        pairs = zip(answer["losses"], reference, strict=True)
        differences = [abs(loss - expected) / abs(expected) for loss, expected in pairs]
        if not all(difference <= tolerance for difference in differences):  # NaN too
            raise ContestantError(
                f"{name} trains something else than {first}: losses differ by more than {tolerance:g}\n"
                f"{first}: {reference}\n{name}: {answer['losses']}"
            )
        worst = max(worst, *differences)
    return worst


def compete(contestants, *, ours, cores, rounds=7, tolerance=1e-3, seed=0, foreign=foreign_seconds):
    """Run the contestants against each other; a row's ratio says how many times as fast `ours` is.

    Args:
      contestants: they start from the same parameters and see the same batches.
      ours: the name of one of them.
      cores: a set of core numbers, for all of them.
      rounds: in each everyone takes a turn.
      tolerance: of the losses, relative to the first contestant's.
      seed: of the shuffling.
      foreign: (session, cores) -> CPU seconds of everything else so far.

    Returns:
      "rows" by name, all "rounds" in the order they ran, and what they were run on, for JSON.

    Raises:
      ContestantError: a contestant died, or its losses or its device differ.
    """
    rng, processes, ready, skipped, turns = random.Random(seed), [], {}, {}, []
    try:
        for contestant in contestants:
            processes.append(Process(contestant, cores))
            answer = processes[-1].answer()
            if "skip" in answer:
                skipped[contestant.name] = answer["skip"]
                processes.pop().stop()
            else:
                ready[contestant.name] = answer
            console.print(f"{contestant.name}: {'left out' if 'skip' in answer else 'ready'}")
        check_devices(ready)
        difference = check_losses(ready, tolerance)
        for number in range(rounds):
            console.print(f"round {number + 1} of {rounds}")
            shuffled = rng.sample(processes, len(processes))
            turns.append([take_turn(process, cores, foreign) for process in shuffled])
    finally:
        for process in processes:
            process.stop()

    rows = {}
    for name, answer in ready.items():
        taken = [turn for turn_round in turns for turn in turn_round if turn["name"] == name]
        speeds = [answer["examples"] / turn["seconds"] for turn in taken]
        rows[name] = {"median": statistics.median(speeds), "min": min(speeds), "max": max(speeds)}
        rows[name] |= {**answer, "counts": taken[-1]["counts"]}
    for row in rows.values():
        row["ratio"] = rows[ours]["median"] / row["median"]
    return {
        "ours": ours,
        "device": next(iter(rows.values()))["device"],
        "processor": processor(),
        "cores": len(cores),
        "rows": rows,
        "skipped": skipped,
        "losses": {"difference": difference, "tolerance": tolerance},
        "disturbed": sum(turn["disturbance"] > DISTURBED for turn_round in turns for turn in turn_round),
        "rounds": turns,
    }


def processor():
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return names[0].partition(": ")[2] if names else "unknown"


def report(title, result, out=None):
    """Print the table; with `out`, also put the result into that JSON file beside its other tables."""
    table = Table(title=f"{title}: {result['device']}, {result['processor']}, {result['cores']} cores")
    table.add_column(no_wrap=True)
    for column in ("examples/s", "min – max", "ours is × faster", "compile s", "compilations"):
        table.add_column(column, justify="right")
    for name, row in result["rows"].items():
        spread = f"{row['min']:,.0f} – {row['max']:,.0f}"
        counts = str(row["counts"].get("compilations", ""))
        table.add_row(name, f"{row['median']:,.0f}", spread, f"{row['ratio']:.2f}", f"{row['compile_s']:.1f}", counts)
    console.print(table)
    for name, reason in result["skipped"].items():
        console.print(f"{name} was left out: {reason}")
    losses, turns = result["losses"], [turn for turns in result["rounds"] for turn in turns]
    console.print(f"First losses agree to {losses['difference']:.1e} (allowed {losses['tolerance']:g}).")
    repeated = sum(turn["attempts"] - 1 for turn in turns)
    console.print(
        f"Ours: {result['ours']}. Medians of {len(result['rounds'])} rounds; "
        f"{repeated} disturbed turns were taken again."
    )
    if result["disturbed"]:
        worst = max(turn["disturbance"] for turn in turns)
        console.print(
            f"{result['disturbed']} of {len(turns)} turns stayed disturbed: others used up to {100 * worst:.0f} % of "
            f"the cores. Trust no ratio of this table.",
            style="bold red",
        )
    if out is not None:
        tables = json.loads(out.read_text()) if out.exists() else {}
        out.write_text(json.dumps(tables | {title: result}, indent=1) + "\n")


def run(title, contestants, args, *, ours):
    """What a workload does with its contestants and its options: a contest and its table."""
    options = {"cores": args.cores, "rounds": args.rounds, "tolerance": args.tolerance}
    report(title, compete(contestants, ours=ours, **options), args.out)


def compare(baseline, new, tolerance=0.15):
    """What got worse between two files of tables, one sentence each: counts exactly, ratios beyond the tolerance."""
    worse = []
    for title in baseline.keys() & new.keys():
        old_table, new_table = baseline[title], new[title]
        settings = [(name, old_table[name], new_table[name]) for name in ("ours", "device", "processor", "cores")]
        worse += [f"{title}: not comparable, {name} {old} and {new}" for name, old, new in settings if old != new]
        for name in old_table["rows"].keys() & new_table["rows"].keys():
            old, row = old_table["rows"][name], new_table["rows"][name]
            if old["counts"] != row["counts"]:
                worse.append(f"{title}, {name}: counts were {old['counts']}, now {row['counts']}")
            if row["ratio"] < (1 - tolerance) * old["ratio"]:
                worse.append(f"{title}, {name}: the ratio was {old['ratio']:.2f}, now {row['ratio']:.2f}")
    if not baseline.keys() & new.keys():
        worse.append("no table is in both files")
    return sorted(worse)


def make_parser(description, *, tolerance):
    """The options that every workload has, with its own tolerance of the losses."""

    def cores(text):
        return {int(core) for core in text.split(",")}

    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cores", type=cores, default=os.sched_getaffinity(0), help="for example 0,1; default: all")
    parser.add_argument("--peers", help="the Python with benchmarks/requirements.txt installed")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--tolerance", type=float, default=tolerance, help="of the losses, relative")
    parser.add_argument("--out", type=Path, help="a JSON file; other tables in it are kept")
    return parser


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["compare"])
    parser.add_argument("baseline", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--tolerance", type=float, default=0.15, help="of the ratios, relative")
    args = parser.parse_args(argv)
    worse = compare(json.loads(args.baseline.read_text()), json.loads(args.new.read_text()), args.tolerance)
    for sentence in worse:
        console.print(sentence)
    sys.exit(1 if worse else 0)


if __name__ == "__main__":
    main()
