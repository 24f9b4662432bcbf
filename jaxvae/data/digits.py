"""Scikit-learn's handwritten digits."""

import importlib.util
from pathlib import Path

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
    images, labels = _read()
    shuffled = np.random.default_rng(0).permutation(len(images))
    indices = shuffled[:NUM_TRAIN] if split == "train" else shuffled[NUM_TRAIN:]
    arrays = {"x": images.astype(np.uint8)[indices, ..., None], "label": labels[indices]}
    return Dataset("digits", arrays, make_prepare(LEVELS), Domain("levels", LEVELS))


def _read() -> tuple[np.ndarray, np.ndarray]:
    """Images [N, 8, 8] and labels [N]: from scikit-learn's file, because importing scikit-learn takes a second."""
    package = importlib.util.find_spec("sklearn")
    if package is not None and package.origin is not None:
        file = Path(package.origin).parent / "datasets" / "data" / "digits.csv.gz"
        if file.exists():
            table = np.loadtxt(file, delimiter=",", dtype=np.int64)
            return table[:, :-1].reshape(-1, 8, 8), table[:, -1]
    try:
        from sklearn.datasets import load_digits as read  # wherever it keeps them
    except ImportError as error:
        raise ImportError("'digits' comes with scikit-learn: pip install 'jaxvae[data]'") from error
    digits = read()
    return digits.images, digits.target
