"""The codebook against arithmetic by hand, float64 NumPy and the authors' count form."""

import itertools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxvae import codebook, losses
from jaxvae.codebook import CodebookState
from jaxvae.quantizers import EMACodebook, Grouped

K, D, N = 16, 5, 240

# Compiled, as in a training step; operation by operation they take longer to test.
init_codebook = jax.jit(codebook.init_codebook, static_argnames=("num_codes", "dim"))
seed_codebook = jax.jit(codebook.seed_codebook, static_argnames=("num_codes", "iterations"))
vectors = jax.jit(codebook.vectors)
nearest = jax.jit(codebook.nearest)
straight_through = jax.jit(codebook.straight_through)
ema_update = jax.jit(codebook.ema_update)
restart_dead_codes = jax.jit(codebook.restart_dead_codes, static_argnames="threshold")
dead_codes = jax.jit(codebook.dead_codes, static_argnames="threshold")
usage = jax.jit(codebook.usage, static_argnames="num_codes")
perplexity = jax.jit(codebook.perplexity)
batch_means, segment_means, one_hot_means = (
    jax.jit(form, static_argnames="num_codes")
    for form in (codebook.batch_means, codebook.segment_means, codebook.one_hot_means)
)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def state_of(codes, frequency=None):
    codes = np.asarray(codes, np.float32)
    frequency = np.full(len(codes), 1 / len(codes)) if frequency is None else np.asarray(frequency)
    return CodebookState(jnp.asarray(frequency, jnp.float32), jnp.asarray(codes * frequency[:, None], jnp.float32))


def warm():
    """A state with uneven frequencies, and a batch."""
    frequency = np.random.default_rng(0).dirichlet(np.full(K, 5.0))
    return state_of(normal(1, K, D), frequency), jnp.asarray(normal(2, N, D))


def nearest_reference(codes, encoded):
    """The first of the smallest distances, in float64."""
    codes, encoded = np.asarray(codes, np.float64), np.asarray(encoded, np.float64)
    return np.square(encoded[:, None] - codes[None]).sum(-1).argmin(1)


# Starting, and reading the vectors


def test_a_random_codebook_is_consistent_and_of_unit_norm(key):
    state = init_codebook(512, 64, key=key)
    assert [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in state] == [
        ((512,), jnp.float32, False),
        ((512, 64), jnp.float32, False),
    ]
    np.testing.assert_array_equal(state.frequency, np.full(512, 1 / 512))
    np.testing.assert_allclose(vectors(state), 512 * np.asarray(state.moment), rtol=1e-6)
    # A mean of 512 chi-squared variables over their 64 degrees of freedom: standard error sqrt(2 / 64 / 512) = .008.
    np.testing.assert_allclose(np.square(vectors(state)).sum(1).mean(), 1, atol=0.04)
    assert len(np.unique(np.asarray(state.moment))) > 32700


def test_seeding_finds_every_cluster_where_random_rows_miss_some():
    centres = 10 * normal(0, K, 8)
    points = np.concatenate([centres + 0.01 * normal(seed, K, 8) for seed in range(1, 31)])
    missed_by_random = 0
    for seed in range(5):
        key = jax.random.key(seed)
        state = seed_codebook(points, K, key=key)
        np.testing.assert_array_equal(state.frequency, np.full(K, 1 / K, np.float32))
        to_the_nearest = np.linalg.norm(centres[:, None] - np.asarray(vectors(state))[None], axis=-1).min(1)
        assert to_the_nearest.max() < 0.02
        rows = np.random.default_rng(seed).choice(points, K, replace=False)
        missed_by_random += (np.linalg.norm(centres[:, None] - rows[None], axis=-1).min(1) > 1).sum()
    assert missed_by_random > 10


def test_seeding_without_clusters_is_better_than_random_rows():
    points = np.exp(normal(0, 1000, 3))

    def distortion(codes):
        return np.square(points[:, None] - np.asarray(codes)[None]).sum(-1).min(1).mean()

    def of_seeds(codes_of):
        return np.mean([distortion(codes_of(seed)) for seed in range(5)])

    seeded = of_seeds(lambda seed: vectors(seed_codebook(points, K, key=jax.random.key(seed), iterations=0)))
    settled = of_seeds(lambda seed: vectors(seed_codebook(points, K, key=jax.random.key(seed), iterations=10)))
    random = of_seeds(lambda seed: np.random.default_rng(seed).choice(points, K, replace=False))
    assert settled < 0.8 * seeded
    assert seeded < 0.8 * random


def test_seeding_draws_rows_and_lloyd_moves_them_to_the_means(key):
    points = normal(0, 50, 2)
    rows = vectors(seed_codebook(points, 4, key=key, iterations=0))
    np.testing.assert_allclose(rows, points[nearest_reference(points, rows)], rtol=1e-6)
    of_points = nearest_reference(rows, points)
    means = [points[of_points == k].mean(0) for k in range(4)]
    once = vectors(seed_codebook(points, 4, key=key, iterations=1))
    np.testing.assert_allclose(once, means, rtol=1e-5)


