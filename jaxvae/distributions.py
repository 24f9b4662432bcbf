"""Distributions as records: what a network says, with `log_prob`, `sample`, `mode` and `mean`.

Axis 0 is the batch, every other axis belongs to the example, and `log_prob` returns `[B]` nats. `sample` takes one
key of shape `()` for the whole batch, or `[B]` keys, one per example.
"""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae import losses
from jaxvae.keys import draw
from jaxvae.types import Array, PRNGKey


class DiagGaussian(NamedTuple):
    """N(mean, e^log_var) with a diagonal covariance; `mean` [B, ...], `log_var` broadcasts to it."""

    mean: Array
    log_var: Array

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats; a density."""
        return -losses.gaussian_nll(self.mean, self.log_var, x)

    def sample(self, *, key: PRNGKey) -> Array:
        """Draw mean + σ ε, differentiable in both parameters (the reparameterisation of Kingma and Welling, 2014)."""
        noise = draw(jax.random.normal, key, self.mean.shape)
        return self.mean + jnp.exp(0.5 * self.log_var) * noise

    def mode(self) -> Array:
        """The mean."""
        return self.mean


class Bernoulli(NamedTuple):
    """Independent Bernoulli variables; `logits` [B, ...], events in [0, 1]."""

    logits: Array

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats; the expected log-probability under binarisation where `x` is grey."""
        return -losses.bernoulli_nll(self.logits, x)

    def sample(self, *, key: PRNGKey) -> Array:
        """Zeros and ones, in the type of the logits."""
        uniform = draw(jax.random.uniform, key, self.logits.shape)
        return (uniform < self.mean).astype(self.logits.dtype)

    def mode(self) -> Array:
        """One where the probability exceeds a half."""
        return (self.logits > 0).astype(self.logits.dtype)

    @property
    def mean(self) -> Array:
        """The probabilities."""
        return jax.nn.sigmoid(self.logits)


class Categorical(NamedTuple):
    """Independent categorical variables over V values; `logits` [B, ..., V], events [B, ...].

    Integer events are the values themselves. Floating events are intensities in [0, 1], read as the V evenly spaced
    levels 0, 1/(V-1), ..., 1: so the record serves as the likelihood of quantised images, and its mean is a picture.
    """

    logits: Array

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats."""
        if jnp.issubdtype(jnp.asarray(x).dtype, jnp.floating):
            level = jnp.rint(x * (self.logits.shape[-1] - 1))
            x = jnp.where(jnp.isnan(level), -1, level).astype(jnp.int32)  # out of range: a cast would make it 0
        return -losses.categorical_nll(self.logits, x)

    def sample(self, *, key: PRNGKey) -> Array:
        """Integers in 0 .. V-1."""
        gumbel = draw(jax.random.gumbel, key, self.logits.shape)
        return jnp.argmax(self.logits + gumbel, axis=-1)

    def mode(self) -> Array:
        """The most probable integer."""
        return jnp.argmax(self.logits, axis=-1)

    @property
    def mean(self) -> Array:
        """The expected intensity, in [0, 1]."""
        intensity = jnp.linspace(0, 1, self.logits.shape[-1], dtype=self.logits.dtype)
        return jnp.dot(jax.nn.softmax(self.logits), intensity, precision=jax.lax.Precision.HIGHEST)


class _Logistic(NamedTuple):
    mean: Array
    log_scale: Array


class DiscretizedLogistic(_Logistic):
    """Independent logistic variables gathered on `levels` values in [-1, 1], the outermost bins open.

    `mean` [B, ...] is the logistic's location, before it is gathered; `log_scale` broadcasts to it. For another number
    of values, subclass it and set `levels`. `UnitInterval` makes it a likelihood of images in [0, 1].

    References:
      Salimans et al., PixelCNN++, 2017.
    """

    levels: ClassVar[int] = 256  # a constant of the class; a NamedTuple's own annotations would make it a leaf

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats of values in [-1, 1]."""
        return -losses.discretized_logistic_nll(self.mean, self.log_scale, x, self.levels)

    def sample(self, *, key: PRNGKey) -> Array:
        """Values in [-1, 1]."""
        noise = draw(jax.random.logistic, key, self.mean.shape)
        return self._nearest(self.mean + jnp.exp(self.log_scale) * noise)

    def mode(self) -> Array:
        """The most probable value: the one nearest to the mean, or an end, where the open bin holds more."""
        values = jnp.stack([self._nearest(self.mean), jnp.full_like(self.mean, -1), jnp.full_like(self.mean, 1)])
        log_scale = jnp.broadcast_to(self.log_scale, self.mean.shape)
        mass = jax.vmap(lambda x: losses.discretized_logistic_log_mass(self.mean, log_scale, x, self.levels))(values)
        return jnp.take_along_axis(values, mass.argmax(axis=0)[None], axis=0)[0]

    def _nearest(self, x: Array) -> Array:
        steps = (self.levels - 1) / 2
        return jnp.rint((x.clip(-1, 1) + 1) * steps) / steps - 1


class UnitInterval(NamedTuple):
    """A distribution over values in [-1, 1], such as `DiscretizedLogistic`, as one over images in [0, 1]."""

    symmetric: DiscretizedLogistic

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats; of the discrete values, so that the map changes no volume."""
        return self.symmetric.log_prob(2 * x - 1)

    def sample(self, *, key: PRNGKey) -> Array:
        """Values in [0, 1]."""
        return (self.symmetric.sample(key=key) + 1) / 2

    def mode(self) -> Array:
        """The most probable values, in [0, 1]."""
        return (self.symmetric.mode() + 1) / 2

    @property
    def mean(self) -> Array:
        """The distribution's mean, held to [0, 1]."""
        return ((self.symmetric.mean + 1) / 2).clip(0, 1)
