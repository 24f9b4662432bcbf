"""Textures made from one sample as Gaussian fields (Galerne, Gousseau and Morel, 2011), and where that fails.

  python -m experiments.textures                  brick, grass and gravel, which come with scikit-image
  python -m experiments.textures --shrink 8       the same seen from eight times as far

Of each sample its periodic component (Moisan, 2011), asymptotic discrete spot noise and random phase noise, at its own
size and at twice that, with their spectra. Both keep what two pixels have to do with each other, which is all that a
Gaussian knows: scale, direction, roughness. Edges are what it does not know: bricks come out as woven cloth, blades of
grass and stones as their grain. From farther away (--shrink), where these are a grain too, an eye misses nothing, but
bricks remain cloth. The excess kurtosis of the Laplacian is 0 for every Gaussian field, whatever its spectrum: far
from 0, the sample has edges; near 0, it may have none, or regular ones.
"""

import dataclasses
import time
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import tyro
from rich.table import Table

from experiments.command import PictureFormat, console, file_errors, keep_programs, user_errors
from experiments.report import as_pictures
from jaxvae import figures
from jaxvae._directory import write_whole
from jaxvae._json import to_json
from jaxvae._run import absolute
from jaxvae.evaluation.classical import periodic_smooth, random_phase_noise, spot_noise
from jaxvae.keys import check_seed, seed_key

NAMES = ("brick", "grass", "gravel")
KINDS = ("sample", "spot noise", "random phase")


@dataclasses.dataclass(frozen=True)
class Config:
    """Textures made from one sample as Gaussian fields."""

    textures: tuple[str, ...] = NAMES
    """Which, of brick, grass and gravel."""
    size: int = 256
    """Pixels on each side of the sample, the upper left part of the image, which has 512; all where it has fewer."""
    shrink: int = 1
    """How many pixels of the image, on each side, are one of the sample: a divisor of 512."""
    larger: int = 2
    """How many times the sample's size the larger syntheses have."""
    seed: int = 0
    """Decides all noise."""
    out: Path | None = None
    """Where the pictures and the figures go. Default: runs/textures-TIME."""
    picture_format: PictureFormat = "png"
    """What pictures are: pixels, or vectors for print."""
    smoke: bool = False
    """Small samples, to see that everything works."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if not self.textures or set(self.textures) - set(NAMES):
            raise ValueError(f"textures must be some of {', '.join(NAMES)}, got {' '.join(self.textures) or 'none'}")
        for name, least, most in (("size", 8, 512), ("larger", 1, 8), ("shrink", 1, 64)):
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"{name} must lie in {least} .. {most}, got {getattr(self, name)}")
        if 512 % self.shrink:
            raise ValueError(f"shrink must divide 512, the side of the images, got {self.shrink}")


def main(argv: Sequence[str] | None = None) -> None:
    """Make, measure, draw."""
    with user_errors():
        config = tyro.cli(Config, description=__doc__, args=argv)
        keep_programs()
        if config.smoke:
            config = dataclasses.replace(config, size=min(config.size, 32))
        samples = {name: load(name, config.shrink)[: config.size, : config.size] for name in config.textures}
        out = absolute(config.out or Path("runs", f"textures-{time.strftime('%Y%m%d-%H%M%S')}"), "--out")
    rows: dict[str, np.ndarray] = {}
    larger: dict[str, np.ndarray] = {}
    kurtosis: dict[str, dict[str, float]] = {}
    for i, (name, sample) in enumerate(samples.items()):
        keys = jax.random.split(jax.random.fold_in(seed_key(config.seed), i), 4)
        made = [sample, spot_noise(sample, key=keys[0]), random_phase_noise(sample, key=keys[1])]
        periodic, _ = periodic_smooth(sample)
        whole = [periodic, *made[1:]]  # what a spectrum and a Laplacian over the borders mean
        kurtosis[name] = {kind: excess_kurtosis(field) for kind, field in zip(KINDS, whole, strict=True)}
        rows[name] = as_pictures(np.stack(made)[..., None])
        rows[f"spectra of {name}"] = spectra(whole)
        shape = (config.larger * len(sample),) * 2
        both = [make(sample, shape, key=key) for make, key in ((spot_noise, keys[2]), (random_phase_noise, keys[3]))]
        larger[name] = as_pictures(np.stack(both)[..., None])
    show(kurtosis)
    finish(out, config, kurtosis, rows, larger)


def load(name: str, shrink: int) -> np.ndarray:
    """A texture in [0, 1], 512 / shrink pixels on each side; `ImportError` where scikit-image is missing."""
    try:
        from skimage import data
    except ImportError as error:
        raise ImportError("the textures come with scikit-image: pip install scikit-image") from error
    image = np.asarray(getattr(data, name)(), np.float64) / 255
    side = len(image) // shrink
    return image.reshape(side, shrink, side, shrink).mean(axis=(1, 3))


def excess_kurtosis(field: np.ndarray) -> float:
    """Of the Laplacian over the torus of a field [H, W]: the standardised fourth moment less 3."""
    edges = sum(np.roll(field, step, axis) - field for step in (1, -1) for axis in (0, 1))
    return float((edges**4).mean() / np.square(edges).mean() ** 2 - 3)


def spectra(fields: Sequence[np.ndarray]) -> np.ndarray:
    """Log moduli of fields [H, W] as pictures [N, H, W, 1] on the first one's scale, frequency 0 in the middle."""
    moduli = [np.abs(np.fft.fftshift(np.fft.fft2(field - field.mean()))) for field in fields]
    logs = np.log1p(np.stack(moduli))[..., None]
    return np.asarray(logs / logs[0].max()).clip(0, 1)


def show(kurtosis: dict[str, dict[str, float]]) -> None:
    """Print the table."""
    table = Table("", *KINDS, title="excess kurtosis of the Laplacian, 0 for Gaussian fields")
    for name, values in kurtosis.items():
        table.add_row(name, *(f"{value:.2f}" for value in values.values()))
    console.print(table)


@file_errors("run this again")
def finish(
    out: Path,
    config: Config,
    kurtosis: dict[str, dict[str, float]],
    rows: dict[str, np.ndarray],
    larger: dict[str, np.ndarray],
) -> None:
    """Write the figures and the pictures."""
    out.mkdir(parents=True, exist_ok=True)
    result = {"test": {"excess_kurtosis": kurtosis}, "config": dataclasses.asdict(config)}
    write_whole(out / "result.json", to_json(result, indent=2, default=str) + "\n")
    suffix = f".{config.picture_format}"
    title = f"{config.larger} times as large as the sample: spot noise, random phase"
    for path in (
        figures.labelled_rows(out / f"textures{suffix}", rows, title="columns: sample, spot noise, random phase"),
        figures.labelled_rows(out / f"larger{suffix}", larger, title=title),
        out / "result.json",
    ):
        console.print(str(path), highlight=False)


if __name__ == "__main__":
    main()
