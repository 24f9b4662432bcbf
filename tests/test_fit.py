"""`fit`: what it reports, evaluates and saves, and how it ends."""

import math
import signal
from functools import partial
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_training import ADAM, PREPARE, VARIANT, B, copy, examples, setup

import jaxvae
from jaxvae import data


class Memory:
    """A checkpointer that remembers what it was given."""

    latest_step = None

    def __init__(self):
        self.saved, self.failed = [], None

    def save(self, state, *, value=None):
        self.latest_step = int(state.step)
        self.saved.append((int(state.step), value))

    def save_failed(self, state):
        self.failed = copy(state)
        return "/somewhere/failed"

    def wait(self):
        pass


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_the_means_of_narrow_metrics_are_taken_in_float32(dtype):
    """Of 512 ones in bfloat16 NumPy's mean was a half: its sum ends at 256."""

    def train_epoch(state, source, indices):
        return state.replace(step=state.step + len(indices)), {"loss": jnp.ones(len(indices), dtype)}

    state = jaxvae.init_train_state(lambda *, key: ({"w": jnp.zeros(1)}, ()), ADAM, key=jax.random.key(0))
    feed = lambda start, count: ({}, jnp.zeros((count, 1), jnp.int32))  # noqa: E731
    feed.steps_per_epoch = feed.total_steps = feed.chunk = 2**9
    feed.batch_size, reports = 1, []
    jaxvae.fit(state, train_epoch, feed, report=reports.append)
    assert [report.train["loss"] for report in reports] == [1.0] * len(reports)
    assert reports[-1].by_step["loss"].shape == (2**9,)


