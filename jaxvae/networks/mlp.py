"""Dense networks: an encoder, a decoder, and the head of every Gaussian encoder."""

import math
from collections.abc import Callable, Sequence

from flax import linen as nn
from jax.typing import DTypeLike

from jaxvae._checks import at_least
from jaxvae.convolution import lecun_normal, widen
from jaxvae.networks._arrays import as_tuples, flatten
from jaxvae.networks.scales import soft_bound
from jaxvae.types import Array

LOG_VAR_LIMIT = 20.0


class GaussianHead(nn.Module):
    """Features [B, F] -> (mean, log_var), each [B, D] float32; |log_var| < 20, so that no σ² overflows.

    With `context_dim` C, -> (mean, log_var, context), the last [B, C]: what a flow or a full covariance is told of x.
    """

    latent_dim: int
    dtype: DTypeLike | None = None
    kernel_init: nn.initializers.Initializer = lecun_normal
    context_dim: int | None = None

    @nn.compact
    def __call__(self, features: Array) -> tuple[Array, ...]:
        """Map features to a posterior's parameters."""
        at_least(1, latent_dim=self.latent_dim)
        mean = nn.Dense(self.latent_dim, dtype=self.dtype, kernel_init=self.kernel_init, name="mean")(features)
        log_var = nn.Dense(self.latent_dim, dtype=self.dtype, kernel_init=self.kernel_init, name="log_var")(features)
        parameters = widen(mean), soft_bound(widen(log_var), LOG_VAR_LIMIT)
        if self.context_dim is None:
            return parameters
        at_least(1, context_dim=self.context_dim)
        context = nn.Dense(self.context_dim, dtype=self.dtype, kernel_init=self.kernel_init, name="context")(features)
        return *parameters, widen(context)


class MLPEncoder(nn.Module):
    """x [B, ...] -> (mean, log_var), through dense layers of the widths `hidden`; `context_dim` as `GaussianHead`'s."""

    latent_dim: int
    hidden: Sequence[int] = (500,)
    activation: Callable[[Array], Array] = nn.relu
    dtype: DTypeLike | None = None
    kernel_init: nn.initializers.Initializer = lecun_normal
    context_dim: int | None = None

    def __post_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for sizes that do not fit."""
        as_tuples(self, "hidden")
        at_least(1, latent_dim=self.latent_dim, hidden=self.hidden)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array, ...]:
        """Encode a batch."""
        features = flatten(x)
        for width in self.hidden:
            features = self.activation(nn.Dense(width, dtype=self.dtype, kernel_init=self.kernel_init)(features))
        return GaussianHead(self.latent_dim, self.dtype, self.kernel_init, self.context_dim, name="head")(features)


class MLPDecoder(nn.Module):
    """Latents [B, D] -> [B, *output_shape] float32, through dense layers of the widths `hidden`.

    It flattens what it is given: `MLPDecoder((D,))` also maps x to codes, as an autoencoder's encoder does.
    """

    output_shape: Sequence[int]
    hidden: Sequence[int] = (500,)
    activation: Callable[[Array], Array] = nn.relu
    dtype: DTypeLike | None = None
    kernel_init: nn.initializers.Initializer = lecun_normal

    def __post_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for sizes that do not fit."""
        as_tuples(self, "output_shape", "hidden")
        at_least(1, output_shape=self.output_shape, hidden=self.hidden)
        super().__post_init__()

    @nn.compact
    def __call__(self, latent: Array) -> Array:
        """Decode a batch."""
        features = flatten(latent)
        for width in self.hidden:
            features = self.activation(nn.Dense(width, dtype=self.dtype, kernel_init=self.kernel_init)(features))
        size = math.prod(self.output_shape)
        output = nn.Dense(size, dtype=self.dtype, kernel_init=self.kernel_init, name="output")(features)
        return widen(output).reshape(-1, *self.output_shape)


class CategoricalEncoder(nn.Module):
    """x [B, ...] -> (logits,), [B, N, K], of N variables over K categories, through dense layers of `hidden` widths."""

    num_variables: int
    num_categories: int
    hidden: Sequence[int] = (500,)
    activation: Callable[[Array], Array] = nn.relu
    dtype: DTypeLike | None = None

    def __post_init__(self) -> None:
        """Raise `TypeError` or `ValueError` for sizes that do not fit."""
        as_tuples(self, "hidden")
        at_least(1, num_variables=self.num_variables, hidden=self.hidden)
        at_least(2, num_categories=self.num_categories)
        super().__post_init__()

    @nn.compact
    def __call__(self, x: Array) -> tuple[Array]:
        """Encode a batch."""
        shape = (self.num_variables, self.num_categories)
        return (MLPDecoder(shape, self.hidden, self.activation, self.dtype, name="logits")(x),)
