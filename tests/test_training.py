"""The step, the epoch program and the loop: what moves, what must not, and that nothing depends on how it was cut."""

import math
import pickle
from functools import partial
from types import SimpleNamespace

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
from jaxvae._whole_batch import needs_whole_batch
from jaxvae.training import sweep
from jaxvae.training.fit import _warn_of_skipped
from jaxvae.training.step import step_keys

VARIANT = VARIANTS["bernoulli"]
N, B = 40, 8


def examples(num=N):
    x = np.random.default_rng(3).integers(0, 256, (num, *SHAPE), dtype=np.uint8)
    return data.from_arrays("noise", x)


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
    return state, train_epoch, data.Resident(examples(), data.Order(N, B, epochs, 0), chunk=100)


def copy(tree):
    return jax.tree.map(lambda x: x.copy(), tree)


class TestStep:
    def test_a_plain_sgd_step_is_minus_the_gradient(self):
        optimizer = optax.sgd(0.1)
        state = jaxvae.init_train_state(VARIANT.init, optimizer, key=jax.random.key(0))
        new, metrics = jax.jit(jaxvae.make_train_step(VARIANT.loss_fn, optimizer))(state, batch(B))
        _, loss_key = step_keys(state.key, 0)
        grads = jax.jit(jax.grad(VARIANT.loss_fn, has_aux=True))(
            state.params, state.model_state, batch(B), key=loss_key, step=state.step
        )[0]
        chex.assert_trees_all_close(
            new.params, jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads), rtol=1e-6, atol=1e-7
        )
        np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(grads), rtol=1e-6)
        assert int(new.step) == 1
        assert jax.random.key_data(new.key).tolist() == jax.random.key_data(state.key).tolist()

    def test_every_step_draws_its_own_noise_for_data_and_latents(self):
        keys = [jax.random.key_data(k).tolist() for n in range(5) for k in step_keys(jax.random.key(0), n)]
        assert len({tuple(k) for k in keys}) == 10

    @pytest.mark.parametrize(
        ("dtype", "x64"),
        [("float64", True), *((narrow, x64) for narrow in ("float16", "bfloat16", "float32") for x64 in (False, True))],
    )
    def test_parameters_of_any_type_are_trained_in_either_mode(self, dtype, x64):
        """The norm of the gradient was of one type where it is large and of another where it is not."""

        def loss_fn(params, model_state, batch, *, key, step):
            loss = (batch["x"].astype(params["w"].dtype) * params["w"][None]).mean()
            return loss, (model_state, {"loss": loss})

        with jax.enable_x64(x64):
            state = jaxvae.init_train_state(
                lambda *, key: ({"w": jnp.zeros(2, dtype)}, ()), optax.sgd(1.0), key=jax.random.key(0)
            )
            source = {"x": jnp.full((4, 2), 32.0, jnp.float32), "index": jnp.arange(4)}
            train_epoch = jaxvae.make_train_epoch(jaxvae.make_train_step(loss_fn, optax.sgd(1.0)))
            state, metrics = train_epoch(state, source, jnp.arange(4, dtype=jnp.int32).reshape(2, 2))
            assert state.params["w"].tolist() == [-32.0, -32.0]
            np.testing.assert_allclose(metrics["grad_norm"], 16 * math.sqrt(2), rtol=1e-6)

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

    @pytest.mark.parametrize("epoch", [False, True])
    def test_a_step_with_a_large_gradient_changes_nothing_and_is_counted(self, epoch):
        """The slope is 10 at every third step, which a norm of 5 does not let through, and 1 at the others."""

        def init(*, key):
            del key
            return {"w": jnp.zeros(1)}, {"seen": jnp.float32(0)}

        def loss_fn(params, model_state, batch, *, key, step):
            del batch, key
            loss = params["w"].sum() * jnp.where(step % 3 == 2, 10.0, 1.0)
            return loss, ({"seen": model_state["seen"] + 1}, {"loss": loss})

        optimizer = jaxvae.training.with_ema(optax.adam(0.1), 0.5)
        state = jaxvae.init_train_state(init, optimizer, key=jax.random.key(0))
        step = jaxvae.make_train_step(loss_fn, optimizer, skip_above=5.0)
        small = jax.jit(jaxvae.make_train_step(partial(loss_fn), optimizer))
        if epoch:
            indices = jnp.zeros((7, 1), jnp.int32)
            state, metrics = jaxvae.make_train_epoch(step)(state, {"x": jnp.zeros((1, 1))}, indices)
            assert metrics["skipped"].tolist() == [0, 0, 1, 0, 0, 1, 0]
        else:
            for n in range(7):
                before, (state, metrics) = state, jax.jit(step)(state, {})
                assert metrics["skipped"] == (n % 3 == 2)
                assert state.step == n + 1
                if metrics["skipped"]:
                    chex.assert_trees_all_equal(state, before.replace(step=before.step + 1))
                    assert metrics["grad_norm"] == 10
        assert state.first_bad == -1
        assert state.model_state["seen"] == 5
        # Where the large ones are left out, the others are an ordinary run of five steps.
        plain = jaxvae.init_train_state(init, optimizer, key=jax.random.key(0))
        for n in (0, 1, 3, 4, 6):
            plain, _ = small(plain.replace(step=jnp.int32(n)), {})
        chex.assert_trees_all_close(state.params, plain.params, rtol=1e-6)
        chex.assert_trees_all_close(state.opt_state, plain.opt_state, rtol=1e-6)

    def test_what_is_not_finite_is_an_error_and_not_skipped(self):
        init, loss_fn = straight(jnp.nan)
        state = jaxvae.init_train_state(init, ADAM, key=jax.random.key(0))
        step = jax.jit(jaxvae.make_train_step(loss_fn, ADAM, skip_above=1.0))
        for _ in range(4):
            state, metrics = step(state, batch(2))
        assert state.first_bad == 2
        assert metrics["skipped"] == 0

    @pytest.mark.parametrize("norm", [0.0, -1.0, math.nan])
    def test_a_norm_that_is_none(self, norm):
        with pytest.raises(ValueError, match="skip_above must be a positive norm"):
            jaxvae.make_train_step(VARIANT.loss_fn, ADAM, skip_above=norm)
        with pytest.raises(TypeError, match=r"skip_above must be a number, .* got True"):
            jaxvae.make_train_step(VARIANT.loss_fn, ADAM, skip_above=True)

    def test_a_run_whose_steps_are_all_skipped_says_so(self):
        state, _, feed = setup(epochs=1)
        step = jaxvae.make_train_step(VARIANT.loss_fn, ADAM, prepare=PREPARE, skip_above=1e-3)
        with pytest.warns(UserWarning, match=r"all 5 steps since the last evaluation were skipped.*raise skip_above"):
            reached = jaxvae.fit(state, jaxvae.make_train_epoch(step), feed)
        assert int(reached.state.step) == 5

    def test_a_run_that_is_stuck_after_some_steps_says_so(self):
        def history(*skipped):
            norms = np.array([1.0, 30.0, 3.0, 10.0, 20.0])
            return [{"skipped": np.array(skipped[i:j]), "grad_norm": norms[i:j]} for i, j in ((0, 3), (3, 5))]

        with pytest.warns(UserWarning, match=r"3 of 5 steps .* between 10 and 30; .* lower the learning rate"):
            _warn_of_skipped(history(0.0, 1.0, 0.0, 1.0, 1.0))
        _warn_of_skipped(history(0.0, 0.0, 0.0, 1.0, 1.0))  # a warning would be an error here

    def test_weak_types_do_not_compile_twice(self):
        def init(*, key):
            del key
            return {"w": jnp.full((3,), 1 / 3)}, {"usage": jnp.full((3,), 1 / 3)}

        def loss_fn(params, model_state, batch, *, key, step):
            return (params["w"] ** 2).sum(), (jax.tree.map(lambda x: x * 0.5, model_state), {})

        state = jaxvae.init_train_state(init, optax.sgd(0.1), key=jax.random.key(0))
        step = jax.jit(chex.assert_max_traces(jaxvae.make_train_step(loss_fn, optax.sgd(0.1)).__call__, n=1))
        for _ in range(3):
            state, _ = step(state, {})


