"""Closed forms against SciPy, against brute force, and to every printed digit on MNIST."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from scipy import optimize, special, stats

from jaxvae import data
from jaxvae.evaluation import classical

NEEDS_MNIST = pytest.mark.skipif(
    not (Path(os.environ.get("TFDS_DATA_DIR", "/nowhere")) / "mnist").is_dir(),
    reason="needs MNIST prepared for tensorflow-datasets in TFDS_DATA_DIR",
)
N, SHAPE, D, K = 400, (3, 2, 1), 6, 2
SCALES = np.array([3.0, 2.0, 0.7, 0.5, 0.4, 0.3])


def draw_examples(seed, num=N):
    rng = np.random.default_rng(seed)
    mixing, _ = np.linalg.qr(rng.normal(size=(D, D)))
    return (5 + (rng.normal(size=(num, D)) * SCALES) @ mixing).reshape(num, *SHAPE)


DATA = draw_examples(0)
FLAT = DATA.reshape(N, D)
GAUSSIAN = classical.fit_gaussian(DATA)
PPCA = classical.ppca_from_gaussian(GAUSSIAN, K)
EIGENVALUES = GAUSSIAN.eigenvalues
ROTATED = PPCA._replace(weights=PPCA.weights @ np.array([[0.8, -0.6], [0.6, 0.8]]))
every_rotation = pytest.mark.parametrize("ppca", [PPCA, ROTATED], ids=["axis-aligned", "rotated"])


def covariance_of(ppca):
    return ppca.weights @ ppca.weights.T + ppca.noise_variance * np.eye(D)


def scaled_precision_of(ppca):
    return ppca.weights.T @ ppca.weights + ppca.noise_variance * np.eye(K)


# The Gaussian


def test_the_gaussian_is_the_maximum_likelihood_fit_and_its_density_is_scipys():
    covariance = (GAUSSIAN.eigenvectors * EIGENVALUES) @ GAUSSIAN.eigenvectors.T
    np.testing.assert_allclose(covariance, np.cov(FLAT.T, bias=True), atol=1e-13)
    assert (np.diff(EIGENVALUES) < 0).all()
    assert GAUSSIAN.mean.shape == SHAPE
    reference = stats.multivariate_normal(FLAT.mean(0), np.cov(FLAT.T, bias=True)).logpdf(FLAT)
    np.testing.assert_allclose(GAUSSIAN.log_prob(DATA), reference, atol=1e-10)


def test_float32_jax_arrays_are_computed_in_float64():
    narrow = DATA.astype(np.float32)
    on_device = classical.fit_gaussian(jax.numpy.asarray(narrow)).log_prob(jax.numpy.asarray(narrow))
    assert on_device.dtype == np.float64
    np.testing.assert_array_equal(on_device, classical.fit_gaussian(narrow.astype(np.float64)).log_prob(narrow))


def test_gaussian_samples_have_its_mean_and_covariance(key):
    samples = GAUSSIAN.sample(200_000, key=key)
    assert samples.shape == (200_000, *SHAPE)
    assert samples.dtype == np.float64
    flat = samples.reshape(-1, D)
    np.testing.assert_allclose(flat.mean(0), GAUSSIAN.mean.ravel(), atol=5 * 3 / 200_000**0.5)
    expected = np.cov(FLAT.T, bias=True)
    deviations = np.sqrt((expected**2 + np.outer(np.diag(expected), np.diag(expected))) / 200_000)
    assert (np.abs(np.cov(flat.T) - expected) < 5 * deviations).all()


def test_samples_of_leading_components_lie_in_their_span(key):
    centred = GAUSSIAN.sample(1000, key=key, num_components=2).reshape(-1, D) - GAUSSIAN.mean.ravel()
    projected = centred @ GAUSSIAN.eigenvectors
    np.testing.assert_allclose(projected[:, 2:], 0, atol=1e-13)
    np.testing.assert_allclose(projected[:, :2].var(0), EIGENVALUES[:2], rtol=0.2)
    for count in (0, D + 1):
        with pytest.raises(ValueError, match=rf"num_components must lie in 1 \.\. 6, got {count}"):
            GAUSSIAN.sample(1, key=key, num_components=count)


def test_a_singular_covariance_names_its_rank_and_the_way_out():
    flat = np.concatenate([FLAT, FLAT[:, :1], np.ones((N, 1))], axis=1)  # a copy of a pixel and a constant one
    for jitter in (-1e-3, np.nan):
        with pytest.raises(ValueError, match=f"jitter must be a finite number, zero or more, got {jitter}"):
            classical.fit_gaussian(flat, jitter=jitter)
    with pytest.raises(ValueError, match=r"singular, of rank 6 in 8 dimensions: fit_gaussian\(data, jitter=1e-6\)"):
        classical.fit_gaussian(flat).log_prob(flat)
    covariance = np.cov(flat.T, bias=True) + 1e-3 * np.eye(8)
    np.testing.assert_allclose(
        classical.fit_gaussian(flat, jitter=1e-3).log_prob(flat),
        stats.multivariate_normal(flat.mean(0), covariance).logpdf(flat),
        atol=1e-8,
    )
    with pytest.raises(ValueError, match=r"latent_dim must lie in 1 \.\. 5, below the covariance's rank, got 6"):
        classical.fit_ppca(flat, 6)  # it would leave no noise


# Probabilistic PCA


@every_rotation
def test_ppca_density_equals_the_gaussian_of_its_covariance(ppca):
    x = draw_examples(1)
    reference = stats.multivariate_normal(PPCA.mean.ravel(), covariance_of(ppca)).logpdf(x.reshape(N, D))
    np.testing.assert_allclose(ppca.log_prob(x), reference, atol=1e-10)


@every_rotation
def test_ppca_posterior_equals_conditioning_the_joint_gaussian(ppca):
    gain = ppca.weights.T @ np.linalg.inv(covariance_of(ppca))
    mean, covariance = ppca.posterior(DATA)
    np.testing.assert_allclose(mean, (FLAT - ppca.mean.ravel()) @ gain.T, atol=1e-12)
    np.testing.assert_allclose(covariance, np.eye(K) - gain @ ppca.weights, atol=1e-12)
    inverted = scaled_precision_of(ppca) / ppca.noise_variance  # σ⁻²M, the posterior's precision
    assert (np.diag(inverted) > 100 * np.diag(covariance)).all()
    np.testing.assert_allclose(inverted @ covariance, np.eye(K), atol=1e-12)


@pytest.mark.parametrize("latent_dim", [1, 2, 5])
def test_the_training_data_reach_the_closed_form_maximum(latent_dim):
    ppca = classical.fit_ppca(DATA, latent_dim)
    maximum = classical.ppca_max_log_prob(EIGENVALUES, latent_dim)
    np.testing.assert_allclose(ppca.log_prob(DATA).mean(), maximum, atol=1e-12)
    np.testing.assert_allclose(ppca.elbo(DATA).mean(), maximum, atol=1e-12)


def test_no_other_parameters_are_more_likely():
    rng = np.random.default_rng(0)
    best = PPCA.log_prob(DATA).mean()
    for size in np.repeat([1e-3, 1e-2, 0.1, 1.0], 25):
        nearby = PPCA._replace(
            weights=PPCA.weights + size * rng.normal(size=PPCA.weights.shape),
            noise_variance=PPCA.noise_variance * np.exp(size * rng.normal()),
        )
        assert nearby.log_prob(DATA).mean() < best
    for i in (1, 2):  # other eigenvectors are stationary points too, and lower
        others = [0, 1, 2]
        del others[i - 1]
        noise = (EIGENVALUES.sum() - EIGENVALUES[others].sum()) / (D - K)
        weights = GAUSSIAN.eigenvectors[:, others] * np.sqrt(np.maximum(EIGENVALUES[others] - noise, 0))
        assert classical.PPCA(PPCA.mean, weights, noise).log_prob(DATA).mean() < best


def test_the_elbo_equals_log_p_where_the_posterior_is_diagonal():
    x = draw_examples(1)
    np.testing.assert_allclose(PPCA.elbo(x), PPCA.log_prob(x), atol=1e-10)


def test_a_rotation_keeps_log_p_and_costs_the_elbo_exactly_its_correlations():
    x = draw_examples(1)
    m = scaled_precision_of(ROTATED)
    loss = 0.5 * (np.log(np.diag(m)).sum() - np.linalg.slogdet(m).logabsdet)
    assert loss > 0.05
    np.testing.assert_allclose(ROTATED.log_prob(x), PPCA.log_prob(x), atol=1e-10)
    np.testing.assert_allclose(ROTATED.log_prob(x) - ROTATED.elbo(x), loss, atol=1e-10)


def test_no_other_diagonal_encoder_has_a_higher_elbo():
    """The ELBO from SciPy's densities, at the encoder of `elbo` and around it."""
    x = DATA[:5]
    mean, _ = ROTATED.posterior(x)
    log_var = np.log(ROTATED.noise_variance / np.diag(scaled_precision_of(ROTATED)))
    # 3 Gauss-Hermite nodes a dimension are exact for the quadratic log p(x, z).
    nodes, node_weights = np.polynomial.hermite_e.hermegauss(3)
    grid = np.stack(np.meshgrid(nodes, nodes), -1).reshape(-1, K)
    grid_weights = np.outer(node_weights, node_weights).ravel() / node_weights.sum() ** 2

    def elbo(mean, log_var):
        z = mean[:, None] + np.exp(log_var / 2) * grid  # [5, 9, K]
        decoded = ROTATED.mean.ravel() + z @ ROTATED.weights.T
        log_joint = stats.norm.logpdf(x.reshape(5, 1, D), decoded, ROTATED.noise_variance**0.5).sum(-1)
        log_joint += stats.norm.logpdf(z).sum(-1)
        return log_joint @ grid_weights + (0.5 * np.log(2 * np.pi * np.e) + log_var / 2).sum(-1)

    best = ROTATED.elbo(x)
    np.testing.assert_allclose(elbo(mean, log_var), best, atol=1e-10)
    rng = np.random.default_rng(0)
    for size in np.repeat([1e-3, 1e-2, 0.1], 20):
        other = elbo(mean + size * rng.normal(size=mean.shape), log_var + size * rng.normal(size=K))
        assert (other < best).all()


