"""Arrays of a user's own: what becomes a `Dataset`, and what is refused with the way out."""

import pickle

import jax.numpy as jnp
import numpy as np
import pytest
from tfds_sets import random_images

from jaxvae import data

GREY = np.random.default_rng(0).uniform(size=(20, 3, 3, 1))
LEVELS = data.Domain("levels", 256)
MASKED = np.ma.masked_less(GREY, 0.1)


def replaced(value, dtype=np.float64):
    changed = GREY.astype(dtype)
    changed[17, 1, 1, 0] = value
    return changed


def dataset(**arrays):
    return data.Dataset("own", {"x": np.zeros((3, 2))} | arrays, data.make_prepare(), data.Domain("real"))


# x


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, jnp.bfloat16])
def test_floating_x_of_any_type_is_kept_as_float32(dtype):
    own = data.from_arrays("own", GREY.astype(dtype), np.arange(20))
    assert (own.x.dtype, own.label.dtype) == (np.float32, np.int32)
    np.testing.assert_array_equal(own.x, GREY.astype(dtype).astype(np.float32))
    assert (own.domain, own.levels, own.shape) == (data.Domain("unit interval"), None, (3, 3, 1))


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint16, np.int64])
def test_integers_of_any_type_are_kept_as_uint8(dtype):
    images = random_images(4)
    own = data.from_arrays("own", images.astype(dtype))
    assert own.x.dtype == np.uint8
    np.testing.assert_array_equal(own.x, images)
    assert (own.domain, own.levels, own.shape) == (LEVELS, 256, (4, 5, 3))


def test_lists_and_arrays_of_jax_are_taken():
    images = random_images(4, levels=17)
    for make in (np.ndarray.tolist, list, jnp.asarray):
        own = data.from_arrays("own", make(images), make(np.arange(4)), levels=17)
        assert isinstance(own.x, np.ndarray)
        assert (own.x.dtype, own.label.dtype) == (np.uint8, np.int32)
        np.testing.assert_array_equal(own.x, images)
        np.testing.assert_array_equal(own.label, np.arange(4))
    floating = data.from_arrays("own", GREY.tolist(), jnp.arange(20))
    np.testing.assert_array_equal(floating.x, GREY.astype(np.float32))


def test_a_memory_map_stays_one(tmp_path):
    np.save(tmp_path / "x.npy", random_images(4))
    own = data.from_arrays("own", np.load(tmp_path / "x.npy", mmap_mode="r"))
    assert isinstance(own.x, np.memmap)
    np.testing.assert_array_equal(own.take(np.array([3, 1])).x, random_images(4)[[3, 1]])


@pytest.mark.parametrize(("largest", "way_out"), [(0, 2), (1, 2), (16, 17), (254, 255)])
def test_levels_must_be_said_where_the_values_do_not_show_them(largest, way_out):
    images = np.full((3, 2, 2, 1), largest, np.uint8)
    images[0] = 0
    said = rf"the largest value of x is {largest}: pass levels={way_out} if .* levels=256 if values could be 0 .. 255"
    with pytest.raises(ValueError, match=said):
        data.from_arrays("own", images)
    for levels in (way_out, 256):
        assert data.from_arrays("own", images, levels=levels).levels == levels


def test_digits_without_levels_are_not_taken_as_bytes():
    digits = data.load("digits", "train")
    with pytest.raises(ValueError, match="the largest value of x is 16: pass levels=17"):
        data.from_arrays("digits", digits.x)
    own = data.from_arrays("digits", digits.x, digits.label, levels=17)
    assert own.prepare({"x": jnp.asarray(own.x)}, key=None)["x"].max() == 1
    assert (own.domain, own.prepare, own.num_classes) == (digits.domain, digits.prepare, 10)


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (replaced(255.0), r"x\[17\] has 255.0, outside \[0, 1\]; scale it first"),
        (replaced(255.0, np.float16), r"x\[17\] has 255.0, outside \[0, 1\]"),
        (replaced(255.0, jnp.bfloat16), r"x\[17\] has 255.0, outside \[0, 1\]"),
        (replaced(-0.5), r"x\[17\] has -0.5, outside \[0, 1\]"),
        (replaced(-np.inf, np.float16), r"x\[17\] has -inf, which is not finite"),
        (replaced(300, np.int32), r"x\[17\] has 300, outside \[0, 255\]"),
        (replaced(-1, np.int8), r"x\[17\] has -1, outside \[0, 255\]"),
        (GREY[0, 0, 0], r"expected x \[N, ...\], at least one number in each example, got \(1,\)"),
        (GREY[:0], r"expected x \[N, ...\], at least one number in each example, got \(0, 3, 3, 1\)"),
        (GREY[:, :0], r"expected x \[N, ...\], at least one number in each example, got \(20, 0, 3, 1\)"),
        ([], r"expected x \[N, ...\], at least one number in each example, got \(0,\)"),
        ([[[[1.0]]], [[[1.0, 0.0]]]], "x must be an array, and its rows differ in shape"),
    ],
)
def test_values_and_shapes_that_cannot_be(x, text):
    with pytest.raises(ValueError, match=text):
        data.from_arrays("own", x)


