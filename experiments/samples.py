"""Samples of trained runs, measured side by side: likelihood, sharpness, quality and variety in one table.

  python -m experiments.samples runs/vae runs/prior ...     runs of one data set, of any experiments that draw samples
  python -m experiments.samples vae:runs/old                of runs whose config.json does not name their experiment
  python -m experiments.samples ... --reader runs/samples/reader    in the features of an earlier table's network

Everything is measured in the features of a small classifier or, where the set has no labels, an autoencoder, that is
trained on the set's training images, grey ones and binarised ones, and kept in OUT/reader: **figures compare with those
of the same network, the same numbers of samples and images, and with no others**, least of all with published Fréchet
distances, which are in features of another. Samples of 0 and 1 are compared with binarised test images, others with
grey ones; --binarize draws every pixel of every run with its value as the probability, so that all rows stand on one
footing. The row "training images" says what a perfect model would get. Errors are those of the jackknife over the
samples. An experiment takes part by one function, `draw`: experiments/drawing.py says what it does.
"""

import dataclasses
import importlib
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import tyro
from rich.table import Table

from experiments import classifier
from experiments.command import PictureFormat, console, file_errors, keep_programs, user_errors
from experiments.drawing import data_of, settings_of
from experiments.reader import Read, kind_of, load_reader, read
from experiments.report import over_set, prepared
from experiments.splits import Splits, load_split, load_splits
from jaxvae import data, figures
from jaxvae._directory import write_whole
from jaxvae._json import read_json_object, to_json
from jaxvae._run import absolute
from jaxvae.evaluation import samples, sharpness_ratio
from jaxvae.keys import check_seed, seed_key
from jaxvae.types import Array, Batch, PRNGKey, PyTree

SHOWN = 12  # samples in a row of samples.png
COPIED = 8  # samples beside their nearest training images
TABLES = (("sharpness", "frechet", "kernel"), ("precision", "recall", "density", "coverage", "read", "class_kl"))


@dataclasses.dataclass(frozen=True)
class Config:
    """Samples of trained runs, side by side."""

    runs: Annotated[tuple[str, ...], tyro.conf.Positional]
    """Run directories of one data set, each alone or as EXPERIMENT:DIRECTORY."""
    num: int = 5000
    """Samples of each run, and test images to compare them with, if there are as many."""
    groups: int = 10
    """Of samples, one of which the jackknife leaves out at a time."""
    binarize: bool = False
    """Draw every pixel as 0 or 1 with its value as probability, and compare with binarised images."""
    reader: Path | None = None
    """The directory of a network that an earlier table kept. Default: OUT/reader, trained if it is not there."""
    features: Literal["classifier", "autoencoder"] | None = None
    """Whose features. Default: those of a kept network; of a new one a classifier's, where the set has labels."""
    reader_epochs: int = 3
    """Passes of the network over the training images."""
    seed: int = 0
    """Of the samples and of the network."""
    out: Path | None = None
    """Where the table, the pictures and the network go. Default: runs/samples-TIME."""
    picture_format: PictureFormat = "png"
    """What pictures are: pixels, or vectors for print."""
    smoke: bool = False
    """A few samples, to see that everything works."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if not self.runs:
            raise ValueError("pass the directory of at least one run")
        for name, least in (("num", 1), ("groups", 2), ("reader_epochs", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")
        if self.num - -(-self.num // self.groups) <= classifier.FEATURES:
            features = f"the {classifier.FEATURES} features, with one of {self.groups} groups left out"
            raise ValueError(f"num must be above {features}, got {self.num}")


class Source(NamedTuple):
    """A run: its name in the table, its module and its directory."""

    name: str
    experiment: str
    directory: Path


def main(argv: Sequence[str] | None = None) -> None:
    """Draw, read, measure, show."""
    with user_errors():
        config = tyro.cli(Config, description=__doc__, args=argv)
        keep_programs()
        if config.smoke:
            config = dataclasses.replace(config, num=2 * classifier.FEATURES, groups=4, reader_epochs=1)
        sources = sources_of(config.runs)
        names = {data_of(source.directory) for source in sources}
        if len(names) > 1:
            raise ValueError(f"the runs are of different data: {', '.join(sorted(names))}")
        set_name = names.pop()
        splits = load(set_name, config)
        out = absolute(config.out or Path("runs", f"samples-{time.strftime('%Y%m%d-%H%M%S')}"), "--out")
        reader = load_reader(absolute(config.reader or out / "reader", "--reader"), set_name, splits, config)

    test = {False: images_of(splits.test, config.num), True: images_of(splits.binarized().test, config.num)}
    real = {binary: read(*reader, images) for binary, images in test.items()}
    training = images_of(splits.binarized().train if config.binarize else splits.train, config.num)
    rows = {"training images": measure(real, read(*reader, training), splits, config)}
    drawn = {"training images": training}
    for source in sources:
        with user_errors():
            images, seconds = draw(source, splits, config)
        console.print(f"measuring {source.name} ...", highlight=False)
        found = measure(real, read(*reader, images), splits, config)
        with user_errors():
            rows[source.name] = found | {"seconds_per_sample": seconds / len(images)} | of_training(source)
        drawn[source.name] = images
    result = {"test": rows, "data": set_name, "samples": config.num, "features": kind_of(reader[0])}
    show(rows, len(training), result)
    finish(out, {**result, "settings": config.runs}, drawn, splits, f".{config.picture_format}")


def load(set_name: str, config: Config) -> Splits:
    """The images that the samples are compared with, and how many classes there are where a classifier is asked for."""
    kind = config.features
    if kind is None:
        kind = "classifier" if load_split(set_name, "train").label is not None else "autoencoder"
    return load_splits(SimpleNamespace(data=set_name, smoke=config.smoke), labelled=kind == "classifier")


def sources_of(runs: Sequence[str]) -> list[Source]:
    """The runs that the arguments name, under their directories' names, or as they were typed where these agree."""
    sources = [source_of(run) for run in runs]
    if len({source.name for source in sources}) == len(sources):
        return sources
    if len(set(runs)) < len(runs):
        raise ValueError(f"a run is named twice: {' '.join(runs)}")
    return [source._replace(name=run) for source, run in zip(sources, runs, strict=True)]


