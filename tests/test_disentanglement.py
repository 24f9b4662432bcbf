"""The disentanglement scores against loops over their definitions, examples worked by hand and known fixed points."""

import sys
from functools import partial

import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import mutual_info_score

from jaxvae.evaluation.disentanglement import (
    CHEAP_SCORES,
    beta_vae_score,
    dci,
    disentanglement_scores,
    factor_entropy,
    factor_vae_score,
    fixed_points,
    mig,
    mutual_information,
    sap,
)
from jaxvae.evaluation.disentanglement import _still as still
from jaxvae.evaluation.disentanglement._prediction import _concentration

DSPRITES = (3, 6, 40, 32, 32)  # shapes, scales, orientations, positions
SMALL = {
    "mig": partial(mig, num_points=1000),
    "sap": partial(sap, num_train=400, num_test=400),
    "dci": partial(dci, num_train=100, num_test=200, num_jobs=2),
    "factor_vae_score": partial(factor_vae_score, num_points=1000, num_train=500, num_test=500, batch_size=4),
    "beta_vae_score": partial(beta_vae_score, num_train=500, num_test=500, batch_size=4),
}


def grid(*sizes):
    """Every combination of factors of so many values each, [N, F]."""
    return np.stack(np.unravel_index(np.arange(np.prod(sizes)), sizes), axis=1)


def unit(factors):
    return factors / factors.std(axis=0)


def rotation(factors, latent_dim, seed=0):
    orthonormal, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(latent_dim, factors.shape[1])))
    return unit(factors) @ orthonormal.T


def middling(seed=0):
    """Codes that score neither chance nor 1, and their factors."""
    factors = grid(3, 4, 5)
    return rotation(factors, 4, seed) + 0.3 * np.random.default_rng(seed).normal(size=(len(factors), 4)), factors


# Mutual information


def test_mutual_information_of_a_table_worked_by_hand():
    codes, factors = [[0.0, 7.0], [0.0, 7.0], [0.1, 7.0], [1.0, 7.0]], [[0], [0], [1], [1]]
    # p(low, 0) = 1/2, p(low, 1) = p(high, 1) = 1/4; the second latent is constant.
    by_hand = 0.5 * np.log(4 / 3) + 0.25 * np.log(2 / 3) + 0.25 * np.log(2)
    np.testing.assert_allclose(mutual_information(codes, factors, bins=2), [[by_hand], [0]], rtol=1e-12, atol=1e-15)
    assert by_hand == pytest.approx(0.2157616)


def test_mutual_information_equals_scikit_learns():
    rng = np.random.default_rng(0)
    factors = np.stack([rng.integers(-3, 4, size=800), rng.choice([0, 5, 1000], size=800, p=[0.7, 0.2, 0.1])], axis=1)
    codes = np.stack([rng.normal(size=800), factors[:, 0] + rng.normal(size=800), np.exp(factors[:, 1] / 1000)], axis=1)
    table = mutual_information(codes, factors, bins=13)
    for j, code in enumerate(codes.T):
        binned = np.digitize(code, np.histogram(code, 13)[1][:-1])
        for k, factor in enumerate(factors.T):
            assert table[j, k] == pytest.approx(mutual_info_score(binned, factor), abs=1e-12)
    entropies = [stats.entropy(np.unique(factor, return_counts=True)[1]) for factor in factors.T]
    np.testing.assert_allclose(factor_entropy(factors), entropies, rtol=1e-12)


