"""experiments.vq_vae on sound and on video, small, from the command line."""

import numpy as np
import pytest
from commands import result_of, run

from experiments import prior, signals, vq_vae
from jaxvae import checkpoint, data

SMALL = ("--smoke", "--channels", 4, 4, "--blocks", 0, "--num-codes", 8, "--code-dim", 4, "--batch-size", 32)


@pytest.mark.slow
def test_speech_is_measured_in_decibels_and_heard(tmp_path):
    soundfile = pytest.importorskip("soundfile")
    result, _ = result_of(vq_vae.main, tmp_path, "speech", *SMALL)
    test = result["test"]
    assert result["positions"] == 512
    assert 1 <= test["perplexity"] <= test["codes_used"] <= 8
    few = data.load("speech", "test").take(slice(32))
    train = data.load("speech", "train").take(slice(64))
    assert result["variance"] == pytest.approx(train.x.var(dtype=np.float64), rel=1e-5)
    model, params, model_state, _ = checkpoint.load(tmp_path, vq_vae.make_model)
    indices = model.encode_indices(params, model_state, few.x)
    error = np.square(model.decode_indices(params, model_state, indices).mean - few.x).mean()
    assert test["distortion"] == pytest.approx(error / result["variance"], rel=1e-3)
    assert test["snr"] == pytest.approx(10 * np.log10(np.square(few.x).mean() / error), abs=1e-2)
    assert "psnr" not in test
    assert (tmp_path / "spectrograms.png").stat().st_size > 1000
    heard, rate = soundfile.read(tmp_path / "input_1.wav")
    assert (heard.shape, rate) == ((2048,), 8000)
    np.testing.assert_allclose(heard, few.x[0, :, 0], atol=1 / 16384)


@pytest.mark.slow
def test_video_is_measured_and_moves(tmp_path):
    Image = pytest.importorskip("PIL.Image")
    result, _ = result_of(vq_vae.main, tmp_path, "video", *SMALL)
    assert result["positions"] == 4 * 8 * 8
    assert result["test"]["psnr"] == pytest.approx(
        -10 * np.log10(result["test"]["distortion"] * result["variance"]), rel=1e-6
    )
    with Image.open(tmp_path / "reconstructions.gif") as gif:
        assert gif.n_frames == 16
    assert (tmp_path / "reconstructions.png").stat().st_size > 1000


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "names"), [("speech", ["continued.png"]), ("video", ["continued.gif", "samples.gif"])]
)
def test_a_prior_continues_what_it_was_given_half_of(tmp_path, preset, names):
    run(vq_vae.main, preset, *SMALL, "--out", tmp_path / "vq", "--codes", "gumbel")
    options = ("--smoke", "--width", 16, "--layers", 1, "--heads", 2, "--batch-size", 16)
    result, _ = result_of(prior.main, tmp_path / "prior", tmp_path / "vq", *options)
    assert 0 < result["test"]["nats_per_value"] < np.log(8) + 0.5
    assert all((tmp_path / "prior" / name).stat().st_size > 1000 for name in names)


def test_a_likelihood_of_pixels_is_no_likelihood_of_sound():
    done = run(vq_vae.main, "speech", "--smoke", "--likelihood", "categorical")
    assert done.code == 2
    assert "sound is measured by squared-error, got --likelihood categorical" in done.said


def test_reconstructions_are_written_for_every_kind(tmp_path):
    indices = np.zeros((3, 4), int)
    few = data.speech.synthesize(3, length=512)
    paths = signals.save_reconstructions(tmp_path / "a", few, few.x, 2 * few.x, indices, num_codes=2)
    assert [path.name for path in paths][:2] == ["spectrograms.png", "input_1.wav"]
    soundfile = pytest.importorskip("soundfile")
    loud, _ = soundfile.read(tmp_path / "a" / "reconstruction_1.wav")
    np.testing.assert_allclose(loud, (2 * few.x[0, :, 0]).clip(-1, 1), atol=1 / 8192)  # cut off, not turned over
    videos = data.moving_sprites.make(2, frames=3)
    x = np.random.default_rng(0).random((2, 3, 8, 8, 1), np.float32)
    paths = signals.save_reconstructions(tmp_path / "b", videos, x, x + 0.2, indices, num_codes=2)
    assert [path.name for path in paths] == ["reconstructions.gif", "reconstructions.png"]
