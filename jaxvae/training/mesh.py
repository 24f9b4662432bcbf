"""Many devices as one mesh with one axis, over which batches are split and states are copied."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def data_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh over the first `num_devices` devices (all of them unless given) with one axis, "data"."""
    devices = jax.devices()
    num_devices = len(devices) if num_devices is None else num_devices
    if not 1 <= num_devices <= len(devices):
        raise ValueError(f"num_devices must lie in 1 .. {len(devices)}, got {num_devices}")
    return Mesh(np.array(devices[:num_devices]), ("data",), axis_types=(AxisType.Auto,))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device: states, and sets of images."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Axis 0 divided among the devices: batches."""
    return NamedSharding(mesh, PartitionSpec("data"))
