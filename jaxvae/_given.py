"""What a trained run is given, as its model takes it."""

import dataclasses
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxvae import data
from jaxvae.evaluation.observations import Linear, Visible
from jaxvae.models import CVAE, SemiSupervisedVAE
from jaxvae.types import Array, Batch, Prepare

EVALUATION_BATCH = 256


def as_dataset(trained_on: data.Dataset, x: ArrayLike) -> data.Dataset:
    """Arrays in the domain of the training data, checked; of a table, a data frame in its own units."""
    if "condition" in trained_on.arrays:
        raise TypeError("a conditional model needs the conditions too: pass a data set that has them")
    if hasattr(x, "columns") and trained_on.domain.columns:
        frame: Any = x
        return data.from_table(frame, columns=trained_on.domain.columns).with_prepare(trained_on.prepare)
    values = data.domain.stored_array(x, "x")
    observed = None
    if "observed" in trained_on.arrays:  # a NaN is a missing entry here, as it was in training
        floating = jnp.issubdtype(values.dtype, jnp.floating)
        observed = ~np.isnan(values) if floating else np.ones(values.shape, bool)
    own = data.from_arrays("x", values, domain=trained_on.domain, observed=observed)
    if own.x.shape[1:] != trained_on.x.shape[1:]:
        raise ValueError(f"expected x {('N', *trained_on.x.shape[1:])}, got {own.x.shape}")
    return own.with_prepare(trained_on.prepare)


def observed_feed(
    model: Any, trained_on: data.Dataset, observed: ArrayLike | data.Dataset, observation: Visible | Linear
) -> tuple[Batch, Array, Prepare | None]:
    """What is observed of each x as `evaluation.invert` takes it: the source, its indices, and `prepare`."""
    if isinstance(observed, data.Dataset):
        given = with_condition(model, observed)
        return *evaluation_feed(given), given.prepare
    values = data.domain.stored_array(observed, "observed")
    if isinstance(observation, Linear):
        if "condition" in trained_on.arrays:
            raise TypeError("a conditional model needs the conditions too: pass a data set with them and y")
        y = data.Dataset("y", {"x": values}, data.make_prepare(), data.Domain("real"))
        source, indices = evaluation_feed(y)
        return {"y": source["x"], "index": source["index"]}, indices, None
    mask = getattr(observation, "mask", None)
    if mask is not None and mask.shape == values.shape[1:]:
        values = np.where(mask, values, np.zeros((), values.dtype))  # what is hidden is not looked at
    given = as_dataset(trained_on, values)
    return *evaluation_feed(given), given.prepare


def as_trained(model: Any, trained_on: data.Dataset, dataset: data.Dataset) -> data.Dataset:
    """A set with what a model is trained with: its condition, and which entries are observed, or neither.

    Raises:
      ValueError: the set has no condition and no labels, or missing entries where the training data have none; or its
        numbers stand for other values, labels or times than those of the training data.
    """
    given, dataset = dataset, with_condition(model, dataset)
    _check_meanings(model, trained_on, given)
    arrays = dict(dataset.arrays)
    if "observed" in trained_on.arrays:
        arrays.setdefault("observed", np.ones(dataset.x.shape, bool))
    elif not arrays.pop("observed", np.True_).all():
        raise ValueError(
            f"{dataset.name!r} has missing entries, and the training data have none: the encoder takes no mask. Make "
            "the training data with observed= too"
        )
    return dataclasses.replace(dataset, arrays=arrays)


def _check_meanings(model: Any, trained_on: data.Dataset, given: data.Dataset) -> None:
    """Raise `ValueError` where numbers that look alike stand for something else in the two sets."""
    ours, theirs = trained_on.domain, given.domain
    if ours != theirs and {ours.kind, theirs.kind} & {"table", "counts", "categories"}:
        way_out = ""
        if ours.kind == theirs.kind == "table":
            way_out = ": read it by from_table(..., columns=) with the domain.columns of the training data"
        raise ValueError(f"{given.name!r} is of another domain, {theirs}, than the training data, {ours}{way_out}")
    if given.rate != trained_on.rate and None not in (given.rate, trained_on.rate):
        raise ValueError(
            f"{given.name!r} has {given.rate} samples a second, and the training data {trained_on.rate}: bring it to "
            "their rate first"
        )
    by_label = isinstance(model, SemiSupervisedVAE) or (isinstance(model, CVAE) and "condition" not in given.arrays)
    names, known = given.label_names, trained_on.label_names
    if by_label and any(one != other for one, other in zip(names, known, strict=False)):
        raise ValueError(
            f"the labels of {given.name!r} stand for {names}, and those of the training data for {known}: pass "
            "label_names= of the training data where it is read"
        )


def with_condition(model: Any, dataset: data.Dataset) -> data.Dataset:
    """The set as a model takes it: a conditional one has its labels as the condition, where there is none."""
    if not isinstance(dataset, data.Dataset):
        raise TypeError(
            "a data set is a jaxvae.data.Dataset, such as data.from_arrays('mine', x) or data.load('digits', 'train'), "
            f"got {dataset!r:.60}"
        )
    if not isinstance(model, CVAE) or "condition" in dataset.arrays:
        return dataset
    if dataset.label is None:
        raise ValueError(f"{dataset.name!r} has neither a condition nor labels, and the model is conditional")
    num_classes = getattr(model.embed, "num_classes", None)  # of a LabelEmbedding, which gives NaN for a label outside
    if isinstance(num_classes, int) and isinstance(dataset.prepare, type(data.make_prepare())):
        data.check_labels(dataset.label, num_classes)
    return dataclasses.replace(dataset, arrays={**dataset.arrays, "condition": dataset.label})


def evaluation_feed(dataset: data.Dataset) -> tuple[Batch, Array]:
    """`jaxvae.data.evaluation_feed` in batches of a fixed size, or as one where there are fewer."""
    return data.evaluation_feed(dataset, max(1, min(len(dataset), EVALUATION_BATCH)))
