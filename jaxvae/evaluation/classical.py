"""Classical latent-variable models in closed form: oracles that a trained model must meet, baselines it must beat.

Everything is float64 NumPy on the host, whatever JAX computes in. Examples are `[N, ...]`, flattened to `[N, d]` for
the algebra; means and samples come back in the shape of an example, and every method raises `ValueError` for examples
of another shape, and `TypeError` for masked arrays and for keys that are not typed. Densities are in nats and depend
on the scale of the data: figures for pixels in [0, 1] are not those for pixels in 0 .. 255.
"""

from typing import Literal, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxvae._checks import at_least
from jaxvae._host import host_integers, host_reals
from jaxvae.keys import check_key, noise
from jaxvae.losses import LOG_2PI
from jaxvae.types import PRNGKey


class GaussianModel(NamedTuple):
    """N(mean, U diag(eigenvalues) Uᵀ) with a full covariance.

    Attributes:
      mean: `[...]`, in the shape of an example; d numbers.
      eigenvalues: of the covariance, `[d]`, descending.
      eigenvectors: U, `[d, d]`, one to a column.
    """

    mean: np.ndarray
    eigenvalues: np.ndarray
    eigenvectors: np.ndarray

    def log_prob(self, x: ArrayLike) -> np.ndarray:
        """`[N]` nats.

        Raises:
          ValueError: the covariance is singular.
        """
        dim, rank = len(self.eigenvalues), _rank(self.eigenvalues)
        if rank < dim:
            raise ValueError(
                f"the covariance is singular, of rank {rank} in {dim} dimensions: "
                "fit_gaussian(data, jitter=1e-6) adds 1e-6 to its diagonal"
            )
        projected = _centred(x, self.mean) @ self.eigenvectors
        log_det = np.log(self.eigenvalues).sum()
        return -0.5 * (dim * LOG_2PI + log_det + (np.square(projected) / self.eigenvalues).sum(axis=1))

    def sample(self, num: int, *, key: PRNGKey, num_components: int | None = None) -> np.ndarray:
        r"""Draw mean + Σᵢ uᵢ √λᵢ εᵢ, `[num, ...]`, over the leading `num_components` eigenvectors; all unless given.

        Raises:
          ValueError: `num` is below 1, or `num_components` is not in 1 .. d.
        """
        at_least(1, num=num)
        dim = len(self.eigenvalues)
        count = dim if num_components is None else num_components
        if not 1 <= count <= dim:
            raise ValueError(f"num_components must lie in 1 .. {dim}, got {count}")
        factor = self.eigenvectors[:, :count] * np.sqrt(self.eigenvalues[:count])
        return self.mean + (_normal(key, (num, count)) @ factor.T).reshape(num, *self.mean.shape)


def fit_gaussian(data: ArrayLike, *, jitter: float = 0.0) -> GaussianModel:
    """Fit mean and covariance to `data` `[N, ...]` by maximum likelihood (the covariance divides by N).

    `jitter` is added to the covariance's diagonal. Pixels that never change, or fewer examples than dimensions, make
    it singular: samples and PPCA are none the worse, a density needs the jitter, and depends on it.

    Raises:
      ValueError: `data` is empty or not finite.
    """
    examples = _finite(data)
    mean = examples.mean(axis=0)
    centred = _centred(examples, mean)
    eigenvalues, eigenvectors = np.linalg.eigh(centred.T @ centred / len(centred))
    eigenvalues = np.maximum(eigenvalues, 0) + jitter  # rounding makes some of the zeros negative
    return GaussianModel(mean, eigenvalues[::-1], eigenvectors[:, ::-1])


