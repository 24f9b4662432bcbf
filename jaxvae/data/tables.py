"""Tables: CSV and Parquet files, and pandas' data frames, with columns of several kinds and holes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike

from jaxvae.data._table_files import Decimal, check_text, pandas, read_table
from jaxvae.data.dataset import Dataset, from_arrays
from jaxvae.data.domain import LARGEST_WHOLE, Domain
from jaxvae.types import Column

if TYPE_CHECKING:
    import pandas as pd

ColumnKind = Literal["real", "counts", "categories"]
MOST_CATEGORIES = 1024
FEW = 20  # values: more than these, and more than half as many as there are rows, are no categories
NUMBERS = (int, float, np.integer, np.floating)
VALUES = (str, bool, int, float, np.generic)  # what categories may be


def from_table(
    table: "str | Path | pd.DataFrame",
    *,
    name: str | None = None,
    label: str | None = None,
    label_names: Sequence[Any] = (),
    drop: Sequence[str] = (),
    columns: Mapping[str, ColumnKind] | Sequence[Column] | None = None,
    standardize: bool = True,
    decimal: Decimal = ".",
    missing: Sequence[str] = (),
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
      label: the title of a column of labels, which is no part of x: categories, numbered as others are. What they were
        is `label_names` of the set.
      label_names: those of another set, such as `run.dataset.label_names`, so that its labels keep their numbers.
      drop: titles of columns to leave out.
      columns: the kinds of some columns by their titles; or every `Column` of another set, such as
        `run.dataset.domain.columns`, so that new rows are read as those of the training were.
      standardize: whether real columns are standardised, unless all `columns` are known.
      decimal: of numbers in a `.csv` file.
      missing: what stands for a missing entry in a `.csv` file, such as "?", beside what pandas takes for one: nothing
        between two separators, "NA", "nan", "null", "None" and the like.

    The separator of a `.csv` file is found: the comma, semicolon, tab or bar that its first line has most of.

    Raises:
      ImportError: pandas is missing, or for Parquet pyarrow.
      FileNotFoundError: no such file.
      TypeError: a column of dates, complex numbers, or of values of several types; titles that are no text.
      ValueError: lines of several lengths, a first line of numbers, no rows or columns, titles that are twice there or
        not at all, a column without two values or that numbers the rows, an infinite number, text that is numbers,
        numbers in a .csv file that begin with 0 as codes do, of which nobody has said what they are, text that is no
        category (nearly every row has its own), counts that are none, or a category that the other set does not have.
        Each names the column and the way out.
    """
    kinds = columns if isinstance(columns, Mapping) else {}
    given = None if columns is None or isinstance(columns, Mapping) else tuple(columns)
    _check_options(kinds, given, label, drop)
    if label_names and label is None:
        raise ValueError("label_names are of a column of labels: pass its title as label")
    text = _of_text(given, label, label_names)
    numbers = [title for title, kind in kinds.items() if kind != "categories"]
    numbers += [column.name for column in given or () if column.name not in text]
    frame, called = read_table(table, decimal=decimal, missing=missing, text=text, numbers=numbers)
    left_out = [*drop, *([] if label is None else [label])]
    _check_titles(frame, {*kinds, *left_out})
    frame = frame.copy(deep=False)
    for title in frame.columns:
        frame[title] = _as_numbers(frame[title])
    arrays: dict[str, Any] = {}
    if label is not None:
        arrays["label"], label_names = _labels(frame[label], label, label_names)
    frame = frame.drop(columns=left_out)
    if given is not None:
        _check_titles(frame, {column.name for column in given})
        frame = frame[[column.name for column in given]]
    if not frame.shape[1]:
        raise ValueError("the table has no columns left")
    known = given or tuple(_column(frame[title], title, kinds.get(title), standardize) for title in frame.columns)
    x = np.stack([_numbers(frame[column.name], column) for column in known], axis=1)
    if np.isnan(x).any():
        arrays["observed"] = ~np.isnan(x)
    read = from_arrays(name or called, x, domain=Domain("table", columns=known), **arrays)
    return replace(read, label_names=tuple(label_names))


def to_frame(x: ArrayLike, columns: Sequence[Column]) -> "pd.DataFrame":
    """Rows x [N, C] as a table in the units that they were read in: categories by their values, a NaN as a hole.

    A category is the one whose place is nearest, a count is rounded.

    Raises:
      ValueError: x has another number of columns.
    """
    pd = pandas()
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