def test_activity_and_rate_of_each_latent_are_known():
    mean, covariance = PPCA.posterior(DATA)
    active = EIGENVALUES[:K]
    np.testing.assert_allclose(mean.var(0), 1 - PPCA.noise_variance / active, atol=1e-12)
    np.testing.assert_allclose(np.diag(covariance), PPCA.noise_variance / active, atol=1e-12)
    variance = np.diag(covariance)
    rate = 0.5 * (np.square(mean).mean(0) + variance - 1 - np.log(variance))
    np.testing.assert_allclose(rate, 0.5 * np.log(active / PPCA.noise_variance), atol=1e-12)


def test_ppca_samples_have_its_covariance(key):
    samples = PPCA.sample(200_000, key=key)
    assert samples.shape == (200_000, *SHAPE)
    expected = covariance_of(PPCA)
    deviations = np.sqrt((expected**2 + np.outer(np.diag(expected), np.diag(expected))) / 200_000)
    assert (np.abs(np.cov(samples.reshape(-1, D).T) - expected) < 5 * deviations).all()
    np.testing.assert_allclose(samples.mean(0), PPCA.mean, atol=5 * 3 / 200_000**0.5)


@pytest.mark.parametrize("latent_dim", [-1, 0, D, D + 1])
def test_a_latent_dim_that_leaves_no_noise_is_refused(latent_dim):
    for fit in (
        lambda: classical.fit_ppca(DATA, latent_dim),
        lambda: classical.ppca_max_log_prob(EIGENVALUES, latent_dim),
    ):
        with pytest.raises(ValueError, match=rf"latent_dim must lie in 1 \.\. 5, .*, got {latent_dim}"):
            fit()


