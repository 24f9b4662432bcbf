"""Images, drawn or from scikit-learn, tensorflow-datasets or your own arrays, and how training reads them.

`load` decodes a set once and keeps it as memory-mapped arrays: later runs start at once, without
tensorflow-datasets. An `Order` says which examples a step takes, `Resident` and `Streamed` hand them to the
epoch program, and the function from `make_prepare` turns them into floating images there.
"""

import functools
import mmap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxvae import sprites
from jaxvae.keys import check_seed, draw, example_keys
from jaxvae.prepared import load_prepared
from jaxvae.types import Array, Batch, Prepare, PRNGKey

READERS = 8  # threads that read a memory map
RESIDENT_STEPS = 1000
STREAMED_BYTES = 64 * 2**20


class ImageSet(NamedTuple):
    """One split of a set of images, on the host.

    Attributes:
      name: what errors and pictures call it.
      image: `[N, H, W, C]`, uint8 with values 0 .. levels-1, or float32 in [0, 1]. May be a memory map. For "sprites",
        what the images are drawn from: their factors, `[N, 5]` uint8, which `jaxvae.sprites.prepare` renders.
      label: `[N]` int32, or None.
      levels: how many values a uint8 pixel can take: 2, 17 (digits), 256. Floating images do not use it.
      factors: what each image was made from, `[N, F]` int32 counted from 0, or None where that is not known.
      factor_names: the names of the F columns.
    """

    name: str
    image: np.ndarray
    label: np.ndarray | None
    levels: int
    factors: np.ndarray | None = None
    factor_names: tuple[str, ...] = ()

    def take(self, rows: slice | np.ndarray) -> "ImageSet":
        """The examples at `rows`: a slice, or integers [M]."""
        label = None if self.label is None else self.label[rows]
        factors = None if self.factors is None else self.factors[rows]
        return self._replace(image=self.image[rows], label=label, factors=factors)


