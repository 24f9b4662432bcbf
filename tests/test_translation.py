"""`Translator` and its objective, against the formula part by part."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxvae.losses import HINGE
from jaxvae.models import Translator
from jaxvae.objectives import translation_loss


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


class Patches(nn.Module):
    """A logit for each pixel, of a pair's channels in their order."""

    @nn.compact
    def __call__(self, pairs):
        hidden = jnp.tanh(nn.Dense(3, name="hidden")(pairs))
        return nn.Dense(1, name="output")(hidden)[..., 0]


MODEL = Translator(nn.Dense(1), Patches(), nn.sigmoid)
BATCH = {"x": jax.nn.sigmoid(normal(1, 5, 4, 3, 1)), "condition": normal(2, 5, 4, 3, 2), "index": jnp.arange(5)}


@pytest.fixture(scope="module")
def params():
    made = MODEL.init(jax.random.key(0), BATCH["x"], BATCH["condition"])
    return jax.tree.map(lambda leaf: leaf + 0.3, made)  # biases too


def loss_of(params, batch=BATCH, **options):
    return translation_loss(MODEL, params, (), batch, key=jax.random.key(1), step=0, **options)


def dense(layer, values):
    return values @ layer["kernel"] + layer["bias"].reshape(*[1] * (values.ndim - 1), -1)


def pixel(params, name, values):
    return dense(params["params"][name], values)


def judged(params, x):
    inside = params["params"]["discriminator"]
    pairs = jnp.concatenate([BATCH["condition"], x], axis=-1)
    return dense(inside["output"], jnp.tanh(dense(inside["hidden"], pairs)))[..., 0]


def test_each_part_pays_its_own_and_no_other(params):
    """Written out: the generator's terms with the discriminator still, half the discriminator's with fakes still."""

    def written(params):
        still = jax.lax.stop_gradient(params)
        made = jax.nn.sigmoid(pixel(params, "generator", BATCH["condition"]))
        absolute = jnp.abs(BATCH["x"] - made).sum(axis=(1, 2, 3)).mean()
        generator = -judged(still, made).mean(axis=(1, 2)).mean()
        real, fake = judged(params, BATCH["x"]), judged(params, jax.lax.stop_gradient(made))
        discriminator = (jax.nn.relu(1 - real) + jax.nn.relu(1 + fake)).mean(axis=(1, 2)).mean()
        return 0.2 * absolute + 0.7 * generator + 0.5 * discriminator, (absolute, generator, discriminator)

    (expected, parts), expected_grads = jax.jit(jax.value_and_grad(written, has_aux=True))(params)
    options = {"loss": HINGE, "absolute_weight": 0.2, "adversarial_weight": 0.7}
    (loss, (_, metrics)), grads = jax.jit(jax.value_and_grad(partial(loss_of, **options), has_aux=True))(params)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for name, value in zip(("absolute_error", "generator", "discriminator"), parts, strict=True):
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5)
    chex.assert_trees_all_close(grads, expected_grads, rtol=1e-4, atol=1e-6)


def test_weights_may_be_schedules(params):
    options = {"absolute_weight": lambda step: 0.1 * (step + 1), "adversarial_weight": lambda step: 0.0 * step}
    loss, (_, metrics) = translation_loss(MODEL, params, (), BATCH, key=jax.random.key(1), step=3, **options)
    expected = 0.4 * metrics["absolute_error"] + 0.5 * metrics["discriminator"]
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_without_the_game_the_error_alone_is_left(params):
    grads, (_, metrics) = jax.jit(jax.grad(partial(loss_of, adversarial_weight=0.0), has_aux=True))(params)
    assert set(metrics) == {"loss", "absolute_error"}
    np.testing.assert_allclose(metrics["loss"], 0.1 * metrics["absolute_error"], rtol=1e-6)
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads["params"]["discriminator"]))
    assert all(leaf.any() for leaf in jax.tree.leaves(grads["params"]["generator"]))


class Normed(nn.Module):
    """A discriminator whose logits depend on the batch."""

    @nn.compact
    def __call__(self, pairs, train):
        return nn.Dense(1)(nn.BatchNorm(use_running_average=not train)(pairs).mean(axis=(1, 2)))[:, 0]


REFUSED = {
    "no condition": (lambda params: loss_of(params, {"x": BATCH["x"], "index": jnp.arange(5)}), "has no 'condition'"),
    "a condition of another size": (
        lambda params: loss_of(params, BATCH | {"condition": BATCH["condition"][:, :2]}),
        r"\(5, 4, 3, 1\)",
    ),
    "x of other channels": (
        lambda params: loss_of(params, BATCH | {"x": normal(3, 5, 4, 3, 2)}),
        r"\(5, 4, 3, 2\)",
    ),
    "a negative weight": (lambda params: loss_of(params, adversarial_weight=-1.0), "adversarial_weight must be"),
    "a weight of NaN": (lambda params: loss_of(params, absolute_weight=float("nan")), "absolute_weight must be"),
    "batch statistics": (
        lambda params: translation_loss(
            (model := Translator(nn.Dense(1), Normed())),
            *(lambda made: ({"params": made["params"]}, {"batch_stats": made["batch_stats"]}))(
                model.init(jax.random.key(0), BATCH["x"], BATCH["condition"])
            ),
            BATCH,
            key=jax.random.key(1),
            step=0,
        ),
        "a discriminator with batch statistics judges no pair by itself",
    ),
}


@pytest.mark.parametrize(("make", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_is_refused(params, make, message):
    with pytest.raises(ValueError, match=message):
        make(params)


def test_pairs_must_agree_and_integers_are_no_drawing(params):
    with pytest.raises(
        ValueError, match=r"agree in all axes but the last, got x \(5, 4, 3, 1\), condition \(5, 4, 2, 2\)"
    ):
        MODEL.apply(params, BATCH["x"], BATCH["condition"][:, :, :2], method="discriminate")
    integers = BATCH | {"x": jnp.zeros((5, 4, 3, 1), jnp.uint8)}
    with pytest.raises(TypeError, match="x must be floating, got uint8"):
        loss_of(params, integers, adversarial_weight=0.0)
    with pytest.raises(TypeError, match="floating"):
        MODEL.apply(params, jnp.zeros((1, 4, 3, 2), jnp.int32), method="translate")