class PPCA(NamedTuple):
    """Probabilistic PCA: z ~ N(0, I), x | z ~ N(mean + W z, σ² I). A linear VAE is this model.

    Attributes:
      mean: `[...]`, in the shape of an example; d numbers.
      weights: W, `[d, k]`.
      noise_variance: σ².

    References:
      Tipping and Bishop, Probabilistic Principal Component Analysis, 1999. Lucas, Tucker, Grosse and Norouzi, Don't
      Blame the ELBO! A Linear VAE Perspective on Posterior Collapse, 2019.
    """

    mean: np.ndarray
    weights: np.ndarray
    noise_variance: float

    def log_prob(self, x: ArrayLike) -> np.ndarray:
        r"""Exact log p(x), `[N]` nats, in O(N d k): with M = WᵀW + σ²I and c = x - mean,

        .. math:: -\tfrac12 \left[ d \log 2\pi + (d - k) \log \sigma^2 + \log |M|
                  + \frac{c^T c - c^T W M^{-1} W^T c}{\sigma^2} \right]
        """
        dim, latent_dim = self.weights.shape
        centred, precision = _centred(x, self.mean), self._scaled_precision()
        projected = centred @ self.weights
        explained = (projected * np.linalg.solve(precision, projected.T).T).sum(axis=1)
        distance = (_squared_norm(centred) - explained) / self.noise_variance
        log_det = (dim - latent_dim) * np.log(self.noise_variance) + np.linalg.slogdet(precision).logabsdet
        return -0.5 * (dim * LOG_2PI + log_det + distance)

    def posterior(self, x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """p(z | x): its means M⁻¹ Wᵀ (x - mean), `[N, k]`, and its one covariance σ² M⁻¹, `[k, k]`; M = WᵀW + σ²I."""
        inverse = np.linalg.inv(self._scaled_precision())
        return _centred(x, self.mean) @ (self.weights @ inverse), self.noise_variance * inverse

    def elbo(self, x: ArrayLike) -> np.ndarray:
        r"""The ELBO of the best encoder with a diagonal covariance, `[N]` nats.

        It has the posterior's mean and the variances σ² / Mᵢᵢ. The ELBO is log p(x) where WᵀW is diagonal, as
        `fit_ppca` leaves it, and lower by ½ (Σ log Mᵢᵢ - log |M|) for any other W.
        """
        dim = len(self.weights)
        mean, _ = self.posterior(x)
        variance = self.noise_variance / np.diag(self._scaled_precision())
        rate = 0.5 * (variance - 1 - np.log(variance) + np.square(mean)).sum(axis=1)
        residual = _squared_norm(_centred(x, self.mean) - mean @ self.weights.T)
        spread = np.square(self.weights).sum(axis=0) @ variance
        distortion = 0.5 * (dim * (LOG_2PI + np.log(self.noise_variance)) + (residual + spread) / self.noise_variance)
        return -(distortion + rate)

    def sample(self, num: int, *, key: PRNGKey) -> np.ndarray:
        """Draw mean + W z + σ ε, `[num, ...]`; `ValueError` where `num` is below 1."""
        check_key(key)
        at_least(1, num=num)
        latent_key, noise_key = jax.random.split(key)
        dim, latent_dim = self.weights.shape
        samples = _normal(latent_key, (num, latent_dim)) @ self.weights.T
        samples += np.sqrt(self.noise_variance) * _normal(noise_key, (num, dim))
        return self.mean + samples.reshape(num, *self.mean.shape)

    def _scaled_precision(self) -> np.ndarray:
        """M = WᵀW + σ²I, `[k, k]`: σ² times the posterior's precision."""
        return self.weights.T @ self.weights + self.noise_variance * np.eye(self.weights.shape[1])


def fit_ppca(data: ArrayLike, latent_dim: int) -> PPCA:
    """Fit PPCA to `data` `[N, ...]` by maximum likelihood: `ppca_from_gaussian(fit_gaussian(data), latent_dim)`.

    Raises:
      ValueError: `data` is empty or not finite, or `latent_dim` is not below the rank of its covariance.
    """
    return ppca_from_gaussian(fit_gaussian(data), latent_dim)


def ppca_from_gaussian(gaussian: GaussianModel, latent_dim: int) -> PPCA:
    """The maximum-likelihood PPCA of the data that `gaussian` was fitted to: one decomposition serves every k.

    σ² is the mean of the discarded eigenvalues and W = U (Λ - σ²I)^½ over the k leading ones. Any rotation of W is as
    likely; this one makes WᵀW diagonal, so that a diagonal posterior is exact.

    Raises:
      ValueError: `latent_dim` is not in 1 .. r - 1, with r the covariance's rank (d where it is not singular).

    References:
      Tipping and Bishop, Probabilistic Principal Component Analysis, 1999, section 3.2.
    """
    noise_variance = _discarded_variance(gaussian.eigenvalues, latent_dim)
    scale = np.sqrt(gaussian.eigenvalues[:latent_dim] - noise_variance)
    return PPCA(gaussian.mean, gaussian.eigenvectors[:, :latent_dim] * scale, noise_variance)


def ppca_max_log_prob(eigenvalues: np.ndarray, latent_dim: int) -> float:
    r"""The mean of log p(x) over the training data at PPCA's maximum, which no linear VAE's ELBO exceeds; nats.

    .. math:: -\tfrac12 \left[ \sum_{i \le k} \log \lambda_i + (d - k) \log \sigma^2 + d \log 2\pi + d \right]

    Args:
      eigenvalues: λ, of the training data's covariance, `[d]`, descending.
      latent_dim: k.

    Raises:
      ValueError: `latent_dim` is not in 1 .. r - 1, with r the covariance's rank.
    """
    dim = len(eigenvalues)
    log_noise_variance = np.log(_discarded_variance(eigenvalues, latent_dim))
    log_det = np.log(eigenvalues[:latent_dim]).sum() + (dim - latent_dim) * log_noise_variance
    return float(-0.5 * (log_det + dim * LOG_2PI + dim))


class GaussianMixture(NamedTuple):
    """Σ_k weights[k] N(means[k], covariances[k]).

    Attributes:
      weights: `[K]`, summing to one.
      means: `[K, ...]`, each in the shape of an example; d numbers.
      covariances: `[K, d, d]`, or `[K, d]` variances where they are diagonal.
    """

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def log_prob(self, x: ArrayLike) -> np.ndarray:
        """`[N]` nats."""
        return np.logaddexp.reduce(self._log_joint(x), axis=1)

    def responsibilities(self, x: ArrayLike) -> np.ndarray:
        """p(component | x), `[N, K]`."""
        log_joint = self._log_joint(x)
        return np.exp(log_joint - np.logaddexp.reduce(log_joint, axis=1)[:, None])

    def sample(self, num: int, *, key: PRNGKey) -> np.ndarray:
        """Draw a component, then an example of it: `[num, ...]`; `ValueError` where `num` is below 1."""
        check_key(key)
        at_least(1, num=num)
        component_key, noise_key = jax.random.split(key)
        component = np.asarray(jax.random.categorical(component_key, np.log(self.weights), shape=(num,)))
        samples = _normal(noise_key, (num, self.means[0].size))
        for k, covariance in enumerate(self.covariances):
            chosen = component == k
            if covariance.ndim == 1:
                samples[chosen] *= np.sqrt(covariance)
            else:
                samples[chosen] = samples[chosen] @ np.linalg.cholesky(covariance).T
        return self.means[component] + samples.reshape(num, *self.means.shape[1:])

    def _log_joint(self, x: ArrayLike) -> np.ndarray:
        """log p(component) + log p(x | component), `[N, K]`."""
        columns = []
        for weight, mean, covariance in zip(self.weights, self.means, self.covariances, strict=True):
            centred = _centred(x, mean)
            if covariance.ndim == 1:
                whitened = centred / np.sqrt(covariance)
                log_det = np.log(covariance).sum()
            else:
                factor = np.linalg.cholesky(covariance)
                whitened = np.linalg.solve(factor, centred.T).T
                log_det = 2 * np.log(np.diag(factor)).sum()
            log_density = -0.5 * (mean.size * LOG_2PI + log_det + _squared_norm(whitened))
            columns.append(np.log(weight) + log_density)
        return np.stack(columns, axis=1)


def fit_gaussian_mixture(
    data: ArrayLike,
    num_components: int,
    *,
    seed: int,
    covariance_type: Literal["full", "diag"] = "full",
    jitter: float = 1e-6,
    max_iterations: int = 100,
) -> GaussianMixture:
    """Fit a mixture to `data` `[N, ...]` by scikit-learn's expectation maximisation, started from k-means.

    `seed` draws the start, and the optimum is a local one: another seed may find a better. `jitter` is added to every
    covariance's diagonal. scikit-learn warns where `max_iterations` did not suffice.

    Raises:
      ValueError: `data` is empty or not finite, or `num_components` is not in 1 .. N.
      ImportError: scikit-learn is missing.

    References:
      Dempster, Laird and Rubin, Maximum Likelihood from Incomplete Data via the EM Algorithm, 1977.
    """
    examples = _finite(data)
    if not 1 <= num_components <= len(examples):
        raise ValueError(f"num_components must lie in 1 .. {len(examples)}, the examples, got {num_components}")
    try:
        from sklearn import mixture
    except ImportError as error:
        raise ImportError("the mixture is fitted by scikit-learn: pip install 'jaxvae[all]'") from error
    fitted = mixture.GaussianMixture(
        num_components,
        covariance_type=covariance_type,
        reg_covar=jitter,
        max_iter=max_iterations,
        random_state=seed,
    ).fit(examples.reshape(len(examples), -1))
    return GaussianMixture(
        fitted.weights_, fitted.means_.reshape(num_components, *examples.shape[1:]), fitted.covariances_
    )


def independent_bernoulli_nll(train: ArrayLike, test: ArrayLike) -> np.ndarray:
    """-log p(x) of each `test` example `[N, ...]` under independent pixels with the probabilities of the `train` mean.

    What a VAE reaches whose latents all collapsed. Pixels are in [0, 1]; for grey ones it is the expectation under
    binarisation. The training means are clipped to [.001, .999].

    Returns:
      `[N]` nats.

    Raises:
      ValueError: a set is empty, a pixel is outside [0, 1], or the examples' shapes differ.
    """
    mean = np.clip(_pixels(train, "train").mean(axis=0), 0.001, 0.999)
    logits = np.log(mean) - np.log1p(-mean)
    return -_flat(_pixels(test, "test"), mean.shape) @ logits.ravel() - np.log1p(-mean).sum()


def class_bernoulli_nll(train: ArrayLike, train_label: ArrayLike, test: ArrayLike, test_label: ArrayLike) -> np.ndarray:
    """-log p(x | label) of each `test` example: `independent_bernoulli_nll` within its class; labels `[N]`, integers.

    What a conditional VAE reaches whose latents all collapsed.

    Returns:
      `[N]` nats.

    Raises:
      TypeError: the labels are not integers.
      ValueError: there is not one for each example, `train` lacks a class, or as for `independent_bernoulli_nll`.
    """
    train, test = _pixels(train, "train"), _pixels(test, "test")
    train_label = _labels(train_label, "train_label", len(train))
    test_label = _labels(test_label, "test_label", len(test))
    nats = np.empty(len(test))
    for label in np.unique(test_label):
        of_class = train[train_label == label]
        if not len(of_class):
            raise ValueError(f"test_label has {label}, which train_label lacks")
        nats[test_label == label] = independent_bernoulli_nll(of_class, test[test_label == label])
    return nats


def binarization_entropy(x: ArrayLike) -> np.ndarray:
    r"""The entropy of drawing each pixel as 0 or 1 with its grey value as the probability, `[N]` nats.

    .. math:: -\sum_j x_j \log x_j + (1 - x_j) \log (1 - x_j)

    No model's expected -log p of x binarised anew is below its mean.

    Raises:
      ValueError: x is empty, or a pixel is outside [0, 1].
    """
    pixels = _flat(_pixels(x, "x"))
    log_one = np.log(np.where(pixels > 0, pixels, 1))  # 0 log 0 = 0
    log_zero = np.log(np.where(pixels < 1, 1 - pixels, 1))
    return -(pixels * log_one + (1 - pixels) * log_zero).sum(axis=1)


def _rank(eigenvalues: np.ndarray) -> int:
    """How many of a covariance's eigenvalues exceed rounding, as `numpy.linalg.matrix_rank` decides it."""
    return int((eigenvalues > eigenvalues[0] * len(eigenvalues) * np.finfo(np.float64).eps).sum())


def _discarded_variance(eigenvalues: np.ndarray, latent_dim: int) -> float:
    """σ², the mean of the eigenvalues past the first `latent_dim`, which must not all be zero."""
    rank = _rank(eigenvalues)
    if not 1 <= latent_dim < rank:
        raise ValueError(f"latent_dim must lie in 1 .. {rank - 1}, below the covariance's rank, got {latent_dim}")
    return float(eigenvalues[latent_dim:].mean())


def _finite(data: ArrayLike) -> np.ndarray:
    examples = host_reals(data, "data")
    if not examples.ndim or not examples.size or not np.isfinite(examples).all():
        bad = int((~np.isfinite(examples)).sum())
        raise ValueError(f"data must be finite and not empty, got {examples.shape} with {bad} values not finite")
    return examples


def _pixels(x: ArrayLike, name: str) -> np.ndarray:
    pixels = host_reals(x, name)
    if not pixels.ndim or not pixels.size:
        raise ValueError(f"{name} must be [N, ...] and not empty, got {pixels.shape}")
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= 1):  # NaN is refused too
        raise ValueError(f"{name} must hold pixels in [0, 1], got {low:g} to {high:g}; divide 8-bit pixels by 255")
    return pixels


def _labels(labels: ArrayLike, name: str, count: int) -> np.ndarray:
    values = host_integers(labels, name)
    if values.shape != (count,):
        raise ValueError(f"{name} must be [{count}], one for each example, got {values.shape}")
    return values


def _flat(x: ArrayLike, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """[N, ...] -> [N, d] float64."""
    examples = host_reals(x, "x")
    if shape is not None and examples.shape[1:] != shape:
        raise ValueError(f"expected examples of shape {shape}, got {examples.shape[1:]} in {examples.shape}")
    return examples.reshape(len(examples), -1)


def _centred(x: ArrayLike, mean: np.ndarray) -> np.ndarray:
    """x - mean, [N, d]."""
    return _flat(x, mean.shape) - mean.ravel()


def _squared_norm(rows: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", rows, rows)  # without a copy of the data's size


def _normal(key: PRNGKey, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(noise(jax.random.normal, key, tuple(map(int, shape))), np.float64)
