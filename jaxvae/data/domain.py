"""Which values data may take, and the checks of them on the host: compiled code cannot look at values."""

import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxvae._checks import at_least
from jaxvae._host import host_array
from jaxvae.types import Column

Kind = Literal["unit interval", "levels", "real", "counts", "categories", "table"]
FLOATING = {"unit interval": " in [0, 1]", "real": "", "table": ", a column for each of its domain's"}
# kind -> what its values are
INTEGER = {"levels": "integers, pixels on a scale", "counts": "integers", "categories": "integers, codes"}
INT32 = np.iinfo(np.int32)
LARGEST_WHOLE = 2**24  # up to which float32, which models see, has every whole number


@dataclass(frozen=True)
class Domain:
    """Which values x may take, and so which likelihoods fit it.

    Attributes:
      kind: "unit interval": floating in [0, 1]; "levels": integers 0 .. levels-1 on a scale, such as pixels; "real":
        floating and finite; "counts": integers from zero up; "categories": integers 0 .. levels-1 in no order;
        "table": floating [N, C], each column as `columns` say (`jaxvae.data.from_table`).
      levels: how many values there are, for "levels" and "categories" alone.
      columns: of a "table", from left to right.

    Raises:
      TypeError: levels that are no integer.
      ValueError: another kind, fewer than two levels or more than 2**24, levels or columns that are missing or where
        there can be none.
    """

    kind: Kind
    levels: int | None = None
    columns: tuple[Column, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in FLOATING.keys() | INTEGER.keys():
            raise ValueError(f"kind must be one of {', '.join(map(repr, FLOATING | INTEGER))}, got {self.kind!r}")
        if bool(self.columns) != (self.kind == "table"):
            raise ValueError(f"{self.kind!r} {'needs columns' if self.kind == 'table' else 'has no columns'}")
        counted = self.kind in ("levels", "categories")
        if counted and self.levels is not None:
            at_least(2, levels=self.levels)
            if self.levels > LARGEST_WHOLE:
                raise ValueError(f"levels must be at most 2**24, which float32 tells apart, got {self.levels}")
        elif counted or self.levels is not None:
            raise ValueError(f"{self.kind!r} has {'a number of' if counted else 'no'} levels, got {self.levels}")

    @property
    def bounds(self) -> tuple[float, float]:
        """The least and the greatest value, both of them inside."""
        if self.kind in ("real", "table"):
            return -math.inf, math.inf
        if self.kind == "counts":
            return 0, math.inf
        return 0, 1 if self.levels is None else self.levels - 1


def check_domain(x: ArrayLike, domain: Domain) -> None:
    """Raise unless every value of x [N, ...] lies in its domain. Once per set: it reads all of x.

    Raises:
      TypeError: x is floating where its domain is of integers, or the other way round, or neither.
      ValueError: a value outside, one that is not finite, or a count that float32 has not; names the first that is.
    """
    values = np.atleast_1d(stored_array(x, "x"))
    floating = jnp.issubdtype(values.dtype, jnp.floating)
    expected = FLOATING if floating else INTEGER
    if domain.kind not in expected or not (floating or np.issubdtype(values.dtype, np.integer)):
        what = f"floating{FLOATING[domain.kind]}" if domain.kind in FLOATING else INTEGER[domain.kind]
        raise TypeError(f"x must be {what}, got {values.dtype}")
    if domain.kind == "table":
        _check_columns(values, domain.columns)
    low, high = domain.bounds
    sound = (values >= low) & (values <= high)  # False for NaN
    if floating:
        sound &= np.isfinite(values)
    if not sound.all():
        first = int(np.argmin(sound.reshape(len(sound), -1).all(axis=1)))
        value = values[first][~sound[first]].ravel()[0]
        if not np.isfinite(value):
            raise ValueError(f"x[{first}] has {value}, which is not finite")
        hint = "; scale it first" if domain.kind == "unit interval" else ""
        raise ValueError(f"x[{first}] has {value}, outside [{low}, {high}]{hint}")
    if domain.kind == "counts" and (rounded := values.astype(np.float32) != values).any():  # models see float32
        value = values[rounded][0]
        raise ValueError(f"x has the count {value}, which float32 has not: scale x, and pass domain='real'")


def _check_columns(x: np.ndarray, columns: tuple[Column, ...]) -> None:
    """Raise `ValueError` unless x is [N, C], its counts whole numbers from zero up, its categories places of them."""
    if x.ndim != 2 or x.shape[1] != len(columns):
        raise ValueError(f"a table of {len(columns)} columns is x (N, {len(columns)}), got {x.shape}")
    for values, column in zip(x.T, columns, strict=True):
        if column.kind == "real":
            continue
        high = len(column.categories) - 1 if column.kind == "categories" else math.inf
        wrong = ~((values >= 0) & (values <= high) & (values == np.floor(values)))
        if wrong.any():
            first = int(np.argmax(wrong))
            raise ValueError(
                f"x[{first}] has {values[first]} in column {column.name!r}, of whole numbers in [0, {high}]"
            )


def check_labels(label: ArrayLike, num_classes: int) -> None:
    """Raise unless labels [N] are integers 0 .. num_classes-1, as the embedding of a label takes them.

    Raises:
      TypeError: labels, or a number of classes, that are not integers.
      ValueError: a wrong shape, or a label outside; names the first one, and the way out where they count from 1.
    """
    at_least(1, num_classes=num_classes)
    values = stored_integers(label, "label")
    if values.ndim != 1:
        raise ValueError(f"label must be [N], got {values.shape}")
    outside = (values < 0) | (values >= num_classes)
    if outside.any():
        first = int(np.argmax(outside))
        from_one = values.min() == 1 and values.max() == num_classes
        hint = ": labels count from 0, so pass label - 1" if from_one else ""
        raise ValueError(f"label[{first}] is {values[first]}, outside 0 .. {num_classes - 1}{hint}")


def stored_array(values: ArrayLike, name: str) -> np.ndarray:
    """The values as a NumPy array; a memory map stays one.

    Raises:
      TypeError: they are no numbers, or some of them are masked.
      ValueError: lists of several lengths.
    """
    if isinstance(values, np.memmap):
        return values
    try:
        return host_array(values, name)
    except ValueError as error:
        raise ValueError(f"{name} must be an array, and its rows differ in shape: {error}") from error


def carried(values: ArrayLike, name: str) -> np.ndarray:
    """The values as a NumPy array that JAX takes as it is: in the byte order of the machine, no integer too large.

    Raises:
      TypeError: as `stored_array`.
      ValueError: an integer of 64 bits that JAX, which has 32, would wrap around.
    """
    array = stored_array(values, name)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    kept = jax.dtypes.canonicalize_dtype(array.dtype)
    if np.issubdtype(array.dtype, np.integer) and kept != array.dtype and array.size:
        held = np.iinfo(kept)
        for value in (array.min(), array.max()):
            if not held.min <= int(value) <= held.max:
                raise ValueError(f"{name} must fit 32 bits, got {value}")
    return array


def stored_integers(values: ArrayLike, name: str) -> np.ndarray:
    """The values as int32.

    Raises:
      TypeError: they are not integers.
      ValueError: one does not fit 32 bits.
    """
    array = stored_array(values, name)
    if not np.issubdtype(array.dtype, np.integer):
        raise TypeError(f"{name} must be integers, got {array.dtype}")
    if array.size and not np.can_cast(array.dtype, np.int32):
        for value in (array.min(), array.max()):
            if not INT32.min <= int(value) <= INT32.max:
                raise ValueError(f"{name} must fit 32 bits, got {value}")
    return array.astype(np.int32, copy=False)
