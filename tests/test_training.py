"""The step, the epoch program and the loop: what moves, what must not, and that nothing depends on how it was cut."""

import os
import signal
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from variants import SHAPE, VARIANTS, batch

import jaxvae
from jaxvae import data
from jaxvae.training.step import step_keys

VARIANT = VARIANTS["bernoulli"]
N, B = 40, 8


def images(num=N):
    image = np.random.default_rng(3).integers(0, 256, (num, *SHAPE), dtype=np.uint8)
    return data.from_arrays("noise", image)


ADAM = optax.adam(1e-3)
PREPARE = data.make_prepare(256, binarize=True)
STEP = jaxvae.make_train_step(VARIANT.loss_fn, ADAM, prepare=PREPARE)
SINGLE_STEP = jax.jit(STEP)
TRAIN_EPOCH = jaxvae.make_train_epoch(STEP)  # one compilation serves every test that takes the default


def setup(loss_fn=None, variant=VARIANT, epochs=3):
    """A fresh state, an epoch program, and five steps an epoch of noise."""
    state = jaxvae.init_train_state(variant.init, ADAM, key=jax.random.key(0))
    train_epoch = TRAIN_EPOCH
    if loss_fn is not None:
        train_epoch = jaxvae.make_train_epoch(jaxvae.make_train_step(loss_fn, ADAM, prepare=PREPARE))
    return state, train_epoch, data.Resident(images(), data.Order(N, B, epochs, 0), chunk=100)


def copy(tree):
    return jax.tree.map(lambda x: x.copy(), tree)


class TestStep:
    def test_a_plain_sgd_step_is_minus_the_gradient(self):
        optimizer = optax.sgd(0.1)
        state = jaxvae.init_train_state(VARIANT.init, optimizer, key=jax.random.key(0))
        new, metrics = jaxvae.make_train_step(VARIANT.loss_fn, optimizer)(state, batch(B))
        _, loss_key = step_keys(state.key, 0)
        grads = jax.grad(VARIANT.loss_fn, has_aux=True)(
            state.params, state.model_state, batch(B), key=loss_key, step=state.step
        )[0]
        chex.assert_trees_all_close(
            new.params, jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads), rtol=1e-6, atol=1e-7
        )
        np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-6)
        assert int(new.step) == 1
        assert jax.random.key_data(new.key).tolist() == jax.random.key_data(state.key).tolist()

    def test_every_step_draws_its_own_noise_for_images_and_latents(self):
        keys = [jax.random.key_data(k).tolist() for n in range(5) for k in step_keys(jax.random.key(0), n)]
        assert len({tuple(k) for k in keys}) == 10

    @pytest.mark.parametrize("poison", ["loss", "gradient"])
    def test_a_nan_freezes_the_state_and_names_the_step(self, poison):
        def loss_fn(params, model_state, batch, *, key, step):
            loss, (_, metrics) = VARIANT.loss_fn(params, (), batch, key=key, step=step)
            bad = step == 3
            loss = loss + jnp.where(bad, jnp.nan, 0.0) if poison == "loss" else loss
            if poison == "gradient":  # a finite value with an infinite slope
                leaf = jax.tree.leaves(params)[0].ravel()[0]
                loss = loss + jnp.sqrt(leaf - jax.lax.stop_gradient(leaf) + jnp.where(bad, 0.0, 1.0))
            return loss, ({"seen": model_state["seen"] + 1.0}, metrics)

        def init(*, key):
            return VARIANT.init(key=key)[0], {"seen": jnp.float32(0)}

        optimizer = optax.adam(1e-3)
        state = jaxvae.init_train_state(init, optimizer, key=jax.random.key(0))
        step = jax.jit(jaxvae.make_train_step(loss_fn, optimizer))
        for _ in range(3):
            state, _ = step(state, batch(B))
        good = state
        for _ in range(4):  # the step counter stands still too, so every later step would be step 3 again
            state, _ = step(state, batch(B))
            chex.assert_trees_all_equal(state.replace(first_bad=good.first_bad), good)
            assert int(state.first_bad) == 3
        assert float(state.model_state["seen"]) == 3

    def test_weak_types_do_not_compile_twice(self):
        def init(*, key):
            del key
            return {"w": jnp.full((3,), 1 / 3)}, {"usage": jnp.full((3,), 1 / 3)}

        def loss_fn(params, model_state, batch, *, key, step):
            return (params["w"] ** 2).sum(), (jax.tree.map(lambda x: x * 0.5, model_state), {})

        state = jaxvae.init_train_state(init, optax.sgd(0.1), key=jax.random.key(0))
        step = jax.jit(chex.assert_max_traces(jaxvae.make_train_step(loss_fn, optax.sgd(0.1)), n=1))
        for _ in range(3):
            state, _ = step(state, {})


