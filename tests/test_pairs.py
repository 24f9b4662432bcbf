"""Pictures and drawings of them, against SciPy's morphology."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from jaxvae import data
from jaxvae.data import pairs, sprites
from jaxvae.keys import seed_key

KEY = seed_key(0)
CROSS = ndimage.generate_binary_structure(2, 1)


@pytest.fixture(scope="module")
def shapes():
    """Sprites of every shape, scale and some orientations."""
    index = np.random.default_rng(0).choice(sprites.NUM_IMAGES, 40, replace=False)
    return np.asarray(jax.jit(sprites.render)(sprites.factors_at(index)))


def test_the_outline_of_a_sprite_is_what_erosion_takes_and_says_all_of_it(shapes):
    found = np.asarray(pairs.outlines(shapes))
    for shape, outline in zip(shapes[..., 0] > 0, found[..., 0] > 0, strict=True):
        np.testing.assert_array_equal(outline, shape & ~ndimage.binary_erosion(shape, CROSS))
        np.testing.assert_array_equal(ndimage.binary_fill_holes(outline, CROSS), shape)
    assert 0 < found.mean() < 0.6 * shapes.mean()


def test_an_outline_at_the_border_is_closed_and_greys_are_cut_at_one_half():
    x = np.zeros((1, 4, 5, 1), np.float32)
    x[0, :, 2:, 0] = [[0.5, 1, 1], [0.7, 1, 1], [1, 1, 0.49], [1, 1, 1]]
    expected = [[0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 1, 1, 0], [0, 0, 1, 1, 1]]
    expected[1][3] = 0  # of ones on all four sides
    np.testing.assert_array_equal(pairs.outlines(x)[0, :, :, 0], expected)


def test_edges_are_where_the_morphological_gradient_is_half_the_range():
    x = data.load("digits", "test").x[:50] / np.float32(16)
    found = np.asarray(pairs.edges(x))
    for image, edge in zip(x[..., 0], found[..., 0], strict=True):
        gradient = ndimage.morphological_gradient(image, footprint=CROSS, mode="nearest")
        np.testing.assert_array_equal(edge, gradient >= 0.5)
    assert set(np.unique(found)) == {0, 1}
    assert not pairs.edges(jnp.full((2, 6, 7, 3), 0.9)).any()
    colours = np.random.default_rng(0).random((2, 6, 7, 3), np.float32)
    np.testing.assert_array_equal(pairs.edges(colours)[..., 1:2], pairs.edges(colours[..., 1:2]))


def test_a_paired_set_has_the_drawing_of_what_its_own_prepare_makes():
    digits = data.load("digits", "test")
    found = pairs.paired(digits, pairs.edges)
    assert found.x is digits.x
    batch = found.prepared(5, key=KEY)
    np.testing.assert_allclose(batch["x"], digits.x[:5] / np.float32(16), rtol=1e-6)
    np.testing.assert_array_equal(batch["condition"], pairs.edges(batch["x"]))
    binary = pairs.paired(digits.with_prepare(data.make_prepare(17, binarize=True)), pairs.outlines)
    batch = binary.prepared(5, key=KEY)
    np.testing.assert_array_equal(batch["condition"], pairs.outlines(batch["x"]))
    assert pickle.loads(pickle.dumps(found.prepare)) == found.prepare
    drawn = pairs.paired(data.load("sprites", "train").take(slice(3)), pairs.outlines)
    assert drawn.prepared(3, key=KEY)["condition"].shape == (3, 64, 64, 1)


def test_what_is_no_picture_is_refused_by_name():
    with pytest.raises(TypeError, match=r"x must be floating, in \[0, 1\], got uint8; scale it first"):
        pairs.outlines(np.zeros((1, 4, 4, 1), np.uint8))
    with pytest.raises(ValueError, match=r"x must be pictures \[B, H, W, C\], got \(4, 4, 1\)"):
        pairs.edges(np.zeros((4, 4, 1), np.float32))
    with pytest.raises(ValueError, match="'table' must hold pictures"):
        pairs.paired(data.from_arrays("table", np.zeros((4, 3))), pairs.edges)
    real = data.from_arrays("real", np.full((4, 5, 5, 1), 200.0), domain="real")
    with pytest.raises(ValueError, match="'real' is of domain 'real', and outlines and edges are of values in"):
        pairs.paired(real, pairs.outlines)
    assert pairs.paired(real, lambda x: x).prepared(2, key=seed_key(0))["condition"].shape == (2, 5, 5, 1)
    given = data.from_arrays("given", np.zeros((4, 5, 5, 1)), condition=np.zeros(4, np.int32))
    with pytest.raises(ValueError, match="'given' has conditions already"):
        pairs.paired(given, pairs.edges)