def straight(slope, start=0.0):
    """A loss with one parameter and this slope in it."""

    def init(*, key):
        del key
        return {"w": jnp.full(2, start)}, ()

    def loss_fn(params, model_state, batch, *, key, step):
        del batch, key
        loss = (params["w"] * jnp.where(step >= 2, slope, 0.0)).sum()
        return loss, (model_state, {"loss": loss})

    return init, loss_fn


def steps_of(init, loss_fn, optimizer, num=5, epoch=False):
    """A state after so many steps, the one before them, and the last metrics."""
    state = jaxvae.init_train_state(init, optimizer, key=jax.random.key(0))
    before, step = copy(state), jaxvae.make_train_step(loss_fn, optimizer)
    if epoch is True:
        state, metrics = jaxvae.make_train_epoch(step)(state, batch(4), jnp.zeros((num, 2), jnp.int32))
        return state, before, jax.tree.map(lambda values: values[-1], metrics)
    one = jax.jit(step.undoing if epoch else step)
    for _ in range(num):
        state, metrics = one(state, batch(4))
    return state, before, metrics


# "one by one" is what an epoch does where a loop is slow: it undoes a bad step as the program of all of them does.
EVERY_WAY = pytest.mark.parametrize("epoch", [False, True, "one by one"], ids=["step", "epoch", "one by one"])


