"""PixelRNN: what the row LSTM sees, exact probabilities of tiny maps, and samples against whole passes."""

import itertools
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import special

import jaxvae
from jaxvae.keys import example_keys
from jaxvae.models import PixelRNN
from jaxvae.models._pixels import categorical_choice
from jaxvae.objectives import code_prior_loss

TINY = PixelRNN(2, (3, 3), channels=8, layers=2, first_kernel=3)
CLASSES = PixelRNN(5, [4, 6, 1], channels=8, layers=2, first_kernel=5, num_classes=3)
LABEL, KEY = jnp.array([0, 1, 2, 1]), jax.random.key(0)


def init(model):
    """Parameters; every one random, the biases too."""
    label = None if model.num_classes is None else jnp.zeros(1, jnp.int32)
    tree = jax.eval_shape(model.init, KEY, jnp.zeros((1, *model.shape), jnp.int32), label)
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(scale=np.prod(leaf.shape[:-1]) ** -0.5, size=leaf.shape), jnp.float32), tree
    )


@partial(jax.jit, static_argnums=0)
def logits_of(model, params, values, label=None):
    return model.apply(params, values, label).logits


@partial(jax.jit, static_argnums=0)
def log_prob_of(model, params, values, label=None):
    return model.apply(params, values, label, method="log_prob")


def maps(model, num):
    return jax.random.randint(KEY, (num, *model.shape), 0, model.num_values)


def seen(side, layers, kernel, first):
    """Which position (rows of the result) each one (columns) sees: by following the windows, layer by layer."""
    reach, near = kernel // 2, first // 2
    features = np.zeros((side, side, side, side), bool)
    for i, j, row, column in np.ndindex(features.shape):
        above = i - near <= row < i and abs(column - j) <= near
        features[i, j, row, column] = above or (row == i and j - near <= column < j)
    for _ in range(layers):
        states = np.zeros_like(features)
        for i, j in np.ndindex(side, side):
            for column in range(max(j - reach, 0), min(j + reach + 1, side)):
                states[i, j] |= features[i, column] if column <= j else False
                states[i, j] |= states[i - 1, column] if i else False
        features = features | states
    return features.reshape(side**2, side**2).T


@pytest.mark.parametrize(("layers", "kernel", "first"), [(1, 3, 3), (2, 5, 3)])
def test_a_position_depends_on_its_triangle_and_on_nothing_later(layers, kernel, first):
    side = 7
    model = PixelRNN(3, (side, side), channels=8, layers=layers, kernel=kernel, first_kernel=first)
    params, values = init(model), maps(model, 1)
    changed = jnp.repeat(values.reshape(1, -1), side**2, axis=0)
    changed = (changed + jnp.eye(side**2, dtype=jnp.int32)) % 3
    before = logits_of(model, params, jnp.repeat(values, side**2, axis=0))
    after = logits_of(model, params, changed.reshape(-1, side, side))
    moved = np.asarray(before != after).any(axis=-1).reshape(side**2, side**2)
    assert not np.tril(moved).any()  # neither itself nor a later one
    expected = seen(side, layers, kernel, first)
    assert (moved <= expected).all()
    assert (moved == expected).mean() > 0.98  # from afar rounding may hide a change
    hidden = np.triu(np.ones_like(moved), 1) & ~expected
    assert hidden.any()  # the triangle misses earlier pixels


def test_the_probabilities_of_all_images_sum_to_one():
    every = np.array(list(itertools.product([0, 1], repeat=9)), np.int32).reshape(-1, 3, 3)
    log_prob = log_prob_of(TINY, init(TINY), every)
    assert log_prob.shape == (512,)
    assert log_prob.max() - log_prob.min() > 2  # far from uniform
    np.testing.assert_allclose(np.exp(np.float64(log_prob)).sum(), 1, rtol=1e-5)


