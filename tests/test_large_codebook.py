"""Codebooks of thousands: seeds drawn several at a time, and the nearest code found in blocks."""

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from jaxvae import codebook
from jaxvae.codebook import _nearest, _seeding
from jaxvae.codebook._averages import FEW


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_codes_of_one_round_are_drawn_without_replacement_by_their_distance(monkeypatch):
    """Two at a time, from four points at distances that are known once the first two are."""
    monkeypatch.setattr(_seeding, "ROUNDS", 2)
    points, num = np.array([0.0, 1.0, 3.0, 4.5, 9.0]), 6000

    def four(key):
        return codebook.vectors(codebook.seed_codebook(jnp.float32(points)[:, None], 4, key=key, iterations=0))

    codes = np.asarray(jax.jit(jax.vmap(four))(jax.random.split(jax.random.key(0), num)))[..., 0]
    drawn = np.abs(codes[..., None] - points).argmin(-1)
    assert all(len(set(row)) == 4 for row in drawn)
    counts = np.bincount(5 * drawn[:, 0] + drawn[:, 1], minlength=25).reshape(5, 5)
    expected = num * (1 - np.eye(5)) / 20
    assert stats.chisquare(counts[expected > 0], expected[expected > 0]).pvalue > 1e-3
    after = drawn[(drawn[:, 0] == 0) & (drawn[:, 1] == 1)][:, 2]  # of the rest, 3, 4.5 and 9 from 1
    weights = np.square(points[2:] - 1)
    observed = np.bincount(after, minlength=5)[2:]
    assert stats.chisquare(observed, weights / weights.sum() * len(after)).pvalue > 1e-3


def test_many_seeds_are_rows_and_as_good_as_those_drawn_one_by_one(monkeypatch):
    points = normal(0, 4000, 8)

    def distortion():
        codes = np.asarray(codebook.vectors(codebook.seed_codebook(points, 600, key=jax.random.key(1), iterations=0)))
        distance = np.square(points[:, None] - codes[None]).sum(-1)
        assert len(np.unique(codes, axis=0)) == 600
        assert np.abs(distance.min(axis=0)).max() < 1e-10
        return distance.min(axis=1).mean()

    several = distortion()
    monkeypatch.setattr(_seeding, "ROUNDS", 10**6)
    one_by_one = distortion()
    assert several < 1.03 * one_by_one


def test_many_seeds_spread_as_well_far_from_the_origin(monkeypatch):
    """Points on a lattice, so that moving them rounds none: their norms drown the distances by far."""
    monkeypatch.setattr(_seeding, "ROUNDS", 8)
    points = np.round(64 * normal(0, 600, 4)) / 64

    def distortion(offset):
        codes = codebook.vectors(codebook.seed_codebook(points + offset, 64, key=jax.random.key(1), iterations=0))
        return np.square(points[:, None] - (np.asarray(codes) - offset)[None]).sum(-1).min(axis=1).mean()

    assert distortion(np.float32(2**14)) < 1.05 * distortion(np.float32(0))


def test_fewer_points_than_codes_of_a_round_stay_finite(monkeypatch):
    monkeypatch.setattr(_seeding, "ROUNDS", 2)
    points = normal(0, 3, 2)
    codes = np.asarray(codebook.vectors(codebook.seed_codebook(points, 16, key=jax.random.key(0))))
    assert {tuple(row) for row in np.round(codes, 5)} == {tuple(row) for row in np.round(points, 5)}


def test_the_nearest_code_is_the_same_in_blocks(monkeypatch):
    """Also where the vectors do not divide into blocks, and where a block is a single one."""
    codes, encoded = normal(0, 50, 7), normal(1, 3, 41, 7)
    cost = np.abs(normal(2, 50))
    expected = [codebook.nearest(codes, encoded, each) for each in (None, jnp.asarray(cost))]
    squares = np.square(encoded[..., None, :] - codes.astype(np.float64)).sum(axis=-1)
    np.testing.assert_array_equal(expected[0], squares.argmin(axis=-1))
    for block in (50 * 10, 10):
        monkeypatch.setattr(_nearest, "BLOCK", block)
        for each, whole in zip((None, jnp.asarray(cost)), expected, strict=True):
            np.testing.assert_array_equal(codebook.nearest(codes, encoded, each), whole)


def test_statistics_of_many_codes_are_scattered_whatever_the_platform():
    num_codes = FEW // 1000 + 1
    lowered = jax.jit(lambda z, i: codebook.batch_means(z, i, num_codes)).trace(
        jnp.zeros((1000, 2)), jnp.zeros(1000, int)
    )
    assert "dot_general" not in str(lowered.jaxpr)
