"""Gaussians of a full covariance and of a low rank: PPCA."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxvae._checks import at_least
from jaxvae.evaluation.classical._arrays import centre, finite, linear_draws, normal, squared_norm
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
        projected = centre(x, self.mean) @ self.eigenvectors
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
        return self.mean + (normal(key, (num, count)) @ factor.T).reshape(num, *self.mean.shape)


def fit_gaussian(data: ArrayLike, *, jitter: float = 0.0) -> GaussianModel:
    """Fit mean and covariance to `data` `[N, ...]` by maximum likelihood (the covariance divides by N).

    `jitter` is added to the covariance's diagonal. Pixels that never change, or fewer examples than dimensions, make
    it singular: samples and PPCA are none the worse, a density needs the jitter, and depends on it.

    Raises:
      ValueError: `data` is empty or not finite, or `jitter` is negative or not finite.
    """
    if not 0 <= jitter < np.inf:
        raise ValueError(f"jitter must be a finite number, zero or more, got {jitter}")
    examples = finite(data)
    mean = examples.mean(axis=0)
    centred = centre(examples, mean)
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
        centred, precision = centre(x, self.mean), self._scaled_precision()
        projected = centred @ self.weights
        explained = (projected * np.linalg.solve(precision, projected.T).T).sum(axis=1)
        distance = (squared_norm(centred) - explained) / self.noise_variance
        log_det = (dim - latent_dim) * np.log(self.noise_variance) + np.linalg.slogdet(precision).logabsdet
        return -0.5 * (dim * LOG_2PI + log_det + distance)

    def posterior(self, x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """p(z | x): its means M⁻¹ Wᵀ (x - mean), `[N, k]`, and its one covariance σ² M⁻¹, `[k, k]`; M = WᵀW + σ²I."""
        inverse = np.linalg.inv(self._scaled_precision())
        return centre(x, self.mean) @ (self.weights @ inverse), self.noise_variance * inverse

    def elbo(self, x: ArrayLike) -> np.ndarray:
        r"""The ELBO of the best encoder with a diagonal covariance, `[N]` nats.

        It has the posterior's mean and the variances σ² / Mᵢᵢ. The ELBO is log p(x) where WᵀW is diagonal, as
        `fit_ppca` leaves it, and lower by ½ (Σ log Mᵢᵢ - log |M|) for any other W.
        """
        dim = len(self.weights)
        mean, _ = self.posterior(x)
        variance = self.noise_variance / np.diag(self._scaled_precision())
        rate = 0.5 * (variance - 1 - np.log(variance) + np.square(mean)).sum(axis=1)
        residual = squared_norm(centre(x, self.mean) - mean @ self.weights.T)
        spread = np.square(self.weights).sum(axis=0) @ variance
        distortion = 0.5 * (dim * (LOG_2PI + np.log(self.noise_variance)) + (residual + spread) / self.noise_variance)
        return -(distortion + rate)

    def sample(self, num: int, *, key: PRNGKey) -> np.ndarray:
        """Draw mean + W z + σ ε, `[num, ...]`; `ValueError` where `num` is below 1."""
        return linear_draws(self.mean, self.weights, self.noise_variance, num, key)

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


def _rank(eigenvalues: np.ndarray) -> int:
    """How many of a covariance's eigenvalues exceed rounding, as `numpy.linalg.matrix_rank` decides it."""
    return int((eigenvalues > eigenvalues[0] * len(eigenvalues) * np.finfo(np.float64).eps).sum())


def _discarded_variance(eigenvalues: np.ndarray, latent_dim: int) -> float:
    """σ², the mean of the eigenvalues past the first `latent_dim`, which must not all be zero."""
    rank = _rank(eigenvalues)
    if not 1 <= latent_dim < rank:
        raise ValueError(f"latent_dim must lie in 1 .. {rank - 1}, below the covariance's rank, got {latent_dim}")
    return float(eigenvalues[latent_dim:].mean())
