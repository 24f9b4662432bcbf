"""Textures: the stationary Gaussian fields that an image is taken for, and its edges taken out of it."""

import numpy as np
from numpy.typing import ArrayLike

from jaxvae._checks import at_least
from jaxvae._host import host_reals
from jaxvae.evaluation.classical._arrays import normal
from jaxvae.keys import check_key
from jaxvae.types import PRNGKey

BORDER = 8  # a larger synthesis fades the sample out over this part of its height and width, at each side


def periodic_smooth(image: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    r"""Split an image into one that continues over its borders and a smooth one, which holds the jumps there.

    .. math:: u = p + s, \quad \Delta s = v, \quad \textstyle\sum s = 0

    with Δ the Laplacian of the torus and v the jumps between opposite borders: v = u(opposite) - u on each border, 0
    within. What a Fourier transform sees of p is the texture, without the cross that the borders of u draw.

    Args:
      image: `[H, W]` or `[H, W, C]`; each channel is split by itself.

    Returns:
      p and s, in float64 and in the shape of the image.

    Raises:
      TypeError: the image is masked, or holds no real numbers.
      ValueError: it has another rank, fewer than 2 pixels on a side, or a value that is not finite.

    References:
      Moisan, Periodic plus Smooth Image Decomposition, 2011.
    """
    pixels = _check_image(image)
    height, width = pixels.shape[:2]
    jumps = np.zeros_like(pixels)
    down, right = pixels[-1] - pixels[0], pixels[:, -1] - pixels[:, 0]
    jumps[0] += down
    jumps[-1] -= down
    jumps[:, 0] += right
    jumps[:, -1] -= right
    rows, columns = np.cos(2 * np.pi * np.fft.fftfreq(height)), np.cos(2 * np.pi * np.fft.rfftfreq(width))
    laplacian = 2 * (rows[:, None] + columns - 2)
    laplacian[0, 0] = 1  # where the jumps, which add up to 0, have nothing
    spectrum = _transform(jumps) / laplacian.reshape(*laplacian.shape, *[1] * (pixels.ndim - 2))
    spectrum[0, 0] = 0
    smooth = _inverse(spectrum, (height, width))
    return pixels - smooth, smooth


def spot_noise(
    image: ArrayLike, shape: tuple[int, int] | None = None, *, key: PRNGKey, periodic: bool = False
) -> np.ndarray:
    r"""A texture like an image: its asymptotic discrete spot noise, the Gaussian field of its autocovariance.

    .. math:: X = m + \tilde h * W, \quad \tilde h = (h - m) / \sqrt{|\Omega|}, \quad W \sim N(0, I)

    with h the image's periodic component, m its mean and * the convolution on the torus, the same W for all channels.
    The covariance of X at a distance v is Σᵤ h̃(u) h̃(u + v), also between channels.

    A larger X needs a spot that ends within it: h - m is faded out at its borders, brought back to mean 0 and to the
    covariances between channels that it had, and surrounded by zeros.

    Args:
      image: `[H, W]` or `[H, W, C]`.
      shape: (height, width) of X, each at least the image's; the image's unless given. X continues over its borders.
      key: of W.
      periodic: whether the image continues over its borders as it is, so that nothing is taken out of it.

    Returns:
      X in float64, in units of the image; values beyond the image's range may occur.

    Raises:
      TypeError: as for `periodic_smooth`, or the key is not typed.
      ValueError: as for `periodic_smooth`, or a shape that is no larger than the image's.

    References:
      Galerne, Gousseau and Morel, Random Phase Textures: Theory and Synthesis, 2011.
    """
    return _synthesise(image, shape, key, periodic, random_phase=False)


def random_phase_noise(
    image: ArrayLike, shape: tuple[int, int] | None = None, *, key: PRNGKey, periodic: bool = False
) -> np.ndarray:
    """A texture like an image: its Fourier transform with phases drawn anew, its moduli kept.

    One phase is added at each frequency for all channels, so that what the channels have to do with each other is kept
    too; phases of opposite frequencies are opposite, and the mean keeps its own. Mean, covariances and autocovariance
    over the torus are the spot's, in every draw; of `spot_noise` they are in the mean over draws.

    Its arguments, errors and references are those of `spot_noise`.
    """
    return _synthesise(image, shape, key, periodic, random_phase=True)


def _synthesise(
    image: ArrayLike, shape: tuple[int, int] | None, key: PRNGKey, periodic: bool, *, random_phase: bool
) -> np.ndarray:
    check_key(key)
    pixels = _check_image(image)
    shape = _check_target(shape, pixels)
    if not periodic:
        pixels, _ = periodic_smooth(pixels)
    mean = pixels.mean(axis=(0, 1))
    noise = np.fft.rfft2(normal(key, shape))
    if random_phase:
        modulus = np.abs(noise)
        noise = np.sqrt(shape[0] * shape[1]) * np.where(modulus > 0, noise, 1) / np.where(modulus > 0, modulus, 1)
    spectrum = _transform(_spot(pixels - mean, shape))
    return mean + _inverse(spectrum * noise.reshape(*noise.shape, *[1] * (pixels.ndim - 2)), shape)


def _spot(centred: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """h̃ on the torus of the target: faded out, if there is room to; its channels' products summed are a covariance."""
    height, width = centred.shape[:2]
    wanted = _covariance(centred) / (height * width)
    spot = centred
    if shape != (height, width):
        fade = [
            _fade(side) if side < target else np.ones(side) for side, target in zip((height, width), shape, strict=True)
        ]
        window = (fade[0][:, None] * fade[1]).reshape(height, width, *[1] * (centred.ndim - 2))
        spot = window * (centred - (window * centred).sum(axis=(0, 1)) / window.sum())
        spot = _with_covariance(spot, wanted)
    else:
        spot = centred / np.sqrt(height * width)
    whole = np.zeros((*shape, *centred.shape[2:]))
    whole[:height, :width] = spot
    return whole


def _fade(side: int) -> np.ndarray:
    """A window over one side that rises from 0 and falls back smoothly."""
    border = max(1, side // BORDER)
    rise = np.sin(0.5 * np.pi * (np.arange(border) + 0.5) / border) ** 2
    return np.concatenate([rise, np.ones(side - 2 * border), rise[::-1]])


def _with_covariance(spot: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """The channels mixed as little as it takes: Σ spot spotᵀ is then `wanted`, wherever it has that rank."""
    has = _root(_covariance(spot))
    inverse = np.linalg.pinv(has, rcond=1e-7, hermitian=True)
    mixing = inverse @ _root(has @ wanted @ has) @ inverse
    return (spot.reshape(-1, len(mixing)) @ mixing).reshape(spot.shape)


def _covariance(centred: np.ndarray) -> np.ndarray:
    """The sum over pixels of the products of channels, [C, C]."""
    flat = centred.reshape(-1, centred[0, 0].size)
    return flat.T @ flat


def _root(matrix: np.ndarray) -> np.ndarray:
    """The symmetric root of a positive semi-definite matrix."""
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T


def _transform(image: np.ndarray) -> np.ndarray:
    return np.fft.rfft2(image, axes=(0, 1))


def _inverse(spectrum: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    return np.fft.irfft2(spectrum, s=shape, axes=(0, 1))


def _check_image(image: ArrayLike) -> np.ndarray:
    pixels = host_reals(image, "image")
    if pixels.ndim not in (2, 3) or min(pixels.shape) < 1 or min(pixels.shape[:2]) < 2:
        raise ValueError(f"image must be [H, W] or [H, W, C] with H and W of 2 or more, got {pixels.shape}")
    finite = np.isfinite(pixels)
    if not finite.all():
        first = tuple(map(int, np.argwhere(~finite)[0]))
        raise ValueError(f"image must be finite: {pixels[first]} at {first}")
    return pixels


def _check_target(shape: tuple[int, int] | None, pixels: np.ndarray) -> tuple[int, int]:
    if shape is None:
        shape = pixels.shape[0], pixels.shape[1]
    if len(shape) != 2:
        raise ValueError(f"shape must be (height, width), got {shape}")
    at_least(1, shape=shape)
    if shape[0] < pixels.shape[0] or shape[1] < pixels.shape[1]:
        raise ValueError(f"shape must be at least the image's {pixels.shape[:2]}, got {tuple(shape)}; cut the image")
    return int(shape[0]), int(shape[1])