def _check_options(
    kinds: Mapping[str, ColumnKind], given: tuple[Column, ...] | None, label: str | None, drop: Sequence[str]
) -> None:
    if isinstance(drop, str):
        raise TypeError(f"drop is a list of titles: pass drop=[{drop!r}]")
    if given is not None and not (given and all(isinstance(each, Column) for each in given)):
        raise TypeError(f"columns are kinds by their titles, or all Columns of another set, got {given}")
    for title, kind in kinds.items():
        if kind not in get_args(ColumnKind):
            raise ValueError(f"column {title!r} may be {', '.join(map(repr, get_args(ColumnKind)))}, got {kind!r}")
    named = [*kinds, *drop, *([] if label is None else [label])]
    if twice := sorted({title for title in named if named.count(title) > 1}):
        raise ValueError(f"{', '.join(map(repr, twice))}: a column is the label, left out, or of a kind, one of them")


def _of_text(given: tuple[Column, ...] | None, label: str | None, label_names: Sequence[Any]) -> list[str]:
    """Columns whose known categories are all text, even where those of these rows look like numbers."""
    known = {column.name: column.categories for column in given or ()} | ({label: label_names} if label else {})
    return [name for name, values in known.items() if values and all(isinstance(each, str) for each in values)]


def _labels(values: "pd.Series[Any]", title: str, label_names: Sequence[Any]) -> tuple[np.ndarray, tuple[Any, ...]]:
    """The labels [N] int32 and what they are called: as they are known, or in the order of their values."""
    if _categories(values, title).isna().any():
        raise ValueError(f"label column {title!r} has no value in row {int(np.argmax(values.isna()))}")
    known = Column(title, "categories", tuple(label_names)) if label_names else _described(values, title, "categories")
    return _codes(values, known).astype(np.int32), known.categories


def _check_titles(frame: "pd.DataFrame", wanted: set[str]) -> None:
    if not len(frame):
        raise ValueError("the table has no rows")
    titles = list(frame.columns)
    if not all(isinstance(title, str) for title in titles):
        other = next(title for title in titles if not isinstance(title, str))
        raise TypeError(f"titles must be text, got {other!r}: frame.columns = frame.columns.map(str)")
    if twice := sorted({str(title) for title in titles if titles.count(title) > 1}):
        raise ValueError(f"the table has several columns {', '.join(map(repr, twice))}: give each a title of its own")
    if missing := sorted(wanted - set(titles)):
        raise ValueError(
            f"the table has no column {', '.join(map(repr, missing))}; it has {', '.join(map(repr, titles))}"
        )


def _as_numbers(values: "pd.Series[Any]") -> "pd.Series[Any]":
    """A column of Python's objects that are all numbers, as one of numbers; any other as it is."""
    there = [] if values.dtype != object else values.dropna().tolist()
    if not there or not all(isinstance(each, NUMBERS) and not isinstance(each, bool) for each in there):
        return values
    whole = all(isinstance(each, int | np.integer) and abs(int(each)) < 2**63 for each in there)
    return values.astype("Int64" if whole else "Float64")


def _column(values: "pd.Series[Any]", title: str, kind: ColumnKind | None, standardize: bool) -> Column:
    from pandas.api import types

    numeric = types.is_numeric_dtype(values) and not types.is_bool_dtype(values)
    if types.is_datetime64_any_dtype(values) or types.is_timedelta64_dtype(values):
        raise TypeError(f"column {title!r} holds dates: make numbers of them, or leave it out by drop=[{title!r}]")
    there = values.dropna()
    if not numeric:
        _categories(there, title)  # what cannot even be told apart is refused first
    if there.nunique() < 2:
        said = "no value" if not len(there) else f"one value, {there.iloc[0]!r}"
        raise ValueError(f"column {title!r} has {said} and says nothing: leave it out by drop=[{title!r}]")
    if kind is None:
        kind = _kind_of(values, title, numeric)
    if kind != "categories" and not numeric:
        raise TypeError(f"column {title!r} holds {there.iloc[0]!r}, which is no number, so it cannot be {kind!r}")
    return _described(values, title, kind, standardize)