def test_each_code_is_drawn_independently_of_the_others():
    """With one noise for all draws, a point that was nearly drawn first would be likelier to be drawn next."""
    points, num = np.array([0.0, 1.0, 3.0, 4.0]), 6000

    def three(key):
        return codebook.vectors(codebook.seed_codebook(jnp.float32(points)[:, None], 3, key=key, iterations=0))

    codes = np.asarray(jax.jit(jax.vmap(three))(jax.random.split(jax.random.key(0), num)))[..., 0]
    drawn = [tuple(row) for row in np.abs(codes[..., None] - points).argmin(-1)]
    expected = {}
    for first, second, third in itertools.permutations(range(4), 3):
        to_first = np.square(points - points[first])
        to_both = np.minimum(to_first, np.square(points - points[second]))
        probability = to_first[second] / to_first.sum() * to_both[third] / to_both.sum() / 4
        expected[first, second, third] = num * probability
    assert stats.chisquare([drawn.count(order) for order in expected], list(expected.values())).pvalue > 1e-3


def test_seeding_from_fewer_points_than_codes_stays_finite(key):
    points = jnp.repeat(jnp.asarray(1000 + normal(0, 3, D)), 7, axis=0)
    codes = np.asarray(vectors(seed_codebook(points, K, key=key)))
    np.testing.assert_allclose(codes, np.asarray(points)[nearest_reference(points, codes)], rtol=1e-6)
    assert set(nearest_reference(points[::7], codes)) == {0, 1, 2}
    assert len(np.unique(nearest(codes, points))) == 3


# The nearest code


@pytest.mark.parametrize(("num_codes", "dim", "num"), [(512, 64, 500), (3, 1, 100), (50, 17, 300)])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_nearest_agrees_with_float64_also_far_from_the_origin(num_codes, dim, num, offset):
    codes, encoded = offset + normal(0, num_codes, dim), offset + normal(1, num, dim)
    indices = nearest(codes, encoded)
    assert indices.dtype == jnp.int32
    np.testing.assert_array_equal(indices, nearest_reference(codes, encoded))


def test_a_cost_is_added_to_the_squared_distance():
    codes, encoded = normal(0, 50, 17), normal(1, 300, 17)
    frequency = np.random.default_rng(2).dirichlet(np.full(50, 0.3))
    cost = codebook.code_costs(state_of(codes, frequency), weight=4.0)
    np.testing.assert_allclose(cost, -4 * np.log(np.maximum(frequency, 0.5 / 50)), rtol=1e-5)
    squares = np.square(encoded[:, None] - codes[None]).sum(-1)
    expected = (squares - 4 * np.log(np.maximum(frequency, 0.5 / 50))).argmin(1)
    np.testing.assert_array_equal(nearest(codes, encoded, cost), expected)
    assert (expected != squares.argmin(1)).sum() > 30
    np.testing.assert_array_equal(nearest(codes, encoded, jnp.full(50, 7.0)), squares.argmin(1))
    equal = np.tile(codes[:1], (50, 1))
    np.testing.assert_array_equal(nearest(equal, encoded, cost), np.full(300, np.argmin(cost)))


def test_nearest_takes_any_shape_and_widens_narrow_types():
    codes, encoded = normal(0, K, D), normal(1, 2, 3, 4, D)
    indices = nearest(codes, encoded)
    np.testing.assert_array_equal(indices, nearest_reference(codes, encoded.reshape(-1, D)).reshape(2, 3, 4))
    assert nearest(codes, encoded[0, 0, 0]).shape == ()
    narrow = jnp.asarray(encoded, jnp.bfloat16)
    expected = nearest_reference(codes, narrow.astype(jnp.float32).reshape(-1, D)).reshape(2, 3, 4)
    np.testing.assert_array_equal(nearest(codes, narrow), expected)


@pytest.mark.parametrize(("num_codes", "dim"), [(8, 3), (512, 64), (77, 13)])
def test_ties_go_to_the_lowest_index(num_codes, dim):
    distinct = normal(0, num_codes, dim)
    codes = np.concatenate([distinct, distinct[::-1], distinct])
    encoded = normal(1, 400, dim)
    np.testing.assert_array_equal(nearest(codes, encoded), nearest_reference(distinct, encoded))
    corners = jnp.float32([[1, 0], [-1, 0], [0, 1], [0, -1]])
    np.testing.assert_array_equal(nearest(corners, jnp.float32([[0, 0], [-1, 1], [1, -1]])), [0, 1, 0])


@pytest.mark.parametrize("dim", [2, 3, 8])
@pytest.mark.parametrize(("offset", "scale"), [(0.0, 1.0), (100.0, 1.0), (3.5, 37 / 64)])
@pytest.mark.parametrize("outlier", [None, 1e5])
def test_exact_ties_of_distinct_codes_go_to_the_lowest(dim, offset, scale, outlier):
    rng = np.random.default_rng(dim)
    codes = rng.permutation(np.unique(rng.integers(-4, 5, (200, dim)), axis=0)).astype(float)
    encoded = rng.integers(-8, 9, (3000, dim)) / 2
    if outlier:
        codes = np.insert(codes, 7, outlier, axis=0)
    codes, encoded = scale * (codes + offset), scale * (encoded + offset)
    expected = nearest_reference(codes, encoded)
    squares = np.square(encoded[:, None] - codes[None]).sum(-1)
    assert ((squares == squares.min(1, keepdims=True)).sum(1) > 1).sum() > 30
    np.testing.assert_array_equal(nearest(jnp.float32(codes), jnp.float32(encoded)), expected)


