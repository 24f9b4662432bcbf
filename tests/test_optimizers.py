"""Optimisers that are evaluated elsewhere than they train, that wait, and that look at the loss: through `train`."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

import jaxvae
from jaxvae import data
from jaxvae.training import evaluation_params, with_ema

SHAPE, N, D = (4, 4, 1), 64, 2
ANGLE = np.linspace(0, 2 * np.pi, N)
IMAGES = (1 / (1 + np.exp(-3 * np.sin(ANGLE[:, None] + np.linspace(0, 4, 16))))).reshape(N, *SHAPE)
MINE = data.from_arrays("mine", IMAGES)
MODEL = jaxvae.VAE(jaxvae.MLPEncoder(D, hidden=(8,)), jaxvae.MLPDecoder(SHAPE, hidden=(8,)))
EPOCHS, STEPS = 3, 12
FEED = data.Resident(MINE, data.Order(N, 16, EPOCHS, seed=0))


def train(optimizer, **options):
    """Four steps an epoch."""
    options = {"validation": 0, "epochs": EPOCHS, "batch_size": 16, "progress": False} | options
    return jaxvae.train(MODEL, MINE, optimizer=optimizer, **options)


def init(*, key):
    return MODEL.init(key, jnp.zeros((1, *SHAPE))), ()


def make_step(optimizer, loss=jaxvae.vae_loss):
    return jaxvae.make_train_step(partial(loss, MODEL), optimizer, prepare=MINE.prepare)


def trajectory(optimizer, steps=STEPS):
    """The states after every step of the same training, by hand, in one program."""
    step = make_step(optimizer)
    state = jaxvae.init_train_state(init, optimizer, key=jax.random.key(0))
    source, indices = FEED(0, steps)

    def body(state, row):
        state, _ = step(state, {name: values[row] for name, values in source.items()})
        return state, state

    _, states = jax.jit(lambda state: jax.lax.scan(body, state, indices[:steps]))(state)
    return [jax.tree.map(lambda leaf, n=n: leaf[n], states) for n in range(steps)]


def averaged(states, decay):
    """The parameters' mean over the steps, weighted by decay^age, in float64."""
    weights = np.float64(decay) ** np.arange(len(states))[::-1]
    each = [jax.tree.map(np.float64, state.params) for state in states]
    return jax.tree.map(lambda *leaves: np.tensordot(weights / weights.sum(), leaves, 1), *each)


def close(tree, expected, rtol=2e-5):
    chex.assert_trees_all_close(tree, expected, rtol=rtol, atol=1e-6)


