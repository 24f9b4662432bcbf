"""Runs side by side, one process and one core each: on a CPU the fastest way through many small models."""

import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

SECONDS_BETWEEN_CHECKS = 0.5
FRAME = " ╭╮╰╯│─"  # around what a command line complains of
SECONDS_TO_STOP = 60  # a stopped run first writes a checkpoint


def cores() -> list[int]:
    """The cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def run_all(commands: Mapping[str, Sequence[str]], logs: Path, *, report: Callable[[str, int, int], None]) -> None:
    """Run every command, as many at once as there are cores, each on its own; output goes to `logs`/NAME.log.

    Args:
      commands: name -> `python` arguments.
      logs: a folder.
      report: called with a command's name, how many are done and how many there are.

    Raises:
      RuntimeError: a command failed; the others are stopped first, and its last words are in the message.
    """
    waiting, free = deque(commands.items()), deque(cores())
    running: dict[str, tuple[subprocess.Popen, int]] = {}
    done = 0
    try:
        while waiting or running:
            while waiting and free:
                name, arguments = waiting.popleft()
                core = free.popleft()
                running[name] = _start(arguments, core, logs / f"{name}.log"), core
            time.sleep(SECONDS_BETWEEN_CHECKS)
            for name, (process, core) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[name]
                free.append(core)
                if process.returncode:
                    lines = (line.strip(FRAME) for line in (logs / f"{name}.log").read_text().splitlines())
                    words = " ".join([line for line in lines if line][-3:])
                    raise RuntimeError(f"{name} ended with {process.returncode}: {words}")
                done += 1
                report(name, done, len(commands))
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            with suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS_TO_STOP)


def _start(arguments: Sequence[str], core: int, log: Path) -> subprocess.Popen:
    # Eigen's threads would spin on the one core; XLA sizes its own pool by the cores it may use.
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    before = os.sched_getaffinity(0) if hasattr(os, "sched_setaffinity") else None
    try:
        if before is not None:
            os.sched_setaffinity(0, {core})  # of this thread: the child inherits it
        with log.open("w") as file:
            return subprocess.Popen(
                [sys.executable, *arguments],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"XLA_FLAGS": flags},
            )
    finally:
        if before is not None:
            os.sched_setaffinity(0, before)