def _kind_of(values: "pd.Series[Any]", title: str, numeric: bool) -> ColumnKind:
    """What a column holds by its values, where nobody has said it."""
    from pandas.api import types

    if not numeric:
        check_text(values, title)
        return "categories"
    there = values.dropna()
    if not types.is_integer_dtype(values):
        return "real"
    if len(there) > FEW and len(there) == len(values) and (np.diff(there.to_numpy(np.float64)) == 1).all():
        raise ValueError(
            f"column {title!r} numbers the rows, from {there.iloc[0]} to {there.iloc[-1]}: leave it out by "
            f"drop=[{title!r}], or pass columns={{{title!r}: 'counts'}} if it is meant"
        )
    if there.isin([0, 1]).all():
        return "categories"
    return "counts" if (there >= 0).all() else "real"


def _described(values: "pd.Series[Any]", title: str, kind: ColumnKind, standardize: bool = False) -> Column:
    there = values.dropna()
    if kind == "categories":
        found = sorted(_categories(there, title).unique().tolist())
        if len(found) > max(FEW, len(there) // 2) or len(found) > MOST_CATEGORIES:
            raise ValueError(
                f"column {title!r} has {len(found)} different values in {len(there)} rows, which are no categories: "
                f"leave it out by drop=[{title!r}]"
            )
        return Column(title, kind, tuple(found))
    if kind == "counts" or not standardize:
        return Column(title, kind)
    numbers = _floats(values, title)
    with np.errstate(over="ignore", under="ignore"):
        centre, scale = np.nanmean(numbers), np.nanstd(numbers)
    if not (np.isfinite(scale) and scale > 0):
        low, high = np.nanmin(numbers), np.nanmax(numbers)
        raise ValueError(f"column {title!r} lies in [{low}, {high}], whose standard deviation is {scale}: rescale it")
    return Column(title, kind, (), float(centre), float(scale))


def _categories(values: "pd.Series[Any]", title: str) -> "pd.Series[Any]":
    """Values that can be told apart and sorted: text, truth values or numbers, of one type."""
    types = {type(value) for value in values.dropna()}
    if strange := [each.__name__ for each in types if not issubclass(each, VALUES)]:
        raise TypeError(
            f"column {title!r} holds values of type {strange[0]}, which are no categories: make text or numbers of "
            f"them, or leave it out by drop=[{title!r}]"
        )
    if len(types) > 1:
        named = " and ".join(sorted(each.__name__ for each in types))
        raise TypeError(f"column {title!r} holds values of several types, {named}: make them of one")
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


def _floats(values: "pd.Series[Any]", title: str) -> np.ndarray:
    """Numbers [N] float64, NaN for holes."""
    from pandas.api import types

    if types.is_complex_dtype(values):
        raise TypeError(f"column {title!r} holds complex numbers: make two real columns of it")
    numbers = values.to_numpy(np.float64, na_value=np.nan)
    if np.isinf(numbers).any():
        row = int(np.argmax(np.isinf(numbers)))
        raise ValueError(f"column {title!r} has an infinite number in row {row}: make it a hole (NaN), or mend it")
    return numbers


def _numbers(values: "pd.Series[Any]", column: Column) -> np.ndarray:
    """The column as x has it, [N] float32, NaN for holes."""
    from pandas.api import types

    if column.kind == "categories":
        return _codes(values, column).astype(np.float32)
    if not types.is_numeric_dtype(values) and values.notna().any():
        raise TypeError(f"column {column.name!r} must hold numbers, being {column.kind!r}, got {values.dtype}")
    numbers = _floats(values, column.name)
    if column.kind == "counts":
        wrong = ~np.isnan(numbers) & ((numbers < 0) | (numbers != np.floor(numbers)) | (numbers > LARGEST_WHOLE))
        if wrong.any():
            row = int(np.argmax(wrong))
            raise ValueError(
                f"column {column.name!r} has {numbers[row]} in row {row}, which is no count in [0, 2**24]: pass "
                f"columns={{{column.name!r}: 'real'}}"
            )
    with np.errstate(over="ignore"):
        x = ((numbers - column.location) / column.scale).astype(np.float32)
    if np.isinf(x).any():
        row = int(np.argmax(np.isinf(x)))
        raise ValueError(f"column {column.name!r} has {numbers[row]} in row {row}, too large for 32 bits: rescale it")
    return x
