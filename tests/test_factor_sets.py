"""Sets whose factors are known: drawn ones, and those that tensorflow-datasets has prepared, behind one interface."""

import json
import sys

import jax
import numpy as np
import pytest
from tfds_sets import random_images, write_set

from jaxvae import data
from jaxvae.data import sprites
from jaxvae.evaluation import map_batches

# As tensorflow-datasets declares them, with the numbers of their values; `load` sorts them by name.
DSPRITES = {"shape": 3, "scale": 6, "orientation": 40, "x_position": 32, "y_position": 32}
SHAPES3D = {"floor_hue": 10, "wall_hue": 10, "object_hue": 10, "scale": 8, "shape": 4, "orientation": 15}
COUNT = 1500  # decoded in two batches


def miniature(name):
    """Images, and factors by name, as dsprites or shapes3d have them."""
    sizes, shape, levels = {"dsprites": (DSPRITES, (8, 8, 1), 2), "shapes3d": (SHAPES3D, (4, 4, 3), 256)}[name]
    rng = np.random.default_rng(1)
    factors = {factor: rng.integers(0, size, COUNT) for factor, size in sizes.items()}
    return random_images(COUNT, shape, levels), factors


@pytest.fixture(scope="module")
def drawn():
    return data.load("sprites", "train")


# Prepared sets


@pytest.mark.parametrize(
    ("name", "levels", "names"),
    [
        ("dsprites", 2, ("orientation", "scale", "shape", "x_position", "y_position")),
        ("shapes3d", 256, ("floor_hue", "object_hue", "orientation", "scale", "shape", "wall_hue")),
    ],
)
def test_the_factors_of_a_prepared_set_are_read_exactly_and_cached(tmp_path, monkeypatch, name, levels, names):
    images, factors = miniature(name)
    write_set(tmp_path, name, images, factors=factors)
    for _ in range(2):
        read = data.load(name, "train", data_dir=tmp_path, cache_dir=tmp_path / "cache")
        np.testing.assert_array_equal(read.x, images)
        assert (read.levels, read.label, read.factor_names) == (levels, None, names)
        assert read.factors.dtype == np.int32
        np.testing.assert_array_equal(read.factors, np.stack([factors[factor] for factor in names], axis=1))
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)  # the second time comes from the cache


def test_labels_and_factors_side_by_side(tmp_path):
    write_set(tmp_path, "both", random_images(3), [7, 8, 9], factors={"hue": [2, 0, 1]})
    both = data.load("both", "train", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(both.label, [7, 8, 9])
    np.testing.assert_array_equal(both.factors, [[2], [0], [1]])
    assert both.factor_names == ("hue",)


def test_a_set_without_factors_says_so(tmp_path):
    write_set(tmp_path, "plain", random_images(3), [7, 8, 9])
    plain = data.load("plain", "train", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    own = data.from_arrays("own", random_images(3), levels=256)
    for images in (plain, data.load("digits", "train"), own):
        assert images.factors is None
        assert images.factor_names == ()


def test_a_copy_made_before_there_were_factors_has_none(tmp_path):
    write_set(tmp_path, "tiny", random_images(3), [7, 8, 9])
    data.load("tiny", "train", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    (meta,) = (tmp_path / "cache").rglob("meta.json")
    content = json.loads(meta.read_text())
    del content["factor_names"]
    meta.write_text(json.dumps(content))
    for data_dir in (tmp_path, tmp_path / "nowhere"):
        old = data.load("tiny", "train", data_dir=data_dir, cache_dir=tmp_path / "cache")
        np.testing.assert_array_equal(old.x, random_images(3))
        np.testing.assert_array_equal(old.label, [7, 8, 9])
        assert old.factors is None


def test_a_copy_that_lost_its_factors_is_made_again(tmp_path):
    write_set(tmp_path, "tiny", random_images(3), factors={"hue": [2, 0, 1]})
    data.load("tiny", "train", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    (lost,) = (tmp_path / "cache").rglob("factors.npy")
    lost.unlink()
    again = data.load("tiny", "train", data_dir=tmp_path, cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(again.factors, [[2], [0], [1]])


# Sprites


def test_sprites_are_every_combination_of_their_factors(drawn):
    assert drawn.x.shape == drawn.factors.shape == (737_280, 5)
    assert (drawn.x.dtype, drawn.factors.dtype) == (np.uint8, np.int32)
    assert drawn.x.nbytes < 4 * 2**20
    np.testing.assert_array_equal(drawn.x, drawn.factors)
    assert drawn.factor_names == ("shape", "scale", "orientation", "x", "y")
    assert (drawn.name, drawn.label, drawn.levels, drawn.shape) == ("sprites", None, 2, (64, 64, 1))
    assert drawn.prepare is sprites.prepare
    for column, size in enumerate((3, 6, 40, 32, 32)):
        assert (np.bincount(drawn.factors[:, column]) == 737_280 // size).all()


def test_feeds_bring_factors_that_the_step_renders(drawn, key):
    order = data.Order(len(drawn.x), batch_size=8, epochs=1, seed=0)
    resident, streamed = data.Resident(drawn, order, chunk=3), data.Streamed(drawn, order, chunk=3)
    assert data.Streamed(drawn, order).chunk == order.total_steps  # all the factors fit 64 MiB
    expected = jax.jit(sprites.render)(drawn.factors[order.indices(5, 3).ravel()])
    prepare = jax.jit(sprites.prepare)
    for feed in (resident, streamed):
        source, indices = feed(5, 3)
        batch = prepare({name: values[indices.ravel()] for name, values in source.items()}, key=key)
        np.testing.assert_array_equal(batch["x"], expected)
        np.testing.assert_array_equal(batch["index"], order.indices(5, 3).ravel())


def test_evaluation_renders_every_example_once(drawn, key):
    few = drawn.take(slice(100_000, 700_000, 30_000))
    source, indices = data.evaluation_feed(few, 8)
    seen = map_batches(
        lambda params, model_state, batch, *, key: batch["x"],
        (), (), source, indices, key=key, prepare=few.prepare,
    )  # fmt: skip
    assert seen.shape == (20, 64, 64, 1)
    np.testing.assert_array_equal(seen, jax.jit(sprites.render)(few.factors))


# Both


def test_parts_of_a_set_keep_their_factors(drawn):
    few = drawn.take(np.arange(0, 737_280, 7_000))
    np.testing.assert_array_equal(few.take(np.array([5, 2])).factors, drawn.factors[[35_000, 14_000]])
    train, validation = data.split_validation(few, 30, seed=0)
    assert (len(train.factors), len(validation.factors)) == (len(few.factors) - 30, 30)
    for part in (train, validation):
        assert part.factor_names == few.factor_names
        np.testing.assert_array_equal(part.factors, part.x)
    everything = np.concatenate([train.factors, validation.factors])
    np.testing.assert_array_equal(np.unique(everything, axis=0), np.unique(few.factors, axis=0))
