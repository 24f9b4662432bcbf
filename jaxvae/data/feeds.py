"""Feeds: what hands the epoch program its examples, and all of a set to an evaluation."""

import math
import mmap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxvae._checks import at_least
from jaxvae.data.dataset import Dataset, per_example
from jaxvae.data.order import Order
from jaxvae.types import Array, Batch

READERS = 8  # threads that read a memory map
RESIDENT_STEPS = 1000  # of a chunk, where nothing else is said
STREAMED_BYTES = 64 * 2**20  # what a chunk holds, where nothing else is said
STREAM_ABOVE_BYTES = 2**30  # larger sets stay on the host, where nothing else is said


class Resident:
    """A `Feed` that puts the whole set on the device once; a call sends only the indices to take.

    `chunk` is the most steps of one call, 1000 unless given. For the devices of a mesh, pass `replicated(mesh)`.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Order,
        *,
        chunk: int | None = None,
        device: jax.Device | NamedSharding | None = None,
    ) -> None:
        _check_order(dataset, order)
        self.steps_per_epoch, self.total_steps = order.steps_per_epoch, order.total_steps
        self.batch_size = order.batch_size
        self.chunk = min(order.total_steps, RESIDENT_STEPS) if chunk is None else chunk
        at_least(1, chunk=self.chunk)
        self.chunk = int(self.chunk)  # an int8 would overflow
        self._order, self._device = order, device
        self._source: Batch = _put(per_example(dataset), device)

    def __call__(self, start: int, count: int) -> tuple[Batch, Array]:
        """Return the set, and the indices in it of `count` steps: `[chunk, B]` int32, -1 past `count`."""
        indices = np.full((self.chunk, self.batch_size), -1, np.int32)
        indices[:count] = self._order.indices(start, count)
        return self._source, _put(indices, self._device)


class Streamed:
    """A `Feed` for sets larger than the device: a call sends the examples of `chunk` steps, and no others.

    The host's memory holds those examples too; x itself may be a memory map larger than it. `chunk` is the most steps
    of one call: unless given, as many as fit 64 MiB.

    For the devices of a mesh, pass `split(mesh)`: each gets its share of every step, and a process reads only what its
    own devices get.
    """

    def __init__(
        self,
        dataset: Dataset,
        order: Order,
        *,
        chunk: int | None = None,
        device: jax.Device | NamedSharding | None = None,
    ) -> None:
        _check_order(dataset, order)
        self.steps_per_epoch, self.total_steps = order.steps_per_epoch, order.total_steps
        self.batch_size = order.batch_size
        self._arrays = per_example(dataset)
        size = sum(values.itemsize * math.prod(values.shape[1:]) for values in self._arrays.values())
        steps = STREAMED_BYTES // (order.batch_size * size)
        self.chunk = min(order.total_steps, max(1, steps)) if chunk is None else chunk
        at_least(1, chunk=self.chunk)
        self.chunk = int(self.chunk)  # an int8 would overflow
        self._order, self._device = order, device
        self._share = order.batch_size
        if isinstance(device, NamedSharding):
            self._share = device.shard_shape((order.batch_size,))[0]
        for values in self._arrays.values():
            file: Any = values.base
            if isinstance(file, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):
                file.madvise(mmap.MADV_RANDOM)  # read no neighbours: much faster from a cold disk

    def __call__(self, start: int, count: int) -> tuple[Batch, Array]:
        """Return the examples of `count` steps, and their indices: `[chunk, B]` int32, -1 past `count`."""
        steps = np.zeros((self.chunk, self.batch_size), np.int32)  # one shape for every call
        steps[:count] = self._order.indices(start, count)
        # All that one device takes lies together, its share of each step in turn.
        taken = steps.reshape(self.chunk, -1, self._share).swapaxes(0, 1).ravel()
        indices = np.arange(self.chunk * self._share, dtype=np.int32).reshape(self.chunk, self._share)
        indices = np.tile(indices, self.batch_size // self._share)
        indices[count:] = -1
        source = {name: self._put(taken, _reader(values)) for name, values in self._arrays.items()}
        return source, _put(indices, self._device)

    def _put(self, taken: np.ndarray, read: Callable[[np.ndarray], np.ndarray]) -> Array:
        """What `read` gives for the examples that are taken; in a mesh, for those of this process's devices alone."""
        if not isinstance(self._device, NamedSharding):
            return jax.device_put(read(taken), self._device)

        def read_share(index: Any) -> np.ndarray:
            return read(taken[index[0]])

        shape = (len(taken), *read(taken[:0]).shape[1:])
        return jax.make_array_from_callback(shape, self._device, read_share)


def evaluation_feed(dataset: Dataset, batch_size: int) -> tuple[Batch, Array]:
    """All examples in order: the set on the device, and its indices `[n, B]`, padded with -1 (weight 0).

    Raises:
      TypeError: the batch is not an integer.
      ValueError: there are no examples, or the batch is below 1.
    """
    at_least(1, batch_size=batch_size)
    if not len(dataset):
        raise ValueError(f"{dataset.name!r} has no examples")
    batch_size = int(batch_size)  # an int8 would overflow
    indices = np.arange(-(-len(dataset) // batch_size) * batch_size, dtype=np.int32)
    indices[len(dataset) :] = -1
    return jax.device_put((per_example(dataset), indices.reshape(-1, batch_size)))


def _reader(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The function from indices to these examples, by several threads where an example has many numbers."""

    def read(taken: np.ndarray) -> np.ndarray:
        with ThreadPoolExecutor(READERS) as pool:  # much faster from a cold disk, no slower from memory
            return np.concatenate(list(pool.map(values.__getitem__, np.array_split(taken, READERS))))

    return read if values.ndim > 1 else values.__getitem__


def _put(tree: Any, device: jax.Device | NamedSharding | None) -> Any:
    """On the device, or whole on every device of a mesh, in whichever process."""
    if not isinstance(device, NamedSharding):
        return jax.device_put(tree, device)
    everywhere = NamedSharding(device.mesh, PartitionSpec())
    return jax.tree.map(lambda values: jax.make_array_from_process_local_data(everywhere, values), tree)


def _check_order(dataset: Dataset, order: Order) -> None:
    if order.num_examples != len(dataset):
        raise ValueError(f"the order is for {order.num_examples} examples, {dataset.name!r} has {len(dataset)}")
