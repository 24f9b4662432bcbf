"""The transformer prior: exact probabilities, what reaches what, samples against whole passes, its conditions."""

import itertools
import pickle
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import special, stats

import jaxvae
from jaxvae import TransformerPrior
from jaxvae.keys import example_keys, noise
from jaxvae.models._tokens import complete, kept
from jaxvae.networks.transformer import attend, norm, rotary_angles, rotate
from jaxvae.objectives import code_prior_loss

SMALL = {"width": 8, "layers": 2, "heads": 2}
TINY = TransformerPrior(2, (3, 3), **SMALL)
CLASSES = TransformerPrior(
    3, [2, 3], num_classes=3, positions="learned", normalization="layer", **SMALL | {"heads": 4}, kv_heads=2
)
FLAT = TransformerPrior((2, 3), (2, 2), **SMALL)
DELAY = TransformerPrior((2, 3), (2, 2), books="delay", **SMALL)
PREFIX = TransformerPrior(4, (5,), prefix=(4, 6), num_classes=2, **SMALL, kv_heads=1)
PREFIXED_BOOKS = TransformerPrior((3, 2, 3), (4,), prefix=(3, 5), books="delay", **SMALL)
PAIR = TransformerPrior(5, (2,), **SMALL)
MODELS = {"tiny": TINY, "classes": CLASSES, "flat": FLAT, "delay": DELAY, "prefix": PREFIX, "all": PREFIXED_BOOKS}
KEY = jax.random.key(0)
B = 4


def conditions(model, num=B):
    """A label and a prefix for each example, where the model has them; the second example's prefix is one short."""
    rng, options = np.random.default_rng(1), {}
    if model.num_classes is not None:
        options["label"] = jnp.arange(num) % model.num_classes
    if model.prefix is not None:
        length, vocabulary = model.prefix
        prefix = rng.integers(0, vocabulary, (num, length))
        prefix[1:2, -1] = vocabulary
        options["prefix"] = jnp.asarray(prefix)
    return options


@cache
def init(model):
    """Parameters; every one random, the biases too."""
    options = {name: each[:1] for name, each in conditions(model).items()}
    values = jnp.zeros((1, *model.values_shape), jnp.int32)
    tree = jax.eval_shape(partial(model.init, **options), KEY, values)
    rng = np.random.default_rng(0)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(scale=np.prod(leaf.shape[:-1]) ** -0.5, size=leaf.shape), jnp.float32), tree
    )


@partial(jax.jit, static_argnums=0)
def logits_of(model, params, values, **options):
    return model.apply(params, values, **options).logits


@partial(jax.jit, static_argnums=0)
def log_prob_of(model, params, values, **options):
    return model.apply(params, values, **options, method="log_prob")


def values_of(model, num=B, seed=0):
    rng = np.random.default_rng(seed)
    books = [rng.integers(0, count, (num, *model.shape)) for count in model.counts]
    return jnp.asarray(np.stack(books, axis=-1).reshape(num, *model.values_shape))


def every_array(model):
    """All arrays that the model is a density of."""
    ranges = [range(count) for _ in range(np.prod(model.shape)) for count in model.counts]
    return np.array(list(itertools.product(*ranges)), np.int32).reshape(-1, *model.values_shape)


@partial(jax.jit, static_argnums=(0, 4))
def loss_of(model, params, batch, key, options=()):
    return code_prior_loss(model, params, (), batch, key=key, step=0, **dict(options))


# The density.


@pytest.mark.parametrize("name", ["tiny", "classes", "flat", "delay"])
def test_the_probabilities_of_all_arrays_sum_to_one(name):
    model = MODELS[name]
    params, every = init(model), every_array(model)
    label = None if model.num_classes is None else jnp.full(len(every), 2)
    log_prob = np.float64(log_prob_of(model, params, every, label=label))
    assert log_prob.shape == (len(every),)
    assert log_prob.max() - log_prob.min() > 3  # far from uniform
    np.testing.assert_allclose(np.exp(log_prob).sum(), 1, rtol=1e-5)


def test_log_prob_is_that_of_the_logits():
    params, values = init(CLASSES), values_of(CLASSES)
    options = conditions(CLASSES)
    logits = logits_of(CLASSES, params, values, **options)
    assert logits.shape == (B, 2, 3, 3)
    assert logits.dtype == jnp.float32
    log_p = special.log_softmax(np.float64(logits), axis=-1)
    expected = np.take_along_axis(log_p, np.asarray(values)[..., None], axis=-1).reshape(B, -1).sum(axis=1)
    np.testing.assert_allclose(log_prob_of(CLASSES, params, values, **options), expected, rtol=1e-5)


