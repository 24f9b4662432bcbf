"""Tables: CSV and Parquet files, and pandas' data frames, with columns of several kinds and holes."""

import csv
import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from jaxvae.data.dataset import Dataset, from_arrays
from jaxvae.data.domain import Domain
from jaxvae.types import Column

if TYPE_CHECKING:
    import pandas as pd

ColumnKind = Literal["real", "counts", "categories"]
SUFFIXES = (".csv", ".parquet")
MOST_CATEGORIES = 1024
LARGEST_COUNT = 2**24  # up to which float32 has every whole number
FEW = 20  # values: more than these, and more than half as many as there are rows, are no categories


def from_table(
    table: "str | Path | pd.DataFrame",
    *,
    name: str | None = None,
    label: str | None = None,
    drop: Sequence[str] = (),
    columns: Mapping[str, ColumnKind] | Sequence[Column] | None = None,
    standardize: bool = True,
) -> Dataset:
    """A table as a `Dataset`: x [N, C] float32, with a mask `observed` where there are holes.

    Unless `columns` says otherwise, text, truth values, pandas' categories and integers that are all 0 or 1 become
    "categories", other integers from zero up "counts", and all other numbers "real". Categories are numbered in the
    order of their values, counts stay what they are, and real columns are standardised: their mean over what is
    observed is subtracted, their standard deviation divides. `domain.columns` of the set says all of it,
    `jaxvae.models.table_vae` makes a model of it, and `to_frame` turns x into a table again.

    Args:
      table: a `.csv` or `.parquet` file, or a `pandas.DataFrame`.
      name: what errors and pictures call it; the file's name unless given.
      label: the title of a column of labels, which is no part of x: categories, numbered as others are.
      drop: titles of columns to leave out.
      columns: the kinds of some columns by their titles; or all `Column`s of another set, such as
        `run.dataset.domain.columns`, so that new rows are read as those of the training were.
      standardize: whether real columns are standardised.

    Raises:
      ImportError: pandas is missing, or for Parquet pyarrow.
      FileNotFoundError: no such file.
      TypeError: a column of dates, or of values of several types.
      ValueError: no rows or columns, titles that are twice there or not at all, a column without two values, an
        infinite number, text that is no category (nearly every row has its own), counts that are none, or a category
        that the other set does not have. Each names the column and the way out.
    """
    frame, called = _read(table)
    kinds = columns if isinstance(columns, Mapping) else {}
    given = None if columns is None or isinstance(columns, Mapping) else tuple(columns)
    _check_titles(frame, {*kinds, *drop, *([] if label is None else [label])})
    for title, kind in kinds.items():
        if kind not in get_args(ColumnKind):
            raise ValueError(f"column {title!r} may be {', '.join(map(repr, get_args(ColumnKind)))}, got {kind!r}")
    arrays: dict[str, Any] = {}
    if label is not None:
        values = _categories(frame[label], label)
        if values.isna().any():
            raise ValueError(f"label column {label!r} has no value in row {int(np.argmax(values.isna()))}")
        found = _described(values, label, "categories", standardize)
        arrays["label"] = _codes(values, found).astype(np.int32)
    frame = frame.drop(columns=[*drop, *([] if label is None else [label])])
    if given is not None:
        _check_titles(frame, {column.name for column in given})
        frame = frame[[column.name for column in given]]
    if not frame.shape[1]:
        raise ValueError("the table has no columns left")
    known = given or tuple(_column(frame[title], title, kinds.get(title), standardize) for title in frame.columns)
    x = np.stack([_numbers(frame[column.name], column) for column in known], axis=1)
    if np.isnan(x).any():
        arrays["observed"] = ~np.isnan(x)
    return from_arrays(name or called, x.astype(np.float32), domain=Domain("table", columns=known), **arrays)


def to_frame(x: ArrayLike, columns: Sequence[Column]) -> "pd.DataFrame":
    """Rows x [N, C] as a table in the units that they were read in: categories by their values, a NaN as a hole.

    A category is the one whose place is nearest, a count is rounded.

    Raises:
      ValueError: x has another number of columns.
    """
    pd = _pandas()
    values = np.asarray(x, np.float64)
    if values.ndim != 2 or values.shape[1] != len(columns):
        raise ValueError(f"expected x (N, {len(columns)}), a column for each, got {values.shape}")
    found = {}
    for column, own in zip(columns, values.T, strict=True):
        if column.kind == "categories":
            place = np.clip(np.rint(np.nan_to_num(own)), 0, len(column.categories) - 1).astype(int)
            names = np.array(column.categories, object)[place]
            found[column.name] = pd.Series(np.where(np.isnan(own), None, names), dtype=object)
        elif column.kind == "counts":
            found[column.name] = pd.Series(np.rint(own)).astype("Int64")
        else:
            found[column.name] = pd.Series(own * column.scale + column.location)
    return pd.DataFrame(found)