class TestLargeNumbers:
    @EVERY_WAY
    def test_a_gradient_of_1e20_is_finite_and_so_is_its_norm(self, epoch):
        """Its square is not."""
        state, _, metrics = steps_of(*straight(jnp.float32([3e20, 4e20])), optax.sgd(1e-20), epoch=epoch)
        assert int(state.first_bad) == -1
        assert int(state.step) == 5
        np.testing.assert_allclose(metrics["grad_norm"], 5e20, rtol=1e-6)
        np.testing.assert_allclose(state.params["w"], [-9, -12], rtol=1e-6)

    @EVERY_WAY
    def test_a_finite_gradient_may_have_a_norm_that_is_not(self, epoch):
        state, _, metrics = steps_of(*straight(jnp.float32([3e38, 3e38])), optax.sgd(1e-38), epoch=epoch)
        assert int(state.first_bad) == -1
        assert int(state.step) == 5
        assert not np.isfinite(metrics["grad_norm"])

    @EVERY_WAY
    @pytest.mark.parametrize(("rate", "num"), [(1e10, 5), (1e10, 3), (math.inf, 5), (math.nan, 1)])  # also at the last
    def test_an_update_that_overflows_is_this_steps_and_an_epoch_undoes_it(self, epoch, rate, num):
        init, loss_fn = straight(jnp.float32([1e30, 1.0]), start=1.0)
        optimizer = optax.chain(optax.trace(0.9), optax.scale(-rate))
        state, before, _ = steps_of(init, loss_fn, optimizer, num, epoch=epoch)
        first = 0 if not math.isfinite(rate) else 2  # the slope is zero before
        assert int(state.first_bad) == first
        assert int(state.step) == (first if epoch else first + 1)  # the step by itself says that it went past
        if epoch:
            chex.assert_trees_all_equal(state.params, before.params)
            chex.assert_trees_all_equal(state.opt_state, before.opt_state)

    @EVERY_WAY
    def test_a_model_state_that_overflows_is_this_steps(self, epoch):
        def init(*, key):
            del key
            return {"w": jnp.ones(2)}, {"power": jnp.float32(1e30)}

        def loss_fn(params, model_state, batch, *, key, step):
            loss = (params["w"] ** 2).sum()
            return loss, ({"power": model_state["power"] * 1e3}, {"loss": loss})

        state, _, _ = steps_of(init, loss_fn, optax.sgd(0.1), epoch=epoch)
        assert int(state.first_bad) == 2  # 1e39
        assert int(state.step) == (2 if epoch else 3)
        if epoch:
            np.testing.assert_allclose(state.model_state["power"], 1e36, rtol=1e-6)
            np.testing.assert_allclose(state.params["w"], 0.8**2, rtol=1e-6)

    @EVERY_WAY
    def test_a_moment_that_overflows_would_stop_its_parameter_for_ever(self, epoch):
        """Adam's second moment of 1e20: every later update would be zero."""
        state, before, _ = steps_of(*straight(jnp.float32([1e20, 1.0])), optax.adam(1e-3), epoch=epoch)
        assert int(state.first_bad) == 2
        assert int(state.step) == (2 if epoch else 3)
        if epoch:
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state.opt_state))
            chex.assert_trees_all_equal(state.params, before.params)

    @pytest.mark.slow
    def test_the_steps_before_an_overflow_are_those_of_a_run_without(self):
        """The epoch takes them twice: the same bits, and the metrics of each once."""

        def loss_fn(params, model_state, batch, *, key, step):
            loss, aux = VARIANT.loss_fn(params, (), batch, key=key, step=step)
            return loss, ({"power": jnp.where(step == 7, jnp.inf, model_state["power"] + loss)}, aux[1])

        def init(*, key):
            return VARIANT.init(key=key)[0], {"power": jnp.float32(0)}

        state = jaxvae.init_train_state(init, ADAM, key=jax.random.key(0))
        _, train_epoch, feed = setup(loss_fn)
        good, expected = train_epoch(copy(state), *feed(0, 7))
        state, metrics = train_epoch(state, *feed(0, 15))
        chex.assert_trees_all_equal(state.replace(first_bad=good.first_bad), good)
        assert int(state.first_bad) == 7
        np.testing.assert_array_equal(metrics["loss"][:7], expected["loss"][:7])


