"""Distributions that bijections make of others: a posterior by the way from noise, a prior by the way to it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvae.distributions import DiagGaussian, FullGaussian, StandardNormal
from jaxvae.flows._parameters import amortized, check_input
from jaxvae.types import Array, PRNGKey, PyTree


class Bijection(Protocol):
    """A Linen module that maps [B, D] to [B, D], one to one; one that is one of `jaxvae.flows` has these methods."""

    def forward(self, x: Array, *context: Array) -> tuple[Array, Array]:
        """y [B, D], and log |det dy/dx| [B]."""
        ...

    # Where it comes cheaply: `inverse(y, *context)` -> x and log |det dx/dy|.


class _Chain(nn.Module):
    """Bijections one after the other."""

    bijections: Sequence[Any]

    def forward(self, x: Array, *context: Array) -> tuple[Array, Array]:
        total = jnp.zeros(len(x), x.dtype)
        for bijection in self.bijections:
            x, log_det = bijection.forward(x, *context)
            total = total + log_det
        return x, total

    def inverse(self, y: Array, *context: Array) -> tuple[Array, Array]:
        total = jnp.zeros(len(y), y.dtype)
        for bijection in self.bijections[::-1]:
            if not hasattr(bijection, "inverse"):
                raise TypeError(
                    f"a {type(bijection).__name__} has no inverse: as a posterior it gives the density of what it has "
                    "drawn alone (sample_and_log_prob), and as a prior nothing can be drawn. Use Autoregressive, "
                    "AffineCoupling or SplineCoupling where more is asked for"
                )
            y, log_det = bijection.inverse(y, *context)
            total = total + log_det
        return y, total

    def alone(self, x: Array, context: tuple[Array, ...]) -> tuple[PyTree, tuple[Array, ...], "_Chain"]:
        """The variables, the context, and the module without them, which transformations of JAX cannot disturb."""
        if self.is_initializing():
            self.forward(x, *context)
        unbound, variables = self.unbind()
        return variables, context, unbound


@partial(jax.tree_util.register_dataclass, data_fields=["base", "variables", "context"], meta_fields=["chain"])
@dataclass(frozen=True)
class Pushforward:
    """What z = f(noise) is distributed like, noise ~ base: of `FlowPosterior`.

    Attributes:
      base: a record over [B, D].
      variables: of f's bijections.
      context: of each example, [B, C], or nothing.
      chain: f.
    """

    base: Any
    variables: PyTree
    context: tuple[Array, ...]
    chain: _Chain

    def sample_and_log_prob(self, *, key: PRNGKey) -> tuple[Array, Array]:
        """A draw, [B, D], differentiable in all parameters, and its log-density, [B] nats; nothing is inverted."""
        noise = self.base.sample(key=key)
        z, log_det = self.chain.apply(self.variables, noise, *self.context, method="forward")
        return z, self.base.log_prob(noise) - log_det

    def sample(self, *, key: PRNGKey) -> Array:
        """A draw, [B, D]."""
        return self.sample_and_log_prob(key=key)[0]

    def log_prob(self, z: Array) -> Array:
        """`[B]` nats; `TypeError` where a bijection has no inverse."""
        noise, log_det = self.chain.apply(self.variables, z, *self.context, method="inverse")
        return self.base.log_prob(noise) + log_det

    @property
    def mean(self) -> Array:
        """Where f takes the base's mean, [B, D]: a point in the middle, not the expectation, which has no formula."""
        return self.chain.apply(self.variables, self.base.mean, *self.context, method="forward")[0]


@partial(jax.tree_util.register_dataclass, data_fields=["base", "variables", "context"], meta_fields=["chain"])
@dataclass(frozen=True)
class Pullback:
    """What z is distributed like where f(z) ~ base: of `jaxvae.priors.FlowPrior`.

    Attributes:
      base: a record over [B, D] of any number of examples, such as `StandardNormal(D)`.
      variables: of f's bijections.
      context: of each example, [B, C], or nothing.
      chain: f.
    """

    base: Any
    variables: PyTree
    context: tuple[Array, ...]
    chain: _Chain

    def log_prob(self, z: Array) -> Array:
        """`[B]` nats."""
        noise, log_det = self.chain.apply(self.variables, z, *self.context, method="forward")
        return self.base.log_prob(noise) + log_det

    def sample(self, num: int, *, key: PRNGKey) -> Array:
        """[num, D]; `TypeError` where a bijection has no inverse."""
        noise = self.base.sample(num, key=key)
        return self.chain.apply(self.variables, noise, *self.context, method="inverse")[0]

    @property
    def mean(self) -> Array:
        """Where the base's mean comes from, [1, D] or [B, D]: a point in the middle, not the expectation."""
        mean = self.base.mean
        if self.context:
            mean = jnp.broadcast_to(mean, (len(self.context[0]), *mean.shape[1:]))
        return self.chain.apply(self.variables, mean, *self.context, method="inverse")[0]


class FlowPosterior(_Chain):
    """q(z|x) by a flow: a diagonal Gaussian of the encoder's, sent through bijections.

    The encoder returns (mean, log_var) or (mean, log_var, context): `MLPEncoder(..., context_dim=C)`. Without a context
    the bijections are the same for every x. It has no closed form of the rate, and objectives use the sampled one.

    Attributes:
      bijections: of `jaxvae.flows`, or modules with `forward`, in the order from the Gaussian to z.

    References:
      Rezende and Mohamed, Variational Inference with Normalizing Flows, 2015.
    """

    def __call__(self, mean: Array, log_var: Array, *context: Array) -> Pushforward:
        """The record, of means and log-variances [B, D]."""
        return Pushforward(DiagGaussian(mean, log_var), *self.alone(mean, context))


class FullCovariance(nn.Module):
    """q(z|x) = N(mean, L Lᵀ), with L = diag(σ) (I + N) and N strictly lower triangular, a linear map of the context.

    The encoder returns (mean, log_var) or (mean, log_var, context), as for `FlowPosterior`; without a context N is the
    same for every x. N begins at zero, where this is the diagonal Gaussian.
    """

    @nn.compact
    def __call__(self, mean: Array, log_var: Array, *context: Array) -> FullGaussian:
        """The record, of means and log-variances [B, D]."""
        check_input(mean, context)
        dim = mean.shape[1]
        below = amortized(self, "below", dim * (dim - 1) // 2, context, nn.initializers.zeros)
        unit = jnp.broadcast_to(jnp.eye(dim, dtype=mean.dtype), (len(mean), dim, dim))
        unit = unit.at[:, *jnp.tril_indices(dim, -1)].set(below)
        return FullGaussian(mean, jnp.exp(0.5 * log_var)[..., None] * unit)


class FlowPrior(_Chain):
    """p(z) by a flow: bijections lead from the latents to N(0, I), and given a condition [B, C] are told it.

    Attributes:
      bijections: of `jaxvae.flows`, or modules with `forward` and, to be drawn from, `inverse`; in the order from z to
        the noise.
      latent_dim: D.

    References:
      Dinh, Sohl-Dickstein and Bengio, Density Estimation Using Real NVP, 2017; Chen et al., Variational Lossy
      Autoencoder, 2017, for a flow as the prior.
    """

    latent_dim: int

    def __call__(self, *condition: Array) -> Pullback:
        """The record."""
        count = len(condition[0]) if condition else 1
        start = jnp.zeros((count, self.latent_dim))
        return Pullback(StandardNormal(self.latent_dim), *self.alone(start, condition))
