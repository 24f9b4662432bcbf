"""One training step and one evaluation step: pure functions, not yet compiled."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvae._whole_batch import each_example, on_share
from jaxvae.keys import check_key
from jaxvae.training._pickle import PicklesByParts
from jaxvae.training.optimizers import accepted
from jaxvae.training.state import TrainState
from jaxvae.types import Array, Batch, LossFn, Metrics, Prepare, PRNGKey, PyTree

TrainStep = Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
EvalStep = Callable[..., tuple[Metrics, Array]]
NEVER = np.iinfo(np.int32).max  # a step that no run takes
LARGE_NORM = 1e15  # squares of the gradient stay far below float32's largest number up to here


def make_train_step(
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    *,
    prepare: Prepare | None = None,
    axis_name: str | None = None,
    skip_above: float | None = None,
) -> TrainStep:
    """Return `(state, batch) -> (state, metrics)`, for `jit`, `scan` or `vmap`.

    Step n splits `fold_in(state.key, n)` between `prepare` and the loss. The metrics are the loss's own and
    "grad_norm", the gradient's Euclidean norm.

    A step whose loss or gradient is not finite changes nothing but `first_bad`, and no later step changes anything:
    neither the optimiser nor a codebook ever sees the NaN, however late the host looks. Where it is the update that is
    not finite, of the parameters, the optimiser's state or the model's, `first_bad` names the step all the same and no
    later one is taken. `make_train_epoch`, and with it `fit`, then returns the state before that step; the step by
    itself returns what the update made of it, since keeping the old state would cost a copy of it in every step.
    `state.step` is then past `first_bad`.

    The optimiser also gets the loss (`value`), the gradient (`grad`) and the loss as a function of the parameters
    (`value_fn`), for those that want them: `optax.contrib.reduce_on_plateau`, `optax.polyak_sgd`, `optax.lbfgs`.

    With `skip_above` a step whose gradient's norm is larger changes nothing but the step's number, and is no error: the
    parameters, the optimiser's state, an average of the parameters and the model's state stay what they were. The
    metric "skipped" is 1 at such a step and otherwise 0, so that its mean is the share of steps that were skipped;
    `fit` warns where that is more than half. Very deep hierarchies meet a batch that would undo hours of training once
    in some thousand steps (Child, 2021).

    With `axis_name` it is the body of one device under `shard_map` or `pmap`: the state is the same on all, the batch
    is the device's share, and loss, metrics, gradient and model state are means over the devices. That is right where
    the objective is a mean over examples.

    The step pickles where its parts do.

    Raises:
      ValueError: when first traced: a batch without examples, a metric or loss that is not a scalar, a new model state
        of another structure; with `axis_name`, an objective that needs the whole batch, or a line search.
        `skip_above` that is not positive raises at once; a traced value is not checked.
      TypeError: when first traced: an optimiser that wants what no step can give, a key that is not threefry's.
    """
    _check_norm(skip_above)
    return _TrainStep(loss_fn, optimizer, prepare, axis_name, skip_above)


def _check_norm(skip_above: Any) -> None:
    """Raise unless it is None, a positive number, or a traced value."""
    if isinstance(skip_above, bool | str):
        raise TypeError(f"skip_above must be a number, the largest norm of a gradient that counts, got {skip_above!r}")
    if skip_above is not None and not isinstance(skip_above, jax.core.Tracer) and not skip_above > 0:
        raise ValueError(
            f"skip_above must be a positive norm of the gradient, or None to skip no step, got {skip_above}"
        )


def make_eval_step(loss_fn: LossFn, *, prepare: Prepare | None = None) -> EvalStep:
    """Return `(params, model_state, batch, *, key, step) -> (sums, weight)`.

    The loss is evaluated on each example by itself, so the sums over a data set do not depend on how it was batched;
    batch["weight"] [B] (0 for padding) multiplies each example's metrics. `model_state` is read and thrown away.
    Divide the summed `sums` by the summed `weight` for means. The step pickles where its parts do.

    Raises:
      ValueError: when first traced: an objective that needs the whole batch, a batch without examples, a metric or loss
        that is not a scalar.
      TypeError: when first traced: a key that is not threefry's.
    """
    return _EvalStep(loss_fn, prepare)


def step_keys(key: PRNGKey, step: Array) -> tuple[PRNGKey, PRNGKey]:
    """The keys of step n: one for `prepare`, one for the loss."""
    prepare_key, loss_key = jax.random.split(jax.random.fold_in(key, step))
    return prepare_key, loss_key


def overflowed(state: TrainState) -> Array:
    """Whether a step was taken that should not have been, whose update is not finite: the state went past it."""
    return (state.first_bad >= 0) & (state.step > state.first_bad)


@dataclass(frozen=True, eq=False)
class _TrainStep(PicklesByParts):
    loss_fn: LossFn
    optimizer: optax.GradientTransformation
    prepare: Prepare | None = None
    axis_name: str | None = None
    skip_above: float | None = None

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Take one step, or stand still; writes over the state where it is donated."""
        return self.in_place(state, batch)

    def undoing(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Take one step, or stand still, also where the update is not finite: keeps the old state until it is known."""
        new, metrics = self.in_place(state, batch)
        still = state.replace(first_bad=state.step)
        return jax.lax.cond(overflowed(new), lambda: still, lambda: new), metrics

    def in_place(
        self, state: TrainState, batch: Batch, *, until: Array | int = NEVER, checked: Array | bool = True
    ) -> tuple[TrainState, Metrics]:
        """`__call__`, for which the step `until` counts as bad.

        Where not `checked` the new parameters are not looked at: it is for the caller to know that they are finite.
        """
        check_key(state.key)
        prepare_key, loss_key = step_keys(state.key, state.step)
        check_not_empty(batch)
        if self.prepare is not None:
            batch = self.prepare(batch, key=prepare_key)
        loss_fn = partial(_checked(self.loss_fn), batch=batch, key=loss_key, step=state.step)
        (loss, (model_state, metrics)), grads = self._value_and_grad(loss_fn, state)
        _check_model_state(state.model_state, model_state)
        grad_norm = optax.tree.norm(jax.tree.map(_wide, grads))
        large = grad_norm > LARGE_NORM
        grad_norm, finite = _norm_of_large(large, grad_norm, grads)

        def move() -> TrainState:
            updates, opt_state = self._update(loss_fn, loss, grads, state)
            return state.replace(
                step=state.step + 1,
                params=optax.apply_updates(state.params, updates),
                model_state=model_state,
                opt_state=opt_state,
            )

        moves = jnp.isfinite(loss) & ~jnp.isnan(grad_norm) & finite & (state.step != until) & (state.first_bad < 0)
        # A branch: on CPU it costs nothing measurable, where selecting each leaf slows a small step.
        if self.skip_above is not None:
            skips = moves & (grad_norm > self.skip_above)
            metrics = {**metrics, "skipped": skips.astype(loss.dtype)}
            move = partial(jax.lax.cond, skips, lambda: state.replace(step=state.step + 1), move)
        new = jax.lax.cond(moves, move, lambda: state)
        sound = _opt_state_is_finite(moves & large, state.opt_state, new.opt_state)
        sound &= is_finite(new.model_state)
        sound &= jax.lax.cond(checked, lambda: is_finite(new.params), lambda: jnp.bool_(True))
        first_bad = jnp.where((moves & sound) | (state.first_bad >= 0), state.first_bad, state.step)
        return new.replace(first_bad=first_bad), {**metrics, "grad_norm": grad_norm}

    def _value_and_grad(self, loss_fn: Callable[..., Any], state: TrainState) -> Any:
        """((loss, (new model state, metrics)), gradient), means over the devices where there is an axis of them."""
        if self.axis_name is None:
            return jax.value_and_grad(loss_fn, has_aux=True)(state.params, state.model_state)
        # As each device's own: the gradient for a replicated array would be summed over the devices by itself.
        own = partial(jax.lax.pcast, axis_name=self.axis_name, to="varying")
        mine = jax.tree.map(own, (state.params, state.model_state))
        taken = jax.value_and_grad(on_share(loss_fn), has_aux=True)(*mine)
        return jax.tree.map(self._mean, taken)

    def _mean(self, leaf: Array) -> Array:
        """Over the devices; integers, such as a counter, are the same on all."""
        mean = jax.lax.pmean if jnp.issubdtype(leaf.dtype, jnp.inexact) else jax.lax.pmax
        return mean(leaf, self.axis_name)

    def _update(
        self, loss_fn: Callable[..., Any], loss: Array, grads: PyTree, state: TrainState
    ) -> tuple[PyTree, PyTree]:
        def value_fn(params: PyTree) -> Array:
            if self.axis_name is not None:
                raise ValueError(
                    "the optimizer searches along a line for a lower loss, which no device knows from its share of the "
                    "batch: compile it by jit_train_step(..., mesh=mesh)"
                )
            return loss_fn(params, state.model_state)[0]

        extra = accepted(self.optimizer.update, {"value": loss, "grad": grads, "value_fn": value_fn})
        try:
            return self.optimizer.update(grads, state.opt_state, state.params, **extra)
        except TypeError as error:
            missing = re.search(r"missing \d+ required keyword-only arguments?: (.*)", str(error))
            if missing is None:
                raise
            raise TypeError(
                f"the optimizer wants {missing[1]}, and a training step can only give it value, grad and value_fn"
            ) from error


@dataclass(frozen=True, eq=False)
class _EvalStep(PicklesByParts):
    loss_fn: LossFn
    prepare: Prepare | None = None

    def __call__(
        self, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey, step: Array
    ) -> tuple[Metrics, Array]:
        """Return the metrics' weighted sums over the batch, and the sum of the weights."""
        check_key(key)
        check_not_empty(batch)
        weight = batch["weight"]
        batch = {name: values for name, values in batch.items() if name != "weight"}
        prepare_key, loss_key = jax.random.split(key)
        if self.prepare is not None:
            batch = self.prepare(batch, key=prepare_key)
        loss_fn = _checked(self.loss_fn)

        def metrics_of(one: Batch) -> Metrics:
            return loss_fn(params, model_state, one, key=loss_key, step=step)[1][1]

        metrics = each_example(metrics_of, batch)
        # A padded example is a real one seen twice: where, not a product, in case it is not finite.
        sums = {name: jnp.where(weight > 0, weight * m, 0).sum() for name, m in metrics.items()}
        return sums, weight.sum()


def check_not_empty(batch: Batch) -> None:
    """Raise `ValueError` where an array of the batch holds no examples."""
    for name, values in batch.items():
        if np.ndim(values) and not np.shape(values)[0]:
            raise ValueError(f"batch[{name!r}] holds no examples, its shape is {np.shape(values)}")


def _checked(loss_fn: LossFn) -> Callable[..., Any]:
    """`loss_fn`, raising where its loss or one of its metrics is not a scalar."""

    def checked(*arguments: Any, **keywords: Any) -> Any:
        loss, (model_state, metrics) = _as_promised(loss_fn(*arguments, **keywords))
        for name, value in {"the loss": loss, **{f"metric {name!r}": value for name, value in metrics.items()}}.items():
            if np.shape(value):
                raise ValueError(f"{name} must be a scalar, a mean over the batch, got shape {np.shape(value)}")
        return loss, (model_state, metrics)

    return checked


def _as_promised(returned: Any) -> Any:
    """What a `LossFn` has returned; `TypeError` where it has another structure."""
    match returned:
        case (_, (_, Mapping())):
            return returned
    raise TypeError(
        "an objective must return (loss, (model_state, metrics)), with metrics a dictionary of scalars, got "
        f"{jax.tree.structure(returned)}"
    )


def _check_model_state(old: PyTree, new: PyTree) -> None:
    """Raise `ValueError` unless the new state can stand in the old one's place."""
    before: Any = jax.tree.structure(old)
    after: Any = jax.tree.structure(new)
    if before != after:
        raise ValueError(f"the loss returned a model state of another structure: {after} for {before}")
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(old), jax.tree.leaves(new), strict=True):
        if (a.shape, a.dtype) != (jnp.shape(b), jnp.result_type(b)):
            raise ValueError(
                f"the loss returned model_state{jax.tree_util.keystr(path)} as {jnp.result_type(b)}{jnp.shape(b)}; "
                f"it was {a.dtype}{a.shape}"
            )