def slope_loss(params, model_state, batch, *, key, step):
    """A loss of this file's, so that it pickles."""
    loss = ((batch["x"].reshape(len(batch["x"]), -1) @ params["w"] - 1.0) ** 2).mean()
    return loss, (model_state, {"loss": loss})


def slope_init(*, key):
    return {"w": 0.01 * jax.random.normal(key, (math.prod(SHAPE),))}, ()


def no_state(params):
    return ()


def plain_descent(updates, state, params=None):
    return jax.tree.map(lambda g: -0.01 * g, updates), state


class TestOptimizers:
    @pytest.mark.parametrize(
        "optimizer",
        [
            optax.chain(optax.sgd(1e-2), optax.contrib.reduce_on_plateau(patience=1, accumulation_size=2)),
            optax.polyak_sgd(),
            optax.contrib.momo(),
            optax.lbfgs(),
            optax.chain(optax.sgd(1e-2), optax.scale_by_backtracking_linesearch(5)),
            optax.MultiSteps(optax.adam(1e-3), 2),
            optax.MultiSteps(optax.polyak_sgd(), 2),
        ],
        ids=["plateau", "polyak", "momo", "lbfgs", "backtracking", "multi", "multi polyak"],
    )
    def test_those_that_want_the_loss_or_its_function_get_it(self, optimizer):
        state = jaxvae.init_train_state(slope_init, optimizer, key=jax.random.key(0))
        step, losses = jax.jit(jaxvae.make_train_step(slope_loss, optimizer)), []
        for _ in range(8):
            state, metrics = step(state, batch(B))
            losses.append(float(metrics["loss"]))
        assert int(state.first_bad) == -1
        assert losses[-1] < losses[0]

    def test_the_value_is_the_loss(self):
        def update(updates, state, params=None, *, value, **extra):
            assert set(extra) == {"grad", "value_fn"}
            return jax.tree.map(jnp.zeros_like, updates), (value, extra["value_fn"](params))

        optimizer = optax.GradientTransformationExtraArgs(lambda params: (jnp.zeros(()), jnp.zeros(())), update)
        state, _, metrics = steps_of(slope_init, slope_loss, optimizer)
        np.testing.assert_allclose(state.opt_state, [metrics["loss"]] * 2, rtol=1e-6)

    def test_several_small_steps_are_one_of_their_mean(self):
        optimizer = optax.MultiSteps(optax.sgd(0.1), 2)
        state = jaxvae.init_train_state(slope_init, optimizer, key=jax.random.key(0))
        step, start = jaxvae.make_train_step(slope_loss, optimizer), state
        for seed in range(2):
            state, _ = step(state, batch(B, seed=seed))
        each = [
            jax.grad(lambda p, s=s: slope_loss(p, (), batch(B, s), key=None, step=0)[0])(start.params) for s in (0, 1)
        ]
        expected = start.params["w"] - 0.05 * (each[0]["w"] + each[1]["w"])
        np.testing.assert_allclose(state.params["w"], expected, rtol=1e-5)

    def test_those_that_want_more_say_what(self):
        def update(updates, state, params=None, *, hessian, **extra):
            return updates, state

        with pytest.raises(TypeError, match=r"wants 'hessian', and a training step can only give it value, grad and"):
            steps_of(slope_init, slope_loss, optax.GradientTransformationExtraArgs(no_state, update))
        with pytest.raises(ValueError, match="obj_fn must be provided"):
            steps_of(slope_init, slope_loss, optax.contrib.sophia(1e-3))