def reached(model):
    """Which token each token's logits depend on, [changed, seen from], by a change of each one by itself."""
    params, values = init(model), values_of(model, 1).reshape(1, -1)
    size, options = values.size, conditions(model, 1)
    counts = np.tile(model.counts, (1, size // len(model.counts)))
    changed = (values + jnp.eye(size, dtype=jnp.int32)) % counts
    options = {name: jnp.repeat(each, size + 1, axis=0) for name, each in options.items()}
    both = jnp.concatenate([values, changed]).reshape(-1, *model.values_shape)
    before, *after = np.asarray(logits_of(model, params, both, **options)).reshape(size + 1, size, -1)
    return np.stack([(before != each).any(axis=-1) for each in after])


@pytest.mark.parametrize("name", ["tiny", "flat", "prefix"])
def test_a_token_depends_on_every_earlier_one_and_on_no_other(name):
    moved = reached(MODELS[name])
    np.testing.assert_array_equal(moved, ~np.tri(len(moved), dtype=bool))


@pytest.mark.parametrize("model", [DELAY, PREFIXED_BOOKS], ids=["delay", "three books"])
def test_delayed_books_depend_on_what_the_steps_before_have_said(model):
    moved, books = reached(model), len(model.counts)
    position, book = np.divmod(np.arange(len(moved)), books)
    step = position + book
    np.testing.assert_array_equal(moved, step[:, None] < step[None])
    # As documented: later books m' are not known of the last m' - m positions.
    hidden = (position[:, None] < position[None]) & ~moved
    later, ahead = book[:, None] - book[None], position[None] - position[:, None]
    np.testing.assert_array_equal(hidden, (later > 0) & (ahead > 0) & (ahead <= later))


# Samples.


def filtered(logits, temperature, top_k, top_p):
    """What may be drawn, one row of logits after the other, in float64."""
    allowed = np.zeros(logits.shape, bool)
    for row, keep in zip(np.float64(logits), allowed, strict=True):
        order = np.argsort(-row, kind="stable")[:top_k]
        probability = special.softmax(row[order] / temperature)
        enough = 1 + np.searchsorted(np.cumsum(probability), top_p or 1.0, side="left")
        keep[order[:enough]] = True
    return np.where(allowed, logits, -np.inf)


def whole_passes(model, params, num, *, temperature=1.0, top_k=None, top_p=None, guidance=1.0, **options):
    """Draw as `sample` says that it does, each token by a whole pass of the model."""
    values = np.zeros((num, np.prod(model.values_shape)), np.int32)
    keys = example_keys(KEY, jnp.arange(num))
    position, book = np.divmod(np.arange(values.shape[1]), len(model.counts))
    for n in np.argsort(position + book if model.books == "delay" else np.arange(values.shape[1]), kind="stable"):
        shaped = values.reshape(num, *model.values_shape)
        logits = logits_of(model, params, shaped, **options)
        if guidance != 1:
            without = logits_of(model, params, shaped, **options, dropped=jnp.ones(num, bool))
            logits = jnp.where(jnp.isinf(logits), logits, (1 - guidance) * without + guidance * logits)
        logits = np.asarray(logits).reshape(num, values.shape[1], -1)[:, n]
        gumbel = noise(jax.random.gumbel, jax.vmap(jax.random.fold_in, (0, None))(keys, n), logits.shape)
        values[:, n] = np.argmax(
            filtered(logits, temperature or 1e-6, top_k, top_p) + temperature * np.asarray(gumbel), axis=-1
        )
    return values.reshape(num, *model.values_shape)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tiny", {}),
        ("tiny", {"temperature": 0.0}),
        pytest.param("classes", {"temperature": 0.5, "guidance": 2.5}, marks=pytest.mark.slow),
        pytest.param("flat", {"top_k": 2}, marks=pytest.mark.slow),
        ("delay", {"top_p": 0.7}),
        ("prefix", {"guidance": 1.5, "top_k": 3, "top_p": 0.9, "temperature": 1.5}),
        pytest.param("all", {"guidance": 3.0}, marks=pytest.mark.slow),
    ],
)
def test_samples_equal_those_of_whole_passes(name, options):
    model, num = MODELS[name], 6
    params, told = init(model), conditions(model, num)
    drawn = model.sample(params, num, key=KEY, **told, **options)
    assert drawn.dtype == jnp.int32
    np.testing.assert_array_equal(drawn, whole_passes(model, params, num, **told, **options))
    assert len(np.unique(drawn, axis=0)) > 1 or options.get("temperature") == 0


