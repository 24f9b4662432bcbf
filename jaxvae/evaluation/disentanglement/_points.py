"""Internal to `jaxvae.evaluation.disentanglement`: points, which are codes with the factors that made them."""

import importlib
from types import ModuleType

import numpy as np
from numpy.typing import ArrayLike

from jaxvae._host import host_array, host_integers, host_reals


def check_points(
    codes: ArrayLike, factors: ArrayLike, *, min_latents: int = 1, min_factors: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Codes as float64 and factors as int64, or an error that says what is wrong with them."""
    factors = check_factors(factors)
    codes = host_reals(codes, "codes")
    if codes.ndim != 2 or codes.shape[1] < min_latents:
        raise ValueError(f"codes must be [N, D] with D of {min_latents} or more, got {codes.shape}")
    if len(codes) != len(factors):
        raise ValueError(f"codes and factors must describe the same points, got {len(codes)} and {len(factors)}")
    if factors.shape[1] < min_factors:
        raise ValueError(f"factors must be [N, F] with F of {min_factors} or more, got {factors.shape}")
    finite = np.isfinite(codes).all(axis=1)
    if not finite.all():
        row = int(finite.argmin())
        raise ValueError(f"codes must be finite: point {row} has {codes[row][~np.isfinite(codes[row])][0]}")
    return codes, factors


def check_factors(factors: ArrayLike) -> np.ndarray:
    """Factors as int64, or an error that says what is wrong with them."""
    factors = host_array(factors, "factors")
    if factors.ndim != 2 or not factors.size:
        raise ValueError(f"factors must be [N, F] with N and F of 1 or more, got {factors.shape}")
    factors = host_integers(factors, "factors", "; number their values 0, 1, ... first")
    constant = (factors == factors[:1]).all(axis=0)
    if constant.any():
        column = int(constant.argmax())
        raise ValueError(f"factors[:, {column}] is {factors[0, column]} everywhere: leave that column out")
    return factors


def scikit_learn(module: str) -> ModuleType:
    """A module of scikit-learn, or an error that says what to install."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError("this needs scikit-learn: pip install 'jaxvae[all]'") from error


def sample_points(
    codes: np.ndarray, factors: np.ndarray, num_points: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Points drawn with replacement."""
    chosen = rng.integers(len(codes), size=num_points)
    return codes[chosen], factors[chosen]


def lead(table: np.ndarray) -> float:
    """The largest minus the second largest latent of each factor, [D, F], the mean over the factors."""
    ascending = np.sort(table, axis=0)
    return float((ascending[-1] - ascending[-2]).mean())