def test_the_gap_is_between_the_two_best_latents_in_units_of_entropy():
    factors = grid(4, 4)
    # v_0 mod 2 and v_0 // 2 hold log 2 of log 4 each; v_1 is in the third latent alone.
    halves = np.stack([factors[:, 0] // 2, factors[:, 1], np.zeros(16)], axis=1)
    assert mig(halves, factors, num_points=50_000) == pytest.approx((0.5 + 1) / 2, abs=2e-3)
    both = np.stack([factors[:, 0] // 2, factors[:, 1], factors[:, 0] % 2], axis=1)
    assert mig(both, factors, num_points=50_000) == pytest.approx((0 + 1) / 2, abs=5e-3)


# The fixed points on the factor grid of dSprites


@pytest.mark.slow
def test_the_true_factors_of_dsprites():
    factors = grid(*DSPRITES)
    codes = np.pad(unit(factors), ((0, 0), (0, 5)))
    assert mig(codes, factors) == pytest.approx(0.896, abs=0.01)
    assert sap(codes, factors) == pytest.approx(0.21, abs=0.02)
    assert factor_vae_score(codes, factors) == 1
    assert beta_vae_score(codes, factors) == 1


@pytest.mark.slow
def test_noise_scores_chance():
    factors = grid(*DSPRITES)
    codes = np.random.default_rng(0).normal(size=(len(factors), 10))
    assert 0 <= mig(codes, factors) < 0.005
    assert 0 <= sap(codes, factors) < 0.02
    chance = pytest.approx(0.2, abs=4 * np.sqrt(0.2 * 0.8 / 5000))
    assert factor_vae_score(codes, factors) == chance
    assert beta_vae_score(codes, factors) == chance


@pytest.mark.slow
def test_the_fixed_points_of_dsprites():
    points = fixed_points(grid(*DSPRITES))
    true, noise, rotations = points["true_factors"], points["noise"], points["rotations"]
    assert true["mig"] == pytest.approx(0.896, abs=0.01)
    assert true["sap"] == pytest.approx(0.21, abs=0.02)
    assert true["factor_vae_score"] == true["beta_vae_score"] == 1
    assert true["dci_disentanglement"] > 0.99
    assert true["dci_completeness"] > 0.99
    assert noise["mig"] < 0.005
    assert noise["factor_vae_score"] == pytest.approx(0.2, abs=0.03)
    assert noise["dci_disentanglement"] < 0.05
    assert rotations["beta_vae_score"] > 0.95
    assert rotations["factor_vae_score"] > 0.95
    assert 0.03 < rotations["mig"] < 0.13
    assert "dci_disentanglement" not in rotations


def test_the_codes_of_the_fixed_points():
    factors, seen = grid(3, 4, 5) + 7, []

    def record(codes, factors, *, seed):
        seen.append(codes)
        return float(len(seen))

    points = fixed_points(factors, latent_dim=6, rotations=5, scores={"a": record}, rotation_scores={"b": record})
    *rotated, true, noise = seen
    np.testing.assert_allclose(true[:, :3], (factors - 7) / factors.std(axis=0))
    assert not true[:, 3:].any()
    assert noise.shape == (60, 6)
    np.testing.assert_allclose(np.cov(noise.T), np.eye(6), atol=0.6)
    for codes in rotated:  # all the variance of three factors, none of it in a fourth direction
        np.testing.assert_allclose(np.linalg.eigvalsh(np.cov(codes.T, ddof=0)), [0, 0, 0, 1, 1, 1], atol=1e-12)
        assert (codes.std(axis=0) > 1e-3).all()
    assert not np.allclose(rotated[0], rotated[1])
    assert points == {"true_factors": {"a": 6.0}, "noise": {"a": 7.0}, "rotations": {"b": 3.0}}


def test_fixed_points_of_a_small_grid():
    cheap = {name: partial(score, num_train=1000, num_test=500) for name, score in CHEAP_SCORES.items()} | {"mig": mig}
    points = fixed_points(grid(3, 4, 5, 6), latent_dim=8, rotations=5, scores=cheap, rotation_scores=cheap)
    assert list(points) == ["true_factors", "noise", "rotations"]
    assert points["true_factors"]["mig"] > 0.97
    assert points["rotations"]["mig"] < 0.4
    assert points["rotations"]["factor_vae_score"] > 0.9
    assert points["rotations"]["beta_vae_score"] > 0.9


# Each score against its definition


def points_of(factors, sizes):
    return np.ravel_multi_index(tuple(factors.T), sizes)


def test_the_factor_vae_score_equals_a_loop_over_votes():
    codes, factors = middling()
    sizes, batch_size, rng = (3, 4, 5), 4, np.random.default_rng(5)
    variance = codes.var(axis=0)

    def vote():
        k = rng.integers(3)
        batch = rng.integers(sizes, size=(batch_size, 3))
        batch[:, k] = batch[0, k]
        return k, np.argmin(codes[points_of(batch, sizes)].var(axis=0, ddof=1) / variance)

    votes = np.zeros((3, 4))
    for _ in range(4000):
        votes[vote()] += 1
    best = votes.argmax(axis=0)
    loop = np.mean([best[j] == k for k, j in (vote() for _ in range(4000))])
    score = factor_vae_score(codes, factors, num_train=20_000, num_test=20_000, batch_size=batch_size)
    assert 0.45 < score < 0.9
    assert score == pytest.approx(loop, abs=4 * np.sqrt(0.25 / 4000))


def test_the_beta_vae_score_equals_a_loop_over_examples():
    codes, factors = middling()
    sizes, batch_size, rng = (3, 4, 5), 4, np.random.default_rng(5)

    def example():
        k = rng.integers(3)
        first, second = rng.integers(sizes, size=(2, batch_size, 3))
        second[:, k] = first[:, k]
        return np.abs(codes[points_of(first, sizes)] - codes[points_of(second, sizes)]).mean(axis=0), k

    features, held = zip(*(example() for _ in range(8000)), strict=True)
    classifier = LogisticRegression().fit(features[:4000], held[:4000])
    loop = classifier.score(features[4000:], held[4000:])
    score = beta_vae_score(codes, factors, num_train=20_000, num_test=20_000, batch_size=batch_size)
    assert 0.45 < score < 0.9
    assert score == pytest.approx(loop, abs=4 * np.sqrt(0.25 / 4000))


def test_partners_share_the_held_value_and_are_drawn_evenly():
    rng = np.random.default_rng(0)
    factors = np.stack([rng.choice([3, -2, 9], size=50, p=[0.8, 0.1, 0.1]), rng.integers(4, size=50)], axis=1)
    held = rng.integers(2, size=4000)
    points = rng.integers(50, size=(4000, 5))
    partners = still._sharing(factors, held, points, rng)
    np.testing.assert_array_equal(factors[partners, held[:, None]], factors[points, held[:, None]])
    for k in range(2):
        for value in np.unique(factors[:, k]):
            asked = (held[:, None] == k) & (factors[points, k] == value)
            members = np.flatnonzero(factors[:, k] == value)
            counts = np.bincount(partners[asked], minlength=50)[members]
            assert counts.sum() == asked.sum()
            assert len(members) == 1 or stats.chisquare(counts).pvalue > 1e-4


def test_the_factor_vae_score_drops_latents_that_hardly_vary():
    factors = grid(4, 5)
    codes = unit(factors)
    assert factor_vae_score(codes, factors, num_train=2000) == 1
    assert factor_vae_score(codes * [1, 0.06], factors, num_train=2000) == 1
    # One latent left: it always wins the vote, whichever of the two factors was held.
    assert factor_vae_score(codes * [1, 0.04], factors, num_train=2000) == pytest.approx(0.5, abs=0.03)
    assert factor_vae_score(codes * 0.04, factors) == 0


def test_sap_gives_a_constant_latent_nothing():
    factors = grid(2, 2, 2)
    sees_the_first = np.stack([2.0 * factors[:, 0] - 1, np.full(8, 3.0)], axis=1)
    # Accuracy 1 for the factor that the first latent is, chance for the other two, 0 from the second latent.
    assert sap(sees_the_first, factors) == pytest.approx((1 + 0.5 + 0.5) / 3, abs=0.02)
    assert sap(2.0 * factors - 1, factors) == pytest.approx(1 - 0.5, abs=0.02)


def test_concentration_worked_by_hand():
    one_each = np.array([[0.0, 2.0], [3.0, 0.0], [0.0, 0.0]])
    assert _concentration(one_each) == pytest.approx(1, abs=1e-9)
    assert _concentration(np.ones((3, 2))) == pytest.approx(0, abs=1e-9)
    assert _concentration(np.zeros((3, 2))) == pytest.approx(0, abs=1e-9)
    mixed = np.array([[3.0, 1.0], [0.0, 4.0], [1.0, 1.0]])  # entropies in bits .8113, 0, 1 and weights .4, .4, .2
    assert _concentration(mixed) == pytest.approx(0.4 * (1 - 0.811278) + 0.4, abs=1e-6)


def test_dci_tells_a_split_factor_from_a_mixed_latent():
    factors = grid(3, 4)
    score = partial(dci, factors=factors, num_train=300, num_test=300, num_jobs=2)
    split = score(np.tile(unit(factors), 2))  # two latents for each factor, one factor for each latent
    assert split.disentanglement > 0.99
    assert split.completeness == pytest.approx(1 - np.log(2) / np.log(4), abs=0.1)
    assert split.informativeness == 1
    mixed = score(np.stack([4.0 * factors[:, 0] + factors[:, 1], np.zeros(12)], axis=1))
    assert mixed.disentanglement == pytest.approx(0, abs=1e-9)
    assert mixed.completeness == pytest.approx(1, abs=1e-9)
    assert mixed.informativeness == 1


@pytest.mark.slow
def test_dci_of_noise_and_of_the_true_factors():
    factors = grid(3, 4, 2)
    score = partial(dci, factors=np.tile(factors, (200, 1)), num_train=500, num_test=500, num_jobs=2)
    true = score(np.pad(np.tile(unit(factors), (200, 1)), ((0, 0), (0, 2))))
    np.testing.assert_allclose(true, 1, atol=1e-3)
    noise = score(np.random.default_rng(0).normal(size=(4800, 5)))
    assert noise.disentanglement < 0.05
    assert noise.completeness < 0.05
    chance = np.mean([1 / 3, 1 / 4, 1 / 2])
    assert noise.informativeness == pytest.approx(chance, abs=4 * np.sqrt(chance * (1 - chance) / 1500))


# What must not matter, and what must


def test_a_duplicated_latent_closes_the_gap_and_nothing_else():
    factors = grid(3, 6, 8, 5)
    twice = np.tile(unit(factors), 2)
    assert mig(twice, factors) == 0
    assert sap(twice, factors) == 0
    assert factor_vae_score(twice, factors) == 1
    assert beta_vae_score(twice, factors) == 1


@pytest.mark.parametrize(
    ("name", "tolerance"),
    [("mig", 0.03), ("factor_vae_score", 1e-12), pytest.param("dci", 0.1, marks=pytest.mark.slow)],
)
def test_the_order_and_the_units_of_the_latents_do_not_matter(name, tolerance):
    codes, factors = middling()
    order, units = [2, 0, 3, 1], np.array([-2.0, 0.5, -10.0, 3.0])
    score = SMALL[name]
    plain = score(codes, factors)
    np.testing.assert_allclose(score(codes[:, order], factors), plain, atol=0.1 if name == "dci" else 1e-12)
    np.testing.assert_allclose(score(codes * units, factors), plain, atol=tolerance)


def test_codes_of_any_size_are_fitted_to_the_end():
    factors = grid(3, 6, 40)
    small, large = (scale * rotation(factors, 6) * [1, 10, 100, 1, 1, 1] for scale in (1e2, 1e4))  # a warning fails
    score = partial(beta_vae_score, factors=factors, num_train=1000)
    assert score(large) == pytest.approx(score(small), abs=0.01)
    assert score(large) > 0.95
    score = partial(sap, factors=factors, num_train=1000)
    assert score(large) == pytest.approx(score(small), abs=0.02)


def test_the_order_and_the_numbers_of_the_factors_do_not_matter():
    codes, factors = middling()
    renumbered = np.stack([factors[:, 2] * 10 - 7, factors[:, 0], -factors[:, 1]], axis=1)
    for name in ("mig", "sap"):
        assert SMALL[name](codes, renumbered) == pytest.approx(SMALL[name](codes, factors), abs=1e-12)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == "dci")) for name in SMALL])
