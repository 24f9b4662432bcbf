"""The loop on the host: it feeds the epoch program and looks at what comes back."""

import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxvae._checks import at_least
from jaxvae.training.epoch import TrainEpoch
from jaxvae.training.state import TrainState
from jaxvae.types import Checkpointer, Feed

SECONDS_BETWEEN_CHECKS = 0.5
# A program asks for its memory anew, which on a CPU can take as long as half a step of a large model. So slow steps
# share a program, unless the host would then wait too long.
SLOW_STEPS, LONGEST_SECONDS = 4, 5.0


class Progress(NamedTuple):
    """What `fit` reports after each program it ran.

    Attributes:
      step: steps taken since the beginning of the run.
      total_steps: steps there will be.
      epoch: the same in passes over the data.
      train: the loss's metrics, means over the steps since the last evaluation.
      evaluation: what `evaluate` returned, where this step was evaluated.
      examples_per_second: of training alone, since the first program, whose time is mostly compilation.
      seconds_left: estimated from that rate.
      by_step: what `train` are the means of, name -> [n], one for each step since the last evaluation.
      state: after this step. The next program writes over its arrays: copy what is to stay.
      run: of `jaxvae.train`, gives the `Run` as it would end here, such as for pictures: `progress.run().sample(16)`.
        Its arrays, too, are good until the report returns.
    """

    step: int
    total_steps: int
    epoch: float
    train: dict[str, float]
    evaluation: dict[str, float] | None
    examples_per_second: float
    seconds_left: float
    by_step: Mapping[str, np.ndarray] = MappingProxyType({})
    state: Any = None
    run: Callable[[], Any] | None = None


class Earlier(NamedTuple):
    """What a resumed run needs to know of the steps before its state, beside the state.

    Attributes:
      by_step: `Progress.by_step` at the state's step, or nothing where it was evaluated.
      values: what the evaluations so far have found for `monitor`, oldest first.
    """

    by_step: Mapping[str, np.ndarray] = MappingProxyType({})
    values: Sequence[float] = ()


class FitResult(NamedTuple):
    """Attributes: the last state, and why the run ended early, or None.

    The reasons are "SIGINT", "SIGTERM", "early stopping", and "report" where that asked for it.
    """

    state: TrainState
    stopped: str | None


