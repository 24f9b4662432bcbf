"""Data that another library holds: anything with a length that gives its examples by number."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, get_args

import numpy as np

from jaxvae.data.dataset import BYTE_LEVELS, Dataset, from_arrays
from jaxvae.data.domain import Domain, Kind, stored_array
from jaxvae.data.files import Colour, Fit, picture_size

USUAL = ("x", "image", "img", "pixel_values", "audio")  # what x is called where nothing is said
LABELS = ("label", "labels", "target")


class Source(Protocol):
    """Examples by number, such as a Hugging Face `datasets.Dataset`, a `grain` data source, or a list."""

    def __len__(self) -> int:
        """How many."""
        ...

    def __getitem__(self, index: int, /) -> Any:
        """One example: a dictionary, a pair (x, label), or x alone."""
        ...


def from_source(
    name: str,
    source: Source,
    *,
    x: str | int | None = None,
    label: str | int | None = None,
    size: int | Sequence[int] | None = None,
    fit: Fit = "crop",
    colour: Colour | None = None,
    domain: Kind | Domain | None = None,
    levels: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Read all examples of a source into memory, as a checked `Dataset`.

    Args:
      name: what errors and pictures call it.
      source: a Hugging Face `datasets.Dataset` (not an `IterableDataset`), a `grain` data source or `MapDataset`, a
        PyTorch data set, a list: whatever has a length and gives example i as `source[i]`.
      x: the key of x in an example that is a dictionary, or its place in a tuple. Unless given: "x", "image", "img",
        "pixel_values" or "audio", whichever there is, or the first of a tuple.
      label: the key or the place of an integer label. Unless given: "label", "labels" or "target" where there is one
        and it is an integer, or the second of a pair.
      size: of Pillow's pictures, as in `data.folder`; that of the first unless given.
      fit: as in `data.folder`.
      colour: as in `data.folder`; that of the first picture unless given.
      domain: of arrays, as in `from_arrays`; pictures have 256 levels.
      levels: as in `from_arrays`.
      progress: called with (examples read, examples in all).

    Sound as Hugging Face decodes it, {"array", "sampling_rate"}, keeps its sample rate, `Dataset.rate`.

    Raises:
      TypeError: the source has no length or no example of number 0, x is neither a picture nor numbers, or a label that
        is no integer.
      ValueError: no examples, no such key, examples of several shapes or sample rates, pictures whose white is not
        known (Pillow's mode "F", and "I" with nothing above 255), or as `from_arrays`.
    """
    total = _length(source)
    first = _first(source)
    x_key = _key("x", x, first, USUAL, required=True)
    label_key = _label_key(label, first, x_key)
    read = _reader(_value(first, x_key), size, fit, colour)
    values: list[np.ndarray] = []
    labels: list[Any] = []
    rates: dict[int | None, int] = {}  # the first example of each
    for i in range(total):
        example = source[i]
        value = _value(example, x_key, i)
        rates.setdefault(_rate(value), i)
        value = read(value, i)
        if values and value.shape != values[0].shape:
            raise ValueError(
                f"x of example {i} has shape {value.shape}, and that of example 0 {values[0].shape}: bring them to one "
                "first"
            )
        values.append(value)
        if label_key is not None:
            labels.append(_label(_value(example, label_key, i), i))
        if progress is not None:
            progress(i + 1, total)
    if len(rates) > 1:
        (one, i), (other, j) = list(rates.items())[:2]
        raise ValueError(f"examples {i} and {j} have {one} and {other} samples a second: bring them to one rate first")
    if domain is None and levels is None and _is_picture(_value(first, x_key)):
        levels = BYTE_LEVELS
    made = from_arrays(name, np.stack(values), labels if labels else None, domain=domain, levels=levels)
    return replace(made, rate=next(iter(rates)))


def _length(source: Source) -> int:
    if not hasattr(source, "__len__") or not hasattr(source, "__getitem__"):
        raise TypeError(
            f"a source gives its examples by number and has a length, and a {type(source).__name__} does not: read it "
            "into a list first, or load a Hugging Face set without streaming"
        )
    total = len(source)
    if not total:
        raise ValueError("the source has no examples")
    return total


def _first(source: Source) -> Any:
    try:
        return source[0]
    except (KeyError, IndexError) as error:
        raise TypeError(
            f"a source gives its examples by number, and a {type(source).__name__} has none of number 0: pass one part "
            "of it (its 'train'), arrays by from_arrays, or a table by from_table"
        ) from error