def test_the_seed_decides_and_numpys_own_generator_is_left_alone(name):
    codes, factors = middling()
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first = SMALL[name](codes, factors, seed=3)
    assert SMALL[name](jnp.asarray(codes), jnp.asarray(factors, jnp.int32), seed=3) == pytest.approx(first, abs=0.02)
    assert SMALL[name](codes, factors.astype(np.uint8), seed=3) == first
    assert SMALL[name](codes, factors, seed=4) != first
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.slow
def test_the_number_of_threads_changes_nothing():
    codes, factors = middling()
    one, two = (dci(codes, factors, num_train=100, num_test=100, num_jobs=jobs) for jobs in (1, 2))
    assert one == two


def test_the_size_of_the_chunks_changes_nothing(monkeypatch):
    codes, factors = middling()
    whole = [SMALL[name](codes, factors) for name in ("factor_vae_score", "beta_vae_score")]
    monkeypatch.setattr(still, "CHUNK", 37)
    assert [SMALL[name](codes, factors) for name in ("factor_vae_score", "beta_vae_score")] == whole


def test_all_scores_by_name():
    codes, factors = middling()
    scores = disentanglement_scores(codes, factors, seed=2, scores=SMALL)
    parts = ["dci_disentanglement", "dci_completeness", "dci_informativeness"]
    assert list(scores) == ["mig", "sap", *parts, "factor_vae_score", "beta_vae_score"]
    assert scores["sap"] == SMALL["sap"](codes, factors, seed=2)
    assert tuple(scores[part] for part in parts) == SMALL["dci"](codes, factors, seed=2)


