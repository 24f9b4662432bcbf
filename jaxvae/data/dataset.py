"""A set of examples on the host, and the function that makes them into what a model sees."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxvae._checks import at_least
from jaxvae.data.domain import Domain, check_domain, stored_array, stored_integers
from jaxvae.keys import check_seed, example_keys, noise, seed_key
from jaxvae.types import Batch, Prepare, PRNGKey

BYTE_LEVELS = 256
MADE_BY_FEEDS = ("index", "weight")


@dataclass(frozen=True, eq=False)
class Dataset:
    """One split of a set, on the host. Arrays of other libraries and lists become NumPy's. It pickles.

    Attributes:
      name: what errors and pictures call it.
      arrays: "x", as it is stored, [N, ...]: any shape and type of number, such as uint8 pixels 0 .. levels-1 or, for
        "sprites", the factors that images are drawn from; it may be a memory map. Optional: "label" [N] int32,
        "condition" [N, ...], "observed" (boolean, x's shape) and "factors", what each x was made from, [N, F] int32
        counted from 0. Feeds bring all of them but the factors.
      prepare: makes a batch of stored examples into what a model sees, in the compiled step.
      domain: which values x may take.
      factor_names: the names of the F columns.

    Raises:
      TypeError: an array that is masked or holds no numbers; labels or factors that are not integers.
      ValueError: no "x", arrays of other lengths than x, a wrong shape, or names that do not fit the factors.
    """

    name: str
    arrays: Mapping[str, np.ndarray] = field(repr=False)
    prepare: Prepare
    domain: Domain
    factor_names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        arrays = {}
        for name, values in self.arrays.items():
            arrays[name] = (stored_integers if name in ("label", "factors") else stored_array)(values, name)
        object.__setattr__(self, "arrays", arrays)
        object.__setattr__(self, "factor_names", tuple(self.factor_names))
        _check_arrays(arrays, self.factor_names)

    def __len__(self) -> int:
        return len(self.x)

    @property
    def x(self) -> np.ndarray:
        """The examples as they are stored, [N, ...]."""
        return self.arrays["x"]

    @property
    def label(self) -> np.ndarray | None:
        """[N] int32, or None."""
        return self.arrays.get("label")

    @property
    def factors(self) -> np.ndarray | None:
        """What each x was made from, [N, F] int32, or None where that is not known."""
        return self.arrays.get("factors")

    @property
    def levels(self) -> int | None:
        """How many values a stored value of x can take: 2, 17 (digits), 256; None where x is not of levels."""
        return self.domain.levels

    @property
    def num_classes(self) -> int:
        """One more than the greatest label; `check_labels` compares labels with a number of your own.

        Raises:
          ValueError: there are no labels, or a negative one.
        """
        if self.label is None or not self.label.size:
            raise ValueError(f"{self.name!r} has no labels")
        if self.label.min() < 0:
            first = int(np.argmax(self.label < 0))
            raise ValueError(f"label[{first}] of {self.name!r} is {self.label[first]}: labels count from 0")
        return int(self.label.max()) + 1

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one x as a model sees it: after `prepare`, without the batch."""
        one = {
            name: jax.ShapeDtypeStruct((1, *values.shape[1:]), jax.dtypes.canonicalize_dtype(values.dtype))
            for name, values in per_example(self).items()
        }
        prepared = jax.eval_shape(lambda batch: self.prepare(batch, key=seed_key(0)), one)
        return prepared["x"].shape[1:]

    def take(self, indices: slice | ArrayLike) -> "Dataset":
        """The examples at `indices`: a slice, or integers [M]."""
        if not isinstance(indices, slice):
            indices = np.asarray(indices)
            indices = indices if indices.size else indices.astype(int)  # an empty list is floating
            if indices.ndim != 1:
                raise ValueError(f"indices must be a slice or [M], got {indices.shape}")
        return dataclasses.replace(self, arrays={name: values[indices] for name, values in self.arrays.items()})

    def with_prepare(self, prepare: Prepare) -> "Dataset":
        """The same examples, prepared by another function."""
        return dataclasses.replace(self, prepare=prepare)


def from_arrays(name: str, x: ArrayLike, label: ArrayLike | None = None, *, levels: int | None = None) -> Dataset:
    """Your own images as a `Dataset`, checked. Lists and arrays of JAX or other libraries are taken too.

    Args:
      name: what errors and pictures call it.
      x: `[N, H, W, C]`, integers 0 .. levels-1 (kept as uint8), or floating in [0, 1] (kept as float32).
      label: `[N]` integers, or None.
      levels: the number of values that an integer pixel can take, at most 256; 2 for images of zeros and ones. May be
        left out where the largest value is 255, and so there are 256. Otherwise it must be said: nothing in the values
        tells dark images of 256 levels from images of fewer.

    Raises:
      TypeError: x neither integers nor floating, labels that are not integers, or masked arrays.
      ValueError: a wrong shape, a value outside the range, or `levels` where it is missing or x is floating.
    """
    array = stored_array(x, "x")
    if array.ndim != 4 or not array.size:
        raise ValueError(f"expected x [N, H, W, C], got {array.shape}; a grey image has C = 1")
    if array.dtype == bool:
        raise TypeError("x must be integers or floating, got bool: pass x.astype(np.uint8) and levels=2")
    if np.issubdtype(array.dtype, np.integer):
        domain = Domain("levels", BYTE_LEVELS if levels is None else levels)
        if levels is not None and levels > BYTE_LEVELS:
            raise ValueError(f"levels must be at most {BYTE_LEVELS}, got {levels}")
        check_domain(array, domain)
        if levels is None and (high := int(array.max())) < BYTE_LEVELS - 1:
            raise ValueError(
                f"the largest value of x is {high}: pass levels={max(high + 1, 2)} if there is none beyond it, "
                f"levels={BYTE_LEVELS} if values could be 0 .. {BYTE_LEVELS - 1}"
            )
        array = array.astype(np.uint8, copy=False)
    elif levels is not None:
        raise ValueError(f"levels={levels} is for integers, and x is {array.dtype}: leave it out, or pass the integers")
    else:
        domain = Domain("unit interval")
        check_domain(array, domain)
        array = array.astype(np.float32, copy=False)
    arrays = {"x": array}
    if label is not None:
        arrays["label"] = stored_integers(label, "label")
    return Dataset(name, arrays, make_prepare(domain.levels), domain)


def split_validation(dataset: Dataset, count: int, *, seed: int) -> tuple[Dataset, Dataset]:
    """Keep `count` random examples for validation: (training, validation), each in the set's order. Copies the arrays.

    Raises:
      TypeError: `count` is not an integer.
      ValueError: `count` leaves one of the two parts empty, or a seed outside 0 .. 2**32 - 1.
    """
    check_seed(seed)
    at_least(0, count=count)
    total = len(dataset)
    if not 0 < count < total:
        raise ValueError(f"count must lie in 1 .. {total - 1} for {total} examples, got {count}")
    chosen = np.zeros(total, bool)
    chosen[np.random.default_rng(seed).permutation(total)[:count]] = True
    return dataset.take(np.flatnonzero(~chosen)), dataset.take(np.flatnonzero(chosen))


def make_prepare(levels: int | None = None, *, binarize: bool = False) -> Prepare:
    """Return the function that makes stored x into what models see: floating, in [0, 1].

    It is pure, for use inside `jit`, it pickles, and it equals another of the same arguments. Integers are divided by
    `levels - 1`, floating x passes and needs no levels.

    With `binarize`, each value becomes 1 with the probability of its grey value (dynamic binarisation; Burda et al.,
    2016). Example i draws from `fold_in(key, batch["index"][i])`, so a fixed key gives a fixed binary set. The key must
    not be the one that the loss gets: a training step splits its own between the two.

    Raises:
      ValueError: fewer than two levels; from the function, integers without levels.
    """
    if levels is not None:
        at_least(2, levels=levels)
    return _ToUnitInterval(levels, binarize)


@dataclass(frozen=True)
class _ToUnitInterval:
    levels: int | None
    binarize: bool

    def __call__(self, batch: Batch, *, key: PRNGKey) -> Batch:
        x = batch["x"]
        if not jnp.issubdtype(x.dtype, jnp.floating):
            if self.levels is None:
                raise ValueError(f"x is {x.dtype}, whose number of levels is not known: use make_prepare(levels)")
            x = x.astype(jnp.float32) / (self.levels - 1)
        if self.binarize:
            uniform = noise(jax.random.uniform, example_keys(key, batch["index"]), x.shape)
            # Without the barrier XLA on CPU draws anew for each reader of x.
            x = jax.lax.optimization_barrier((uniform < x).astype(x.dtype))
        return batch | {"x": x}


def _check_arrays(arrays: Mapping[str, np.ndarray], factor_names: tuple[str, ...]) -> None:
    if "x" not in arrays:
        raise ValueError(f"arrays must have 'x', got {', '.join(map(repr, arrays)) or 'nothing'}")
    x = arrays["x"]
    if not x.ndim:
        raise ValueError("x must be [N, ...], got a single number")
    for name, values in arrays.items():
        if name in MADE_BY_FEEDS:
            raise ValueError(f"arrays must not have {name!r}, which feeds make")
        axes = {"label": "[N]", "factors": "[N, F]"}.get(name, "[N, ...]")
        wrong_rank = name in ("label", "factors") and values.ndim != axes.count(",") + 1
        if wrong_rank or values.shape[:1] != x.shape[:1]:
            raise ValueError(f"{name} must be {axes}, one for each of {len(x)} examples, got {values.shape}")
    observed = arrays.get("observed")
    if observed is not None and (observed.dtype != bool or observed.shape != x.shape):
        raise ValueError(f"observed must be bool {x.shape}, as x is, got {observed.dtype} {observed.shape}")
    if factor_names and ("factors" not in arrays or len(factor_names) != arrays["factors"].shape[1]):
        actual = arrays["factors"].shape if "factors" in arrays else "no factors"
        raise ValueError(f"factor_names are {len(factor_names)}, one for each column of factors [N, F], got {actual}")


def per_example(dataset: Dataset) -> dict[str, np.ndarray]:
    """What feeds send of a set, with the positions of its examples."""
    sent = {name: values for name, values in dataset.arrays.items() if name != "factors"}
    return sent | {"index": np.arange(len(dataset), dtype=np.int32)}
