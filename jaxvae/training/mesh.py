"""Many devices as one mesh with one axis, over which batches are split and states are copied."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxvae.types import PyTree


def data_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh over the first `num_devices` devices of every process (all of them unless given) with one axis, "data"."""
    available = jax.local_device_count()
    num_devices = available if num_devices is None else num_devices
    if not 1 <= num_devices <= available:
        raise ValueError(f"num_devices must lie in 1 .. {available}, got {num_devices}")
    devices = [jax.local_devices(process_index=p)[:num_devices] for p in range(jax.process_count())]
    return Mesh(np.concatenate(devices), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device: states, and whole data sets."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Axis 0 divided among the devices: batches."""
    return NamedSharding(mesh, PartitionSpec("data"))


def everywhere(tree: PyTree, mesh: Mesh) -> PyTree:
    """A copy on every device of a tree that is the same in every process."""
    sharding = replicated(mesh)
    return jax.tree.map(lambda leaf: jax.make_array_from_callback(leaf.shape, sharding, lambda _: leaf), tree)


def local(tree: PyTree) -> PyTree:
    """The copy of such a tree on this process's first device: what a process looks at by itself."""
    return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)
