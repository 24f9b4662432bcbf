"""Many steps as one compiled program over data that is already on the device."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from jaxvae.training.mesh import replicated
from jaxvae.training.state import TrainState
from jaxvae.training.step import TrainStep
from jaxvae.types import Array, Batch, Metrics, PRNGKey

TrainEpoch = Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]
Evaluate = Callable[..., Metrics]


def make_train_epoch(train_step: TrainStep, *, mesh: Mesh | None = None) -> TrainEpoch:
    """Return `(state, source, indices) -> (state, metrics)`: one step for each row of `indices`, in one program.

    `source` holds arrays [N, ...] on the device, `indices` [n, B] the examples of each step, and the metrics come
    back as [n]. Rows of -1 at the end are not run and their metrics are zero, so that chunks of any length up to n
    share one compilation. The state is donated: use the returned one.

    On CPU a stock convolution's gradient runs many times slower inside a loop than outside it (`python -m
    benchmarks.convolution`). Where the lowered program holds one, the steps run one by one instead;
    `jaxvae.convolution` needs no such help.

    Over a mesh (`jaxvae.data_mesh`) each device takes its share of every batch from what it has of the source: the
    whole of it (`Resident(..., device=replicated(mesh))`), or its part (`Streamed(..., device=split(mesh))`), in which
    the indices then count. The noise and, to rounding, the parameters are those of one device.
    """
    train_step = jax.jit(train_step)  # traced once for the metrics' shapes and the loop; the compiler sees through it

    def take(source: Batch, rows: Array) -> Batch:
        return {name: values[rows] for name, values in source.items()}

    def batch_of(source: Batch, rows: Array, source_spec: PartitionSpec) -> Batch:
        if mesh is None:
            return take(source, rows)
        share = PartitionSpec("data")
        return jax.shard_map(take, mesh=mesh, in_specs=(source_spec, share), out_specs=share)(source, rows)

    def epoch(
        state: TrainState, source: Batch, indices: Array, source_spec: PartitionSpec
    ) -> tuple[TrainState, Metrics]:
        def body(i: Array, carry: tuple[TrainState, Metrics]) -> tuple[TrainState, Metrics]:
            state, metrics = carry
            state, new = train_step(state, batch_of(source, indices[i], source_spec))
            return state, jax.tree.map(lambda all_, one: all_.at[i].set(one), metrics, new)

        one = jax.eval_shape(lambda: train_step(state, batch_of(source, indices[0], source_spec))[1])
        metrics = jax.tree.map(lambda m: jnp.zeros((indices.shape[0], *m.shape), m.dtype), one)
        return jax.lax.fori_loop(0, _num_rows(indices), body, (state, metrics))

    options: dict[str, Any] = {"donate_argnums": 0, "static_argnames": "source_spec"}
    if mesh is not None:
        options["out_shardings"] = replicated(mesh)

    @partial(jax.jit, **options)
    def single(
        state: TrainState, source: Batch, indices: Array, i: Array, source_spec: PartitionSpec
    ) -> tuple[TrainState, Metrics]:
        return train_step(state, batch_of(source, indices[i], source_spec))

    def step_by_step(
        state: TrainState, source: Batch, indices: Array, source_spec: PartitionSpec
    ) -> tuple[TrainState, Metrics]:
        taken = []
        for i in range(int(_num_rows(indices))):
            state, metrics = single(state, source, indices, jnp.int32(i), source_spec)
            taken.append(metrics)
        padding = indices.shape[0] - len(taken)
        return state, jax.tree.map(lambda *m: jnp.pad(jnp.stack(m), (0, padding)), *taken)

    compiled = jax.jit(epoch, **options)
    slow_in_a_loop: dict[object, bool] = {}

    def train_epoch(state: TrainState, source: Batch, indices: Array) -> tuple[TrainState, Metrics]:
        whole = mesh is None or next(iter(source.values())).sharding.is_fully_replicated
        source_spec = PartitionSpec() if whole else PartitionSpec("data")
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((state, indices))):
            return epoch(state, source, indices, source_spec)  # a caller's own transformation: vmap over states
        shapes = jax.tree.structure((state, source)), indices.shape
        if shapes not in slow_in_a_loop:
            on_cpu = jax.default_backend() == "cpu"
            lowered = compiled.lower(state, source, indices, source_spec) if on_cpu else None
            slow_in_a_loop[shapes] = lowered is not None and "stablehlo.convolution" in lowered.as_text()
        return (step_by_step if slow_in_a_loop[shapes] else compiled)(state, source, indices, source_spec)

    return train_epoch


def make_evaluate(eval_step: Callable[..., tuple[Metrics, Array]]) -> Evaluate:
    """Return `(state, source, indices, *, key) -> metrics`: means over a whole data set, in one program.

    Every index >= 0 in `indices` [n, B] counts once; -1 is padding and weighs nothing.
    """

    @jax.jit
    def evaluate(state: TrainState, source: Batch, indices: Array, *, key: PRNGKey) -> Metrics:
        def body(carry: None, rows: Array) -> tuple[None, tuple[Metrics, Array]]:
            batch = {name: values[rows] for name, values in source.items()}
            batch["weight"] = (rows >= 0).astype(jnp.float32)
            return carry, eval_step(state.params, state.model_state, batch, key=key, step=state.step)

        sums, weight = jax.lax.scan(body, None, indices)[1]
        return {name: values.sum() / weight.sum() for name, values in sums.items()}

    return evaluate


def _num_rows(indices: Array) -> Array:
    return (indices[:, 0] >= 0).sum(dtype=jnp.int32)
