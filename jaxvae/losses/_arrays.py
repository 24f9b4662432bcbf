"""What the losses share: arguments widened and aligned, the sum over an example, elementary functions."""

import math

import jax
import jax.numpy as jnp
from jax import Array, lax

LOG_2PI = math.log(2 * math.pi)  # log 2π


@jax.custom_jvp
def softplus(x: Array) -> Array:
    """log(1 + e^x). `jax.nn.softplus` treats infinities too, at several times the cost on CPU."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


# Not what autodiff would find: at 0 it takes one-sided derivatives of max and abs.
softplus.defjvps(lambda tangent, _, x: jax.nn.sigmoid(x) * tangent)


def floating(values: Array, name: str) -> Array:
    """The values in float32 or wider; `TypeError` unless they are floating."""
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating, got {values.dtype}; convert it first")
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def aligned(**arrays: Array) -> list[Array]:
    """Widen to at least float32, broadcast all to the first one's shape, which carries the batch, and flatten: [B, n].

    Flat, because XLA on CPU runs loops over [28, 28, 1] at a fraction of the speed of those over [784]; behind a
    barrier, because it would move the reshape to after the loop.
    """
    name, first = next(iter(arrays.items()))
    shape = jnp.shape(first)
    if not shape:
        raise ValueError(f"{name} must have a batch axis, [B, ...], got a scalar")
    flat = []
    for other, values in arrays.items():
        values = floating(values, other)
        try:
            one = flat_examples(jnp.broadcast_to(values, shape))
        except ValueError:
            raise ValueError(f"{other} must broadcast to {name} {shape}, got {values.shape}") from None
        flat.append(one if len(shape) == 2 else lax.optimization_barrier(one))
    return flat


def flat_examples(values: Array) -> Array:
    """[B, ...] -> [B, n], of no examples too."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def sum_example(terms: Array) -> Array:
    """[B, n] -> [B]."""
    return terms.sum(axis=1)


def polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    """The polynomial's value at x, elementwise; the constant comes first."""
    total = jnp.zeros_like(x)
    for coefficient in reversed(coefficients):
        total = total * x + coefficient
    return total
