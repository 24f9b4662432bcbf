"""Spectrograms and videos, read back: what was asked for is where it should be."""

import numpy as np
import pytest

from jaxvae import figures
from jaxvae.figures._signals import _powers

Image = pytest.importorskip("PIL.Image")
RATE = 8000
RNG = np.random.default_rng(0)


def read(path, mode):
    with Image.open(path) as picture:
        return np.asarray(picture.convert(mode))


def tone(frequency, length=1024):
    return np.sin(2 * np.pi * frequency * np.arange(length) / RATE)


def test_powers_are_those_of_a_windowed_transform():
    sounds = RNG.normal(size=(2, 200))
    powers = _powers(sounds, 64)
    assert powers.shape == (2, 9, 33)  # frames begin at 0, 16, ..., 128
    hann = np.hanning(65)[:64]
    for t, k in ((0, 0), (3, 5), (8, 32)):
        wave = np.exp(-2j * np.pi * k * np.arange(64) / 64)
        expected = np.abs((sounds[1, 16 * t : 16 * t + 64] * hann * wave).sum()) ** 2
        assert powers[1, t, k] == pytest.approx(expected)


def test_a_tone_is_a_bright_line_at_its_frequency(tmp_path):
    sounds = np.stack([tone(1000), tone(3000)])[..., None]
    path = figures.spectrograms(
        tmp_path / "s.png", sounds, 1e-4 * sounds, rate=RATE, labels=["one", "three"], title="t"
    )
    picture = read(path, "RGB").astype(int)
    bright = (picture[..., 0] > 240) & (picture[..., 1] > 180) & (picture[..., 2] < 240)  # the top of the scale
    height, width = bright.shape
    rows = [np.flatnonzero(bright[:, part].any(axis=1)) for part in (slice(0, width // 2), slice(width // 2, None))]
    assert rows[0].max() < height / 2  # the reconstructions, 80 decibels below, are dark
    assert rows[1].mean() < rows[0].mean()  # the higher tone stands higher


def test_what_is_no_sound_is_refused(tmp_path):
    sounds, path = np.zeros((2, 512, 1)), tmp_path / "s.png"
    for arguments, options, said in (
        ((sounds[0], sounds[0]), {}, r"sounds must be \[N, T, C\], got \(512, 1\)"),
        ((sounds, sounds[:1]), {}, r"one shape, got \(2, 512, 1\) and \(1, 512, 1\)"),
        ((sounds, sounds + np.nan), {}, r"reconstructed\[0\] has nan, which is not finite"),
        ((sounds, sounds), {"window": 600}, r"window must lie in 4 \.\. 512, the samples of a sound, got 600"),
        ((sounds, sounds), {"labels": ["one"]}, "labels must be 2, one per sound, got 1"),
    ):
        with pytest.raises(ValueError, match=said):
            figures.spectrograms(path, *arguments, rate=RATE, **options)
    assert figures.spectrograms(path, sounds, sounds, rate=RATE).stat().st_size > 1000  # silence is drawn


def videos(count=2, frames=4):
    """Frames of one grey each, all different: [N, T, 8, 8, 1]."""
    greys = (20 + 10 * np.arange(count * frames * 2)).reshape(2, count, frames, 1, 1, 1) / 255
    return np.broadcast_to(greys, (2, count, frames, 8, 8, 1)).astype(np.float32)


def test_a_gif_has_a_frame_for_each_with_originals_above(tmp_path):
    both = videos()
    with Image.open(figures.video_gif(tmp_path / "v.gif", both[0], both[1], fps=10)) as gif:
        assert (gif.n_frames, gif.info["duration"], gif.info["loop"]) == (4, 100, 0)
        frames = []
        for t in range(4):
            gif.seek(t)
            frames.append(np.asarray(gif.convert("L")))
    for t, frame in enumerate(frames):
        places = {}
        for part, n in ((0, 0), (0, 1), (1, 0), (1, 1)):
            rows, columns = np.nonzero(frame == round(255 * both[part, n, t, 0, 0, 0]))
            assert len(rows) >= 96 * 96
            places[part, n] = np.median(rows), np.median(columns)
        np.testing.assert_allclose(places[0, 0][0], places[0, 1][0], atol=2)  # text has these greys too
        np.testing.assert_allclose(places[0, 0][1], places[1, 0][1], atol=2)
        assert places[0, 0][0] + 90 < places[1, 0][0]
        assert places[0, 0][1] + 90 < places[0, 1][1]


def test_a_strip_shows_frames_from_the_first_to_the_last(tmp_path):
    both = videos(1, 5)
    picture = read(figures.video_frames(tmp_path / "v.png", *both, frames=3, title="t"), "L")
    for part, t, shown in ((0, 0, True), (0, 1, False), (0, 2, True), (0, 4, True), (1, 0, True), (1, 3, False)):
        count = (picture == round(255 * both[part, 0, t, 0, 0, 0])).sum()
        assert (count >= 96 * 96) == shown
    with pytest.raises(ValueError, match=r"videos and reconstructed must have one shape"):
        figures.video_frames(tmp_path / "v.png", both[0], both[1][:, :2])
    with pytest.raises(ValueError, match=r"videos must be \[N, T, H, W, C\]"):
        figures.video_gif(tmp_path / "v.gif", both[0, 0], both[1, 0])
