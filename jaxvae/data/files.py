"""Data from files: folders of pictures or sounds, and arrays as NumPy saves them."""

import os
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args
from zipfile import BadZipFile

import numpy as np

from jaxvae._checks import at_least
from jaxvae.data.dataset import BYTE_LEVELS, Dataset, from_arrays, make_prepare
from jaxvae.data.domain import Domain, Kind

if TYPE_CHECKING:
    from jaxvae.data._pictures import Header

Fit = Literal["crop", "pad", "resize"]
Colour = Literal["grey", "rgb"]
Cut = Literal["windows", "pad"]
Channels = Literal["mono", "keep"]
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
SOUNDS = (".wav", ".flac")
LEVELS = Domain("levels", BYTE_LEVELS)


def folder(
    directory: str | Path,
    *,
    size: int | Sequence[int] | None = None,
    fit: Fit | Cut | None = None,
    colour: Colour | None = None,
    rate: int | None = None,
    length: int | None = None,
    channels: Channels | None = None,
    skip_unreadable: bool = False,
    label_names: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """The pictures or the sounds of a folder, as a `Dataset`.

    Pictures, PNG, JPEG or WebP, become x [N, H, W, C] uint8 of 256 levels, turned as their camera says, and black where
    they are transparent. Sounds, WAV or FLAC, become x [N, T, C] float32 in [-1, 1], and their sample rate
    `Dataset.rate`; nothing is resampled.

    Files come in the order of their paths. Those in sub-folders are labelled by the first one's name, counted from 0
    in alphabetical order, which `label_names` of the set lists; hidden files and folders are left out.

    Args:
      directory: where they are; `~` is the home directory.
      size: of pictures, (height, width), or one number for both; that of the pictures where they all agree.
      fit: what becomes of a picture of another size. "crop", as unless given: scaled so that it covers the size, the
        middle of it; "pad": scaled so that it fits in, on black; "resize": stretched. Of a sound of another length,
        which is refused unless given: "windows": cut into as many windows as it fills, what is left at the end falls
        away; "pad": cut too, and what is left filled up with zeros, and then "mask" [N, T] is false where it is.
      colour: of pictures, "grey" (C = 1) or "rgb" (C = 3); grey where all pictures are.
      rate: samples a second that all sounds must have; those of the files where they all agree.
      length: T, in samples; that of the sounds where they all agree, and of the longest where they are padded. A
        VQ-VAE needs a multiple of what its encoder shrinks x by where they are.
      channels: of sounds, "mono": their mean, C = 1; "keep", as unless given: C of the files, which must agree.
      skip_unreadable: leave out files that cannot be read, whatever their names say, instead of raising.
      label_names: those of another set, so that sub-folders of its names keep their numbers.
      progress: called with (files read, files in all).

    Raises:
      FileNotFoundError: no such folder, or none with a picture or a sound.
      ValueError: files that are damaged or empty, all of them named; pictures of several sizes, sounds of several
        rates, lengths or numbers of channels where none is asked for, or a sample outside [-1, 1]; pictures beside
        sounds, or options of one with the other; files both in sub-folders and beside them; a sub-folder that is none
        of `label_names`.
      ModuleNotFoundError: Pillow or soundfile is missing.
    """
    root = Path(directory).expanduser().resolve()
    paths = _paths(root)
    pictures: dict[str, Any] = {"size": size, "colour": colour}
    sounds: dict[str, Any] = {"rate": rate, "length": length, "channels": channels}
    shared: dict[str, Any] = {"skip_unreadable": skip_unreadable, "progress": progress}
    if _is_sound(paths[0]):
        _refuse(pictures, root, "pictures", "sounds")
        read = _sounds_of(root, paths, fit=_one_of("fit", fit, Cut), **sounds, **shared)
    else:
        _refuse(sounds, root, "sounds", "pictures")
        read = _pictures_of(root, paths, fit=_one_of("fit", fit, Fit) or "crop", **pictures, **shared)
    labels = _labels(root, read.paths)
    if label_names and not labels:
        raise ValueError(f"label_names are of sub-folders, and all files lie in {root} itself: leave them out")
    names = tuple(label_names) or tuple(sorted(set(labels)))
    if unknown := sorted(set(labels) - set(names)):
        raise ValueError(f"{root} has a folder {unknown[0]!r}, which is none of {', '.join(map(repr, names))}")
    arrays = read.arrays | ({"label": np.array([names.index(each) for each in labels], np.int32)} if labels else {})
    return Dataset(
        *(root.name, arrays, make_prepare(read.domain.levels), read.domain),
        label_names=names if labels else (),
        example_names=read.names,
        rate=read.rate,
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
    if (suffix := path.suffix.lower()) not in (".npy", ".npz"):
        raise ValueError(f"expected a .npy or .npz file, got {path}")
    with path.open("rb") as file:
        try:
            loaded = np.load(file)  # no pickles: a file that holds objects is a ValueError
            arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
        except (EOFError, ValueError, BadZipFile, zlib.error) as error:
            raise ValueError(f"{path} cannot be read as {suffix}: {error}") from error
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
    sides: tuple[Any, ...] = tuple(np.asarray(size)) if np.ndim(size) == 1 else (size, size)
    if len(sides) != 2:
        raise ValueError(f"size must be (height, width), or one number for both, got {size}")
    at_least(1, size=sides)
    height, width = map(int, sides)
    return height, width


class _Read(NamedTuple):
    """The arrays of a folder's files, which file each example is of, what it is called, and what values it has."""

    arrays: dict[str, np.ndarray]
    paths: list[Path]
    names: tuple[str, ...]
    domain: Domain
    rate: int | None = None


def _pictures_of(
    root: Path,
    paths: list[Path],
    *,
    size: int | Sequence[int] | None,
    fit: str,
    colour: Colour | None,
    skip_unreadable: bool,
    progress: Callable[[int, int], None] | None,
) -> _Read:
    from jaxvae.data import _pictures  # Pillow, which only this needs

    _one_of("colour", colour, Colour)
    wanted = picture_size(size)
    broken: dict[Path, Exception] = {}

    def attempt(function: Callable[[Path], Any], path: Path) -> Any:
        try:
            return function(path)
        except _pictures.UNREADABLE as error:
            broken[path] = error

    headers = {path: attempt(_pictures.header, path) for path in paths}
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
    return _Read(arrays, kept, tuple(str(path.relative_to(root)) for path in kept), LEVELS)


def _sounds_of(
    root: Path,
    paths: list[Path],
    *,
    rate: int | None,
    length: int | None,
    fit: str | None,
    channels: Channels | None,
    skip_unreadable: bool,
    progress: Callable[[int, int], None] | None,
) -> _Read:
    from jaxvae.data import _sounds  # soundfile, which only this needs

    at_least(1, **{name: value for name, value in (("rate", rate), ("length", length)) if value is not None})
    read = _sounds.read_folder(
        *(root, paths),
        rate=rate,
        length=length,
        fit=fit,
        mono=_one_of("channels", channels, Channels) == "mono",
        skip_unreadable=skip_unreadable,
        progress=progress,
    )
    windows = Counter(read.paths)
    names = tuple(
        f"{path.relative_to(root)}:{start}" if windows[path] > 1 else str(path.relative_to(root))
        for path, start in zip(read.paths, read.starts, strict=True)
    )
    arrays = {"x": read.x} if read.mask is None else {"x": read.x, "mask": read.mask}
    return _Read(arrays, read.paths, names, Domain("real"), read.rate)


def _one_of(name: str, value: str | None, choices: Any) -> str | None:
    """The value, one of a `Literal` or None."""
    if value is not None and value not in get_args(choices):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(choices)))}, got {value!r}")
    return value