@pytest.mark.parametrize(
    ("x", "text"),
    [
        (GREY > 0.5, r"got bool: pass x.astype\(np.uint8\) and levels=2"),
        (GREY.astype(complex), r"x must be floating in \[0, 1\], got complex128"),
        (GREY.astype(object), "x must hold numbers, got an array of object"),
        (GREY.astype(str), "x must hold numbers, got an array of <U32"),
        (None, "x must hold numbers, got an array of object"),
        (MASKED, r"x is a masked array, and its mask would be ignored: fill what is missing by x.filled\(...\)"),
        (list(MASKED), "x is a masked array"),
        (np.ma.array(GREY), "x is a masked array"),  # though nothing is masked: what comes next may be
    ],
)
def test_types_that_cannot_be(x, text):
    with pytest.raises(TypeError, match=text):
        data.from_arrays("own", x)


@pytest.mark.parametrize("shape", [(6,), (16, 1), (2, 4, 4, 1), (3, 2)])
def test_x_of_any_shape_and_domain(shape):
    """Sound, video, tables: what models see is x itself, or levels over the largest."""
    rng = np.random.default_rng(1)
    real, counts = rng.normal(size=(5, *shape)), rng.poisson(300, (5, *shape))
    own = data.from_arrays("own", real, domain="real", condition=real[..., :1])
    assert (own.x.dtype, own.domain, own.shape) == (np.float32, data.Domain("real"), shape)
    np.testing.assert_array_equal(own.x, real.astype(np.float32))
    np.testing.assert_array_equal(own.arrays["condition"], real[..., :1])
    own = data.from_arrays("own", counts, domain="counts")
    assert (own.x.dtype, own.domain, own.levels) == (np.uint16, data.Domain("counts"), None)
    seen = own.prepare({"x": jnp.asarray(own.x)}, key=None)["x"]
    assert seen.dtype == jnp.float32
    np.testing.assert_array_equal(seen, counts)
    codes = counts % 7
    own = data.from_arrays("own", codes, domain="categories", levels=7)
    assert own.domain == data.Domain("categories", 7)
    np.testing.assert_allclose(own.prepare({"x": jnp.asarray(own.x)}, key=None)["x"], codes / 6, rtol=1e-6)


def test_more_than_256_levels_are_kept_wide():
    deep = np.arange(6).reshape(3, 2) * 13107
    own = data.from_arrays("own", deep, levels=65536)
    assert own.x.dtype == np.uint16
    np.testing.assert_allclose(own.prepare({"x": jnp.asarray(own.x)}, key=None)["x"], deep / 65535, rtol=1e-6)
    assert data.from_arrays("own", deep * 10, domain="counts").x.dtype == np.int32


@pytest.mark.parametrize(
    ("x", "options", "error", "text"),
    [
        (GREY * 10, {"domain": "counts"}, TypeError, "x must be integers, got float64"),
        (np.array([[1], [-2]]), {"domain": "counts"}, ValueError, r"x\[1\] has -2, outside \[0, inf\]"),
        (np.array([[2**24], [2**24 + 1]]), {"domain": "counts"}, ValueError, "count 16777217, which float32 has not"),
        (np.array([[2**40]]), {"domain": "counts"}, ValueError, "x must fit 32 bits, got 1099511627776"),
        (GREY * 1e39, {"domain": "real"}, ValueError, r"x\[\d\] has .*e\+3\d, which is too large for 32 bits"),
        (np.array([["2020-01-01", "2021-01-01"]], "M8[D]") - np.datetime64(0, "D"), {}, TypeError, "must hold numbers"),
        (GREY, {"domain": "pixels"}, ValueError, "kind must be one of"),
        (np.array([[1], [3]]), {"domain": "categories"}, ValueError, "the largest value of x is 3: pass levels=4"),
        (GREY, {"domain": "real", "levels": 3}, ValueError, "levels=3 is for integers .*, and x is float64, 'real'"),
        (GREY, {"domain": LEVELS, "levels": 3}, ValueError, "say different things: leave one out"),
        (np.array([[1], [300]]), {"domain": LEVELS}, ValueError, r"x\[1\] has 300, outside \[0, 255\]"),
    ],
)
def test_arrays_outside_their_domain(x, options, error, text):
    with pytest.raises(error, match=text):
        data.from_arrays("own", x, **options)


