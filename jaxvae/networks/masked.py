"""Masked dense layers, by which each output sees only what comes before it (MADE)."""

from collections.abc import Sequence
from itertools import pairwise

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxvae.types import Array

Layers = list[tuple[Array, ...]]


def hidden_degrees(width: int, count: int) -> np.ndarray:
    """The degrees of hidden units: 0 .. count - 1 over and over, or spread evenly over them where units are fewer."""
    return np.arange(width) % count if width >= count else np.rint(np.linspace(0, count - 1, width)).astype(int)


def masked_layers(
    module: nn.Module, degrees: Sequence[np.ndarray], context: tuple[Array, ...], start: nn.initializers.Initializer
) -> Layers:
    """(kernel, bias, kernel of the context or nothing) of each layer, as parameters of `module`.

    A unit sees those before it whose degree is no larger: inputs have the degrees 1, 2, ... of their place in the
    order, units of degree d see the first d of them, those of degree 0 the context alone, and the output for place i
    has degree i - 1. The last kernel begins at `start`.
    """
    layers: Layers = []
    for i, (before, after) in enumerate(pairwise(degrees)):
        last = i == len(degrees) - 2
        mask = jnp.asarray(after[None] >= before[:, None], jnp.float32)
        kernel = module.param(f"kernel_{i}", start if last else nn.initializers.lecun_normal(), mask.shape) * mask
        bias = module.param(f"bias_{i}", nn.initializers.zeros, mask.shape[1:])[None]
        of_context: tuple[Array, ...] = ()
        if context and not last:
            shape = (context[0].shape[1], mask.shape[1])
            of_context = (module.param(f"context_{i}", nn.initializers.lecun_normal(), shape),)
        layers.append((kernel, bias, *of_context))
    return layers


def masked_network(layers: Layers, x: Array, context: tuple[Array, ...] = ()) -> Array:
    """x [B, D] -> the last layer's output."""
    for i, (kernel, bias, *of_context) in enumerate(layers):
        x = x @ kernel + bias
        if of_context:
            x = x + context[0] @ of_context[0]
        x = nn.relu(x) if i < len(layers) - 1 else x
    return x
