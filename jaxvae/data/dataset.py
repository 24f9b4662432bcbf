"""A set of examples on the host, and the function that makes them into what a model sees."""

import dataclasses
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxvae._checks import at_least
from jaxvae.data.domain import Domain, Kind, carried, check_domain, check_labels, stored_array, stored_integers
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
        counted from 0; "mask", boolean [N, *the axes of x but the last], false where x is padding. Feeds bring all of
        them but the factors.
      prepare: makes a batch of stored examples into what a model sees, in the compiled step.
      domain: which values x may take.
      factor_names: the names of the F columns.
      label_names: what the labels 0, 1, ... stand for, where that is known.
      example_names: what the examples are called, where that is known, as the files of a folder are.
      rate: samples a second, of sound.

    Raises:
      TypeError: an array that is masked or holds no numbers; labels or factors that are not integers.
      ValueError: no "x", arrays of other lengths than x, a wrong shape, or names that do not fit what they name.
    """

    name: str
    arrays: Mapping[str, np.ndarray] = field(repr=False)
    prepare: Prepare
    domain: Domain
    factor_names: tuple[str, ...] = ()
    label_names: tuple[Any, ...] = ()
    example_names: tuple[str, ...] = ()
    rate: int | None = None

    def __post_init__(self) -> None:
        arrays = {}
        for name, values in self.arrays.items():
            arrays[name] = (stored_integers if name in ("label", "factors") else carried)(values, name)
        object.__setattr__(self, "arrays", arrays)
        object.__setattr__(self, "factor_names", tuple(self.factor_names))
        _check_arrays(arrays, self.factor_names)
        object.__setattr__(self, "label_names", tuple(self.label_names))
        if self.label_names:
            _check_label_names(arrays.get("label"), self.label_names)
        object.__setattr__(self, "example_names", tuple(self.example_names))
        if len(self.example_names) not in (0, len(self.x)):
            raise ValueError(
                f"example_names must be one for each of {len(self.x)} examples, got {len(self.example_names)}"
            )

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
        """How many `label_names` there are or, without them, one more than the greatest label.

        `check_labels` compares labels with a number of your own.

        Raises:
          ValueError: there are no labels, or a negative one.
        """
        if self.label is None or not self.label.size:
            raise ValueError(f"{self.name!r} has no labels")
        if self.label.min() < 0:
            first = int(np.argmax(self.label < 0))
            raise ValueError(f"label[{first}] of {self.name!r} is {self.label[first]}: labels count from 0")
        return len(self.label_names) or int(self.label.max()) + 1

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
        names = np.array(self.example_names, object)[indices] if self.example_names else ()
        arrays = {name: values[indices] for name, values in self.arrays.items()}
        return dataclasses.replace(self, arrays=arrays, example_names=tuple(names))

    def prepared(self, count: int, *, key: PRNGKey) -> Batch:
        """The first `count` examples as a model sees them, on the device."""
        batch = {name: jnp.asarray(values[:count]) for name, values in per_example(self).items()}
        return self.prepare(batch, key=key)

    def with_prepare(self, prepare: Prepare) -> "Dataset":
        """The same examples, prepared by another function."""
        return dataclasses.replace(self, prepare=prepare)


def from_arrays(
    name: str,
    x: ArrayLike,
    label: ArrayLike | None = None,
    *,
    domain: Kind | Domain | None = None,
    levels: int | None = None,
    condition: ArrayLike | None = None,
    observed: ArrayLike | None = None,
) -> Dataset:
    """Your own arrays as a `Dataset`, checked. Lists and arrays of JAX or other libraries are taken too.

    Args:
      name: what errors and pictures call it.
      x: `[N, ...]`, of any shape: images `[N, H, W, C]` (a grey one has C = 1), sound `[N, T, C]`, video
        `[N, T, H, W, C]`, a table `[N, D]`.
      label: `[N]` integers, or None.
      domain: which values x may take (`Domain`). "unit interval": floating in [0, 1]; "levels" and "categories":
        integers 0 .. levels-1; "counts": integers from zero up; "real": floating and finite. None: "levels" for
        integers, "unit interval" for floating x.
      levels: the number of values that x can take, for "levels" and "categories"; 2 for zeros and ones. May be left out
        where the largest value is 255, and so there are 256 levels. Otherwise it must be said: nothing in the values
        tells dark images of 256 levels from images of fewer.
      condition: `[N, ...]` what a conditional model is given beside x, or None.
      observed: boolean, of x's shape: which entries of x there are. What stands in place of the others is not looked at
        and is kept as zero. Unless given, a NaN in floating x is taken for a missing entry, with a warning that says
        how many there are.

    Floating x is kept as float32, integers as the smallest of uint8, uint16 and int32 that holds them. Models see
    levels and categories divided by levels - 1, in [0, 1], and everything else as it is.

    Raises:
      TypeError: x of another kind of number than its domain, labels that are not integers, or masked arrays.
      ValueError: nothing in x, or nothing of it observed, a value outside the domain, or too large for float32, a
        condition that is not finite, or `levels` where it is missing or has no meaning.
    """
    array, mask = _complete(stored_array(x, "x"), observed)
    if array.ndim < 2 or not array.size:
        raise ValueError(f"expected x [N, ...], at least one number in each example, got {array.shape}")
    if array.dtype == bool:
        raise TypeError("x must be integers or floating, got bool: pass x.astype(np.uint8) and levels=2")
    domain = _domain_of(array, domain, levels)
    check_domain(array, domain)
    arrays = {"x": _kept(array)} | ({} if mask is None else {"observed": mask})
    if label is not None:
        arrays["label"] = stored_integers(label, "label")
    if condition is not None:
        arrays["condition"] = stored_array(condition, "condition")
        if jnp.issubdtype(arrays["condition"].dtype, jnp.floating):
            _single(np.atleast_1d(arrays["condition"]), "condition")
    return Dataset(name, arrays, make_prepare(domain.levels, counts=domain.kind == "counts"), domain)


def _complete(x: np.ndarray, observed: ArrayLike | None) -> tuple[np.ndarray, np.ndarray | None]:
    """The array with zeros for what is missing, and where it is not; None where nothing is."""
    if observed is None:
        if not jnp.issubdtype(x.dtype, jnp.floating) or not (missing := np.isnan(x)).any():
            return x, None
        warnings.warn(
            f"{missing.sum()} of the {x.size} entries of x are NaN and count as missing; pass observed=~np.isnan(x) if "
            "they are, or mend x",
            stacklevel=3,
        )
        mask = ~missing
    else:
        mask = stored_array(observed, "observed")
        if mask.dtype != bool:
            raise TypeError(f"observed must be bool, true where an entry of x is there, got {mask.dtype}")
        if mask.shape != x.shape:
            raise ValueError(f"observed must be {x.shape}, as x is, got {mask.shape}")
    if mask.size and not mask.any():
        raise ValueError("nothing of x is observed")
    return np.where(mask, x, np.zeros((), x.dtype)), mask


def _domain_of(x: np.ndarray, domain: Kind | Domain | None, levels: int | None) -> Domain:
    """The domain that was asked for, or that the type of x stands for."""
    if isinstance(domain, Domain):
        if levels not in (None, domain.levels):
            raise ValueError(f"levels={levels} and {domain} say different things: leave one out")
        return domain
    integers = np.issubdtype(x.dtype, np.integer)
    kind = domain or ("levels" if integers else "unit interval")
    if kind not in ("levels", "categories"):
        if levels is not None:
            raise ValueError(
                f"levels={levels} is for integers on a scale or categories, and x is {x.dtype}, {kind!r}: leave it out"
            )
        return Domain(kind)
    whole = Domain(kind, BYTE_LEVELS if levels is None else levels)
    if levels is None and integers:
        check_domain(x, whole)
        high = int(x.max())
        if kind == "categories" or high < BYTE_LEVELS - 1:
            raise ValueError(
                f"the largest value of x is {high}: pass levels={max(high + 1, 2)} if there is none beyond it, "
                f"levels={BYTE_LEVELS} if values could be 0 .. {BYTE_LEVELS - 1}"
            )
    return whole


def _kept(x: np.ndarray) -> np.ndarray:
    """Floating x as float32, integers, none of them negative, in the smallest type that training reads."""
    if jnp.issubdtype(x.dtype, jnp.floating):
        return _single(x, "x")
    high = int(x.max())
    for dtype in (np.uint8, np.uint16, np.int32):
        if high <= np.iinfo(dtype).max:
            return x.astype(dtype, copy=False)
    raise ValueError(f"x must fit 32 bits, got {high}")


def _single(values: np.ndarray, name: str) -> np.ndarray:
    """Floating values as float32; `ValueError` names the first that is not finite, or is too large for it."""
    with np.errstate(over="ignore"):
        kept = values.astype(np.float32, copy=False)
    finite = np.isfinite(kept)
    if not finite.all():
        first = tuple(map(int, np.argwhere(~finite)[0]))
        why = "is too large for 32 bits; scale it first" if np.isfinite(values[first]) else "is not finite"
        raise ValueError(f"{name}[{first[0]}] has {values[first]}, which {why}")
    return kept


def split_validation(
    dataset: Dataset, count: int | float, *, seed: int, stratified: bool = False
) -> tuple[Dataset, Dataset]:
    """Keep random examples for validation: (training, validation), each in the set's order. Copies the arrays.

    Args:
      dataset: with labels where it is stratified.
      count: how many, an integer, or which share of all, between 0 and 1.
      seed: decides which.
      stratified: of each label the same share, to within one example.

    Raises:
      TypeError: `count` is no number, or the seed no integer.
      ValueError: `count` leaves one of the two parts empty, a seed outside 0 .. 2**32 - 1, or no labels to go by.
    """
    check_seed(seed)
    total = len(dataset)
    if isinstance(count, float | np.floating):
        if not 0 < count < 1:
            raise ValueError(f"count must lie between 0 and 1 as a share of all, or be an integer, got {count}")
        count = round(float(count) * total)
    at_least(0, count=count)
    if not 0 < count < total:
        raise ValueError(f"count must lie in 1 .. {total - 1} for {total} examples, got {count}")
    order = np.random.default_rng(seed).permutation(total)
    if stratified:
        if dataset.label is None:
            raise ValueError(f"{dataset.name!r} has no labels to stratify by")
        order = order[_evenly(dataset.label[order])]
    chosen = np.zeros(total, bool)
    chosen[order[:count]] = True
    return dataset.take(np.flatnonzero(~chosen)), dataset.take(np.flatnonzero(chosen))


def _evenly(label: np.ndarray) -> np.ndarray:
    """An order of examples with these labels [N] in which every beginning has each label's share, to within one."""
    place = np.empty(len(label))
    for value in np.unique(label):
        of_value = np.flatnonzero(label == value)
        place[of_value] = (np.arange(len(of_value)) + 0.5) / len(of_value)
    return np.argsort(place, kind="stable")


