"""The step, compiled."""

import jax
import numpy as np
import optax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxvae.training.step import TrainStep, make_train_step
from jaxvae.types import Batch, LossFn, Prepare


def data_mesh(num_devices: int | None = None) -> Mesh:
    """A mesh over the first `num_devices` devices (all of them unless given) with one axis, "data"."""
    devices = jax.devices()
    num_devices = len(devices) if num_devices is None else num_devices
    if not 1 <= num_devices <= len(devices):
        raise ValueError(f"num_devices must lie in 1 .. {len(devices)}, got {num_devices}")
    return Mesh(np.array(devices[:num_devices]), ("data",), axis_types=(AxisType.Auto,))


def shard_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Put a host batch on the mesh, split along axis 0, which must be a multiple of the device count."""
    for name, values in batch.items():
        if len(values) % mesh.size:
            raise ValueError(f"batch[{name!r}] has {len(values)} rows, not a multiple of the {mesh.size} devices")
    return jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))


def jit_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Prepare | None = None,
    mesh: Mesh | None = None,
) -> TrainStep:
    """`make_train_step` under `jax.jit`, the state donated.

    With a mesh the batch is split over its devices and the state is on each of them. The code is the one-device
    code and so is the noise: the parameters agree with one device's to rounding.
    """
    train_step = make_train_step(loss_fn, optimizer, prepare=prepare)
    if mesh is None:
        return jax.jit(train_step, donate_argnums=0)
    everywhere = NamedSharding(mesh, PartitionSpec())
    split = NamedSharding(mesh, PartitionSpec("data"))
    return jax.jit(
        train_step,
        in_shardings=(everywhere, split),
        out_shardings=(everywhere, everywhere),
        donate_argnums=0,
    )
