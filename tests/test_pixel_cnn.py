"""The PixelCNN: what may reach what, exact probabilities of tiny maps, and samples against whole passes."""

import itertools
import pickle
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special, stats

from jaxvae import PixelCNNPP, PixelRNN
from jaxvae.keys import example_keys, noise
from jaxvae.models.pixel_cnn import PixelCNN
from jaxvae.objectives import pixel_cnn_loss

TINY = PixelCNN(2, (3, 3), channels=8, layers=2)
CLASSES = PixelCNN(5, (4, 6), channels=8, layers=2, num_classes=3)
IMAGE = PixelCNN(4, [5, 4, 1], channels=8, layers=2, kernel=5)
FAR = PixelCNN(3, (6, 7), channels=8, layers=3, dilations=[1, 4])
LABEL = jnp.array([0, 1, 2, 1])
KINDS = (PixelCNN, 5, (3, 3)), (PixelRNN, 5, (3, 3)), (PixelCNNPP, (3, 3, 3), 5)
KEY = jax.random.key(0)


def init(model):
    """Parameters; every one random, the biases too."""
    label = None if model.num_classes is None else jnp.zeros(1, jnp.int32)
    tree = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *model.shape), jnp.int32), label)
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
    return jax.random.randint(jax.random.key(0), (num, *model.shape), 0, model.num_values)


@partial(jax.jit, static_argnums=0, static_argnames="field")
def loss_of(model, params, batch, key, **options):
    return pixel_cnn_loss(model, params, (), batch, key=key, step=0, **options)[0]


@partial(jax.jit, static_argnums=0)
def fill(model, params, values, position, *, key, label, temperature):
    """A whole pass of the model, of which one position is used."""
    num = len(values)
    logits = model.apply(params, values, label).logits.reshape(num, -1, model.num_values)[:, position]
    keys = jax.vmap(jax.random.fold_in, (0, None))(example_keys(key, jnp.arange(num)), position)
    drawn = jnp.argmax(logits + temperature * noise(jax.random.gumbel, keys, logits.shape), axis=-1)
    return values.reshape(num, -1).at[:, position].set(drawn).reshape(values.shape)


def whole_passes(model, params, num, **options):
    values = jnp.zeros((num, *model.shape), jnp.int32)
    for position in range(values[0].size):
        values = fill(model, params, values, position, **options)
    return values


