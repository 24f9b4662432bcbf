"""Everything a run needs to go on: one pytree."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax.sharding import Mesh

from jaxvae.keys import check_key
from jaxvae.training.mesh import replicated
from jaxvae.types import Array, PRNGKey, PyTree


class TrainState(struct.PyTreeNode):
    """State in, state out.

    Attributes:
      step: steps taken, int32.
      params: what the gradient moves.
      model_state: what a model updates by itself, such as an EMA codebook; `()` where there is none.
      opt_state: the optimiser's.
      key: the run's key. It never moves: step n draws from `fold_in(key, n)`.
      first_bad: -1, or the first step whose loss or gradient was not finite; from then on the state stands still.
    """

    step: Array
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    key: PRNGKey
    first_bad: Array


def init_train_state(
    init_fn: Callable[..., tuple[PyTree, PyTree]],
    optimizer: optax.GradientTransformation,
    *,
    key: PRNGKey,
    mesh: Mesh | None = None,
) -> TrainState:
    """Make the state before step 0, in one compiled program.

    Args:
      init_fn: `init_fn(key=)` -> (params, model_state), for example
        `lambda *, key: (model.init(key, image), ())`.
      optimizer: its state is made here.
      key: a typed key; one half makes the parameters, the other drives the steps.
      mesh: where the state is copied to every device of; the default device unless given.
    """
    check_key(key)

    def init(key: PRNGKey) -> TrainState:
        init_key, run_key = jax.random.split(key)
        params, model_state = jax.tree.map(_strong, init_fn(key=init_key))
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
