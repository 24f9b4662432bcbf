"""DATA on the command line: a folder of pictures, a file of arrays, a table, or the name of a set."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from jaxvae import data
from jaxvae._json import read_json_object
from jaxvae._terminal import complain, counter
from jaxvae.data._table_files import SUFFIXES as TABLES
from jaxvae.data._table_files import Decimal
from jaxvae.data.domain import Kind
from jaxvae.data.files import Colour, Fit
from jaxvae.run import Run

Values = Literal["auto", "unit-interval", "levels", "real", "counts", "categories"]
ARRAYS = (".npy", ".npz")
DEFAULT_FIT: Fit = "crop"
OPTIONS = "options.json"  # of a run: how it was trained, and so how pictures are brought to its size


def training_data(
    source: str,
    *,
    values: Values,
    levels: int | None,
    size: Sequence[int],
    fit: Fit | None,
    colour: Colour | None,
    skip_unreadable: bool,
    label: str | None,
    drop: Sequence[str],
    columns: Sequence[str],
    decimal: Decimal,
    missing: Sequence[str],
) -> tuple[data.Dataset, data.Dataset | None]:
    """What to train on and, where DATA is a set that has one, its test split.

    Raises:
      ValueError: as `data.folder` and `data.from_file`, or an option that DATA has no use for.
      FileNotFoundError: there is no such folder, file or set.
    """
    path = Path(source).expanduser()
    suffix, domain = path.suffix.lower(), _kind(values)
    is_file, is_table = suffix in ARRAYS, suffix in TABLES and not path.is_dir()
    if not is_table:
        unused = {"--label": label is not None, "--drop": bool(drop), "--columns": bool(columns)}
        _refuse(unused, "a .csv or .parquet file", source)
    if suffix != ".csv" or path.is_dir():
        _refuse({"--decimal": decimal != ".", "--missing": bool(missing)}, "a .csv file", source)
    unused = {"--size": bool(size), "--fit": fit is not None, "--colour": colour is not None}
    unused["--skip-unreadable"] = skip_unreadable
    if not path.is_dir():
        _refuse(unused, "a folder of pictures", source)
    if not is_file or path.is_dir():
        _refuse({"--values": domain is not None, "--levels": levels is not None}, "a .npy or .npz file", source)
    if path.is_dir():
        wanted = None if not size else size[0] if len(size) == 1 else tuple(size)
        if len(size) > 2:
            raise ValueError(f"--size takes a height and a width, or one number for both, got {len(size)} numbers")
        pictures = data.folder(
            path,
            size=wanted,
            fit=fit,
            colour=colour,
            skip_unreadable=skip_unreadable,
            progress=counter("reading pictures"),
        )
        if pictures.rate is not None:
            raise ValueError(f"{path} is a folder of sound, which takes Python: jaxvae.data.folder and jaxvae.train")
        return pictures, None
    if is_table:
        options = {"drop": drop, "columns": _kinds(columns), "decimal": decimal, "missing": missing}
        return _table(path, label=label, **options), None
    if is_file:
        if domain is None and levels is None and _beyond_the_unit_interval(path):
            domain = "real"
        return _file(path, domain, levels), None
    training = _named(source, "train")
    try:
        return training, _named(source, "test")
    except ValueError:  # it has no such split
        return training, None


def data_for(run: Run, directory: Path, source: str, *, split: str | None, skip_unreadable: bool) -> data.Dataset:
    """DATA as the run's model takes it: of the size, colour and domain that it was trained on.

    Raises:
      ValueError: DATA is of another kind or shape.
      FileNotFoundError: there is no such folder, file or set.
    """
    path, stored, domain = Path(source).expanduser(), run.dataset.x.shape[1:], run.dataset.domain
    trained_on = f"the run was trained on x {('N', *stored)} of {_named_domain(domain)}"
    is_file, is_table = path.suffix.lower() in ARRAYS, path.suffix.lower() in TABLES
    if not path.is_dir():
        _refuse({"--skip-unreadable": skip_unreadable}, "a folder of pictures", source)
    if path.is_dir() or is_file or is_table:
        _refuse({"--split": split is not None}, "the name of a set", source)
    if path.is_dir():
        if len(stored) != 3 or stored[-1] not in (1, 3) or domain.levels != data.files.LEVELS.levels:
            raise ValueError(f"{trained_on}, and {path} is a folder")
        given = data.folder(
            path,
            size=stored[:2],
            fit=_fit_of(directory),
            colour="grey" if stored[-1] == 1 else "rgb",
            skip_unreadable=skip_unreadable,
            progress=counter("reading pictures"),
        )
    elif is_table and domain.kind != "table":
        raise ValueError(f"{trained_on}, and {path} is a table")
    elif is_table:
        given = _table(path, columns=domain.columns, **csv_options(directory, path))
    elif is_file:
        given = _file(path, domain, None)
    else:
        given = _named(source, split or "test")
    if given.x.shape[1:] != stored or given.domain != domain:
        raise ValueError(f"{trained_on}, and {source} has {given.x.shape} of {_named_domain(given.domain)}")
    return given.with_prepare(run.dataset.prepare)


def _table(path: Path, **options: Any) -> data.Dataset:
    """The rows of a file; how many entries are missing on the terminal."""
    read = data.from_table(path, **options)
    if "observed" in read.arrays:
        missing = int((~read.arrays["observed"]).sum())
        complain("warning", f"{missing} of the {read.x.size} entries of {path} are missing")
    return read


def _kinds(columns: Sequence[str]) -> dict[str, Any] | None:
    """The kinds of columns that were typed as TITLE=KIND."""
    kinds = {}
    for each in columns:
        title, equals, kind = each.rpartition("=")
        if not equals:
            raise ValueError(
                f"--columns takes TITLE=KIND, with a kind such as real, counts or categories, got {each!r}"
            )
        kinds[title] = kind
    return kinds or None


def _file(path: Path, domain: Kind | data.Domain | None, levels: int | None) -> data.Dataset:
    """The arrays of a file; what there is to say of them, such as how many entries are missing, on the terminal."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        read = data.from_file(path, domain=domain, levels=levels)
    for warning in caught:
        complain("warning", str(warning.message).split(";")[0])  # what follows is for those who call it
    return read