class TestMovingAverage:
    @pytest.mark.parametrize("decay", [pytest.param(0.5, marks=pytest.mark.slow), 0.9999])
    def test_it_is_the_weighted_mean_of_all_steps(self, decay):
        states = trajectory(optax.adam(0.02))
        close(train(optax.adam(0.02), ema=decay).params, averaged(states, decay))

    @pytest.mark.slow
    def test_the_trained_parameters_are_the_same_bits(self):
        optimizers = optax.adam(0.02), with_ema(optax.adam(0.02), 0.9)
        first, second = (jaxvae.init_train_state(init, each, key=jax.random.key(0)) for each in optimizers)
        chex.assert_trees_all_equal(evaluation_params(second), second.params)  # before the first step
        plain, with_average = (jaxvae.make_train_epoch(make_step(each)) for each in optimizers)
        first, metrics = plain(first, *FEED(0, STEPS))
        second, others = with_average(second, *FEED(0, STEPS))
        chex.assert_trees_all_equal((first.params, first.opt_state), (second.params, second.opt_state.inner))
        chex.assert_trees_all_equal(metrics, others)

    @pytest.mark.slow
    def test_it_is_evaluated_and_the_best_one_comes_back(self):
        noisy = optax.sgd(0.3)
        run = train(noisy, ema=0.9, validation=MINE, epochs=EPOCHS)
        plain = train(noisy, validation=MINE, epochs=EPOCHS)
        values, others = ([record["validation"]["loss"] for record in each.history] for each in (run, plain))
        assert [record["train"] for record in run.history] == [record["train"] for record in plain.history]
        assert values != others
        best = run.history[int(np.argmin(values))]
        assert run.step == best["step"]
        assert run.evaluate(MINE, num_samples=2)["rate"] == pytest.approx(best["validation"]["rate"], rel=1e-5)

    @pytest.mark.slow
    def test_a_step_that_is_not_finite_leaves_it_alone(self):
        def loss(model, params, model_state, batch, *, key, step):
            value, aux = jaxvae.vae_loss(model, params, model_state, batch, key=key, step=step)
            return jnp.where(step == 5, jnp.nan, value), aux

        optimizer = with_ema(optax.adam(0.02), 0.9)
        states = []
        for objective, count in ((loss, STEPS), (jaxvae.vae_loss, 5)):
            state = jaxvae.init_train_state(init, optimizer, key=jax.random.key(0))
            states.append(jaxvae.make_train_epoch(make_step(optimizer, objective))(state, *FEED(0, count))[0])
        assert [int(state.first_bad) for state in states] == [5, -1]
        chex.assert_trees_all_equal(states[0].opt_state, states[1].opt_state)
        with pytest.raises(jaxvae.NonFiniteError, match="step 5"):
            train(optax.adam(0.02), ema=0.9, loss=loss)

    def test_narrow_parameters_have_a_wide_average(self):
        optimizer = with_ema(optax.sgd(1.0), 0.999)
        params = {"a": jnp.ones(3, jnp.bfloat16)}
        opt_state = optimizer.init(params)
        for _ in range(4):
            updates, opt_state = optimizer.update({"a": jnp.full(3, -1, jnp.bfloat16)}, opt_state, params)
            params = optax.apply_updates(params, updates)
        assert opt_state.average.ema["a"].dtype == jnp.float32
        state = jaxvae.TrainState(jnp.int32(4), params, (), opt_state, jax.random.key(0), jnp.int32(-1))
        assert evaluation_params(state)["a"].dtype == jnp.bfloat16
        close(evaluation_params(state)["a"].astype(jnp.float32), jnp.full(3, 3.5))  # of 2, 3, 4 and 5

    @pytest.mark.slow
    def test_it_survives_a_kill(self, tmp_path):
        options = {"ema": 0.9, "validation": 0.25, "batch_size": 8, "out": tmp_path}
        whole = train(optax.adam(0.02), **options | {"out": None})
        stopped = train(optax.adam(0.02), report=lambda progress: True, **options)
        assert stopped.step < whole.history[-1]["step"]
        resumed = train(optax.adam(0.02), resume=True, **options)
        chex.assert_trees_all_equal(resumed.params, whole.params)
        assert resumed.history == whole.history
        with pytest.raises(ValueError, match=r"ema: 0\.9 -> 0\.99"):
            train(optax.adam(0.02), resume=True, **options | {"ema": 0.99})

    @pytest.mark.parametrize("decay", [0, 0.0, 1, 1.0, -0.1, 1.5, np.nan, np.inf, 1 - 1e-12, 1e-50])
    def test_a_decay_that_is_none(self, decay):
        with pytest.raises(ValueError, match=r"ema must lie between 0 and 1, such as 0\.999, got"):
            train(None, ema=decay)

    @pytest.mark.parametrize("decay", [True, "0.9", [0.9], jnp.ones(2)])
    def test_a_decay_that_is_no_number(self, decay):
        with pytest.raises(TypeError, match=r"ema must be a number between 0 and 1, such as 0\.999, got"):
            train(None, ema=decay)


class TestScheduleFree:
    def test_it_is_evaluated_and_returned_at_its_averages(self):
        optimizer = contrib.schedule_free_adamw(0.05, b1=0.9)
        states = trajectory(optimizer)
        run = train(optimizer)
        found = [leaf for leaf in states[-1].opt_state if isinstance(leaf, contrib.ScheduleFreeState)]
        inner = found[0] if found else states[-1].opt_state
        close(run.params, contrib.schedule_free_eval_params(inner, states[-1].params))
        first = jax.tree.leaves(states[-1].params)
        assert any(np.abs(a - b).max() > 1e-3 for a, b in zip(first, jax.tree.leaves(run.params), strict=True))
        validated = train(optimizer, validation=MINE)
        at_its_best = validated.history[-1]["validation"]["rate"]
        assert validated.step == STEPS
        assert validated.evaluate(MINE, num_samples=2)["rate"] == pytest.approx(at_its_best, rel=1e-5)
        close(validated.params, run.params)

    @pytest.mark.slow
    def test_within_other_optimizers(self):
        free = contrib.schedule_free(optax.sgd(0.1), 0.1)
        clipped = optax.chain(optax.clip_by_global_norm(1.0), free)
        states = trajectory(clipped)
        close(train(clipped).params, contrib.schedule_free_eval_params(states[-1].opt_state[1], states[-1].params))

    def test_what_cannot_be_averaged(self):
        free = contrib.schedule_free(optax.sgd(0.1), 0.1)
        with pytest.raises(ValueError, match="the optimizer is schedule-free and averages its parameters already"):
            train(free, ema=0.9)

        def label(params):
            return jax.tree.map_with_path(lambda path, _: "free" if "encoder" in str(path) else "sgd", params)

        with pytest.raises(ValueError, match="schedule_free must train all parameters"):
            train(optax.partition({"free": free, "sgd": optax.sgd(0.1)}, label))


