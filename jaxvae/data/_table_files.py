"""Tables in files: the separator, the lines and the titles are looked at before pandas guesses."""

import csv
import re
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    import pandas as pd

SUFFIXES = (".csv", ".parquet")
SEPARATORS = ",;\t|"
Decimal = Literal[".", ","]

NUMBER = re.compile(r"[-+]?(\d[\d.,]*|[.,]\d+)(e[-+]?\d+)?\s*%?", re.IGNORECASE)
PADDED = re.compile(r"0\d+")
DATE = re.compile(r"\d{4}([-/.])\d{1,2}\1\d{1,2}\b.*|\d{1,2}([-/.])\d{1,2}\2(\d{2}|\d{4})\b.*|\d{1,2}:\d\d(:\d\d)?.*")


def pandas() -> Any:
    """The package, which only tables need."""
    try:
        import pandas
    except ImportError as error:
        raise ImportError("tables need pandas: pip install 'jaxvae[tables]'") from error
    return pandas


def read_table(
    table: "str | Path | pd.DataFrame",
    *,
    decimal: Decimal = ".",
    missing: Sequence[str] = (),
    text: Collection[str] = (),
    numbers: Collection[str] = (),
) -> "tuple[pd.DataFrame, str]":
    """A table and its name: what `from_table` says of `decimal` and `missing`.

    Columns `text` are not made numbers, nor are those with numbers that begin with 0, as codes do, unless in `numbers`.
    """
    pd, unused = pandas(), decimal != "." or bool(missing)
    path = None if isinstance(table, pd.DataFrame) else Path(table).expanduser()
    suffix = "" if path is None else path.suffix.lower()
    if unused and suffix != ".csv":
        raise ValueError("decimal and missing are for .csv files: change the frame itself")
    if path is None:
        return table, "table"
    if suffix not in SUFFIXES:
        raise ValueError(f"expected a {' or '.join(SUFFIXES)} file or a pandas.DataFrame, got {path}")
    if not path.is_file():
        raise FileNotFoundError(f"no file {path}")
    if suffix == ".parquet":
        try:
            return pd.read_parquet(path, dtype_backend="numpy_nullable"), path.stem
        except ImportError as error:
            raise ImportError("Parquet files need pyarrow: pip install 'jaxvae[tables]'") from error
    try:
        titles, separator, padded = _checked_lines(path)
        text = {*text, *padded.difference(numbers)}
        frame = pd.read_csv(
            path,
            sep=separator,
            decimal=decimal,
            na_values=list(missing),
            skipinitialspace=True,
            index_col=False,  # otherwise lines that are longer than the titles would lend their first field to it
            dtype={title: "string" for title in text if title in titles},
            dtype_backend="numpy_nullable",  # integers with holes stay integers
            low_memory=False,  # in parts a long column would be numbers here and text there
        )
    except (csv.Error, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a table: {error}") from error
    return frame, path.stem


def _checked_lines(path: Path) -> tuple[list[str], str, set[str]]:
    """The titles and the separator of a file whose lines all have as many fields, and the titles over 0 and digits."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        first = file.readline()
        separator = max(SEPARATORS, key=lambda each: len(_fields(first, each)))  # the comma, where several tie
        titles = _fields(first, separator)
        if not titles:
            raise ValueError(f"{path} cannot be read as a table: its first line has no titles")
        if twice := sorted({title for title in titles if titles.count(title) > 1}):
            raise ValueError(f"{path} has several columns {', '.join(map(repr, twice))}: give each a title of its own")
        numbers = [title for title in titles if NUMBER.fullmatch(title.strip())]
        if len(numbers) > len(titles) / 2:
            raise ValueError(
                f"the first line of {path} must be titles and holds {numbers[0]!r}: add a line of titles, or pass "
                "pandas.read_csv(path, names=[...])"
            )
        file.seek(0)
        lines = csv.reader(file, delimiter=separator, skipinitialspace=True)
        next(lines)
        padded = set()
        for fields in lines:
            pairs = zip(titles, fields, strict=False)
            padded |= {title for title, field in pairs if field[:1] == "0" and PADDED.fullmatch(field)}
            if fields and len(fields) != len(titles):
                raise ValueError(
                    f"line {lines.line_num} of {path} has {len(fields)} fields, and there are {len(titles)} titles, "
                    f"separated by {separator!r}"
                )
    return titles, separator, padded


def _fields(line: str, separator: str) -> list[str]:
    return next(csv.reader([line], delimiter=separator, skipinitialspace=True), [])


def check_text(values: "pd.Series[Any]", title: str) -> None:
    """Raise where text is dates, or numbers with something among them, of which nobody has said that it is categories.

    Raises:
      TypeError: most of it is dates.
      ValueError: most of it is numbers.
    """
    found: dict[str, int] = {}  # the first row of each
    for row, value in enumerate(values):
        if isinstance(value, str):
            found.setdefault(value, row)
    meant = f"columns={{{title!r}: 'categories'}} if it is meant"
    if sum(DATE.fullmatch(value.strip()) is not None for value in found) > len(found) / 2:
        raise TypeError(
            f"column {title!r} holds dates or times, such as {next(iter(found))!r}: make numbers of them, leave it out "
            f"by drop=[{title!r}], or pass {meant}"
        )
    others = {value: row for value, row in found.items() if not NUMBER.fullmatch(value.strip())}
    if len(others) >= len(found) / 2:
        return
    if others:
        value, row = next(iter(others.items()))
        raise ValueError(
            f"column {title!r} is text by {value!r} in row {row}, and numbers otherwise: pass missing=[{value!r}] if "
            f"that stands for a hole in a .csv file, mend it, or pass {meant}"
        )
    if code := next(filter(PADDED.fullmatch, found), None):
        raise ValueError(
            f"column {title!r} holds numbers that begin with 0, such as {code!r}, as codes do: pass {meant}, or "
            f"columns={{{title!r}: 'counts'}} if they are numbers"
        )
    raise ValueError(
        f"column {title!r} holds numbers as text, such as {next(iter(found))!r}: pass decimal=',' for a .csv file with "
        f"decimal commas, make numbers of it by pandas.to_numeric, or pass {meant}"
    )
