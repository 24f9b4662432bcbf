"""A mixture of what records say of several examples."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae._checks import at_least
from jaxvae.distributions.gaussian import DiagGaussian, Mixture
from jaxvae.keys import check_key
from jaxvae.types import Array, PRNGKey


class EqualMixture(NamedTuple):
    """The mean of K densities, the same one for every example: p(z) = 1/K Σ_k p_k(z).

    Attributes:
      components: a record over [K, ...], whose `log_prob` says of [K, ...] one number for each.
    """

    components: Any

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats of x [B, ...]."""
        count = len(self.components.mean)

        def of_one(one: Array) -> Array:
            of_each = self.components.log_prob(jnp.broadcast_to(one[None], (count, *one.shape)))
            return jax.nn.logsumexp(of_each) - jnp.log(float(count)).astype(of_each.dtype)

        return jax.vmap(of_one)(x)

    def sample(self, num: int, *, key: PRNGKey) -> Array:
        """[num, ...]: a component each, then a draw from it; one key, or `num`."""
        at_least(1, num=num)
        check_key(key)
        keys = jax.random.split(key, num) if key.shape == () else key

        def one(key: PRNGKey) -> Array:
            component_key, draw_key = jax.random.split(key)
            draws: Array = self.components.sample(key=draw_key)
            return draws[jax.random.randint(component_key, (), 0, len(draws))]

        return jax.vmap(one)(keys)

    @property
    def mean(self) -> Array:
        """[1, ...]."""
        mean: Array = self.components.mean
        return mean.mean(axis=0, keepdims=True)


def equal_mixture(components: Any) -> Mixture | EqualMixture:
    """The mean of the K densities of a record over [K, ...]; of diagonal Gaussians a `Mixture`."""
    if type(components) is not DiagGaussian:
        return EqualMixture(components)
    mean, log_var = components
    return Mixture(jnp.zeros(len(mean), mean.dtype), mean, jnp.broadcast_to(log_var, mean.shape))