# Posterior collapse: one eigendirection of variance λ seen through decoder weight w, noise σ² fixed


def direction_elbo(w, eigenvalue, noise_variance, beta):
    """E over data of -½[log 2πσ² + E_q(x - wz)²/σ²] - β KL(N(ax, v) || N(0, 1)), with the best a and v."""
    scale = w**2 + beta * noise_variance
    a, v = w / scale, beta * noise_variance / scale
    residual = eigenvalue * (1 - w * a) ** 2 + w**2 * v
    rate = 0.5 * (a**2 * eigenvalue + v - 1 - np.log(v))
    return -0.5 * (np.log(2 * np.pi * noise_variance) + residual / noise_variance) - beta * rate


def test_the_elbo_is_the_sum_over_eigendirections():
    weights = np.r_[np.linalg.norm(PPCA.weights, axis=0), np.zeros(D - K)]
    parts = [direction_elbo(w, e, PPCA.noise_variance, 1.0) for w, e in zip(weights, EIGENVALUES, strict=True)]
    np.testing.assert_allclose(sum(parts), PPCA.elbo(DATA).mean(), atol=1e-12)


@pytest.mark.parametrize("beta", [1.0, 4.0])
@pytest.mark.parametrize("ratio", [0.25, 0.9, 0.99, 1.01, 1.1, 5.0])
def test_a_latent_survives_only_above_beta_times_the_noise(beta, ratio):
    noise_variance = 0.3
    threshold = beta * noise_variance
    eigenvalue = ratio * threshold
    found = optimize.minimize_scalar(
        lambda w: -direction_elbo(w, eigenvalue, noise_variance, beta),
        bounds=(0, 3 * eigenvalue**0.5),
        method="bounded",
        options={"xatol": 1e-8},
    )
    np.testing.assert_allclose(found.x**2, max(eigenvalue - threshold, 0), atol=1e-5)
    gain = -found.fun - direction_elbo(0, eigenvalue, noise_variance, beta)
    expected = 0.5 * beta * (ratio - 1 - np.log(ratio)) if ratio > 1 else 0
    np.testing.assert_allclose(gain, expected, atol=1e-9)


