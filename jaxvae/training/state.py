"""Everything a run needs to go on: one pytree."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from jaxvae._variables import QUANTIZER, variables_of
from jaxvae.keys import check_key
from jaxvae.training.mesh import replicated
from jaxvae.types import Array, PRNGKey, PyTree


class TrainState(struct.PyTreeNode):
    """State in, state out.

    Attributes:
      step: steps taken, int32.
      params: what the gradient moves.
      model_state: what a model updates by itself, such as batch statistics or an EMA codebook; `()` where it keeps
        nothing.
      opt_state: the optimiser's.
      key: the run's key. It never moves: step n draws from `fold_in(key, n)`.
      first_bad: -1, or the first step whose loss, gradient or update was not finite; from then on the state stands
        still.
    """

    step: Array
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    key: PRNGKey
    first_bad: Array

    @property
    def variables(self) -> dict[str, PyTree]:
        """What a Flax module is applied to: `model.apply(state.variables, x, method="encode")`."""
        return variables_of(self.params, self.model_state)


def init_train_state(
    init_fn: Callable[..., tuple[PyTree, PyTree]],
    optimizer: optax.GradientTransformation,
    *,
    key: PRNGKey,
    mesh: Mesh | None = None,
) -> TrainState:
    """Make the state before step 0, in one compiled program.

    Flax collections of the parameters other than "params", such as "batch_stats", move to the model state, where no
    gradient and no optimiser meets them: the loss returns their new values. (A quantiser's parameters, under
    "quantizer", stay.)

    Args:
      init_fn: `init_fn(key=)` -> (params, model_state), for example
        `lambda *, key: (model.init(key, x), ())`.
      optimizer: its state is made here.
      key: a threefry key; one half makes the parameters, the other drives the steps.
      mesh: every device of it gets a copy of the state; the default device unless given.

    Raises:
      TypeError: the key is not a threefry key, `init_fn` does not return a pair, or there are collections to move and
        the model state is no dictionary.
      ValueError: the parameters hold no floating array, or one name is in both.
    """
    check_key(key)

    def init(key: PRNGKey) -> TrainState:
        init_key, run_key = jax.random.split(key)
        made = init_fn(key=init_key)
        if not isinstance(made, tuple) or len(made) != 2:
            raise TypeError(
                "init_fn must return (params, model_state), such as (model.init(key, x), ()), got "
                f"{type(made).__name__}"
            )
        params, model_state = jax.tree.map(_strong, _by_collection(*made))
        _check_trainable(params)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            model_state=model_state,
            opt_state=jax.tree.map(_strong, optimizer.init(params)),
            key=run_key,
            first_bad=jnp.full((), -1, jnp.int32),
        )

    options: dict[str, Any] = {}
    inside_another_program = isinstance(jnp.zeros(()), jax.core.Tracer)
    if jax.default_backend() == "cpu" and not inside_another_program:
        options["compiler_options"] = {"xla_backend_optimization_level": 0}  # it runs once: optimising takes longer
    return jax.jit(init, out_shardings=None if mesh is None else replicated(mesh), **options)(key)


def _strong(leaf: Array) -> Array:
    """Without a weak type, which would make the first step compile twice."""
    return jnp.asarray(leaf, jnp.asarray(leaf).dtype)


def _by_collection(params: PyTree, model_state: PyTree) -> tuple[PyTree, PyTree]:
    """The variables of a Flax module as (parameters, model state)."""
    if not isinstance(params, Mapping) or "params" not in params:
        return params, model_state
    moved = {name: values for name, values in params.items() if name not in ("params", QUANTIZER)}
    if not moved:
        return params, model_state
    names = ", ".join(map(repr, sorted(moved)))
    if not isinstance(model_state, Mapping) and model_state != ():
        raise TypeError(
            f"the collections {names} belong in the model state, which must be () or a dictionary, "
            f"got {type(model_state).__name__}"
        )
    state = dict(model_state)
    if twice := sorted(state.keys() & moved.keys()):
        raise ValueError(f"{', '.join(map(repr, twice))} is in the parameters and in the model state: leave one out")
    return {name: values for name, values in params.items() if name not in moved}, {**state, **moved}


def _check_trainable(params: PyTree) -> None:
    if not any(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(params)):
        raise ValueError(
            f"there is nothing to train: the parameters hold no floating array, their structure is "
            f"{jax.tree.structure(params)}. Arrays that a module hides, as a Flax NNX module inside a Linen one does, "
            "must be made visible (flax.nnx.bridge.to_linen)"
        )
