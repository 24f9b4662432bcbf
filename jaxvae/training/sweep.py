"""Many runs as one compiled program: its members differ in their key and in numbers such as β, and share their data.

The numbers are traced, so no member and no later sweep compiles again.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxvae.keys import check_key
from jaxvae.training.epoch import TrainEpoch, check_indices, check_steps, in_place, num_steps, run_steps, take
from jaxvae.training.state import TrainState, init_train_state
from jaxvae.training.step import TrainStep
from jaxvae.types import Array, Batch, Metrics, PRNGKey, PyTree

How = Literal["vmap", "map"]
Numbers = dict[str, Array]


class SweepState(struct.PyTreeNode):
    """The states of M runs; `fit` and `jaxvae.checkpoint` take it as they take a `TrainState`.

    Attributes:
      step: steps taken by every member that did not stop, int32.
      members: a `TrainState` whose leaves have a leading axis of M.
      numbers: what the members differ in, each [M].
      first_bad: -1 as long as a member goes on; then the step at which the last one stopped, which was not finite.
        `members.first_bad` [M] has each member's own.
    """

    step: Array
    members: TrainState
    numbers: Numbers
    first_bad: Array


def init_sweep_state(
    init_fn: Callable[..., tuple[PyTree, PyTree]],
    optimizer: optax.GradientTransformation,
    numbers: Numbers,
    *,
    keys: PRNGKey,
) -> SweepState:
    """Make the state before step 0; member m is what `init_train_state(init_fn, optimizer, key=keys[m])` makes.

    Args:
      init_fn: `init_fn(key=)` -> (params, model_state).
      optimizer: its state must not depend on the numbers, as Adam's does not on its rate.
      numbers: for example {"beta": [M], "learning_rate": [M]}; kept as float32.
      keys: [M] typed keys, from `jax.vmap(jax.random.key)(seeds)`. Members with equal keys start alike and draw alike.

    Raises:
      TypeError: the keys are not threefry keys.
      ValueError: the numbers and the keys are not all [M], or the parameters hold no floating array.
    """
    check_key(keys)
    numbers = {name: jnp.asarray(values, jnp.float32) for name, values in numbers.items()}
    for name, values in {**numbers, "keys": keys}.items():
        if values.ndim != 1 or values.shape != keys.shape:
            raise ValueError(f"{name} must be [M], one for each of {len(keys)} members, got {values.shape}")
    members = jax.vmap(lambda key: init_train_state(init_fn, optimizer, key=key))(keys)
    return SweepState(jnp.zeros((), jnp.int32), members, numbers, jnp.full((), -1, jnp.int32))


def make_sweep_epoch(make_step: Callable[[dict[str, Any]], TrainStep], *, how: How = "vmap") -> TrainEpoch:
    """Return `(state, source, indices) -> (state, metrics [n, M])`: `make_train_epoch` for a `SweepState`.

    Args:
      make_step: a member's numbers, traced scalars -> its step, such as
        `lambda n: make_train_step(partial(vae_loss, model, beta=n["beta"]), optax.adam(n["learning_rate"]))`.
      how: "vmap" runs all members side by side, which fills a GPU; "map" one after the other, chunk by chunk, which a
        CPU prefers (`python -m benchmarks.sweep`). The results agree to rounding.

    A member whose loss, gradient or update is not finite stands still; the others go on.
    """
    if how not in get_args(How):
        raise ValueError(f"how must be 'vmap' or 'map', got {how!r}")

    def side_by_side(state: SweepState, source: Batch, indices: Array) -> tuple[TrainState, Metrics]:
        def step(members: TrainState, batch: Batch, *, until: Array, checked: Array) -> tuple[TrainState, Metrics]:
            def one(member: TrainState, numbers: Numbers, until: Array) -> tuple[TrainState, Metrics]:
                return in_place(make_step(numbers))(member, batch, until=until, checked=checked)

            return jax.vmap(one)(members, state.numbers, until)

        return run_steps(step, state.members, partial(take, source), indices)

    def one_after_the_other(state: SweepState, source: Batch, indices: Array) -> tuple[TrainState, Metrics]:
        def one(arguments: tuple[TrainState, Numbers]) -> tuple[TrainState, Metrics]:
            member, numbers = arguments
            return run_steps(in_place(make_step(numbers)), member, partial(take, source), indices)

        members, metrics = jax.lax.map(one, (state.members, state.numbers))
        return members, jax.tree.map(jnp.transpose, metrics)

    @jax.jit(donate_argnums=0)
    def program(state: SweepState, source: Batch, indices: Array) -> tuple[SweepState, Metrics]:
        run = side_by_side if how == "vmap" else one_after_the_other
        members, metrics = run(state, source, indices)
        bad = members.first_bad
        stopped = jnp.where((bad >= 0).all(), bad.max(), -1)
        return state.replace(step=state.step + num_steps(indices), members=members, first_bad=stopped), metrics

    def epoch(state: Any, source: Batch, indices: Array) -> tuple[Any, Metrics]:
        check_indices(source, indices)
        check_steps(source, indices)
        return program(state, source, indices)

    return epoch


def map_members(function: Callable[[Any], Any], members: PyTree, *, how: How = "vmap") -> Any:
    """`function` of each member of a pytree of leaves [M, ...]; what it returns gets a leading axis of M."""
    if how not in get_args(How):
        raise ValueError(f"how must be 'vmap' or 'map', got {how!r}")
    return jax.vmap(function)(members) if how == "vmap" else jax.lax.map(function, members)
