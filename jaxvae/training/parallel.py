"""The step, compiled: for one device or many, by `jit`, `shard_map` or `pmap`. All three reach the same parameters."""

from dataclasses import dataclass
from typing import Any

import jax
import optax
from jax.sharding import Mesh, PartitionSpec

from jaxvae.training.mesh import data_mesh, replicated, split
from jaxvae.training.state import TrainState
from jaxvae.training.step import TrainStep, check_not_empty, make_train_step
from jaxvae.types import Batch, LossFn, Metrics, Prepare


def shard_batch(batch: Batch, mesh: Mesh) -> Batch:
    """Put a host batch on the mesh, split along axis 0, which must be a multiple of the device count."""
    _check_divides(batch, mesh)
    return jax.device_put(batch, split(mesh))


def jit_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Prepare | None = None,
    mesh: Mesh | None = None,
    skip_above: float | None = None,
) -> TrainStep:
    """`make_train_step` under `jax.jit`, the state donated.

    With a mesh the batch is split over its devices and the state is on each of them. The code is the one-device
    code and so is the noise: the parameters agree with one device's to rounding.

    Raises:
      ValueError: when called: B is not a multiple of the devices.
    """
    train_step = make_train_step(loss_fn, optimizer, prepare=prepare, skip_above=skip_above)
    if mesh is None:
        return jax.jit(train_step, donate_argnums=0)
    everywhere = replicated(mesh)
    program = jax.jit(
        train_step, in_shardings=(everywhere, split(mesh)), out_shardings=(everywhere, everywhere), donate_argnums=0
    )
    return _OverMesh(program, mesh)


def shard_map_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Prepare | None = None,
    mesh: Mesh | None = None,
    skip_above: float | None = None,
) -> TrainStep:
    """`make_train_step` under `jax.shard_map`: each device runs the step on its share of the batch, then they average.

    As `jit_train_step`, but nothing is left to the partitioner. For objectives that are means over examples.

    Raises:
      ValueError: when called: the objective needs the whole batch, or B is not a multiple of the devices.
    """
    mesh = data_mesh() if mesh is None else mesh
    body = make_train_step(loss_fn, optimizer, prepare=prepare, axis_name="data", skip_above=skip_above)
    everywhere, share = PartitionSpec(), PartitionSpec("data")
    sharded = jax.shard_map(body, mesh=mesh, in_specs=(everywhere, share), out_specs=(everywhere, everywhere))
    return _OverMesh(jax.jit(sharded, donate_argnums=0), mesh)


def pmap_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Prepare | None = None,
    mesh: Mesh | None = None,
    skip_above: float | None = None,
) -> TrainStep:
    """`make_train_step` under `jax.pmap`, which JAX keeps working and no longer develops; prefer `jit_train_step`.

    Takes the same state and host batches [B, ...] as the others: the state is not stacked. For objectives that are
    means over examples.

    Raises:
      ValueError: when called: the objective needs the whole batch, or B is not a multiple of the devices.
    """
    mesh = data_mesh() if mesh is None else mesh
    body = make_train_step(loss_fn, optimizer, prepare=prepare, axis_name="data", skip_above=skip_above)
    compiled = jax.pmap(
        body, axis_name="data", in_axes=(None, 0), out_axes=(None, None), devices=list(mesh.devices.ravel())
    )

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        _check_divides(batch, mesh)
        by_device = jax.tree.map(lambda values: values.reshape(mesh.size, -1, *values.shape[1:]), batch)
        return compiled(state, by_device)

    return train_step


@dataclass(frozen=True, eq=False)
class _OverMesh:
    """A compiled step that first sees whether the devices can share the batch."""

    program: Any
    mesh: Mesh

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Take one step."""
        _check_divides(batch, self.mesh)
        return self.program(state, batch)

    def lower(self, state: TrainState, batch: Batch) -> jax.stages.Lowered:
        """The program for arguments like these, as `jax.jit` gives it."""
        return self.program.lower(state, batch)


def _check_divides(batch: Batch, mesh: Mesh) -> None:
    check_not_empty(batch)
    for path, values in jax.tree_util.tree_leaves_with_path(batch):
        if len(values) % mesh.size:
            name = jax.tree_util.keystr(path)
            raise ValueError(f"batch{name} has {len(values)} examples, not a multiple of the {mesh.size} devices")