# What is refused


@pytest.mark.parametrize("score", [*SMALL.values(), mutual_information])
def test_codes_and_factors_are_checked(score):
    codes, factors = middling()
    broken = codes.copy()
    broken[7, 2] = np.nan
    for wrong, message in (
        (broken, "codes must be finite: point 7 has nan"),
        (codes[:, 0], r"codes must be \[N, D\] with D of \d or more, got \(60,\)"),
        (codes[:9], "codes and factors must describe the same points, got 9 and 60"),
    ):
        with pytest.raises(ValueError, match=message):
            score(wrong, factors)
    with pytest.raises(TypeError, match="factors must be integers, got float64; number their values 0, 1, "):
        score(codes, factors.astype(float))
    for wrong, message in (
        (factors[:, 0], r"factors must be \[N, F\] with N and F of 1 or more, got \(60,\)"),
        (factors[:0], r"factors must be \[N, F\] with N and F of 1 or more, got \(0, 3\)"),
        (factors * [1, 0, 1] + 4, r"factors\[:, 1\] is 4 everywhere: leave that column out"),
    ):
        with pytest.raises(ValueError, match=message):
            score(codes, wrong)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        pytest.param("dci", np.int8, marks=pytest.mark.slow),  # seconds each
        *((name, dtype) for name in SMALL if name != "dci" for dtype in (np.int8, np.uint8, np.int16, np.uint16)),
    ],
)
def test_factors_of_any_integer_type_are_the_same(name, dtype):
    """Values from end to end of int8, whose differences it cannot hold."""
    codes, factors = middling()
    far = (factors / factors.max(axis=0) * 255).astype(int) - (128 if np.issubdtype(dtype, np.signedinteger) else 0)
    assert SMALL[name](codes, far.astype(dtype), seed=3) == SMALL[name](codes, far, seed=3)


