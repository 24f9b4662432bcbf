"""Pixels that know nothing of each other, and what binarising adds."""

import numpy as np
from numpy.typing import ArrayLike

from jaxvae._host import host_integers, host_reals
from jaxvae.evaluation.classical._arrays import flat


def independent_bernoulli_nll(train: ArrayLike, test: ArrayLike) -> np.ndarray:
    """-log p(x) of each `test` example `[N, ...]` under independent pixels with the probabilities of the `train` mean.

    What a VAE reaches whose latents all collapsed. Pixels are in [0, 1]; for grey ones it is the expectation under
    binarisation. The training means are clipped to [.001, .999].

    Returns:
      `[N]` nats.

    Raises:
      ValueError: a set is empty, a pixel is outside [0, 1], or the examples' shapes differ.
    """
    mean = np.clip(_pixels(train, "train").mean(axis=0), 0.001, 0.999)
    logits = np.log(mean) - np.log1p(-mean)
    return -flat(_pixels(test, "test"), mean.shape) @ logits.ravel() - np.log1p(-mean).sum()


def class_bernoulli_nll(train: ArrayLike, train_label: ArrayLike, test: ArrayLike, test_label: ArrayLike) -> np.ndarray:
    """-log p(x | label) of each `test` example: `independent_bernoulli_nll` within its class; labels `[N]`, integers.

    What a conditional VAE reaches whose latents all collapsed.

    Returns:
      `[N]` nats.

    Raises:
      TypeError: the labels are not integers.
      ValueError: there is not one for each example, `train` lacks a class, or as for `independent_bernoulli_nll`.
    """
    train, test = _pixels(train, "train"), _pixels(test, "test")
    train_label = _labels(train_label, "train_label", len(train))
    test_label = _labels(test_label, "test_label", len(test))
    nats = np.empty(len(test))
    for label in np.unique(test_label):
        of_class = train[train_label == label]
        if not len(of_class):
            raise ValueError(f"test_label has {label}, which train_label lacks")
        nats[test_label == label] = independent_bernoulli_nll(of_class, test[test_label == label])
    return nats


def binarization_entropy(x: ArrayLike) -> np.ndarray:
    r"""The entropy of drawing each pixel as 0 or 1 with its grey value as the probability, `[N]` nats.

    .. math:: -\sum_j x_j \log x_j + (1 - x_j) \log (1 - x_j)

    No model's expected -log p of x binarised anew is below its mean.

    Raises:
      ValueError: x is empty, or a pixel is outside [0, 1].
    """
    pixels = flat(_pixels(x, "x"))
    log_one = np.log(np.where(pixels > 0, pixels, 1))  # 0 log 0 = 0
    log_zero = np.log(np.where(pixels < 1, 1 - pixels, 1))
    return -(pixels * log_one + (1 - pixels) * log_zero).sum(axis=1)


def _pixels(x: ArrayLike, name: str) -> np.ndarray:
    pixels = host_reals(x, name)
    if not pixels.ndim or not pixels.size:
        raise ValueError(f"{name} must be [N, ...] and not empty, got {pixels.shape}")
    low, high = pixels.min(), pixels.max()
    if not (low >= 0 and high <= 1):  # NaN is refused too
        raise ValueError(f"{name} must hold pixels in [0, 1], got {low:g} to {high:g}; divide 8-bit pixels by 255")
    return pixels


def _labels(labels: ArrayLike, name: str, count: int) -> np.ndarray:
    values = host_integers(labels, name)
    if values.shape != (count,):
        raise ValueError(f"{name} must be [{count}], one for each example, got {values.shape}")
    return values