def _floating(tree: PyTree) -> list[Array]:
    return [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]


def is_finite(tree: PyTree) -> Array:
    """Whether all floating leaves are finite, by their sum, which reads memory several times as fast as `isfinite`."""
    sums = [_wide(leaf).sum() for leaf in _floating(tree)]
    return jnp.isfinite(sum(sums, start=jnp.float32(0)))


def _norm_of_large(large: Array, norm: Array, grads: PyTree) -> tuple[Array, Array]:
    """Where the gradient is large, its norm although its square may overflow; and whether it is finite."""

    def scaled(grads: list[Array]) -> tuple[Array, Array]:
        flat = _flat(grads)
        largest = jnp.abs(flat).max()
        return largest * jnp.linalg.norm(flat / largest), jnp.isfinite(largest)

    return _rarely(large, scaled, (norm, jnp.bool_(True)), (_floating(grads),))


def _opt_state_is_finite(large: Array, before: PyTree, after: PyTree) -> Array:
    """Whether it still is where the gradient is large: a second moment may overflow where the gradient does not.

    A number of the state may be infinite from the beginning, such as the best loss so far. Its arrays are not compared
    with what they were: that would keep them from being written over.
    """
    was = [leaf for leaf in _floating(before) if not leaf.ndim]
    now = [leaf for leaf in _floating(after) if not leaf.ndim]
    arrays = [leaf for leaf in _floating(after) if leaf.ndim]

    def check(arrays: list[Array], was: list[Array], now: list[Array]) -> Array:
        kept = jnp.isfinite(_flat(now)) | ~jnp.isfinite(_flat(was))
        return jnp.isfinite(_flat(arrays)).all() & kept.all()

    return _rarely(large, check, jnp.bool_(True), (arrays, was, now))


