"""Many steps as one compiled program over data that is already on the device."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from jaxvae.training._pickle import PicklesByParts
from jaxvae.training.mesh import replicated
from jaxvae.training.state import TrainState
from jaxvae.training.step import NEVER, EvalStep, TrainStep, check_not_empty, is_finite, overflowed
from jaxvae.types import Array, Batch, Metrics, PRNGKey

TrainEpoch = Callable[[TrainState, Batch, Array], tuple[TrainState, Metrics]]
Evaluate = Callable[..., Metrics]
StepInPlace = Callable[..., tuple[TrainState, Metrics]]  # (state, batch, *, until, checked)


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

    Raises:
      ValueError: when called: there are no examples, the batch is not a multiple of the devices, or, unless traced, an
        index is outside the source or padding elsewhere than in whole rows at the end.
    """
    return _TrainEpoch(train_step, mesh)


def make_evaluate(eval_step: EvalStep) -> Evaluate:
    """Return `(state, source, indices, *, key) -> metrics`: means over a whole data set, in one program.

    Every index >= 0 in `indices` [n, B] counts once; -1 is padding and weighs nothing.

    Raises:
      ValueError: when called: there are no examples, or all indices are padding, or one is outside the source.
    """
    return _Evaluate(eval_step)


def in_place(train_step: TrainStep) -> StepInPlace:
    """A step that need not keep the old state (`make_train_step` says more), or one of yours, as it is."""
    return getattr(train_step, "in_place", lambda state, batch, *, until, checked: train_step(state, batch))


def run_steps(
    step: StepInPlace, state: TrainState, batch_of: Callable[[Array], Batch], indices: Array
) -> tuple[TrainState, Metrics]:
    """The steps of all rows of `indices` that are not -1, in a loop; the state may be of many members, [M].

    Steps write over the state that they read, and whether the parameters are finite is found out once, at the end: one
    that is not stays so. A step that should not have been taken is found by taking all of them again from the
    beginning, which gives the same bits, with that check after each; then they are taken up to the one before it. As
    long as every step is good this costs nothing.
    """
    step = jax.jit(step)  # traced once for the metrics' shapes and the loop; the compiler sees through it
    never = jnp.full(state.first_bad.shape, NEVER, jnp.int32)
    count = num_steps(indices)
    one = jax.eval_shape(lambda: step(state, batch_of(indices[0]), until=never, checked=jnp.bool_(False))[1])
    empty = jax.tree.map(lambda m: jnp.zeros((indices.shape[0], *m.shape), m.dtype), one)

    def attempt(carry: _Attempt) -> _Attempt:
        def body(inner: tuple[Array, TrainState, Metrics]) -> tuple[Array, TrainState, Metrics]:
            i, ran, metrics = inner
            ran, new = step(ran, batch_of(indices[i]), until=carry.until, checked=carry.checked)
            return i + 1, ran, jax.tree.map(lambda all_, one: all_.at[i].set(one), metrics, new)

        def goes_on(inner: tuple[Array, TrainState, Metrics]) -> Array:
            return (inner[0] < count) & ~overflowed(inner[1]).any()

        _, ran, metrics = jax.lax.while_loop(goes_on, body, (jnp.int32(0), state, empty))
        past = overflowed(ran)
        again = past.any() | ~(carry.checked | is_finite(ran.params))
        return _Attempt(again, jnp.bool_(True), jnp.where(past, ran.first_bad, carry.until), ran, metrics)

    start = _Attempt(jnp.bool_(True), jnp.bool_(False), never, state, empty)
    last = jax.lax.while_loop(lambda carry: carry.again, attempt, start)
    return last.state, last.metrics


class _Attempt(NamedTuple):
    """Steps taken from the beginning.

    Attributes:
      again: whether they must be taken once more.
      checked: whether the parameters are looked at after each step.
      until: the step that counts as bad, [] or [M].
    """

    again: Array
    checked: Array
    until: Array
    state: TrainState
    metrics: Metrics