def test_counts_are_prepared_as_they_are_and_nothing_else():
    for options in ({"levels": 3}, {"binarize": True}):
        with pytest.raises(ValueError, match="counts have no levels and are not binarised"):
            data.make_prepare(counts=True, **options)


def test_a_share_of_each_label_is_kept_for_validation():
    label = np.repeat([0, 1, 2], [50, 30, 20])
    own = data.from_arrays("own", np.linspace(0, 1, 100)[:, None], label)
    for count in (20, 0.2):
        training, validation = data.split_validation(own, count, seed=1, stratified=True)
        assert np.bincount(validation.label).tolist() == [10, 6, 4]
        assert np.bincount(training.label).tolist() == [40, 24, 16]
        everything = np.concatenate([training.x, validation.x]).ravel()
        np.testing.assert_array_equal(np.sort(everything), own.x.ravel())
    plain = [np.bincount(data.split_validation(own, 20, seed=seed)[1].label).tolist() for seed in range(3)]
    assert len({tuple(each) for each in plain}) > 1  # left to chance
    assert (data.split_validation(own, 20, seed=2, stratified=True)[1].x != validation.x).any()
    for share in (0.0, 1.0, -0.5):
        with pytest.raises(ValueError, match="count must lie between 0 and 1 as a share of all"):
            data.split_validation(own, share, seed=1)
    unlabelled = data.from_arrays("own", GREY)
    with pytest.raises(ValueError, match="'own' has no labels to stratify by"):
        data.split_validation(unlabelled, 5, seed=1, stratified=True)


def test_levels_that_cannot_be():
    images = random_images(4)
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        data.from_arrays("own", images, levels=1)
    with pytest.raises(TypeError, match=r"levels must be an integer, got 16\.0"):
        data.from_arrays("own", images, levels=16.0)
    with pytest.raises(ValueError, match=r"x\[\d\] has \d+, outside \[0, 16\]"):
        data.from_arrays("own", images, levels=17)
    with pytest.raises(
        ValueError, match=r"levels=256 is for integers .*, and x is float64, 'unit interval': leave it out"
    ):
        data.from_arrays("own", GREY, levels=256)


# Labels


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int64, np.uint64])
def test_labels_of_any_integer_type_are_widened(dtype):
    label = np.array([0, 127, 5], dtype)
    own = data.from_arrays("own", GREY[:3], label)
    assert (own.label.dtype, own.label.tolist(), own.num_classes) == (np.int32, [0, 127, 5], 128)
    data.check_labels(label, 128)
    with pytest.raises(ValueError, match=r"label\[1\] is 127, outside 0 .. 126"):
        data.check_labels(label, 127)


@pytest.mark.parametrize("classes", [200, 256, 300])
def test_narrow_labels_are_compared_with_wide_numbers(classes):
    data.check_labels(np.arange(200, dtype=np.uint8), classes)
    with pytest.raises(ValueError, match=rf"label\[0\] is -1, outside 0 .. {classes - 1}"):
        data.check_labels(np.array([-1], np.int8), classes)


def test_labels_that_count_from_one():
    label = np.array([3, 10, 1, 9])
    with pytest.raises(ValueError, match=r"label\[1\] is 10, outside 0 .. 9: labels count from 0, so pass label - 1"):
        data.check_labels(label, 10)
    data.check_labels(label - 1, 10)
    assert data.from_arrays("own", GREY[:4], label).num_classes == 11
    with pytest.raises(ValueError, match=r"label\[1\] is 10, outside 0 .. 9$"):
        data.check_labels([0, 10], 10)


