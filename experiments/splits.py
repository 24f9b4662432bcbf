"""The data of a run: loaded by name, cut short for a smoke run, and checked before anything is trained."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from experiments.command import counter
from jaxvae import data
from jaxvae.types import Prepare


class Splits(NamedTuple):
    """The examples of a run.

    Attributes:
      train: what it is trained on.
      validation: those kept from the training set, for whatever has to be chosen; None where there are none.
      test: what it is measured on. They choose nothing.
      grey: prepares x without binarising it.
      num_classes: of the labels, where these are asked for.
    """

    train: data.Dataset
    validation: data.Dataset | None
    test: data.Dataset
    grey: Prepare
    num_classes: int | None = None

    @property
    def evaluated(self) -> data.Dataset:
        """What a run is evaluated on while it trains: the validation set or, where there is none, the test set."""
        return self.test if self.validation is None else self.validation

    @property
    def split(self) -> str:
        """The name of that one."""
        return "test" if self.validation is None else "validation"

    def map(self, change: Callable[[data.Dataset], data.Dataset]) -> "Splits":
        """All of them, changed alike."""
        validation = None if self.validation is None else change(self.validation)
        return self._replace(train=change(self.train), validation=validation, test=change(self.test))

    def binarized(self) -> "Splits":
        """The same examples, each pixel drawn as 0 or 1 with its grey value as probability."""
        prepare = data.make_prepare(self.train.levels, binarize=True)
        return self.map(lambda dataset: dataset.with_prepare(prepare))


def load_split(name: str, split: str) -> data.Dataset:
    """`jaxvae.data.load`, counting what has to be decoded."""
    return data.load(name, split, progress=counter(f"decoding {split} images"))


def load_splits(
    config: Any, *, validation: int = 0, few: Sequence[int] = (256, 256), labelled: bool = False, pictures: bool = True
) -> Splits:
    """The images of `config.data`, binarised where `config.binarize` says so.

    Args:
      config: of an experiment.
      validation: how many training images to keep for validation.
      few: how many training and test images a smoke run takes.
      labelled: whether the labels are used, and so must be there and count from 0.
      pictures: whether x must be a picture; false where sound and video are taken too.

    Raises:
      ValueError: labels are missing or do not fit, no picture could be drawn of the images, or not enough of them.
    """
    train, test = load_split(config.data, "train"), load_split(config.data, "test")
    if pictures:
        check_pictures(train)
    num_classes = check_classes(train, test) if labelled else None
    if config.smoke:
        train, test = train.take(slice(few[0])), test.take(slice(few[1]))
    splits = Splits(train, None, test, train.prepare, num_classes)
    if validation:
        train, kept = data.split_validation(train, validation, seed=config.seed)
        splits = splits._replace(train=train, validation=kept)
    return splits.binarized() if getattr(config, "binarize", False) else splits


def check_classes(train: data.Dataset, test: data.Dataset) -> int:
    """The number of classes; `ValueError` unless the labels of both are 0 .. K-1 and the training set has all K."""
    for dataset in (train, test):
        if dataset.label is None:
            raise ValueError(f"{dataset.name!r} has no labels to condition on")
    num_classes = len(np.unique(train.label))
    for dataset, split in ((train, "train"), (test, "test")):
        try:
            data.check_labels(dataset.label, num_classes)
        except ValueError as error:
            raise ValueError(f"{dataset.name!r}, {split}, of {num_classes} classes: {error}") from error
    return num_classes


def check_pictures(dataset: data.Dataset) -> None:
    """Raise `ValueError` where a run would train and then fail to draw or to measure sharpness."""
    shape = dataset.shape
    if len(shape) != 3 or shape[-1] not in (1, 3) or min(shape[:2]) < 4:
        raise ValueError(f"expected images of 4×4 pixels or more with 1 or 3 channels, {dataset.name!r} has {shape}")


def check_256_levels(dataset: data.Dataset) -> None:
    """Raise `ValueError` where a discretised logistic variable is not what a pixel of the set is."""
    if dataset.levels != 256:
        raise ValueError(f"discretized-logistic is for 256-valued pixels; {dataset.name!r} has {dataset.levels} values")


def with_condition(dataset: data.Dataset, condition: np.ndarray) -> data.Dataset:
    """The same examples, with a condition each."""
    return dataclasses.replace(dataset, arrays={**dataset.arrays, "condition": condition})


def without_label(dataset: data.Dataset) -> data.Dataset:
    """The same examples, their labels hidden."""
    arrays = {name: values for name, values in dataset.arrays.items() if name != "label"}
    return dataclasses.replace(dataset, arrays=arrays)