def _kind(values: Values) -> Kind | None:
    return None if values == "auto" else cast(Kind, values.replace("-", " "))


def _named_domain(domain: data.Domain) -> str:
    if domain.kind == "table":
        return f"the columns {', '.join(column.name for column in domain.columns)}"
    return domain.kind if domain.levels is None else f"{domain.levels} {domain.kind}"


def _refuse(given: dict[str, bool], kind: str, source: str) -> None:
    """Raise where an option was given that only another kind of DATA has."""
    if wrong := [name for name, present in given.items() if present]:
        raise ValueError(f"{', '.join(wrong)} only for {kind}, which {source} is not")


def _beyond_the_unit_interval(path: Path) -> bool:
    """Whether a file's x is floating and has values that are no shares of one."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # `_file` says it
            x = data.from_file(path, domain="real").x
    except (TypeError, ValueError):  # integers, or a file that is refused as anything
        return False
    return bool(((x < 0) | (x > 1)).any())


def _named(name: str, split: str) -> data.Dataset:
    """A split of a set, or an error of one line that says what else DATA may be."""
    try:
        return data.load(name, split, progress=counter(f"decoding {split} images"))
    except FileNotFoundError as error:
        reason = str(error).splitlines()[0]
        raise FileNotFoundError(
            f"no folder {name}, no .npy, .npz, .csv or .parquet file of that name, and {reason}"
        ) from error


def _options(directory: Path) -> dict[str, Any]:
    """How the run was trained, where that is known."""
    options = directory / OPTIONS
    return read_json_object(options) if options.is_file() else {}


def _fit_of(directory: Path) -> Fit:
    """How the run's pictures were brought to its size."""
    return _options(directory).get("fit") or DEFAULT_FIT


def csv_options(directory: Path, path: Path) -> dict[str, Any]:
    """How numbers and missing entries were written in the table of the run, for another `.csv` file."""
    known = _options(directory) if path.suffix.lower() == ".csv" else {}
    return {name: known[name] for name in ("decimal", "missing") if name in known}
