"""Collapse, holes and blur against closed forms, quadrature and examples worked by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, ndimage, stats

from jaxvae import losses
from jaxvae.evaluation import diagnostics
from jaxvae.evaluation.diagnostics import (
    active_latents,
    active_units,
    aggregate_posterior,
    kl_per_dimension,
    sharpness_ratio,
)


def gaussian_kl(mean, std):
    """KL(N(mean, std²) || N(0, 1)) from the cross-entropy and the entropy."""
    return 0.5 * (np.log(2 * np.pi) + mean**2 + std**2) - 0.5 * np.log(2 * np.pi * np.e * std**2)


def posteriors(num, dim, seed=0):
    """Means and log-variances of every kind, from narrow to wider than the prior."""
    rng = np.random.default_rng(seed)
    return 1.2 * rng.normal(size=(num, dim)), rng.normal(-1.5, 0.8, size=(num, dim))


def matched(num, covariance, std, seed=0):
    """Posteriors N(m, std² I) whose aggregate tends to N(0, covariance) as their number grows."""
    dim = len(covariance)
    means = np.random.default_rng(seed).multivariate_normal(np.zeros(dim), covariance - std**2 * np.eye(dim), num)
    return means, np.full((num, dim), 2 * np.log(std))


def test_active_units_are_those_whose_mean_moves():
    codes = np.random.default_rng(0).normal(size=(1000, 4)) * [1.0, 0.2, 0.05, 0.0] + 7.0
    assert active_units(codes) == 2
    assert active_units(codes, threshold=1e-4) == 3
    order = [3, 1, 0, 2]
    np.testing.assert_array_equal(active_latents(codes[:, order]), [False, True, True, False])
    assert active_units(jnp.float32(codes)) == 2
    # Their variance divides by N, and equal to the threshold is not active.
    assert active_latents([[0.0, 0.0], [1.0, 2.0]], threshold=0.25).tolist() == [False, True]


def test_a_wide_posterior_is_not_active_and_a_moving_mean_is():
    """KL is no measure of activity: the posterior below has .16 nats at every x, and says nothing of it."""
    codes, log_var = np.zeros((100, 2)), np.full((100, 2), 0.0)
    log_var[:, 0], codes[:, 1] = 0.7, np.linspace(-0.2, 0.2, 100)
    kl = kl_per_dimension(codes, log_var)
    assert kl[0] > 0.1
    assert kl[1] < 0.01
    assert active_latents(codes).tolist() == [False, True]
    assert active_units(codes) == 1


def test_codes_without_a_variance_are_refused():
    codes = np.random.default_rng(0).normal(size=(5, 3))
    for wrong in (codes[:, 0], codes[:1], codes[:0], codes[:, :0], codes[None], codes[0, 0]):
        with pytest.raises(ValueError, match=r"codes must be \[N, D\] with N of 2 or more, got \("):
            active_units(wrong)
    with pytest.raises(TypeError, match="codes is a masked array"):
        active_units(np.ma.masked_greater(codes, 0))
    for threshold in (np.nan, -1.0):
        with pytest.raises(ValueError, match=f"threshold must be a variance, zero or more, got {threshold}"):
            active_latents(codes, threshold=threshold)
    codes[2, 1] = np.inf
    with pytest.raises(ValueError, match="codes must be finite: example 2 has inf"):
        active_latents(codes)


def test_kl_per_dimension_is_the_mean_of_the_definition():
    mean, log_var = posteriors(40, 3)
    kl = kl_per_dimension(mean, log_var)
    np.testing.assert_allclose(kl, gaussian_kl(mean, np.exp(0.5 * log_var)).mean(axis=0), rtol=1e-12)
    rate = losses.gaussian_kl(jnp.float32(mean), jnp.float32(log_var)).mean()
    assert kl.sum() == pytest.approx(float(rate), rel=1e-6)
    np.testing.assert_allclose(kl_per_dimension(jnp.float32(mean), jnp.float32(log_var)), kl, rtol=1e-6)
    np.testing.assert_allclose(kl_per_dimension(np.tile(mean, (2, 1)), np.tile(log_var, (2, 1))), kl, rtol=1e-12)


def test_kl_per_dimension_keeps_its_digits_near_the_prior():
    log_var = np.array([[1e-9, -1e-9]])
    np.testing.assert_allclose(kl_per_dimension(np.zeros((1, 2)), log_var), 0.25e-18, rtol=0.1)


def test_a_kl_beyond_float64_is_named(key):
    mean, log_var = np.zeros((4, 3)), np.zeros((4, 3))
    log_var[1, 2] = 700.0
    assert kl_per_dimension(mean, log_var)[2] == pytest.approx(np.exp(700.0) / 8, rel=1e-12)
    log_var[1, 2] = 720.0
    for wrong in ((mean, log_var), (1e200 * (log_var > 0), 0 * log_var)):
        with pytest.raises(ValueError, match="the KL of latent z3 is too large for float64: its log_var reaches"):
            kl_per_dimension(*wrong)
        with pytest.raises(ValueError, match="the KL of latent z3 is too large for float64: its log_var reaches"):
            aggregate_posterior(*wrong, key=key, num_samples=10)
    assert kl_per_dimension(mean, -1e4 * (log_var > 0))[2] == pytest.approx((1e4 - 1) / 8)


def test_one_example_says_nothing_about_itself(key):
    mean, log_var = np.array([[0.5, -1.0]]), np.array([[-2.0, 0.3]])
    result = aggregate_posterior(mean, log_var, key=key, num_samples=9)
    assert result.mutual_information == pytest.approx(0, abs=1e-12)
    assert result.kl == pytest.approx(gaussian_kl(mean, np.exp(0.5 * log_var)).sum(), rel=1e-12)


@pytest.mark.slow
def test_the_order_of_the_examples_is_not_read_as_a_sample_of_them(key):
    """Every other example says nothing; half as many draws as examples would take one kind alone."""
    mean = np.where(np.arange(600) % 2 == 0, 0.0, 30.0 * np.arange(600))[:, None]
    log_var = np.full((600, 1), -2.0)
    shuffled = np.random.default_rng(0).permutation(600)
    exact = 0.5 * np.log(2) + 0.5 * np.log(600)  # of a half of one kind, and of 300 that are all apart
    for num_samples in (300, 400, 900, 1500):
        for rows in (slice(None), shuffled):
            result = aggregate_posterior(mean[rows], log_var[rows], key=key, num_samples=num_samples)
            assert result.mutual_information == pytest.approx(exact, abs=4 * result.standard_error)
    few = [aggregate_posterior(mean, log_var, key=jax.random.key(i), num_samples=300) for i in range(2)]
    assert few[0].mutual_information != pytest.approx(few[1].mutual_information, abs=1e-3)  # other examples, not noise


def test_every_example_gives_an_equal_number_of_draws_or_one_more(key, monkeypatch):
    taken = []

    def record(latent, mean, std):
        taken.append(np.rint(latent[:, 0]).astype(int))
        return np.zeros(len(latent))

    monkeypatch.setattr(diagnostics, "_log_mixture", record)
    mean, log_var = np.arange(7.0)[:, None], np.full((7, 1), -60.0)
    for num_samples in (3, 7, 14, 17):
        aggregate_posterior(mean, log_var, key=key, num_samples=num_samples)
        counts = np.bincount(taken[-1], minlength=7)
        assert counts.sum() == num_samples
        assert np.ptp(counts) == (num_samples % 7 > 0)
        assert (np.diff(taken[-1]) >= 0).all()


def test_the_standard_error_divides_by_one_less_than_the_draws(key):
    """Two examples alike and one far off: the draws say log 3/2, log 3/2 and log 3, whatever the noise."""
    mean, log_var = np.array([[0.0], [0.0], [900.0]]), np.zeros((3, 1))
    result = aggregate_posterior(mean, log_var, key=key, num_samples=3)
    information = np.log([1.5, 1.5, 3.0])
    assert result.mutual_information == pytest.approx(information.mean(), rel=1e-9)
    assert result.standard_error == pytest.approx(information.std(ddof=1) / np.sqrt(3), rel=1e-9)


def test_the_noise_and_the_choice_of_examples_have_keys_of_their_own():
    mean, log_var = posteriors(7, 2)
    with jax.debug_key_reuse(True):  # it raises where one key serves two draws
        result = aggregate_posterior(mean, log_var, key=jax.random.key(2), num_samples=10)
    assert np.isfinite(result.kl)
    narrow = aggregate_posterior(mean, log_var, key=jax.random.key(2), num_samples=np.uint8(200))
    assert narrow.kl == aggregate_posterior(mean, log_var, key=jax.random.key(2), num_samples=200).kl


def test_posteriors_at_the_prior_leave_no_hole(key):
    result = aggregate_posterior(np.zeros((30, 4)), np.zeros((30, 4)), key=key, num_samples=100)
    np.testing.assert_allclose(result[:3], 0, atol=1e-12)
    np.testing.assert_allclose(result.marginal_kl, np.zeros(4), atol=1e-12)


def test_posteriors_that_are_all_alike_carry_nothing(key):
    mean, std = np.array([0.7, -2.0, 0.0]), np.array([0.3, 1.0, 2.0])
    result = aggregate_posterior(np.tile(mean, (50, 1)), np.tile(2 * np.log(std), (50, 1)), key=key, num_samples=70)
    assert result.kl == pytest.approx(gaussian_kl(mean, std).sum(), rel=1e-12)
    np.testing.assert_allclose([result.mutual_information, result.standard_error], 0, atol=1e-12)
    np.testing.assert_allclose(result.marginal_kl, gaussian_kl(mean, std), rtol=1e-9)


@pytest.mark.parametrize("log_var", [-4.0, -9.0, -20.0, -60.0])
def test_posteriors_far_apart_name_their_example(key, log_var):
    mean = np.stack([3.0 * np.arange(25), 3.0 * np.ones(25)], axis=1)
    result = aggregate_posterior(mean, np.full((25, 2), log_var), key=key, num_samples=200)
    assert result.mutual_information == pytest.approx(np.log(25), abs=1e-6)
    rate = gaussian_kl(mean, np.exp(0.5 * log_var)).mean(axis=0)
    assert result.kl == pytest.approx(rate.sum() - np.log(25), rel=1e-8)
    if log_var > -5:  # narrower ones are below the resolution of the marginals
        np.testing.assert_allclose(result.marginal_kl, rate - [np.log(25), 0], rtol=1e-9)


@pytest.mark.slow
def test_posteriors_that_fill_the_prior_leave_no_hole(key):
    num, std = 5000, np.sqrt(0.5)
    mean, log_var = matched(num, np.eye(2), std)
    result = aggregate_posterior(mean, log_var, key=key, num_samples=20_000)
    bias = (std**-4 - 1) / num  # E KL(q_N(z) || q(z)) <= chi²(q(z|x) || q(z)) / N, here in closed form
    assert -4 * result.standard_error < result.kl < 4 * result.standard_error + 3 * bias
    assert 0 < result.standard_error < 0.01
    np.testing.assert_allclose(result.marginal_kl, 0, atol=3 * (std**-2 - 1) / num)
    rate_error = 0.5 * np.sqrt(2 * 2 / num) * (1 - std**2)  # of the mean of |m|² / 2
    information = np.log(1 / std)  # of one dimension
    assert result.mutual_information == pytest.approx(2 * information, abs=4 * (result.standard_error + rate_error))


def test_a_hole_that_no_histogram_shows(key):
    """Correlated codes: every marginal is the prior's, the joint is not."""
    num, std = 8000, np.sqrt(0.1)
    mean, log_var = matched(num, np.array([[1.0, 0.8], [0.8, 1.0]]), std)
    result = aggregate_posterior(mean, log_var, key=key)
    assert result.kl == pytest.approx(-0.5 * np.log(1 - 0.8**2), abs=4 * result.standard_error + 36 * 3 / num)
    assert result.marginal_kl.max() < 0.005


