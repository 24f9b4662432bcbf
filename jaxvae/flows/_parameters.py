"""What every bijection needs: parameters from a context, or of its own."""

from flax import linen as nn
from jax.nn.initializers import Initializer

from jaxvae.types import Array


def check_input(x: Array, context: tuple[Array, ...]) -> None:
    """Raise `ValueError` unless x is [B, D] and there is at most one context, [B, C]."""
    if x.ndim != 2 or not x.size:
        raise ValueError(f"a bijection takes x [B, D], at least one number, got {x.shape}")
    if len(context) > 1:
        raise ValueError(f"a bijection takes one context [B, C], got {len(context)}: concatenate them")
    for each in context:
        if each.ndim != 2 or len(each) != len(x):
            raise ValueError(f"the context must be ({len(x)}, C), one row for each example, got {each.shape}")


def amortized(module: nn.Module, name: str, size: int, context: tuple[Array, ...], start: Initializer) -> Array:
    """`size` parameters: of each example by a linear map of its context, [B, size], or of the module alone, [1, size].

    They are near `start` at first: the bias is, and the kernel begins at zero.
    """
    bias = module.param(f"{name}_bias" if context else name, start, (1, size))
    if not context:
        return bias
    kernel = module.param(f"{name}_kernel", nn.initializers.zeros, (context[0].shape[1], size))
    return bias + context[0] @ kernel
