"""Examples as rows of float64, on the host."""

import jax
import numpy as np
from numpy.typing import ArrayLike

from jaxvae._checks import at_least
from jaxvae._host import host_reals
from jaxvae.keys import check_key, noise
from jaxvae.types import PRNGKey


def finite(data: ArrayLike) -> np.ndarray:
    examples = host_reals(data, "data")
    if not examples.ndim or not examples.size or not np.isfinite(examples).all():
        bad = int((~np.isfinite(examples)).sum())
        raise ValueError(f"data must be finite and not empty, got {examples.shape} with {bad} values not finite")
    return examples


def flat(x: ArrayLike, shape: tuple[int, ...] | None = None) -> np.ndarray:
    """[N, ...] -> [N, d] float64."""
    examples = host_reals(x, "x")
    if shape is not None and examples.shape[1:] != shape:
        raise ValueError(f"expected examples of shape {shape}, got {examples.shape[1:]} in {examples.shape}")
    return examples.reshape(len(examples), -1)


def centre(x: ArrayLike, mean: np.ndarray) -> np.ndarray:
    """x - mean, [N, d]."""
    return flat(x, mean.shape) - mean.ravel()


def squared_norm(rows: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", rows, rows)  # without a copy of the data's size


def linear_draws(
    mean: np.ndarray, weights: np.ndarray, noise_variance: float | np.ndarray, num: int, key: PRNGKey
) -> np.ndarray:
    """mean + W z + √ψ ε, [num, ...]; `ValueError` where `num` is below 1."""
    check_key(key)
    at_least(1, num=num)
    latent_key, noise_key = jax.random.split(key)
    dim, latent_dim = weights.shape
    samples = normal(latent_key, (num, latent_dim)) @ weights.T
    samples += np.sqrt(noise_variance) * normal(noise_key, (num, dim))
    return mean + samples.reshape(num, *mean.shape)


def normal(key: PRNGKey, shape: tuple[int, ...]) -> np.ndarray:
    return np.asarray(noise(jax.random.normal, key, tuple(map(int, shape))), np.float64)
