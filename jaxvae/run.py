"""One call from a model and data to a trained run: what it has learned, how it got there, and how to keep it.

    run = jaxvae.train(model, dataset, epochs=20, seed=0)
    run.evaluate(test), run.sample(16), run.encode(x), run.reconstruct(x)
    run.save("runs/mine")
    run = jaxvae.load("runs/mine")

The parts that `train` puts together, `make_train_step`, `make_train_epoch` and `fit`, remain for whoever needs another
loop.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvae import data
from jaxvae._run import Run, evaluation_feed, load, with_condition
from jaxvae._whole_batch import WholeBatchError
from jaxvae.distributions import Bernoulli
from jaxvae.keys import seed_key
from jaxvae.models import CVAE, VQVAE, Autoencoder, SemiSupervisedVAE
from jaxvae.models.vq_vae import unit_gaussian
from jaxvae.objectives import autoencoder_loss, cvae_loss, vae_loss, vq_vae_loss
from jaxvae.training.epoch import make_evaluate, make_train_epoch
from jaxvae.training.fit import Progress, fit
from jaxvae.training.state import TrainState, init_train_state
from jaxvae.training.step import make_eval_step, make_train_step
from jaxvae.types import Array, Batch, LossFn, PRNGKey, PyTree

__all__ = ["Run", "load", "train"]

LARGEST_BATCH = 128
SEEDING_EXAMPLES = 256  # whose vectors a quantiser starts from
VARIANCE_EXAMPLES = 4096  # whose variance is the unit of a VQ-VAE's squared error
LEARNING_RATE = 1e-3


def train(
    model: Any,
    dataset: data.Dataset,
    *,
    epochs: int = 20,
    seed: int = 0,
    loss: Callable[..., Any] | None = None,
    optimizer: optax.GradientTransformation | None = None,
    batch_size: int | None = None,
    validation: float | int | data.Dataset = 0.1,
    patience: int | None = None,
    report: Callable[[Progress], bool | None] | None = None,
    progress: bool = True,
) -> Run:
    """Train a model on a data set, measure it on examples kept apart, and return the best state.

    Args:
      model: a model of `jaxvae`, or another Flax module with `terms`.
      dataset: of `jaxvae.data`, such as `data.from_arrays("mine", x)` or `data.folder("pictures/")`. A `CVAE` is given
        its "condition" or, where there is none, its labels.
      epochs: passes over the training examples.
      seed: decides the parameters to start from, the order of the examples, the noise, and what is kept apart.
      loss: `loss(model, params, model_state, batch, *, key, step)`, such as `jaxvae.iwae_loss` or
        `functools.partial(jaxvae.beta_vae_loss, beta=4.0)`. Unless given, that of the model: `vae_loss`, `cvae_loss`,
        `autoencoder_loss` or `vq_vae_loss`.
      optimizer: of optax; Adam with a learning rate of 1e-3 unless given.
      batch_size: 128 unless given, or all examples where they are fewer.
      validation: the examples that training is measured on after every epoch: a share of the data set, a number of
        examples, or a set of its own. 0: none, and the last state is returned.
      patience: stop after so many epochs that brought no better value.
      report: called with a `jaxvae.training.fit.Progress` about twice a second; true ends the run.
      progress: whether to show a bar, or lines where the output is no terminal and no notebook.

    Raises:
      TypeError: there is no objective for such a model, or something plugged in is refused.
      ValueError: the data do not fit the model or its likelihood, or a number is out of range.
      NonFiniteError: the loss, its gradient or the update was not finite.
    """
    dataset = with_condition(model, dataset)
    _check_likelihood(model, dataset)
    training, held = _split(dataset, validation, seed)
    held = held if held is None else with_condition(model, held)
    size = min(len(training), LARGEST_BATCH) if batch_size is None else batch_size
    order = data.Order(len(training), size, epochs, seed)
    first = training.prepared(SEEDING_EXAMPLES, key=seed_key(0))
    objective = _default_objective(model, training) if loss is None else partial(loss, model)
    optimizer = optax.adam(LEARNING_RATE) if optimizer is None else optimizer

    state = init_train_state(partial(_initial, model, first), optimizer, key=seed_key(seed))
    train_epoch = make_train_epoch(make_train_step(objective, optimizer, prepare=training.prepare))
    large = training.x.nbytes > data.STREAM_ABOVE_BYTES
    feed: Any = data.Streamed(training, order) if large else data.Resident(training, order)
    watch = _Watch(_evaluated(model, objective, state, training), held, seed, report)
    with _shown(progress) as show:
        reached = fit(
            state,
            train_epoch,
            feed,
            evaluate=None if held is None else watch.evaluate,
            report=partial(watch.report, show),
            monitor=None if held is None else "loss",
            patience=patience,
        )
    params, model_state, step = watch.best or (reached.state.params, reached.state.model_state, reached.state.step)
    kept = training.take(slice(SEEDING_EXAMPLES))
    return Run(model, params, model_state, watch.objective, kept, watch.history, int(step), reached.stopped)


class _Watch:
    """What happens beside training: evaluations, their history, the best state so far."""

    def __init__(
        self,
        objective: LossFn,
        held: data.Dataset | None,
        seed: int,
        report: Callable[[Progress], bool | None] | None,
    ) -> None:
        self.objective, self._report = objective, report
        self.history: list[dict[str, Any]] = []
        self.best: tuple[PyTree, PyTree, Array] | None = None
        self._smallest = np.inf
        if held is not None:
            self._feed = evaluation_feed(held)
            self._key = jax.random.fold_in(seed_key(seed), 0)  # not that of the steps, nor of the parameters
            self._evaluate = make_evaluate(make_eval_step(objective, prepare=held.prepare))

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """The objective's metrics on the validation set; keeps the state where it is the best so far."""
        measured = {name: float(value) for name, value in self._evaluate(state, *self._feed, key=self._key).items()}
        if measured["loss"] < self._smallest:
            self._smallest = measured["loss"]
            self.best = jax.tree.map(jnp.copy, (state.params, state.model_state, state.step))
        return measured

    def report(self, show: Callable[[Progress], None], progress: Progress) -> bool | None:
        """Add to the history, show the progress, and ask the caller's function whether to stop."""
        if progress.evaluation is not None or progress.step == progress.total_steps:
            record = {"step": progress.step, "epoch": progress.epoch, "train": progress.train}
            known = {} if progress.evaluation is None else {"validation": progress.evaluation}
            self.history.append(record | known)
        show(progress)
        return None if self._report is None else self._report(progress)


