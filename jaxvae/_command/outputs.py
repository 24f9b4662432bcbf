"""What the commands write and print."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from jaxvae import figures
from jaxvae._command.models import shows_pictures
from jaxvae._json import to_json
from jaxvae._terminal import console
from jaxvae.data import to_frame
from jaxvae.data._table_files import read_table
from jaxvae.evaluation import Imputed
from jaxvae.figures._page import FORMATS, replace_file
from jaxvae.keys import seed_key
from jaxvae.run import Run

# Of a run, without which it cannot be loaded or go on.
PARTS = (
    *("run.json", "weights.safetensors", "data.safetensors", "history.json"),
    *("config.json", "options.json", "metrics.jsonl"),
)
NATS = {"nll": "-log p(x)", "negative_elbo": "-ELBO", "rate": "rate", "distortion": "distortion"}


def checked_suffix(path: Path, *allowed: str) -> Path:
    """The path; `ValueError` where it does not end as a file that can be written here does."""
    if path.suffix not in allowed:
        raise ValueError(f"--out must end in {' or '.join(allowed)}, got {path}")
    return path.expanduser()


def spared(path: Path, run: Path, data: str) -> Path:
    """The path; `ValueError` where what is written there would replace DATA or a part of RUN."""
    path = path.expanduser()
    for each in (Path(data).expanduser(), *(run.expanduser() / name for name in PARTS)):
        if path.exists() and each.exists() and path.samefile(each):
            raise ValueError(f"{path} is {each} itself, which would be lost: choose another file to write to")
    return path


def write_samples(path: Path, run: Run, *, num: int, seed: int) -> Path:
    """Means of p(x|z) at draws from the prior: a picture of them all, or an array [num, ...]; of a table, rows."""
    if path.suffix == ".csv":
        return _write_frame(path, _sampled_rows(run, num, seed), run)
    samples = run.sample(num, seed=seed)
    if path.suffix in FORMATS:
        return figures.image_grid(path, samples, title=f"{num} samples (means)")
    return save_array(path, samples)


def write_reconstructions(path: Path, run: Run, dataset: Any) -> Path:
    """Every x over the mean of p(x|z) at its code, or an array of the latter, [N, ...]."""
    reconstructed = run.reconstruct(dataset)
    if path.suffix == ".csv":
        return _write_frame(path, reconstructed, run)
    if path.suffix in FORMATS:
        images = np.asarray(dataset.prepared(len(dataset), key=seed_key(0))["x"])
        return figures.reconstructions(path, images, reconstructed, title="x over its reconstructions (means)")
    return save_array(path, reconstructed)


def write_codes(path: Path, codes: np.ndarray, example_names: Sequence[str] = ()) -> Path:
    """Codes [N, ...] as an array, or as a table with a row for each x, after its name where it has one, and titles."""
    if path.suffix == ".npy":
        return save_array(path, codes)
    rows = codes.reshape(len(codes), -1)
    return _write_table(path, rows, "z" if np.issubdtype(rows.dtype, np.floating) else "code", example_names)


def _write_table(path: Path, rows: np.ndarray, name: str, example_names: Sequence[str] = ()) -> Path:
    """Rows [N, D] as CSV, under a line of names counted from 1."""
    floating = np.issubdtype(rows.dtype, np.floating)

    def write_to(unfinished: Path) -> None:
        # A name on the disk need not be text: its bytes are written as they are.
        with unfinished.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.writer(file)
            first = ["path"] if example_names else []
            table.writerow([*first, *(f"{name}{i}" for i in range(1, rows.shape[1] + 1))])
            for i, row in enumerate(rows):
                values = (f"{value:.9g}" if floating else int(value) for value in row)
                table.writerow([*example_names[i : i + 1], *values])

    return replace_file(path, (path.suffix,), write_to)


def _sampled_rows(run: Run, num: int, seed: int) -> np.ndarray:
    """Draws from the likelihood at draws from the prior, [num, C]: a mean is no row where columns are categories."""
    prior_key, row_key = jax.random.split(seed_key(seed))
    likelihood = run.model.apply(run.variables, num, key=prior_key, method="sample")
    return np.asarray(likelihood.sample(key=row_key))


def _write_frame(path: Path, rows: np.ndarray, run: Run) -> Path:
    """Rows [N, C] as a table with the titles and in the units of the run's."""
    frame = to_frame(rows, run.dataset.domain.columns)
    return replace_file(path, (path.suffix,), lambda unfinished: frame.to_csv(unfinished, index=False))