def _refuse(options: dict[str, Any], root: Path, theirs: str, found: str) -> None:
    """Raise where an option was given that only the other kind of file has."""
    if given := [name for name, value in options.items() if value is not None]:
        raise ValueError(f"{', '.join(given)} only for {theirs}, and {root} has {found}")


def _is_sound(path: Path) -> bool:
    return path.name.lower().endswith(SOUNDS)


def _paths(root: Path) -> list[Path]:
    """The paths below a folder that look like pictures, or that look like sounds, sorted."""
    if not root.is_dir():
        raise FileNotFoundError(f"no folder {root}")
    found = []
    above: dict[str, list[str]] = {}  # the folders that lead to one: a link to one of them would go round for ever
    for at, folders, files in os.walk(root, followlinks=True):
        way = [*above.get(os.path.dirname(at), []), os.path.realpath(at)]
        above[at] = way
        folders[:] = sorted(
            name for name in folders if not name.startswith(".") and os.path.realpath(os.path.join(at, name)) not in way
        )
        found += [
            Path(at) / name for name in files if not name.startswith(".") and name.lower().endswith(SUFFIXES + SOUNDS)
        ]
    if not found:
        raise FileNotFoundError(
            f"{root} has no pictures and no sounds: no file ends in {', '.join(SUFFIXES)}, {', '.join(SOUNDS)}"
        )
    sounds = [path for path in found if _is_sound(path)]
    if 0 < len(sounds) < len(found):
        picture = next(path for path in found if not _is_sound(path))
        raise ValueError(f"{root} has both pictures and sounds, such as {picture.name} and {sounds[0].name}")
    return sorted(found)


def _labels(root: Path, paths: list[Path]) -> list[str]:
    """The sub-folder that the file of each example lies in; none where all lie in the folder itself."""
    inside = [path.parent != root for path in paths]
    if any(inside) and not all(inside):
        beside = paths[inside.index(False)].name
        raise ValueError(f"{root} has files in sub-folders, which label them, and others beside: {beside}")
    return [path.relative_to(root).parts[0] for path in paths] if any(inside) else []


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