class TestFit:
    def test_reports_evaluates_and_saves_on_schedule(self):
        state, train_epoch, feed = setup(epochs=7)
        reports, checkpointer = [], Memory()
        result = jaxvae.fit(
            state,
            train_epoch,
            feed,
            evaluate=lambda state: {"loss": 100.0 - int(state.step)},
            evaluate_every=10,
            checkpointer=checkpointer,
            report=reports.append,
            monitor="loss",
        )
        assert result.stopped is None
        assert int(result.state.step) == 35
        assert checkpointer.saved == [(10, 90.0), (20, 80.0), (30, 70.0), (35, 65.0)]
        evaluated = [r for r in reports if r.evaluation is not None]
        assert [(r.step, r.epoch, r.evaluation) for r in evaluated] == [
            (s, s / 5, {"loss": 100.0 - s}) for s in (10, 20, 30, 35)
        ]
        assert reports[-1].seconds_left == 0
        assert all(r.examples_per_second > 0 and set(r.train) >= {"loss", "rate", "distortion"} for r in reports)

    def test_the_training_metrics_are_means_since_the_last_evaluation(self):
        state, train_epoch, feed = setup(epochs=2)
        _, metrics = train_epoch(copy(state), *feed(0, 10))
        reports = []
        jaxvae.fit(state, train_epoch, feed, evaluate_every=6, report=reports.append)
        at = {r.step: r.train["loss"] for r in reports}
        np.testing.assert_allclose(at[6], metrics["loss"][:6].mean(), rtol=1e-6)
        np.testing.assert_allclose(at[10], metrics["loss"][6:10].mean(), rtol=1e-6)

    def test_nothing_compiles_after_the_first_evaluation(self):
        """One program for every epoch, whatever its length, and for every value of a schedule."""
        compiled, at_report = [], []
        listen = jax.monitoring.register_event_duration_secs_listener
        listen(lambda event, _, **__: compiled.append(event) if "backend_compile" in event else None)
        state, _, feed = setup(epochs=8)
        loss_fn = partial(jaxvae.vae_loss, VARIANT.model, beta=optax.linear_schedule(0.0, 1.0, 20))
        train_epoch = jaxvae.make_train_epoch(jaxvae.make_train_step(loss_fn, ADAM, prepare=PREPARE))
        evaluate = jaxvae.make_evaluate(jaxvae.make_eval_step(loss_fn, prepare=PREPARE))
        test_feed = data.evaluation_feed(examples(), 16)
        result = jaxvae.fit(
            state,
            train_epoch,
            feed,
            evaluate=lambda state: jax.device_get(evaluate(state, *test_feed, key=jax.random.key(0))),
            evaluate_every=7,
            report=lambda _: at_report.append(len(compiled)),
        )
        assert int(result.state.step) == 40
        assert at_report[0] > 0  # the listener hears
        assert len(at_report) >= 6
        assert at_report[-1] == at_report[0]

    def test_the_cut_into_programs_and_a_restart_change_no_bit(self):
        state, train_epoch, feed = setup(epochs=4)
        whole = jaxvae.fit(copy(state), train_epoch, feed, evaluate_every=20).state
        often = jaxvae.fit(copy(state), train_epoch, feed, evaluate_every=3).state
        half, _ = train_epoch(state, *feed(0, 9))
        resumed = jaxvae.fit(half, train_epoch, feed).state
        chex.assert_trees_all_equal(whole, often)
        chex.assert_trees_all_equal(whole, resumed)

    def test_a_finished_run_is_left_alone(self):
        state, train_epoch, feed = setup(epochs=1)
        done = jaxvae.fit(state, train_epoch, feed).state
        again = jaxvae.fit(copy(done), train_epoch, feed, report=lambda _: pytest.fail("ran")).state
        chex.assert_trees_all_equal(done, again)

    def test_early_stopping(self):
        state, train_epoch, feed = setup(epochs=50)
        values = iter([5.0, 4.0, 4.5, 4.1, 4.2, 1.0])
        result = jaxvae.fit(
            state,
            train_epoch,
            feed,
            evaluate=lambda _: {"loss": next(values)},
            monitor="loss",
            patience=3,
        )
        assert result.stopped == "early stopping"
        assert int(result.state.step) == 25

    @pytest.mark.parametrize(
        ("values", "evaluations"),
        [
            ([5.0, 5.0, 5.0, 1.0], 3),  # a tie is no progress
            ([5.0, math.nan, math.nan, 1.0], 3),
            ([math.nan, math.nan, 1.0], 2),
            ([5.0, math.nan, 4.0, 4.5, math.nan, 1.0], 5),  # a best value survives a NaN
            ([-math.inf, 5.0, 4.0, 4.5, 6.0], 5),
        ],
    )
    def test_what_counts_as_progress(self, values, evaluations):
        state, train_epoch, feed = setup(epochs=50)
        left = iter(values)
        result = jaxvae.fit(
            state, train_epoch, feed, evaluate=lambda _: {"loss": next(left)}, monitor="loss", patience=2
        )
        assert result.stopped == "early stopping"
        assert int(result.state.step) == 5 * evaluations

    def test_the_rate_leaves_the_first_program_out(self, monkeypatch):
        """By a clock that only the programs move: a hundred seconds for the first, one for each other step."""
        clock = SimpleNamespace(now=0.0, programs=0)
        monkeypatch.setattr("jaxvae.training.fit.time", SimpleNamespace(perf_counter=lambda: clock.now))
        state, _, feed = setup(epochs=4)
        rates = []

        def train_epoch(state, source, indices):
            taken = int((indices[:, 0] >= 0).sum())
            clock.now += taken if clock.programs else 100.0
            clock.programs += 1
            return state.replace(step=state.step + taken), {"loss": jnp.zeros(len(indices))}

        jaxvae.fit(state, train_epoch, feed, report=lambda p: rates.append((p.examples_per_second, p.seconds_left)))
        assert rates[0][0] == 5 * B / 100.0
        assert len(rates) > 2
        assert all(rate == B for rate, _ in rates[1:])
        assert rates[1][1] == 10  # seconds, for as many steps

    @pytest.mark.parametrize(("seconds", "expected"), [(1 / 64, 32), (0.25, 4), (1.0, 4), (2.0, 2), (60.0, 1)])
    def test_a_slow_step_shares_its_program(self, seconds, expected, monkeypatch):
        """Half a second of steps, or four that take five seconds at most, or one."""
        clock = SimpleNamespace(now=0.0)
        monkeypatch.setattr("jaxvae.training.fit.time", SimpleNamespace(perf_counter=lambda: clock.now))
        state, _, _ = setup(epochs=1)
        lengths = []

        def train_epoch(state, count):
            lengths.append(count)
            clock.now += seconds * count
            return state.replace(step=state.step + count), {"loss": jnp.zeros(count)}

        class Feed:
            steps_per_epoch, total_steps, batch_size, chunk = 1000, 200, B, 64

            def __call__(self, start, count):
                return (count,)

        jaxvae.fit(state, train_epoch, Feed())
        assert lengths[:5] == [8, 8, 8, expected, expected]

    @pytest.mark.parametrize("where", ["report", "evaluate", "monitor", "feed"])
    @pytest.mark.parametrize("saves", [True, False])
    def test_what_a_callers_function_raises_loses_no_state(self, where, saves):
        state, train_epoch, feed = setup(epochs=4)
        expected, _ = train_epoch(copy(state), *feed(0, 5))
        checkpointer = Memory() if saves else None

        class Failing:
            steps_per_epoch, total_steps, batch_size, chunk = 5, 20, B, feed.chunk

            def __call__(self, start, count):
                if where == "feed" and start == 5:
                    raise KeyError("yours")
                return feed(start, count)

        def evaluate(state):
            if where == "evaluate":
                raise KeyError("yours")
            return {"loss": 3.0}

        def report(progress):
            if where == "report":
                raise KeyError("yours")

        options = {"evaluate": evaluate, "report": report, "monitor": "other" if where == "monitor" else "loss"}
        with pytest.raises((KeyError, ValueError), match=r"yours|monitor 'other'") as raised:
            jaxvae.fit(state, train_epoch, Failing(), checkpointer=checkpointer, **options)
        (note,) = raised.value.__notes__
        if saves:
            assert checkpointer.saved == [(5, 3.0 if where == "report" else None)]
            assert note == "raised after step 5, whose state was saved as a checkpoint"
        else:
            chex.assert_trees_all_equal(raised.value.state, expected)
            assert note == "raised after step 5, whose state is this exception's attribute `state`"

    def test_a_state_that_cannot_be_saved_goes_with_the_exception(self):
        class Full(Memory):
            def save(self, state, *, value=None):
                raise OSError("disk full")

        state, train_epoch, feed = setup(epochs=1)
        with pytest.raises(ZeroDivisionError) as raised:
            jaxvae.fit(state, train_epoch, feed, checkpointer=Full(), report=lambda p: 1 // 0)
        assert int(raised.value.state.step) == 5
        assert "could not be saved (disk full)" in raised.value.__notes__[0]

    def test_options_that_need_others_say_so(self):
        state, train_epoch, feed = setup()
        with pytest.raises(ValueError, match="patience needs the name of a metric to monitor"):
            jaxvae.fit(state, train_epoch, feed, patience=3)
        with pytest.raises(ValueError, match="monitor needs an evaluate function"):
            jaxvae.fit(state, train_epoch, feed, monitor="loss")
        with pytest.raises(ValueError, match="monitor 'lost' is not among the metrics loss, rate"):
            jaxvae.fit(
                state,
                train_epoch,
                feed,
                monitor="lost",
                evaluate_every=1,
                evaluate=lambda _: {"rate": 1.0, "loss": 2.0},
            )

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_the_run_with_a_checkpoint_and_resuming_completes_it(self, number):
        state, train_epoch, feed = setup(epochs=4)
        whole = jaxvae.fit(copy(state), train_epoch, feed).state
        checkpointer = Memory()
        before = signal.getsignal(number)
        stopped = jaxvae.fit(
            state, train_epoch, feed, checkpointer=checkpointer, evaluate_every=4,
            report=lambda p: signal.raise_signal(number) if p.step == 8 else None,
        )  # fmt: skip
        assert stopped.stopped == signal.Signals(number).name
        assert 8 < int(stopped.state.step) < 20
        assert checkpointer.latest_step == int(stopped.state.step)
        assert signal.getsignal(number) == before
        chex.assert_trees_all_equal(whole, jaxvae.fit(stopped.state, train_epoch, feed).state)

    def test_a_nan_stops_the_run_names_the_step_and_saves_apart(self):
        def loss_fn(params, model_state, batch, *, key, step):
            loss, aux = VARIANT.loss_fn(params, model_state, batch, key=key, step=step)
            return jnp.where(step == 13, jnp.nan, loss), aux

        state, train_epoch, feed = setup(loss_fn, epochs=10)
        checkpointer = Memory()
        with pytest.raises(
            jaxvae.NonFiniteError,
            match=r"not finite at step 13; .* The last good checkpoint is step 10; .* /somewhere/failed",
        ) as raised:
            jaxvae.fit(state, train_epoch, feed, checkpointer=checkpointer)
        assert raised.value.step == 13
        assert checkpointer.saved == [(5, None), (10, None)]
        assert int(checkpointer.failed.step) == 13
        chex.assert_tree_all_finite(checkpointer.failed.params)
