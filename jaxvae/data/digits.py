"""Scikit-learn's handwritten digits."""

import numpy as np

from jaxvae.data.dataset import Dataset, make_prepare
from jaxvae.data.domain import Domain

LEVELS = 17
NUM_TRAIN = 1437


def load_digits(split: str) -> Dataset:
    """The 1,797 images of 8×8 pixels with values 0 .. 16, in a fixed split: 1,437 "train" and 360 "test".

    Raises:
      ValueError: no such split.
      ImportError: scikit-learn is missing.
    """
    if split not in ("train", "test"):
        raise ValueError(f"'digits' has no split {split!r}; it has train, test")
    try:
        from sklearn.datasets import load_digits as read
    except ImportError as error:
        raise ImportError("'digits' comes with scikit-learn: pip install 'jaxvae[data]'") from error
    digits = read()
    shuffled = np.random.default_rng(0).permutation(len(digits.images))
    indices = shuffled[:NUM_TRAIN] if split == "train" else shuffled[NUM_TRAIN:]
    arrays = {"x": digits.images.astype(np.uint8)[indices, ..., None], "label": digits.target[indices]}
    return Dataset("digits", arrays, make_prepare(LEVELS), Domain("levels", LEVELS))
