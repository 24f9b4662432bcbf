"""`jaxvae train`: from data to a run directory with figures and pictures."""

import math
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import optax
import tyro

from jaxvae._checks import at_least
from jaxvae._command import models, outputs, sources
from jaxvae._terminal import complain, console
from jaxvae.data import Dataset, split_validation
from jaxvae.data._table_files import Decimal
from jaxvae.data.files import Colour, Fit
from jaxvae.keys import check_seed, seed_key
from jaxvae.run import Run, train

# Where nothing is given the default is in the help itself.
Number = Annotated[int | None, tyro.conf.arg(metavar="N", help_behavior_hint="")]
Widths = Annotated[tuple[int, ...], tyro.conf.arg(metavar="N ...", help_behavior_hint="")]
DRAWN = 40  # reconstructions in the picture
SAMPLES = 64
MANY = 2560  # training examples; fewer make too few steps of the usual size
FEWEST_STEPS = 2000
LOOKED_AT = 4096  # examples whose scale is measured
FARTHEST_SCALE = 30.0  # of real numbers; from there on one learned scale and Adam's first steps do not suit


@dataclass(frozen=True)
class Train:
    """Train a model on data, keep a part of them apart to choose the best epoch by, and write a run directory.

    The model and its likelihood are chosen by the data. Where pictures differ in size, pass --size.
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    """A folder of pictures, a .npy or .npz file with x [N, ...], a .csv or .parquet table, or a set's name: digits."""

    model: models.Name = "auto"
    """Which model: conv-vae for pictures and vae for anything else, unless said otherwise."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="DIR", help_behavior_hint="")] = None
    """The run directory, which must be new or empty. Default: runs/DATA-MODEL-TIME."""
    resume: bool = False
    """Continue the interrupted run in --out from its newest checkpoint. --epochs may be more than before."""
    epochs: Number = None
    """Passes over the training examples. Default: 20, or as many as make 2,000 steps."""
    seed: int = 0
    """Decides the initial parameters, the order of the examples, all noise, and what is kept apart."""
    batch_size: Number = None
    """Examples per step. Default: 128, 32 of fewer than 2,560, or all where they are fewer still."""
    learning_rate: float = 1e-3
    """Of Adam."""
    validation: float = 0.1
    """Which share of the examples to keep apart; 0 keeps none."""
    patience: Number = None
    """Stop after so many epochs that brought nothing better."""
    num_samples: int = 100
    """Importance samples for each x in the final -log p(x)."""

    latent_dim: Number = None
    """Latents. Default: near the root of the number of values in x. Of vq-vae the numbers in a code. Default: 64."""
    channels: Widths = ()
    """Of the convolutions of conv-vae and vq-vae, each of which halves the picture. Default: by its size."""
    hidden: Widths = ()
    """Widths of the dense layers of vae. Default: 256 256."""
    num_codes: Number = None
    """Codes of vq-vae. Default: 512."""

    size: Annotated[tuple[int, ...], tyro.conf.arg(metavar="H [W]", help_behavior_hint="")] = ()
    """Bring the pictures of a folder to this size. Default: their own, where it is one."""
    fit: Annotated[Fit | None, tyro.conf.arg(metavar="{crop,pad,resize}", help_behavior_hint="")] = None
    """How: cover the size and crop, fit into it and pad with black, or stretch. Default: crop."""
    colour: Literal["auto"] | Colour = "auto"
    """Make all pictures of a folder grey or RGB; auto: grey where all are."""
    skip_unreadable: bool = False
    """Leave out files in a folder that are no pictures, instead of stopping at them."""
    values: sources.Values = "auto"
    """What the numbers in a file are. By their type: integers are levels, floating ones in [0, 1], or else real."""
    levels: Number = None
    """How many values an integer in a file can take: 2 for zeros and ones, 256 for bytes."""

    label: Annotated[str | None, tyro.conf.arg(metavar="TITLE", help_behavior_hint="")] = None
    """The column of a table that labels its rows, and is no part of x."""
    drop: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TITLE ...", help_behavior_hint="")] = ()
    """Columns of a table to leave out."""
    columns: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TITLE=KIND ...", help_behavior_hint="")] = ()
    """What columns hold: real, counts or categories. By their values: text, and 0 and 1, are categories, other whole
    numbers from zero up counts, all other numbers real."""
    decimal: Decimal = "."
    """Of the numbers in a .csv file."""
    missing: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEXT ...", help_behavior_hint="")] = ()
    """What else stands for a missing entry in a .csv file, such as ?, beside nothing, NA, nan, null and None."""

    def __call__(self) -> None:
        """Read, train, save, measure and draw."""
        self._check()
        training, test = sources.training_data(
            self.data,
            values=self.values,
            levels=self.levels,
            size=self.size,
            fit=self.fit,
            colour=None if self.colour == "auto" else self.colour,
            skip_unreadable=self.skip_unreadable,
            label=self.label,
            drop=self.drop,
            columns=self.columns,
            decimal=self.decimal,
            missing=self.missing,
        )
        name = models.default_name(training) if self.model == "auto" else self.model
        default = Path("runs", f"{Path(self.data).stem or 'data'}-{name}-{time.strftime('%Y%m%d-%H%M%S')}")
        out = (self.out or default).expanduser()
        model, likelihood = models.make_model(
            name,
            training,
            latent_dim=self.latent_dim,
            channels=self.channels,
            hidden=self.hidden,
            num_codes=self.num_codes,
        )
        _warn_of_scales(training)
        held = None
        if self.validation:
            training, held = split_validation(training, self.validation, seed=self.seed)
        kept = "none" if held is None else f"{len(held):,}"
        console.print(
            f"{name} with {likelihood} on {training.name}: {len(training):,} examples of {training.shape}, "
            f"{training.domain.kind}; {kept} kept apart",
            highlight=False,
            markup=False,
        )
        batch_size = self.batch_size or min(len(training), 128 if len(training) >= MANY else 32)
        run = train(
            model,
            training,
            epochs=self.epochs or _default_epochs(len(training), batch_size),
            seed=self.seed,
            optimizer=optax.adam(self.learning_rate),
            batch_size=batch_size,
            validation=held or 0,
            patience=self.patience,
            out=out,
            resume=self.resume,
        )
        if run.stopped:
            goes_on = "" if run.stopped == "early stopping" else f"; --out {out} --resume goes on from there"
            console.print(f"{run.stopped}{goes_on}", highlight=False, markup=False)
        _say_if_short(run)
        outputs.write_json(out / sources.OPTIONS, _plain(asdict(self)) | {"model": name, "likelihood": likelihood})
        splits = {"validation": held, "test": test} if held or test else {"training": training}
        self._report(run, out, {split: each for split, each in splits.items() if each is not None})

    def _check(self) -> None:
        """Raise for a number that is out of range and a directory that is taken, before anything is read."""
        check_seed(self.seed)
        optional = ("epochs", "batch_size", "patience", "latent_dim", "num_codes", "levels")
        given = {name: getattr(self, name) for name in optional if getattr(self, name) is not None}
        at_least(1, num_samples=self.num_samples, **given)
        at_least(1, channels=self.channels, hidden=self.hidden, size=self.size)
        if not 0 < self.learning_rate < np.inf:
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate}")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation must be a share of the examples, in [0, 1), got {self.validation}")
        if self.resume and self.out is None:
            raise ValueError("--resume needs the directory of the run that goes on: pass --out")
        out = None if self.out is None or self.resume else self.out.expanduser()
        if out is not None and out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise FileExistsError(f"{out} holds something already: continue it by --resume, or choose another --out")

    def _report(self, run: Run, out: Path, splits: dict[str, Dataset]) -> None:
        """Measure the splits and draw from the prior and from the first of them; write and print all of it."""
        console.print(f"measuring on {' and '.join(splits)} ...", highlight=False)
        measured = {name: run.evaluate(each, num_samples=self.num_samples) for name, each in splits.items()}
        paths = {"run": out, "figures": outputs.write_json(out / "result.json", measured)}
        suffix, first = outputs.picture_or_array(run), next(iter(splits.values()))
        if hasattr(run.model, "sample"):
            paths["samples"] = outputs.write_samples(out / f"samples{suffix}", run, num=SAMPLES, seed=0)
        drawn = first.take(slice(DRAWN))
        paths["reconstructions"] = outputs.write_reconstructions(out / f"reconstructions{suffix}", run, drawn)
        outputs.print_measured(measured, run, num_samples=self.num_samples)
        outputs.print_paths(**paths)


def _default_epochs(num: int, batch_size: int) -> int:
    return max(20, math.ceil(FEWEST_STEPS / max(1, num // batch_size)))


def _say_if_short(run: Run) -> None:
    """Say so where a training of few steps ended with its best epoch."""
    if run.stopped is not None or not run.history or "validation" not in run.history[-1]:
        return
    last = run.history[-1]["step"]
    if run.step == last < FEWEST_STEPS:
        console.print(
            f"only {last:,} steps were taken, and the last epoch was the best: it would learn more from longer "
            f"training, by default {FEWEST_STEPS:,} steps",
            highlight=False,
        )


def _plain(options: dict[str, Any]) -> dict[str, Any]:
    """The options as JSON has them."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}


def _warn_of_scales(dataset: Dataset) -> None:
    """Say where real numbers are so large, or so small, that they should be scaled first."""
    if dataset.domain.kind != "real":
        return
    x = np.asarray(dataset.prepared(LOOKED_AT, key=seed_key(0))["x"], np.float64)
    scales = x.std(axis=0)
    largest, smallest = scales.max(), scales[scales > 0].min(initial=np.inf)
    if largest > FARTHEST_SCALE or smallest < 1 / FARTHEST_SCALE:
        complain(
            "warning",
            f"the standard deviations of x's values lie between {min(smallest, largest):.3g} and {largest:.3g}: models "
            "learn better where they are near 1, so scale x first if it can be",
        )