@pytest.mark.parametrize(
    ("layers", "kernel", "dilations"), [(2, 3, (1,)), (3, 5, (1,)), (2, 3, (1, 2)), (3, 3, (1, 2)), (2, 3, (2,))]
)
def test_a_position_depends_on_every_earlier_one_in_reach_and_on_no_other(layers, kernel, dilations):
    side = 7
    model = PixelCNN(3, (side, side), channels=8, layers=layers, kernel=kernel, dilations=dilations)
    # How far up, and to the left in a row, and how far to either side in the rows above.
    up, sideways = {0}, {0}
    for each in list(itertools.islice(itertools.cycle(dilations), layers)):
        taps = range(-(kernel // 2) * each, 1, each)
        up = {a - b for a in up for b in taps}
        sideways = {a + b for a in sideways for b in (*taps, *(-tap for tap in taps))}
    params = init(model)
    values = maps(model, 1)
    # Every single change of one position, as one batch: [changed, H·W].
    changed = jnp.repeat(values.reshape(1, -1), side**2, axis=0)
    changed = (changed + jnp.eye(side**2, dtype=jnp.int32)) % 3
    before = logits_of(model, params, jnp.repeat(values, side**2, axis=0))
    after = logits_of(model, params, changed.reshape(-1, side, side))
    moved = (before != after).any(axis=-1).reshape(side**2, side**2)

    expected = np.zeros((side**2, side**2), bool)
    for changed, seen_from in itertools.product(np.ndindex(side, side), repeat=2):
        (row, column), (i, j) = changed, seen_from
        above = i - 1 - row in up and column - j in sideways
        left = row == i and j - 1 - column in up
        expected[row * side + column, i * side + j] = above or left
    np.testing.assert_array_equal(moved, expected)


ALL = np.array(list(itertools.product([0, 1], repeat=9)), np.int32).reshape(-1, 3, 3)


def test_the_probabilities_of_all_images_sum_to_one():
    log_prob = log_prob_of(TINY, init(TINY), ALL)
    assert log_prob.shape == (512,)
    assert log_prob.max() - log_prob.min() > 3  # far from uniform
    np.testing.assert_allclose(np.exp(np.float64(log_prob)).sum(), 1, rtol=1e-5)


def test_samples_come_as_often_as_they_are_probable(key):
    params, num = init(TINY), 20_000
    probability = np.exp(np.float64(log_prob_of(TINY, params, ALL)))
    expected = num * probability / probability.sum()
    drawn = np.asarray(TINY.sample(params, num, key=key)).reshape(num, 9) @ 2 ** np.arange(8, -1, -1)
    counts = np.bincount(drawn, minlength=512)
    common = expected > 5  # the others are counted together
    assert common.sum() > 100
    observed = [*counts[common], counts[~common].sum()]
    assert stats.chisquare(observed, [*expected[common], expected[~common].sum()]).pvalue > 1e-3


@pytest.mark.parametrize(
    ("model", "label", "temperature"),
    [(TINY, None, 1.0), (TINY, None, 0.0), (CLASSES, LABEL, 0.5), (IMAGE, None, 1.0), (FAR, None, 1.0)],
    ids=["tiny", "greedy", "classes", "image", "far"],
)
def test_samples_equal_those_of_whole_passes(model, label, temperature, key):
    params = init(model)
    options = {"key": key, "label": label, "temperature": temperature}
    drawn = model.sample(params, 4, **options)
    assert drawn.dtype == jnp.int32
    np.testing.assert_array_equal(drawn, whole_passes(model, params, 4, **options))
    examples = np.unique(drawn, axis=0)
    assert len(examples) == (4 if temperature else 1)


def test_the_first_samples_do_not_depend_on_how_many_follow(key):
    params = init(TINY)
    np.testing.assert_array_equal(TINY.sample(params, 4, key=key), TINY.sample(params, 20, key=key)[:4])


def test_known_values_stay_and_the_rest_is_drawn_given_them(key):
    params = init(TINY)
    num = 10_000
    values = jnp.broadcast_to(jnp.array([[1, 0, 1], [0, 0, 0], [0, 0, 0]]), (num, 3, 3))
    known = jnp.zeros((num, 3, 3), bool).at[:, 0].set(True)
    drawn = TINY.complete(params, values, known, key=key)
    np.testing.assert_array_equal(drawn[:, 0], values[:, 0])
    probability = np.exp(np.float64(log_prob_of(TINY, params, ALL)))
    conditional = probability * (ALL[:, 0] == [1, 0, 1]).all(axis=1)
    expected = np.einsum("n,nij->ij", conditional / conditional.sum(), ALL)
    np.testing.assert_allclose(drawn.mean(axis=0), expected, atol=4 * 0.5 / np.sqrt(num))


@pytest.mark.parametrize("model", [CLASSES, TINY], ids=["classes", "plain"])
def test_the_loss_is_the_cross_entropy_of_the_logits_in_nats_per_example(model, key):
    params, values = init(model), maps(model, 4)
    label = None if model.num_classes is None else LABEL
    batch = {"tokens": values, "index": jnp.arange(4), "label": LABEL}
    loss_fn = jax.jit(partial(pixel_cnn_loss, model, field="tokens"))
    loss, (state, metrics) = loss_fn(params, (), batch, key=key, step=0)
    log_p = special.log_softmax(np.float64(logits_of(model, params, values, label)), axis=-1)
    nll = -np.take_along_axis(log_p, np.asarray(values)[..., None], axis=-1).sum() / 4
    np.testing.assert_allclose(loss, nll, rtol=1e-6)
    np.testing.assert_allclose(metrics["nll"], nll, rtol=1e-6)
    np.testing.assert_allclose(metrics["nats_per_value"], nll / values[0].size, rtol=1e-6)
    assert state == ()


@jax.jit
def loss_and_gradient(params, batch, key):
    return jax.value_and_grad(lambda params: loss_of(CLASSES, params, batch, key))(params)


def test_a_batch_twice_changes_neither_loss_nor_gradient(key):
    batch = {"code": maps(CLASSES, 4), "label": LABEL}
    twice = {name: jnp.concatenate([x, x]) for name, x in batch.items()}
    once, again = (loss_and_gradient(init(CLASSES), batch, key) for batch in (batch, twice))
    for one, two in zip(*map(jax.tree.leaves, (once, again)), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


def test_the_gradient_reaches_every_parameter(key):
    _, gradient = loss_and_gradient(init(CLASSES), {"code": maps(CLASSES, 4), "label": LABEL}, key)
    largest = {jax.tree_util.keystr(path): np.abs(g).max() for path, g in jax.tree.leaves_with_path(gradient)}
    assert len(largest) == 2 * 9 + 1 + 4  # layers, embedding, head
    assert min(largest.values()) > 1e-4, largest


def test_the_label_moves_the_first_position_and_its_errors_say_what_to_pass():
    params, values = init(CLASSES), maps(CLASSES, 4)
    first = logits_of(CLASSES, params, values, LABEL)[:, 0, 0]
    assert np.abs(first[0] - first[1]).max() > 0.01
    np.testing.assert_array_equal(first[1], first[3])
    out_of_range = log_prob_of(CLASSES, params, values, LABEL.at[2].set(3))
    np.testing.assert_array_equal(np.isnan(out_of_range), [False, False, True, False])

    with pytest.raises(TypeError, match=r"labels must be integers \(batch,\), got float32"):
        logits_of(CLASSES, params, values, LABEL.astype(jnp.float32))
    with pytest.raises(ValueError, match=r"labels must be integers \(4,\), got \(4, 3\)"):
        logits_of(CLASSES, params, values, jax.nn.one_hot(LABEL, 3, dtype=jnp.int32))
    with pytest.raises(ValueError, match=r"the model has 3 classes: pass label \[B\]"):
        logits_of(CLASSES, params, values)
    with pytest.raises(ValueError, match="the model has no classes"):
        logits_of(TINY, init(TINY), maps(TINY, 4), LABEL)


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"expected values \(batch, 3, 3\), at least one, got \(2, 3, 4\)"):
        logits_of(TINY, init(TINY), jnp.zeros((2, 3, 4), jnp.int32))
    with pytest.raises(ValueError, match=r"shape must be \(H, W\) or \(H, W, 1\), got \(8, 8, 3\)"):
        PixelCNN(256, (8, 8, 3))
    with pytest.raises(ValueError, match="kernel must be odd and at least 3, got 4"):
        PixelCNN(2, (3, 3), kernel=4)


def test_intensities_are_read_as_levels(key):
    params, levels = init(IMAGE), maps(IMAGE, 4)
    x = levels.astype(jnp.float32) / 3
    np.testing.assert_allclose(log_prob_of(IMAGE, params, x), log_prob_of(IMAGE, params, levels), rtol=1e-6)
    loss = loss_of(IMAGE, params, {"x": x}, key, field="x")
    np.testing.assert_allclose(loss, -log_prob_of(IMAGE, params, levels).mean(), rtol=1e-6)


def test_an_out_of_range_value_gives_nan_for_its_example_alone():
    values = jnp.asarray(ALL).at[1, 1, 1].set(2).at[3, 0, 0].set(-1)
    np.testing.assert_array_equal(np.flatnonzero(np.isnan(log_prob_of(TINY, init(TINY), values))), [1, 3])


@pytest.mark.parametrize(
    "dtype", ["int8", "uint8", "uint32", *(pytest.param(each, marks=pytest.mark.slow) for each in ("int16", "uint16"))]
)
@pytest.mark.slow
def test_values_and_labels_of_every_integer_type_mean_the_same(dtype, key):
    """256 values and 256 classes: a comparison within uint8 would take all of them for out of range."""
    model = PixelCNN(256, (2, 3), channels=4, layers=1, num_classes=256)
    params, largest = init(model), min(np.iinfo(dtype).max, 255)
    values = jnp.array([[[0, 1, 2], [3, 127, largest]], [[largest] * 3, [100] * 3]])
    label = jnp.array([largest, 0])
    expected = log_prob_of(model, params, values, label)
    assert np.isfinite(expected).all()
    values, label = values.astype(dtype), label.astype(dtype)
    np.testing.assert_array_equal(log_prob_of(model, params, values, label), expected)
    # Not traced, where an index out of range would be an error.
    np.testing.assert_allclose(model.apply(params, values, label, method="log_prob"), expected, rtol=1e-5)
    loss = loss_of(model, params, {"code": values, "label": label}, key)
    np.testing.assert_allclose(loss, -expected.mean(), rtol=1e-5)
    known = jnp.zeros((2, 2, 3), bool).at[:, 0].set(True)
    drawn = model.complete(params, values, known, key=key, label=label)
    wide = model.complete(params, values.astype(jnp.int32), known, key=key, label=label.astype(jnp.int32))
    np.testing.assert_array_equal(drawn, wide)
    np.testing.assert_array_equal(drawn[:, 0], values[:, 0])
    assert drawn.dtype == jnp.int32


@pytest.mark.parametrize(
    "model",
    [kind(*sizes, channels=4, layers=1) for kind, *sizes in KINDS],
    ids=lambda model: type(model).__name__,
)
def test_samples_are_int32_with_64_bit_types_too(model, x64):
    values = jnp.ones((2, *model.shape), int)
    assert values.dtype == jnp.int64
    params = jax.eval_shape(model.init, KEY, values)
    known = values[..., 0] > 0 if isinstance(model, PixelCNNPP) else values > 0
    assert jax.eval_shape(partial(model.complete, key=KEY), params, values, known).dtype == jnp.int32


def test_a_negative_value_or_label_of_a_narrow_type_is_out_of_range(key):
    params, values = init(CLASSES), maps(CLASSES, 4).astype(jnp.int8)
    negative = values.at[2, 1, 1].set(-1)
    np.testing.assert_array_equal(np.isnan(log_prob_of(CLASSES, params, negative, LABEL)), [False, False, True, False])
    bad = LABEL.astype(jnp.int8).at[1].set(-1)
    np.testing.assert_array_equal(np.isnan(log_prob_of(CLASSES, params, values, bad)), [False, True, False, False])
    with pytest.raises(ValueError, match=r"label -1 at index 1 is outside 0 .. 2"):
        CLASSES.apply(params, values, bad)
    with pytest.raises(ValueError, match=r"value -1 at index 2, 1, 1 is outside 0 .. 4"):
        CLASSES.complete(params, negative, values >= 0, key=key, label=LABEL)


RBG = jax.random.key(0, impl="rbg")
KNOWN = jnp.ones((2, 3, 3), bool)
REFUSED = {
    "another generator": (lambda p: TINY.sample(p, 2, key=RBG), TypeError, "key must be a threefry key"),
    "no maps": (lambda p: TINY.sample(p, 0, key=KEY), ValueError, "num must be at least 1, got 0"),
    "half a map": (lambda p: TINY.sample(p, 1.5, key=KEY), TypeError, "num must be an integer, got 1.5"),
    "temperature": (
        lambda p: TINY.sample(p, 2, key=KEY, temperature=float("nan")),
        ValueError,
        "temperature must be a finite number, zero or more, got nan",
    ),
    "floating values": (
        lambda p: TINY.complete(p, jnp.zeros((2, 3, 3)), KNOWN, key=KEY),
        TypeError,
        "values must be integers, got float32",
    ),
    "known, as numbers": (
        lambda p: TINY.complete(p, ALL[:2], KNOWN.astype(int), key=KEY),
        TypeError,
        "known must be bool, true where a value stays, got int32",
    ),
    "known of another shape": (
        lambda p: TINY.complete(p, ALL[:2], KNOWN[0], key=KEY),
        ValueError,
        r"known must be \(2, 3, 3\), as the values are, got \(3, 3\)",
    ),
    "nothing": (
        lambda p: TINY.apply(p, ALL[:0], method="log_prob"),
        ValueError,
        r"expected values \(batch, 3, 3\), at least one, got \(0, 3, 3\)",
    ),
    "another field": (
        lambda p: pixel_cnn_loss(TINY, p, (), {"x": ALL[:2]}, key=KEY, step=0),
        ValueError,
        "the batch has no 'code', only x: pass field=",
    ),
    "one value": (lambda p: PixelCNN(1, (3, 3)), ValueError, "num_values must be at least 2, got 1"),
    "no classes": (lambda p: PixelCNN(2, (3, 3), num_classes=0), ValueError, "num_classes must be at least 1, got 0"),
    "no dilation": (lambda p: PixelCNN(2, (3, 3), dilations=()), ValueError, "dilations must hold at least one number"),
    "dilation 0": (
        lambda p: PixelCNN(2, (3, 3), dilations=(1, 0)),
        ValueError,
        r"dilations must be at least 1, got \(1, 0",
    ),
    "no height": (lambda p: PixelCNN(2, (0, 3)), ValueError, r"shape must be at least 1, got \(0, 3\)"),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call(init(TINY))


def test_a_model_pickles():
    for model in (TINY, CLASSES, IMAGE):
        assert pickle.loads(pickle.dumps(model)) == model


def test_bfloat16_computes_near_float32(key):
    narrow = PixelCNN(5, (4, 6), channels=8, layers=2, num_classes=3, dtype=jnp.bfloat16)
    params, values = init(CLASSES), maps(CLASSES, 4)
    exact, rounded = (logits_of(model, params, values, LABEL) for model in (CLASSES, narrow))
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, exact, atol=0.05)
    assert np.abs(rounded - exact).max() > 1e-5
    drawn = narrow.sample(params, 4, key=key, label=LABEL)
    np.testing.assert_array_equal(drawn, jnp.clip(drawn, 0, 4))


def test_training_learns_maps_that_leave_only_the_first_value_open(key):
    """Four maps, each row of which is the one above plus one: log 4 nats an example are left."""
    model = PixelCNN(4, (4, 4), channels=16, layers=2)
    values = (jnp.arange(4).reshape(4, 1, 1) + jnp.arange(4).reshape(1, 4, 1)) % 4
    batch = {"code": jnp.broadcast_to(values, (4, 4, 4))}
    optimizer = optax.adam(1e-2)

    @jax.jit
    def train(params):
        def step(carry, _):
            params, opt_state = carry
            loss, gradient = jax.value_and_grad(lambda params: loss_of(model, params, batch, key))(params)
            updates, opt_state = optimizer.update(gradient, opt_state)
            return (optax.apply_updates(params, updates), opt_state), loss

        (params, _), losses = jax.lax.scan(step, (params, optimizer.init(params)), length=200)
        return params, losses

    params, losses = train(init(model))
    assert losses[0] > 16
    np.testing.assert_allclose(losses[-1], np.log(4), atol=0.02)
    drawn = model.sample(params, 200, key=key)
    np.testing.assert_array_equal(jnp.unique(drawn[:, 0, 0]), jnp.arange(4))
    right = (drawn == batch["code"][drawn[:, 0, 0]]).all(axis=(1, 2))
    assert right.mean() > 0.95