class TestRefusals:
    def test_a_metric_or_loss_that_is_not_a_scalar(self):
        def loss_fn(params, model_state, batch, *, key, step):
            each = params["w"][:3] * batch["x"].mean()
            return each.mean(), (model_state, {"each": each})

        def unreduced(params, model_state, batch, *, key, step):
            return params["w"], (model_state, {})

        state = jaxvae.init_train_state(slope_init, ADAM, key=jax.random.key(0))
        says = r"metric 'each' must be a scalar, a mean over the batch, got shape \(3,\)"
        with pytest.raises(ValueError, match=says):
            jaxvae.make_train_step(loss_fn, ADAM)(state, batch(B))
        with pytest.raises(ValueError, match=says):
            jaxvae.make_eval_step(loss_fn)(
                state.params, (), batch(B) | {"weight": jnp.ones(B)}, key=state.key, step=state.step
            )
        with pytest.raises(ValueError, match=r"the loss must be a scalar.*got shape \(64,\)"):
            jaxvae.make_train_step(unreduced, ADAM)(state, batch(B))

    @pytest.mark.parametrize("aux", [{}, ((), None), None], ids=["metrics alone", "no metrics", "nothing"])
    def test_an_objective_of_another_structure(self, aux):
        def loss_fn(params, model_state, batch, *, key, step):
            loss = params["w"].sum()
            return loss if aux is None else (loss, aux)

        state = jaxvae.init_train_state(slope_init, ADAM, key=jax.random.key(0))
        with pytest.raises(TypeError, match=r"an objective must return \(loss, \(model_state, metrics\)\)"):
            jaxvae.make_train_step(loss_fn, ADAM)(state, batch(B))

    def test_a_start_without_a_model_state(self):
        with pytest.raises(TypeError, match=r"init_fn must return \(params, model_state\), .* got dict"):
            jaxvae.init_train_state(lambda *, key: slope_init(key=key)[0], ADAM, key=jax.random.key(0))

    def test_batches_without_examples(self):
        state = jaxvae.init_train_state(slope_init, ADAM, key=jax.random.key(0))
        step, empty = jaxvae.make_train_step(slope_loss, ADAM), batch(0)
        says = r"batch\['(x|index)'\] holds no examples, its shape is \(0,"
        evaluate = jaxvae.make_evaluate(jaxvae.make_eval_step(slope_loss))
        with pytest.raises(ValueError, match=says):
            jax.jit(step)(state, empty)
        with pytest.raises(ValueError, match=says):
            jaxvae.make_eval_step(slope_loss)(
                state.params, (), empty | {"weight": jnp.ones(0)}, key=state.key, step=state.step
            )
        for program in (jaxvae.make_train_epoch(step), partial(evaluate, key=jax.random.key(0))):
            with pytest.raises(ValueError, match=says):
                program(state, empty, jnp.zeros((2, 2), jnp.int32))
            for shape in ((0, 2), (2, 0), (2,)):
                with pytest.raises(ValueError, match=r"indices must be \[steps, batch\], at least one of each, got"):
                    program(state, batch(B), jnp.zeros(shape, jnp.int32))
        with pytest.raises(ValueError, match="indices are all -1, padding: there are no examples to average over"):
            evaluate(state, batch(B), jnp.full((2, 2), -1), key=jax.random.key(0))

    @pytest.mark.parametrize("indices", [[[0, 1], [2, -1]], [[-1, 0], [1, 2]], [[-1, -1], [0, 1]]])
    def test_a_batch_that_is_padding_in_part_or_before_the_end(self, indices):
        """Each -1 was the last example of the source, trained on as often as there were."""
        step, key = jaxvae.make_train_step(slope_loss, ADAM), jax.random.key(0)
        alone = jaxvae.init_train_state(slope_init, ADAM, key=key)
        swept = sweep.init_sweep_state(slope_init, ADAM, {"beta": [1.0]}, keys=key[None])
        for state, epoch in (
            (alone, jaxvae.make_train_epoch(step)),
            (swept, sweep.make_sweep_epoch(lambda numbers: step)),
        ):
            with pytest.raises(ValueError, match=r"-1 is padding of whole rows at the end, and row [01] of indices"):
                epoch(state, batch(B), jnp.array(indices))

    def test_an_index_outside_the_source(self):
        state = jaxvae.init_train_state(slope_init, ADAM, key=jax.random.key(0))
        train_epoch = jaxvae.make_train_epoch(jaxvae.make_train_step(slope_loss, ADAM))
        evaluate = jaxvae.make_evaluate(jaxvae.make_eval_step(slope_loss))
        for program in (train_epoch, partial(evaluate, key=jax.random.key(0))):
            for index in (B, -2):
                with pytest.raises(ValueError, match=rf"indices must lie in 0 \.\. {B - 1}, or be -1 for padding, got"):
                    program(state, batch(B), jnp.array([[0, index]]))

    def test_a_feed_without_steps(self):
        state, train_epoch, feed = setup()
        nothing = SimpleNamespace(steps_per_epoch=0, total_steps=0, batch_size=8, chunk=1)
        with pytest.raises(ValueError, match="steps_per_epoch must be at least 1, got 0"):
            jaxvae.fit(state, train_epoch, nothing)
        with pytest.raises(ValueError, match="patience must be at least 1, got 0"):
            jaxvae.fit(state, train_epoch, feed, patience=0, monitor="loss", evaluate=lambda _: {})

    def test_keys_of_other_generators(self):
        """Under vmap their noise would not belong to the example."""
        rbg = jax.random.key(0, impl="rbg")
        with pytest.raises(TypeError, match=r"key must be a threefry key.*jax.random.key\(seed, impl='threefry2x32'\)"):
            jaxvae.init_train_state(slope_init, ADAM, key=rbg)
        state = jaxvae.init_train_state(slope_init, ADAM, key=jax.random.key(0))
        with pytest.raises(TypeError, match="key must be a threefry key"):
            jaxvae.make_train_step(slope_loss, ADAM)(state.replace(key=rbg), batch(B))
        with pytest.raises(TypeError, match="key must be a threefry key"):
            jaxvae.make_eval_step(slope_loss)(
                state.params, (), batch(B) | {"weight": jnp.ones(B)}, key=rbg, step=state.step
            )

    @pytest.mark.parametrize("wrapper", ["itself", "def", "partial", "jit", "jit traced before"])
    def test_an_objective_of_the_whole_batch_in_evaluation(self, wrapper):
        def whole(params, model_state, batch, *, key, step):
            needs_whole_batch("my_loss", instead="evaluate by your_loss")
            return slope_loss(params, model_state, batch, key=key, step=step)

        def plain(*arguments, **keywords):
            return whole(*arguments, **keywords)

        loss_fn = {"itself": whole, "def": plain, "partial": partial(whole)}.get(wrapper, jax.jit(whole))
        state = jaxvae.init_train_state(slope_init, ADAM, key=jax.random.key(0))
        if wrapper == "jit traced before":
            loss_fn(state.params, (), batch(1), key=state.key, step=state.step)
        says = (
            "my_loss is not a mean over examples, so it cannot be evaluated example by example; evaluate by your_loss"
        )
        evaluate = jaxvae.make_evaluate(jaxvae.make_eval_step(loss_fn))
        with pytest.raises(ValueError, match=says):
            evaluate(state, batch(B), jnp.arange(B).reshape(2, -1), key=jax.random.key(0))
        jax.jit(jaxvae.make_train_step(loss_fn, ADAM))(state, batch(B))  # training sees the whole batch


