"""A trained VAE as a lossless codec: the bytes of its test images beside what its ELBO says and what others need.

  python -m experiments.vae burda --out runs/burda    first, or another run of experiments.vae on binarised images
  python -m experiments.bits_back runs/burda

The test images, binarised once, are compressed by bits back (`jaxvae.evaluation.compress`), decompressed and compared.
Beside it: -ELBO / log 2, the same images on one sheet as a PNG of one bit and as lossless WebP, and their bits by gzip.
"""

import dataclasses
import gzip
import io
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import tyro
from PIL import Image
from rich.table import Table

import jaxvae
from experiments import vae
from experiments.command import console, counter, file_errors, keep_programs, user_errors
from experiments.other_run import check_made_by
from experiments.report import evaluator, prepared
from experiments.splits import load_split
from jaxvae import checkpoint, data
from jaxvae._directory import write_whole
from jaxvae._json import to_json
from jaxvae._run import absolute
from jaxvae.evaluation import compress, decompress


@dataclasses.dataclass(frozen=True)
class Config:
    """A trained VAE as a lossless codec."""

    run: Annotated[Path, tyro.conf.Positional]
    """The directory of a run of experiments.vae on binarised images."""
    images: int = 10_000
    """How many test images, the first ones."""
    batch_size: int = 8
    """Images that go through the networks together."""

    def __post_init__(self) -> None:
        for name in ("images", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")


def main(argv: Sequence[str] | None = None) -> None:
    """Compress, decompress, compare."""
    with user_errors():
        config = tyro.cli(Config, description=__doc__, args=argv)
        keep_programs()
        directory = absolute(config.run, "the run")
        model, params, model_state, settings = checkpoint.load(directory, vae.make_model)
        check_made_by(settings, directory, "vae")
        if not getattr(settings, "binarize", False):
            raise ValueError(f"{directory} was not trained on binarised images, and bits back codes zeros and ones")
        test = load_split(settings.data, "test").take(slice(config.images))
    test = test.with_prepare(data.make_prepare(test.levels, binarize=True))
    x = np.asarray(prepared(test, len(test))["x"])
    bits = negative_elbo_bits(model, params, model_state, test)

    start = time.perf_counter()
    parts = (model, params, model_state)
    file = compress(*parts, x, batch_size=config.batch_size, progress=counter("compressing, batch"))
    middle = time.perf_counter()
    again = decompress(*parts, file, progress=counter("decompressing, batch"))
    end = time.perf_counter()
    if not np.array_equal(again, x):
        raise AssertionError("what was decompressed is not what was compressed")
    sizes = {"bits back": 8 * len(file), "-ELBO / log 2": bits * len(x)} | other_formats(x)
    show(sizes, x)
    speeds = {"compressed_per_second": len(x) / (middle - start), "decompressed_per_second": len(x) / (end - middle)}
    console.print(", ".join(f"{speed:,.0f} images {name.replace('_', ' ')}" for name, speed in speeds.items()))
    result = {"images": len(x), "bits_per_pixel": {name: size / x.size for name, size in sizes.items()}} | speeds
    with file_errors("run this again"):
        write_whole(directory / "bits_back.json", to_json(result, indent=2) + "\n")
    console.print(str(directory / "bits_back.json"), highlight=False)


def negative_elbo_bits(model: Any, params: Any, model_state: Any, dataset: data.Dataset) -> float:
    """-ELBO / log 2 of an image, on average, with the rate in closed form."""
    loss_fn = partial(jaxvae.vae_loss, model, num_samples=10)
    state = _State(params, model_state, np.int32(0))
    return evaluator(loss_fn, dataset)(state)["negative_elbo"] / np.log(2)


class _State(NamedTuple):
    params: Any
    model_state: Any
    step: Any


def other_formats(x: np.ndarray) -> dict[str, int]:
    """Bits of the images [N, H, W, 1] by formats that know nothing of digits."""
    columns = int(np.ceil(np.sqrt(len(x))))
    whole = np.zeros((columns * columns, *x.shape[1:3]), np.uint8)
    whole[: len(x)] = x[..., 0]
    height, width = x.shape[1:3]
    sheet = whole.reshape(columns, columns, height, width).swapaxes(1, 2).reshape(columns * height, columns * width)
    picture = Image.fromarray(255 * sheet).convert("1")
    sizes = {}
    for name, options in {"PNG": {"optimize": True}, "WebP": {"lossless": True, "quality": 100, "method": 6}}.items():
        written = io.BytesIO()
        picture.convert("L" if name == "WebP" else "1").save(written, name, **options)
        sizes[name] = 8 * written.tell()
    return sizes | {"gzip": 8 * len(gzip.compress(np.packbits(x.astype(np.uint8)).tobytes(), 9))}


def show(sizes: dict[str, float], x: np.ndarray) -> None:
    """Print the table."""
    table = Table(title=f"{len(x):,} test images")
    for name in ("", "bytes", "bits a pixel"):
        table.add_column(name, justify="left" if not name else "right")
    for name, bits in sizes.items():
        table.add_row(name, f"{bits / 8:,.0f}", f"{bits / x.size:.4f}")
    console.print(table)


if __name__ == "__main__":
    main()