def test_the_number_of_examples_bounds_the_information(key):
    """The same matched codes in many dimensions: log N is all that N examples can show."""
    mean, log_var = matched(200, np.eye(20), np.sqrt(0.05))
    result = aggregate_posterior(mean, log_var, key=key, num_samples=400)
    rate = kl_per_dimension(mean, log_var).sum()
    assert rate > 25
    assert result.mutual_information == pytest.approx(np.log(200), abs=1e-3)
    assert result.mutual_information < np.log(200) + 1e-9
    assert result.kl == pytest.approx(rate - result.mutual_information, rel=1e-12)
    assert result.marginal_kl.max() < 0.1


def test_the_joint_equals_quadrature_in_two_dimensions():
    mean, log_var = posteriors(12, 2)
    line = np.arange(-12, 12, 0.04)
    first, second = (stats.norm.pdf(line, mean[:, j, None], np.exp(0.5 * log_var[:, j, None])) for j in (0, 1))
    density = np.einsum("na,nb->ab", first, second) / len(mean)
    log_prior = stats.norm.logpdf(line)[:, None] + stats.norm.logpdf(line)
    exact = 0.04**2 * (density * (np.log(density) - log_prior)).sum()
    results = [aggregate_posterior(mean, log_var, key=jax.random.key(i), num_samples=2000) for i in range(20)]
    kl = np.array([r.kl for r in results])
    assert np.abs(kl - exact).max() < 4 * results[0].standard_error
    spread = kl.std(ddof=1)
    assert kl.mean() == pytest.approx(exact, abs=4 * spread / np.sqrt(20))
    assert 0.3 < spread / results[0].standard_error < 1.2  # the draws are stratified: not above what is claimed
    assert results[0].standard_error < 0.03


