"""One training step and one evaluation step: pure functions, not yet compiled."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxvae.training.state import TrainState
from jaxvae.types import Array, Batch, LossFn, Metrics, Prepare, PRNGKey, PyTree

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Prepare | None = None,
    axis_name: str | None = None,
) -> TrainStep:
    """Return `(state, batch) -> (state, metrics)`, for `jit`, `scan` or `vmap`.

    Step n splits `fold_in(state.key, n)` between `prepare` and the loss. The metrics are the loss's own and
    "grad_norm", the gradient's Euclidean norm.

    A step whose loss or gradient is not finite changes nothing but `first_bad`, and no later step changes anything:
    neither the optimiser nor a codebook ever sees the NaN, however late the host looks.

    With `axis_name` it is the body of one device under `shard_map` or `pmap`: the state is the same on all, the batch
    is the device's share, and loss, metrics, gradient and model state are means over the devices. That is right where
    the objective is a mean over examples, and refused where it says `global_batch`.

    Raises:
      ValueError: `axis_name` with an objective that looks at the whole batch.
    """
    if axis_name is not None and looks_at_the_whole_batch(loss_fn):
        raise ValueError(
            "this objective is not a mean over examples (global_batch), so devices cannot take a share of the batch "
            "each: compile it by jit_train_step(..., mesh=mesh)"
        )

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        prepare_key, loss_key = step_keys(state.key, state.step)
        if prepare is not None:
            batch = prepare(batch, key=prepare_key)
        params, model_state = state.params, state.model_state
        if axis_name is not None:
            # As each device's own: the gradient for a replicated array would be summed over the devices by itself.
            own = partial(jax.lax.pcast, axis_name=axis_name, to="varying")
            params, model_state = jax.tree.map(own, (params, model_state))
        taken = jax.value_and_grad(loss_fn, has_aux=True)(params, model_state, batch, key=loss_key, step=state.step)
        if axis_name is not None:
            taken = jax.lax.pmean(taken, axis_name)
        (loss, (model_state, metrics)), grads = taken
        grad_norm = optax.tree.norm(grads)
        finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)

        def move(state: TrainState) -> TrainState:
            updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
            return state.replace(
                step=state.step + 1,
                params=optax.apply_updates(state.params, updates),
                model_state=model_state,
                opt_state=opt_state,
            )

        first_bad = jnp.where(finite | (state.first_bad >= 0), state.first_bad, state.step)
        # A branch: on CPU it costs nothing measurable, where selecting each leaf slows a small step.
        state = jax.lax.cond(first_bad < 0, move, lambda state: state, state)
        return state.replace(first_bad=first_bad), {**metrics, "grad_norm": grad_norm}

    return train_step


def make_eval_step(loss_fn: LossFn, *, prepare: Prepare | None = None) -> Callable[..., tuple[Metrics, Array]]:
    """Return `(params, model_state, batch, *, key, step) -> (sums, weight)`.

    The loss is evaluated on each example by itself, so the sums over a data set do not depend on how it was batched;
    batch["weight"] [B] (0 for padding) multiplies each example's metrics. `model_state` is read and thrown away.
    Divide the summed `sums` by the summed `weight` for means.
    """

    def eval_step(
        params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey, step: Array
    ) -> tuple[Metrics, Array]:
        weight = batch["weight"]
        batch = {name: values for name, values in batch.items() if name != "weight"}
        prepare_key, loss_key = jax.random.split(key)
        if prepare is not None:
            batch = prepare(batch, key=prepare_key)

        def one(example: Batch) -> Metrics:
            alone = {name: value[None] for name, value in example.items()}
            return loss_fn(params, model_state, alone, key=loss_key, step=step)[1][1]

        metrics = jax.vmap(one)(batch)
        # A padded example is a real one seen twice: where, not a product, in case it is not finite.
        sums = {name: jnp.where(weight > 0, weight * m, 0).sum() for name, m in metrics.items()}
        return sums, weight.sum()

    return eval_step


def looks_at_the_whole_batch(loss_fn: Any) -> bool:
    """Whether the objective, under `functools.partial` and `jax.jit`, says `global_batch = True`."""
    while not hasattr(loss_fn, "global_batch"):
        loss_fn = getattr(loss_fn, "func", None) or getattr(loss_fn, "__wrapped__", None)
        if loss_fn is None:
            return False
    return loss_fn.global_batch


def step_keys(key: PRNGKey, step: Array) -> tuple[PRNGKey, PRNGKey]:
    """The keys of step n: one for `prepare`, one for the loss."""
    prepare_key, loss_key = jax.random.split(jax.random.fold_in(key, step))
    return prepare_key, loss_key