class TestMultiSteps:
    @pytest.mark.slow
    def test_nothing_is_evaluated_between_two_updates(self):
        """Three steps to an update, four to an epoch: the evaluations see the parameters after 1, 2 and 4 updates."""
        every = optax.MultiSteps(optax.adam(0.02), 3)
        states = trajectory(every)
        leaf = [np.asarray(jax.tree.leaves(state.params)[0]) for state in states]
        changed = [i + 1 for i in range(1, STEPS) if (leaf[i] != leaf[i - 1]).any()]
        assert changed == [3, 6, 9, 12]
        run = train(every, validation=MINE)
        for record in run.history:
            done = states[record["step"] // 3 * 3 - 1]  # the last update before it
            again = type(run)(**vars(run) | {"params": done.params})
            rate = again.evaluate(MINE, num_samples=2)["rate"]
            assert record["validation"]["rate"] == pytest.approx(rate, rel=1e-5)

    @pytest.mark.slow
    def test_it_averages_gradients_and_every_step_counts_in_the_average(self):
        every = optax.MultiSteps(optax.adam(0.02), 3).gradient_transformation()
        states = trajectory(every)
        close(train(optax.MultiSteps(optax.adam(0.02), 3), ema=0.9).params, averaged(states, 0.9))


class TestTheLossIsLookedAt:
    @pytest.mark.parametrize("ema", [None, pytest.param(0.5, marks=pytest.mark.slow)])
    @pytest.mark.slow
    def test_a_line_search(self, ema):
        """The whole set as one batch and one draw for each: L-BFGS is far ahead of a gradient step."""
        options = {"batch_size": N, "epochs": 15, "ema": ema}
        found = train(optax.lbfgs(), **options)
        descent = train(optax.sgd(0.01), **options)
        assert found.history[-1]["train"]["loss"] < descent.history[-1]["train"]["loss"] - 0.3

    @pytest.mark.parametrize("ema", [pytest.param(None, marks=pytest.mark.slow), 0.5])
    def test_a_rate_that_falls_on_a_plateau(self, ema):
        plateau = contrib.reduce_on_plateau(factor=0.5, patience=1, rtol=1.0)  # nothing is ever better by as much
        run = train(optax.chain(optax.sgd(0.1), plateau), ema=ema, epochs=2)
        states = trajectory(optax.chain(optax.sgd(0.1), plateau), steps=8)
        assert float(states[-1].opt_state[1].scale) < 0.2
        if ema is None:
            close(run.params, states[-1].params)

    def test_what_no_step_can_give_is_named_through_the_average_too(self):
        def update(updates, state, params=None, *, hessian):
            return updates, state

        wants = optax.GradientTransformationExtraArgs(lambda params: (), update)
        for ema in (None, 0.9):
            with pytest.raises(
                TypeError, match="wants 'hessian', and a training step can only give it value, grad and"
            ):
                train(wants, ema=ema)


def test_an_average_of_a_part_of_the_parameters_is_refused():
    groups = optax.partition({"a": with_ema(optax.sgd(0.1), 0.9), "b": optax.sgd(0.1)}, {"a": "a", "b": "b"})
    state = jaxvae.training.init_train_state(
        lambda *, key: ({"a": jnp.ones(2), "b": jnp.ones(3)}, ()), groups, key=jax.random.key(0)
    )
    with pytest.raises(ValueError, match=r"the average is of a part of the parameters, .* with_ema\(adversarial_opt"):
        evaluation_params(state)