class TestEpoch:
    def test_equals_its_own_steps(self):
        state, train_epoch, feed = setup()
        source, indices = feed(0, 10)
        expected = copy(state)
        for row in indices[:10]:
            expected, metrics = SINGLE_STEP(expected, {k: v[row] for k, v in source.items()})
        state, all_metrics = train_epoch(state, source, indices)
        chex.assert_trees_all_close(state.params, expected.params, atol=1e-6)
        assert int(state.step) == 10
        assert all_metrics["loss"].shape == (100,)
        np.testing.assert_allclose(all_metrics["loss"][9], metrics["loss"], rtol=1e-5)
        assert not all_metrics["loss"][10:].any()

    def test_any_cut_gives_the_same_bits_and_one_compilation(self):
        state, _, feed = setup()
        traced = chex.assert_max_traces(STEP, n=2)  # once for the shapes of the metrics, once for the program
        train_epoch = jaxvae.make_train_epoch(traced)
        whole, _ = train_epoch(copy(state), *feed(0, 15))
        for start, count in ((0, 1), (1, 6), (7, 8)):
            state, _ = train_epoch(state, *feed(start, count))
        chex.assert_trees_all_equal(whole, state)

    def test_streamed_and_resident_data_give_the_same_bits(self):
        state, train_epoch, resident = setup()
        streamed = data.Streamed(images(), data.Order(N, B, 3, 0), chunk=100)
        one, _ = train_epoch(copy(state), *resident(0, 15))
        other, _ = train_epoch(copy(state), *streamed(0, 15))
        chex.assert_trees_all_equal(one, other)

    def test_the_state_is_donated(self):
        state, train_epoch, feed = setup()
        train_epoch(state, *feed(0, 2))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))

    def test_a_stock_convolution_on_cpu_is_noticed_and_run_step_by_step(self):
        class StockEncoder(nn.Module):
            latent_dim: int = 2

            @nn.compact
            def __call__(self, image):
                features = nn.Conv(4, (3, 3), strides=(2, 2))(image).reshape(len(image), -1)
                return nn.Dense(2)(features), nn.Dense(2)(features)

        model = jaxvae.VAE(StockEncoder(), jaxvae.MLPDecoder(SHAPE, (8,)))
        variant = VARIANT._replace(init=lambda *, key: (model.init(key, jnp.zeros((1, *SHAPE))), ()))
        loss_fn = partial(jaxvae.vae_loss, model)
        state, train_epoch, feed = setup(loss_fn, variant=variant)
        step = jax.jit(jaxvae.make_train_step(loss_fn, ADAM, prepare=PREPARE))
        ours = copy(state)
        state, metrics = train_epoch(state, *feed(0, 5))
        source, indices = feed(0, 5)
        for row in indices[:5]:
            ours, last = step(ours, {k: v[row] for k, v in source.items()})
        chex.assert_trees_all_close(state.params, ours.params, atol=1e-6)
        np.testing.assert_allclose(metrics["loss"][4], last["loss"], rtol=1e-5)
        assert metrics["loss"].shape == (100,)

    def test_vmap_trains_several_members_at_once(self):
        _, train_epoch, feed = setup()
        keys = jax.vmap(jax.random.key)(jnp.arange(3))
        members = jax.vmap(lambda key: jaxvae.init_train_state(VARIANT.init, optax.adam(1e-3), key=key))(keys)
        trained, _ = jax.vmap(train_epoch, in_axes=(0, None, None))(copy(members), *feed(0, 5))
        alone = jax.tree.map(lambda x: x[1], members)
        alone, _ = train_epoch(alone, *feed(0, 5))
        chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], trained).params, alone.params, atol=1e-5)


class TestEvaluate:
    program = staticmethod(jaxvae.make_evaluate(jaxvae.make_eval_step(VARIANT.loss_fn, prepare=PREPARE)))

    def evaluate(self, state, num, batch_size, key):
        return self.program(state, *data.evaluation_feed(images(num), batch_size), key=key)

    def test_batching_and_padding_change_nothing(self, key):
        state, *_ = setup()
        whole = self.evaluate(state, 37, 37, key)
        for batch_size in (1, 8, 64):
            chex.assert_trees_all_close(whole, self.evaluate(state, 37, batch_size, key), rtol=1e-5)
        assert abs(self.evaluate(state, 32, 32, key)["loss"] - whole["loss"]) > 1e-3  # a dropped tail would show

    def test_equals_the_training_objective(self, key):
        state, *_ = setup()
        prepare_key, loss_key = jax.random.split(key)
        prepared = PREPARE({"image": jnp.asarray(images().image), "index": jnp.arange(N)}, key=prepare_key)
        value, (_, metrics) = VARIANT.loss_fn(state.params, (), prepared, key=loss_key, step=state.step)
        measured = self.evaluate(state, N, 16, key)
        np.testing.assert_allclose(measured["loss"], value, rtol=1e-5)
        np.testing.assert_allclose(measured["rate"], metrics["rate"], rtol=1e-5)

    def test_leaves_the_state_alone(self, key):
        state, *_ = setup()
        before = copy(state)
        self.evaluate(state, N, 16, key)
        chex.assert_trees_all_equal(before, state)


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
        test_feed = data.evaluation_feed(images(), 16)
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
            report=lambda p: os.kill(os.getpid(), number) if p.step == 8 else None,
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