class TestKeys:
    def test_initialisation_and_run_and_every_step_have_keys_of_their_own(self):
        seen = []

        def init(*, key):
            jax.debug.callback(lambda data: seen.append(tuple(data.tolist())), jax.random.key_data(key))
            return slope_init(key=key)

        seed = jax.random.key(0)
        state = jaxvae.init_train_state(init, ADAM, key=seed)
        jax.effects_barrier()
        of_the_steps = [k for n in range(20) for k in (jax.random.fold_in(state.key, n), *step_keys(state.key, n))]
        keys = seen + [tuple(jax.random.key_data(k).tolist()) for k in (seed, state.key, *of_the_steps)]
        assert len(seen) == 1
        assert len(set(keys)) == len(keys) == 63

    def test_prepare_and_the_loss_have_keys_of_their_own(self):
        keys = {}

        def prepare(batch, *, key):
            keys["prepare"] = key
            return batch

        def loss_fn(params, model_state, batch, *, key, step):
            keys["loss"] = key
            return slope_loss(params, model_state, batch, key=key, step=step)

        def drawn():
            return {name: tuple(jax.random.key_data(key).tolist()) for name, key in keys.items()}

        state = jaxvae.init_train_state(slope_init, ADAM, key=jax.random.key(0))
        with jax.disable_jit():
            jaxvae.make_train_step(loss_fn, ADAM, prepare=prepare)(state, batch(B))
            assert drawn()["prepare"] != drawn()["loss"]
            assert set(drawn().values()) == {tuple(jax.random.key_data(k).tolist()) for k in step_keys(state.key, 0)}
        key, keys_of_examples = jax.random.key(5), []

        def eval_loss_fn(params, model_state, batch, *, key, step):
            keys_of_examples.append(key)
            return slope_loss(params, model_state, batch, key=key, step=step)

        examples = batch(B) | {"weight": jnp.ones(B)}
        jaxvae.make_eval_step(eval_loss_fn, prepare=prepare)(state.params, (), examples, key=key, step=state.step)
        of_the_loss = jax.random.key_data(keys_of_examples[0]).tolist()
        assert jax.random.key_data(keys["prepare"]).tolist() != of_the_loss
        assert jax.random.key_data(key).tolist() != of_the_loss