def test_the_marginals_equal_quadrature():
    mean, log_var = posteriors(6, 3, seed=3)
    result = aggregate_posterior(mean, log_var, key=jax.random.key(0), num_samples=10)
    for j in range(3):

        def integrand(z, j=j):
            density = stats.norm.pdf(z, mean[:, j], np.exp(0.5 * log_var[:, j])).mean()
            return density * (np.log(density) - stats.norm.logpdf(z))

        exact, _ = integrate.quad(integrand, -12, 12, points=np.sort(mean[:, j]), limit=500, epsabs=1e-11)
        assert result.marginal_kl[j] == pytest.approx(exact, abs=1e-6)


def test_the_size_of_the_tables_changes_nothing(key, monkeypatch):
    mean, log_var = posteriors(150, 3)
    whole = aggregate_posterior(mean, log_var, key=key, num_samples=333)
    for entries in (1, 150 * 7, 150 * 50):
        monkeypatch.setattr(diagnostics, "TABLE", entries)
        part = aggregate_posterior(mean, log_var, key=key, num_samples=333)
        np.testing.assert_allclose(part[:3], whole[:3], rtol=1e-11)
        np.testing.assert_allclose(part.marginal_kl, whole.marginal_kl, rtol=1e-11)


def test_the_draws_come_from_the_key_and_from_every_example(key):
    mean, log_var = posteriors(40, 2)
    first = aggregate_posterior(mean, log_var, key=key, num_samples=80)
    assert aggregate_posterior(mean, log_var, key=key, num_samples=80).kl == first.kl
    assert aggregate_posterior(mean, log_var, key=jax.random.key(1), num_samples=80).kl != first.kl
    # Sorted data, fewer draws than examples: half of the draws must still come from each half.
    mean = np.repeat([[0.0], [50.0]], [500, 500], axis=0)
    log_var = np.repeat([[0.0], [-60.0]], [500, 500], axis=0)
    few = aggregate_posterior(mean, log_var, key=key, num_samples=100)
    assert few.mutual_information == pytest.approx(np.log(2), abs=1e-6)
    with pytest.raises(TypeError, match=r"key must come from jax.random.key, got uint32\[2\]"):
        aggregate_posterior(mean, log_var, key=jax.random.PRNGKey(0))