def _key(what: str, key: str | int | None, first: Any, usual: Sequence[str], *, required: bool) -> str | int | None:
    """Where an example has it; None where the example is x itself, or has none."""
    if isinstance(first, Mapping):
        found = [name for name in usual if name in first] if key is None else [key] * (key in first)
        if not found and (required or key is not None):
            asked = "" if key is None else f" {key!r}"
            raise ValueError(f"examples have no {what}{asked}, only {', '.join(map(repr, first))}: pass {what}=")
        return found[0] if found else None
    if isinstance(first, tuple):
        place = 0 if key is None else key
        if not isinstance(place, int) or not 0 <= place < len(first):
            raise ValueError(f"examples are tuples of {len(first)}: {what} must be a place in them, got {key!r}")
        return place
    if key is not None:
        raise ValueError(f"examples are no dictionaries and no tuples, so there is no {what} {key!r} in them")
    return None


def _label_key(label: str | int | None, first: Any, x_key: str | int | None) -> str | int | None:
    if label is None and not isinstance(first, Mapping):
        pair = isinstance(first, tuple) and len(first) == 2 and x_key == 0
        return 1 if pair and _is_integer(first[1]) else None
    key = _key("label", label, first, LABELS, required=False)
    return key if key is None or label is not None or _is_integer(_value(first, key)) else None


def _value(example: Any, key: str | int | None, i: int = 0) -> Any:
    try:
        return example if key is None else example[key]
    except (KeyError, IndexError, TypeError) as error:
        raise ValueError(f"example {i} has no {key!r}, which example 0 has") from error


def _label(value: Any, i: int) -> Any:
    if not _is_integer(value):
        raise TypeError(f"the label of example {i} is {value!r:.60}: labels are integers counted from 0")
    return value


def _rate(value: Any) -> int | None:
    """Samples a second of sound, as Hugging Face decodes it."""
    rate = value.get("sampling_rate") if isinstance(value, Mapping) else None
    return None if rate is None else int(rate)


def _reader(
    first: Any, size: int | Sequence[int] | None, fit: Fit, colour: Colour | None
) -> Callable[[Any, int], np.ndarray]:
    """What makes an array of x: a picture brought to one size, or numbers as they are."""
    if not _is_picture(first):
        if size is not None or colour is not None:
            raise ValueError(f"size and colour are for pictures of Pillow, and x is a {type(first).__name__}")
        return _numbers
    from jaxvae.data import _pictures

    if fit not in get_args(Fit):
        raise ValueError(f"fit must be one of {', '.join(map(repr, get_args(Fit)))}, got {fit!r}")
    if colour is not None and colour not in get_args(Colour):
        raise ValueError(f"colour must be 'grey' or 'rgb', got {colour!r}")
    wanted = picture_size(size)
    height, width = wanted or _pictures.upright(first).size[::-1]
    grey = first.mode in _pictures.GREY if colour is None else colour == "grey"

    def read(picture: Any, i: int) -> np.ndarray:
        if not _is_picture(picture):
            raise TypeError(f"x of example {i} is a {type(picture).__name__}, and that of example 0 a picture")
        if picture.mode == "F" or (picture.mode == "I" and 0 < picture.getextrema()[1] < BYTE_LEVELS):
            raise ValueError(
                f"picture {i} is of mode {picture.mode!r}, whose white nobody knows: pass numpy.asarray of the pictures"
            )
        picture = _pictures.upright(picture)
        if wanted is None and picture.size != (width, height):
            raise ValueError(
                f"picture {i} is {picture.size[1]}×{picture.size[0]}, and picture 0 {height}×{width}: pass size="
            )
        if colour is None and grey and picture.mode not in _pictures.GREY:
            raise ValueError(f"picture {i} has colours, and picture 0 has none: pass colour='rgb' or colour='grey'")
        pixels = _pictures.fitted(picture, size=(width, height), fit=fit, grey=grey)
        return pixels.reshape(height, width, 1 if grey else 3)

    return read


def _numbers(value: Any, i: int) -> np.ndarray:
    if isinstance(value, Mapping) and "array" in value:  # sound, as Hugging Face decodes it
        value = value["array"]
    return stored_array(value, f"x of example {i}")


def _is_picture(value: Any) -> bool:
    """Whether it is one of Pillow's, which is not imported for the question."""
    return any(kind.__module__.startswith("PIL.") for kind in type(value).__mro__)


def _is_integer(value: Any) -> bool:
    return bool(np.ndim(value) == 0 and np.issubdtype(np.asarray(value).dtype, np.integer))
