"""PixelCNN++: what may reach what, exact probabilities of tiny images, and samples against whole passes."""

import itertools
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxvae
from jaxvae.keys import example_keys
from jaxvae.models import PixelCNNPP
from jaxvae.objectives import code_prior_loss

TINY = PixelCNNPP((2, 2, 2), 2, channels=8, layers=3, components=2)
IMAGE = PixelCNNPP([5, 4, 3], channels=8, layers=2, components=3, num_classes=3, context=2)
LABEL, KEY = jnp.array([0, 1, 2, 1]), jax.random.key(0)


def init(model):
    """Parameters; every one random, the biases too."""
    tree = jax.eval_shape(lambda: model.init(KEY, jnp.zeros((1, *model.shape), jnp.int32), *conditions(model, 1)))
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(scale=np.prod(leaf.shape[:-1]) ** -0.5, size=leaf.shape), jnp.float32), tree
    )


def conditions(model, num):
    label = None if model.num_classes is None else jnp.arange(num) % model.num_classes
    if model.context is None:
        return (label,)
    return label, jnp.asarray(np.random.default_rng(1).normal(size=(num, *model.shape[:2], model.context)), jnp.float32)


def images(model, num):
    return jax.random.randint(KEY, (num, *model.shape), 0, model.num_values)


@partial(jax.jit, static_argnums=0)
def log_prob_of(model, params, values, *condition):
    return model.apply(params, values, *condition, method="log_prob")


@partial(jax.jit, static_argnums=0)
def mixture_of(model, params, values, *condition):
    record = model.apply(params, values, *condition).symmetric
    return jnp.concatenate([each.reshape(*values.shape[:3], -1) for each in record._parameters], axis=-1)


