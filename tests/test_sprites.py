"""Sprites: the index, the geometry of every factor, and the pixels against a float64 drawing of finer points."""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvae.data import sprites

SQUARE, ELLIPSE, HEART = range(3)
AREAS = {SQUARE: 400, ELLIPSE: 98 * np.pi, HEART: 366.197}  # in pixels at scale 1; (a²+b²-1)³ = a²b³ holds 3.66197
SCALES = np.array([0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
WINDOW, FINE = 40, 16  # pixels across the reference drawing, wider than any sprite; its points across a pixel

draw = jax.jit(sprites.render)


def random_factors(count, seed=0):
    rng = np.random.default_rng(seed)
    return np.stack([rng.integers(0, size, count) for size in sprites.FACTORS.values()], axis=1)


@cache
def every_sprite(x, y):
    """All shapes, scales and orientations at one place: [3, 6, 40, 64, 64]."""
    grid = itertools.product(range(3), range(6), range(40), [x], [y])
    return np.asarray(draw(np.array(list(grid)))).reshape(3, 6, 40, 64, 64)


@pytest.fixture(scope="module")
def centred():
    """The middle of every sprite's image, [3, 6, 40, 28, 28]."""
    x, y = 7, 13
    return every_sprite(x, y)[..., 3 + y : 31 + y, 3 + x : 31 + x]


def test_the_index_counts_through_the_factors():
    index = np.arange(737_280)
    shape, scale, orientation, x, y = factors = sprites.factors_at(index).T
    assert len(index) == sprites.NUM_IMAGES
    assert factors.dtype == np.int32
    np.testing.assert_array_equal((((shape * 6 + scale) * 40 + orientation) * 32 + x) * 32 + y, index)
    assert (factors.min(axis=1) == 0).all()
    assert factors.max(axis=1).tolist() == [2, 5, 39, 31, 31]
    np.testing.assert_array_equal(sprites.factors_at(index.reshape(720, 1024)[3]), factors.T[3072:4096])


def test_images_are_zeros_and_ones():
    images = draw(random_factors(50))
    assert images.shape == (50, 64, 64, 1)
    assert images.dtype == jnp.float32
    assert set(np.unique(images)) == {0, 1}


@pytest.mark.slow
def test_jit_vmap_and_the_type_of_the_factors_change_nothing():
    factors = random_factors(20)
    expected = draw(factors.astype(np.int32))
    np.testing.assert_array_equal(sprites.render(jnp.asarray(factors, jnp.int32)), expected)
    for narrow in (np.int8, np.uint8):
        np.testing.assert_array_equal(draw(factors.astype(narrow)), expected)
    np.testing.assert_array_equal(jax.vmap(sprites.render)(factors.reshape(4, 5, 5)).reshape(expected.shape), expected)
    np.testing.assert_array_equal(draw(factors[7:8])[0], expected[7])


def test_prepare_renders_in_place(key):
    factors = random_factors(6).astype(np.uint8)
    batch = {"x": jnp.asarray(factors), "index": jnp.arange(3, 9), "weight": jnp.ones(6)}
    prepared = jax.jit(sprites.prepare)(batch, key=key)
    np.testing.assert_array_equal(prepared["x"], draw(factors))
    np.testing.assert_array_equal(prepared["index"], np.arange(3, 9))
    assert set(prepared) == set(batch)


def test_factors_that_are_not_integers_are_refused():
    with pytest.raises(TypeError, match=r"factors must be integers \[B, 5\], got float32"):
        sprites.render(jnp.zeros((2, 5)))


def test_a_step_of_x_or_y_moves_the_sprite_one_pixel_right_or_down():
    before = random_factors(100)
    before[:, 3:] = before[:, 3:].clip(max=30)
    images = np.asarray(draw(before))
    for factor, axis in ((3, 2), (4, 1)):
        after = before.copy()
        after[:, factor] += 1
        np.testing.assert_array_equal(draw(after), np.roll(images, 1, axis=axis))


def test_all_of_a_sprite_is_inside_the_image_wherever_it_is():
    """And no two of different shape, scale or place are the same."""
    place = np.array(list(itertools.product((0, 1, 10, 21, 30, 31), repeat=2)))
    seen = set()
    for shape, scale in itertools.product(range(3), range(6)):
        orientation = 7 * scale + shape
        factors = np.concatenate([np.tile([shape, scale, orientation], (len(place), 1)), place], axis=1)
        images = np.asarray(draw(factors), bool)
        areas = images.sum(axis=(1, 2, 3))
        assert areas.min() == areas.max() > 70
        assert not images[:, [0, -1]].any()
        assert not images[:, :, [0, -1]].any()
        seen |= {image.tobytes() for image in np.packbits(images.reshape(len(place), -1), axis=1)}
    assert len(seen) == 18 * len(place)


def test_shapes_and_scales_differ_in_every_orientation(centred):
    kinds = {}
    for shape, scale, orientation in np.ndindex(3, 6, 40):
        kinds.setdefault(centred[shape, scale, orientation].tobytes(), set()).add((shape, scale))
    assert all(len(kind) == 1 for kind in kinds.values())
    assert len(kinds) >= 6 * (10 + 20 + 40) - 6  # and so do the orientations that symmetry does not make equal


def test_symmetry_repeats_the_orientations(centred):
    def differing(a, b):
        return (a != b).sum(axis=(-2, -1)).max()

    assert differing(centred[SQUARE], np.roll(centred[SQUARE], 10, axis=1)) <= 2
    assert differing(centred[ELLIPSE], np.roll(centred[ELLIPSE], 20, axis=1)) <= 2
    assert differing(centred[ELLIPSE], np.roll(centred[ELLIPSE], 10, axis=1)) > 50
    assert differing(centred[HEART], np.roll(centred[HEART], 20, axis=1)) > 20
    for shape in range(3):
        turned = np.rot90(centred[shape], axes=(-2, -1))  # anticlockwise
        assert differing(turned, np.roll(centred[shape], -10, axis=1)) <= 2


def test_the_heart_stands_upright_at_orientation_zero(centred):
    heart = centred[HEART, 5, 0]
    np.testing.assert_array_equal(heart, heart[:, ::-1])
    widths = heart.sum(axis=1)
    assert widths[:14].sum() > widths[14:].sum()  # the lobes above, the tip below
    rows = np.flatnonzero(widths)
    assert widths[rows[-1]] < 0.5 * widths.max()


def test_areas_are_those_of_the_shapes(centred):
    """Over the orientations; a single small sprite is off by several pixels of its 80."""
    areas = centred.sum(axis=(-2, -1)).mean(axis=-1)
    for shape, area in AREAS.items():
        np.testing.assert_allclose(areas[shape], area * SCALES**2, rtol=0.03)
        np.testing.assert_allclose(areas[shape] / areas[shape, 5], SCALES**2, rtol=0.02)


def reference(shape, scale, orientation):
    """How much of each pixel of a window around the centre is covered, from 16x16 points of float64."""
    points = (np.arange(WINDOW * FINE) + 0.5) / FINE - WINDOW / 2
    turned = (points[None, :] - 1j * points[:, None]) * np.exp(-2j * np.pi * orientation / 40) / SCALES[scale]
    u, v = turned.real, turned.imag
    if shape == SQUARE:
        inside = np.maximum(abs(u), abs(v)) < 10
    elif shape == ELLIPSE:
        inside = np.hypot(u / 14, v / 7) < 1
    else:
        a, b = u / 10, v / 10 + 0.1
        inside = (a**2 + b**2 - 1) ** 3 < a**2 * b**3
    return inside.reshape(WINDOW, FINE, WINDOW, FINE).mean(axis=(1, 3))


@pytest.mark.parametrize("shape", range(3), ids=sprites.SHAPES)
def test_pixels_are_those_of_a_finer_drawing(shape):
    """At opposite corners of the image, where the reference's window ends outside it: nothing is cut off."""
    low, high = every_sprite(0, 0)[shape], every_sprite(31, 31)[shape]
    margin = WINDOW // 2 - 17  # the centre at x = y = 0 is at 17, at 31 it is at 48
    low = np.pad(low, ((0, 0), (0, 0), (margin, 0), (margin, 0)))[..., :WINDOW, :WINDOW]
    high = np.pad(high, ((0, 0), (0, 0), (0, 4), (0, 4)))[..., -WINDOW:, -WINDOW:]
    np.testing.assert_array_equal(low, high)

    orientations = range(0, 40, 9)  # one of each direction, and some between
    drawn = low[:, orientations]
    covered = np.array([[reference(shape, scale, k) for k in orientations] for scale in range(6)])
    assert (drawn[covered < 0.35] == 0).all()
    assert (drawn[covered > 0.52] == 1).all()
    assert abs(drawn.sum() / covered.sum() - 1) < 0.02
    assert (drawn != (covered >= 0.5)).sum() < 0.03 * covered.sum()
