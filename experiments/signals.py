"""Images, sound and video beside what a model makes of them, as pictures and files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments.report import as_pictures
from jaxvae import data, figures

SOUNDS, VIDEOS, STRIPS = 7, 6, 3  # how many are drawn
WRITTEN = 3  # sounds as files
SIGNALS = ("speech", "moving_sprites")  # data that are no pictures
FEW = (64, 32)  # of them in a smoke run


def save_reconstructions(
    directory: Path,
    dataset: data.Dataset,
    x: np.ndarray,
    reconstructed: np.ndarray,
    indices: np.ndarray,
    *,
    suffix: str = ".png",
    **options: int,
) -> list[Path]:
    """The first examples of a set, x [M, ...], their reconstructions and, of images, the maps of their indices.

    Sound [M, T, C] becomes spectrograms and, where soundfile is installed, WAV files; video [M, T, H, W, C] a GIF and a
    strip of frames. Pictures end in `suffix`. The options are
    those of `figures.index_maps`.
    """
    if dataset.rate is not None:
        return _save_sound(directory, dataset, x, reconstructed, suffix)
    reconstructed = as_pictures(reconstructed)
    if x.ndim == 4:
        few = x[:10], indices[:10], reconstructed[:10]
        return [
            figures.reconstructions(
                directory / f"reconstructions{suffix}", x, reconstructed, title="test images and their reconstructions"
            ),
            figures.index_maps(directory / f"index_maps{suffix}", *few, title="test images as codes", **options),
        ]
    return [
        figures.video_gif(directory / "reconstructions.gif", x[:VIDEOS], reconstructed[:VIDEOS]),
        figures.video_frames(
            directory / f"reconstructions{suffix}", x[:STRIPS], reconstructed[:STRIPS], title="test videos, some frames"
        ),
    ]


def save_pairs(
    directory: Path,
    dataset: data.Dataset,
    name: str,
    above: np.ndarray,
    below: np.ndarray,
    names: tuple[str, str],
    *,
    suffix: str = ".png",
) -> list[Path]:
    """Sounds or videos over others, each pair of rows with its names, as files that begin with `name`."""
    if dataset.rate is not None:
        few = above[:SOUNDS], below[:SOUNDS]
        drawn = figures.spectrograms(directory / f"{name}{suffix}", *few, rate=dataset.rate, names=names)
        return [drawn, *_written(directory, *few, rate=dataset.rate, names=names)]
    above, below = as_pictures(above), as_pictures(below)
    return [
        figures.video_gif(directory / f"{name}.gif", above[:VIDEOS], below[:VIDEOS], names=names),
        figures.video_frames(directory / f"{name}{suffix}", above[:STRIPS], below[:STRIPS], names=names),
    ]


def _save_sound(
    directory: Path, dataset: data.Dataset, x: np.ndarray, reconstructed: np.ndarray, suffix: str
) -> list[Path]:
    few, names = (x[:SOUNDS], reconstructed[:SOUNDS]), None
    if dataset.label is not None and dataset.label_names:
        names = [str(dataset.label_names[label]) for label in dataset.label[:SOUNDS]]
    drawn = figures.spectrograms(directory / f"spectrograms{suffix}", *few, rate=dataset.rate, labels=names)
    return [drawn, *_written(directory, *few, rate=dataset.rate)]


def _written(
    directory: Path,
    x: np.ndarray,
    reconstructed: np.ndarray,
    *,
    rate: int,
    names: Sequence[str] = ("input", "reconstruction"),
) -> list[Path]:
    """WAV files of sixteen bits; none without soundfile."""
    try:
        import soundfile
    except (ModuleNotFoundError, OSError):
        return []
    paths = []
    for i in range(min(WRITTEN, len(x))):
        for name, sound in zip(names, (x[i], reconstructed[i]), strict=True):
            paths.append(directory / f"{name}_{i + 1}.wav")
            soundfile.write(paths[-1], sound.clip(-1, 1), rate, subtype="PCM_16")
    return paths