# The mixture

CENTRES = np.array([[0, 0, 0, 0, 0, 0], [9, 0, 0, 9, 0, 0], [0, 9, 0, 0, 0, 9]], float)


def clusters(num=3000):
    component = np.random.default_rng(5).choice(3, num, p=[0.5, 0.3, 0.2])
    x = CENTRES[component] + np.random.default_rng(6).normal(size=(num, D)) * SCALES**0.5
    return component, x.reshape(num, *SHAPE)


@pytest.mark.parametrize("covariance_type", ["full", "diag"])
def test_a_mixture_recovers_separate_clusters_and_its_density_is_scipys(covariance_type, key):
    component, x = clusters()
    mixture = classical.fit_gaussian_mixture(x, 3, seed=0, covariance_type=covariance_type)
    assert mixture.means.shape == (3, *SHAPE)
    order = [np.linalg.norm(mixture.means.reshape(3, D) - c, axis=1).argmin() for c in CENTRES]
    assert sorted(order) == [0, 1, 2]
    np.testing.assert_allclose(mixture.means.reshape(3, D)[order], CENTRES, atol=0.3)
    np.testing.assert_allclose(mixture.weights[order], [0.5, 0.3, 0.2], atol=0.03)

    full = [c if c.ndim == 2 else np.diag(c) for c in mixture.covariances]
    log_joint = np.stack(
        [
            np.log(w) + stats.multivariate_normal(m.ravel(), c).logpdf(x.reshape(-1, D))
            for w, m, c in zip(mixture.weights, mixture.means, full, strict=True)
        ],
        axis=1,
    )
    np.testing.assert_allclose(mixture.log_prob(x), special.logsumexp(log_joint, axis=1), atol=1e-10)
    responsibilities = mixture.responsibilities(x)
    np.testing.assert_allclose(responsibilities, special.softmax(log_joint, axis=1), atol=1e-12)
    np.testing.assert_allclose(responsibilities.sum(1), 1, atol=1e-14)
    assert (np.array(order)[component] == responsibilities.argmax(1)).mean() > 0.99

    samples = mixture.sample(200_000, key=key).reshape(-1, D)
    mean = mixture.weights @ mixture.means.reshape(3, D)
    spread = mixture.means.reshape(3, D) - mean
    covariance = np.einsum("k,kij->ij", mixture.weights, np.stack(full)) + (spread.T * mixture.weights) @ spread
    np.testing.assert_allclose(samples.mean(0), mean, atol=5 * np.sqrt(covariance.max() / 200_000))
    np.testing.assert_allclose(np.cov(samples.T), covariance, atol=0.15)


