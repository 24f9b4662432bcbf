"""Likelihoods of pixels, and of labels: Bernoulli, categorical, discretised logistic, mixtures of those."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae import losses
from jaxvae._checks import largest, unless_nan
from jaxvae.keys import noise, sample_keys
from jaxvae.types import Array, PRNGKey


class Bernoulli(NamedTuple):
    """Independent Bernoulli variables; `logits` [B, ...], events in [0, 1]."""

    logits: Array

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats; the expected log-probability under binarisation where `x` is grey."""
        return -losses.bernoulli_nll(self.logits, x)

    def sample(self, *, key: PRNGKey) -> Array:
        """Zeros and ones, in the type of the logits; NaN where these are."""
        uniform = noise(jax.random.uniform, key, self.logits.shape)
        return unless_nan((uniform < self.mean).astype(self.logits.dtype), self.logits)

    def mode(self) -> Array:
        """One where the probability exceeds a half."""
        return unless_nan((self.logits > 0).astype(self.logits.dtype), self.logits)

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
        """Integers in 0 .. V-1; V, which is none of them, where a logit is NaN."""
        gumbel = noise(jax.random.gumbel, key, self.logits.shape)
        return largest(self.logits + gumbel)

    def mode(self) -> Array:
        """The most probable integer; V where a logit is NaN."""
        return largest(self.logits)

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
        return _nearest(self.mean + jnp.exp(self.log_scale) * standard, self.levels)

    def mode(self) -> Array:
        """The most probable value: the one nearest to the mean, or an end, where the open bin holds more."""
        return _most_probable(self.mean, self.log_scale, self.levels)

    def expected_value(self) -> Array:
        """The mean of the values in [-1, 1]; `mean` is the location before they are gathered."""
        return _expected_value(self.mean, self.log_scale, self.levels)


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["logits", "locations", "log_scales", "coefficients"],
    meta_fields=["levels"],
)
@dataclass(frozen=True)
class DiscretizedLogisticMixture:
    """Colour pixels, each a mixture of logistic variables gathered on `levels` values in [-1, 1]; the bins' ends open.

    A component is that of the whole pixel, and its logistic for a channel moves with the channels before: green given
    red, blue given both, linearly. Pixels are independent. `UnitInterval` makes it a likelihood of images in [0, 1];
    `jaxvae.networks.logistic_mixture_image` makes that of a network's output.

    Attributes:
      logits: of the components, [B, ..., M].
      locations: of the logistics, where the channels before are 0, [B, ..., M, C].
      log_scales: [B, ..., M, C].
      coefficients: how far a channel moves with those before, [B, ..., M, C(C-1)/2]: of channel 1 for channel 0, of
        channel 2 for 0 and 1, and so on.
      levels: how many values there are.

    References:
      Salimans et al., PixelCNN++, 2017.
    """

    logits: Array
    locations: Array
    log_scales: Array
    coefficients: Array
    levels: int = 256

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats of values in [-1, 1], [B, ..., C]."""
        return -losses.discretized_logistic_mixture_nll(*self._parameters, x, self.levels)

    def sample(self, *, key: PRNGKey, temperature: float | Array = 1.0) -> Array:
        """Values in [-1, 1], [B, ..., C]; the temperature is that of the components, and a factor of the scales."""
        of_component, of_value = sample_keys(key, 2)
        gumbel = noise(jax.random.gumbel, of_component, self.logits.shape)
        component = largest(self.logits + temperature * gumbel)[..., None, None]  # beyond the last, NaN is taken
        locations, log_scales, coefficients = (
            jnp.take_along_axis(each, component, axis=-2).squeeze(-2) for each in self._parameters[1:]
        )
        spread = temperature * jnp.exp(log_scales) * noise(jax.random.logistic, of_value, locations.shape)

        def draw(location: Array, channel: int) -> Array:
            return _nearest(location + spread[..., channel], self.levels)

        return losses.mixtures.channel_by_channel(locations, coefficients, draw)[1]

    def mode(self) -> Array:
        """The best of M colours of each pixel: of each component its most probable values, channel by channel.

        Not always the most probable of all colours, which would take a look at each of them.
        """

        def best(location: Array, channel: int) -> Array:
            return _most_probable(location, self.log_scales[..., channel], self.levels)

        _, candidates = losses.mixtures.channel_by_channel(self.locations, self.coefficients, best)
        candidates = jnp.moveaxis(candidates, -2, 0)
        masses = jax.lax.map(
            lambda x: losses.discretized_logistic_mixture_log_mass(*self._parameters, x, self.levels),
            candidates,
        )
        best_of = largest(jnp.moveaxis(masses, 0, -1))
        return jnp.take_along_axis(candidates, best_of[None, ..., None], axis=0)[0]

    def expected_value(self) -> Array:
        """The mean of the values in [-1, 1], [B, ..., C].

        That of the first channel is exact. For the others the mean of each component's channels before stands in their
        place: what the gathering of values at the ends bends is not seen.
        """

        def mean(location: Array, channel: int) -> Array:
            return _expected_value(location, self.log_scales[..., channel], self.levels)

        _, means = losses.mixtures.channel_by_channel(self.locations, self.coefficients, mean)
        return (jax.nn.softmax(self.logits, axis=-1)[..., None] * means).sum(axis=-2)

    @property
    def mean(self) -> Array:
        """`expected_value`."""
        return self.expected_value()

    @property
    def _parameters(self) -> tuple[Array, Array, Array, Array]:
        return self.logits, self.locations, self.log_scales, self.coefficients


class UnitInterval(NamedTuple):
    """A distribution over values in [-1, 1], such as `DiscretizedLogistic`, as one over images in [0, 1]."""

    symmetric: DiscretizedLogistic | DiscretizedLogisticMixture

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


def _nearest(x: Array, levels: int) -> Array:
    """The value on the levels that is nearest."""
    steps = (levels - 1) / 2
    return jnp.rint((x.clip(-1, 1) + 1) * steps) / steps - 1


def _most_probable(mean: Array, log_scale: Array, levels: int) -> Array:
    """Of each logistic the value nearest to its mean, or an end, where the open bin holds more."""
    values = jnp.stack([_nearest(mean, levels), jnp.full_like(mean, -1), jnp.full_like(mean, 1)])
    log_scale = jnp.broadcast_to(log_scale, mean.shape)
    mass = jax.vmap(lambda x: losses.discretized_logistic_log_mass(mean, log_scale, x, levels))(values)
    return jnp.take_along_axis(values, largest(jnp.moveaxis(mass, 0, -1))[None], axis=0)[0]


def _expected_value(mean: Array, log_scale: Array, levels: int) -> Array:
    """The mean of each logistic's values.

    The sum over the values' upper tails: with edges e_v between neighbours a step apart, -1 + step · Σ P(x > e_v).
    """
    step = 2 / (levels - 1)

    def add(total: Array, edge: Array) -> tuple[Array, None]:
        return total + jax.nn.sigmoid((mean - edge) * jnp.exp(-log_scale)), None

    edges = -1 + step * (jnp.arange(levels - 1, dtype=mean.dtype) + 0.5)
    tails, _ = jax.lax.scan(add, jnp.zeros_like(mean), edges)
    return step * tails - 1