def test_guidance_of_zero_needs_no_condition():
    params, options = init(PREFIX), conditions(PREFIX)
    without = PREFIX.sample(params, B, key=KEY, guidance=0)
    np.testing.assert_array_equal(without, PREFIX.sample(params, B, key=KEY, guidance=0, **options))
    assert (without != PREFIX.sample(params, B, key=KEY, **options)).any()


@pytest.mark.slow
def test_the_first_samples_do_not_depend_on_how_many_follow():
    params = init(DELAY)
    few = DELAY.sample(params, 4, key=KEY)
    np.testing.assert_array_equal(few, DELAY.sample(params, 20, key=KEY)[:4])
    within = jax.jit(lambda params: DELAY.sample(params, 4, key=KEY))(params)  # a program of someone else's
    np.testing.assert_array_equal(within, few)


def test_samples_come_as_often_as_they_are_probable():
    params, num, every = init(TINY), 20_000, every_array(TINY)
    probability = np.exp(np.float64(log_prob_of(TINY, params, every)))
    expected = num * probability / probability.sum()
    drawn = np.asarray(TINY.sample(params, num, key=KEY)).reshape(num, 9) @ 2 ** np.arange(8, -1, -1)
    counts, common = np.bincount(drawn, minlength=512), expected > 5  # the others are counted together
    assert common.sum() > 50
    observed = [*counts[common], counts[~common].sum()]
    assert stats.chisquare(observed, [*expected[common], expected[~common].sum()]).pvalue > 1e-3


def test_truncated_samples_come_as_often_as_what_is_kept_is_renormalised():
    params, num, every = init(PAIR), 20_000, every_array(PAIR)
    options = {"temperature": 0.7, "top_k": 4, "top_p": 0.8}
    logits = np.float64(logits_of(PAIR, params, every))
    keep = filtered(logits.reshape(-1, 5), *options.values()).reshape(logits.shape)
    log_p = special.log_softmax(keep / 0.7, axis=-1)
    expected = num * np.exp(np.take_along_axis(log_p, every[..., None], axis=-1).sum(axis=(1, 2)))
    drawn = np.asarray(PAIR.sample(params, num, key=KEY, **options)) @ [5, 1]
    counts = np.bincount(drawn, minlength=25)
    assert counts[expected == 0].sum() == 0
    assert 4 <= (expected > 0).sum() < 20
    assert stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-3


def test_of_equally_probable_values_the_first_are_kept():
    logits = jnp.array([[0.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]])
    np.testing.assert_array_equal(np.isfinite(kept(logits, 1.0, 2, None)), [[0, 1, 1, 0], [1, 1, 0, 0]])
    np.testing.assert_array_equal(np.isfinite(kept(logits, 1.0, None, 0.45)), [[0, 1, 1, 0], [1, 1, 0, 0]])
    np.testing.assert_array_equal(np.isfinite(kept(logits, 0.0, None, 1e-9)), [[0, 1, 0, 0], [1, 0, 0, 0]])
    np.testing.assert_array_equal(kept(logits, 1.0, None, 1.0), logits)


def test_a_nucleus_of_probability_one_is_all_that_may_be_drawn():
    """Also where the first value alone has all of it in float32."""
    logits = jnp.array([[30.0, 0.0, 1.0, 2.0]])
    np.testing.assert_array_equal(kept(logits, 1.0, None, 1.0), logits)
    np.testing.assert_array_equal(np.isfinite(kept(logits, 1.0, 3, 1.0)), [[1, 0, 1, 1]])
    np.testing.assert_array_equal(np.isfinite(kept(logits, 1.0, None, 0.999)), [[1, 0, 0, 0]])


def test_known_values_stay_and_the_rest_is_drawn_given_them():
    params, num, every = init(FLAT), 10_000, every_array(FLAT)
    values = jnp.broadcast_to(jnp.array([[[1, 2], [0, 0]], [[0, 0], [0, 0]]]), (num, 2, 2, 2))
    known = jnp.zeros((num, 2, 2, 2), bool).at[:, 0, 0].set(True)
    drawn = FLAT.complete(params, values, known, key=KEY)
    np.testing.assert_array_equal(drawn[:, 0, 0], values[:, 0, 0])
    probability = np.exp(np.float64(log_prob_of(FLAT, params, every))) * (every[:, 0, 0] == [1, 2]).all(axis=1)
    expected = np.einsum("n,nijm->ijm", probability / probability.sum(), every)
    np.testing.assert_allclose(drawn.mean(axis=0), expected, atol=4 / np.sqrt(num))


