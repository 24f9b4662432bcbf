"""Figures of samples against closed forms, SciPy, enumeration and small cases worked by hand."""

import re

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg, stats

from jaxvae.evaluation import samples
from jaxvae.evaluation.samples import (
    _features,
    class_balance,
    density_coverage,
    frechet_distance,
    jackknife,
    kernel_distance,
    mode_coverage,
    nearest_neighbors,
    precision_recall,
    read_rate,
)

RNG = np.random.default_rng(0)
DATA = RNG.normal(size=(60, 4)) @ RNG.normal(size=(4, 4)) + 3
DRAWN = RNG.normal(size=(50, 4)) + RNG.normal(size=4)
NAN = float("nan")


@pytest.fixture
def small_blocks(monkeypatch):
    """Tables of 7 rows of the data, so that blocks have borders."""
    monkeypatch.setattr(_features, "TABLE", 7 * len(DATA))
    monkeypatch.setattr(samples._distances, "TABLE", 7 * len(DATA))
    monkeypatch.setattr(samples._neighbours, "TABLE", 7 * len(DATA))


def with_moments(num, mean, covariance, seed=0):
    """Examples whose mean and covariance (over N - 1) are exactly these."""
    x = np.random.default_rng(seed).normal(size=(num, len(mean)))
    x -= x.mean(axis=0)
    white = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x.T).reshape(len(mean), -1))).T
    values, vectors = np.linalg.eigh(covariance)
    return mean + white @ (vectors * np.sqrt(np.maximum(values, 0))).T


def by_scipy(a, b):
    root = linalg.sqrtm(np.cov(a.T) @ np.cov(b.T))
    trace = np.trace(np.cov(a.T) + np.cov(b.T) - 2 * root.real)
    return np.square(a.mean(0) - b.mean(0)).sum() + trace


# The Fréchet distance


def test_the_frechet_distance_of_gaussians_is_the_closed_form():
    one = with_moments(30, np.array([1.0, -2.0, 0.0]), np.diag([4.0, 1.0, 9.0]))
    other = with_moments(20, np.array([1.0, 0.0, 3.0]), np.diag([1.0, 1.0, 0.25]), seed=1)
    assert frechet_distance(one, other) == pytest.approx(4 + 9 + 1 + 0 + 2.5**2, rel=1e-12)  # Σ (Δμ² + Δσ²)
    assert frechet_distance(DATA, DRAWN) == pytest.approx(by_scipy(DATA, DRAWN), rel=1e-9)
    assert frechet_distance(DRAWN, DATA) == pytest.approx(by_scipy(DATA, DRAWN), rel=1e-9)


def test_the_frechet_distance_of_a_set_to_itself_is_zero_and_to_a_moved_one_the_square_of_the_way():
    assert frechet_distance(DATA, DATA[::-1]) == pytest.approx(0, abs=1e-12)
    assert frechet_distance(DATA, DATA + np.array([3.0, 4.0, 0.0, 0.0])) == pytest.approx(25, rel=1e-12)
    assert frechet_distance(jnp.asarray(DATA), DATA.astype(np.float32)) == pytest.approx(0, abs=1e-6)


def test_singular_covariances_are_as_good_as_others():
    """One line across another: no overlap, so the traces remain."""
    one = with_moments(20, np.zeros(2), np.diag([4.0, 0.0]))
    other = with_moments(20, np.zeros(2), np.diag([0.0, 9.0]), seed=1)
    assert frechet_distance(one, other) == pytest.approx(13, rel=1e-7)
    assert frechet_distance(one, one) == pytest.approx(0, abs=1e-12)
    leaning = np.array([[1.0, 1.0], [1.0, 1.0]])
    assert frechet_distance(one, with_moments(20, np.zeros(2), leaning)) == pytest.approx(6 - 2 * np.sqrt(4), rel=1e-7)


# The kernel distance


