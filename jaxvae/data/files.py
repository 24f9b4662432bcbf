"""Data from files: folders of pictures, and arrays as NumPy saves them."""

import os
import zlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from zipfile import BadZipFile

import numpy as np

from jaxvae._checks import at_least
from jaxvae.data.dataset import BYTE_LEVELS, Dataset, from_arrays, make_prepare
from jaxvae.data.domain import Domain, Kind

if TYPE_CHECKING:
    from jaxvae.data._pictures import Header

Fit = Literal["crop", "pad", "resize"]
Colour = Literal["grey", "rgb"]
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
LEVELS = Domain("levels", BYTE_LEVELS)


def folder(
    directory: str | Path,
    *,
    size: int | Sequence[int] | None = None,
    fit: Fit = "crop",
    colour: Colour | None = None,
    skip_unreadable: bool = False,
    label_names: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """The pictures of a folder, PNG, JPEG or WebP, as a `Dataset` of 256 levels: x [N, H, W, C] uint8.

    Pictures come in the order of their paths. Those in sub-folders are labelled by the first one's name, counted from 0
    in alphabetical order, which `label_names` of the set lists; hidden files and folders are left out. A picture is
    turned as its camera says, and what is transparent is laid on black.

    Args:
      directory: where they are; `~` is the home directory.
      size: (height, width), or one number for both; that of the pictures where they all agree.
      fit: what becomes of a picture of another size. "crop": scaled so that it covers the size, the middle of it;
        "pad": scaled so that it fits in, on black; "resize": stretched.
      colour: "grey" (C = 1) or "rgb" (C = 3); grey where all pictures are.
      skip_unreadable: leave out files that are no pictures, whatever their names say, instead of raising.
      label_names: those of another set, so that sub-folders of its names keep their numbers.
      progress: called with (pictures read, pictures in all).

    Raises:
      FileNotFoundError: no such folder, or none with a picture.
      ValueError: files that are no pictures, all of them named; pictures of several sizes where none is asked for;
        pictures both in sub-folders and beside them; a sub-folder that is none of `label_names`.
      ModuleNotFoundError: Pillow is missing.
    """
    from jaxvae.data import _pictures  # Pillow, which only this needs

    if fit not in get_args(Fit):
        raise ValueError(f"fit must be one of {', '.join(map(repr, get_args(Fit)))}, got {fit!r}")
    if colour is not None and colour not in get_args(Colour):
        raise ValueError(f"colour must be 'grey' or 'rgb', got {colour!r}")
    wanted, root = picture_size(size), Path(directory).expanduser().resolve()
    broken: dict[Path, Exception] = {}

    def attempt(function: Callable[[Path], Any], path: Path) -> Any:
        try:
            return function(path)
        except _pictures.UNREADABLE as error:
            broken[path] = error

    headers = {path: attempt(_pictures.header, path) for path in _paths(root)}
    readable = {path: header for path, header in headers.items() if header is not None}
    grey = colour == "grey" or (colour is None and all(header.grey for header in readable.values()))
    height, width = wanted or _common_size(readable, root)
    x = np.empty((len(readable), height, width, 1 if grey else 3), np.uint8)
    for i, path in enumerate(readable):
        pixels = attempt(partial(_pictures.read, size=(width, height), fit=fit, grey=grey), path)
        if pixels is not None:
            x[i] = pixels.reshape(x.shape[1:])
        if progress is not None:
            progress(i + 1, len(readable))
    kept = [path for path in readable if path not in broken]
    if broken and not (skip_unreadable and kept):
        listed = ", ".join(str(path.relative_to(root)) for path in broken)
        raise ValueError(
            f"{len(broken)} of {len(headers)} files in {root} cannot be read as pictures: {listed}; mend them, or pass "
            "skip_unreadable=True to leave them out"
        )
    arrays = {"x": x if not broken else x[[path not in broken for path in readable]]}
    labels = _labels(root, kept)
    names = tuple(label_names) or tuple(sorted(set(labels)))
    if unknown := sorted(set(labels) - set(names)):
        raise ValueError(f"{root} has a folder {unknown[0]!r}, which is none of {', '.join(map(repr, names))}")
    if labels:
        arrays["label"] = np.array([names.index(each) for each in labels], np.int32)
    return Dataset(
        *(root.name, arrays, make_prepare(BYTE_LEVELS), LEVELS),
        label_names=names if labels else (),
        example_names=tuple(str(path.relative_to(root)) for path in kept),
    )


def from_file(path: str | Path, *, domain: Kind | Domain | None = None, levels: int | None = None) -> Dataset:
    """The arrays of a `.npy` file (x) or of a `.npz` file (x; label, condition and observed if it has them), checked.

    Args:
      path: of the file; `~` is the home directory.
      domain: as in `from_arrays`.
      levels: as in `from_arrays`.

    Raises:
      FileNotFoundError: no such file.
      ValueError: another kind of file, one that holds Python objects, no "x" in it, or as `from_arrays`.
    """
    path = Path(path).expanduser()
    if path.suffix not in (".npy", ".npz"):
        raise ValueError(f"expected a .npy or .npz file, got {path}")
    with path.open("rb") as file:
        try:
            loaded = np.load(file)  # no pickles: a file that holds objects is a ValueError
            arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
        except (EOFError, ValueError, BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} cannot be read as {path.suffix}: {error}") from error
    if "x" not in arrays:
        raise ValueError(f"{path} must have an array 'x', it has {', '.join(map(repr, arrays)) or 'none'}")
    if unknown := sorted(arrays.keys() - {"x", "label", "condition", "observed"}):
        raise ValueError(
            f"{path} may have 'x', 'label', 'condition' and 'observed', got {', '.join(map(repr, unknown))} too"
        )
    return from_arrays(path.stem, **arrays, domain=domain, levels=levels)


def picture_size(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """(height, width) of what `folder` takes for it; None where nothing is said."""
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    at_least(1, size=(height, width))
    return height, width


def _paths(root: Path) -> list[Path]:
    """The paths below a folder that look like pictures, sorted."""
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    found = []
    for at, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [Path(at) / name for name in files if not name.startswith(".") and name.lower().endswith(SUFFIXES)]
    if not found:
        raise FileNotFoundError(f"{root} has no pictures: no file ends in {', '.join(SUFFIXES)}")
    return sorted(found)


def _labels(root: Path, paths: list[Path]) -> list[str]:
    """The sub-folder that each picture lies in; none where all lie in the folder itself."""
    names = {path: path.relative_to(root).parts[0] for path in paths if path.parent != root}
    beside = [path.name for path in paths if path not in names]
    if names and beside:
        raise ValueError(f"{root} has pictures in sub-folders, which label them, and others beside: {beside[0]}")
    return list(names.values())


def _common_size(headers: "dict[Path, Header]", root: Path) -> tuple[int, int]:
    """(height, width) of all pictures."""
    sizes = {header.size: path for path, header in headers.items()}
    if not sizes:
        return 1, 1  # nothing could be read, which is said once all were tried
    if len(sizes) > 1:
        (first, one), (second, other) = list(sizes.items())[:2]
        raise ValueError(
            f"the pictures in {root} have {len(sizes)} sizes, {one.name} {first[1]}×{first[0]} and {other.name} "
            f"{second[1]}×{second[0]}: pass size=(height, width), and fit='crop', 'pad' or 'resize'"
        )
    ((width, height),) = sizes
    return height, width