def test_other_numbers_need_no_other_program():
    params, options = init(CLASSES), conditions(CLASSES)
    compiled = []
    for temperature, top_k, top_p, guidance in ((1.0, 2, 0.5, 2.0), (0.3, 3, 1.0, 7.0)):
        draw = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "guidance": guidance}
        CLASSES.sample(params, B, key=jax.random.key(top_k), **options, **draw)
        compiled.append(complete._cache_size())
    assert compiled[0] == compiled[1] > 0


# Conditions.


def test_missing_tokens_of_a_prefix_change_nothing():
    params, values, label = init(PREFIX), values_of(PREFIX), jnp.arange(B) % 2
    short = jnp.array([[1, 2], [3, 4], [5, 0], [2, 2]])
    padded = jnp.pad(short, ((0, 0), (0, 2)), constant_values=6)
    expected = log_prob_of(PREFIX, params, values, label=label, prefix=short)
    np.testing.assert_allclose(log_prob_of(PREFIX, params, values, label=label, prefix=padded), expected, rtol=2e-6)
    other = log_prob_of(PREFIX, params, values, label=label, prefix=padded.at[:, 3].set(0))
    assert np.abs(other - expected).min() > 1e-3
    empty = log_prob_of(PREFIX, params, values, label=label, prefix=jnp.full((B, 4), 6))
    assert np.isfinite(empty).all()
    drawn = (PREFIX.sample(params, B, key=KEY, label=label, prefix=each) for each in (short, padded))
    np.testing.assert_array_equal(*drawn)


def test_every_token_of_the_prefix_reaches_the_first_position():
    params, values = init(PREFIX), values_of(PREFIX, 1)
    prefix = jnp.array([[0, 1, 2, 3]])
    changed = (prefix + jnp.eye(4, dtype=jnp.int32)) % 6
    each = jnp.concatenate([prefix, changed])
    repeated = jnp.repeat(values, 5, axis=0)
    logits = logits_of(PREFIX, params, repeated, label=jnp.zeros(5, jnp.int32), prefix=each)[:, 0]
    assert (np.abs(logits[1:] - logits[:1]).max(axis=-1) > 1e-3).all()


def test_dropped_conditions_are_those_of_nobody():
    params, values, dropped = init(PREFIX), values_of(PREFIX), jnp.array([True, False, True, False])
    options = conditions(PREFIX)
    plain, with_some = (
        log_prob_of(PREFIX, params, values, **options, dropped=each) for each in (~dropped & dropped, dropped)
    )
    np.testing.assert_array_equal(plain == with_some, ~dropped)
    other = {"label": 1 - options["label"], "prefix": (options["prefix"] + 1) % 6}
    np.testing.assert_array_equal(log_prob_of(PREFIX, params, values, **other, dropped=dropped)[::2], with_some[::2])


@pytest.mark.slow
def test_conditions_are_dropped_in_training_by_each_examples_key():
    params, num = init(CLASSES), 64
    batch = {"code": values_of(CLASSES, num), "index": jnp.arange(num) + 7, "label": jnp.arange(num) % 3}
    uniform = noise(jax.random.uniform, example_keys(KEY, batch["index"]), (num,))
    dropped = uniform < 0.3
    assert 8 < dropped.sum() < 32
    expected = -log_prob_of(CLASSES, params, batch["code"], label=batch["label"], dropped=dropped).mean()
    loss, (_, metrics) = loss_of(CLASSES, params, batch, KEY, (("condition_dropout", 0.3),))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)
    np.testing.assert_allclose(metrics["nats_per_value"], expected / 6, rtol=1e-6)

    evaluate = jaxvae.make_eval_step(partial(code_prior_loss, CLASSES, condition_dropout=0.3))
    sums, weight = evaluate(params, (), batch | {"weight": jnp.ones(num)}, key=KEY, step=jnp.int32(0))
    given = -log_prob_of(CLASSES, params, batch["code"], label=batch["label"]).mean()
    np.testing.assert_allclose(sums["nll"] / weight, given, rtol=1e-5)


# Sequences of several lengths.


@pytest.mark.parametrize("books", ["flat", "delay"])
def test_missing_positions_count_nowhere_and_change_nothing(books):
    long, short = (TransformerPrior((3, 3), (length,), books=books, **SMALL) for length in (5, 3))
    params, values = init(long), values_of(long)
    mask = jnp.broadcast_to(jnp.arange(5) < 3, (B, 5))
    expected = log_prob_of(short, params, values[:, :3])
    np.testing.assert_allclose(log_prob_of(long, params, values, mask=mask), expected, rtol=2e-6)
    other = values.at[:, 3:].set(99)  # not even values of the model
    np.testing.assert_allclose(log_prob_of(long, params, other, mask=mask), expected, rtol=2e-6)
    whole = log_prob_of(long, params, values, mask=jnp.ones((B, 5), bool))
    np.testing.assert_allclose(whole, log_prob_of(long, params, values), rtol=2e-6)
    np.testing.assert_array_equal(log_prob_of(long, params, values, mask=mask & False), 0)
    holes = log_prob_of(long, params, values, mask=mask.at[1, 0].set(False))
    np.testing.assert_array_equal(np.isnan(holes), [False, True, False, False])