@pytest.mark.parametrize("far", [1e5, -1e8])
@pytest.mark.parametrize("num_far", [1, 50, 200])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
def test_codes_far_away_do_not_blur_the_others(far, num_far, offset):
    codes, encoded = normal(0, 512, 64), normal(1, 300, 64)
    for moved in (np.full((num_far, 64), far), far * normal(2, num_far, 64)):
        codes[100 : 100 + num_far] = moved
        expected = nearest_reference(codes + np.float32(offset), encoded + np.float32(offset))
        np.testing.assert_array_equal(nearest(codes + np.float32(offset), encoded + np.float32(offset)), expected)


@pytest.mark.parametrize("centre", [1.5, 1000.3])
@pytest.mark.parametrize("num_equal", [0, 40, 64])
def test_codes_close_together_keep_their_differences(centre, num_equal):
    """However many of them are equal: all of them have no spread that the centre could be rounded to."""
    spread = 1e-6 * centre
    codes, encoded = centre + spread * normal(0, 64, 8), centre + spread * normal(1, 300, 8)
    codes[:num_equal] = codes[0]
    codes, encoded = np.float32(codes), np.float32(encoded)
    np.testing.assert_array_equal(nearest(codes, encoded), nearest_reference(codes, encoded))


def test_codes_opposite_each_other_tie_at_the_middle():
    codes = normal(0, 30, 16)
    codes = np.concatenate([codes, -codes])[np.random.default_rng(1).permutation(60)]
    for scale in (1e-3, 1.0, 1e3):
        for k in range(0, 60, 7):
            pair = scale * np.roll(codes, k, axis=0)
            expected = nearest_reference(pair, np.zeros((1, 16)))
            np.testing.assert_array_equal(nearest(pair, np.zeros((1, 16), np.float32)), expected)


# Moving averages


def test_three_updates_by_hand():
    """Decay 3/4. The third code starts rarer than 1e-3 / 3, and unused; the second is unused in the second batch."""
    state = CodebookState(
        jnp.float32([1 / 2, 1 / 4, 2**-12]), jnp.float32([[1 / 2, 0], [1 / 4, 1 / 4], [2**-12, 2**-11]])
    )
    batches = [
        # n = (3/4, 1/4, 0); sums over 4 positions (1, 1), (1, 1), -
        ([[2, 0], [4, 4], [2, 4], [0, 0]], [0, 1, 0, 0]),
        # n = (1, 0, 0); sums over 2 positions (2, 1), -, -
        ([[1, 3], [3, -1]], [0, 0]),
        # n = (1/4, 1/4, 1/2); sums over 4 positions (-1, 0), (0, 1), (3, 1)
        ([[8, 0], [0, 4], [4, 4], [-4, 0]], [2, 1, 2, 0]),
    ]
    expected = [
        (  # 3/4 · 1/2 + 1/4 · 3/4;  3/4 · 1/4 + 1/4 · 1/4;  frozen
            [9 / 16, 1 / 4, 2**-12],
            [[3 / 8 + 1 / 4, 1 / 4], [3 / 16 + 1 / 4, 3 / 16 + 1 / 4], [2**-12, 2**-11]],
        ),
        (  # 3/4 · 9/16 + 1/4;  3/4 · 1/4, its vector still (7/4, 7/4);  frozen
            [43 / 64, 3 / 16, 2**-12],
            [[15 / 32 + 1 / 2, 3 / 16 + 1 / 4], [21 / 64, 21 / 64], [2**-12, 2**-11]],
        ),
        (  # 3/4 · 43/64 + 1/4 · 1/4;  3/4 · 3/16 + 1/4 · 1/4;  3/4 · 2^-12 + 1/4 · 1/2
            [145 / 256, 13 / 64, 3 * 2**-14 + 1 / 8],
            [
                [93 / 128 - 1 / 4, 21 / 64],
                [63 / 256, 63 / 256 + 1 / 4],
                [3 * 2**-14 + 3 / 4, 3 * 2**-13 + 1 / 4],
            ],
        ),
    ]
    for (encoded, indices), (frequency, moment) in zip(batches, expected, strict=True):
        state = ema_update(state, jnp.float32(encoded), jnp.int32(indices), decay=0.75)
        np.testing.assert_array_equal(state.frequency, frequency)
        np.testing.assert_array_equal(state.moment, moment)
    np.testing.assert_allclose(vectors(state)[:2], [[122 / 145, 84 / 145], [63 / 52, 127 / 52]], rtol=1e-6)