class NonFiniteError(FloatingPointError):
    """A loss, gradient or update was not finite, first at step `step`; the state saved apart is the one before it."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


def fit(
    state: TrainState,
    train_epoch: TrainEpoch,
    feed: Feed,
    *,
    evaluate: Callable[[TrainState], dict[str, float]] | None = None,
    evaluate_every: int | None = None,
    checkpointer: Checkpointer | None = None,
    report: Callable[[Progress], object] | None = None,
    monitor: str | None = None,
    patience: int | None = None,
    earlier: Earlier | None = None,
) -> FitResult:
    """Train from `state.step` to `feed.total_steps`.

    The steps run in programs of about half a second, slow ones by up to four. Between two of them the host reports;
    every `evaluate_every` steps and at the end it also evaluates and saves. How the steps are cut into programs changes
    no bit of the result.
    Ctrl-C and SIGTERM end the run after the program at hand, with a checkpoint; a second Ctrl-C ends it at once.

    Where the feed, `evaluate` or `report` raises, the state is saved first; without a checkpointer it goes with the
    exception, as its attribute `state`. A note of the exception says which.

    Where several processes train one state, each calls `fit` alike. They decide together: the first one's clock and
    evaluation hold for all, and a signal to any stops all.

    Args:
      state: where to begin; its buffers are donated.
      train_epoch: from `make_train_epoch`.
      feed: the examples of each step, from `jaxvae.data`.
      evaluate: state -> metrics.
      evaluate_every: steps between evaluations; an epoch unless given.
      checkpointer: from `jaxvae.checkpoint`.
      report: called with a `Progress` after each program; where it returns True, the run ends there.
      monitor: the evaluated metric whose smallest value marks the best checkpoint. None where the evaluation looks at
        test data, which must select nothing.
      patience: stop after this many evaluations without a new best `monitor`; None never does. A tie is not a new best,
        nor is NaN. Counted from where this call began, unless `earlier` has the values before it.
      earlier: of a run that is resumed, so that its reports and its end are those of one that was never interrupted.

    Raises:
      NonFiniteError: the loss, its gradient or the update was not finite; the frozen state is saved apart from the
        checkpoints.
      ValueError: `patience` without `monitor`, `monitor` without `evaluate` or not among its metrics, a number
        below 1, or a feed without steps.
    """
    _check_options(feed, evaluate, evaluate_every, monitor, patience)
    evaluate_every = evaluate_every or feed.steps_per_epoch
    total = feed.total_steps
    step = int(state.step)
    earlier = Earlier() if earlier is None else earlier
    progress_made = _ProgressMade(patience)
    ended = [progress_made.ended_by(value) for value in earlier.values]
    stopped = "early stopping" if any(ended) else None
    clock = _Clock(feed)
    history: list[Mapping[str, np.ndarray]] = [earlier.by_step] if earlier.by_step else []

    with _stop_signal() as signals:
        count = clock.next_count(step, evaluate_every)
        chunk = feed(step, count) if step < total else None
        while chunk is not None and not stopped:
            clock.start()
            state, metrics = train_epoch(state, *chunk)
            step, ran = step + count, count
            with _kept(state, checkpointer):
                count = clock.next_count(step, evaluate_every)
                chunk = feed(step, count) if step < total else None  # read while the device works
            history.append({name: _wide(values[:ran]) for name, values in jax.device_get(metrics).items()})
            clock.stop(ran)
            if (first_bad := int(state.first_bad)) >= 0:
                raise _non_finite(state, first_bad, checkpointer)

            evaluation, value = None, None
            at_event = step % evaluate_every == 0 or step == total
            stopped = _signal_to_any(signals)
            if evaluate is not None and at_event:
                with _kept(state, checkpointer):
                    evaluation, value = _evaluate(evaluate, state, monitor)
            if report is not None:  # before the save: a kill between the two repeats these steps and this report
                with _kept(state, checkpointer, value):
                    asked = report(_progress(state, feed, history, evaluation, clock.examples_per_second))
                stopped = stopped or ("report" if _asked_by_any(asked) else None)
            if checkpointer is not None and (at_event or stopped):
                checkpointer.save(state, value=value)
            if at_event:
                _warn_of_skipped(history)
                history.clear()
            if value is not None and progress_made.ended_by(value) and not stopped:
                stopped = "early stopping"
    if checkpointer is not None:
        checkpointer.wait()
    return FitResult(state, stopped)


def _check_options(
    feed: Feed, evaluate: object, evaluate_every: int | None, monitor: str | None, patience: int | None
) -> None:
    for name, number in (("evaluate_every", evaluate_every), ("patience", patience)):
        if number is not None:
            at_least(1, **{name: number})
    if patience is not None and monitor is None:
        raise ValueError("patience needs the name of a metric to monitor")
    if monitor is not None and evaluate is None:
        raise ValueError("monitor needs an evaluate function to look at")
    at_least(1, steps_per_epoch=feed.steps_per_epoch, batch_size=feed.batch_size)


def _signal_to_any(signals: list[int]) -> str | None:
    """The name of a signal that arrived at any process; read once, so that a later one ends the next program."""
    number = multihost_utils.process_allgather(np.int32(signals[0] if signals else 0)).max()
    return signal.Signals(number).name if number else None


def _asked_by_any(asked: object) -> bool:
    """Whether any process's report has returned True: all of them end at the same step."""
    own = isinstance(asked, bool | np.bool_) and bool(asked)
    return bool(multihost_utils.process_allgather(np.int32(own)).max())


def _evaluate(
    evaluate: Callable[[TrainState], dict[str, float]], state: TrainState, monitor: str | None
) -> tuple[dict[str, float], float | None]:
    """The first process's metrics, and the monitored one among them."""
    measured = multihost_utils.broadcast_one_to_all(evaluate(state))
    evaluation = {name: float(value) for name, value in measured.items()}
    if monitor is not None and monitor not in evaluation:
        raise ValueError(f"monitor {monitor!r} is not among the metrics {', '.join(sorted(evaluation))}")
    return evaluation, None if monitor is None else evaluation[monitor]


def _progress(
    state: TrainState,
    feed: Feed,
    history: list[Mapping[str, np.ndarray]],
    evaluation: dict[str, float] | None,
    rate: float,
) -> Progress:
    step = int(state.step)
    by_step = {name: np.concatenate([m[name] for m in history]) for name in history[0]}
    train = {name: float(values.mean()) for name, values in by_step.items()}
    left = (feed.total_steps - step) * feed.batch_size / rate
    return Progress(step, feed.total_steps, step / feed.steps_per_epoch, train, evaluation, rate, left, by_step, state)


def _wide(values: np.ndarray) -> np.ndarray:
    """Floating numbers in float32 or wider: NumPy's sum of a thousand ones in bfloat16 is 256."""
    floating = jnp.issubdtype(values.dtype, jnp.floating)
    return values.astype(jnp.promote_types(values.dtype, jnp.float32)) if floating else values


