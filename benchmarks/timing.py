"""Contestants taking turns in one process, and what to write beside their times."""

import json
import os
import platform
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import jax


def take_turns(contestants, rounds):
    """Median seconds of each `name: function`, which take turns; a first turn of each, to compile, is not counted."""
    seconds = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, run in contestants.items():
            start = time.perf_counter()
            jax.block_until_ready(run())
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(times) for name, times in seconds.items()}


def write_json(path: Path | None, results):
    """The results with the environment they were read in; None writes nothing."""
    if path is None:
        return
    environment = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "jaxlib", "flax", "optax")},
        "device": jax.devices()[0].device_kind,
        "processor": platform.processor() or platform.machine(),
        "cpu_count": len(os.sched_getaffinity(0)),
    }
    path.write_text(json.dumps({"results": results, "environment": environment}, indent=2) + "\n")
