"""Textures against sums over all pixels and exact spectra."""

import re
from itertools import product

import jax
import numpy as np
import pytest

from jaxvae.evaluation import classical
from jaxvae.evaluation.classical import periodic_smooth, random_phase_noise, spot_noise
from jaxvae.evaluation.classical._arrays import normal
from jaxvae.keys import seed_key

RNG = np.random.default_rng(0)
GREY = RNG.random((7, 6)) + np.linspace(0, 3, 7)[:, None]  # with a jump between its upper and its lower border
COLOUR = RNG.random((6, 8, 3)) @ np.array([[1.0, 0.5, 0.2], [0.0, 1.0, 0.4], [0.3, 0.0, 1.0]])
both = pytest.mark.parametrize("image", [GREY, COLOUR], ids=["grey", "colour"])
KEY = seed_key(0)


def channels(image):
    return image.reshape(*image.shape[:2], -1)


def autocovariance(field):
    """(1/|Ω|) Σ_x (X(x) - m)(X(x + v) - m)ᵀ for all v of the torus, [H, W, C, C], by summing."""
    centred = channels(field) - channels(field).mean(axis=(0, 1))
    height, width = centred.shape[:2]
    found = np.empty((height, width, centred.shape[-1], centred.shape[-1]))
    for down, right in product(range(height), range(width)):
        moved = np.roll(centred, (-down, -right), axis=(0, 1))
        found[down, right] = np.einsum("hwc,hwd->cd", centred, moved) / (height * width)
    return found


# Periodic and smooth


@both
def test_the_smooth_component_has_the_laplacian_of_the_jumps_and_the_periodic_one_that_of_the_inside(image):
    periodic, smooth = periodic_smooth(image)
    np.testing.assert_allclose(periodic + smooth, image, atol=1e-12)
    np.testing.assert_allclose(smooth.sum(axis=(0, 1)), 0, atol=1e-10)

    def around(u):
        return sum(np.roll(u, step, axis) - u for step in (1, -1) for axis in (0, 1))

    inside = np.zeros_like(image)  # the Laplacian that knows no neighbour beyond a border
    inside[1:] += image[:-1] - image[1:]
    inside[:-1] += image[1:] - image[:-1]
    inside[:, 1:] += image[:, :-1] - image[:, 1:]
    inside[:, :-1] += image[:, 1:] - image[:, :-1]
    np.testing.assert_allclose(around(smooth), around(image) - inside, atol=1e-12)
    np.testing.assert_allclose(around(periodic), inside, atol=1e-12)


def test_a_ramp_is_almost_all_smooth_and_a_constant_all_periodic():
    ramp = np.broadcast_to(np.linspace(0, 1, 32)[:, None], (32, 16))
    periodic, _ = periodic_smooth(ramp)
    assert np.abs(periodic[0] - periodic[-1]).max() < 0.05
    assert np.abs(ramp[0] - ramp[-1]).max() == 1
    np.testing.assert_allclose(periodic_smooth(np.full((4, 5), 7.0))[0], 7)


# Spot noise


def test_spot_noise_is_the_convolution_of_the_spot_with_white_noise():
    found = spot_noise(COLOUR, key=KEY, periodic=True)
    noise = normal(KEY, COLOUR.shape[:2])
    mean = COLOUR.mean(axis=(0, 1))
    spot = (COLOUR - mean) / np.sqrt(48)
    expected = np.zeros_like(COLOUR) + mean
    for u in product(range(6), range(8)):
        expected += spot[u] * np.roll(noise, u, axis=(0, 1))[..., None]
    np.testing.assert_allclose(found, expected, atol=1e-10)


@both
def test_the_autocovariance_of_spot_noise_is_the_spots(image):
    """Over draws; each draw's own moves about it."""
    wanted = autocovariance(periodic_smooth(image)[0])  # Σ_u h̃(u) h̃(u + v)
    draws = [spot_noise(image, key=key) for key in jax.random.split(KEY, 400)]
    found = np.stack([autocovariance(draw) for draw in draws])
    error = found.std(axis=0) / np.sqrt(len(draws))
    assert (np.abs(found.mean(axis=0) - wanted) < 4.5 * error + 1e-12).all()
    np.testing.assert_allclose([draw.mean(axis=(0, 1)) for draw in draws[:3]], [image.mean(axis=(0, 1))] * 3)


# Random phase


