"""Likelihoods of counts: Poisson, negative binomial, and both with more zeros than they expect.

Counts are integers of any type or whole floating numbers; draws and modes are floating, float32 or wider.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxvae import losses
from jaxvae._checks import unless_nan
from jaxvae.keys import noise, sample_keys
from jaxvae.losses._arrays import floating
from jaxvae.types import Array, PRNGKey

LARGE_RATE = 1e4  # from here on a Poisson variable is drawn from a normal one


class Poisson(NamedTuple):
    """Independent Poisson variables; `log_rate` [B, ...]. Add an exposure, such as log time, to it as an offset."""

    log_rate: Array

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats."""
        return -losses.poisson_nll(self.log_rate, x)

    def sample(self, *, key: PRNGKey) -> Array:
        """Counts; not differentiable."""
        return noise(_poisson, key, self.log_rate.shape, self.mean)

    def mode(self) -> Array:
        """The rate, rounded down."""
        return jnp.floor(self.mean)

    @property
    def mean(self) -> Array:
        """The rate."""
        return jnp.exp(floating(self.log_rate, "log_rate"))


class NegativeBinomial(NamedTuple):
    """Independent counts of mean μ = e^log_mean and variance μ + μ²/r, r = e^log_dispersion.

    `log_mean` is [B, ...] and `log_dispersion` broadcasts to it: of cells and genes [B, G], one for each element, [G]
    for each gene, [B, 1] for each cell, or one number for all. The larger it is, the nearer to a Poisson.

    The size of a cell's library is an offset. Give its logarithm [B, 1] as the condition: the decoder of a `CVAE` is
    called with the latents and that, and `NegativeBinomial(log_mean + log_size, log_dispersion)` is what it says.

        class Genes(nn.Module):
            @nn.compact
            def __call__(self, latent, log_size):
                log_dispersion = self.param("log_dispersion", nn.initializers.zeros, (num_genes,))
                return nn.log_softmax(nn.Dense(num_genes)(latent)) + log_size, log_dispersion

        CVAE(encoder, Genes(), likelihood=lambda output: NegativeBinomial(*output))

    References:
      Lopez et al., Deep Generative Modeling for Single-Cell Transcriptomics, 2018.
    """

    log_mean: Array
    log_dispersion: Array

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats."""
        return -losses.negative_binomial_nll(self.log_mean, self.log_dispersion, x)

    def sample(self, *, key: PRNGKey) -> Array:
        """Counts: Poisson, each with a rate drawn from a gamma; not differentiable."""
        parameters = floating(self.log_mean, "log_mean"), floating(self.log_dispersion, "log_dispersion")
        return noise(_negative_binomial, key, self.log_mean.shape, *parameters)

    def mode(self) -> Array:
        """The mean times 1 - 1/r, rounded down; zero where r is below one."""
        log_dispersion = jnp.broadcast_to(self.log_dispersion, self.log_mean.shape)
        mode = jnp.where(log_dispersion > 0, jnp.floor(self.mean * -jnp.expm1(-log_dispersion)), 0)
        return unless_nan(mode, self.log_mean, log_dispersion)

    @property
    def mean(self) -> Array:
        """The mean μ."""
        return jnp.exp(floating(self.log_mean, "log_mean"))


class ZeroInflatedPoisson(NamedTuple):
    """Each count is zero with probability sigmoid(zero_logits), and else Poisson; `zero_logits` broadcasts.

    References:
      Lambert, Zero-Inflated Poisson Regression, 1992.
    """

    log_rate: Array
    zero_logits: Array

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats."""
        return -losses.zero_inflated_poisson_nll(self.log_rate, self.zero_logits, x)

    def sample(self, *, key: PRNGKey) -> Array:
        """Counts; not differentiable."""
        return _sample_inflated(Poisson(self.log_rate), self.zero_logits, key)

    def mode(self) -> Array:
        """Zero, or the Poisson's mode where that is more probable."""
        terms = partial(losses.poisson_terms, floating(self.log_rate, "log_rate"))
        return _more_probable(terms, self.zero_logits, Poisson(self.log_rate).mode())

    @property
    def mean(self) -> Array:
        """The rate, times the probability that no zero was put in its place."""
        return _kept(self.zero_logits, Poisson(self.log_rate).mean)


