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
from collections.abc import Callable
from pathlib import Path

import numpy as np

DECODE_BATCH = 1000  # examples
PILLOW_MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # by the number of channels
# Only for "did you mean ...?": any prepared set loads.
COMMON_SETS = {"binarized_mnist", "celeb_a", "cifar10", "cifar100", "dsprites", "emnist", "fashion_mnist", "kmnist"}
COMMON_SETS |= {"mnist", "omniglot", "shapes3d", "smallnorb", "stl10", "svhn_cropped"}
# image, label, levels, factors, factor_names
Decoded = tuple[np.ndarray, np.ndarray | None, int, np.ndarray | None, tuple[str, ...]]


def load_prepared(
    name: str,
    split: str,
    *,
    data_dir: str | Path | None,
    cache_dir: str | Path | None,
    progress: Callable[[int, int], None] | None,
) -> Decoded:
    """What `jaxvae.data.ImageSet` holds, after the name; see `jaxvae.data.load`."""
    data_dir = Path(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets").expanduser()
    cache = _cache_root(cache_dir) / name
    versions = [folder for folder in _prepared(data_dir) if folder.parent == data_dir / name]
    if not versions:
        return _load_cached(name, split, cache, data_dir)
    folder = max(versions, key=lambda version: tuple(map(int, version.name.split("."))))
    info = json.loads((folder / "dataset_info.json").read_text())
    sizes = {each["name"]: sum(map(int, each.get("shardLengths", []))) for each in info["splits"]}
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
    if cached.exists():
        with contextlib.suppress(ValueError):
            return _read_cache(cached)
        shutil.rmtree(cached, ignore_errors=True)  # it is damaged; another process may be removing it too
    _decode(name, folder, split, sizes[split], cached, progress or (lambda done, total: None))
    return _read_cache(cached)


def _cache_root(cache_dir: str | Path | None) -> Path:
    root = cache_dir or os.environ.get("JAXVAE_CACHE_DIR")
    return Path(root or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "jaxvae").expanduser()


def _prepared(data_dir: Path) -> list[Path]:
    """List the folders `name[/config]/VERSION`. Asking tensorflow-datasets may use the network, and hang."""
    found = [info.parent for depth in ("*/*", "*/*/*") for info in data_dir.glob(f"{depth}/dataset_info.json")]
    return [folder for folder in sorted(found) if re.fullmatch(r"\d+\.\d+\.\d+", folder.name)]


def _how_to_prepare(name: str) -> str:
    return f"tensorflow_datasets.builder({name!r}).download_and_prepare(file_format='array_record')"


def _load_cached(name: str, split: str, cache: Path, data_dir: Path) -> Decoded:
    """Read the only decoded copy there is; else raise the error for a set that is not prepared."""
    copies = [folder / split for folder in cache.glob("*") if (folder / split / "meta.json").exists()]
    if len(copies) == 1:
        return _read_cache(copies[0])
    if copies:
        raise FileNotFoundError(
            f"the set {name!r} is not in {data_dir}, and {cache} has several copies of it; remove all but one"
        )
    prepared = sorted({str(folder.parent.relative_to(data_dir)) for folder in _prepared(data_dir)})
    known = {"digits", "sprites", *prepared} | COMMON_SETS
    close = [] if name in known else difflib.get_close_matches(name.lower(), sorted(known), n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    raise FileNotFoundError(
        f"the set {name!r} is not prepared in {data_dir}{hint}\n"
        f"Prepared there: {', '.join(prepared) or 'nothing'}. The sets 'digits' and 'sprites' need no files.\n"
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
    except (OSError, EOFError, ValueError) as error:
        raise ValueError(f"the decoded copy {folder} is damaged ({error}); remove it") from error
    if [*image.shape, str(image.dtype)] != [*meta["shape"], "uint8"]:
        raise ValueError(f"the decoded copy {folder} is damaged ({image.dtype} {image.shape}); remove it")
    return image, label, meta["levels"], factors, factor_names


def _decode(
    name: str, prepared: Path, split: str, total: int, cached: Path, progress: Callable[[int, int], None]
) -> None:
    """Decode a split into the folder `cached`, which appears whole or not at all."""
    try:
        import tensorflow_datasets as tfds
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            f"{name!r} needs tensorflow-datasets and Pillow: pip install 'jaxvae[experiments]'"
        ) from error
    builder = tfds.builder_from_directory(prepared, file_format="array_record")
    feature = dict(builder.info.features).get("image")
    if not isinstance(feature, tfds.features.Image) or feature.np_dtype != np.uint8:
        raise ValueError(f"{name!r} has no feature 'image' of 8-bit images; it has {builder.info.features}")
    # Pillow, called here, takes half the time and gives the same pixels whether or not OpenCV is installed.
    source = builder.as_data_source(split, decoders={"image": tfds.decode.SkipDecoding()})
    mode = PILLOW_MODES[feature.shape[-1]]

    def pixels(encoded: bytes) -> np.ndarray:
        with Image.open(io.BytesIO(encoded)) as image:
            decoded = np.asarray(image.convert(mode))
        return decoded.reshape(*decoded.shape[:2], -1)

    first = source[0]
    shape = (total, *pixels(first["image"]).shape)
    label = np.empty(total, np.int32) if isinstance(first.get("label"), int | np.integer) else None
    # Sorted, because features read from disk come in no fixed order.
    columns = sorted(
        key for key, value in first.items() if key.startswith("label_") and isinstance(value, int | np.integer)
    )
    factors = np.empty((total, len(columns)), np.int32)
    brightest = 0
    cached.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{split}-", dir=cached.parent) as scratch:
        made = Path(scratch) / split
        made.mkdir()
        image = np.lib.format.open_memmap(made / "image.npy", "w+", np.uint8, shape)
        for start in range(0, total, DECODE_BATCH):
            examples = source.__getitems__(list(range(start, min(start + DECODE_BATCH, total))))
            decoded = [pixels(example["image"]) for example in examples]
            sizes = {each.shape for each in decoded} | {shape[1:]}
            if len(sizes) > 1:
                raise ValueError(f"{name!r} has images of several sizes, {sizes}: resize them, then use from_arrays")
            image[start : start + len(decoded)] = decoded
            brightest = max(brightest, image[start : start + len(decoded)].max())
            if label is not None:
                label[start : start + len(decoded)] = [example["label"] for example in examples]
            factors[start : start + len(decoded)] = [[example[column] for column in columns] for example in examples]
            progress(start + len(decoded), total)
        image.flush()
        if label is not None:
            np.save(made / "label.npy", label)
        if columns:
            np.save(made / "factors.npy", factors)
        meta = {
            "shape": shape,
            "levels": 256 if brightest > 1 else 2,
            "labelled": label is not None,
            "factor_names": [column.removeprefix("label_") for column in columns],
        }
        (made / "meta.json").write_text(json.dumps(meta))
        try:
            made.rename(cached)
        except OSError:
            if not cached.exists():  # else another process was faster, and its copy is used
                raise