def test_numbers_of_classes_that_cannot_be_told():
    with pytest.raises(ValueError, match=r"label\[2\] of 'own' is -1: labels count from 0"):
        _ = data.from_arrays("own", GREY[:3], [0, 1, -1]).num_classes
    for unlabelled in (data.from_arrays("own", GREY), data.from_arrays("own", GREY, range(20)).take(slice(0))):
        with pytest.raises(ValueError, match="'own' has no labels"):
            _ = unlabelled.num_classes


@pytest.mark.parametrize(
    ("label", "error", "text"),
    [
        (np.zeros(20), TypeError, "label must be integers, got float64"),
        (np.zeros(20, bool), TypeError, "label must be integers, got bool"),
        (np.full(20, None), TypeError, "label must hold numbers, got an array of object"),
        (np.ma.array(np.zeros(20, int)), TypeError, "label is a masked array"),
        (np.zeros((20, 1), int), ValueError, r"label must be \[N\], one for each of 20 examples, got \(20, 1\)"),
        (np.zeros(19, int), ValueError, r"label must be \[N\], one for each of 20 examples, got \(19,\)"),
        (np.full(20, 2**31), ValueError, "label must fit 32 bits, got 2147483648"),
        (np.full(20, 2**63, np.uint64), ValueError, "label must fit 32 bits, got 9223372036854775808"),
    ],
)
def test_labels_that_cannot_be(label, error, text):
    with pytest.raises(error, match=text):
        data.from_arrays("own", GREY, label)
    if label.shape == (20,):
        with pytest.raises(error, match=text):
            data.check_labels(label, 10)


# Domains


@pytest.mark.parametrize(
    ("domain", "sound", "unsound", "error", "text"),
    [
        (data.Domain("unit interval"), [0.0, 0.5, 1.0], [0.0, 1.5], ValueError, r"x\[1\] has 1.5, outside \[0, 1\]"),
        (data.Domain("unit interval"), [0.0], [0, 1], TypeError, r"x must be floating in \[0, 1\], got int64"),
        (data.Domain("levels", 17), [0, 16], [0, 16, 17], ValueError, r"x\[2\] has 17, outside \[0, 16\]"),
        (data.Domain("levels", 17), [0, 16], [0.0], TypeError, "x must be integers, pixels on a scale, got float64"),
        (data.Domain("real"), [-1e30, 7.0], [0.0, np.nan], ValueError, r"x\[1\] has nan, which is not finite"),
        (data.Domain("real"), [0.5], [1], TypeError, "x must be floating, got int64"),
        (data.Domain("counts"), [0, 10**9], [3, -1], ValueError, r"x\[1\] has -1, outside \[0, inf\]"),
        (data.Domain("counts"), [0], [True], TypeError, "x must be integers, got bool"),
        (data.Domain("categories", 512), [0, 511], [512], ValueError, r"x\[0\] has 512, outside \[0, 511\]"),
        (data.Domain("categories", 3), [2], [1.0], TypeError, "x must be integers, codes, got float64"),
    ],
)
def test_values_are_compared_with_their_domain(domain, sound, unsound, error, text):
    for shape in ((-1,), (-1, 1, 1)):
        data.check_domain(np.reshape(sound, shape), domain)
        with pytest.raises(error, match=text):
            data.check_domain(np.reshape(unsound, shape), domain)
    with pytest.raises(TypeError, match="x is a masked array"):
        data.check_domain(np.ma.array(sound), domain)


def test_narrow_values_are_compared_with_wide_domains():
    data.check_domain(np.arange(256).astype(np.uint8), data.Domain("categories", 512))
    data.check_domain(np.full(3, 127, np.int8), LEVELS)
    with pytest.raises(ValueError, match=r"x\[0\] has -1, outside \[0, 511\]"):
        data.check_domain(np.array([-1], np.int8), data.Domain("categories", 512))


def test_domains_that_cannot_be():
    for arguments, text in (
        (
            ("pixels",),
            "kind must be one of 'unit interval', 'real', 'table', 'levels', 'counts', 'categories', got 'pixels'",
        ),
        (("levels",), "'levels' has a number of levels, got None"),
        (("levels", 1), "levels must be at least 2, got 1"),
        (("levels", 2**24 + 1), r"levels must be at most 2\*\*24, which float32 tells apart, got 16777217"),
        (("real", 3), "'real' has no levels, got 3"),
    ):
        with pytest.raises(ValueError, match=text):
            data.Domain(*arguments)