def test_wrong_posteriors_are_named(key):
    right = np.zeros((5, 2))
    for mean, log_var in ((right[0], right[0]), (right, right[:4]), (right, np.zeros(())), (right[:0], right[:0])):
        with pytest.raises(ValueError, match=r"mean and log_var must both be \[N, D\], got \("):
            kl_per_dimension(mean, log_var)
        with pytest.raises(ValueError, match=r"mean and log_var must both be \[N, D\], got \("):
            aggregate_posterior(mean, log_var, key=key)
    wrong = right.copy()
    wrong[3, 1] = np.nan
    with pytest.raises(ValueError, match="log_var must be finite: example 3 has nan"):
        kl_per_dimension(right, wrong)
    with pytest.raises(ValueError, match="mean must be finite: example 3 has nan"):
        aggregate_posterior(wrong, right, key=key)
    with pytest.raises(ValueError, match="num_samples must be at least 2, got 1"):
        aggregate_posterior(right, right, key=key, num_samples=1)


IMAGES = np.random.default_rng(0).random((6, 12, 10, 3))


def test_sharpness_by_hand():
    image, reconstruction = np.zeros((2, 1, 4, 4, 1))
    image[0, 1, 1] = 1  # the Laplacian inside: -4, 1, 1, 0
    reconstruction[0, 0, 1] = 1  # 1, 0, 0, 0
    variances = 18 / 4 - (2 / 4) ** 2, 1 / 4 - (1 / 4) ** 2
    assert sharpness_ratio(image, reconstruction) == pytest.approx(variances[1] / variances[0], rel=1e-12)