def test_a_mixture_far_from_the_data_does_not_underflow():
    mixture = classical.fit_gaussian_mixture(clusters()[1], 3, seed=0)
    far = np.full((1, *SHAPE), 1e3)
    assert -1e9 < mixture.log_prob(far)[0] < -1e5
    np.testing.assert_allclose(mixture.responsibilities(far).sum(1), 1)


def test_a_mixture_of_one_is_the_gaussian():
    mixture = classical.fit_gaussian_mixture(DATA, 1, seed=0, jitter=1e-3)
    gaussian = classical.fit_gaussian(DATA, jitter=1e-3)
    np.testing.assert_allclose(mixture.log_prob(DATA), gaussian.log_prob(DATA), atol=1e-10)
    np.testing.assert_array_equal(mixture.responsibilities(DATA), np.ones((N, 1)))


def test_a_mixture_needs_scikit_learn_and_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(ImportError, match=r"pip install 'jaxvae\[all\]'"):
        classical.fit_gaussian_mixture(DATA, 2, seed=0)
    for count in (0, N + 1):
        with pytest.raises(ValueError, match=rf"num_components must lie in 1 \.\. 400, the examples, got {count}"):
            classical.fit_gaussian_mixture(DATA, count, seed=0)


# Independent pixels


def test_independent_pixels_cost_their_expected_surprise_under_binarisation():
    rng = np.random.default_rng(0)
    train = rng.random((50, *SHAPE)) * np.linspace(0, 1, D).reshape(SHAPE)  # the first pixel is always 0
    test = rng.random((7, *SHAPE))
    p = np.clip(train.mean(0), 0.001, 0.999)
    assert p.min() == 0.001
    expected = -(test * stats.bernoulli.logpmf(1, p) + (1 - test) * stats.bernoulli.logpmf(0, p))
    np.testing.assert_allclose(classical.independent_bernoulli_nll(train, test), expected.reshape(7, -1).sum(1))
    train_label, test_label = np.arange(50) % 3, np.array([0, 1, 2, 2, 1, 0, 0])
    by_class = classical.class_bernoulli_nll(train, train_label, test, test_label)
    for i, label in enumerate(test_label):
        one = classical.independent_bernoulli_nll(train[train_label == label], test[i : i + 1])
        np.testing.assert_allclose(by_class[i], one[0], rtol=1e-12)
    with pytest.raises(ValueError, match="test_label has 2, which train_label lacks"):
        classical.class_bernoulli_nll(train, train_label % 2, test, test_label)


