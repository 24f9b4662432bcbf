"""Programs that `benchmarks.runner` keeps alive: what they all share. Standard library only, for any environment."""

import json
import os
import sys
import time

CHECKED_STEPS = 10  # whose losses the runner compares


def serve(train, indices, *, device, versions, counts=dict):
    """Answer the runner until it closes the pipe.

    Args:
      train: indices [n, B] of examples -> the n losses, floats; it goes on from where it was.
      indices: those of the steps of a turn, at least CHECKED_STEPS.
      device: what it runs on, one string.
      versions: of the packages that matter, by name.
      counts: () -> numbers that must never change, such as compilations so far.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer

    def timed(indices):
        start = time.perf_counter()
        losses = train(indices)
        return losses, time.perf_counter() - start

    def answer(**values):
        print(json.dumps(values), file=answers, flush=True)

    first, compiling = timed(indices[:1])
    second, compiled = timed(indices[1:2])
    answer(
        examples=indices.size,
        losses=first + second + train(indices[2:CHECKED_STEPS]),
        compile_s=compiling - compiled,
        device=device,
        versions=versions,
        counts=counts(),
    )
    for _ in sys.stdin:
        _, seconds = timed(indices)
        answer(seconds=seconds, counts=counts())


def skip(reason):
    """Say why this contestant cannot run here, instead of `serve`."""
    print(json.dumps({"skip": reason}), flush=True)