def load(
    name: str,
    split: str,
    *,
    data_dir: str | Path | None = None,
    cache_dir: str | Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImageSet:
    """One split of a set by its name: "digits", "sprites", or any image set that tensorflow-datasets has prepared.

    "digits" is scikit-learn's 1,797 images of 8x8 pixels with values 0 .. 16, in a fixed split: 1,437 "train"
    and 360 "test". "sprites" is the 737,280 images of `jaxvae.sprites`, all "train"; train on it with
    `prepare=sprites.prepare`.

    Any other set is read from the newest `data_dir/name/VERSION`, decoded once and cached, without TensorFlow.
    Images of zeros and ones (binarized_mnist, dsprites) get `levels=2`. Integer features called "label_NAME"
    (dsprites, shapes3d) become the factors, sorted by name. Where `data_dir` lacks the set but the cache has one
    decoded copy, that copy is used, without tensorflow-datasets.

    Args:
      name: "digits", "sprites", "mnist", or with a configuration, "emnist/letters".
      split: a split's plain name.
      data_dir: where the prepared sets are; `$TFDS_DATA_DIR`, then `~/tensorflow_datasets`.
      cache_dir: for decoded arrays; `$JAXVAE_CACHE_DIR`, `$XDG_CACHE_HOME/jaxvae`, then `~/.cache/jaxvae`.
      progress: called with (images decoded, images in all) while a set is decoded for the first time.

    Raises:
      FileNotFoundError: the set is not prepared in `data_dir`, or has several cached copies and no original.
      ValueError: no such split, an empty one, another file format than array_record, images of several sizes.
      ImportError: scikit-learn or tensorflow-datasets is missing.
    """
    if name == "digits":
        return _load_digits(split)
    if name == "sprites":
        return _load_sprites(split)
    return ImageSet(name, *load_prepared(name, split, data_dir=data_dir, cache_dir=cache_dir, progress=progress))


def from_arrays(name: str, image: np.ndarray, label: np.ndarray | None = None, *, levels: int = 256) -> ImageSet:
    """Your own arrays as an `ImageSet`, checked.

    Args:
      name: what errors and pictures call it.
      image: `[N, H, W, C]`, uint8 below `levels`, or floating in [0, 1] (kept as float32).
      label: `[N]` integers, or None.
      levels: the number of values a uint8 pixel can take; 2 for images of zeros and ones.

    Raises:
      TypeError: images neither uint8 nor floating, or labels that are not integers.
      ValueError: a wrong shape, or a value outside the range.
    """
    check_images(image, levels=levels)
    if image.dtype != np.uint8:
        image = image.astype(np.float32, copy=False)
    elif levels > 2 and image.max() == 1:
        raise ValueError(f"the brightest pixel is 1 of 0 .. {levels - 1}: pass levels=2 for images of zeros and ones")
    if label is not None:
        if not np.issubdtype(label.dtype, np.integer):
            raise TypeError(f"labels must be integers [N], got {label.dtype}")
        if label.shape != image.shape[:1]:
            raise ValueError(f"labels must be [N], one for each of {len(image)} images, got {label.shape}")
        label = label.astype(np.int32)
    return ImageSet(name, image, label, levels)


def check_images(images: np.ndarray, *, levels: int | None = None) -> None:
    """Raise unless `images` are `[N, H, W, C]`, finite in [0, 1] if floating, below `levels` if uint8.

    For the host, once per set: compiled code cannot look at values.

    Raises:
      TypeError: neither uint8 nor floating.
      ValueError: a wrong shape, no images, or a value outside the range; names the first image that has one.
    """
    if images.ndim != 4 or not len(images):
        raise ValueError(f"expected images [N, H, W, C], got {images.shape}; a grey image has C = 1")
    if images.dtype == np.uint8:
        top = 255 if levels is None else levels - 1
    elif np.issubdtype(images.dtype, np.floating):
        top = 1
    else:
        raise TypeError(f"images must be uint8 or floating, got {images.dtype}")
    sound = (images >= 0) & (images <= top)  # False for NaN
    if not sound.all():
        first = int(np.argmin(sound.all(axis=(1, 2, 3))))
        value = images[first][~sound[first]][0]
        if not np.isfinite(value):
            raise ValueError(f"image {first} is not finite: it has {value}")
        raise ValueError(f"image {first} has {value}, outside [0, {top}]")


def split_validation(images: ImageSet, count: int, *, seed: int) -> tuple[ImageSet, ImageSet]:
    """Hold out `count` random examples: (training, validation), each in the set's order. Copies the images.

    Raises:
      ValueError: `count` leaves one of the two parts empty, or a seed outside 0 .. 2**32 - 1.
    """
    check_seed(seed)
    total = len(images.image)
    if not 0 < count < total:
        raise ValueError(f"count must lie in 1 .. {total - 1} for {total} examples, got {count}")
    held_out = np.zeros(total, bool)
    held_out[np.random.default_rng(seed).permutation(total)[:count]] = True
    return images.take(np.flatnonzero(~held_out)), images.take(np.flatnonzero(held_out))


def make_prepare(levels: int, *, binarize: bool = False) -> Prepare:
    """Return the function that makes stored images into what models see: floating, in [0, 1].

    It is pure, for use inside `jit`. uint8 images are divided by `levels - 1`, floating ones pass. With
    `binarize`, each pixel becomes 1 with the probability of its grey value (dynamic binarisation; Burda et
    al., 2016). The draw depends on the key and the example's "index" only, so a fixed key gives a fixed
    binary set. The key must not be the one that the loss gets.

    Raises:
      ValueError: fewer than two levels.
    """
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")

    def prepare(batch: Batch, *, key: PRNGKey) -> Batch:
        image = batch["image"]
        if not jnp.issubdtype(image.dtype, jnp.floating):
            image = image.astype(jnp.float32) / (levels - 1)
        if binarize:
            uniform = draw(jax.random.uniform, example_keys(key, batch["index"]), image.shape)
            # Without the barrier XLA on CPU draws anew for each reader of the image.
            image = jax.lax.optimization_barrier((uniform < image).astype(image.dtype))
        return batch | {"image": image}

    return prepare


@dataclass(frozen=True)
class Order:
    """Which examples each training step takes: every epoch a new permutation, its tail dropped.

    The permutation depends on (seed, epoch) only, so a run resumes at any step.

    Raises:
      TypeError: a batch or epochs that are not an integer.
      ValueError: a batch larger than the split, a batch or epochs below 1, a seed outside 0 .. 2**32 - 1.
    """

    num_examples: int
    batch_size: int
    epochs: int
    seed: int

    def __post_init__(self) -> None:
        _check_count("batch_size", self.batch_size)
        if self.batch_size > self.num_examples:
            raise ValueError(f"a batch of {self.batch_size} is larger than the split of {self.num_examples} examples")
        _check_count("epochs", self.epochs)
        check_seed(self.seed)

    @property
    def steps_per_epoch(self) -> int:
        """Full batches in the split."""
        return self.num_examples // self.batch_size

    @property
    def total_steps(self) -> int:
        """Steps in the whole run."""
        return self.epochs * self.steps_per_epoch

    def rows(self, start: int, count: int) -> np.ndarray:
        """Return the examples of steps `start` to `start + count`, `[count, B]` int32. May cross epochs."""
        rows = np.empty((count, self.batch_size), np.int32)
        for i in range(count):
            epoch, step = divmod(start + i, self.steps_per_epoch)
            first = step * self.batch_size
            rows[i] = _permutation(self.seed, epoch, self.num_examples)[first : first + self.batch_size]
        return rows


class Resident:
    """A `Feed` that puts the whole set on the device once; a call sends only the rows to take.

    `chunk` is the most steps of one call, 1000 unless given. For the devices of a mesh, pass `replicated(mesh)`.
    """

    def __init__(
        self,
        images: ImageSet,
        order: Order,
        *,
        chunk: int | None = None,
        device: jax.Device | NamedSharding | None = None,
    ) -> None:
        _check_order(images, order)
        self.steps_per_epoch, self.total_steps = order.steps_per_epoch, order.total_steps
        self.batch_size = order.batch_size
        self.chunk = min(order.total_steps, RESIDENT_STEPS) if chunk is None else chunk
        _check_count("chunk", self.chunk)
        self._order, self._device = order, device
        self._source: Batch = _put(_examples(images), device)

    def __call__(self, start: int, count: int) -> tuple[Batch, Array]:
        """Return the set, and the rows of it for `count` steps: `[chunk, B]` int32, -1 past `count`."""
        rows = np.full((self.chunk, self.batch_size), -1, np.int32)
        rows[:count] = self._order.rows(start, count)
        return self._source, _put(rows, self._device)


class Streamed:
    """A `Feed` for sets larger than the device: a call sends the examples of `chunk` steps, and no others.

    The host's memory holds those examples too; the images themselves may be a memory map larger than it. `chunk` is
    the most steps of one call: unless given, as many as fit 64 MiB of images.

    For the devices of a mesh, pass `split(mesh)`: each gets its share of every step, and a process reads only what its
    own devices get.
    """

    def __init__(
        self,
        images: ImageSet,
        order: Order,
        *,
        chunk: int | None = None,
        device: jax.Device | NamedSharding | None = None,
    ) -> None:
        _check_order(images, order)
        self.steps_per_epoch, self.total_steps = order.steps_per_epoch, order.total_steps
        self.batch_size = order.batch_size
        steps = STREAMED_BYTES // (order.batch_size * images.image[0].nbytes)
        self.chunk = min(order.total_steps, max(1, steps)) if chunk is None else chunk
        _check_count("chunk", self.chunk)
        self._images, self._order, self._device = images, order, device
        self._share = order.batch_size
        if isinstance(device, NamedSharding):
            self._share = device.shard_shape((order.batch_size,))[0]
        file: Any = images.image.base
        if isinstance(file, mmap.mmap) and hasattr(mmap, "MADV_RANDOM"):
            file.madvise(mmap.MADV_RANDOM)  # read no neighbours: much faster from a cold disk

    def __call__(self, start: int, count: int) -> tuple[Batch, Array]:
        """Return the examples of `count` steps, and their rows: `[chunk, B]` int32, -1 past `count`."""
        taken = np.zeros((self.chunk, self.batch_size), np.int32)  # one shape for every call
        taken[:count] = self._order.rows(start, count)
        # All that one device takes lies together, its share of each step in turn.
        taken = taken.reshape(self.chunk, -1, self._share).swapaxes(0, 1).ravel()
        rows = np.arange(self.chunk * self._share, dtype=np.int32).reshape(self.chunk, self._share)
        rows = np.tile(rows, self.batch_size // self._share)
        rows[count:] = -1
        source = {"image": self._put(taken, self._read), "index": self._put(taken, lambda mine: mine)}
        if self._images.label is not None:
            source["label"] = self._put(taken, self._images.label.__getitem__)
        return source, _put(rows, self._device)

    def _read(self, taken: np.ndarray) -> np.ndarray:
        with ThreadPoolExecutor(READERS) as pool:  # much faster from a cold disk, no slower from memory
            return np.concatenate(list(pool.map(self._images.image.__getitem__, np.array_split(taken, READERS))))

    def _put(self, taken: np.ndarray, read: Callable[[np.ndarray], np.ndarray]) -> Array:
        """What `read` gives for the examples that are taken; in a mesh, for those of this process's devices alone."""
        if not isinstance(self._device, NamedSharding):
            return jax.device_put(read(taken), self._device)

        def read_share(index: Any) -> np.ndarray:
            return read(taken[index[0]])

        shape = (len(taken), *read(taken[:0]).shape[1:])
        return jax.make_array_from_callback(shape, self._device, read_share)


def evaluation_feed(images: ImageSet, batch_size: int) -> tuple[Batch, Array]:
    """All examples in order: the set on the device, and its rows `[n, B]`, padded with -1 (weight 0).

    Raises:
      ValueError: there are no examples, or the batch is below 1.
    """
    if not len(images.image) or batch_size < 1:
        raise ValueError(f"there must be examples and a batch, got {len(images.image)} and batch_size {batch_size}")
    rows = np.arange(-(-len(images.image) // batch_size) * batch_size, dtype=np.int32)
    rows[len(images.image) :] = -1
    return jax.device_put((_examples(images), rows.reshape(-1, batch_size)))


def _examples(images: ImageSet) -> dict[str, np.ndarray]:
    label = {} if images.label is None else {"label": images.label}
    return {"image": images.image, "index": np.arange(len(images.image), dtype=np.int32)} | label


def _put(tree: Any, device: jax.Device | NamedSharding | None) -> Any:
    """On the device, or whole on every device of a mesh, in whichever process."""
    if not isinstance(device, NamedSharding):
        return jax.device_put(tree, device)
    everywhere = NamedSharding(device.mesh, PartitionSpec())
    return jax.tree.map(lambda values: jax.make_array_from_process_local_data(everywhere, values), tree)


def _check_count(name: str, value: int) -> None:
    if not isinstance(value, int | np.integer):
        raise TypeError(f"{name} must be an integer, got {value!r}")
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _check_order(images: ImageSet, order: Order) -> None:
    if order.num_examples != len(images.image):
        raise ValueError(f"the order is for {order.num_examples} examples, {images.name!r} has {len(images.image)}")


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, num_examples: int) -> np.ndarray:
    permutation = np.random.default_rng((seed, epoch)).permutation(num_examples).astype(np.int32)
    permutation.flags.writeable = False  # it is shared
    return permutation


def _load_digits(split: str) -> ImageSet:
    if split not in ("train", "test"):
        raise ValueError(f"'digits' has no split {split!r}; it has train, test")
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("'digits' comes with scikit-learn: pip install 'jaxvae[experiments]'") from error
    digits = load_digits()
    image = digits.images.astype(np.uint8)[..., None]
    shuffled = np.random.default_rng(0).permutation(len(image))
    rows = shuffled[:1437] if split == "train" else shuffled[1437:]
    return ImageSet("digits", image[rows], digits.target[rows].astype(np.int32), levels=17)


def _load_sprites(split: str) -> ImageSet:
    if split != "train":
        raise ValueError(f"'sprites' has no split {split!r}; it has train")
    factors = sprites.factors_at(np.arange(sprites.NUM_IMAGES))
    return ImageSet("sprites", factors.astype(np.uint8), None, 2, factors, tuple(sprites.FACTORS))