def source_of(run: str) -> Source:
    """The run that an argument names; `ValueError` where there is none, or where its experiment draws nothing."""
    experiment, _, path = run.rpartition(":")
    if Path(run).is_dir():  # a name may have a colon in it, as that of a time has
        experiment, path = "", run
    directory = absolute(path, "a run")
    name = experiment or settings_of(directory).get("experiment")
    if name is None:
        raise ValueError(f"{directory} does not say which experiment made it: pass EXPERIMENT:{path}, as in vae:{path}")
    try:
        module = importlib.import_module(f"experiments.{name}")
    except ModuleNotFoundError as error:
        raise ValueError(f"there is no experiment {name!r} to draw from {directory}") from error
    if not hasattr(module, "draw"):
        raise ValueError(f"experiments.{name} draws no samples: it lacks the `draw` of experiments/drawing.py")
    return Source(directory.name, name, directory)


def images_of(dataset: data.Dataset, num: int) -> np.ndarray:
    """The first images of a set as its `prepare` makes them, at most `num`."""
    return np.asarray(over_set(_x, SimpleNamespace(params=(), model_state=()), dataset.take(slice(num))))


def _x(params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> Array:
    del params, model_state, key
    return batch["x"]


def draw(source: Source, splits: Splits, config: Config) -> tuple[np.ndarray, float]:
    """Samples of a run, and how long they took; `ValueError` where they are no pictures like those of the data."""
    began = time.perf_counter()
    module = importlib.import_module(f"experiments.{source.experiment}")
    images = np.asarray(module.draw(source.directory, config.num, key=seed_key(config.seed)))
    seconds = time.perf_counter() - began
    expected = (config.num, *splits.train.shape)
    if images.shape != expected or not (np.isfinite(images) & (images >= 0) & (images <= 1)).all():
        raise ValueError(f"experiments.{source.experiment} drew {images.shape}: {expected} in [0, 1] were expected")
    if config.binarize:
        images = np.random.default_rng(config.seed).random(images.shape) < images
    return images.astype(np.float32), seconds


def measure(real: dict[bool, Read], drawn: Read, splits: Splits, config: Config) -> dict[str, Any]:
    """All figures of samples, each with the error of it."""
    binary = bool(np.isin(drawn.images, (0, 1)).all())
    known = real[binary]

    def figures_of(chosen: np.ndarray) -> dict[str, float]:
        features = drawn.features[chosen]
        neighbours = samples.precision_recall(known.features, features)
        density = samples.density_coverage(known.features, features)
        classes = {} if drawn.logits is None else classes_of(drawn.logits[chosen], splits)
        return {
            "sharpness": sharpness_ratio(known.images, drawn.images[chosen]),
            "frechet": samples.frechet_distance(known.features, features),
            "kernel": samples.kernel_distance(known.features, features).value,
            **neighbours._asdict(),
            **density._asdict(),
            **classes,
        }

    found: dict[str, Any] = {"compared_with": "binarised images" if binary else "grey images"}
    for name, estimate in samples.jackknife(figures_of, np.arange(len(drawn.images)), groups=config.groups).items():
        found |= {name: estimate.value, f"{name}_standard_error": estimate.standard_error}
    return found


def classes_of(logits: np.ndarray, splits: Splits) -> dict[str, float]:
    """How many samples a classifier reads, and how far their classes are from those of the test images."""
    shares = np.bincount(splits.test.label, minlength=logits.shape[1]) + 1e-9
    kl = samples.class_balance(logits, shares / shares.sum()).kl
    return {"read": samples.read_rate(logits).value, "class_kl": kl}


def of_training(source: Source) -> dict[str, float]:
    """What a run says of itself: nats of an image, where it has them, and the seconds that it took."""
    file = source.directory / "result.json"
    if not file.is_file():
        return {}
    result = read_json_object(file)
    names = ("negative_elbo",) if settings_of(source.directory).get("run") else ("nll", "negative_elbo")
    nats = [result["test"][name] for name in names if name in result["test"]]
    seconds = result.get("train_seconds", result.get("seconds"))
    found = {"nats": nats[0] if nats else None, "train_seconds": seconds}
    return {name: value for name, value in found.items() if value is not None}


def show(rows: dict[str, dict[str, Any]], num: int, result: dict[str, Any]) -> None:
    """Print two tables: likelihood beside sharpness and the distances, and what the distances consist of."""
    console.print(
        f"{num:,} samples of each, beside test images of {result['data']}: compare within these tables alone, and nats "
        "with those of the same pixels",
        highlight=False,
    )
    for names in TABLES:
        first, known = names == TABLES[0], [name for name in names if name in rows["training images"]]
        title = f"in the features of one {result['features']}"
        table = Table("", *(["nats"] if first else []), *(name.replace("_", " ") for name in known), title=title)
        if first:
            table.add_column("s a sample")  # with loading and compiling
        for name, row in rows.items():
            cells = [f"{row[each]:.3g} ± {row[f'{each}_standard_error']:.1g}" for each in known]
            if first:
                nats, seconds = row.get("nats"), row.get("seconds_per_sample")
                cells = ["" if nats is None else f"{nats:.2f}", *cells, "" if seconds is None else f"{seconds:.2g}"]
            table.add_row(f"{name} ({row['compared_with'].split()[0]})", *cells)
        console.print(table)


@file_errors("run this again")
def finish(out: Path, result: dict[str, Any], drawn: dict[str, np.ndarray], splits: Splits, suffix: str) -> None:
    """Write result.json, a row of samples of each run, and samples above the training images nearest to them."""
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "result.json", to_json(result, indent=2) + "\n")
    known = np.asarray(prepared(splits.train, len(splits.train))["x"])
    pairs = {}
    for name, images in list(drawn.items())[1:]:
        nearest, _ = samples.nearest_neighbors(known, images[:COPIED])
        pairs |= {name: images[:COPIED], f"nearest to {name}": known[nearest[:, 0]]}
    rows = {name: images[:SHOWN] for name, images in drawn.items()}
    for path in (
        figures.labelled_rows(out / f"samples{suffix}", rows, title=f"samples beside images of {result['data']}"),
        figures.labelled_rows(out / f"neighbours{suffix}", pairs, title="samples, and the nearest training images"),
        out / "result.json",
    ):
        console.print(str(path), highlight=False)


if __name__ == "__main__":
    main()