def test_one_update_is_that_of_the_count_form_with_laplace_smoothing():
    """The authors keep counts per batch, and smooth them where they divide: here nothing smoothed is kept."""
    state, encoded = warm()
    decay, epsilon = 0.99, 1e-5
    indices = np.asarray(nearest(vectors(state), encoded))
    new = ema_update(state, encoded, indices, decay=decay)

    one_hot = np.eye(K)[indices]
    counts = decay * N * np.asarray(state.frequency, np.float64) + (1 - decay) * one_hot.sum(0)
    sums = decay * N * np.asarray(state.moment, np.float64) + (1 - decay) * one_hot.T @ np.asarray(encoded, np.float64)
    smoothed = (counts + epsilon) / (counts.sum() + K * epsilon) * counts.sum()
    np.testing.assert_allclose(vectors(new), sums / smoothed[:, None], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(N * new.frequency, counts, rtol=1e-6)  # raw: the smoothing would show as 1e-5 / count
    np.testing.assert_allclose(N * new.moment, sums, rtol=1e-5, atol=1e-6)


def test_a_batch_twice_over_changes_nothing():
    state, encoded = warm()
    encoded = jnp.round(64 * encoded) / 64  # so that the sums are exact and the comparison is too
    indices = nearest(vectors(state), encoded)
    once = ema_update(state, encoded, indices, decay=0.9)
    twice = ema_update(state, jnp.stack([encoded] * 2), jnp.stack([indices] * 2), decay=0.9)
    chex.assert_trees_all_close(once, twice, rtol=2e-7)
    np.testing.assert_allclose(usage(jnp.stack([indices] * 2), K), usage(indices, K), rtol=2e-7)


def test_statistics_are_float32_and_exact_from_bfloat16():
    """In bfloat16 a sum of ones would stop at 256."""
    indices = jnp.int32([0] * 700 + [1] * 324)
    encoded = jnp.concatenate([jnp.full((700, 1), 1 + 2**-7), jnp.full((324, 1), -3.0)]).astype(jnp.bfloat16)
    state = init_codebook(2, 1, key=jax.random.key(0))
    zero = CodebookState(jnp.zeros(2), jnp.zeros((2, 1)))
    for form in (batch_means, segment_means, one_hot_means):
        means = form(encoded.astype(jnp.float32), indices, 2)
        np.testing.assert_array_equal(means.frequency, [700 / 1024, 324 / 1024])
        np.testing.assert_array_equal(means.moment, [[700 * (1 + 2**-7) / 1024], [-3 * 324 / 1024]])
    new = ema_update(zero, encoded, indices, decay=0.5)
    np.testing.assert_array_equal(new.frequency, [350 / 1024, 162 / 1024])
    np.testing.assert_array_equal(new.moment, [[350 * (1 + 2**-7) / 1024], [-3 * 162 / 1024]])
    for leaf in (*ema_update(state, encoded, indices, decay=0.9), usage(indices, 2)):
        assert leaf.dtype == jnp.float32
    restarted = restart_dead_codes(state._replace(frequency=jnp.zeros(2)), encoded, key=jax.random.key(0))
    assert [leaf.dtype for leaf in restarted] == [jnp.float32] * 2


def test_both_forms_of_the_statistics_agree_with_float64():
    encoded, indices = normal(0, N, D), np.random.default_rng(1).integers(0, K - 1, N)  # the last is unused
    one_hot = np.eye(K)[indices]
    for form in (batch_means, segment_means, one_hot_means):
        means = form(jnp.asarray(encoded), jnp.asarray(indices), K)
        np.testing.assert_allclose(means.frequency, one_hot.mean(0), rtol=1e-6)
        np.testing.assert_allclose(means.moment, one_hot.T @ encoded.astype(np.float64) / N, rtol=1e-5, atol=1e-7)


def test_the_form_of_the_statistics_is_the_platforms():
    traced = batch_means.trace(jnp.zeros((N, D)), jnp.zeros(N, jnp.int32), num_codes=K)
    for platform, scatters in (("cpu", True), ("cuda", False), ("tpu", False)):
        program = traced.lower(lowering_platforms=(platform,)).as_text()
        assert ("stablehlo.scatter" in program) == scatters
        assert ("stablehlo.dot_general" in program) != scatters


@pytest.mark.slow
def test_unused_codes_keep_their_vectors_over_ten_thousand_updates():
    points = 3 + normal(0, 1000, 4)  # away from the origin: shrinking vectors would leave the range of the data
    codes = points[:32]  # only the first eight occur
    start = state_of(codes)

    def update(state, key):
        encoded = jnp.asarray(codes[:8])[jax.random.randint(key, (64,), 0, 8)]
        indices = nearest(vectors(state), encoded)
        return ema_update(state, encoded, indices, decay=0.99), usage(indices, 32)

    state, used = jax.jit(lambda s: jax.lax.scan(update, s, jax.random.split(jax.random.key(0), 10_000)))(start)
    unused = np.asarray(used).sum(0) == 0
    np.testing.assert_array_equal(np.flatnonzero(unused), np.arange(8, 32))
    np.testing.assert_allclose(vectors(state), codes, rtol=1e-5)
    frequency = np.asarray(state.frequency)
    assert (frequency[unused] < 1e-3 / 32).all()
    assert (frequency[unused] >= 0.99e-3 / 32 * (1 - 1e-5)).all()
    np.testing.assert_allclose(frequency.sum(), 1, atol=1e-3)


# Restarts


def with_dead(num_dead=5):
    """A warm state whose last `num_dead` codes are dead, and a batch."""
    share = np.full(K, 1.0)
    share[-num_dead:] = 0.09
    return state_of(normal(1, K, D), share / K), jnp.asarray(normal(2, N, D))


def test_dead_codes_restart_at_distinct_vectors_of_the_batch(key):
    state, encoded = with_dead()
    assert dead_codes(state) == 5
    new = restart_dead_codes(state, encoded.reshape(4, -1, D), key=key)
    chex.assert_trees_all_equal(*(jax.tree.map(lambda leaf: leaf[:-5], s) for s in (state, new)))
    fresh = vectors(new)[-5:]
    rows = nearest_reference(encoded, fresh)
    assert len(set(rows)) == 5
    np.testing.assert_allclose(fresh, encoded[rows], rtol=1e-6)
    np.testing.assert_array_equal(new.frequency[-5:], np.full(5, 1 / K))
    np.testing.assert_array_equal(new.moment[-5:], encoded[rows] / K)
    assert dead_codes(new) == 0

    chex.assert_trees_all_equal(new, restart_dead_codes(state, encoded, key=key))
    other = restart_dead_codes(state, encoded, key=jax.random.key(1))
    assert set(nearest_reference(encoded, vectors(other)[-5:])) != set(rows)


def test_the_next_update_does_not_undo_a_restart(key):
    state, encoded = with_dead()
    restarted = restart_dead_codes(state, encoded, key=key)
    fresh = vectors(restarted)
    unused = ema_update(restarted, encoded, jnp.zeros(N, jnp.int32), decay=0.9)
    np.testing.assert_allclose(vectors(unused)[-5:], fresh[-5:], rtol=1e-6)
    np.testing.assert_allclose(unused.frequency[-5:], np.full(5, 0.9 / K), rtol=1e-6)
    # Used by 1 of N positions: the average of 1/K parts of itself and 1/N of the batch's, as for any other code.
    used = ema_update(restarted, encoded, jnp.zeros(N, jnp.int32).at[7].set(K - 1), decay=0.9)
    weights = np.array([0.9 / K, 0.1 / N])
    expected = (weights[0] * fresh[-1] + weights[1] * encoded[7]) / weights.sum()
    np.testing.assert_allclose(vectors(used)[-1], expected, rtol=1e-5)
    assert dead_codes(used) == 0


def test_the_threshold_is_a_fraction_of_the_uniform_share(key):
    state, encoded = with_dead()
    for threshold, dead in ((0.0, 0), (0.08, 0), (0.1, 5), (0.99, 5)):
        assert dead_codes(state, threshold=threshold) == dead
        new = restart_dead_codes(state, encoded, key=key, threshold=threshold)
        assert (np.asarray(new.frequency) != np.asarray(state.frequency)).sum() == dead


def test_fewer_positions_than_dead_codes(key):
    state, encoded = with_dead(num_dead=12)
    new = restart_dead_codes(state, encoded[:5], key=key)
    changed = np.any(np.asarray(new.moment) != np.asarray(state.moment), axis=1)
    np.testing.assert_array_equal(np.flatnonzero(changed), [4, 5, 6, 7, 8])
    assert set(nearest_reference(encoded[:5], vectors(new)[4:9])) == set(range(5))
    assert dead_codes(new) == 7


def test_restarts_are_the_same_whatever_lies_between_the_positions_that_count(key):
    state, _ = with_dead()
    encoded = jnp.asarray(normal(1, 6, 3, D))
    alone = restart_dead_codes(state, encoded, key=key)
    between = jnp.full((6, 5, D), jnp.nan).at[:, jnp.array([0, 2, 3])].set(encoded)
    among = restart_dead_codes(state, between, key=key, mask=~jnp.isnan(between).any(axis=-1))
    chex.assert_trees_all_equal(among, alone)
    assert (vectors(alone) != vectors(state)).any()


def test_restarts_draw_every_position_alike_and_none_twice():
    state, encoded = with_dead(num_dead=2)
    draw = jax.jit(jax.vmap(lambda key: restart_dead_codes(state, encoded[:6], key=key).moment[-2:]))
    fresh = K * np.asarray(draw(jax.random.split(jax.random.key(0), 3000))).reshape(-1, D)
    rows = nearest_reference(encoded[:6], fresh)
    assert stats.chisquare(np.bincount(rows, minlength=6)).pvalue > 1e-3
    assert (rows[::2] != rows[1::2]).all()  # two codes never take one position


# Gradients


def test_each_loss_reaches_its_own_side():
    state, encoded = warm()
    codes = vectors(state)
    indices = nearest(codes, encoded)

    def gradients(loss):
        return jax.jit(jax.grad(lambda z, e: loss(z, e[indices]).sum(), argnums=(0, 1)))(encoded, codes)

    gap = np.asarray(encoded) - np.asarray(codes)[indices]
    to_encoder, to_codes = gradients(losses.commitment)
    np.testing.assert_allclose(to_encoder, 2 * gap / D, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(to_codes, np.zeros((K, D)))

    to_encoder, to_codes = gradients(losses.codebook_loss)
    np.testing.assert_array_equal(to_encoder, np.zeros((N, D)))
    np.testing.assert_allclose(to_codes, -2 / D * np.eye(K)[indices].T @ gap, rtol=1e-4, atol=1e-5)

    weight = jnp.asarray(normal(3, N, D))
    to_encoder, to_codes = gradients(lambda z, q: weight * straight_through(z, q))
    np.testing.assert_array_equal(to_encoder, weight)
    np.testing.assert_array_equal(to_codes, np.zeros((K, D)))


def test_straight_through_has_the_codes_own_value_in_the_encoders_type():
    encoded, quantized = 1e4 * jnp.asarray(normal(0, 6, D)), jnp.asarray(normal(1, 6, D))
    np.testing.assert_array_equal(straight_through(encoded, quantized), quantized)
    narrow = straight_through(encoded.astype(jnp.bfloat16), quantized)
    np.testing.assert_array_equal(narrow, quantized.astype(jnp.bfloat16))


def test_no_gradient_through_indices_and_statistics(key):
    state, encoded = warm()

    def through_everything(encoded):
        codes = vectors(seed_codebook(encoded, K, key=key))
        indices = nearest(codes, encoded)
        new = ema_update(state, encoded, indices, decay=0.9)
        new = restart_dead_codes(new, encoded, key=key, threshold=0.9)
        return vectors(new).sum() + codes[indices].sum()

    np.testing.assert_array_equal(jax.jit(jax.grad(through_everything))(encoded), np.zeros((N, D)))


# Health


def test_perplexity_and_usage():
    counts = np.random.default_rng(0).integers(0, 50, K)
    counts[3] = 0
    expected = np.exp(stats.entropy(counts))
    assert perplexity(counts).dtype == jnp.float32
    np.testing.assert_allclose(perplexity(counts), expected, rtol=1e-6)
    indices = np.random.default_rng(1).permutation(np.repeat(np.arange(K), counts))
    used = usage(indices.reshape(-1, 1), K)
    np.testing.assert_allclose(used, counts / counts.sum(), rtol=1e-6)
    np.testing.assert_allclose(perplexity(used), expected, rtol=1e-6)
    np.testing.assert_allclose(perplexity(jnp.full(512, 1 / 512)), 512, rtol=1e-5)
    np.testing.assert_allclose(perplexity(jnp.eye(512)[3]), 1, rtol=1e-6)
    assert usage(jnp.zeros(3, jnp.uint8), 2).dtype == jnp.float32


def test_the_perplexity_of_a_softmax_has_a_gradient_where_a_code_is_never_used():
    logits = jnp.array([[0.0, 1.0, -200.0], [1.0, 0.5, -300.0]])
    grad = jax.grad(lambda logits: perplexity(jax.nn.softmax(logits).mean(axis=0)))(logits)
    two = jax.grad(lambda logits: perplexity(jax.nn.softmax(logits).mean(axis=0)))(logits[:, :2])
    np.testing.assert_allclose(grad[:, :2], two, rtol=1e-5)
    np.testing.assert_array_equal(grad[:, 2], 0)


def test_a_code_may_be_used_more_often_than_float32_counts():
    np.testing.assert_allclose(usage(jnp.zeros(2**24 + 2**21, jnp.int32), 2), [1, 0])


# Types of integers


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32"])
@pytest.mark.parametrize("compiled", [True, False], ids=["compiled", "eager"])
def test_indices_of_any_integer_type_mean_the_same(dtype, compiled):
    """256 codes, or 128: a comparison with their number does not fit the narrow type."""
    num_codes = 128 if dtype == "int8" else 256
    state, encoded = state_of(normal(0, num_codes, D)), jnp.asarray(normal(1, N, D))
    wide = np.random.default_rng(0).integers(0, num_codes, N).astype(np.int32)

    def everything(indices):
        counts = jnp.asarray(np.bincount(wide, minlength=num_codes)).astype(indices.dtype)
        forms = (codebook.batch_means, codebook.segment_means, codebook.one_hot_means)
        return (
            codebook.ema_update(state, encoded, indices, decay=0.9),
            codebook.usage(indices, num_codes),
            codebook.perplexity(counts),
            *(form(encoded, indices, num_codes) for form in forms),
        )

    run = jax.jit(everything) if compiled else everything
    chex.assert_trees_all_equal(run(jnp.asarray(wide.astype(dtype))), run(jnp.asarray(wide)))


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int32", "uint32"])
def test_indices_out_of_range_are_left_out_of_the_sums(dtype):
    """-1, or what it is without a sign, and K itself."""
    indices = jnp.asarray(np.array([0, 5, 2, -1, 1, 16, 2, 2]).astype(dtype))
    for form in (codebook.batch_means, codebook.segment_means, codebook.one_hot_means):
        means = jax.jit(form, static_argnums=2)(jnp.ones((8, 2)), indices, K)
        np.testing.assert_array_equal(8 * means.frequency[:6], [1, 1, 3, 0, 0, 1])
        assert 8 * means.frequency.sum() == 8 * means.moment[:, 0].sum() == 6


# Transformations


def whole_step(state, encoded, key):
    codes = vectors(state)
    indices = nearest(codes, encoded)
    quantized = straight_through(encoded, codes[indices])
    state = ema_update(state, encoded, indices, decay=0.5)
    restarted = restart_dead_codes(state, encoded, key=key, threshold=0.6)
    used = usage(indices, K)
    return restarted, indices, quantized, dead_codes(state, threshold=0.6), perplexity(used)


def test_groups_by_vmap():
    groups, keys = 3, jax.random.split(jax.random.key(0), 3)
    encoded = jnp.asarray(normal(0, N, groups, D)) * jnp.float32([1, 5, 0.1])[None, :, None]
    seeds = jax.vmap(lambda z, key: seed_codebook(z, K, key=key), in_axes=(1, 0))(encoded, keys)
    random = jax.vmap(lambda key: init_codebook(K, D, key=key))(keys)
    step = jax.jit(whole_step)
    for states in (seeds, random):
        together = jax.jit(jax.vmap(whole_step, in_axes=(0, 1, 0)))(states, encoded, keys)
        for g in range(groups):
            alone = step(jax.tree.map(lambda leaf, g=g: leaf[g], states), encoded[:, g], keys[g])
            chex.assert_trees_all_close(jax.tree.map(lambda leaf, g=g: leaf[g], together), alone, rtol=1e-5, atol=1e-6)
    for g in range(groups):
        alone = seed_codebook(encoded[:, g], K, key=keys[g])
        chex.assert_trees_all_close(jax.tree.map(lambda leaf, g=g: leaf[g], seeds), alone, rtol=1e-5, atol=1e-6)


def test_one_compilation_however_many_codes_are_dead(key):
    encoded = jnp.asarray(normal(2, N, D))
    step = jax.jit(chex.assert_max_traces(whole_step, n=1))
    state = init_codebook(K, D, key=key)
    dead = []
    for seed in range(4):
        state, *_, count, _ = step(state, encoded, jax.random.key(seed))
        dead.append(int(count))
    assert len(set(dead)) > 1


def test_a_batch_split_over_devices_gives_the_same_codebook(key):
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec
    everywhere, split = (jax.sharding.NamedSharding(mesh, spec(*axes)) for axes in ((), ("data",)))
    state, encoded = warm()
    alone = jax.jit(whole_step)(state, encoded, key)
    sharded = jax.jit(whole_step, in_shardings=(everywhere, split, everywhere))(state, encoded, key)
    jax.block_until_ready(sharded)
    assert int(alone[3]) > 0
    chex.assert_trees_all_close(jax.device_get(sharded), jax.device_get(alone), rtol=1e-5, atol=1e-6)
    for shard in sharded[0].moment.addressable_shards[1:]:
        np.testing.assert_array_equal(shard.data, sharded[0].moment.addressable_shards[0].data)


def test_every_group_draws_from_a_key_of_its_own(key):
    """The groups see the same vectors: with one key for all of them they would start, seed and restart alike."""
    quantizer = Grouped(EMACodebook(K, decay=0.5, restart_threshold=0.5), groups=3)
    encoded = jnp.tile(jnp.asarray(normal(0, N, D)), 3)
    states = {
        "random": quantizer.init(3 * D, key=key)[1],
        "seeded": quantizer.init(3 * D, key=key, encoded=encoded)[1],
    }
    dead = {"frequency": jnp.full((3, K), 1e-3 / K), "moment": jnp.ones((3, K, D))}
    indices = jnp.zeros((N, 3), jnp.int32)
    states["restarted"], metrics = quantizer.update(dead, encoded, indices, key=key)
    for name, state in states.items():
        moments = np.asarray(state["moment"])
        for one, other in itertools.combinations(range(3), 2):
            assert not np.allclose(moments[one, 1:], moments[other, 1:]), name
    # The first code is used by all, the others restart in every group, not in the first alone.
    assert metrics["restarts"] == 3 * (K - 1)
    np.testing.assert_array_equal(states["restarted"]["frequency"][:, 1:], np.full((3, K - 1), np.float32(1 / K)))


# Refusals

STATE = CodebookState(jnp.ones(4) / 4, jnp.ones((4, 3)) / 4)
KEY = jax.random.key(0)
Z, INDICES = jnp.ones((2, 5, 3)), jnp.zeros((2, 5), jnp.int32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: codebook.init_codebook(1, 3, key=KEY), ValueError, "num_codes must be at least 2, got 1"),
        (lambda: codebook.init_codebook(4, 0, key=KEY), ValueError, "dim must be at least 1, got 0"),
        (lambda: codebook.init_codebook(4, 3, key=0), TypeError, "key must come from jax.random.key, got 0"),
        (lambda: codebook.seed_codebook(Z, 4, key=KEY), ValueError, r"encoded must be \[N, D\], got \(2, 5, 3\)"),
        (lambda: codebook.seed_codebook(Z[0], 1, key=KEY), ValueError, "num_codes must be at least 2, got 1"),
        (lambda: codebook.seed_codebook(INDICES, 4, key=KEY), TypeError, "encoded must be floating, got int32"),
        (lambda: codebook.seed_codebook(Z[0], 4, key=KEY, iterations=-1), ValueError, "iterations must be .* got -1"),
        (lambda: codebook.nearest(Z, Z), ValueError, r"codes must be \[K, D\], got \(2, 5, 3\)"),
        (lambda: codebook.nearest(Z[0], Z[..., :2]), ValueError, r"encoded must be \[\.\.\., 3\] .* got \(2, 5, 2\)"),
        (lambda: codebook.nearest(Z[0], jnp.float32(1)), ValueError, r"encoded must be \[\.\.\., 3\] .* got \(\)"),
        (lambda: codebook.nearest(Z[0], INDICES), TypeError, "encoded must be floating, got int32"),
        (lambda: codebook.nearest(INDICES, Z), TypeError, "codes must be floating, got int32"),
        (lambda: codebook.straight_through(Z, Z[:1]), ValueError, r"one shape, got \(2, 5, 3\) and \(1, 5, 3\)"),
        (lambda: codebook.straight_through(INDICES, INDICES), TypeError, "encoded must be floating, got int32"),
        (
            lambda: codebook.ema_update(STATE, Z, INDICES, decay=1.0),
            ValueError,
            "decay must lie between 0 and 1, got 1.0",
        ),
        (lambda: codebook.ema_update(STATE, Z, INDICES, decay=0), ValueError, "decay must lie between 0 and 1, got 0"),
        (
            lambda: codebook.ema_update(STATE, Z, INDICES[0], decay=0.9),
            ValueError,
            r"indices must be \(2, 5\) .* got \(5,\)",
        ),
        (lambda: codebook.ema_update(STATE, Z, Z[..., 0], decay=0.9), TypeError, "indices must be integers, got float"),
        (
            lambda: codebook.ema_update(STATE, Z[..., :2], INDICES, decay=0.9),
            ValueError,
            r"encoded must be \[\.\.\., 3\]",
        ),
        (
            lambda: codebook.restart_dead_codes(STATE, INDICES, key=KEY),
            TypeError,
            "encoded must be floating, got int32",
        ),
        (lambda: codebook.restart_dead_codes(STATE, Z[..., :1], key=KEY), ValueError, r"encoded must be \[\.\.\., 3\]"),
        (lambda: codebook.restart_dead_codes(STATE, Z, key=7), TypeError, "key must come from jax.random.key, got 7"),
        (lambda: codebook.restart_dead_codes(STATE, Z, key=KEY, threshold=1), ValueError, r"in \[0, 1\), .* got 1"),
        (lambda: codebook.dead_codes(STATE, threshold=-0.1), ValueError, r"in \[0, 1\), .* got -0.1"),
        (lambda: codebook.usage(Z, 4), TypeError, "indices must be integers, got float32"),
        (lambda: codebook.batch_means(Z, Z[..., 0], 4), TypeError, "indices must be integers, got float32"),
        (lambda: codebook.init_codebook(4.0, 3, key=KEY), TypeError, "num_codes must be an integer, got 4.0"),
        (lambda: codebook.nearest(Z[0, :0], Z), ValueError, r"codes must be \[K, D\], got \(0, 3\)"),
        (lambda: codebook.perplexity(jnp.zeros(0)), ValueError, r"usage must be \[K\], got \(0,\)"),
        (lambda: codebook.usage(INDICES[:0], 4), ValueError, r"indices must hold at least one position, got \(0,\)"),
        (
            lambda: codebook.ema_update(STATE, Z[:0], INDICES[:0], decay=0.9),
            ValueError,
            r"encoded must hold at least one position, got \(0, 5, 3\)",
        ),
        (
            lambda: codebook.restart_dead_codes(STATE, Z[:0], key=KEY),
            ValueError,
            r"encoded must hold at least one position, got \(0, 5, 3\)",
        ),
        (
            lambda: codebook.batch_means(Z[:0], INDICES[:0], 4),
            ValueError,
            r"encoded must hold at least one position, got \(0, 5, 3\)",
        ),
        (lambda: codebook.seed_codebook(Z[0, :0], 4, key=KEY), ValueError, r"got \(0, 3\); N must be at least 1"),
        (lambda: codebook.usage(INDICES, 1), ValueError, "num_codes must be at least 2, got 1"),
    ],
)
def test_what_does_not_fit_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_a_traced_decay_is_a_sweep():
    state, encoded = warm()
    indices = nearest(vectors(state), encoded)
    update = partial(ema_update, state, encoded, indices)
    swept = jax.vmap(lambda decay: update(decay=decay))(jnp.float32([0.9, 0.99]))
    chex.assert_trees_all_close(jax.tree.map(lambda leaf: leaf[1], swept), update(decay=0.99), rtol=1e-5, atol=1e-7)