class TestPickle:
    def test_what_pickles_goes_round(self):
        optimizer = optax.GradientTransformation(no_state, plain_descent)
        step = jaxvae.make_train_step(slope_loss, optimizer, prepare=data.make_prepare(256))
        state = jaxvae.init_train_state(slope_init, optimizer, key=jax.random.key(0))
        again = pickle.loads(pickle.dumps(step))
        chex.assert_trees_all_equal(step(state, batch(B)), again(state, batch(B)))
        indices = jnp.arange(B).reshape(2, -1)
        epoch = jaxvae.make_train_epoch(step)
        expected = epoch(copy(state), batch(B), indices)  # a program that has run pickles too
        chex.assert_trees_all_equal(pickle.loads(pickle.dumps(epoch))(copy(state), batch(B), indices), expected)
        evaluate = jaxvae.make_evaluate(jaxvae.make_eval_step(slope_loss))
        expected = evaluate(state, batch(B), indices, key=state.key)
        again = pickle.loads(pickle.dumps(evaluate))
        chex.assert_trees_all_equal(again(state, batch(B), indices, key=state.key), expected)

    def test_what_does_not_is_named(self):
        step = jaxvae.make_train_step(slope_loss, ADAM)
        for whole in (step, jaxvae.make_train_epoch(step)):
            with pytest.raises(pickle.PicklingError, match=r"the optimizer does not pickle \(optax .* use cloudpickle"):
                pickle.dumps(whole)
        with pytest.raises(pickle.PicklingError, match="the loss_fn does not pickle"):
            pickle.dumps(jaxvae.make_evaluate(jaxvae.make_eval_step(lambda *_, **__: None)))
        plain = jaxvae.make_train_step(slope_loss, optax.GradientTransformation(no_state, plain_descent))
        with pytest.raises(pickle.PicklingError, match="the mesh does not pickle"):
            pickle.dumps(jaxvae.make_train_epoch(plain, mesh=jaxvae.data_mesh()))

    def test_cloudpickle_takes_all(self):
        cloudpickle = pytest.importorskip("cloudpickle")
        step = jaxvae.make_train_step(slope_loss, ADAM)
        state = jaxvae.init_train_state(slope_init, ADAM, key=jax.random.key(0))
        again = pickle.loads(cloudpickle.dumps(step))
        chex.assert_trees_all_equal(step(state, batch(B)), again(state, batch(B)))


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
        traced = []

        def loss_fn(*arguments, **keywords):
            traced.append(keywords["step"])
            return VARIANT.loss_fn(*arguments, **keywords)

        state, train_epoch, feed = setup(loss_fn)
        whole, _ = train_epoch(copy(state), *feed(0, 15))
        traces = len(traced)
        for start, count in ((0, 1), (1, 6), (7, 8)):
            state, _ = train_epoch(state, *feed(start, count))
        chex.assert_trees_all_equal(whole, state)
        assert len(traced) == traces

    def test_streamed_and_resident_data_give_the_same_bits(self):
        state, train_epoch, resident = setup()
        streamed = data.Streamed(examples(), data.Order(N, B, 3, 0), chunk=100)
        one, _ = train_epoch(copy(state), *resident(0, 15))
        other, _ = train_epoch(copy(state), *streamed(0, 15))
        chex.assert_trees_all_equal(one, other)

    def test_the_state_is_donated(self):
        state, train_epoch, feed = setup()
        train_epoch(state, *feed(0, 2))
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))

    @pytest.mark.slow
    def test_a_stock_convolution_on_cpu_is_noticed_and_run_step_by_step(self):
        class StockEncoder(nn.Module):
            latent_dim: int = 2

            @nn.compact
            def __call__(self, x):
                features = nn.Conv(4, (3, 3), strides=(2, 2))(x).reshape(len(x), -1)
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

    @pytest.mark.slow
    def test_vmap_trains_several_members_at_once(self):
        _, train_epoch, feed = setup()
        keys = jax.vmap(jax.random.key)(jnp.arange(3))
        members = jax.vmap(lambda key: jaxvae.init_train_state(VARIANT.init, optax.adam(1e-3), key=key))(keys)
        trained, _ = jax.vmap(train_epoch, in_axes=(0, None, None))(copy(members), *feed(0, 5))
        single = jax.tree.map(lambda x: x[1], members)
        single, _ = train_epoch(single, *feed(0, 5))
        chex.assert_trees_all_close(jax.tree.map(lambda x: x[1], trained).params, single.params, atol=1e-5)


