"""Arrays that are read on the host, whoever made them: NumPy, JAX, another library, or lists."""

import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike, DTypeLike


def host_array(values: ArrayLike, name: str) -> np.ndarray:
    """The values as a NumPy array.

    Raises:
      TypeError: they are no numbers, or some of them are masked, which arithmetic here would not see.
    """
    check_unmasked(values, name)
    values = np.asarray(values)
    if values.dtype.kind == "m" or (values.dtype != bool and not jnp.issubdtype(values.dtype, jnp.number)):
        raise TypeError(f"{name} must hold numbers, got an array of {values.dtype}")
    return values


def check_unmasked(values: object, name: str) -> None:
    """Raise `TypeError` for a masked array of any content, or lists that hold one."""
    if _is_masked(values):
        raise TypeError(
            f"{name} is a masked array, and its mask would be ignored: fill what is missing by {name}.filled(...), or "
            "leave those examples out"
        )


def host_reals(values: ArrayLike, name: str, dtype: DTypeLike = np.float64) -> np.ndarray:
    """The values in floating arithmetic, float64 unless `dtype` says otherwise; what is too large for it is infinite.

    Raises:
      TypeError: they are masked, complex, or no numbers.
    """
    values = host_array(values, name)
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        raise TypeError(f"{name} must hold real numbers, got {values.dtype}")
    with np.errstate(over="ignore"):
        return values.astype(dtype, copy=False)


def host_integers(values: ArrayLike, name: str, hint: str = "") -> np.ndarray:
    """The values as int64: differences of a narrow type wrap around silently.

    Raises:
      TypeError: they are masked, or no integers; `hint` says the way out.
      ValueError: one is too large for int64, where it would be negative.
    """
    values = host_array(values, name)
    if not jnp.issubdtype(values.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got {values.dtype}{hint}")
    if values.dtype == np.uint64 and values.size and values.max() > np.iinfo(np.int64).max:
        raise ValueError(f"{name} must be below 2**63, got {values.max()}: number what is there, as np.unique does")
    return values.astype(np.int64, copy=False)


def _is_masked(values: object) -> bool:
    if isinstance(values, list | tuple):
        return any(_is_masked(each) for each in values)
    return isinstance(values, np.ma.MaskedArray)
