"""experiments.textures: Gaussian fields beside the textures that they were made from."""

import sys

import numpy as np
import pytest
from commands import result_of, run

from experiments import textures


def test_the_kurtosis_of_edges_is_zero_for_noise_and_large_for_a_spot():
    noise = np.random.default_rng(0).normal(size=(200, 200))
    assert textures.excess_kurtosis(noise) == pytest.approx(0, abs=0.15)
    spot = np.zeros((10, 10))
    spot[0, 0] = 1  # -4 once and 1 four times, of 100
    assert textures.excess_kurtosis(spot) == pytest.approx((256 + 4) / 100 / ((16 + 4) / 100) ** 2 - 3)


def test_a_run_draws_sample_syntheses_and_spectra(tmp_path, monkeypatch):
    image = np.kron(np.indices((16, 16)).sum(axis=0) % 2, np.ones((4, 4)))  # a chequerboard
    monkeypatch.setattr(textures, "load", lambda name, shrink: image)
    result, said = result_of(textures.main, tmp_path, "--textures", "brick", "--smoke")
    found = result["test"]["excess_kurtosis"]["brick"]
    assert set(found) == set(textures.KINDS)
    assert abs(found["spot noise"]) < 1
    assert "brick" in said
    for name in ("textures", "larger"):
        assert (tmp_path / f"{name}.png").stat().st_size > 1000
    again, _ = result_of(textures.main, tmp_path / "again", "--textures", "brick", "--smoke")
    assert again["test"] == result["test"]
    other, _ = result_of(
        textures.main, tmp_path / "other", "--textures", "brick", "--smoke", "--seed", 1, "--picture-format", "svg"
    )
    assert other["test"] != result["test"]
    assert {path.name for path in (tmp_path / "other").glob("*.*")} == {"larger.svg", "result.json", "textures.svg"}


def test_a_spectrum_has_its_middle_in_the_middle():
    wave = np.cos(2 * np.pi * 3 * np.arange(16) / 16)[None, :].repeat(8, axis=0)
    (picture,) = textures.spectra([wave])
    assert [tuple(place) for place in np.argwhere(picture[..., 0] > 0.5)] == [(4, 5), (4, 11)]


def test_the_textures_of_scikit_image_are_read_and_seen_from_afar():
    pytest.importorskip("skimage")
    near, far = textures.load("gravel", 1), textures.load("gravel", 8)
    assert (near.shape, far.shape) == ((512, 512), (64, 64))
    assert far[1, 2] == pytest.approx(near[8:16, 16:24].mean())
    assert 0 <= near.min() < near.max() <= 1


def test_without_scikit_image_one_line_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    done = run(textures.main)
    assert done.code == 2
    assert done.said.strip() == "error: the textures come with scikit-image: pip install scikit-image"


def test_wrong_options_are_one_line(tmp_path):
    for arguments, said in (
        (("--textures", "sand"), "textures must be some of brick, grass, gravel, got sand"),
        (("--size", 4), "size must lie in 8 .. 512, got 4"),
        (("--larger", 0), "larger must lie in 1 .. 8, got 0"),
        (("--shrink", 3), "shrink must divide 512, the side of the images, got 3"),
        (("--shrink", 0), "shrink must lie in 1 .. 64, got 0"),
        (("--seed", -1), "seed must lie in 0 .. 2**32 - 1, got -1"),
    ):
        done = run(textures.main, *arguments, "--out", tmp_path / "run")
        assert done.code == 2
        assert said in done.said
    assert not (tmp_path / "run").exists()
