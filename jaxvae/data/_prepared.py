"""Image sets that tensorflow-datasets has prepared: found, decoded once, and kept as memory-mapped arrays.

Without TensorFlow, and after the first time without tensorflow-datasets. `jaxvae.data.load` is the way in.
"""

import contextlib
import difflib
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxvae._cache import cache_root, expanded
from jaxvae._json import read_json_object

DECODE_BATCH = 1000  # examples
PILLOW_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by the number of channels
WITHOUT_FILES = ("digits", "moving_sprites", "speech", "sprites")
# Only for "did you mean ...?": any prepared set loads.
COMMON_SETS = {"binarized_mnist", "celeb_a", "cifar10", "cifar100", "dsprites", "emnist", "fashion_mnist", "kmnist"}
COMMON_SETS |= {"mnist", "omniglot", "shapes3d", "smallnorb", "stl10", "svhn_cropped"}
Progress = Callable[[int, int], None]


class Decoded(NamedTuple):
    """A split's arrays: images [N, H, W, C] uint8, label [N] int32, factors [N, F] int32, and how many levels."""

    image: np.ndarray
    label: np.ndarray | None
    levels: int
    factors: np.ndarray | None
    factor_names: tuple[str, ...]


def load_prepared(
    name: str,
    split: str,
    *,
    data_dir: str | Path | None,
    cache_dir: str | Path | None,
    progress: Progress | None,
) -> Decoded:
    """What a `jaxvae.data.Dataset` of images holds; see `jaxvae.data.load`."""
    data_dir = data_root(data_dir)
    cache = cache_root(cache_dir) / name
    versions = [folder for folder in prepared_folders(data_dir) if folder.parent == data_dir / name]
    if not versions:
        return _load_cached(name, split, cache, data_dir)
    folder = max(versions, key=lambda version: tuple(map(int, version.name.split("."))))
    info = read_json_object(folder / "dataset_info.json")
    try:
        sizes = {each["name"]: sum(map(int, each.get("shardLengths", []))) for each in info["splits"]}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / 'dataset_info.json'} is damaged: it lists no splits; prepare it again") from error
    if split not in sizes:
        raise ValueError(f"{name!r} has no split {split!r}; it has {', '.join(sizes)}")
    if not sizes[split]:
        raise ValueError(f"the split {split!r} of {name!r} is empty")
    formats = [info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", [])]
    if "array_record" not in formats:
        raise ValueError(
            f"{folder} holds {', '.join(formats)} files, which only TensorFlow reads; prepare it again with\n"
            f"  {_how_to_prepare(name)}"
        )
    cached = cache / f"{folder.name}-{_fingerprint(folder)}" / split
    if os.path.exists(cached):
        with contextlib.suppress(ValueError):
            return _read_cache(cached)
        shutil.rmtree(cached, ignore_errors=True)  # it is damaged; another process may be removing it too
    return _decode(_Source(name, folder, split, sizes[split]), cached, progress or (lambda done, total: None))


def data_root(data_dir: str | Path | None = None) -> Path:
    """Where prepared sets are: an argument, `$TFDS_DATA_DIR`, or `~/tensorflow_datasets`."""
    return expanded(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")


def prepared_folders(data_dir: Path) -> list[Path]:
    """List the folders `name[/config]/VERSION`. Asking tensorflow-datasets may use the network, and hang."""
    found = [info.parent for depth in ("*/*", "*/*/*") for info in data_dir.glob(f"{depth}/dataset_info.json")]
    return [folder for folder in sorted(found) if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)]


def _how_to_prepare(name: str) -> str:
    return f"tensorflow_datasets.builder({name!r}).download_and_prepare(file_format='array_record')"


def _load_cached(name: str, split: str, cache: Path, data_dir: Path) -> Decoded:
    """Read the only decoded copy there is; else raise the error for a set that is not prepared."""
    copies = [folder / split for folder in cache.glob("*") if os.path.exists(folder / split / "meta.json")]
    if len(copies) == 1:
        return _read_cache(copies[0])
    if copies:
        raise FileNotFoundError(
            f"the set {name!r} is not in {data_dir}, and {cache} has several copies of it; remove all but one"
        )
    prepared = sorted({str(folder.parent.relative_to(data_dir)) for folder in prepared_folders(data_dir)})
    known = {*WITHOUT_FILES, *prepared} | COMMON_SETS
    close = [] if name in known else difflib.get_close_matches(name.lower(), sorted(known), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise FileNotFoundError(
        f"the set {name!r} is not prepared in {data_dir}{hint}\n"
        f"Prepared there: {', '.join(prepared) or 'nothing'}. No files are needed for "
        f"{', '.join(map(repr, WITHOUT_FILES))}.\n"
        f"To prepare one, run, on a machine with TensorFlow and a network:\n  {_how_to_prepare(name)}\n"
        "Then set TFDS_DATA_DIR to the folder it wrote to (~/tensorflow_datasets unless told otherwise)."
    )


def _fingerprint(folder: Path) -> str:
    """Tells apart prepared copies of one version, without reading the images."""
    digest = hashlib.sha256((folder / "dataset_info.json").read_bytes())
    for shard in sorted(folder.glob("*.array_record*")):
        digest.update(f"{shard.name} {shard.stat().st_size}\n".encode())
    return digest.hexdigest()[:12]


def _read_cache(folder: Path) -> Decoded:
    try:
        meta = json.loads((folder / "meta.json").read_text())
        image = np.load(folder / "image.npy", mmap_mode="r")
        label = np.load(folder / "label.npy") if meta["labelled"] else None
        factor_names = tuple(meta.get("factor_names", ()))  # copies made before factors were kept have none
        factors = np.load(folder / "factors.npy") if factor_names else None
        expected, levels = [*meta["shape"], "uint8"], meta["levels"]
    except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"the decoded copy {folder} is damaged ({error}); remove it") from error
    if [*image.shape, str(image.dtype)] != expected:
        raise ValueError(f"the decoded copy {folder} is damaged ({image.dtype} {image.shape}); remove it")
    for each in (label, factors):
        if each is not None and len(each) != len(image):
            raise ValueError(
                f"the decoded copy {folder} is damaged ({len(each)} labels, {len(image)} images); remove it"
            )
    return Decoded(image, label, levels, factors, factor_names)


def _decode(source: "_Source", cached: Path, progress: Progress) -> Decoded:
    """Decode a split into the folder `cached`, which appears whole or not at all; into memory where that cannot be."""
    try:
        if str(cached).startswith("~"):
            raise OSError(f"no home directory is known for {cached}")
        cached.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.TemporaryDirectory(prefix=f".{cached.name}-", dir=cached.parent)
        made = Path(scratch.name) / cached.name
        try:
            image = _new_map(made, source.shape)
        except OSError:
            scratch.cleanup()
            raise
    except OSError as error:
        warnings.warn(
            f"{source.name!r} is decoded into memory, now and in every later run, because its copy cannot be written "
            f"({error}): set JAXVAE_CACHE_DIR to a folder that can be",
            stacklevel=4,  # whoever calls jaxvae.data.load
        )
        return source.decode(np.empty(source.shape, np.uint8), progress)
    with scratch:
        decoded = source.decode(image, progress)
        image.flush()
        if decoded.label is not None:
            np.save(made / "label.npy", decoded.label)
        if decoded.factors is not None:
            np.save(made / "factors.npy", decoded.factors)
        meta = {
            "shape": source.shape,
            "levels": decoded.levels,
            "labelled": decoded.label is not None,
            "factor_names": decoded.factor_names,
        }
        (made / "meta.json").write_text(json.dumps(meta))
        try:
            made.rename(cached)
        except OSError:
            if not cached.exists():  # else another process was faster, and its copy is used
                raise
    return _read_cache(cached)


def _new_map(folder: Path, shape: tuple[int, ...]) -> np.memmap:
    """An array in a new folder, for which there is room: the process would die where a map finds the disk full."""
    folder.mkdir()
    image = np.lib.format.open_memmap(folder / "image.npy", "w+", np.uint8, shape)
    if hasattr(os, "posix_fallocate"):
        with (folder / "image.npy").open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return image


class _Source:
    """The examples of a prepared split, by tensorflow-datasets."""

    def __init__(self, name: str, folder: Path, split: str, total: int) -> None:
        try:
            import tensorflow_datasets as tfds
            from PIL import Image
        except ImportError as error:
            raise ImportError(f"{name!r} needs tensorflow-datasets and Pillow: pip install 'jaxvae[data]'") from error
        builder = tfds.builder_from_directory(folder, file_format="array_record")
        feature = dict(builder.info.features).get("image")
        if not isinstance(feature, tfds.features.Image) or feature.np_dtype != np.uint8:
            raise ValueError(f"{name!r} has no feature 'image' of 8-bit images; it has {builder.info.features}")
        # Pillow, called here, takes half the time and gives the same pixels whether or not OpenCV is installed.
        self._examples = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
        self._open, self._mode = Image.open, PILLOW_MODES[feature.shape[-1]]
        first: dict[str, Any] = self._examples[0]
        self.name, self.shape = name, (total, *self._pixels(first["image"]).shape)
        whole = {key for key, value in first.items() if isinstance(value, int | np.integer)}
        self._labelled = "label" in whole
        # Sorted, because features read from disk come in no fixed order.
        self._columns = sorted(key for key in whole if key.startswith("label_"))

    def decode(self, image: np.ndarray, progress: Progress) -> Decoded:
        """Fill `image`, of the source's shape, and return it with all else."""
        total = len(image)
        label = np.empty(total, np.int32) if self._labelled else None
        factors = np.empty((total, len(self._columns)), np.int32)
        brightest = 0
        for start in range(0, total, DECODE_BATCH):
            part = slice(start, min(start + DECODE_BATCH, total))
            examples = self._examples.__getitems__(list(range(part.start, part.stop)))
            decoded = [self._pixels(example["image"]) for example in examples]
            sizes = {each.shape for each in decoded} | {self.shape[1:]}
            if len(sizes) > 1:
                raise ValueError(
                    f"{self.name!r} has images of several sizes, {sizes}: resize them, then use from_arrays"
                )
            image[part] = decoded
            brightest = max(brightest, image[part].max())
            if label is not None:
                label[part] = [example["label"] for example in examples]
            factors[part] = [[example[column] for column in self._columns] for example in examples]
            progress(part.stop, total)
        names = tuple(column.removeprefix("label_") for column in self._columns)
        return Decoded(image, label, 256 if brightest > 1 else 2, factors if names else None, names)

    def _pixels(self, encoded: bytes) -> np.ndarray:
        with self._open(io.BytesIO(encoded)) as image:
            decoded = np.asarray(image.convert(self._mode))
        return decoded.reshape(*decoded.shape[:2], -1)