class TestEvaluate:
    program = staticmethod(jaxvae.make_evaluate(jaxvae.make_eval_step(VARIANT.loss_fn, prepare=PREPARE)))

    def evaluate(self, state, num, batch_size, key):
        return self.program(state, *data.evaluation_feed(examples(num), batch_size), key=key)

    def test_batching_and_padding_change_nothing(self, key):
        state, *_ = setup()
        whole = self.evaluate(state, 37, 37, key)
        for batch_size in (1, 8, 64):
            chex.assert_trees_all_close(whole, self.evaluate(state, 37, batch_size, key), rtol=1e-5)
        assert abs(self.evaluate(state, 32, 32, key)["loss"] - whole["loss"]) > 1e-3  # a dropped tail would show

    def test_equals_the_training_objective(self, key):
        state, *_ = setup()
        prepare_key, loss_key = jax.random.split(key)
        prepared = PREPARE({"x": jnp.asarray(examples().x), "index": jnp.arange(N)}, key=prepare_key)
        value, (_, metrics) = VARIANT.loss_fn(state.params, (), prepared, key=loss_key, step=state.step)
        measured = self.evaluate(state, N, 16, key)
        np.testing.assert_allclose(measured["loss"], value, rtol=1e-5)
        np.testing.assert_allclose(measured["rate"], metrics["rate"], rtol=1e-5)

    def test_leaves_the_state_alone(self, key):
        state, *_ = setup()
        before = copy(state)
        self.evaluate(state, N, 16, key)
        chex.assert_trees_all_equal(before, state)
