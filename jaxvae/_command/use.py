"""`jaxvae sample`, `encode`, `reconstruct` and `evaluate`: what a run is asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from jaxvae._command import outputs
from jaxvae._command.sources import csv_options, data_for
from jaxvae._terminal import console
from jaxvae.data import Dataset
from jaxvae.run import Run, load

Out = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
RunDirectory = Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="RUN")]
Data = Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]


def read_data(
    directory: Path, source: str, *, split: str | None = None, skip_unreadable: bool = False
) -> tuple[Run, Dataset]:
    """The run in a directory, and data as its model takes them."""
    run = load(directory)
    return run, data_for(run, directory.expanduser(), source, split=split, skip_unreadable=skip_unreadable)


@dataclass(frozen=True)
class _OfData:
    run: RunDirectory
    """The directory that a training wrote."""
    data: Data
    """A folder of pictures, brought to the size of the run's; a .npy, .npz, .csv or .parquet file; or a set's name."""

    split: Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")] = None
    """Which part of a set that goes by a name. Default: test."""
    skip_unreadable: bool = False
    """Leave out files in a folder that are no pictures, instead of stopping at them."""

    def read(self) -> tuple[Run, Dataset]:
        """The run, and the data as its model takes them."""
        return read_data(self.run, self.data, split=self.split, skip_unreadable=self.skip_unreadable)

    def target(self, path: Path) -> Path:
        """The path to write to, unless DATA or the run itself would be lost by it."""
        return outputs.spared(path, self.run, self.data)


@dataclass(frozen=True)
class Sample:
    """Draw from a run's prior: a picture of the samples, an array where x is no picture, or the rows of a table."""

    run: RunDirectory
    """The directory that a training wrote."""
    num: int = 64
    """How many."""
    seed: int = 0
    """Decides which."""
    out: Out = None
    """Where to, .png, .svg, .pdf, .npy or of a table .csv. Default: samples.png, .npy or .csv in RUN."""

    def __call__(self) -> None:
        """Draw and write."""
        run = load(self.run)
        suffix = outputs.picture_or_array(run)
        path = outputs.checked_suffix(self.out or self.run / f"samples{suffix}", *outputs.allowed(suffix))
        outputs.print_paths(samples=outputs.write_samples(path, run, num=self.num, seed=self.seed))


@dataclass(frozen=True)
class Encode(_OfData):
    """Write the codes of data, means of q(z|x) or a VQ-VAE's indices: a row for each x, pictures by their paths."""

    out: Out = None
    """Where to, .npy or .csv, which has the pictures' paths too. Default: codes.npy in RUN."""

    def __call__(self) -> None:
        """Encode and write."""
        path = self.target(outputs.checked_suffix(self.out or self.run / "codes.npy", ".npy", ".csv"))
        run, dataset = self.read()
        codes = run.encode(dataset)
        if isinstance(codes, tuple):  # of several groups of latents, those of z_1 first
            codes = np.concatenate([each.reshape(len(each), -1) for each in codes], axis=1)
        console.print(f"{len(codes)} codes of {codes.shape[1:]}", highlight=False)
        outputs.print_paths(codes=outputs.write_codes(path, codes, dataset.example_names))


@dataclass(frozen=True)
class Reconstruct(_OfData):
    """Draw data over their reconstructions, or write an array of these: the means of p(x|z) at the codes."""

    num: int = 40
    """How many, from the first on; an array has them all."""
    out: Out = None
    """Where to, .png, .svg, .pdf, .npy or of a table .csv. Default: reconstructions.png, .npy or .csv in RUN."""

    def __call__(self) -> None:
        """Reconstruct and write."""
        run, dataset = self.read()
        suffix = outputs.picture_or_array(run)
        path = self.target(
            outputs.checked_suffix(self.out or self.run / f"reconstructions{suffix}", *outputs.allowed(suffix))
        )
        if self.num < 1:
            raise ValueError(f"--num must be at least 1, got {self.num}")
        drawn = dataset.take(slice(self.num)) if path.suffix in outputs.FORMATS else dataset
        outputs.print_paths(reconstructions=outputs.write_reconstructions(path, run, drawn))


@dataclass(frozen=True)
class Impute(_OfData):
    """Fill in the missing entries of data, NaN, by a run that was trained on data with missing entries."""

    num_samples: int = 1000
    """Importance samples for each x."""
    num_draws: int = 10
    """Whole examples to draw for each x."""
    seed: int = 0
    """Decides the draws."""
    out: Out = None
    """Where to: .npz has means, error bars (std), their Monte Carlo errors, draws and effective sample sizes, .npy and
    .csv the means; of a table .csv has all of it, with its holes filled. Default: imputed.npz in RUN."""

    def __call__(self) -> None:
        """Fill in and write."""
        path = self.target(outputs.checked_suffix(self.out or self.run / "imputed.npz", ".npz", ".npy", ".csv"))
        run, dataset = self.read()
        filled = run.impute(dataset, num_samples=self.num_samples, num_draws=self.num_draws, seed=self.seed)
        missing = int((~dataset.arrays["observed"]).sum())
        effective = float(np.median(filled.effective_samples))
        console.print(
            f"{missing} entries filled in; effective samples, the median: {effective:.0f} of {self.num_samples}",
            highlight=False,
        )
        table = None
        if dataset.domain.kind == "table":
            source = Path(self.data).expanduser()
            table = {"table": source, **csv_options(self.run.expanduser(), source)}
        outputs.print_paths(imputed=outputs.write_imputed(path, filled, run, table=table))


@dataclass(frozen=True)
class Evaluate(_OfData):
    """Measure how likely a run makes data: -log p(x) by importance sampling with its Monte Carlo error, and -ELBO."""

    num_samples: int = 100
    """Importance samples for each x."""
    seed: int = 0
    """Decides the noise."""
    json: Out = None
    """Write the figures to this file too."""

    def __call__(self) -> None:
        """Measure, print and write."""
        path = None if self.json is None else self.target(self.json)
        run, dataset = self.read()
        measured = run.evaluate(dataset, num_samples=self.num_samples, seed=self.seed)
        outputs.print_measured({dataset.name: measured}, run, num_samples=self.num_samples)
        if path is not None:
            record = {"data": self.data, "examples": len(dataset), "num_samples": self.num_samples, **measured}
            outputs.print_paths(figures=outputs.write_json(path, record))