def _warn_of_skipped(history: list[Mapping[str, np.ndarray]]) -> None:
    """Say so where most steps since the last evaluation have changed nothing: a run may be stuck for good."""
    if "skipped" not in history[0]:
        return
    skipped, norms = (np.concatenate([each[name] for each in history]) for name in ("skipped", "grad_norm"))
    count, norms = int(skipped.sum()), norms[skipped > 0]
    if 2 * count > len(skipped):
        many = f"all {count}" if count == len(skipped) else f"{count} of {len(skipped)}"
        warnings.warn(
            f"{many} steps since the last evaluation were skipped and trained nothing: the norms of their gradients "
            f"lie between {norms.min():.3g} and {norms.max():.3g}; raise skip_above or, where the norms were small at "
            "first, lower the learning rate",
            stacklevel=3,
        )


class _ProgressMade:
    """Counts the evaluations since the best one; a tie is no progress, and neither is a value that is not finite."""

    def __init__(self, patience: int | None) -> None:
        self._patience = math.inf if patience is None else patience
        self._best, self._without = math.inf, 0

    def ended_by(self, value: float) -> bool:
        """Whether patience ends with this evaluation."""
        if math.isfinite(value) and value < self._best:
            self._best, self._without = value, 0
        else:
            self._without += 1
        return self._without >= self._patience


@contextmanager
def _kept(state: TrainState, checkpointer: Checkpointer | None, value: float | None = None) -> Iterator[None]:
    """Where a caller's function raises, the state is not lost: it is saved, or goes with the exception."""
    try:
        yield
    except Exception as error:
        if int(state.first_bad) < 0:
            error.add_note(_keep(error, state, checkpointer, value))
        raise


def _keep(error: Exception, state: TrainState, checkpointer: Checkpointer | None, value: float | None) -> str:
    """Save the state, or leave it with the exception; a sentence that says which."""
    raised = f"raised after step {int(state.step)}, whose state"
    if checkpointer is not None and jax.process_count() == 1:  # processes save together, and only one of them is here
        try:
            checkpointer.save(state, value=value)
            checkpointer.wait()
            return f"{raised} was saved as a checkpoint"
        except Exception as failure:
            raised += f" could not be saved ({failure}) and"
    vars(error)["state"] = state
    return f"{raised} is this exception's attribute `state`"


def _non_finite(state: TrainState, first_bad: int, checkpointer: Checkpointer | None) -> NonFiniteError:
    message = (
        f"the loss, its gradient or the update was not finite at step {first_bad}; training stood still from there"
    )
    if checkpointer is not None:
        checkpointer.wait()
        good = checkpointer.latest_step
        last = "no checkpoint was saved before it" if good is None else f"the last good checkpoint is step {good}"
        message += f". {last.capitalize()}; "
        try:
            message += f"the state before the bad step is in {checkpointer.save_failed(state)}"
        except OSError as error:
            message += f"the state before the bad step could not be saved: {error}"
    return NonFiniteError(message, first_bad)


class _Clock:
    """Times the programs and sizes the next one, so that the host looks twice a second, or after a few slow steps."""

    def __init__(self, feed: Feed) -> None:
        self.examples_per_second = math.nan
        self._feed = feed
        self._programs, self._steps, self._seconds = 0, 0, 0.0
        self._count = 8  # until something was timed

    def start(self) -> None:
        self._began = time.perf_counter()

    def stop(self, count: int) -> None:
        seconds = time.perf_counter() - self._began
        self._programs += 1
        if self._programs == 2:  # forget the first, whose time is mostly compilation
            self._steps, self._seconds = 0, 0.0
        self._steps += count
        self._seconds += seconds
        self.examples_per_second = self._steps * self._feed.batch_size / self._seconds
        if self._programs > 1:
            each = seconds / count
            steps = max(math.ceil(SECONDS_BETWEEN_CHECKS / each), min(SLOW_STEPS, int(LONGEST_SECONDS / each)))
            self._count = int(multihost_utils.broadcast_one_to_all(np.int32(steps)))

    def next_count(self, step: int, evaluate_every: int) -> int:
        until_event = evaluate_every - step % evaluate_every
        return min(self._count, self._feed.chunk, until_event, self._feed.total_steps - step)


@contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """A list that is empty until SIGINT or SIGTERM arrives; a second SIGINT raises KeyboardInterrupt."""
    arrived: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield arrived  # only the main thread may set handlers
        return

    def note(number: int, frame: object) -> None:
        if arrived and number == signal.SIGINT:
            raise KeyboardInterrupt
        arrived.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield arrived
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
