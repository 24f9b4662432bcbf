"""experiments.bits_back: a run of experiments.vae as a codec, on scikit-learn's digits."""

import json

import numpy as np
import pytest
from commands import result_of, run

from experiments import bits_back, vae


def test_other_formats_hold_the_same_pictures():
    """Noise of one bit a pixel cannot be shorter, and nothing at all is shorter by far."""
    noise = np.random.default_rng(0).integers(0, 2, (100, 28, 28, 1)).astype(np.float32)
    for name, bits in bits_back.other_formats(noise).items():
        assert noise.size <= bits < 1.6 * noise.size, name
    for name, bits in bits_back.other_formats(np.zeros_like(noise)).items():
        assert bits < 0.05 * noise.size, name


def test_wrong_options_are_one_line(tmp_path):
    for arguments, text in (
        ((tmp_path,), f"no run in {tmp_path}"),
        ((tmp_path, "--images", 0), "images must be at least 1, got 0"),
    ):
        done = run(bits_back.main, *arguments)
        assert done.code == 2
        assert text in done.said


@pytest.mark.slow
def test_a_run_is_a_codec_as_good_as_its_elbo(tmp_path):
    small = ("burda", "--data", "digits", "--epochs", 60, "--hidden", 64, 64, "--latent-dim", 5, "--nll-samples", 5)
    result_of(vae.main, tmp_path / "run", *small)
    done = run(bits_back.main, tmp_path / "run", "--batch-size", 2)
    assert done.code == 0, done.said
    assert "360 test images" in done.said
    bits = json.loads((tmp_path / "run" / "bits_back.json").read_text())["bits_per_pixel"]
    few = 1000 / (360 * 64)  # bits of the header, and borrowed ones
    assert bits["bits back"] == pytest.approx(bits["-ELBO / log 2"], rel=0.02, abs=few)
    assert bits["bits back"] < min(bits[name] for name in ("PNG", "WebP", "gzip"))
    result_of(vae.main, tmp_path / "grey", "digits", "--smoke", "--epochs", 1)
    done = run(bits_back.main, tmp_path / "grey")
    assert done.code == 2
    assert "was not trained on binarised images" in done.said