def test_sharpness_scales_with_the_contrast_and_ignores_brightness():
    assert sharpness_ratio(IMAGES, IMAGES) == 1
    assert sharpness_ratio(IMAGES, 0.3 * IMAGES + 0.5) == pytest.approx(0.09, rel=1e-12)
    assert sharpness_ratio(IMAGES + 7.0, IMAGES) == pytest.approx(1, rel=1e-12)
    assert sharpness_ratio(IMAGES, np.full_like(IMAGES, 0.1)) == 0
    twice = np.concatenate([IMAGES, IMAGES])
    assert sharpness_ratio(IMAGES, twice) == pytest.approx(1, rel=1e-12)
    np.testing.assert_allclose(sharpness_ratio(jnp.float32(IMAGES), jnp.float32(0.5 * IMAGES)), 0.25, rtol=1e-6)


def test_sharpness_is_the_ratio_of_the_means_over_images_and_channels():
    expected = [
        np.mean([ndimage.laplace(x[..., c])[1:-1, 1:-1].var() for x in each for c in range(3)])
        for each in (IMAGES[:2], IMAGES[2:])
    ]
    assert sharpness_ratio(IMAGES[:2], IMAGES[2:]) == pytest.approx(expected[1] / expected[0], rel=1e-12)


def test_blur_lowers_the_sharpness_and_noise_raises_it():
    ratios = [
        sharpness_ratio(IMAGES, ndimage.gaussian_filter(IMAGES, (0, width, width, 0))) for width in (0.3, 0.6, 1, 2)
    ]
    assert 1 > ratios[0] > ratios[1] > ratios[2] > ratios[3] > 0
    assert ratios[3] < 0.01
    assert sharpness_ratio(IMAGES, IMAGES + 0.2 * np.random.default_rng(1).normal(size=IMAGES.shape)) > 1.2


def test_images_without_a_sharpness_are_refused():
    for wrong in (IMAGES[0], IMAGES[:, :3], IMAGES[:, :, :3], IMAGES[:0]):
        with pytest.raises(ValueError, match=r"^images must be \[N, H, W, C\] with H and W of 4 or more, got \("):
            sharpness_ratio(wrong, IMAGES)
        with pytest.raises(ValueError, match=r"^reconstructions must be \[N, H, W, C\] with H and W"):
            sharpness_ratio(IMAGES, wrong)
    with pytest.raises(ValueError, match=r"same H, W and C, got \(6, 12, 10, 3\) and \(6, 12, 10, 1\)"):
        sharpness_ratio(IMAGES, IMAGES[..., :1])
    with pytest.raises(ValueError, match="images must have edges"):
        sharpness_ratio(np.full_like(IMAGES, 0.1), IMAGES)
    with pytest.raises(TypeError, match="images must be floating, got uint8"):
        sharpness_ratio((255 * IMAGES).astype(np.uint8), IMAGES)
    for wrong, message in ((np.nan, "has nan"), (np.inf, "has inf")):
        broken = IMAGES.copy()
        broken[2, 1, 1, 0] = wrong
        with pytest.raises(ValueError, match=f"reconstructions must be finite: example 2 {message}"):
            sharpness_ratio(IMAGES, broken)
    with pytest.raises(TypeError, match="reconstructions is a masked array"):
        sharpness_ratio(IMAGES, np.ma.masked_greater(IMAGES, 0.5))
    with pytest.raises(TypeError, match="images must be floating, got complex128"):
        sharpness_ratio(IMAGES + 0j, IMAGES)
    assert sharpness_ratio(IMAGES[:1], IMAGES[:1]) == 1
    assert sharpness_ratio(jnp.asarray(IMAGES, jnp.bfloat16), IMAGES) == pytest.approx(1, abs=0.01)
