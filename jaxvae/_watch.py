"""What happens beside a training: evaluations, their history, the best state, and what a resumed run goes on from."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae import data
from jaxvae._given import evaluation_feed
from jaxvae._run import Run
from jaxvae.keys import seed_key
from jaxvae.training.epoch import make_evaluate
from jaxvae.training.fit import Earlier, Progress
from jaxvae.training.optimizers import evaluation_params
from jaxvae.training.state import TrainState
from jaxvae.training.step import make_eval_step
from jaxvae.types import Array, LossFn, PyTree

if TYPE_CHECKING:  # it needs orbax, and most runs have no directory
    from jaxvae._directory import RunDirectory

MONITORED = "loss"


class Watch:
    """Looks at a run while it trains.

    Attributes:
      objective: the mean over examples that it is evaluated by.
      history: one dictionary for each evaluation.
      best: the parameters to keep, model state and step of the best one, or None.
      step: the last one that was reported.
    """

    def __init__(
        self,
        objective: LossFn,
        held: data.Dataset | None,
        seed: int,
        report: Callable[[Progress], bool | None] | None,
        files: "RunDirectory | None",
        run_of: Callable[..., Run],
    ) -> None:
        self.objective, self._report, self._files, self._run_of = objective, report, files, run_of
        self.history: list[dict[str, Any]] = []
        self.best: tuple[PyTree, PyTree, Array] | None = None
        self.step = 0
        self._smallest = np.inf
        if held is not None:
            self._feed = evaluation_feed(held)
            self._key = jax.random.fold_in(seed_key(seed), 0)  # not that of the steps, nor of the parameters
            self._evaluate = make_evaluate(make_eval_step(objective, prepare=held.prepare))

    def resume(self, state: TrainState) -> tuple[TrainState, Earlier]:
        """Where the run in the directory ended, and what is known of the steps before; `state` where there is none."""
        if self._files is None:
            return state, Earlier()
        fresh, state = state, self._files.restore(state)
        self.step, self.history = int(state.step), self._files.records()
        best, smallest = self._files.best(fresh), self._files.checkpointer.best_value
        if best is not None and smallest is not None:
            self._keep(best, smallest)
        return state, self._files.earlier("validation", MONITORED)

    def evaluate(self, state: TrainState) -> dict[str, float]:
        """The objective's metrics on the validation set; keeps the state where it is the best so far."""
        looked_at = state.replace(params=evaluation_params(state))
        means = self._evaluate(looked_at, *self._feed, key=self._key)
        measured = {name: float(value) for name, value in means.items()}
        if measured[MONITORED] < self._smallest:
            self._keep(state, measured[MONITORED])
        return measured

    def _keep(self, state: TrainState, value: float) -> None:
        self._smallest = value
        self.best = jax.tree.map(jnp.copy, (evaluation_params(state), state.model_state, state.step))

    def report(self, show: Callable[[Progress], None], progress: Progress) -> bool | None:
        """Add to the history, show the progress, and ask the caller's function whether to stop."""
        ended = progress.step == progress.total_steps
        if progress.evaluation is not None or ended:
            record = {"step": progress.step, "epoch": progress.epoch, "train": progress.train}
            known = {} if progress.evaluation is None else {"validation": progress.evaluation}
            self.history.append(record | known)
            if self._files is not None:
                self._files.append(self.history[-1])
        self.step = progress.step
        if self._files is not None:
            self._files.note(progress, interval_ends=progress.epoch % 1 == 0)
        show(progress)
        return None if self._report is None else self._report(progress._replace(run=partial(self._run, progress.state)))

    def _run(self, state: TrainState) -> Run:
        """The run as it would end at a state."""
        return self._run_of(
            params=evaluation_params(state),
            model_state=state.model_state,
            history=list(self.history),
            step=int(state.step),
        )
