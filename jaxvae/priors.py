"""Priors over latents, as modules: called with the conditions of a batch, if any, they return a record.

A prior of yours is any callable, or Linen module, that returns a record with `log_prob(z)` [B] and a way to sample: of
one that is the same for every example `sample(num, key=)`, of one that describes each example by its condition
`sample(key=)`. A network that returns (mean, log_var) is taken as a diagonal Gaussian given the condition.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxvae._checks import at_least
from jaxvae._host import host_array
from jaxvae.distributions import Mixture, OneHotCategorical, SharedOneHot, StandardNormal
from jaxvae.distributions.one_hot import one_hot_of_largest
from jaxvae.flows import FlowPrior
from jaxvae.keys import noise
from jaxvae.networks.masked import hidden_degrees, masked_layers, masked_network
from jaxvae.types import Array, PRNGKey, PyTree

__all__ = [
    "AutoregressiveCategorical",
    "CategoricalPrior",
    "Examples",
    "FlowPrior",
    "GaussianMixture",
    "PseudoInputs",
    "StandardNormal",
    "VampPrior",
]


class GaussianMixture(nn.Module):
    """A learned mixture of K diagonal Gaussians over latents [B, D], whatever the condition.

    It starts with equal weights, unit variances, and means that are drawn so that a mixture of one is N(0, I).

    Attributes:
      num_components: K.
      latent_dim: D.

    References:
      Dilokthanakul et al., Deep Unsupervised Clustering with Gaussian Mixture Variational Autoencoders, 2016;
      Tomczak and Welling, VAE with a VampPrior, 2018, section 2, for a mixture as the prior.
    """

    num_components: int
    latent_dim: int

    @nn.compact
    def __call__(self, *condition: Array) -> Mixture:
        """The mixture.

        Raises:
          ValueError: a size is below 1.
        """
        at_least(1, num_components=self.num_components, latent_dim=self.latent_dim)
        shape = (self.num_components, self.latent_dim)
        spread = nn.initializers.normal(math.sqrt(1 - 1 / self.num_components))
        return Mixture(
            self.param("log_weights", nn.initializers.zeros, shape[:1], jnp.float32),
            self.param("mean", spread, shape, jnp.float32),
            self.param("log_var", nn.initializers.zeros, shape, jnp.float32),
        )


class PseudoInputs(NamedTuple):
    """What a `VampPrior` returns; a `VAE` makes the prior's record of it, the mixture of its own posteriors of these.

    Attributes:
      x: as the encoder sees x, [K, ...].
    """

    x: Array


class VampPrior(nn.Module):
    """The posteriors of K learned pseudo-inputs u, by the model's own encoder: p(z) = 1/K Σ_k q(z|u_k).

    With all of the training set for the pseudo-inputs it would be the aggregate posterior, the best prior there is. The
    encoder takes them as in evaluation: without dropout, by the statistics that BatchNorm has. They are not kept within
    the values of x, and look like pictures only where they started as some. For a `VAE` without a condition.

    Attributes:
      num_pseudo_inputs: K.
      shape: of one x as the encoder sees it: where entries may be missing, twice as wide, with the mask.
      initial: (key, shape, dtype) -> the pseudo-inputs at the start, [K, ...]: uniform in [0, 1), or `Examples`.

    References:
      Tomczak and Welling, VAE with a VampPrior, 2018.
    """

    num_pseudo_inputs: int
    shape: tuple[int, ...]
    initial: Callable[..., Array] = nn.initializers.uniform(1.0)

    @nn.compact
    def __call__(self, *condition: Array) -> PseudoInputs:
        """The pseudo-inputs.

        Raises:
          ValueError: a size is below 1.
        """
        at_least(1, num_pseudo_inputs=self.num_pseudo_inputs, shape=self.shape)
        return PseudoInputs(self.param("x", self.initial, (self.num_pseudo_inputs, *self.shape), jnp.float32))


@dataclass(frozen=True, eq=False)
class Examples:
    """Pseudo-inputs that start as random examples.

    Attributes:
      x: [N, ...], as a model sees them: `dataset.prepared(1000, key=key)["x"]`.

    Raises (when it is made):
      TypeError: x is not floating.
      ValueError: x is not finite.
    """

    x: Any

    def __post_init__(self) -> None:
        """Keep them on the host, checked: integers would be pixels that no `prepare` has scaled."""
        x = host_array(self.x, "x")
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"x must be floating, as dataset.prepared(count, key=key)['x'] is, got {x.dtype}")
        if not np.isfinite(x).all():
            raise ValueError("x must be finite: pseudo-inputs have no missing entries but by a mask beside them")
        object.__setattr__(self, "x", x)

    def __call__(self, key: PRNGKey, shape: tuple[int, ...], dtype: Any) -> Array:
        """`shape[0]` different ones.

        Raises:
          ValueError: there are fewer, or they have another shape.
        """
        if self.x.shape[1:] != shape[1:] or len(self.x) < shape[0]:
            raise ValueError(f"expected at least {shape[0]} examples {shape[1:]}, got {self.x.shape}")
        chosen = jax.random.choice(key, len(self.x), shape[:1], replace=False)
        return jnp.asarray(self.x, dtype)[chosen]


class CategoricalPrior(nn.Module):
    """N independent categorical variables over K categories, one-hot: uniform, or with learned probabilities.

    Attributes:
      num_variables: N.
      num_categories: K.
      learned: whether the probabilities are; they start uniform.
    """

    num_variables: int
    num_categories: int
    learned: bool = False

    @nn.compact
    def __call__(self, *condition: Array) -> SharedOneHot:
        """The record.

        Raises:
          ValueError: no variables, or fewer than two categories.
        """
        shape = _categorical_shape(self.num_variables, self.num_categories)
        logits = self.param("logits", nn.initializers.zeros, shape, jnp.float32) if self.learned else jnp.zeros(shape)
        return SharedOneHot(logits[None])


class AutoregressiveCategorical(nn.Module):
    """N categorical variables over K categories, one-hot, each given those before it, by one masked network (MADE).

    A density takes one pass, a draw N. It begins uniform.

    Attributes:
      num_variables: N.
      num_categories: K.
      hidden: widths of the masked layers; with one below N most variables see only some of the earlier ones.

    References:
      Germain et al., MADE: Masked Autoencoder for Distribution Estimation, 2015; van den Oord et al., Neural Discrete
      Representation Learning, 2017, for an autoregressive prior of codes.
    """

    num_variables: int
    num_categories: int
    hidden: tuple[int, ...] = (128,)

    def __call__(self, *condition: Array) -> "AutoregressiveOneHot":
        """The record.

        Raises:
          ValueError: no variables, fewer than two categories, or no width.
        """
        shape = _categorical_shape(self.num_variables, self.num_categories)
        at_least(1, hidden=self.hidden)
        if not self.hidden:
            raise ValueError("hidden must hold at least one width")
        if self.is_initializing():
            self.logits(jnp.zeros((1, *shape)))
        unbound, variables = self.unbind()
        return AutoregressiveOneHot(variables, unbound)

    @nn.compact
    def logits(self, x: Array) -> Array:
        """Of each variable given those before it: one-hot x [B, N, K] -> [B, N, K]."""
        count, size = self.num_variables, self.num_categories
        place = np.repeat(np.arange(count), size)
        degrees = [place + 1, *(hidden_degrees(width, count) for width in self.hidden), place]
        layers = masked_layers(self, degrees, (), nn.initializers.zeros)
        return masked_network(layers, x.reshape(len(x), -1)).reshape(-1, count, size)


@partial(jax.tree_util.register_dataclass, data_fields=["variables"], meta_fields=["network"])
@dataclass(frozen=True)
class AutoregressiveOneHot:
    """What an `AutoregressiveCategorical` says of every example.

    Attributes:
      variables: of the network.
      network: the module.
    """

    variables: PyTree
    network: AutoregressiveCategorical

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats of one-hot x, [B, N, K]."""
        return OneHotCategorical(self._logits(x)).log_prob(x)

    def sample(self, num: int, *, key: PRNGKey) -> Array:
        """[num, N, K], one variable after the other; one key, or `num`."""
        at_least(1, num=num)
        shape = (num, self.network.num_variables, self.network.num_categories)
        gumbel = noise(jax.random.gumbel, key, shape)

        def one_more(i: Array, x: Array) -> Array:
            return x.at[:, i].set(one_hot_of_largest(self._logits(x)[:, i] + gumbel[:, i]))

        return jax.lax.fori_loop(0, shape[1], one_more, jnp.zeros(shape))

    def _logits(self, x: Array) -> Array:
        logits: Any = self.network.apply(self.variables, x, method="logits")
        return logits


def _categorical_shape(num_variables: int, num_categories: int) -> tuple[int, int]:
    at_least(1, num_variables=num_variables)
    at_least(2, num_categories=num_categories)
    return num_variables, num_categories