def test_the_entropy_of_binarisation():
    grey = np.random.default_rng(0).random((4, *SHAPE))
    np.testing.assert_allclose(
        classical.binarization_entropy(grey), stats.bernoulli.entropy(grey).reshape(4, -1).sum(1), rtol=1e-12
    )
    np.testing.assert_array_equal(classical.binarization_entropy(grey.round()), np.zeros(4))


def test_pixels_outside_the_unit_interval_are_refused():
    images = np.full((2, *SHAPE), 128, np.uint8)
    with pytest.raises(ValueError, match=r"train must hold pixels in \[0, 1\], got 128 to 128; divide 8-bit pixels"):
        classical.independent_bernoulli_nll(images, images / 255)
    with pytest.raises(ValueError, match=r"test must hold pixels in \[0, 1\], got nan to nan"):
        classical.independent_bernoulli_nll(images / 255, images * np.nan)
    with pytest.raises(ValueError, match=r"x must hold pixels in \[0, 1\], got -1 to -1"):
        classical.binarization_entropy(-np.ones((2, *SHAPE)))


# What users get wrong


@pytest.mark.parametrize(
    "model",
    [GAUSSIAN, PPCA, classical.GaussianMixture(np.ones(1), np.zeros((1, *SHAPE)), np.ones((1, D)))],
    ids=["gaussian", "ppca", "mixture"],
)
def test_another_shape_and_an_old_key_are_refused(model, key):
    with pytest.raises(ValueError, match=r"expected examples of shape \(3, 2, 1\), got \(6,\) in \(400, 6\)"):
        model.log_prob(FLAT)
    with pytest.raises(TypeError, match=r"key must come from jax\.random\.key, got uint32\[2\]"):
        model.sample(3, key=jax.random.PRNGKey(0))
    np.testing.assert_array_equal(model.sample(3, key=key), model.sample(3, key=key))
    assert (model.sample(3, key=key) != model.sample(3, key=jax.random.key(1))).all()
    with jax.debug_key_reuse(True):  # it raises where one key serves two draws
        model.sample(3, key=jax.random.key(2))


def test_data_that_cannot_be_fitted_are_refused():
    with pytest.raises(ValueError, match=r"got \(0, 3, 2, 1\) with 0 values not finite"):
        classical.fit_gaussian(DATA[:0])
    broken = DATA.copy()
    broken[3, 0] = np.nan
    with pytest.raises(ValueError, match=r"got \(400, 3, 2, 1\) with 2 values not finite"):
        classical.fit_gaussian(broken)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int64])
def test_labels_of_any_integer_type_are_the_same(dtype):
    rng = np.random.default_rng(0)
    train, test = rng.random((200, *SHAPE)), rng.random((60, *SHAPE))
    train_label, test_label = np.arange(200) % 100, np.arange(60) % 100
    expected = classical.class_bernoulli_nll(train, train_label, test, test_label)
    narrow = classical.class_bernoulli_nll(train, train_label.astype(dtype), test, jax.numpy.asarray(test_label))
    np.testing.assert_array_equal(narrow, expected)


def test_labels_that_are_none_are_refused():
    x, label = np.full((4, *SHAPE), 0.5), np.arange(4)
    for wrong, error, message in (
        (label / 2, TypeError, "train_label must be integers, got float64"),
        (label[:, None], ValueError, r"train_label must be \[4\], one for each example, got \(4, 1\)"),
        (label[:3], ValueError, r"train_label must be \[4\], one for each example, got \(3,\)"),
        (np.ma.masked_equal(label, 2), TypeError, "train_label is a masked array, and its mask would be ignored"),
    ):
        with pytest.raises(error, match=message):
            classical.class_bernoulli_nll(x, wrong, x, label)
        with pytest.raises(error, match=message.replace("train", "test")):
            classical.class_bernoulli_nll(x, label, x, wrong)