def _pandas() -> Any:
    """The package, which only this file needs."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("tables need pandas: pip install 'jaxvae[tables]'") from error
    return pandas


def _read(table: "str | Path | pd.DataFrame") -> "tuple[pd.DataFrame, str]":
    pd = _pandas()
    if isinstance(table, pd.DataFrame):
        return table, "table"
    path = Path(table).expanduser()
    if path.suffix not in SUFFIXES:
        raise ValueError(f"expected a {' or '.join(SUFFIXES)} file or a pandas.DataFrame, got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if path.suffix == ".parquet":
        try:
            return pd.read_parquet(path, dtype_backend="numpy_nullable"), path.stem
        except ImportError as error:
            raise ImportError("Parquet files need pyarrow: pip install 'jaxvae[tables]'") from error
    with path.open(newline="", encoding="utf-8-sig") as file:
        titles = next(csv.reader(file), [])
    if twice := sorted({title for title in titles if titles.count(title) > 1}):
        raise ValueError(f"{path} has several columns {', '.join(map(repr, twice))}: give each a title of its own")
    try:
        return pd.read_csv(path, dtype_backend="numpy_nullable"), path.stem  # integers with holes stay integers
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error


def _check_titles(frame: "pd.DataFrame", wanted: set[str]) -> None:
    if not len(frame):
        raise ValueError("the table has no rows")
    titles = list(frame.columns)
    if twice := sorted({str(title) for title in titles if titles.count(title) > 1}):
        raise ValueError(f"the table has several columns {', '.join(map(repr, twice))}: give each a title of its own")
    if missing := sorted(wanted - set(titles)):
        raise ValueError(
            f"the table has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, titles))}"
        )


def _column(values: "pd.Series[Any]", title: str, kind: ColumnKind | None, standardize: bool) -> Column:
    from pandas.api import types

    numeric = types.is_numeric_dtype(values) and not types.is_bool_dtype(values)
    if types.is_datetime64_any_dtype(values) or types.is_timedelta64_dtype(values):
        raise TypeError(f"column {title!r} holds dates: make numbers of them, or leave it out by drop=[{title!r}]")
    there = values.dropna()
    if there.nunique() < 2:
        said = "no value" if not len(there) else f"one value, {there.iloc[0]!r}"
        raise ValueError(f"column {title!r} has {said} and says nothing: leave it out by drop=[{title!r}]")
    if kind is None:
        whole = types.is_integer_dtype(values)
        if not numeric or (whole and there.isin([0, 1]).all()):
            kind = "categories"
        else:
            kind = "counts" if whole and (there >= 0).all() else "real"
    if kind != "categories" and not numeric:
        raise TypeError(f"column {title!r} holds {there.iloc[0]!r}, which is no number, so it cannot be {kind!r}")
    return _described(_categories(values, title) if kind == "categories" else values, title, kind, standardize)


def _described(values: "pd.Series[Any]", title: str, kind: ColumnKind, standardize: bool) -> Column:
    there = values.dropna()
    if kind == "categories":
        found = sorted(there.unique().tolist())
        if len(found) > max(FEW, len(there) // 2) or len(found) > MOST_CATEGORIES:
            raise ValueError(
                f"column {title!r} has {len(found)} different values in {len(there)} rows, which are no categories: "
                f"leave it out by drop=[{title!r}]"
            )
        return Column(title, kind, tuple(found))
    if kind == "counts" or not standardize:
        return Column(title, kind)
    numbers = there.to_numpy(np.float64)
    if not np.isfinite(numbers).all():
        row = there.index[int(np.argmin(np.isfinite(numbers)))]
        raise ValueError(f"column {title!r} has an infinite number in row {row}: make it a hole (NaN), or mend it")
    centre = numbers.mean()
    return Column(title, kind, (), float(centre), float(np.sqrt(np.square(numbers - centre).mean())))


def _categories(values: "pd.Series[Any]", title: str) -> "pd.Series[Any]":
    """Values that can be sorted: of one type, and not dates or lists."""
    there = values.dropna()
    types = {type(value) for value in there}
    if len(types) > 1:
        named = " and ".join(sorted(each.__name__ for each in types))
        raise TypeError(f"column {title!r} holds values of several types, {named}: make them of one")
    if any(issubclass(each, datetime.date | list | dict | set) for each in types):
        raise TypeError(
            f"column {title!r} holds {next(iter(types)).__name__}s, which are no categories: drop=[{title!r}]"
        )
    return values


def _codes(values: "pd.Series[Any]", column: Column) -> np.ndarray:
    """Places among the categories, NaN for holes."""
    places = {value: float(place) for place, value in enumerate(column.categories)}
    found = np.empty(len(values))
    for row, (value, missing) in enumerate(zip(values, values.isna(), strict=True)):
        if not missing and value not in places:
            raise ValueError(
                f"column {column.name!r} has {value!r} in row {row}, which is none of its {len(places)} categories"
            )
        found[row] = np.nan if missing else places[value]
    return found


def _numbers(values: "pd.Series[Any]", column: Column) -> np.ndarray:
    """The column as x has it, [N] float64, NaN for holes."""
    from pandas.api import types

    if column.kind == "categories":
        return _codes(values, column)
    if not types.is_numeric_dtype(values):
        raise TypeError(f"column {column.name!r} must hold numbers, being {column.kind!r}, got {values.dtype}")
    numbers = values.to_numpy(np.float64, na_value=np.nan)
    if np.isinf(numbers).any():
        row = int(np.argmax(np.isinf(numbers)))
        raise ValueError(
            f"column {column.name!r} has an infinite number in row {row}: make it a hole (NaN), or mend it"
        )
    if column.kind == "counts":
        wrong = ~np.isnan(numbers) & ((numbers < 0) | (numbers != np.floor(numbers)) | (numbers > LARGEST_COUNT))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(
                f"column {column.name!r} has {numbers[row]} in row {row}, which is no count in [0, 2**24]: pass "
                f"columns={{{column.name!r}: 'real'}}"
            )
    return (numbers - column.location) / column.scale