def test_the_loss_counts_the_values_that_are_there():
    model = TransformerPrior((3, 3), (5,), books="delay", **SMALL)
    params, values = init(model), values_of(model)
    mask = jnp.arange(5)[None] < jnp.array([5, 3, 1, 2])[:, None]
    nll = -np.float64(log_prob_of(model, params, values, mask=mask))
    loss, (_, metrics) = loss_of(model, params, {"code": values, "mask": mask}, KEY)
    np.testing.assert_allclose(loss, nll.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["nats_per_value"], (nll / [10, 6, 2, 4]).mean(), rtol=1e-6)
    assert metrics["values"] == 5.5


# Types and ranges.


@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint32"])
def test_values_labels_and_prefixes_of_every_integer_type_mean_the_same(dtype):
    """256 values: a comparison within uint8 would take all of them for out of range."""
    model = TransformerPrior(256, (3,), num_classes=256, prefix=(2, 255), **SMALL | {"layers": 1})
    params, largest = init(model), min(np.iinfo(dtype).max, 255)
    values, label = jnp.array([[0, 127, largest], [largest] * 3]), jnp.array([largest, 0])
    prefix = jnp.array([[largest, 0], [5, 127]])
    expected = log_prob_of(model, params, values, label=label, prefix=prefix)
    assert np.isfinite(expected).all()
    options = {"label": label.astype(dtype), "prefix": prefix.astype(dtype)}
    np.testing.assert_array_equal(log_prob_of(model, params, values.astype(dtype), **options), expected)
    known = jnp.zeros((2, 3), bool).at[:, :2].set(True)
    drawn = model.complete(params, values.astype(dtype), known, key=KEY, **options)
    np.testing.assert_array_equal(drawn, model.complete(params, values, known, key=KEY, label=label, prefix=prefix))


@pytest.mark.parametrize("name", ["flat", "classes", "all"])
def test_parameters_and_logits_are_float32_and_samples_int32_with_64_bit_types_too(name, x64):
    model = MODELS[name]
    values, options = values_of(model), conditions(model)
    assert values.dtype == jnp.int64
    params = jax.eval_shape(partial(model.init, **options), KEY, values)
    assert {leaf.dtype.name for leaf in jax.tree.leaves(params)} == {"float32"}
    logits, log_prob = (jax.eval_shape(each, model, params, values, **options) for each in (logits_of, log_prob_of))
    assert logits.dtype == log_prob.dtype == jnp.float32
    guidance = {"guidance": 1.5} if options else {}
    complete = partial(model.complete, key=KEY, **options, **guidance)
    assert jax.eval_shape(complete, params, values, values > 0).dtype == jnp.int32


def test_what_is_out_of_range_gives_nan_for_its_example_alone():
    params, values, options = init(PREFIX), values_of(PREFIX), conditions(PREFIX)
    for bad in (4, -1):
        log_prob = log_prob_of(PREFIX, params, values.at[1, 2].set(bad), **options)
        np.testing.assert_array_equal(np.isnan(log_prob), [False, True, False, False])
    for name, at, bad in (("label", (2,), 2), ("label", (2,), -1), ("prefix", (2, 1), 7), ("prefix", (2, 1), -1)):
        log_prob = log_prob_of(PREFIX, params, values, **options | {name: options[name].at[at].set(bad)})
        np.testing.assert_array_equal(np.isnan(log_prob), [False, False, True, False])
    log_prob = log_prob_of(FLAT, init(FLAT), values_of(FLAT).at[3, 0, 0, 0].set(2))  # a value of the other book
    np.testing.assert_array_equal(np.isnan(log_prob), [False, False, False, True])


def apply(model, values, **options):
    return lambda: model.apply(init(model), values, **options, method="log_prob")


def sample(model, num=2, **options):
    return lambda: model.sample(init(model), num, **{"key": KEY, **options})


