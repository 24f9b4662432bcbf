"""One call from a model and data to a trained run: what it has learned, how it got there, and how to keep it.

    run = jaxvae.train(model, dataset, epochs=20, seed=0)
    run.evaluate(test), run.sample(16), run.encode(x), run.reconstruct(x)
    run.save("runs/mine")
    run = jaxvae.load("runs/mine")

The parts that `train` puts together, `make_train_step`, `make_train_epoch` and `fit`, remain for whoever needs another
loop.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvae import data
from jaxvae._given import as_trained, with_condition
from jaxvae._run import Run, absolute, load, pull
from jaxvae._saved import DamagedRunError, describe, write
from jaxvae._watch import MONITORED, Watch
from jaxvae._whole_batch import WholeBatchError
from jaxvae.distributions import Bernoulli
from jaxvae.keys import seed_key
from jaxvae.models import CVAE, VQVAE, Autoencoder, SemiSupervisedVAE
from jaxvae.models.vq_vae import signed_gaussian, unit_gaussian
from jaxvae.objectives import autoencoder_loss, cvae_loss, vae_loss, vq_vae_loss
from jaxvae.training.epoch import make_train_epoch
from jaxvae.training.fit import Progress, fit
from jaxvae.training.optimizers import evaluation_params, with_ema
from jaxvae.training.state import TrainState, init_train_state
from jaxvae.training.step import make_eval_step, make_train_step
from jaxvae.types import Batch, LossFn, PRNGKey, PyTree

if TYPE_CHECKING:  # it needs orbax, and most runs have no directory
    from jaxvae._directory import RunDirectory

__all__ = ["DamagedRunError", "Run", "load", "pull", "train"]

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
    ema: float | None = None,
    skip_above: float | None = None,
    batch_size: int | None = None,
    validation: float | int | data.Dataset = 0.1,
    patience: int | None = None,
    out: str | Path | None = None,
    resume: bool = False,
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
      optimizer: of optax; Adam with a learning rate of 1e-3 unless given. Of `optax.contrib.schedule_free` its
        averages are evaluated and returned, `schedule_free_eval_params`.
      ema: the decay, such as 0.999, of an exponential moving average of the parameters over the steps, which is then
        evaluated and returned in their place (`jaxvae.training.with_ema`); it changes nothing of how they are trained.
        What networks and quantisers keep, such as batch statistics and codes, is not averaged.
      skip_above: a step whose gradient has a larger norm changes nothing (`jaxvae.make_train_step`); the share of such
        steps is "skipped" in the history. None: every step counts.
      batch_size: 128 unless given, or all examples where they are fewer.
      validation: the examples that training is measured on after every epoch: a share of the data set, a number of
        examples, or a set of its own. 0: none, and the last state is returned.
      patience: stop after so many epochs that brought no better value.
      out: a directory for the run, new or empty. After every epoch, and where the run is stopped, its state is saved in
        `checkpoints/`, and the evaluation is a line of `metrics.jsonl`; in the end the run is saved as `Run.save` does,
        for `jaxvae.load(out)`. This needs orbax-checkpoint (`pip install 'jaxvae[checkpoints]'`).
      resume: continue the run in `out` from its newest checkpoint, where there is one, as if it had never been
        interrupted: parameters, history and the best state are the same to the bit on the same machine. The epochs may
        be more than they were, and `patience`, `report` and `progress` others; so may numbers within the optimiser,
        such as its learning rate, which no checkpoint knows.
      report: called with a `jaxvae.training.fit.Progress` twice a second, or after a few slow steps; true ends the
        run. Its `run()` gives the run as it stands, for pictures while it trains.
      progress: whether to show a bar, or lines where the output is no terminal and no notebook.

    Raises:
      TypeError: there is no objective for such a model, or something plugged in is refused.
      ValueError: the data do not fit the model or its likelihood, a number is out of range, or the run in `out` had
        other settings, each of which is named.
      FileExistsError: `out` holds a run and `resume` is false, or holds something else.
      NotADirectoryError: `out` is a file.
      OSError: a checkpoint cannot be written; the one before it is left.
      NonFiniteError: the loss, its gradient or the update was not finite.
    """
    _check_plugged_in(loss, optimizer, validation)
    place = _place(out, resume)
    dataset = with_condition(model, dataset)
    _check_likelihood(model, dataset)
    training, held = _split(dataset, validation, seed)
    if held is None and patience is not None:
        raise ValueError(
            f"patience={patience} counts epochs that were no better on a validation set, and there is none: leave it "
            "out, or pass validation=0.1, a share of the data set"
        )
    held = held if held is None else as_trained(model, training, held)
    size = min(len(training), LARGEST_BATCH) if batch_size is None else batch_size
    order = data.Order(len(training), size, epochs, seed)
    first = training.prepared(SEEDING_EXAMPLES, key=seed_key(0))
    objective = _default_objective(model, training) if loss is None else partial(loss, model)
    optimizer = optax.adam(LEARNING_RATE) if optimizer is None else optimizer
    optimizer = optimizer if ema is None else with_ema(optimizer, ema)

    state = init_train_state(partial(_initial, model, first), optimizer, key=seed_key(seed))
    train_step = make_train_step(objective, optimizer, prepare=training.prepare, skip_above=skip_above)
    train_epoch = make_train_epoch(train_step)
    large = training.x.nbytes > data.STREAM_ABOVE_BYTES
    feed: Any = data.Streamed(training, order) if large else data.Resident(training, order)
    evaluated = _evaluated(model, objective, state, training)
    kept = training.take(slice(SEEDING_EXAMPLES))
    run_of = partial(Run, model, objective=evaluated, dataset=kept)
    settings: dict[str, Any] = {"seed": seed, "epochs": epochs, "batch_size": size, "ema": ema}
    settings |= {} if skip_above is None else {"skip_above": skip_above}
    if place is not None:
        settings |= _description(training) | {"model": _described(model), "loss": _described(loss)}
        settings["validation"] = _described(validation)
        describe(run_of(state.params, state.model_state, history=[], step=0))  # now, and not after hours
    with _opened(place, settings, resume, order.total_steps) as files, _shown(progress) as show:
        watch = Watch(evaluated, held, seed, report, files, run_of)
        state, earlier = watch.resume(state)
        reached = fit(
            state,
            train_epoch,
            feed,
            evaluate=None if held is None else watch.evaluate,
            checkpointer=files,
            report=partial(watch.report, show),
            monitor=None if held is None else MONITORED,
            patience=patience,
            earlier=earlier,
        )
    last = reached.state
    params, model_state, step = watch.best or (evaluation_params(last), last.model_state, last.step)
    run = run_of(params=params, model_state=model_state, history=watch.history, step=int(step), stopped=reached.stopped)
    if place is not None:
        write(run, place)
    return run