def make_prepare(levels: int | None = None, *, binarize: bool = False, counts: bool = False) -> Prepare:
    """Return the function that makes stored x into what models see, which is floating.

    It is pure, for use inside `jit`, it pickles, and it equals another of the same arguments. Integers are divided by
    `levels - 1`, so that they lie in [0, 1], or with `counts` stay what they are; floating x passes and needs neither.

    With `binarize`, each value becomes 1 with the probability of its grey value (dynamic binarisation; Burda et al.,
    2016). Example i draws from `fold_in(key, batch["index"][i])`, so a fixed key gives a fixed binary set. The key must
    not be the one that the loss gets: a training step splits its own between the two.

    Raises:
      ValueError: fewer than two levels, or counts with levels or binarised; from the function, integers without levels.
    """
    if levels is not None:
        at_least(2, levels=levels)
    if counts and (binarize or levels is not None):
        raise ValueError("counts have no levels and are not binarised: pass counts=True alone")
    return _ToFloating(levels, binarize, counts)


@dataclass(frozen=True)
class _ToFloating:
    levels: int | None
    binarize: bool
    counts: bool

    def __call__(self, batch: Batch, *, key: PRNGKey) -> Batch:
        x = batch["x"]
        if not jnp.issubdtype(x.dtype, jnp.floating):
            if self.levels is None and not self.counts:
                raise ValueError(f"x is {x.dtype}, whose number of levels is not known: use make_prepare(levels)")
            x = x.astype(jnp.float32) / (1 if self.levels is None else self.levels - 1)
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
    mask = arrays.get("mask")
    if mask is not None and (mask.dtype != bool or mask.shape != x.shape[:-1]):
        raise ValueError(f"mask must be bool {x.shape[:-1]}, as x without its last axis, got {mask.dtype} {mask.shape}")
    if factor_names and ("factors" not in arrays or len(factor_names) != arrays["factors"].shape[1]):
        actual = arrays["factors"].shape if "factors" in arrays else "no factors"
        raise ValueError(f"factor_names are {len(factor_names)}, one for each column of factors [N, F], got {actual}")


def _check_label_names(label: np.ndarray | None, names: tuple[Any, ...]) -> None:
    if label is None:
        raise ValueError(f"{len(names)} label_names, and no labels")
    if len(set(names)) < len(names):
        raise ValueError(f"label_names must differ, got {names}")
    if label.size:
        check_labels(label, len(names))


def per_example(dataset: Dataset) -> dict[str, np.ndarray]:
    """What feeds send of a set, with the positions of its examples."""
    sent = {name: values for name, values in dataset.arrays.items() if name != "factors"}
    return sent | {"index": np.arange(len(dataset), dtype=np.int32)}
