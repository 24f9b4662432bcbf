"""One training step and one evaluation step: pure functions, not yet compiled."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxvae.training.state import TrainState
from jaxvae.types import Array, Batch, LossFn, Metrics, Prepare, PRNGKey, PyTree

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]


def make_train_step(
    loss_fn: LossFn, optimizer: optax.GradientTransformation, *, prepare: Prepare | None = None
) -> TrainStep:
    """Return `(state, batch) -> (state, metrics)`, for `jit`, `scan` or `vmap`.

    Step n splits `fold_in(state.key, n)` between `prepare` and the loss. The metrics are the loss's own and
    "grad_norm", the gradient's Euclidean norm.

    A step whose loss or gradient is not finite changes nothing but `first_bad`, and no later step changes anything:
    neither the optimiser nor a codebook ever sees the NaN, however late the host looks.
    """

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        prepare_key, loss_key = step_keys(state.key, state.step)
        if prepare is not None:
            batch = prepare(batch, key=prepare_key)
        (loss, (model_state, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(
            state.params, state.model_state, batch, key=loss_key, step=state.step
        )
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


def step_keys(key: PRNGKey, step: Array) -> tuple[PRNGKey, PRNGKey]:
    """The keys of step n: one for `prepare`, one for the loss."""
    prepare_key, loss_key = jax.random.split(jax.random.fold_in(key, step))
    return prepare_key, loss_key
