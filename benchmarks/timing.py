"""Contestants taking turns in one process, and what to write beside their times."""

import argparse
import json
import os
import platform
import random
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import jax
from rich.console import Console

from experiments.sweep_processes import cores as own_cores

DISTURBED = 0.05  # of the cores' time, used by others
RESOLUTION = 0.02  # seconds a core: /proc counts in hundredths, and a short turn sees no less than this
ATTEMPTS = 5  # at an undisturbed turn
console = Console(highlight=False)
if not console.is_terminal:
    console.width = 110


def make_parser(description, *, rounds):
    """The options that every benchmark of one process has."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--json", type=Path, help="write the numbers and the environment here")
    return parser


def take_turns(contestants, rounds, foreign=None):
    """Median seconds of each `name: function`, which take turns in an order shuffled anew in each round.

    A first turn of each, to compile, is not counted. A turn during which other processes used this one's cores is taken
    again; how many stayed disturbed is printed. `foreign` () -> CPU seconds that others have used so far.
    """
    for run in contestants.values():
        jax.block_until_ready(run())
    rng, turns = random.Random(0), {name: [] for name in contestants}
    for _ in range(rounds):
        for name in rng.sample(list(contestants), len(contestants)):
            turns[name].append(_take_turn(contestants[name], foreign or foreign_seconds))
    shares = [share for taken in turns.values() for _, share in taken]
    disturbed = sum(share > DISTURBED for share in shares)
    if disturbed:
        console.print(
            f"{disturbed} of {len(shares)} turns stayed disturbed: others used up to {100 * max(shares):.0f} % of the "
            f"cores. Trust no ratio of these.",
            style="bold red",
        )
    return {name: statistics.median(seconds for seconds, _ in taken) for name, taken in turns.items()}


def _take_turn(run, foreign):
    """Seconds, and the share of the cores that others used: the least disturbed of up to ATTEMPTS turns."""
    attempts, cores = [], len(own_cores())
    while not attempts or (attempts[-1][1] > DISTURBED and len(attempts) < ATTEMPTS):
        before, start = foreign(), time.perf_counter()
        jax.block_until_ready(run())
        seconds = time.perf_counter() - start
        others = foreign() - before - RESOLUTION * cores
        attempts.append((seconds, others / (seconds * cores)))
    return min(attempts, key=lambda attempt: attempt[1])


def foreign_seconds():
    """CPU seconds spent on this process's cores since the machine started by all but it and its children; Linux only.

    Elsewhere always 0: no turn counts as disturbed.
    """
    if not Path("/proc/stat").exists():
        return 0.0
    me = str(os.getpid())
    return busy_seconds(own_cores()) - spent_seconds(lambda pid, parent, session: me in (pid, parent))


def busy_seconds(cores):
    """CPU seconds spent on these cores since the machine started, by anyone, and those stolen from them."""
    names, ticks = {f"cpu{core}" for core in cores}, 0
    for line in Path("/proc/stat").read_text().splitlines():
        name, *times = line.split()
        if name in names:
            user, nice, system, _, _, interrupts, soft_interrupts, stolen = map(int, times[:8])
            ticks += user + nice + system + interrupts + soft_interrupts + stolen
    return ticks / os.sysconf("SC_CLK_TCK")


def spent_seconds(chosen):
    """CPU seconds spent so far by the processes for which `chosen(pid, parent, session)`, strings, and their dead."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it ended meanwhile
        if chosen(path.parent.name, fields[1], fields[3]):
            ticks += sum(map(int, fields[11:15]))  # its own and its ended children's, user and system
    return ticks / os.sysconf("SC_CLK_TCK")


def write_json(path: Path | None, results):
    """The results with the environment they were read in; None writes nothing."""
    if path is None:
        return
    environment = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "jaxlib", "flax", "optax")},
        "device": jax.devices()[0].device_kind,
        "processor": platform.processor() or platform.machine(),
        "cpu_count": len(own_cores()),
    }
    path.write_text(json.dumps({"results": results, "environment": environment}, indent=2) + "\n")