def _flat(leaves: list[Array]) -> Array:
    """One vector of all: far fewer kernels to compile for what is hardly ever computed."""
    return jnp.concatenate([jnp.zeros(1, jnp.float32), *(_wide(leaf).ravel() for leaf in leaves)])


def _wide(leaf: Array) -> Array:
    return leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))


def _rarely(needed: Array, function: Callable[..., PyTree], usual: PyTree, operands: tuple[PyTree, ...]) -> PyTree:
    """`function(*operands)` where needed, else `usual`: a branch also under `vmap`, which would compute both always."""

    def choose(needed: Array, usual: PyTree, operands: tuple[PyTree, ...]) -> PyTree:
        return jax.lax.cond(needed, lambda: function(*operands), lambda: usual)

    choose_batched = jax.custom_batching.custom_vmap(choose)

    @choose_batched.def_vmap
    def for_some(axis_size: int, in_batched: PyTree, *arguments: Any) -> tuple[PyTree, PyTree]:
        over = partial(jax.vmap, in_axes=jax.tree.map(lambda batched: 0 if batched else None, in_batched))
        over = partial(over, axis_size=axis_size)
        usual = over(lambda needed, usual, operands: usual)(*arguments)
        chosen = jax.lax.cond(arguments[0].any(), lambda: over(choose)(*arguments), lambda: usual)
        return chosen, jax.tree.map(lambda _: True, chosen)

    return choose_batched(needed, usual, operands)
