"""How the gradient of the decoder's input passes the choice of a code, which has none of its own."""

import jax
import jax.numpy as jnp

from jaxvae._checks import floating
from jaxvae.codebook._checks import detached
from jaxvae.types import Array

TINY = 1e-20  # below this a vector has no direction
OPPOSITE = 1e-4  # |ê + q̂| of vectors with no plane to rotate in


def straight_through(encoded: Array, quantized: Array) -> Array:
    """The value of `quantized` with the gradient of `encoded`, in the type of `encoded`.

    Only the decoder's input: the losses take `quantized` itself.

    Raises:
      TypeError: an argument is not floating.
      ValueError: the shapes differ.
    """
    encoded, value = floating(encoded, "encoded"), jax.lax.stop_gradient(floating(quantized, "quantized"))
    if encoded.shape != value.shape:
        raise ValueError(f"encoded and quantized must have one shape, got {encoded.shape} and {value.shape}")
    # The difference is zero: the value is exactly the code's, not its to rounding.
    return value.astype(encoded.dtype) + (encoded - jax.lax.stop_gradient(encoded))


def rotation_trick(encoded: Array, quantized: Array) -> Array:
    r"""The value of `quantized` with the gradient of the rotation and scaling that take `encoded` to it.

    .. math:: \tilde q = \frac{\|q\|}{\|e\|} R e, \quad R = I - 2 \hat w \hat w^T + 2 \hat q \hat e^T,
              \quad \hat w = \frac{\hat e + \hat q}{\|\hat e + \hat q\|}

    with the factors detached. Angles between the gradient and the code become angles between the gradient and the
    encoder's vector, where `straight_through` moves the gradient without turning it. Where the rotation is not defined,
    at a vector of zero or opposite to its code, the gradient is that of `straight_through`.

    Raises:
      TypeError: an argument is not floating.
      ValueError: the shapes differ.

    References:
      Fifty et al., Restructuring Vector Quantization with the Rotation Trick, 2024.
    """
    encoded, quantized = floating(encoded, "encoded"), floating(quantized, "quantized")
    if encoded.shape != quantized.shape:
        raise ValueError(f"encoded and quantized must have one shape, got {encoded.shape} and {quantized.shape}")
    start, end = detached(encoded, "encoded"), detached(quantized, "quantized")
    start_norm, end_norm = (jnp.linalg.norm(each, axis=-1, keepdims=True) for each in (start, end))
    start, end = start / jnp.maximum(start_norm, TINY), end / jnp.maximum(end_norm, TINY)
    between = start + end
    between_norm = jnp.linalg.norm(between, axis=-1, keepdims=True)
    between /= jnp.maximum(between_norm, TINY)
    defined = (start_norm > TINY) & (end_norm > TINY) & (between_norm > OPPOSITE)
    # The map is linear, so that of a difference of zero has its gradient, and the value stays the code's own.
    change = (encoded - jax.lax.stop_gradient(encoded)).astype(jnp.float32)
    turned = change - 2 * between * (between * change).sum(axis=-1, keepdims=True)
    turned += 2 * end * (start * change).sum(axis=-1, keepdims=True)
    turned = jnp.where(defined, end_norm / jnp.maximum(start_norm, TINY) * turned, change)
    return jax.lax.stop_gradient(quantized).astype(encoded.dtype) + turned.astype(encoded.dtype)