def test_a_step_is_that_of_an_lstm_in_numpy():
    """The first layer's first two rows, gates and all, against float64 of the formula."""
    model = PixelRNN(3, (2, 3), channels=4, layers=1, first_kernel=3)
    variables, values = init(model), maps(model, 2)
    p = jax.tree.map(np.float64, variables["params"])
    features = p["embedding"]["embedding"][np.asarray(values)]
    rows, left = np.pad(features, ((0, 0), (1, 0), (1, 1), (0, 0))), np.pad(features, ((0, 0), (0, 0), (1, 0), (0, 0)))
    lstm, hidden, cell = p["stack_0"], np.zeros((2, 5, 4)), np.zeros((2, 3, 4))
    logits = np.zeros((2, 2, 3, 3))
    for i in range(2):
        x = np.stack([rows[:, i, j : j + 3].reshape(2, -1) for j in range(3)], axis=1) @ p["down"]["kernel"].reshape(
            12, 4
        )
        x = x + p["down"]["bias"] + left[:, i, :3] @ p["right"]["kernel"][0, 0] + p["right"]["bias"]
        window = np.pad(x, ((0, 0), (1, 0), (0, 0)))
        gates = np.concatenate([window[:, :3], window[:, 1:]], axis=2) @ lstm["of_input"]["kernel"].reshape(8, 16)
        gates = gates + lstm["of_input"]["bias"]
        above = np.stack([hidden[:, j : j + 3].reshape(2, -1) for j in range(3)], axis=1)
        gates = gates + above @ lstm["of_state"]["kernel"].reshape(12, 16)
        forget, write, show, value = np.split(gates, 4, axis=-1)
        cell = special.expit(forget + 1) * cell + special.expit(write) * np.tanh(value)
        state = special.expit(show) * np.tanh(cell)
        hidden = np.pad(state, ((0, 0), (1, 1), (0, 0)))
        out = x + state @ lstm["residual"]["kernel"][0, 0] + lstm["residual"]["bias"]
        out = np.maximum(np.maximum(out, 0) @ p["hidden"]["kernel"][0, 0] + p["hidden"]["bias"], 0)
        logits[:, i] = out @ p["output"]["kernel"][0, 0] + p["output"]["bias"]
    np.testing.assert_allclose(logits_of(model, variables, values), logits, atol=1e-5)


@partial(jax.jit, static_argnums=0)
def fill(model, params, values, position, label, temperature):
    """A whole pass of the model, of which one position is used."""
    num = len(values)
    logits = model.apply(params, values, label).logits.reshape(num, -1, model.num_values)[:, position]
    keys = jax.vmap(jax.random.fold_in, (0, None))(example_keys(KEY, jnp.arange(num)), position)
    drawn = categorical_choice(logits, keys, temperature)
    return values.reshape(num, -1).at[:, position].set(drawn).reshape(values.shape)


@pytest.mark.parametrize(
    ("model", "label", "temperature"), [(TINY, None, 1.0), (CLASSES, LABEL, 0.5)], ids=["tiny", "classes"]
)
def test_samples_equal_those_of_whole_passes(model, label, temperature):
    params = init(model)
    drawn = model.sample(params, 4, key=KEY, label=label, temperature=temperature)
    assert drawn.dtype == jnp.int32
    values = jnp.zeros((4, *model.shape), jnp.int32)
    for position in range(values[0].size):
        values = fill(model, params, values, position, label, temperature)
    np.testing.assert_array_equal(drawn, values)
    assert len(np.unique(drawn, axis=0)) > 1
    known = jnp.zeros(drawn.shape, bool).at[:, :2].set(True)
    completed = model.complete(params, drawn, known, key=KEY, label=label, temperature=temperature)
    np.testing.assert_array_equal(completed, drawn)


def test_the_loss_reads_it_and_its_gradient_reaches_every_parameter():
    params, values = init(CLASSES), maps(CLASSES, 4)
    batch = {"x": values / jnp.float32(4), "label": LABEL, "index": jnp.arange(4)}
    loss_fn = jax.jit(jax.value_and_grad(partial(code_prior_loss, CLASSES, field="x"), has_aux=True))
    (loss, (_, metrics)), gradient = loss_fn(params, (), batch, key=KEY, step=0)
    np.testing.assert_allclose(loss, -log_prob_of(CLASSES, params, values, LABEL).mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["nats_per_value"], loss / 24, rtol=1e-6)
    largest = {jax.tree_util.keystr(path): np.abs(g).max() for path, g in jax.tree.leaves_with_path(gradient)}
    assert len(largest) == 2 * 6 + 1 + 4 + 4  # layers, embedding, first windows, head
    assert min(largest.values()) > 1e-5, largest


def test_what_does_not_fit_is_refused():
    params = init(TINY)
    for call, message in (
        (lambda: PixelRNN(2, (3, 3, 3)), r"shape must be \(H, W\) or \(H, W, 1\), got \(3, 3, 3\)"),
        (lambda: PixelRNN(2, (3, 3), kernel=4), "kernel must be odd and at least 3, got 4"),
        (lambda: PixelRNN(2, (3, 3), first_kernel=1), "first_kernel must be odd and at least 3, got 1"),
        (lambda: PixelRNN(1, (3, 3)), "num_values must be at least 2, got 1"),
        (lambda: logits_of(CLASSES, init(CLASSES), maps(CLASSES, 4)), r"the model has 3 classes: pass label \[B\]"),
        (lambda: TINY.sample(params, 0, key=KEY), "num must be at least 1, got 0"),
        (
            lambda: TINY.sample(params, 2, key=KEY, temperature=-1.0),
            "temperature must be a finite number, zero or more",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    out_of_range = jnp.zeros((2, 3, 3), jnp.int32).at[1, 2, 2].set(2)
    np.testing.assert_array_equal(np.isnan(log_prob_of(TINY, params, out_of_range)), [False, True])
    assert pickle.loads(pickle.dumps(CLASSES)) == CLASSES
    assert jaxvae.PixelRNN is PixelRNN