class ZeroInflatedNegativeBinomial(NamedTuple):
    """Each count is zero with probability sigmoid(zero_logits), and else negative binomial; `zero_logits` broadcasts.

    References:
      Lopez et al., Deep Generative Modeling for Single-Cell Transcriptomics, 2018.
    """

    log_mean: Array
    log_dispersion: Array
    zero_logits: Array

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats."""
        return -losses.zero_inflated_negative_binomial_nll(self.log_mean, self.log_dispersion, self.zero_logits, x)

    def sample(self, *, key: PRNGKey) -> Array:
        """Counts; not differentiable."""
        return _sample_inflated(self._counts(), self.zero_logits, key)

    def mode(self) -> Array:
        """Zero, or the negative binomial's mode where that is more probable."""
        log_mean = floating(self.log_mean, "log_mean")
        log_dispersion = jnp.broadcast_to(floating(self.log_dispersion, "log_dispersion"), log_mean.shape)
        terms = partial(losses.negative_binomial_terms, log_mean, log_dispersion)
        return _more_probable(terms, self.zero_logits, self._counts().mode())

    @property
    def mean(self) -> Array:
        """The mean, times the probability that no zero was put in the count's place."""
        return _kept(self.zero_logits, self._counts().mean)

    def _counts(self) -> NegativeBinomial:
        return NegativeBinomial(self.log_mean, self.log_dispersion)


def _poisson(key: PRNGKey, shape: tuple[int, ...], dtype: jnp.dtype, rate: Array) -> Array:
    """Counts as floating numbers, where integers of 32 bits would overflow; NaN for a rate that is NaN.

    `jax.random.poisson` accepts or rejects by a difference that float32 loses at large rates. There the count is the
    Cornish-Fisher quantile of a normal draw, which is less than a hundredth of a count off.
    """
    count_key, normal_key = jax.random.split(key)
    count = jax.random.poisson(count_key, jnp.minimum(rate, LARGE_RATE), shape).astype(dtype)
    standard = jax.random.normal(normal_key, shape, dtype)
    quantile = jnp.rint(rate + jnp.sqrt(rate) * standard + (jnp.square(standard) - 1) / 6).astype(dtype)
    return jnp.where(rate >= 0, jnp.where(rate < LARGE_RATE, count, quantile), jnp.nan)


def _negative_binomial(
    key: PRNGKey, shape: tuple[int, ...], dtype: jnp.dtype, log_mean: Array, log_dispersion: Array
) -> Array:
    gamma_key, count_key = jax.random.split(key)
    log_gamma = jax.random.loggamma(gamma_key, jnp.exp(log_dispersion), shape, dtype)  # a small one would underflow
    return _poisson(count_key, shape, dtype, jnp.exp(log_gamma + log_mean - log_dispersion))


def _sample_inflated(record: Poisson | NegativeBinomial, zero_logits: Array, key: PRNGKey) -> Array:
    count_key, zero_key = sample_keys(key, 2)
    count = record.sample(key=count_key)
    share = jnp.broadcast_to(jax.nn.sigmoid(zero_logits), count.shape)
    zero = noise(jax.random.uniform, zero_key, count.shape) < share
    return unless_nan(jnp.where(zero, 0, count), share, count)


def _more_probable(terms: Callable[[Array], Array], zero_logits: Array, count: Array) -> Array:
    """The count, or zero where that is at least as probable among counts with `terms` and added zeros."""
    zero_logits = jnp.broadcast_to(zero_logits, count.shape)
    zero = jnp.zeros_like(count)
    of_zero, of_count = (losses.zero_inflated_terms(terms(x), zero_logits, x) for x in (zero, count))
    return unless_nan(jnp.where(of_zero <= of_count, zero, count), zero_logits)


def _kept(zero_logits: Array, mean: Array) -> Array:
    return mean * jnp.broadcast_to(jax.nn.sigmoid(-zero_logits), mean.shape)
