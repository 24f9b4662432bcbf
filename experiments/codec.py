"""A tokeniser and its prior as a codec of pictures, beside JPEG and WebP: bytes and peak signal-to-noise ratio.

  python -m experiments.vq_vae cifar10 --out runs/vq      first,
  python -m experiments.prior runs/vq --out runs/prior    then a prior over its codes,
  python -m experiments.codec runs/prior                  and one point of the curve for each such run that is named

The codes of the test images are written by range coding with the prior's probabilities
(`jaxvae.evaluation.compress_codes`), read back and compared; the pictures are what the decoder makes of them. JPEG and
WebP get all images on one sheet, so that no header counts, at several qualities. The networks' parameters are not
counted, as no codec's own program is.
"""

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated

import numpy as np
import tyro
from PIL import Image
from rich.table import Table

from experiments import prior
from experiments.command import PictureFormat, console, counter, file_errors, keep_programs, user_errors
from experiments.drawing import data_of, settings_of
from experiments.maps import load_codes
from experiments.other_run import check_made_by
from experiments.report import as_pictures, prepared
from experiments.vq_vae import JPEG_CAVEAT
from jaxvae import checkpoint, figures
from jaxvae._directory import write_whole
from jaxvae._json import to_json
from jaxvae._run import absolute
from jaxvae.evaluation import compress_codes, decompress_codes

QUALITIES = (1, 5, 10, 20, 35, 50, 70, 85, 95)


@dataclasses.dataclass(frozen=True)
class Config:
    """A tokeniser and its prior as a codec of pictures."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Run directories of experiments.prior, over the codes of one set of images."""
    images: int = 1000
    """How many test images, the first ones."""
    out: Path | None = None
    """Where the picture and codec.json go. Default: the first run's directory."""
    picture_format: PictureFormat = "png"
    """What pictures are: pixels, or vectors for print."""

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images must be at least 1, got {self.images}")
        if not self.runs:
            raise ValueError("pass the directory of at least one run of experiments.prior")


def main(argv: Sequence[str] | None = None) -> None:
    """Compress, decompress, compare."""
    with user_errors():
        config = tyro.cli(Config, description=__doc__, args=argv)
        keep_programs()
        runs = [absolute(directory, "a run") for directory in config.runs]
        names = names_of(config.runs, runs)
        sources = {directory: source_of(directory) for directory in runs}
        if len(set(sources.values())) > 1:
            raise ValueError(f"the runs are of different images: {', '.join(sorted(set(sources.values())))}")
    points = {}
    for name, directory in zip(names, runs, strict=True):
        points[name], images = of_run(directory, config.images)
    learned = sorted(points.values(), key=lambda point: point["bits_per_pixel"])
    curves = {"tokeniser and prior": learned} | of_formats(images)
    show(points, curves)

    source, out = sources[runs[0]], absolute(config.out or runs[0], "--out")
    written = {"images": len(images), "runs": points, "curves": curves}
    written |= {"caveat": JPEG_CAVEAT} if source == "cifar10" else {}
    lines = {name: [(point["bits_per_pixel"], point["psnr"]) for point in each] for name, each in curves.items()}
    title = f"{len(images):,} test images of {source} on one sheet"
    with file_errors("run this again"):
        out.mkdir(parents=True, exist_ok=True)
        write_whole(out / "codec.json", to_json(written) + "\n")
        picture = figures.codec_curves(out / f"codec.{config.picture_format}", lines, title=title)
    for path in (picture, out / "codec.json"):
        console.print(str(path), highlight=False)


def names_of(typed: Sequence[Path], runs: Sequence[Path]) -> list[str]:
    """What runs are called: their directories' names, or as they were typed where these agree."""
    if len(set(runs)) < len(runs):
        raise ValueError(f"a run is named twice: {' '.join(map(str, typed))}")
    names = [directory.name for directory in runs]
    return names if len(set(names)) == len(names) else list(map(str, typed))


def source_of(directory: Path) -> str:
    """The name of the set whose codes a run of experiments.prior models."""
    own = settings_of(directory)
    if not own.get("run"):
        raise ValueError(f"{directory} is no run of experiments.prior: it names no tokeniser")
    return data_of(directory)