TWO = jnp.zeros((2, 3, 3), jnp.int32)
REFUSED = {
    "another generator": (sample(TINY, key=jax.random.key(0, impl="rbg")), TypeError, "key must be a threefry key"),
    "no maps": (sample(TINY, 0), ValueError, "num must be at least 1, got 0"),
    "temperature": (sample(TINY, temperature=-1.0), ValueError, "temperature must be a finite number, zero or more"),
    "top_k of none": (sample(TINY, top_k=0), ValueError, "top_k must be at least 1, got 0"),
    "top_k of more": (sample(TINY, top_k=3), ValueError, "top_k must be at most 2, the number of values, got 3"),
    "half a top_k": (sample(TINY, top_k=1.5), TypeError, "top_k must be an integer, got 1.5"),
    "top_p of nothing": (sample(TINY, top_p=0.0), ValueError, r"top_p must lie in \(0, 1\], got 0.0"),
    "top_p of more": (sample(TINY, top_p=1.1), ValueError, r"top_p must lie in \(0, 1\], got 1.1"),
    "top_p of no number": (sample(TINY, top_p=float("nan")), ValueError, r"top_p must lie in \(0, 1\], got nan"),
    "guidance of nothing": (sample(TINY, guidance=2.0), ValueError, "guidance needs a model with classes or a prefix"),
    "negative guidance": (sample(CLASSES, guidance=-1.0), ValueError, "guidance must be a finite number, zero or more"),
    "a label too many": (sample(TINY, label=jnp.zeros(2, int)), ValueError, "the model has no classes"),
    "a label missing": (sample(CLASSES), ValueError, r"the model has 3 classes: pass label \[B\]"),
    "a label out of range": (
        sample(CLASSES, label=jnp.array([0, 3])),
        ValueError,
        r"label 3 at index 1 is outside 0 .. 2",
    ),
    "a prefix too many": (sample(TINY, prefix=jnp.zeros((2, 1), int)), ValueError, "the model has no prefix"),
    "a prefix missing": (
        sample(PREFIXED_BOOKS),
        ValueError,
        r"the model has a prefix of 3 tokens: pass prefix \[B, 3\]",
    ),
    "a long prefix": (
        sample(PREFIXED_BOOKS, prefix=jnp.zeros((2, 4), int)),
        ValueError,
        r"prefix must be integers \(2, 1 .. 3\), got \(2, 4\)",
    ),
    "a floating prefix": (
        sample(PREFIXED_BOOKS, prefix=jnp.zeros((2, 3))),
        TypeError,
        r"prefix must be integers \(batch, length\), got float32",
    ),
    "a token out of range": (
        sample(PREFIXED_BOOKS, prefix=jnp.full((2, 3), 6)),
        ValueError,
        "prefix token 6 at index 0, 0 is outside 0 .. 5",
    ),
    "floating values": (apply(TINY, TWO.astype(float)), TypeError, "values must be integers, got float32"),
    "another shape": (
        apply(TINY, TWO[..., :2]),
        ValueError,
        r"expected values \(batch, 3, 3\), at least one, got \(2, 3, 2\)",
    ),
    "no books": (
        apply(FLAT, TWO[:, :2, :2]),
        ValueError,
        r"expected values \(batch, 2, 2, 2\), at least one, got \(2, 2, 2\)",
    ),
    "nothing": (apply(TINY, TWO[:0]), ValueError, r"at least one, got \(0, 3, 3\)"),
    "a value out of range": (apply(TINY, TWO + 2), ValueError, "value 2 at index 0, 0, 0 is outside 0 .. 1"),
    "a value of another book": (
        apply(FLAT, jnp.full((1, 2, 2, 2), 2)),
        ValueError,
        "value of book 0 2 at index 0, 0, 0 is outside 0 .. 1",
    ),
    "a mask of numbers": (apply(TINY, TWO, mask=TWO), TypeError, "mask must be bool"),
    "a mask of one": (
        apply(TINY, TWO, mask=TWO[0] == 0),
        ValueError,
        r"mask must be \(2, 3, 3\), as the positions are",
    ),
    "a mask with holes": (
        apply(TINY, TWO, mask=(TWO == 0).at[1, 0, 0].set(False)),
        ValueError,
        "missing positions of a mask must come last, those of example 1 do not",
    ),
    "nothing to drop": (apply(TINY, TWO, dropped=jnp.ones(2, bool)), ValueError, "neither classes nor a prefix"),
    "known, as numbers": (
        lambda: TINY.complete(init(TINY), TWO, TWO, key=KEY),
        TypeError,
        "known must be bool, true where a value stays, got int32",
    ),
    "known of another shape": (
        lambda: TINY.complete(init(TINY), TWO, TWO[0] == 0, key=KEY),
        ValueError,
        r"known must be \(2, 3, 3\), as the values are, got \(3, 3\)",
    ),
    "dropping without a condition": (
        lambda: code_prior_loss(
            TINY, init(TINY), (), {"code": TWO, "index": jnp.arange(2)}, key=KEY, step=0, condition_dropout=0.5
        ),
        ValueError,
        "neither classes nor a prefix",
    ),
    "always dropping": (
        lambda: code_prior_loss(TINY, {}, (), {"code": TWO}, key=KEY, step=0, condition_dropout=1.0),
        ValueError,
        r"condition_dropout must lie in \[0, 1\), got 1.0",
    ),
    "a mask for a PixelCNN": (
        lambda: code_prior_loss(jaxvae.PixelCNN(2, (3, 3)), {}, (), {"code": TWO, "mask": TWO == 0}, key=KEY, step=0),
        TypeError,
        "PixelCNN.log_prob has no argument mask",
    ),
    "one value": (lambda: TransformerPrior(1, (3,)), ValueError, "num_values must be at least 2, got 1"),
    "one value of a book": (
        lambda: TransformerPrior((2, 1), (3,)),
        ValueError,
        r"num_values must be at least 2, got \(2, 1\)",
    ),
    "no book": (lambda: TransformerPrior((), (3,)), ValueError, "num_values must be a number or one for each book"),
    "no shape": (
        lambda: TransformerPrior(2, ()),
        ValueError,
        r"shape must be \(T,\), \(H, W\) or \(D, H, W\), got \(\)",
    ),
    "heads": (lambda: TransformerPrior(2, (3,), width=10, heads=4), ValueError, "heads must divide width"),
    "kv_heads": (lambda: TransformerPrior(2, (3,), kv_heads=3), ValueError, "kv_heads heads, got width 128, heads 4"),
    "odd heads": (
        lambda: TransformerPrior(2, (3,), width=9, heads=3),
        ValueError,
        "rotary positions along 1 axes need",
    ),
    "positions": (
        lambda: TransformerPrior(2, (3,), positions="sines"),
        ValueError,
        "positions must be 'rotary' or 'learned'",
    ),
    "books": (lambda: TransformerPrior(2, (3,), books="all"), ValueError, "books must be 'flat' or 'delay', got 'all'"),
    "dropout": (lambda: TransformerPrior(2, (3,), dropout=1.0), ValueError, r"dropout must lie in \[0, 1\), got 1.0"),
    "prefix": (
        lambda: TransformerPrior(2, (3,), prefix=(3,)),
        ValueError,
        r"prefix must be \(length, vocabulary\), got \(3,\)",
    ),
}