def _most_frequent(draws: np.ndarray) -> np.ndarray:
    """The value [N] that each row of draws [N, num_draws] has most often; the least of several."""
    counted = (np.unique(row, return_counts=True) for row in draws)
    return np.array([values[counts.argmax()] for values, counts in counted])


def write_imputed(path: Path, filled: Imputed, run: Run, *, table: Mapping[str, Any] | None = None) -> Path:
    """All of what was filled in, or the means alone.

    For a run on a table a `.csv` file has all of the table again (arguments of `read_table`), to the last digit what
    was there, and in its holes means and, of categories, the one that was drawn most often.
    """
    columns = run.dataset.domain.columns
    if path.suffix == ".csv" and table is not None:
        rows = filled.mean.astype(np.float64)
        for i, column in enumerate(columns):
            if column.kind == "categories":
                rows[:, i] = _most_frequent(filled.draws[:, :, i])
        numbers = {column.name for column in columns if column.kind != "categories"}
        titles, _ = read_table(**table)
        whole, _ = read_table(**table, text=[title for title in titles if title not in numbers])  # "007" stays itself
        means = to_frame(rows, columns).set_axis(whole.index)
        for title in means:
            whole[title] = whole[title].astype(object).where(whole[title].notna(), means[title])
        return replace_file(path, (path.suffix,), lambda unfinished: whole.to_csv(unfinished, index=False))
    if path.suffix == ".npz":
        return save_array(path, filled._asdict())
    if path.suffix == ".npy":
        return save_array(path, filled.mean)
    return _write_table(path, filled.mean.reshape(len(filled.mean), -1), "x")


def write_json(path: Path, record: dict[str, Any]) -> Path:
    """The record, indented; null where a number is not finite."""
    text = to_json(record, indent=1) + "\n"
    return replace_file(path, (path.suffix,), lambda unfinished: unfinished.write_text(text))


def print_measured(measured: dict[str, dict[str, float]], run: Run, *, num_samples: int) -> None:
    """A table of the metrics on each split; in nats for each x where the model has a likelihood."""
    table = Table(box=None, pad_edge=False)
    table.add_column("nats for each x" if any("nll" in each for each in measured.values()) else "")
    for split in measured:
        table.add_column(split, justify="right")
    names = list(dict.fromkeys(name for each in measured.values() for name in each))
    names = [name for name in (*NATS, *names) if name in names]  # the known ones first
    for name in dict.fromkeys(names):
        if name in ("nll_standard_error", "loss"):
            continue
        label = f"{NATS[name]} ({num_samples} samples)" if name == "nll" else NATS.get(name, name.replace("_", " "))
        table.add_row(label, *(_cell(each, name) for each in measured.values()))
    levels = run.dataset.levels
    whole = "observed" not in run.dataset.arrays  # otherwise nats are of fewer values than x has
    if levels is not None and whole and all("nll" in each for each in measured.values()):
        size = math.prod(run.dataset.shape) * math.log(2)
        table.add_row("bits for each value", *(f"{each['nll'] / size:.3f}" for each in measured.values()))
    console.print(table)


def print_paths(**paths: Path) -> None:
    """One line for each."""
    for name, path in paths.items():
        console.print(f"{name.replace('_', ' ')}: {path}", highlight=False, markup=False)


def picture_or_array(run: Run) -> str:
    """The suffix of what shows x."""
    if run.dataset.domain.kind == "table":
        return ".csv"
    return ".png" if shows_pictures(run.dataset) else ".npy"


def allowed(suffix: str) -> tuple[str, ...]:
    """The suffixes that may stand in place of what `picture_or_array` says."""
    return tuple(dict.fromkeys((*(FORMATS if suffix in FORMATS else (suffix,)), ".npy")))


def _cell(measured: dict[str, float], name: str) -> str:
    if name not in measured:
        return ""
    error = f" ± {measured['nll_standard_error']:.2g}" if name == "nll" else ""
    return f"{measured[name]:.{2 if abs(measured[name]) >= 1 else 4}f}{error}"


def save_array(path: Path, values: np.ndarray | dict[str, Any]) -> Path:
    """An array, or several by their names."""

    def write_to(unfinished: Path) -> None:
        with unfinished.open("wb") as file:  # to a path NumPy would append .npy
            np.savez(file, **values) if isinstance(values, dict) else np.save(file, values)

    return replace_file(path, (path.suffix,), write_to)