def test_masked_and_empty_data_are_refused(key):
    x = np.full((4, *SHAPE), 0.5)
    hidden = np.ma.masked_array(x, mask=np.zeros_like(x, bool))
    for fit in (
        lambda: classical.fit_gaussian(hidden),
        lambda: classical.fit_gaussian_mixture(list(hidden), 1, seed=0),
        lambda: classical.independent_bernoulli_nll(hidden, x),
        lambda: classical.independent_bernoulli_nll(x, hidden),
        lambda: classical.binarization_entropy(hidden),
        lambda: PPCA.log_prob(hidden),
    ):
        with pytest.raises(TypeError, match="is a masked array, and its mask would be ignored"):
            fit()
    for empty, name in (((x[:0], x), "train"), ((x, x[:0]), "test")):
        with pytest.raises(ValueError, match=rf"{name} must be \[N, \.\.\.\] and not empty, got \(0, 3, 2, 1\)"):
            classical.independent_bernoulli_nll(*empty)
    with pytest.raises(ValueError, match="num must be at least 1, got 0"):
        PPCA.sample(0, key=key)


def test_one_example_is_its_own_mean():
    x = np.random.default_rng(0).random((1, *SHAPE))
    np.testing.assert_array_equal(classical.fit_gaussian(x).mean, x[0])
    with pytest.raises(ValueError, match="singular, of rank 0 in 6 dimensions"):
        classical.fit_gaussian(x).log_prob(x)
    entropy = stats.bernoulli.entropy(np.clip(x, 0.001, 0.999)).sum()
    np.testing.assert_allclose(classical.independent_bernoulli_nll(x, x), [entropy], rtol=2e-3)


# MNIST


@pytest.fixture(scope="module")
def mnist():
    train, test = data.load("mnist", "train"), data.load("mnist", "test")
    return SimpleNamespace(train=train.x / 255.0, test=test.x / 255.0, train_label=train.label, test_label=test.label)


@pytest.fixture(scope="module")
def gaussian(mnist):
    return classical.fit_gaussian(mnist.train)


@pytest.mark.slow  # a fit in float64, of a gigabyte; the small ones above agree with SciPy
@NEEDS_MNIST
@pytest.mark.parametrize(
    ("latent_dim", "noise_variance", "train", "test"),
    [(2, "0.05609580", "12.4277", "14.3601"), (10, "0.03486734", "182.1547", "186.0241"),
     (50, "0.01259605", "507.9054", "517.6033")],
)  # fmt: skip
def test_ppca_of_mnist_to_every_printed_digit(latent_dim, noise_variance, train, test, mnist, gaussian):
    ppca = classical.ppca_from_gaussian(gaussian, latent_dim)
    assert f"{ppca.noise_variance:.8f}" == noise_variance
    assert f"{classical.ppca_max_log_prob(gaussian.eigenvalues, latent_dim):.4f}" == train
    assert f"{ppca.log_prob(mnist.train).mean():.4f}" == train
    assert f"{ppca.log_prob(mnist.test).mean():.4f}" == test
    np.testing.assert_allclose(ppca.elbo(mnist.test), ppca.log_prob(mnist.test), atol=1e-9)


@pytest.mark.slow
@NEEDS_MNIST
def test_the_gaussian_of_mnist_is_singular(mnist, gaussian):
    assert (mnist.train.reshape(60_000, -1).max(0) > 0).sum() == 717  # five of them follow the others
    with pytest.raises(ValueError, match=r"rank 712 in 784 dimensions"):
        gaussian.log_prob(mnist.test)


@pytest.mark.slow
@NEEDS_MNIST
def test_bernoulli_baselines_of_mnist(mnist):
    assert f"{classical.independent_bernoulli_nll(mnist.train, mnist.test).mean():.2f}" == "205.97"
    by_class = classical.class_bernoulli_nll(mnist.train, mnist.train_label, mnist.test, mnist.test_label)
    assert f"{by_class.mean():.2f}" == "171.86"
    assert f"{classical.binarization_entropy(mnist.test).mean():.2f}" == "45.53"