@pytest.mark.parametrize(("call", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_what_does_not_fit_is_refused(call, error, message):
    with pytest.raises(error, match=message):
        call()


# The blocks.


def test_turned_products_depend_on_the_difference_of_the_positions_alone(x64):
    rng = np.random.default_rng(0)
    query, key = (jnp.asarray(rng.normal(size=(1, 1, 1, 12)), x64) for _ in range(2))

    def product(at, other):
        angles = rotary_angles(np.array([at, other], float), 12)
        turned = rotate(query, jnp.asarray(angles[:1])), rotate(key, jnp.asarray(angles[1:]))
        return float((turned[0] * turned[1]).sum())

    for at, other, move in (((1, 2), (3, 5), (4, -1)), ((0, 0), (0, 1), (7, 7)), ((2,), (9,), (11,))):
        moved = tuple(np.add(at, move)), tuple(np.add(other, move))
        assert product(at, other) == pytest.approx(product(*moved), rel=1e-12)
    products = [product((0, 0), each) for each in ((0, 0), (0, 1), (1, 0), (1, 1))]
    assert np.abs(np.subtract.outer(products, products) + np.eye(4)).min() > 1e-3  # both axes matter
    np.testing.assert_allclose(product((0, 0), (0, 0)), float((query * key).sum()), rtol=1e-12)
    angles = rotary_angles(np.array([[2.0, 3.0]]), 12)
    expected = [*2 * 100.0 ** (-np.arange(3) / 3), *3 * 100.0 ** (-np.arange(3) / 3)]
    np.testing.assert_allclose(angles[0], expected, rtol=1e-12)


def test_attention_is_that_of_numpy_and_heads_share_keys_in_groups():
    rng = np.random.default_rng(0)
    query, key, value = (rng.normal(size=(2, heads, steps, 4)) for heads, steps in ((6, 3), (2, 5), (2, 5)))
    seen = rng.random((2, 3, 5)) < 0.6
    seen[:, :, 0] = True
    expected = np.empty_like(query)
    for example, head in itertools.product(range(2), range(6)):
        scores = query[example, head] @ key[example, head // 3].T / 2
        weights = special.softmax(np.where(seen[example], scores, -np.inf), axis=-1)
        expected[example, head] = weights @ value[example, head // 3]
    out = jax.jit(attend)(*(jnp.asarray(each, jnp.float32) for each in (query, key, value)), seen)
    np.testing.assert_allclose(out, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms_are_those_of_numpy(kind):
    x = np.random.default_rng(0).normal(loc=1.0, scale=30.0, size=(3, 5, 16))
    module = norm(kind, jnp.bfloat16)
    params = module.init(KEY, jnp.zeros((1, 1, 16)))
    centred = x - x.mean(axis=-1, keepdims=True) * (kind == "layer")
    expected = centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    out = module.apply(params, jnp.asarray(x, jnp.float32))
    assert out.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.float32(out), expected, rtol=2**-8, atol=2**-8)


# Training.


def test_the_gradient_reaches_every_parameter():
    model = TransformerPrior((3, 2), (4,), prefix=(3, 2), num_classes=2, positions="learned", **SMALL)
    batch = {"code": values_of(model, 16), "index": jnp.arange(16), **conditions(model, 16)}
    batch["prefix"] = batch["prefix"].at[:8].set(jnp.arange(3) % 2)
    loss = jax.jit(jax.grad(lambda params: loss_of(model, params, batch, KEY, (("condition_dropout", 0.5),))[0]))
    largest = {jax.tree_util.keystr(path): np.abs(g).max() for path, g in jax.tree.leaves_with_path(loss(init(model)))}
    assert len(largest) == 2 * 6 + 1 + 6 + 4  # layers, last norm, embedding and head, conditions
    assert min(largest.values()) > 1e-5, largest


@pytest.mark.slow
def test_dropout_draws_anew_in_training_and_not_in_evaluation():
    model = TransformerPrior(3, (4,), dropout=0.5, **SMALL)
    params, batch = init(model), {"code": values_of(model), "index": jnp.arange(B)}
    exact = -log_prob_of(model, params, batch["code"]).mean()
    losses = [float(loss_of(model, params, batch, jax.random.key(seed))[0]) for seed in range(3)]
    assert len({*losses, float(exact)}) == 4
    evaluate = jaxvae.make_eval_step(partial(code_prior_loss, model))
    sums, weight = evaluate(params, (), batch | {"weight": jnp.ones(B)}, key=KEY, step=jnp.int32(0))
    np.testing.assert_allclose(sums["nll"] / weight, exact, rtol=1e-5)


@pytest.mark.slow
def test_training_learns_maps_that_leave_only_the_first_value_open():
    """Four maps, each row of which is the one above plus one: log 4 nats an example are left."""
    model = TransformerPrior(4, (4, 4), width=16, layers=2, heads=2)
    values = (jnp.arange(4).reshape(4, 1, 1) + jnp.arange(4).reshape(1, 4, 1)) % 4
    batch = {"code": jnp.broadcast_to(values, (4, 4, 4)), "index": jnp.arange(4)}
    optimizer = optax.adam(1e-2)
    step = jaxvae.make_train_step(partial(code_prior_loss, model), optimizer)

    @jax.jit
    def train(params):
        state = jaxvae.init_train_state(lambda *, key: (params, ()), optimizer, key=KEY)
        return jax.lax.scan(lambda state, _: step(state, batch), state, length=80)

    state, metrics = train(model.init(KEY, batch["code"]))
    assert metrics["loss"][0] > 16
    np.testing.assert_allclose(metrics["loss"][-1], np.log(4), atol=0.05)
    drawn = model.sample(state.params, 200, key=KEY)
    right = (drawn == batch["code"][drawn[:, 0, 0]]).all(axis=(1, 2))
    assert right.mean() > 0.95


def test_bfloat16_computes_near_float32():
    narrow = PREFIX.clone(dtype=jnp.bfloat16)
    params, values, options = init(PREFIX), values_of(PREFIX), conditions(PREFIX)
    exact, rounded = (logits_of(model, params, values, **options) for model in (PREFIX, narrow))
    assert rounded.dtype == jnp.float32
    np.testing.assert_allclose(rounded, exact, atol=0.1)
    assert np.abs(rounded - exact).max() > 1e-4
    drawn = narrow.sample(params, B, key=KEY, **options)
    np.testing.assert_array_equal(drawn, jnp.clip(drawn, 0, 3))


def test_models_pickle():
    for model in MODELS.values():
        assert pickle.loads(pickle.dumps(model)) == model
        assert hash(model) == hash(pickle.loads(pickle.dumps(model)))