# The set


def test_a_set_pickles_with_all_its_parts():
    for one in (
        data.load("digits", "test"),
        data.load("sprites", "train").take(slice(5)).with_prepare(data.sprites.prepare),
        data.load("digits", "test").with_prepare(data.quadrants.make_prepare(data.make_prepare(17, binarize=True), 2)),
    ):
        again = pickle.loads(pickle.dumps(one))
        assert (again.name, again.domain, again.factor_names) == (one.name, one.domain, one.factor_names)
        assert (again.prepare, again.shape) == (one.prepare, one.shape)
        assert again.arrays.keys() == one.arrays.keys()
        for name, values in one.arrays.items():
            np.testing.assert_array_equal(again.arrays[name], values)


def test_a_set_of_other_than_images():
    arrays = {
        "x": np.arange(12.0).reshape(3, 4),
        "observed": np.ones((3, 4), bool),
        "condition": np.arange(6).reshape(3, 2),
    }
    table = data.Dataset("table", arrays, data.make_prepare(), data.Domain("real"))
    assert (len(table), table.shape, table.levels, table.label, table.factors) == (3, (4,), None, None, None)
    part = table.take([2, 0])
    for name, values in arrays.items():
        np.testing.assert_array_equal(part.arrays[name], values[[2, 0]])
    assert "array" not in repr(table)


@pytest.mark.parametrize(
    ("arrays", "error", "text"),
    [
        ({"x": np.float64(1)}, ValueError, "x must be .N, ...., got a single number"),
        ({"label": [0, 1]}, ValueError, r"label must be \[N\], one for each of 3 examples, got \(2,\)"),
        ({"factors": [0, 1, 2]}, ValueError, r"factors must be \[N, F\], one for each of 3 examples, got \(3,\)"),
        ({"factors": np.zeros((3, 1))}, TypeError, "factors must be integers, got float64"),
        ({"condition": np.zeros(2)}, ValueError, r"condition must be \[N, ...\], one for each of 3 examples"),
        ({"observed": np.ones((3, 2))}, ValueError, r"observed must be bool \(3, 2\), as x is, got float64 \(3, 2\)"),
        ({"observed": np.ones((3, 1), bool)}, ValueError, r"observed must be bool \(3, 2\), as x is"),
        ({"index": np.arange(3)}, ValueError, "arrays must not have 'index', which feeds make"),
        *(
            ({name: np.ma.zeros((3, 2), dtype)}, TypeError, f"{name} is a masked array")
            for name, dtype in (("x", float), ("condition", float), ("observed", bool), ("factors", int))
        ),
    ],
)
def test_arrays_that_do_not_belong_together(arrays, error, text):
    with pytest.raises(error, match=text):
        dataset(**arrays)


def test_a_set_needs_x_and_a_name_for_each_factor():
    with pytest.raises(ValueError, match="arrays must have 'x', got 'image'"):
        data.Dataset("own", {"image": np.zeros((3, 2))}, data.make_prepare(), data.Domain("real"))
    for arrays, actual in (({}, "no factors"), ({"factors": np.zeros((3, 1), int)}, r"\(3, 1\)")):
        with pytest.raises(ValueError, match=rf"factor_names are 2, one for each column of factors .*, got {actual}"):
            data.Dataset("own", {"x": np.zeros(3)} | arrays, data.make_prepare(), data.Domain("real"), ("a", "b"))


def test_names_of_labels_fit_the_labels():
    arrays, rest = {"x": np.zeros(3), "label": [0, 2, 1]}, (data.make_prepare(), data.Domain("real"))
    named = data.Dataset("own", arrays, *rest, label_names=["a", "b", "c", "d"])
    assert named.take([0]).num_classes == 4
    for wrong, names, text in (
        (arrays, ["a", "b"], "label.1. is 2, outside 0 .. 1"),
        (arrays, ["a", "b", "a"], "label_names must differ"),
        ({"x": np.zeros(3)}, ["a"], "1 label_names, and no labels"),
    ):
        with pytest.raises(ValueError, match=text):
            data.Dataset("own", wrong, *rest, label_names=names)


def test_indices_that_are_no_list():
    with pytest.raises(ValueError, match=r"indices must be a slice or \[M\], got \(\)"):
        dataset().take(1)
    assert len(dataset().take([])) == 0