def _place(out: str | Path | None, resume: bool) -> Path | None:
    """The directory of the run, absolute, or None; raises where a run can neither begin nor go on there."""
    if out is None:
        if resume:
            raise ValueError("resume=True needs the directory of the run that goes on: pass out=")
        return None
    place = absolute(out, "out")
    if place.exists() and not place.is_dir():
        raise NotADirectoryError(f"out {place} is a file: choose a directory")
    # A kill may have left the beginnings of a run: hidden files, and the folder of its checkpoints.
    others = [entry.name for entry in place.glob("[!.]*") if entry.name != "checkpoints"]
    if others and "config.json" not in others:
        raise FileExistsError(f"{place} holds something already, such as {others[0]}: choose another directory")
    return place


@contextmanager
def _opened(
    place: Path | None, settings: dict[str, Any], resume: bool, last_step: int
) -> Iterator["RunDirectory | None"]:
    """The run's directory, whose checkpoints are all written when this ends; None where there is none."""
    if place is None:
        yield None
        return
    from jaxvae._directory import RunDirectory

    way_out = "continue it with resume=True or choose another out="
    options: dict[str, Any] = {"may_change": {"epochs"}, "last_step": last_step, "way_out": way_out}
    with RunDirectory(place, settings, resume=resume, **options) as files:
        yield files


def _description(dataset: data.Dataset) -> dict[str, Any]:
    """What tells a data set from others, without reading all of it."""
    first = hashlib.sha256()
    for values in dataset.take(slice(SEEDING_EXAMPLES)).arrays.values():
        first.update(np.ascontiguousarray(values).tobytes())
    return {
        "num_examples": len(dataset),
        "arrays": {name: f"{values.dtype}{list(values.shape[1:])}" for name, values in dataset.arrays.items()},
        "domain": _described(dataset.domain),
        "prepare": _described(dataset.prepare),
        "sha256 of the first examples": first.hexdigest(),
    }


def _described(part: Any) -> str:
    """A part in words that are the same in every process: without its address in memory."""
    if isinstance(part, data.Dataset):
        return str(_description(part))
    return " ".join(re.sub(r" at 0x[0-9a-fA-F]+", "", repr(part)).split())


def _default_objective(model: Any, dataset: data.Dataset) -> LossFn:
    """What a model is trained by, if nothing is said."""
    if isinstance(model, VQVAE):
        if model.likelihood not in (unit_gaussian, signed_gaussian):
            return partial(vq_vae_loss, model)
        first = dataset.prepared(VARIANCE_EXAMPLES, key=seed_key(0))
        x = np.asarray(first["x"], np.float64)
        if "mask" in first:
            x = x[np.asarray(first["mask"])]
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


def _check_plugged_in(loss: Any, optimizer: Any, validation: Any) -> None:
    """Raise `TypeError` for what is of another kind than its argument."""
    if loss is not None and not callable(loss):
        raise TypeError(f"loss must be a function, such as jaxvae.iwae_loss, got {loss!r:.60}")
    if optimizer is not None and not hasattr(optimizer, "init"):
        raise TypeError(f"optimizer must be one of optax, such as optax.adam(1e-3), got {optimizer!r:.60}")
    if not isinstance(validation, int | float | np.number | data.Dataset) or isinstance(validation, bool):
        raise TypeError(
            "validation must be a share of the data set, a number of examples, 0 for none, or a jaxvae.data.Dataset, "
            f"got {validation!r:.60}"
        )


def _check_likelihood(model: Any, dataset: data.Dataset) -> None:
    """Raise where the likelihood cannot be one of such data: a Bernoulli of what is not in [0, 1] is no bound."""
    kind = dataset.domain.kind
    if getattr(model, "likelihood", None) is Bernoulli and kind in ("real", "counts", "table"):
        held = {"real": "real numbers", "table": "columns of several kinds"}.get(kind, kind)
        another = "jaxvae.SharedScale()" if kind != "table" else "jaxvae.networks.TableLikelihood(columns)"
        raise ValueError(
            f"{dataset.name!r} holds {held}, and a Bernoulli likelihood is for x in [0, 1]: pass another to the model, "
            f"such as likelihood={another}"
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
