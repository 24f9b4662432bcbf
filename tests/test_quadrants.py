"""Quadrants taken out of images and put back, and the picture of what models put there."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_figures import boxes, flat, read

from jaxvae import data, figures
from jaxvae.data import quadrants


def image(height=28, width=28, channels=1):
    return np.random.default_rng(0).random((3, height, width, channels), np.float32)


@pytest.mark.parametrize("visible", [1, 2, 3])
@pytest.mark.parametrize("shape", [(28, 28, 1), (8, 8, 1), (5, 7, 3)])
def test_join_undoes_split(visible, shape):
    images = image(*shape)
    condition, target = quadrants.split(jnp.asarray(images), visible)
    assert condition.shape[1] + target.shape[1] == np.prod(shape)
    np.testing.assert_array_equal(quadrants.join(condition, target, shape, visible), images)


@pytest.mark.parametrize(("visible", "hidden"), [(1, 588), (2, 392), (3, 196)])
def test_the_visible_quadrants_are_those_of_the_tutorial(visible, hidden):
    images = image()
    condition, target = quadrants.split(jnp.asarray(images), visible)
    assert condition.shape == (3, 784 - hidden)
    assert target.shape == (3, hidden)
    seen = np.zeros((28, 28), bool)
    seen[14:, :14] = True  # the bottom left
    seen[:, :14] |= visible >= 2  # the left half
    seen[:14] |= visible == 3  # all but the bottom right
    np.testing.assert_array_equal(condition, images[:, seen].reshape(3, -1))
    np.testing.assert_array_equal(target, images[:, ~seen].reshape(3, -1))


def test_prepare_scales_and_splits():
    stored = np.random.default_rng(1).integers(0, 17, (3, 8, 8, 1)).astype(np.uint8)
    batch = {"x": jnp.asarray(stored), "index": jnp.arange(3), "label": jnp.arange(3)}
    prepare = quadrants.make_prepare(data.make_prepare(17), visible=2)
    assert pickle.loads(pickle.dumps(prepare)) == prepare
    prepared = jax.jit(prepare)(batch, key=jax.random.key(0))
    assert prepared.keys() == {"x", "condition", "index", "label"}
    np.testing.assert_allclose(prepared["x"], stored[:, :, 4:].reshape(3, 32) / 16, rtol=1e-6)
    np.testing.assert_allclose(prepared["condition"], stored[:, :, :4].reshape(3, 32) / 16, rtol=1e-6)


def test_a_set_of_quadrants_knows_the_shape_of_what_is_hidden():
    digits = data.load("digits", "test")
    hidden = digits.with_prepare(quadrants.make_prepare(digits.prepare, visible=1))
    assert (digits.shape, hidden.shape) == ((8, 8, 1), (48,))
    assert hidden.x is digits.x


def test_wrong_quadrants_and_shapes_are_refused():
    for visible in (0, 4):
        with pytest.raises(ValueError, match=f"visible must be 1, 2 or 3 quadrants, got {visible}"):
            quadrants.split(jnp.zeros((2, 4, 4, 1)), visible)
    with pytest.raises(ValueError, match=r"x must be images \(H, W, C\), got \(4, 4\)"):
        quadrants.split(jnp.zeros((2, 4, 4)), 1)


def test_completions_stand_in_groups_under_their_names(tmp_path):
    cells = flat(2, 6)
    others = {"mean": cells[:, 4], "truth": cells[:, 5]}
    path = figures.completions(tmp_path / "new" / "rows.png", cells[:, 0], cells[:, 1:4], others, title="quadrants")
    picture = read(path)
    places = boxes(picture, cells)
    gaps = places[:, 1:, 1] - places[:, :-1, 3]
    assert (gaps[:, [0, 3, 4]] > gaps[:, 1:3].max()).all()  # visible | three samples | mean | truth
    assert (np.diff(places[..., 0], axis=0) == 100).all()
    above = picture[places[0, 0, 0] - 24 : places[0, 0, 0] - 4]
    named = [(above[:, places[0, column, 1] : places[0, column, 3]] < 128).any() for column in range(6)]
    assert named == [True, False, True, False, True, True]


def test_samples_may_stand_in_groups_too(tmp_path):
    cells = flat(2, 6)
    groups = {"one": cells[:, 1:3], "other": cells[:, 3:5]}
    picture = read(figures.completions(tmp_path / "rows.png", cells[:, 0], groups, {"truth": cells[:, 5]}))
    places = boxes(picture, cells)
    gaps = places[0, 1:, 1] - places[0, :-1, 3]
    assert gaps[[0, 2, 4]].min() > gaps[[1, 3]].max()  # visible | two of one | two of the other | truth
    with pytest.raises(ValueError, match=r"other must be \(2, 8, 8, 3\), as the samples are, got \(1, 8, 8, 3\)"):
        figures.completions(tmp_path / "bad.png", cells[:, 0], groups | {"other": cells[:1, 3:5]}, {})


def test_completions_name_what_does_not_fit(tmp_path):
    path, images = tmp_path / "bad.png", np.full((2, 8, 8, 1), 0.5, np.float32)
    samples = np.stack([images, images, images], axis=1)
    with pytest.raises(ValueError, match=r"samples must be \[N, S, H, W, C\] with C = 1 or 3, got \(2, 8, 8, 1\)"):
        figures.completions(path, images, images, {})
    with pytest.raises(ValueError, match=r"truth must be \(2, 8, 8, 1\), as the samples are, got \(1, 8, 8, 1\)"):
        figures.completions(path, images, samples, {"truth": images[:1]})
    with pytest.raises(ValueError, match=r"visible must lie in \[0, 1\]: image 0 has -1"):
        figures.completions(path, -2 * images, samples, {"truth": images})
    assert not list(tmp_path.iterdir())
