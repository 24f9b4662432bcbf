"""Distributions as records: what a network says, with `log_prob`, `sample`, `mode` and `mean`.

Axis 0 is the batch, every other axis belongs to the example, and `log_prob` returns `[B]` nats. `sample` takes one
key of shape `()` for the whole batch, or `[B]` keys, one per example. What describes any number of examples alike, as
`StandardNormal` and `Mixture` do, has `sample(num, key=)` instead.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae import losses
from jaxvae._checks import at_least
from jaxvae.keys import check_key, noise
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
        standard = noise(jax.random.normal, key, self.mean.shape)
        return self.mean + jnp.exp(0.5 * self.log_var) * standard

    def mode(self) -> Array:
        """The mean."""
        return self.mean


@jax.tree_util.register_static
@dataclass(frozen=True)
class StandardNormal:
    """N(0, I) over latents of any shape: the prior of a plain VAE, and the record that this prior says.

    Attributes:
      shape: of one latent, or its length; only `sample` and `mean` need it. A `VAE` fills in what its encoder says.
    """

    shape: int | tuple[int, ...] | None = None

    def __call__(self, *condition: Array) -> "StandardNormal":
        """The prior, whatever the condition."""
        return self

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats of x [B, ...]; a density."""
        return -losses.gaussian_nll(jnp.zeros_like(x), jnp.zeros((), x.dtype), x)

    def sample(self, num: int, *, key: PRNGKey) -> Array:
        """[num, *shape] float32, with one key or with `num`."""
        at_least(1, num=num)
        return noise(jax.random.normal, key, (num, *self._shape()))

    @property
    def mean(self) -> Array:
        """Zeros, [1, *shape]."""
        return jnp.zeros((1, *self._shape()), jnp.float32)

    def mode(self) -> Array:
        """The mean."""
        return self.mean

    def _shape(self) -> tuple[int, ...]:
        if self.shape is None:
            raise ValueError("sample needs the size of the latent: pass VAE(..., latent_dim=D)")
        return (self.shape,) if isinstance(self.shape, int) else tuple(self.shape)


class Mixture(NamedTuple):
    """A mixture of K diagonal Gaussians, the same one for every example.

    Attributes:
      log_weights: unnormalised, [K].
      component_mean: [K, ...].
      component_log_var: log σ², [K, ...].
    """

    log_weights: Array
    component_mean: Array
    component_log_var: Array

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats of x [B, ...]; a density."""

        def of_component(mean: Array, log_var: Array) -> Array:
            mean, log_var = (jnp.broadcast_to(values, x.shape) for values in (mean[None], log_var[None]))
            return -losses.gaussian_nll(mean, log_var, x)

        of_each = jax.vmap(of_component)(self.component_mean, self.component_log_var)  # [K, B]
        return jax.nn.logsumexp(jax.nn.log_softmax(self.log_weights)[:, None] + of_each, axis=0)

    def sample(self, num: int, *, key: PRNGKey) -> Array:
        """[num, ...]: a component each, then a draw from it, not differentiable in the weights; one key, or `num`."""
        at_least(1, num=num)
        check_key(key)
        split = jax.random.split if key.shape == () else jax.vmap(jax.random.split, out_axes=1)
        component_key, noise_key = split(key)
        gumbel = noise(jax.random.gumbel, component_key, (num, len(self.log_weights)))
        component = jnp.argmax(self.log_weights[None] + gumbel, axis=1)
        mean, log_var = self.component_mean[component], self.component_log_var[component]
        return DiagGaussian(mean, log_var).sample(key=noise_key)

    @property
    def mean(self) -> Array:
        """[1, ...]."""
        weights = jax.nn.softmax(self.log_weights)
        return jnp.tensordot(weights, self.component_mean, axes=1)[None]


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


def rate(posterior: Any, prior: Any, latent: Array, log_posterior: Array) -> Array:
    """KL(posterior || prior) of each example: by dimension and in closed form, where the pair has one.

    Those are two diagonal Gaussians (a mixture of one is one) and two categoricals; for any other pair it is
    log q(z) - log p(z) at the draws.

    Args:
      posterior: q, over [B, ...].
      prior: p, of the same shape, or one for every example.
      latent: z ~ q, [S, B, ...].
      log_posterior: log q(z), [S, B] nats.

    Returns:
      Nats, [1, B, D] in closed form, with D the size of one latent; otherwise [S, B, 1].
    """
    if type(prior) is Mixture and len(prior.log_weights) == 1:
        prior = DiagGaussian(prior.component_mean, prior.component_log_var)
    pair = type(posterior), type(prior)  # exactly these: a class made from one may have another density
    if pair == (DiagGaussian, StandardNormal):
        zero = jnp.zeros((), posterior.mean.dtype)
        return losses.gaussian_kl_terms(posterior.mean, posterior.log_var, zero, zero)[None]
    if pair == (DiagGaussian, DiagGaussian):
        return losses.gaussian_kl_terms(posterior.mean, posterior.log_var, prior.mean, prior.log_var)[None]
    if pair == (Categorical, Categorical):
        return losses.categorical_kl_terms(posterior.logits, prior.logits)[None]
    return (log_posterior - jax.vmap(prior.log_prob)(latent))[..., None]
