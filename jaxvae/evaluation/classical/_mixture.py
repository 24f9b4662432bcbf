"""Mixtures of Gaussians."""

from typing import Literal, NamedTuple

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxvae._checks import at_least
from jaxvae.evaluation.classical._arrays import centre, finite, normal, squared_norm
from jaxvae.keys import check_key
from jaxvae.losses import LOG_2PI
from jaxvae.types import PRNGKey


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
        samples = normal(noise_key, (num, self.means[0].size))
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
            centred = centre(x, mean)
            if covariance.ndim == 1:
                whitened = centred / np.sqrt(covariance)
                log_det = np.log(covariance).sum()
            else:
                factor = np.linalg.cholesky(covariance)
                whitened = np.linalg.solve(factor, centred.T).T
                log_det = 2 * np.log(np.diag(factor)).sum()
            log_density = -0.5 * (mean.size * LOG_2PI + log_det + squared_norm(whitened))
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
    examples = finite(data)
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