def _default_objective(model: Any, dataset: data.Dataset) -> LossFn:
    """What a model is trained by, if nothing is said."""
    if isinstance(model, VQVAE):
        if model.likelihood is not unit_gaussian:
            return partial(vq_vae_loss, model)
        x = np.asarray(dataset.prepared(VARIANCE_EXAMPLES, key=seed_key(0))["x"], np.float64)
        return partial(vq_vae_loss, model, variance=float(x.var()))
    if isinstance(model, Autoencoder):
        return partial(autoencoder_loss, model)
    if isinstance(model, CVAE):
        return partial(cvae_loss, model)
    if hasattr(model, "terms") and not isinstance(model, SemiSupervisedVAE):
        return partial(vae_loss, model)
    raise TypeError(f"there is no objective that suits every {type(model).__name__}: pass loss=")


def _evaluated(model: Any, objective: LossFn, state: TrainState, dataset: data.Dataset) -> LossFn:
    """The objective itself where it is a mean over examples, else the model's own."""
    batch = dataset.prepared(1, key=seed_key(0)) | {"weight": jnp.ones(1)}
    step = make_eval_step(objective)
    try:
        jax.eval_shape(partial(step, key=state.key, step=state.step), state.params, state.model_state, batch)
    except WholeBatchError:
        return _default_objective(model, dataset)
    return objective


def _initial(model: Any, first: Batch, *, key: PRNGKey) -> tuple[PyTree, PyTree]:
    if isinstance(model, VQVAE):
        return model.init_with_quantizer(first["x"], key=key)
    inputs = (first[name][:1] for name in ("x", "condition") if name in first)
    return model.init(key, *inputs, **({"observed": first["observed"][:1]} if "observed" in first else {})), ()


def _check_likelihood(model: Any, dataset: data.Dataset) -> None:
    """Raise where the likelihood cannot be one of such data: a Bernoulli of what is not in [0, 1] is no bound."""
    kind = dataset.domain.kind
    if getattr(model, "likelihood", None) is Bernoulli and kind in ("real", "counts"):
        raise ValueError(
            f"{dataset.name!r} holds {'real numbers' if kind == 'real' else kind}, and a Bernoulli likelihood is for x "
            "in [0, 1]: pass another to the model, such as likelihood=jaxvae.SharedScale()"
        )


def _split(
    dataset: data.Dataset, validation: float | int | data.Dataset, seed: int
) -> tuple[data.Dataset, data.Dataset | None]:
    if isinstance(validation, data.Dataset):
        return dataset, validation
    if validation == 0:
        return dataset, None
    if isinstance(validation, float) and 0 < validation < 1 and not 0 < round(validation * len(dataset)) < len(dataset):
        raise ValueError(
            f"{validation} of {len(dataset)} examples leaves none to train on or none to validate with: pass "
            "validation=0, or a number of examples"
        )
    return data.split_validation(dataset, validation, seed=seed)


@contextmanager
def _shown(progress: bool) -> Iterator[Callable[[Progress], None]]:
    """What shows the progress of a run: a bar where rich is installed, a line for each evaluation where it is not."""
    if not progress:
        yield lambda _: None
        return
    try:
        from jaxvae.progress import ProgressBar
    except ModuleNotFoundError:
        yield _print_evaluation
        return
    with ProgressBar() as bar:
        yield bar


def _print_evaluation(progress: Progress) -> None:
    if progress.evaluation is not None:
        print(f"epoch {progress.epoch:.1f}  train {progress.train['loss']:.2f}  {progress.evaluation['loss']:.2f}")