def of_run(directory: Path, count: int) -> tuple[dict[str, float], np.ndarray]:
    """Bits a pixel and PSNR of a run's codec, and the images [N, H, W, C] that it was given."""
    model, params, _, settings = checkpoint.load(directory, prior.make_model)
    check_made_by(settings, directory, "prior")
    maps = load_codes(SimpleNamespace(**vars(settings) | {"run": Path(settings.run), "smoke": False}))
    count = min(count, len(maps.test))
    images = np.asarray(prepared(maps.images.test, count)["x"])
    codes = np.asarray(maps.test.x[:count]).astype(np.int32)
    condition = () if maps.num_classes is None else (np.asarray(maps.test.label[:count]).astype(np.int32),)
    file = compress_codes(model, params, codes, *condition, progress=counter(f"compressing {directory.name}, batch"))
    again = decompress_codes(model, params, file, *condition, progress=counter("decompressing, batch"))
    if not np.array_equal(again, codes):
        raise AssertionError("the codes that were decompressed are not those that were compressed")
    decoded = np.concatenate([np.asarray(maps.as_images(part)) for part in np.array_split(codes, -(-count // 100))])
    nats = -np.asarray(model.apply(params, codes, *condition, method="log_prob"), np.float64).sum()
    pixels = images[..., 0].size
    return {
        "bits_per_pixel": 8 * len(file) / pixels,
        "prior_bits_per_pixel": float(nats / np.log(2) / pixels),
        "psnr": psnr(images, as_pictures(decoded)),
    }, images


def of_formats(images: np.ndarray) -> dict[str, list[dict[str, float]]]:
    """JPEG and WebP of all images on one sheet, at several qualities."""
    sheet = on_a_sheet(images)
    levels = np.rint(255 * sheet).astype(np.uint8)
    picture = Image.fromarray(levels[..., 0] if levels.shape[-1] == 1 else levels)
    curves: dict[str, list[dict[str, float]]] = {}
    for name, options in {"JPEG": {"optimize": True}, "WebP": {"method": 6}}.items():
        curves[name] = []
        for quality in QUALITIES:
            written = io.BytesIO()
            picture.save(written, name, quality=quality, **options)
            read = np.asarray(Image.open(written).convert(picture.mode), np.float32).reshape(sheet.shape) / 255
            size = 8 * written.tell() / images[..., 0].size
            curves[name].append({"quality": quality, "bits_per_pixel": size, "psnr": psnr(sheet, read)})
    return curves


def on_a_sheet(images: np.ndarray) -> np.ndarray:
    """Images [N, H, W, C] side by side, about as many across as down; black where there are none left."""
    count, height, width, channels = images.shape
    across = int(np.ceil(np.sqrt(count)))
    down = -(-count // across)
    whole = np.zeros((across * down, height, width, channels), np.float32)
    whole[:count] = images
    rows = whole.reshape(down, across, height, width, channels).swapaxes(1, 2)
    return rows.reshape(down * height, across * width, channels)


def psnr(images: np.ndarray, others: np.ndarray) -> float:
    """Peak signal-to-noise ratio in dB of images in [0, 1]."""
    return float(-10 * np.log10(np.square(images.astype(np.float64) - others).mean()))


def show(points: dict[str, dict[str, float]], curves: dict[str, list[dict[str, float]]]) -> None:
    """Print each run beside what JPEG and WebP reach with as many bits."""
    table = Table(title="a codec of pictures")
    for name in ("run", "bits a pixel", "PSNR, dB", "JPEG at as many bits", "WebP at as many bits"):
        table.add_column(name, justify="left" if name == "run" else "right")
    for name, point in points.items():
        cells = [f"{point['bits_per_pixel']:.4f}", f"{point['psnr']:.2f}"]
        table.add_row(
            name, *cells, *(at_equal_bits(curves[other], point["bits_per_pixel"]) for other in ("JPEG", "WebP"))
        )
    console.print(table)


def at_equal_bits(curve: list[dict[str, float]], bits: float) -> str:
    """The PSNR of a format at so many bits, between its two nearest qualities; where its lowest takes more, that."""
    sizes, ratios = ([point[name] for point in curve] for name in ("bits_per_pixel", "psnr"))
    if bits < min(sizes):
        return f"takes {min(sizes):.3f} at least"
    return f"{np.interp(bits, sizes, ratios):.2f}"


if __name__ == "__main__":
    main()
