"""What the networks do to arrays and settings alike."""

import math
from collections.abc import Sequence

import numpy as np
from flax import linen as nn

from jaxvae.types import Array


def as_tuples(module: nn.Module, *names: str) -> None:
    """Make tuples of a module's sequences as it is made: a list, such as a file gives, could not be hashed.

    Integers of NumPy become Python's, whose products do not wrap around.

    Raises:
      TypeError: an attribute is no sequence.
    """
    for name in names:
        value = getattr(module, name)
        try:
            setattr(module, name, tuple(int(each) if isinstance(each, np.integer) else each for each in value))
        except TypeError:
            raise TypeError(f"{name} must be a sequence of integers, got {value!r}") from None


def check_not_empty(x: Array) -> None:
    """Raise `ValueError` where a batch holds no example."""
    if not x.size:
        raise ValueError(f"expected (batch, ...), got {x.shape}, which holds nothing")


def flatten(x: Array) -> Array:
    """[B, ...] -> [B, F]; `ValueError` where it holds no example."""
    check_not_empty(x)
    return x.reshape(len(x), math.prod(x.shape[1:]))


def crop(x: Array, spatial: Sequence[int]) -> Array:
    """The first `spatial` positions of x [B, *spatial or more, C]; x itself where there are no more."""
    return x if x.shape[1:-1] == tuple(spatial) else x[(slice(None), *map(slice, spatial))]
