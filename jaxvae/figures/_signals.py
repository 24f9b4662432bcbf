"""Sound as spectrograms, and video as frames, still and moving."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from jaxvae._checks import at_least
from jaxvae._host import host_reals
from jaxvae.figures._page import WIDTH, check_images, check_means, new_figure, new_page, save, tidy, tile, write
from jaxvae.figures._pictures import save_gif

DYNAMIC_RANGE = 60.0  # decibels below the loudest part of a sound that are drawn
INCHES = 1.7  # across a spectrogram
ROWS = ("input", "reconstruction")  # names of a pair of rows, one above the other


def spectrograms(
    path: str | Path,
    sounds: ArrayLike,
    reconstructed: ArrayLike,
    *,
    rate: int,
    labels: Sequence[str] | None = None,
    names: Sequence[str] = ROWS,
    window: int = 256,
    title: str | None = None,
) -> Path:
    """Spectrograms of sounds [N, T, C] over those of their reconstructions; of several channels the mean.

    The power in Hann windows of `window` samples, three quarters of which overlap, in decibels below the loudest of the
    sound above: both of a pair have one scale, 60 decibels deep. `rate` is the samples a second; `labels`, one for each
    sound, stand above, and the two `names` beside their rows.
    """
    pair = [_check_sounds(sounds, "sounds"), _check_sounds(reconstructed, "reconstructed")]
    if pair[0].shape != pair[1].shape:
        raise ValueError(f"sounds and reconstructed must have one shape, got {pair[0].shape} and {pair[1].shape}")
    at_least(1, rate=rate)
    count, length, _ = pair[0].shape
    if not 4 <= window <= length:
        raise ValueError(f"window must lie in 4 .. {length}, the samples of a sound, got {window}")
    if labels is not None and len(labels) != count:
        raise ValueError(f"labels must be {count}, one per sound, got {len(labels)}")
    powers = np.stack([_powers(each.mean(axis=-1), window) for each in pair])
    loudest = powers[0].max(axis=(1, 2), keepdims=True)
    floor = 10 ** (-DYNAMIC_RANGE / 10)
    levels = 10 * np.log10(np.maximum(powers / np.where(loudest > 0, loudest, 1), floor))

    figure = new_figure(0.9 + INCHES * count, 4.4)
    rows = figure.subplots(2, count, sharex=True, sharey=True, squeeze=False)
    figure.subplots_adjust(left=0.7 / (0.9 + INCHES * count), right=0.99, bottom=0.12, top=0.88, wspace=0.06)
    for row, name, decibels in zip(rows, _check_names(names), levels, strict=True):
        for axes, picture in zip(row, decibels, strict=True):
            extent = (0, 1000 * length / rate, 0, rate / 2000)
            axes.imshow(
                picture.T, origin="lower", aspect="auto", extent=extent, vmin=-DYNAMIC_RANGE, vmax=0, cmap="magma"
            )
            tidy(axes)
        row[0].set_ylabel(f"{name}\nfrequency (kHz)")
    for axes, label in zip(rows[0], labels or [""] * count, strict=True):
        axes.set_title(label, fontsize=9)
    for axes in rows[1]:
        axes.set_xlabel("time (ms)")
    if title:
        figure.suptitle(title, fontsize=9.5)
    return save(figure, path)


def video_gif(
    path: str | Path, videos: ArrayLike, reconstructed: ArrayLike, *, fps: int = 8, names: Sequence[str] = ROWS
) -> Path:
    """An animated GIF of videos [N, T, H, W, C] over their reconstructions, side by side; it repeats for ever.

    A GIF counts hundredths of a second: `fps` is rounded to what they can say. Greys are exact; of colours the file has
    256. The two `names` stand beside their rows.
    """
    names = _check_names(names)
    above, below = _check_videos(videos, reconstructed)
    pages = []
    for t in range(above.shape[1]):
        canvas, tops, _ = tile(np.stack([above[:, t], below[:, t]]), width=WIDTH)
        page, (left, top) = new_page(canvas, title=None, left=112)
        for name, y in zip(names, tops, strict=True):
            write(page, left - 8, top + y + (tops[1] - tops[0]) / 2, name, ha="right", va="center")
        pages.append(page)
    return save_gif(path, pages, grey=above.shape[-1] == 1, fps=fps)


def video_frames(
    path: str | Path,
    videos: ArrayLike,
    reconstructed: ArrayLike,
    *,
    frames: int = 8,
    names: Sequence[str] = ROWS,
    title: str | None = None,
) -> Path:
    """A strip of at most `frames` frames, evenly spread, of each video [N, T, H, W, C] over its reconstruction's.

    The two `names` stand beside their rows.
    """
    names = _check_names(names)
    above, below = _check_videos(videos, reconstructed)
    at_least(1, frames=frames)
    length = above.shape[1]
    shown = np.unique(np.linspace(0, length - 1, min(frames, length)).round().astype(int))
    cells = np.stack([above[:, shown], below[:, shown]], axis=1).reshape(-1, len(shown), *above.shape[2:])
    canvas, tops, lefts = tile(cells, spaces_above=range(2, len(cells), 2))
    page, (left, top) = new_page(canvas, title=title, left=112, below=20)
    middle = (tops[1] - tops[0]) / 2
    for row, y in enumerate(tops):
        write(page, left - 8, top + y + middle, names[row % 2], ha="right", va="center")
    across = (canvas.shape[1] - lefts[-1]) / 2
    for x, t in zip(lefts, shown, strict=True):
        write(page, left + x + across, top + canvas.shape[0] + 5, f"frame {t + 1}", ha="center", va="top")
    return save(page, path)


def _check_names(names: Sequence[str]) -> Sequence[str]:
    if isinstance(names, str) or len(names) != 2:
        raise ValueError(f"names must be two, one for each row of a pair, got {names!r}")
    return names


def _powers(sounds: np.ndarray, window: int) -> np.ndarray:
    """|STFT|² of [N, T] -> [N, frames, window / 2 + 1]."""
    frames = np.lib.stride_tricks.sliding_window_view(sounds, window, axis=-1)[:, :: max(1, window // 4)]
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window) / window)
    return np.square(np.abs(np.fft.rfft(frames * hann)))


def _check_sounds(sounds: ArrayLike, name: str) -> np.ndarray:
    values = host_reals(sounds, name)
    if values.ndim != 3 or not values.size:
        raise ValueError(f"{name} must be [N, T, C], got {values.shape}")
    if not np.isfinite(values).all():
        first = tuple(map(int, np.argwhere(~np.isfinite(values))[0]))
        raise ValueError(f"{name}[{first[0]}] has {values[first]}, which is not finite")
    return values


def _check_videos(videos: ArrayLike, reconstructed: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    above = check_images(videos, "videos", "N, T, H, W, C")
    below = check_means(reconstructed, "reconstructed", "N, T, H, W, C")
    if above.shape != below.shape:
        raise ValueError(f"videos and reconstructed must have one shape, got {above.shape} and {below.shape}")
    return above, below