def test_fixed_points_of_narrow_factors_are_those_of_wide_ones():
    factors, seen = np.array([[-128, 0], [127, 1], [0, 2]]), []

    def record(codes, factors, *, seed):
        seen.append(codes)
        return 0.0

    for dtype in (np.int8, np.int64):
        fixed_points(factors.astype(dtype), latent_dim=3, rotations=1, scores={"a": record}, rotation_scores={})
    np.testing.assert_array_equal(seen[0], seen[2])
    np.testing.assert_allclose(seen[0][:, 0], [0, 255 / factors.std(axis=0)[0], 128 / factors.std(axis=0)[0]])


def test_sizes_in_a_narrow_type_do_not_wrap_around():
    codes, factors = middling()
    sizes = {"num_train": np.uint8(200), "num_test": np.uint8(200)}
    for score in (sap, beta_vae_score, factor_vae_score):
        assert score(codes, factors, **sizes) == score(codes, factors, num_train=200, num_test=200)


@pytest.mark.parametrize("score", [*SMALL.values(), mutual_information])
def test_masked_codes_and_factors_are_refused(score):
    codes, factors = middling()
    with pytest.raises(TypeError, match="codes is a masked array, and its mask would be ignored"):
        score(np.ma.masked_greater(codes, 1), factors)
    with pytest.raises(TypeError, match="factors is a masked array, and its mask would be ignored"):
        score(codes, np.ma.masked_equal(factors, 1))
    with pytest.raises(TypeError, match="codes must hold real numbers, got complex128"):
        score(codes + 1j, factors)
    with pytest.raises(ValueError, match="is 0 everywhere: leave that column out"):
        score(codes[:1], factors[:1])


def test_scores_of_differences_need_two_of_each():
    codes, factors = middling()
    for score in (mig, sap, dci):
        with pytest.raises(ValueError, match=r"codes must be \[N, D\] with D of 2 or more, got \(60, 1\)"):
            score(codes[:, :1], factors)
    for score in (dci, factor_vae_score, beta_vae_score):
        with pytest.raises(ValueError, match=r"factors must be \[N, F\] with F of 2 or more, got \(60, 1\)"):
            score(codes, factors[:, :1])


@pytest.mark.parametrize(
    ("score", "option"),
    [
        (mutual_information, "bins"),
        (mig, "bins"),
        (mig, "num_points"),
        *((score, size) for score in (sap, dci, beta_vae_score) for size in ("num_train", "num_test")),
        *((factor_vae_score, size) for size in ("num_points", "num_train", "num_test", "batch_size")),
    ],
)
def test_sizes_are_checked(score, option):
    with pytest.raises(ValueError, match=f"{option} must be at least 2, got 1"):
        score(*middling(), **{option: 1})


def test_fixed_points_need_room_for_the_factors():
    with pytest.raises(ValueError, match="latent_dim must be at least the number of factors, 3, got 2"):
        fixed_points(grid(2, 2, 2), latent_dim=2)
    with pytest.raises(ValueError, match="rotations must be at least 1, got 0"):
        fixed_points(grid(2, 2, 2), rotations=0)


@pytest.mark.parametrize("score", [sap, dci, beta_vae_score])
def test_scikit_learn_is_asked_for_by_name(score, monkeypatch):
    for module in ("joblib", "sklearn.svm", "sklearn.linear_model"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"this needs scikit-learn: pip install 'jaxvae\[all\]'"):
        score(*middling())
