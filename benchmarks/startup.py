"""How long from nothing to a first training step? Seconds of each part, medians over fresh processes.

    python -m benchmarks.startup [--workloads "VAE,VQ-VAE"] [--processes N] [--json FILE]

Import of all that jaxvae has for training (with JAX), the initial state (compiled and run), tracing and lowering an
epoch program, compiling it, and one step of it. Then the same with JAX's persistent compilation cache, which an
earlier process has filled (JAX_COMPILATION_CACHE_DIR). The workloads are those of `benchmarks.limits`.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PARTS = ("import", "init", "trace and lower", "compile", "first step")
STEPS = 100  # steps that the program could run


def import_all():
    """`import jaxvae`, and what of it comes on first use: all that training needs."""
    jaxvae = importlib.import_module("jaxvae")
    for name in jaxvae.__all__:
        getattr(jaxvae, name)
    return jaxvae


def start(name):
    """The seconds of each part, in this process, which has imported nothing yet."""
    seconds = {}

    def timed(part, run):
        begin = time.perf_counter()
        result = run()
        seconds[part] = time.perf_counter() - begin
        return result

    jaxvae = timed("import", import_all)
    import jax
    import numpy as np

    from benchmarks.limits import make_training
    from benchmarks.training import on_device

    jax.config.update(
        "jax_enable_compilation_cache", "JAX_COMPILATION_CACHE_DIR" in os.environ
    )  # contestants refuse it
    train_step, init_state, batch = make_training(name)
    state = timed("init", lambda: jax.block_until_ready(init_state()))
    count, size = STEPS * len(batch["index"]), len(batch["index"])
    indices = np.full((STEPS, size), -1, np.int32)
    indices[0] = np.arange(size)
    arguments = on_device(np.zeros((count, *batch["x"].shape[1:]), np.uint8)), jax.device_put(indices)
    program = jax.jit(jaxvae.make_train_epoch(train_step), donate_argnums=0)
    lowered = timed("trace and lower", lambda: program.lower(state, *arguments))
    compiled = timed("compile", lowered.compile)
    timed("first step", lambda: jax.block_until_ready(compiled(state, *arguments)))
    return seconds


def start_elsewhere(name, cache):
    """The same in a fresh process; `cache` is a folder, or None for no compilation cache."""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    if cache is not None:
        environment |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    command = [sys.executable, "-m", "benchmarks.startup", "--start", name]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout)


def medians(name, processes, cache):
    each = [start_elsewhere(name, cache) for _ in range(processes)]
    parts = {part: statistics.median(seconds[part] for seconds in each) for part in PARTS}
    return parts | {"all": statistics.median(sum(seconds.values()) for seconds in each)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default="VAE,VQ-VAE")
    parser.add_argument("--processes", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the numbers and the environment here")
    parser.add_argument("--start", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.start:
        print(json.dumps(start(args.start)))
        return

    from rich.table import Table

    from benchmarks.timing import console, write_json  # this imports jax, which --start does itself

    results = {}
    table = Table("", *PARTS, "all", title="Seconds to a first step")
    for name in args.workloads.split(","):
        with tempfile.TemporaryDirectory() as cache:
            start_elsewhere(name, cache)  # fills it
            results[name] = medians(name, args.processes, None)
            results[f"{name}, cached"] = medians(name, args.processes, cache)
    for name, parts in results.items():
        table.add_row(name, *(f"{seconds:.2f}" for seconds in parts.values()))
    console.print(table)
    write_json(args.json, results)


if __name__ == "__main__":
    main()
