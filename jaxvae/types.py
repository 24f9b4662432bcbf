"""The shapes of things that pass between rooms: aliases and protocols, no code that runs."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import jax

Array = jax.Array
PRNGKey = jax.Array  # a typed key, from jax.random.key
PyTree = Any
Metrics = dict[str, Array]  # scalars, each a mean over the batch, in nats unless its name says otherwise
Batch = dict[str, Array]  # "image" [B, ...], "index" [B] int32; optional "label", "condition", "weight"
Schedule = Callable[[Array], Array]  # an optax schedule: step -> value


class LossFn(Protocol):
    """An objective: where models and training meet."""

    def __call__(
        self, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey, step: Array
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        """Return the scalar loss, the new model state and the metrics."""
        ...


class Prepare(Protocol):
    """Turns stored examples into what a model sees, inside the compiled step."""

    def __call__(self, batch: Batch, *, key: PRNGKey) -> Batch:
        """Return the batch with floating images in [0, 1]."""
        ...


class LogWeightsFn(Protocol):
    """Importance weights log p(x, z) - log q(z | x), [S, B] nats, with z drawn from q."""

    def __call__(self, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey, num_samples: int) -> Array:
        """Return one log weight for each sample and example."""
        ...


class Feed(Protocol):
    """Hands the epoch program its examples: the same ones for the same steps, however they are asked for."""

    steps_per_epoch: int
    total_steps: int
    batch_size: int
    chunk: int  # n, the most steps of one call

    def __call__(self, start: int, count: int) -> tuple[Batch, Array]:
        """Return a source of examples and the rows [n, B] of it that steps `start` to `start + count` take.

        n is the same in every call and `count` at most n; rows past `count` hold -1. Where the source is split over
        devices, so is each row, and its numbers count within the device's part of the source.
        """
        ...


class Checkpointer(Protocol):
    """Where `fit` puts states that must survive it."""

    latest_step: int | None  # the newest checkpoint that is known to be sound

    def save(self, state: PyTree, *, value: float | None = None) -> None:
        """Save a state; the smallest finite `value` so far marks the best one."""
        ...

    def save_failed(self, state: PyTree) -> Path:
        """Save a state that stopped at a non-finite step, apart from the others."""
        ...

    def wait(self) -> None:
        """Return when everything saved so far is on disk; raise if a save failed."""
        ...
