"""Moving sprites: constant velocity, bounces at the border, and every frame as the still sprite there."""

import jax
import numpy as np
import pytest

from jaxvae import data
from jaxvae.data import moving_sprites as moving
from jaxvae.data import sprites

draw = jax.jit(moving.render, static_argnames=("frames", "size"))


def walk(start, velocity, frames):
    """Step by step: a step beyond 0 or 31 is reflected and turns the velocity round."""
    places, at = [], start
    for _ in range(frames):
        places.append(at)
        at += velocity
        if at < 0 or at > 31:
            at, velocity = (-at if at < 0 else 62 - at), -velocity
    return places


def test_sprites_move_by_their_velocity_and_bounce():
    frames, rng = 60, np.random.default_rng(0)
    factors = np.stack([rng.integers(0, size, 40) for size in moving.FACTORS.values()], axis=1)
    factors[:4, 3:] = [[0, 31, 0, 5], [31, 0, 5, 0], [30, 1, 5, 1], [1, 15, 0, 3]]  # at the border from the start
    places = np.asarray(moving.positions(factors, frames))
    for row, place in zip(factors, places, strict=True):
        for axis in (0, 1):
            assert place[:, axis].tolist() == walk(row[3 + axis], moving.VELOCITIES[row[5 + axis]], frames)
    assert (places.min(), places.max()) == (0, 31)
    inside = np.abs(np.diff(places[..., 0], axis=1))[:, :1].ravel()
    assert set(inside) <= {1, 2, 3}


def test_every_frame_is_the_still_sprite_at_its_place():
    factors = moving.make(5, seed=2).factors
    videos = np.asarray(draw(factors, frames=7, size=64))
    assert videos.shape == (5, 7, 64, 64, 1)
    places = np.asarray(moving.positions(factors, 7))
    still = np.concatenate([np.repeat(factors[:, None, :3], 7, axis=1), places], axis=-1).reshape(-1, 5)
    np.testing.assert_array_equal(videos.reshape(-1, 64, 64, 1), jax.jit(sprites.render)(still))
    # The middle of a sprite moves to the right and down by as many pixels as its place.
    mass = videos[..., 0].sum(axis=(2, 3))
    middle = (videos[..., 0].sum(axis=2) * np.arange(64)).sum(axis=2) / mass
    np.testing.assert_allclose(middle - middle[:, :1], places[..., 0] - places[:, :1, 0], atol=1e-3)


def test_smaller_frames_are_means_of_the_large():
    factors = moving.make(3).factors
    large, small = draw(factors, frames=2, size=64), draw(factors, frames=2, size=32)
    expected = np.asarray(large).reshape(3, 2, 32, 2, 32, 2).mean(axis=(3, 5))[..., None]
    np.testing.assert_array_equal(small, expected)
    assert set(np.unique(small)) == {0, 0.25, 0.5, 0.75, 1}


def test_a_set_is_balanced_and_depends_on_the_seed_and_the_number_alone():
    made, few = moving.make(60, seed=4, frames=3), moving.make(5, seed=4)
    assert (made.shape, made.domain, made.label_names) == ((3, 32, 32, 1), data.Domain("levels", 5), sprites.SHAPES)
    assert np.bincount(made.label).tolist() == [20] * 3
    assert made.factor_names == ("shape", "scale", "orientation", "x", "y", "velocity_x", "velocity_y")
    np.testing.assert_array_equal(few.factors, made.factors[:5])
    assert (made.factors < list(moving.FACTORS.values())).all()
    assert not np.array_equal(few.factors, moving.make(5, seed=5).factors)
    prepared = made.prepared(5, key=jax.random.key(0))["x"]
    np.testing.assert_array_equal(prepared, draw(made.factors[:5], frames=3, size=32))
    assert made.prepare == moving.make(1, frames=3).prepare  # one program for both splits
    test = data.load("moving_sprites", "test")
    assert (len(test), test.shape, test.name) == (300, (16, 32, 32, 1), "moving_sprites")


def test_what_cannot_be_made_is_refused_by_name():
    with pytest.raises(ValueError, match="size must be one of 64, 32, 16, got 48"):
        moving.make(1, size=48)
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        moving.make(1, frames=0)
    with pytest.raises(ValueError, match="'moving_sprites' has no split 'dev'; it has train, test"):
        data.load("moving_sprites", "dev")
    with pytest.raises(TypeError, match="factors"):
        moving.positions(np.zeros((1, 7), np.float32), 3)
