"""What makes a network of x, or of a latent, one of pairs with a condition."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn

from jaxvae._checks import at_least, integers, out_of_range
from jaxvae.networks._arrays import flatten
from jaxvae.networks._run import run
from jaxvae.types import Array, PRNGKey


class LabelEmbedding(nn.Module):
    """Labels [B] in 0 .. num_classes - 1 -> vectors [B, E] float32: the condition of a class-conditional model.

    Under `jit` no error can be raised for a label out of range: it becomes NaN, which stops a training run.
    """

    num_classes: int
    features: int = 16

    def __post_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for sizes that do not fit."""
        at_least(1, num_classes=self.num_classes, features=self.features)
        super().__post_init__()

    @nn.compact
    def __call__(self, label: Array) -> Array:
        """Embed a batch.

        Raises:
          TypeError: the labels are not integers.
          ValueError: they are not [B], or one is out of range and not traced.
        """
        label = integers(label, "labels", "(batch,)")
        if label.ndim != 1:
            raise ValueError(f"labels must be integers (batch,), got {label.shape}")
        outside = out_of_range("label", label, self.num_classes)
        embed = nn.Embed(self.num_classes, self.features, embedding_init=nn.initializers.normal(1.0), name="vectors")
        return embed(jnp.where(outside, self.num_classes, label))  # a negative one would count from the end


class Conditioned(nn.Module):
    """An encoder or decoder of pairs: joins its input to the condition and runs `body` on both.

    Both are flattened into one vector [B, F + E], for dense bodies and for every decoder. With `as_channels`, for
    convolutional encoders, the condition becomes channels beside the input's, [B, *spatial, C + E]: an array of the
    same spatial shape as it is, a vector [B, E] spread over all positions.

    A body with a parameter `train`, `training` or `deterministic` is told whether the model is being trained, one with
    `key` gets the key of its noise.
    """

    body: Callable[..., Any]
    as_channels: bool = False

    @property
    def latent_dim(self) -> int | None:
        """The body's, where it has one."""
        return getattr(self.body, "latent_dim", None)

    def __call__(self, x: Array, condition: Array, *, key: PRNGKey | None = None) -> Any:
        """Run the body on an input [B, ...] and its condition [B, ...].

        Raises:
          ValueError: there are not as many conditions as inputs.
        """
        if condition.shape[:1] != x.shape[:1]:
            raise ValueError(f"expected {len(x)} conditions ({len(x)}, ...), got {condition.shape}")
        if not self.as_channels:
            joined = jnp.concatenate([flatten(x), flatten(condition)], axis=1)
        else:
            if condition.ndim == 2:
                condition = condition.reshape(len(x), *[1] * (x.ndim - 2), -1)
                condition = jnp.broadcast_to(condition, (*x.shape[:-1], condition.shape[-1]))
            joined = jnp.concatenate([x, condition], axis=-1)
        return run(self.body, joined, train=self.has_rng("dropout"), key=key)


class Unconditioned(nn.Module):
    """A body in a conditional model that does not look at the condition; told of training as in `Conditioned`."""

    body: Callable[..., Any]

    @property
    def latent_dim(self) -> int | None:
        """The body's, where it has one."""
        return getattr(self.body, "latent_dim", None)

    def __call__(self, x: Array, condition: Array, *, key: PRNGKey | None = None) -> Any:
        """Run the body on the input [B, ...] alone."""
        del condition
        return run(self.body, x, train=self.has_rng("dropout"), key=key)
