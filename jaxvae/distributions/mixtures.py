"""Mixtures: of what a record says of several examples, and of Gaussians of each example's own."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae._checks import at_least, largest
from jaxvae.distributions.gaussian import DiagGaussian, Mixture
from jaxvae.keys import check_key, noise
from jaxvae.losses._arrays import LOG_2PI, floating
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


class GaussianMixtures(NamedTuple):
    """A mixture of K diagonal Gaussians of its own for each example, over [B, D].

    Attributes:
      logits: of the components' weights, unnormalised, [B, K].
      component_mean: [B, K, D].
      component_log_var: log σ², [B, K, D].
    """

    logits: Array
    component_mean: Array
    component_log_var: Array

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats; a density."""
        wide = self._wide()
        of_each = wide._log_densities(floating(x, "x")).sum(axis=-1)
        return jax.nn.logsumexp(jax.nn.log_softmax(wide.logits) + of_each, axis=1)

    def sample(self, *, key: PRNGKey) -> Array:
        r"""A draw, [B, D]; one key, or one for each example.

        It is differentiable in all parameters, the weights too, though which component it comes from is not:
        implicitly, by the distribution functions F_d of each value given those before it,

        .. math:: \frac{dz}{d\theta} = -\left(\frac{\partial F}{\partial z}\right)^{-1}
                  \frac{\partial F}{\partial \theta}

        References:
          Graves, Stochastic Backpropagation through Mixture Density Distributions, 2016; Figurnov, Mohamed and Mnih,
          Implicit Reparameterization Gradients, 2018.
        """
        wide = self._wide()
        fixed: GaussianMixtures = jax.lax.stop_gradient(wide)
        drawn = fixed._drawn(key)
        share, _, _ = wide._shares(drawn)
        moved = (share - jax.lax.stop_gradient(share))[..., None]  # zero, with the gradient of F at a fixed z
        return drawn - jax.lax.linalg.triangular_solve(fixed._slopes(drawn), moved, left_side=True, lower=True)[..., 0]

    @property
    def mean(self) -> Array:
        """[B, D]."""
        return jnp.einsum("bk,bkd->bd", jax.nn.softmax(self.logits), self.component_mean)

    def _wide(self) -> "GaussianMixtures":
        """In float32 or wider, in which sums over latents keep their digits."""
        return GaussianMixtures(*(floating(values, name) for name, values in zip(self._fields, self, strict=True)))

    def _drawn(self, key: PRNGKey) -> Array:
        """A draw, component first."""
        split = jax.random.split if key.shape == () else jax.vmap(jax.random.split, out_axes=1)
        component_key, noise_key = split(key)
        gumbel = noise(jax.random.gumbel, component_key, self.logits.shape)
        chosen = largest(self.logits + gumbel)[:, None, None]
        mean, log_var = (
            jnp.take_along_axis(each, chosen, axis=1)[:, 0] for each in (self.component_mean, self.component_log_var)
        )
        return DiagGaussian(mean, log_var).sample(key=noise_key)

    def _standard(self, x: Array) -> Array:
        return (x[:, None] - self.component_mean) * jnp.exp(-0.5 * self.component_log_var)

    def _log_densities(self, x: Array) -> Array:
        """Of each value under each component, [B, K, D] nats."""
        return -0.5 * (jnp.square(self._standard(x)) + self.component_log_var + LOG_2PI)

    def _shares(self, x: Array) -> tuple[Array, Array, Array]:
        """F_d(x_d | x_<d), [B, D]; the components' weights given x_<d and their own F, [B, K, D]."""
        densities = self._log_densities(x)
        # Those before, and not all less the own: beside a large one the others would be lost.
        before = jnp.cumsum(jnp.pad(densities[..., :-1], ((0, 0), (0, 0), (1, 0))), axis=-1)
        weights = jax.nn.softmax(self.logits[..., None] + before, axis=1)
        own = jax.scipy.stats.norm.cdf(self._standard(x))
        return (weights * own).sum(axis=1), weights, own

    def _slopes(self, x: Array) -> Array:
        """∂F_d / ∂x_j, [B, D, D], lower triangular."""
        share, weights, own = self._shares(x)
        scores = -self._standard(x) * jnp.exp(-0.5 * self.component_log_var)  # ∂ log density / ∂x_j
        below = jnp.einsum(
            "bkd,bkj->bdj", weights * (own - share[:, None]), scores, precision=jax.lax.Precision.HIGHEST
        )
        diagonal = (weights * jnp.exp(self._log_densities(x))).sum(axis=1)
        return jnp.tril(below, -1) + diagonal[..., None] * jnp.eye(x.shape[1], dtype=x.dtype)[None]