@both
def test_random_phase_keeps_the_modulus_the_mean_and_the_covariances_of_channels_in_every_draw(image):
    periodic, _ = periodic_smooth(image)
    found, other = (random_phase_noise(image, key=key) for key in jax.random.split(KEY))
    assert found.shape == image.shape
    modulus = np.abs(np.fft.fft2(periodic, axes=(0, 1)))
    np.testing.assert_allclose(np.abs(np.fft.fft2(found, axes=(0, 1))), modulus, rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(found.mean(axis=(0, 1)), image.mean(axis=(0, 1)), rtol=1e-10)
    np.testing.assert_allclose(autocovariance(found), autocovariance(periodic), atol=1e-10)  # also between channels
    assert np.abs(found - other).max() > 0.1
    assert np.abs(found - periodic).max() > 0.1
    kept = random_phase_noise(image, key=KEY, periodic=True)
    np.testing.assert_allclose(
        np.abs(np.fft.fft2(kept, axes=(0, 1))), np.abs(np.fft.fft2(image, axes=(0, 1))), rtol=1e-6, atol=1e-9
    )


def test_phases_are_uniform_and_opposite_at_opposite_frequencies():
    draws = np.stack([random_phase_noise(GREY, key=key) for key in jax.random.split(KEY, 400)])
    turned = np.fft.fft2(draws) / np.fft.fft2(periodic_smooth(GREY)[0])
    np.testing.assert_allclose(turned[:, 1, 2], turned[:, -1, -2].conj(), atol=1e-8)
    assert np.abs(turned[:, 1, 2].mean()) < 4 / np.sqrt(400)
    assert np.abs((turned[:, 1, 2] ** 2).mean()) < 4 / np.sqrt(400)
    np.testing.assert_allclose(turned[:, 0, 0], 1, rtol=1e-8)
    half = turned[:, 0, 3].real  # its own opposite: 1 or -1
    np.testing.assert_allclose(np.abs(half), 1, rtol=1e-8)
    assert abs(half.mean()) < 4 / np.sqrt(400)


# Larger than the sample


@both
@pytest.mark.parametrize("make", [spot_noise, random_phase_noise])
def test_a_larger_synthesis_keeps_mean_and_covariance(image, make):
    shape = (2 * image.shape[0] + 1, image.shape[1] + 5)
    draws = np.stack([channels(make(image, shape, key=key)) for key in jax.random.split(KEY, 200)])
    assert draws.shape[1:3] == shape
    np.testing.assert_allclose(draws.mean(axis=(1, 2)), [channels(image).mean(axis=(0, 1))] * 200)
    wanted = autocovariance(periodic_smooth(image)[0])[0, 0]
    centred = draws - draws.mean(axis=(1, 2), keepdims=True)
    found = np.einsum("nhwc,nhwd->ncd", centred, centred) / (shape[0] * shape[1])
    if make is random_phase_noise:  # in every draw
        np.testing.assert_allclose(found, [wanted] * 200, rtol=1e-6)
    error = found.std(axis=0) / np.sqrt(200)
    assert (np.abs(found.mean(axis=0) - wanted) < 4.5 * error + 1e-9).all()


def test_one_side_may_grow_alone_and_channels_that_agree_stay_so():
    grey = np.repeat(GREY[..., None], 3, axis=2)
    found = spot_noise(grey, (7, 20), key=KEY)
    assert found.shape == (7, 20, 3)
    np.testing.assert_allclose(found[..., 1:], found[..., :1].repeat(2, axis=2), atol=1e-6)
    np.testing.assert_allclose(found[..., 0], spot_noise(GREY, (7, 20), key=KEY), atol=1e-6)
    np.testing.assert_allclose(spot_noise(np.full((4, 4, 3), 0.5), (9, 9), key=KEY), 0.5)


# What is refused


@pytest.mark.parametrize("make", [spot_noise, random_phase_noise])
@pytest.mark.parametrize(
    ("image", "options", "error", "said"),
    [
        (np.full((4, 4), np.nan), {}, ValueError, "image must be finite: nan at (0, 0)"),
        (np.zeros(5), {}, ValueError, "image must be [H, W] or [H, W, C] with H and W of 2 or more, got (5,)"),
        (np.zeros((1, 8)), {}, ValueError, "got (1, 8)"),
        (np.zeros((2, 4, 4, 3)), {}, ValueError, "got (2, 4, 4, 3)"),
        (np.zeros((4, 4, 0)), {}, ValueError, "got (4, 4, 0)"),
        (np.ma.zeros((4, 4)), {}, TypeError, "image is a masked array"),
        (GREY, {"shape": (6, 6)}, ValueError, "shape must be at least the image's (7, 6), got (6, 6)"),
        (GREY, {"shape": (7, 6, 3)}, ValueError, "shape must be (height, width), got (7, 6, 3)"),
        (GREY, {"shape": (8.0, 9)}, TypeError, "shape must be an integer, got (8.0, 9)"),
        (GREY, {"key": 0}, TypeError, "key must come from jax.random.key, got 0"),
    ],
)
def test_what_is_no_texture_is_refused_by_name(make, image, options, error, said):
    with pytest.raises(error, match=re.escape(said)):
        make(image, **({"key": KEY} | options))


def test_the_room_has_them():
    assert {"periodic_smooth", "random_phase_noise", "spot_noise"} <= set(classical.__all__)
