"""Averages of the parameters over the steps: what is evaluated may be other than what is trained."""

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from optax.contrib import ScheduleFreeState, schedule_free_eval_params

from jaxvae.training.state import TrainState
from jaxvae.types import Array, PyTree


class AveragedState(NamedTuple):
    """What an optimiser made by `with_ema` keeps.

    Attributes:
      inner: the state of the optimiser that trains.
      average: of the parameters after each step, float32, biased towards zero as `optax.ema` keeps it.
      decay: of the average.
    """

    inner: PyTree
    average: optax.EmaState
    decay: Array


def with_ema(optimizer: optax.GradientTransformation, decay: float) -> optax.GradientTransformationExtraArgs:
    """The same optimiser, which also keeps an exponential moving average of the parameters after each step.

    average_n = (decay * average_(n-1) + (1 - decay) * params_n), divided by 1 - decay^n: the mean of the parameters so
    far, weighted by decay^age, in which the initial ones have no part. This is the temporal averaging of Kingma and Ba
    (2015, "Adam", section 7.2), as `optax.ema` computes it. The average is float32, moves with the step that moves the
    parameters, in the same program, and changes nothing of how they move. `evaluation_params` reads it.

    Every step counts, also those between the updates of an `optax.MultiSteps`.

    Raises:
      TypeError: the decay is no number.
      ValueError: it does not lie between 0 and 1; when first used: the optimiser is schedule-free, which averages
        already.
    """
    if isinstance(decay, bool) or not isinstance(decay, int | float | np.number):
        raise TypeError(f"ema must be a number between 0 and 1, such as 0.999, got {decay!r}")
    exact = float(np.float32(decay))  # in float32 1 - decay and decay would not sum to one: an average off by 1e-4
    if not 0 < exact < 1:
        raise ValueError(f"ema must lie between 0 and 1, such as 0.999, got {decay}")
    moving = optax.ema(exact, debias=False, accumulator_dtype=jnp.float32)

    def init(params: PyTree) -> AveragedState:
        inner = optimizer.init(params)
        if _found(inner, ScheduleFreeState):
            raise ValueError("the optimizer is schedule-free and averages its parameters already: leave ema out")
        return AveragedState(inner, moving.init(params), jnp.float32(exact))

    def update(
        grads: PyTree, state: AveragedState, params: PyTree = None, **extra: Any
    ) -> tuple[PyTree, AveragedState]:
        updates, inner = optimizer.update(grads, state.inner, params, **accepted(optimizer.update, extra))
        _, average = moving.update(optax.apply_updates(params, updates), state.average)
        return updates, AveragedState(inner, average, state.decay)

    return optax.GradientTransformationExtraArgs(init, update)


def evaluation_params(state: TrainState) -> PyTree:
    """The parameters to evaluate and to keep: an average where the optimiser has one, otherwise `state.params`.

    That of `with_ema`, or of `optax.contrib.schedule_free` (`schedule_free_eval_params`).

    Raises:
      ValueError: the optimiser averages, or is schedule-free for, a part of the parameters alone.
    """
    averaged, free = _found(state.opt_state, AveragedState), _found(state.opt_state, ScheduleFreeState)
    whole: Any = jax.tree.structure(state.params)
    if averaged:
        if jax.tree.structure(averaged[0].average.ema) != whole:
            raise ValueError(
                "the average is of a part of the parameters, as where with_ema is inside adversarial_optimizer or "
                "optax.partition: put it around the whole, with_ema(adversarial_optimizer(...), decay)"
            )
        return _debiased(averaged[0], state.params)
    if free:
        if jax.tree.structure(free[0].z) != whole:
            raise ValueError("schedule_free must train all parameters, and this one trains a part of them")
        return schedule_free_eval_params(free[0], state.params)
    return state.params


def _debiased(averaged: AveragedState, params: PyTree) -> PyTree:
    """The average, or the parameters themselves where there was no step."""
    count = averaged.average.count
    weight = jnp.where(count > 0, -jnp.expm1(count * jnp.log(averaged.decay)), 1)  # 1 - decay^count
    return jax.tree.map(lambda p, a: jnp.where(count > 0, a / weight, p).astype(p.dtype), params, averaged.average.ema)


def accepted(update: Callable[..., Any], extra: dict[str, Any]) -> dict[str, Any]:
    """Those of the extra arguments that an optimiser's `update` takes."""
    wanted = inspect.signature(update).parameters
    if any(one.kind is inspect.Parameter.VAR_KEYWORD for one in wanted.values()):
        return extra
    return {name: value for name, value in extra.items() if name in wanted}


def _found(opt_state: PyTree, kind: type[Any]) -> list[Any]:
    """The states of a kind within that of an optimiser."""
    leaves = jax.tree.leaves(opt_state, is_leaf=lambda leaf: isinstance(leaf, kind))
    return [leaf for leaf in leaves if isinstance(leaf, kind)]
