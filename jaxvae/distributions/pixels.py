"""Likelihoods of pixels, and of labels: Bernoulli, categorical, discretised logistic."""

from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae import losses
from jaxvae.keys import noise
from jaxvae.types import Array, PRNGKey


class Bernoulli(NamedTuple):
    """Independent Bernoulli variables; `logits` [B, ...], events in [0, 1]."""

    logits: Array

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats; the expected log-probability under binarisation where `x` is grey."""
        return -losses.bernoulli_nll(self.logits, x)

    def sample(self, *, key: PRNGKey) -> Array:
        """Zeros and ones, in the type of the logits."""
        uniform = noise(jax.random.uniform, key, self.logits.shape)
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
        gumbel = noise(jax.random.gumbel, key, self.logits.shape)
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
        standard = noise(jax.random.logistic, key, self.mean.shape)
        return self._nearest(self.mean + jnp.exp(self.log_scale) * standard)

    def mode(self) -> Array:
        """The most probable value: the one nearest to the mean, or an end, where the open bin holds more."""
        values = jnp.stack([self._nearest(self.mean), jnp.full_like(self.mean, -1), jnp.full_like(self.mean, 1)])
        log_scale = jnp.broadcast_to(self.log_scale, self.mean.shape)
        mass = jax.vmap(lambda x: losses.discretized_logistic_log_mass(self.mean, log_scale, x, self.levels))(values)
        return jnp.take_along_axis(values, mass.argmax(axis=0)[None], axis=0)[0]

    def expected_value(self) -> Array:
        """The mean of the values in [-1, 1]; `mean` is the location before they are gathered.

        The sum over the values' upper tails: with edges e_v between neighbours a step apart, -1 + step · Σ P(x > e_v).
        """
        step = 2 / (self.levels - 1)

        def add(total: Array, edge: Array) -> tuple[Array, None]:
            return total + jax.nn.sigmoid((self.mean - edge) * jnp.exp(-self.log_scale)), None

        edges = -1 + step * (jnp.arange(self.levels - 1, dtype=self.mean.dtype) + 0.5)
        tails, _ = jax.lax.scan(add, jnp.zeros_like(self.mean), edges)
        return step * tails - 1

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
        """The mean of the values, in [0, 1]."""
        return (self.symmetric.expected_value() + 1) / 2