def by_enumeration(a, b):
    def kernel(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    within = [(kernel(x, x).sum() - np.trace(kernel(x, x))) / (len(x) * (len(x) - 1)) for x in (a, b)]
    return sum(within) - 2 * kernel(a, b).mean()


def test_the_kernel_distance_is_that_of_all_pairs_and_its_error_that_of_leaving_one_out(small_blocks):
    found = kernel_distance(DATA, DRAWN)
    assert found.value == pytest.approx(by_enumeration(DATA, DRAWN), rel=1e-10)
    variance = 0.0
    for sets in ([DATA, DRAWN], [DRAWN, DATA]):
        left = np.array([by_enumeration(np.delete(sets[0], i, axis=0), sets[1]) for i in range(len(sets[0]))])
        variance += (len(left) - 1) / len(left) * np.square(left - left.mean()).sum()
    assert found.standard_error == pytest.approx(np.sqrt(variance), rel=1e-8)


def test_the_kernel_distance_worked_by_hand():
    """k(0, 0) = k(0, 1) = 1 and k(1, 1) = 8."""
    zeros, ones = np.zeros((3, 1)), np.ones((4, 1))
    assert kernel_distance(zeros, ones).value == pytest.approx(1 + 8 - 2)
    assert kernel_distance(zeros, ones).standard_error == pytest.approx(0)
    assert kernel_distance(zeros, zeros).value == pytest.approx(0)


def test_the_kernel_distance_has_no_bias_and_its_error_is_its_spread():
    rng = np.random.default_rng(1)
    found = [kernel_distance(rng.normal(size=(40, 2)), rng.normal(0.5, size=(30, 2))) for _ in range(300)]
    values, errors = np.array(found).T
    x, y = rng.normal(size=(2, 200_000, 2))

    def kernel(a, b):
        return ((a * b).sum(axis=1) / 2 + 1) ** 3

    expected = kernel(x, y).mean() + kernel(x + 0.5, y + 0.5).mean() - 2 * kernel(x, y + 0.5).mean()
    assert values.mean() == pytest.approx(expected, abs=4 * values.std() / np.sqrt(300))
    assert np.sqrt(np.square(errors).mean()) == pytest.approx(values.std(), rel=0.25)


# Precision, recall, density, coverage


def neighbourhoods(x, k):
    distance = np.linalg.norm(x[:, None] - x[None], axis=-1)
    np.fill_diagonal(distance, np.inf)
    return np.sort(distance, axis=1)[:, k - 1]


@pytest.mark.parametrize("k", [1, 3, 7])
def test_precision_recall_density_and_coverage_are_their_definitions(k, small_blocks):
    distance = np.linalg.norm(DRAWN[:, None] - DATA[None], axis=-1)  # [M, N]
    of_data, of_drawn = neighbourhoods(DATA, k), neighbourhoods(DRAWN, k)
    found = precision_recall(DATA, DRAWN, k=k)
    assert found.precision == pytest.approx((distance <= of_data).any(axis=1).mean())
    assert found.recall == pytest.approx((distance <= of_drawn[:, None]).any(axis=0).mean())
    found = density_coverage(DATA, DRAWN, k=k)
    assert found.density == pytest.approx((distance < of_data).sum() / (k * len(DRAWN)))
    assert found.coverage == pytest.approx((distance < of_data).any(axis=0).mean())


def test_precision_and_recall_worked_by_hand():
    """On a line with k = 1 the data's balls are [-1, 1], [0, 2] and [1, 9], the samples' [-2, 20], [19, 21] twice."""
    data, drawn = np.array([[0.0], [1.0], [5.0]]), np.array([[9.0], [20.0], [21.0]])
    assert precision_recall(data, drawn, k=1) == (1 / 3, 1)  # 9 lies on a border
    assert density_coverage(data, drawn, k=1) == (0, 0)
    assert density_coverage(data, drawn - 7.5, k=1) == (2 / 3, 2 / 3)  # 1.5 lies in the last two
    assert density_coverage(data, drawn - 7.5, k=2) == (1 / 2, 1)  # and in [-5, 5], [-3, 5], [0, 10]


def test_a_set_beside_itself_is_one_everywhere_in_any_order():
    for x in (DATA, np.repeat(DATA, 2, axis=0), np.arange(20.0)[:, None], 1e8 + DATA):
        shuffled = RNG.permutation(x)
        assert precision_recall(x, shuffled) == (1, 1)
    assert density_coverage(DATA, RNG.permutation(DATA)) == (1, 1)
    assert density_coverage(1e6 + DATA, 1e6 + DATA) == (1, 1)


def test_sets_far_from_each_other_have_nothing_in_common():
    assert precision_recall(DATA, DRAWN + 1000) == (0, 0)
    assert density_coverage(DATA, DRAWN + 1000) == (0, 0)


def test_a_dropped_mode_costs_recall_and_a_wild_sample_precision():
    two = np.concatenate([DATA, DATA + 1000])
    found = precision_recall(two, DATA)
    assert found.precision == 1
    assert found.recall == 0.5
    found = precision_recall(DATA, two)
    assert found.precision == 0.5
    assert found.recall == 1


def test_density_and_coverage_of_one_distribution_have_their_expectations():
    rng, n, m, k = np.random.default_rng(2), 40, 30, 3
    found = np.array([density_coverage(rng.normal(size=(n, 3)), rng.normal(size=(m, 3)), k=k) for _ in range(400)])
    missed = np.prod([(n - i) / (m + n - i) for i in range(1, k + 1)])
    error = 4 * found.std(axis=0) / np.sqrt(len(found))
    assert found[:, 0].mean() == pytest.approx(1, abs=error[0])
    assert found[:, 1].mean() == pytest.approx(1 - missed, abs=error[1])


@pytest.mark.parametrize("measure", [frechet_distance, precision_recall, density_coverage])
def test_the_order_of_examples_changes_nothing(measure):
    shuffled = measure(RNG.permutation(DATA), RNG.permutation(DRAWN))
    np.testing.assert_allclose(shuffled, measure(DATA, DRAWN), rtol=1e-9)


# Neighbours


@pytest.mark.parametrize("k", [1, 4, 60])
def test_the_nearest_neighbours_are_those_of_enumeration(k, small_blocks):
    distance = np.linalg.norm(DRAWN[:, None] - DATA[None], axis=-1)
    indices, away = nearest_neighbors(DATA, DRAWN, k=k)
    np.testing.assert_array_equal(indices, np.argsort(distance, axis=1)[:, :k])
    np.testing.assert_allclose(away, np.sort(distance, axis=1)[:, :k], rtol=1e-12)


def test_of_equally_near_examples_the_first_comes_first_and_pictures_keep_their_shape(small_blocks):
    grid = np.stack(np.meshgrid(np.arange(8.0), np.arange(8.0)), axis=-1).reshape(64, 2, 1) + 1e4
    indices, away = nearest_neighbors(np.concatenate([grid, grid]), grid + 0.5, k=4)
    distance = np.square(grid[:, None] + 0.5 - np.concatenate([grid, grid])[None]).sum(axis=(2, 3))
    np.testing.assert_array_equal(indices, np.argsort(distance, axis=1, kind="stable")[:, :4])
    assert (away[0] == np.sqrt(0.5)).all()
    picture = (255 * RNG.random((5, 4, 4, 3))).astype(np.uint8)
    indices, away = nearest_neighbors(picture, picture[[3]])
    assert indices.tolist() == [[3]]
    assert away.tolist() == [[0]]


# Classes and modes


def test_the_classes_read_are_compared_with_those_there_should_be():
    logits = np.eye(3)[[0, 0, 1, 2]] * 9
    found = class_balance(logits)
    np.testing.assert_array_equal(found.share, [0.5, 0.25, 0.25])
    assert found.kl == pytest.approx(np.log(3) - stats.entropy([0.5, 0.25, 0.25]))
    assert class_balance(logits, [0.5, 0.25, 0.25]).kl == 0
    assert class_balance(logits[:2]).kl == pytest.approx(np.log(3))


def test_the_read_rate_counts_what_is_read_with_certainty():
    probability = np.array([[0.95, 0.05], [0.5, 0.5], [0.08, 0.92], [0.11, 0.89]])
    found = read_rate(np.log(probability) + 1000)
    assert found == (0.5, pytest.approx(np.sqrt(0.25 / 4)))
    assert read_rate(np.log(probability), sure=0.4).value == 1


def test_modes_are_counted_and_samples_between_them_are_not_good():
    centres = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    drawn = np.array([[0.1, 0.0], [0.0, 0.2], [10.0, 0.29], [5.0, 0.0], [0.0, 10.31]])
    found = mode_coverage(drawn, centres, 0.1)
    assert (found.covered, found.good) == (2, 0.6)
    np.testing.assert_allclose(found.share, [2 / 3, 1 / 3, 0])
    assert found.kl == pytest.approx(np.log(3) - stats.entropy([2 / 3, 1 / 3]))
    assert mode_coverage(drawn, centres, 0.1, min_count=2).covered == 1
    assert mode_coverage(drawn, centres, [0.1, 0.1, 0.2]).covered == 3
    assert mode_coverage(drawn + 3, centres, 0.1) == (0, 0, pytest.approx(np.zeros(3)), float("inf"))


def test_fair_draws_of_a_grid_cover_it_and_the_share_within_three_deviations_is_rayleighs():
    rng = np.random.default_rng(3)
    centres = 2.0 * np.stack(np.meshgrid(np.arange(5), np.arange(5)), axis=-1).reshape(25, 2)
    mode = rng.integers(25, size=20_000)
    found = mode_coverage(centres[mode] + 0.05 * rng.normal(size=(20_000, 2)), centres, 0.05)
    assert found.covered == 25
    assert found.good == pytest.approx(1 - np.exp(-4.5), abs=4 * np.sqrt(0.011 / 20_000))
    assert found.kl == pytest.approx(12 / 20_000, rel=1)  # (K - 1) / 2M


# The jackknife


def test_the_jackknife_of_a_mean_is_its_standard_error():
    x = RNG.normal(size=40)
    found = jackknife(lambda some: {"mean": some.mean(), "count": len(some) / len(some)}, x, groups=40 // 2)
    pairs = x.reshape(2, 20).mean(axis=0)
    assert found["mean"] == (pytest.approx(x.mean()), pytest.approx(pairs.std(ddof=1) / np.sqrt(20)))
    assert found["count"] == (1, 0)


def test_the_jackknife_of_precision_is_the_binomial_error():
    rng = np.random.default_rng(4)
    data, drawn = rng.normal(size=(300, 2)), rng.normal(scale=2.0, size=(400, 2))
    found = jackknife(lambda some: {"precision": precision_recall(data, some).precision}, drawn, groups=100)
    p, error = found["precision"]
    assert p == precision_recall(data, drawn).precision
    assert error == pytest.approx(np.sqrt(p * (1 - p) / 400), rel=0.3)


# What is refused


@pytest.mark.parametrize("measure", [frechet_distance, kernel_distance, precision_recall, density_coverage])
def test_wrong_features_are_named(measure):
    bad = DRAWN.copy()
    bad[3, 1] = NAN
    for arguments, error, said in (
        ((DATA, bad), ValueError, "samples must be finite: example 3 has nan as feature 1"),
        ((DATA[:, 0], DRAWN), ValueError, "data must be features [N, D], got (60,)"),
        ((DATA, DRAWN[:, :3]), ValueError, "the same features, got (60, 4) and (50, 3)"),
        ((DATA, np.zeros((0, 4))), ValueError, "samples must have at least"),
        ((DATA, np.ma.masked_array(DRAWN)), TypeError, "samples is a masked array"),
        ((DATA + 1j, DRAWN), TypeError, "data must hold real numbers, got complex128"),
    ):
        with pytest.raises(error, match=re.escape(said)):
            measure(*arguments)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (
            lambda: frechet_distance(DATA, DRAWN[:4]),
            ValueError,
            "samples must have more examples than features, got (4",
        ),
        (lambda: frechet_distance(DATA[:1], DRAWN), ValueError, "data must have at least 2 examples, got (1, 4)"),
        (lambda: kernel_distance(DATA, DRAWN[:2]), ValueError, "samples must have at least 3 examples, got (2, 4)"),
        (lambda: precision_recall(DATA, DRAWN, k=50), ValueError, "k must be below the 50 examples of samples, got 50"),
        (lambda: precision_recall(DATA, DRAWN, k=0), ValueError, "k must be at least 1, got 0"),
        (lambda: density_coverage(DATA[:5], DRAWN), ValueError, "k must be below the 5 examples of data, got 5"),
        (lambda: density_coverage(DATA, DRAWN, k=2.0), TypeError, "k must be an integer, got 2.0"),
        (lambda: precision_recall(DATA[:1], DRAWN, k=1), ValueError, "k must be below the 1 examples of data, got 1"),
        (lambda: nearest_neighbors(DATA, DRAWN, k=61), ValueError, "k must be at most the 60 examples of data, got 61"),
        (lambda: nearest_neighbors(DATA, DRAWN[:, :2]), ValueError, "of one shape, got (60, 4) and (50, 2)"),
        (lambda: nearest_neighbors(DATA[:0], DRAWN), ValueError, "data and samples must be [N, ...]"),
        (lambda: nearest_neighbors(np.full((3, 4), NAN), DRAWN), ValueError, "data must be finite: example 0 is not"),
        (lambda: class_balance(np.zeros((2, 3)), [0.5, 0.5]), ValueError, "expected must be [3] positive shares"),
        (lambda: class_balance(np.zeros((2, 2)), [1.0, 0.0]), ValueError, "expected must be [2] positive shares"),
        (lambda: class_balance(np.full((2, 2), NAN)), ValueError, "logits must be finite: example 0"),
        (lambda: read_rate(np.zeros((2, 2)), sure=1.0), ValueError, "sure must lie in [0, 1), got 1.0"),
        (lambda: mode_coverage(DRAWN, DATA[:, :2], 1.0), ValueError, "samples and centres must be [M, D] and [K, D]"),
        (lambda: mode_coverage(DRAWN, DATA, 0.0), ValueError, "scale must be positive, one or [60], got 0.0"),
        (lambda: mode_coverage(DRAWN, DATA, [1.0, 2.0]), ValueError, "scale must be positive, one or [60]"),
        (lambda: mode_coverage(DRAWN, DATA, 1.0, within=NAN), ValueError, "within must be a positive number, got nan"),
        (lambda: jackknife(len, DRAWN, groups=26), ValueError, "samples must be at least 52, two for each of 26"),
        (lambda: jackknife(len, DRAWN, groups=1), ValueError, "groups must be at least 2, got 1"),
    ],
)
def test_what_cannot_be_measured_is_refused_by_name(call, error, said):
    with pytest.raises(error, match=re.escape(said)):
        call()