@dataclass(frozen=True, eq=False)
class _TrainEpoch(PicklesByParts):
    train_step: TrainStep
    mesh: Mesh | None = None
    _slow_on_cpu: dict[object, bool] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, state: TrainState, source: Batch, indices: Array) -> tuple[TrainState, Metrics]:
        """Take the steps, in one program, or one by one where that is faster."""
        whole = self.mesh is None or next(iter(source.values())).sharding.is_fully_replicated
        self._check(source, indices, 1 if self.mesh is None or whole else self.mesh.size)
        source_spec = PartitionSpec() if whole else PartitionSpec("data")
        arguments = state, source, indices
        if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves((state, indices))):
            return self.epoch(*arguments, source_spec)  # a caller's own transformation: vmap over states
        if self._has_stock_convolution(*arguments, source_spec) and int(num_steps(indices)):
            return self._one_by_one(*arguments, source_spec)
        return self._program(*arguments, source_spec)

    @cached_property
    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {"donate_argnums": 0, "static_argnames": "source_spec"}
        if self.mesh is not None:
            options["out_shardings"] = replicated(self.mesh)
        return options

    @cached_property
    def _program(self) -> Any:
        return jax.jit(self.epoch, **self._options)

    @cached_property
    def _one_step(self) -> Any:
        return jax.jit(self._run_one, **self._options)

    def epoch(
        self, state: TrainState, source: Batch, indices: Array, source_spec: PartitionSpec
    ) -> tuple[TrainState, Metrics]:
        batch_of = lambda row: self._batch_of(source, row, source_spec)  # noqa: E731
        return run_steps(in_place(self.train_step), state, batch_of, indices)

    def _run_one(
        self, state: TrainState, source: Batch, indices: Array, i: Array, source_spec: PartitionSpec
    ) -> tuple[TrainState, Metrics]:
        step = getattr(self.train_step, "undoing", self.train_step)
        return step(state, self._batch_of(source, indices[i], source_spec))

    def _one_by_one(
        self, state: TrainState, source: Batch, indices: Array, source_spec: PartitionSpec
    ) -> tuple[TrainState, Metrics]:
        taken = []
        for i in range(int(num_steps(indices))):
            state, metrics = self._one_step(state, source, indices, jnp.int32(i), source_spec)
            taken.append(metrics)
        padding = indices.shape[0] - len(taken)
        return state, jax.tree.map(lambda *m: jnp.pad(jnp.stack(m), (0, padding)), *taken)

    def _batch_of(self, source: Batch, row: Array, source_spec: PartitionSpec) -> Batch:
        """The examples of one row of indices, each device's share taken by itself."""
        if self.mesh is None:
            return take(source, row)
        share = PartitionSpec("data")
        return jax.shard_map(take, mesh=self.mesh, in_specs=(source_spec, share), out_specs=share)(source, row)

    def _has_stock_convolution(
        self, state: TrainState, source: Batch, indices: Array, source_spec: PartitionSpec
    ) -> bool:
        """Whether the program holds a convolution whose gradient CPUs take long for in a loop; found out once."""
        if jax.default_backend() != "cpu":
            return False
        shapes = jax.tree.structure((state, source)), indices.shape
        if shapes not in self._slow_on_cpu:
            lowered = self._program.lower(state, source, indices, source_spec)
            self._slow_on_cpu[shapes] = "stablehlo.convolution" in lowered.as_text()
        return self._slow_on_cpu[shapes]

    def _check(self, source: Batch, indices: Array, parts: int) -> None:
        check_indices(source, indices)
        check_steps(source, indices, parts)
        if self.mesh is not None and indices.shape[1] % self.mesh.size:
            raise ValueError(
                f"a batch of {indices.shape[1]} examples is not a multiple of the {self.mesh.size} devices"
            )


@dataclass(frozen=True, eq=False)
class _Evaluate(PicklesByParts):
    eval_step: EvalStep

    def __call__(self, state: TrainState, source: Batch, indices: Array, *, key: PRNGKey) -> Metrics:
        """Return the means over all examples."""
        check_indices(source, indices)
        known = _known(source, indices)
        if known is not None and not (known >= 0).any():
            raise ValueError("indices are all -1, padding: there are no examples to average over")
        return self._program(state, source, indices, key=key)

    @cached_property
    def _program(self) -> Any:
        return jax.jit(self.evaluate)

    def evaluate(self, state: TrainState, source: Batch, indices: Array, *, key: PRNGKey) -> Metrics:
        def body(carry: None, row: Array) -> tuple[None, tuple[Metrics, Array]]:
            batch = take(source, row)
            batch["weight"] = (row >= 0).astype(jnp.float32)
            return carry, self.eval_step(state.params, state.model_state, batch, key=key, step=state.step)

        sums, weight = jax.lax.scan(body, None, indices)[1]
        return {name: values.sum() / weight.sum() for name, values in sums.items()}


def check_indices(source: Batch, indices: Array) -> None:
    """Raise `ValueError` unless there are examples, and indices [n, B] of them."""
    check_not_empty(source)
    if jnp.ndim(indices) != 2 or not indices.size:
        raise ValueError(f"indices must be [steps, batch], at least one of each, got {jnp.shape(indices)}")


def check_steps(source: Batch, indices: Array, parts: int = 1) -> None:
    """Raise `ValueError` unless each row of indices is a step or, at the end, padding; traced ones are not looked at.

    A source in `parts` is one in which the indices count within a device's part.
    """
    known = _known(source, indices, parts)
    if known is None:
        return
    real = known >= 0
    taken = np.asarray(real.all(axis=1))
    odd = (real != taken[:, None]).any(axis=1) | np.append(False, taken[1:] > taken[:-1])
    if odd.any():
        raise ValueError(
            f"-1 is padding of whole rows at the end, and row {int(odd.argmax())} of indices {known.shape} is neither "
            "that nor a whole batch: a step would take the source's last example for each -1"
        )


def _known(source: Batch, indices: Array, parts: int = 1) -> np.ndarray | None:
    """The indices on the host, within the source; None where they are traced or another process has some of them."""
    if isinstance(indices, jax.core.Tracer) or not getattr(indices, "is_fully_addressable", True):
        return None
    known, count = np.asarray(indices), min(map(len, source.values())) // parts
    if known.min() < -1 or known.max() >= count:
        raise ValueError(
            f"indices must lie in 0 .. {count - 1}, or be -1 for padding, got {known.min()} to {known.max()}"
        )
    return known


def take(source: Batch, row: Array) -> Batch:
    """The examples at a row of indices."""
    return {name: values[row] for name, values in source.items()}


def num_steps(indices: Array) -> Array:
    """How many rows are not padding."""
    return (indices[:, 0] >= 0).sum(dtype=jnp.int32)
