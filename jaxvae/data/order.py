"""Which examples each training step takes."""

import functools
from dataclasses import dataclass

import numpy as np

from jaxvae._checks import at_least
from jaxvae.keys import check_seed


@dataclass(frozen=True)
class Order:
    """Which examples each training step takes: every epoch a new permutation, its tail dropped.

    The permutation depends on the pair (seed, epoch) only, so a run resumes at any step, and epoch 1 of one seed is not
    epoch 0 of the next.

    Raises:
      TypeError: a number of examples or epochs, a batch, or a seed, that is not an integer.
      ValueError: a batch larger than the split, one of these below 1, a seed outside 0 .. 2**32 - 1.
    """

    num_examples: int
    batch_size: int
    epochs: int
    seed: int

    def __post_init__(self) -> None:
        at_least(1, num_examples=self.num_examples, batch_size=self.batch_size)
        if self.batch_size > self.num_examples:
            raise ValueError(f"a batch of {self.batch_size} is larger than the split of {self.num_examples} examples")
        at_least(1, epochs=self.epochs)
        check_seed(self.seed)
        for name in ("num_examples", "batch_size", "epochs", "seed"):  # an int8 would overflow in the products below
            object.__setattr__(self, name, int(getattr(self, name)))

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in the split."""
        return self.num_examples // self.batch_size

    @property
    def total_steps(self) -> int:
        """Steps in the whole run."""
        return self.epochs * self.steps_per_epoch

    def indices(self, start: int, count: int) -> np.ndarray:
        """The examples of steps `start` to `start + count`, `[count, B]` int32. May cross epochs."""
        at_least(0, start=start, count=count)
        indices = np.empty((count, self.batch_size), np.int32)
        for i in range(count):
            epoch, step = divmod(start + i, self.steps_per_epoch)
            first = step * self.batch_size
            indices[i] = _permutation(self.seed, epoch, self.num_examples)[first : first + self.batch_size]
        return indices


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    permutation = np.random.default_rng((seed, epoch)).permutation(num_examples).astype(np.int32)
    permutation.flags.writeable = False  # it is shared
    return permutation
