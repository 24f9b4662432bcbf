"""Factor analysis: PPCA with a variance of its own for each element of x."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxvae.evaluation.classical._arrays import centre, finite, flat, linear_draws
from jaxvae.losses import LOG_2PI
from jaxvae.types import PRNGKey


class FactorAnalysis(NamedTuple):
    """z ~ N(0, I), x | z ~ N(mean + W z, diag(ψ)). A linear VAE with a variance for each element is this model.

    Attributes:
      mean: `[...]`, in the shape of an example; d numbers.
      weights: W, `[d, k]`.
      noise_variance: ψ, `[d]`.

    References:
      Rubin and Thayer, EM Algorithms for ML Factor Analysis, 1982.
    """

    mean: np.ndarray
    weights: np.ndarray
    noise_variance: np.ndarray

    def log_prob(self, x: ArrayLike) -> np.ndarray:
        r"""Exact log p(x), `[N]` nats, in O(N d k): with V = Ψ^-½ W, M = VᵀV + I and c = Ψ^-½ (x - mean),

        .. math:: -\tfrac12 \left[ d \log 2\pi + \sum_i \log \psi_i + \log |M| + c^T c - c^T V M^{-1} V^T c \right]
        """
        scaled, precision = self._standardised(x), self._precision()
        projected = scaled @ self._standard_weights()
        explained = (projected * np.linalg.solve(precision, projected.T).T).sum(axis=1)
        log_det = np.log(self.noise_variance).sum() + np.linalg.slogdet(precision).logabsdet
        distance = np.square(scaled).sum(axis=1) - explained
        return -0.5 * (len(self.weights) * LOG_2PI + log_det + distance)

    def posterior(self, x: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
        """p(z | x): its means M⁻¹ Wᵀ Ψ⁻¹ (x - mean), `[N, k]`, and its one covariance M⁻¹, `[k, k]`."""
        covariance = np.linalg.inv(self._precision())
        return self._standardised(x) @ self._standard_weights() @ covariance, covariance

    def elbo(self, x: ArrayLike) -> np.ndarray:
        r"""The ELBO of the best encoder with a diagonal covariance, `[N]` nats.

        It is log p(x) where WᵀΨ⁻¹W is diagonal, as `fit_factor_analysis` leaves it, and lower by
        ½ (Σ log Mᵢᵢ - log |M|) for any other W.
        """
        precision = self._precision()
        gap = 0.5 * (np.log(np.diag(precision)).sum() - np.linalg.slogdet(precision).logabsdet)
        return self.log_prob(x) - gap

    def sample(self, num: int, *, key: PRNGKey) -> np.ndarray:
        """Draw mean + W z + √ψ ε, `[num, ...]`; `ValueError` where `num` is below 1."""
        return linear_draws(self.mean, self.weights, self.noise_variance, num, key)

    def _standardised(self, x: ArrayLike) -> np.ndarray:
        return centre(x, self.mean) / np.sqrt(self.noise_variance)

    def _standard_weights(self) -> np.ndarray:
        return self.weights / np.sqrt(self.noise_variance)[:, None]

    def _precision(self) -> np.ndarray:
        """M = WᵀΨ⁻¹W + I, `[k, k]`: the posterior's precision."""
        standard = self._standard_weights()
        return standard.T @ standard + np.eye(standard.shape[1])


def fit_factor_analysis(data: ArrayLike, latent_dim: int, *, max_iter: int = 10_000) -> FactorAnalysis:
    """Fit factor analysis to `data` `[N, ...]` by scikit-learn's maximum likelihood, until it gains nothing.

    W is turned so that WᵀΨ⁻¹W is diagonal, and a diagonal posterior exact. The likelihood has no maximum where an
    element does not vary, and may have several.

    Raises:
      ImportError: scikit-learn is missing.
      ValueError: `data` is empty or not finite, an element is the same in all examples, or `latent_dim` is not in
        1 .. d - 1.
    """
    try:
        from sklearn.decomposition import FactorAnalysis as Fitted
    except ImportError as error:
        raise ImportError("factor analysis needs scikit-learn: pip install 'jaxvae[data]'") from error
    examples = finite(data)
    rows = flat(examples)
    if not 1 <= latent_dim < rows.shape[1]:
        raise ValueError(f"latent_dim must lie in 1 .. {rows.shape[1] - 1}, below the size of x, got {latent_dim}")
    if (still := np.ptp(rows, axis=0) == 0).any():
        raise ValueError(f"element {int(np.argmax(still))} of x is the same in all examples: leave it out")
    fitted = Fitted(latent_dim, tol=1e-8, max_iter=max_iter, svd_method="lapack").fit(rows)
    weights, variance = fitted.components_.T, fitted.noise_variance_
    _, axes = np.linalg.eigh(weights.T @ (weights / variance[:, None]))
    return FactorAnalysis(fitted.mean_.reshape(examples.shape[1:]), weights @ axes, variance)