@pytest.mark.parametrize(("layers", "kernel"), [(2, 3), (3, 5)])
def test_a_pixel_depends_on_every_earlier_one_in_reach_and_on_no_other(layers, kernel):
    side, reach = 6, layers * (kernel // 2)
    model = PixelCNNPP((side, side, 1), 3, channels=8, layers=layers, kernel=kernel, components=2)
    params, values = init(model), images(model, 1)
    changed = jnp.repeat(values.reshape(1, -1), side**2, axis=0)
    changed = (changed + jnp.eye(side**2, dtype=jnp.int32)) % 3
    before = mixture_of(model, params, jnp.repeat(values, side**2, axis=0))
    after = mixture_of(model, params, changed.reshape(-1, side, side, 1))
    moved = (before != after).any(axis=-1).reshape(side**2, side**2)
    expected = np.zeros((side**2, side**2), bool)
    for changed, seen_from in itertools.product(np.ndindex(side, side), repeat=2):
        (row, column), (i, j) = changed, seen_from
        above = i - 1 - reach <= row < i and abs(column - j) <= reach
        left = row == i and j - 1 - reach <= column < j
        expected[row * side + column, i * side + j] = above or left
    np.testing.assert_array_equal(moved, expected)


def test_the_probabilities_of_all_images_sum_to_one():
    every = np.array(list(itertools.product([0, 1], repeat=8)), np.int32).reshape(-1, 2, 2, 2)
    log_prob = log_prob_of(TINY, init(TINY), every)
    assert log_prob.shape == (256,)
    assert log_prob.max() - log_prob.min() > 3  # far from uniform
    np.testing.assert_allclose(np.exp(np.float64(log_prob)).sum(), 1, rtol=1e-5)
    intensities = log_prob_of(TINY, init(TINY), every.astype(np.float32))
    np.testing.assert_allclose(intensities, log_prob, rtol=1e-6)


def test_the_colour_of_a_pixel_knows_its_channels_in_order():
    """With everything before it fixed, a pixel's mixture stays, whatever its own colour is."""
    params, condition = init(IMAGE), conditions(IMAGE, 4)
    values = images(IMAGE, 4)
    changed = values.at[:, 2, 1, 2].set((values[:, 2, 1, 2] + 100) % 256)
    before, after = (mixture_of(IMAGE, params, each, *condition) for each in (values, changed))
    same = (before == after).all(axis=-1)[0].reshape(-1)
    assert same[: 2 * 4 + 2].all()
    assert not same[2 * 4 + 2 : 2 * 4 + 4].any()


@partial(jax.jit, static_argnums=0)
def fill(model, params, values, position, *condition, keys, temperature):
    """A whole pass of the model, of which one pixel is used."""
    num, (height, width, channels) = len(values), model.shape
    record = model.apply(params, values, *condition).symmetric
    own = jax.tree.map(lambda each: each.reshape(num, height * width, *each.shape[3:])[:, position], record)
    drawn = own.sample(key=jax.vmap(jax.random.fold_in, (0, None))(keys, position), temperature=temperature)
    levels = jnp.rint((drawn + 1) / 2 * (model.num_values - 1)).astype(jnp.int32)
    return values.reshape(num, -1, channels).at[:, position].set(levels).reshape(values.shape)


@pytest.mark.parametrize(("model", "temperature"), [(TINY, 1.0), (IMAGE, 0.5)], ids=["tiny", "image"])
def test_samples_equal_those_of_whole_passes(model, temperature):
    params, condition = init(model), conditions(model, 4)
    options = dict(zip(("label", "context"), condition, strict=False))
    drawn = model.sample(params, 4, key=KEY, temperature=temperature, **options)
    assert drawn.dtype == jnp.int32
    keys = example_keys(KEY, jnp.arange(4))
    values = jnp.zeros((4, *model.shape), jnp.int32)
    for position in range(model.shape[0] * model.shape[1]):
        values = fill(model, params, values, position, *condition, keys=keys, temperature=temperature)
    np.testing.assert_array_equal(drawn, values)
    assert len(np.unique(drawn, axis=0)) > 1
    np.testing.assert_array_equal(drawn, model.sample(params, 4, key=keys, temperature=temperature, **options))


def test_known_pixels_stay():
    params, (label, context) = init(IMAGE), conditions(IMAGE, 4)
    values, known = images(IMAGE, 4), jnp.zeros((4, 5, 4), bool).at[:, :2].set(True)
    drawn = IMAGE.complete(params, values, known, key=KEY, label=label, context=context)
    np.testing.assert_array_equal(drawn[:, :2], values[:, :2])
    assert (drawn[:, 2:] != values[:, 2:]).any()


def test_a_value_out_of_range_gives_nan_for_its_example_alone():
    values = jnp.tile(images(TINY, 1), (4, 1, 1, 1)).at[1, 1, 1, 0].set(2).at[3, 0, 0, 1].set(-1)
    np.testing.assert_array_equal(np.isnan(log_prob_of(TINY, init(TINY), values)), [False, True, False, True])
    nan = jnp.zeros((2, 2, 2, 2)).at[0, 0, 0, 0].set(jnp.nan)
    np.testing.assert_array_equal(np.isnan(log_prob_of(TINY, init(TINY), nan)), [True, False])


def test_the_loss_and_its_gradient_reach_every_parameter():
    params, (label, context) = init(IMAGE), conditions(IMAGE, 4)
    values = images(IMAGE, 4)

    @jax.jit
    def gradients(params):
        plain = PixelCNNPP((5, 4, 3), channels=8, layers=2, components=3, num_classes=3, dropout=0.5)
        batch = {"x": values / 255, "label": label, "index": jnp.arange(4)}
        own = plain.init(KEY, values, label)
        loss, _ = code_prior_loss(plain, own, (), batch, key=KEY, step=0, field="x")
        nll = lambda params: -IMAGE.apply(params, values, label, context, method="log_prob").mean()  # noqa: E731
        return jax.grad(nll)(params), loss, -plain.apply(own, values, label, method="log_prob").mean()

    gradient, dropped, exact = gradients(params)
    assert abs(dropped - exact) > 1  # dropout draws in training alone
    largest = {jax.tree_util.keystr(path): np.abs(g).max() for path, g in jax.tree.leaves_with_path(gradient)}
    assert min(largest.values()) > 1e-5, largest


def test_what_does_not_fit_is_refused():
    params = init(TINY)
    for call, error, message in (
        (lambda: PixelCNNPP((4, 4)), ValueError, r"shape must be \(H, W, C\), got \(4, 4\)"),
        (lambda: PixelCNNPP((4, 4, 3), kernel=2), ValueError, "kernel must be odd and at least 3, got 2"),
        (lambda: PixelCNNPP((4, 4, 3), 1), ValueError, "num_values must be at least 2, got 1"),
        (lambda: PixelCNNPP((4, 4, 3), components=0), ValueError, "components must be at least 1, got 0"),
        (lambda: PixelCNNPP((4, 4, 3), dropout=1.0), ValueError, r"dropout must lie in \[0, 1\), got 1.0"),
        (lambda: TINY.sample(params, 0, key=KEY), ValueError, "num must be at least 1, got 0"),
        (lambda: TINY.sample(params, 2, key=KEY, context=jnp.zeros((2, 2, 2, 1))), ValueError, "takes no context"),
        (
            lambda: log_prob_of(IMAGE, init(IMAGE), images(IMAGE, 2), LABEL[:2]),
            ValueError,
            r"the model takes a context: pass context \(2, 5, 4, 2\)",
        ),
        (
            lambda: log_prob_of(TINY, params, jnp.zeros((2, 2, 2, 1), int)),
            ValueError,
            r"expected values \(batch, 2, 2, 2\), at least one, got \(2, 2, 2, 1\)",
        ),
        (
            lambda: TINY.complete(params, images(TINY, 2), images(TINY, 2) > 0, key=KEY),
            ValueError,
            r"known must be \(2, 2, 2\), as the pixels are, got \(2, 2, 2, 2\)",
        ),
    ):
        with pytest.raises(error, match=message):
            call()
    assert pickle.loads(pickle.dumps(IMAGE)) == IMAGE
    assert jaxvae.PixelCNNPP is PixelCNNPP
