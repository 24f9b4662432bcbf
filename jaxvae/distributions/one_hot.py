"""Categorical variables as one-hot vectors: latents that a decoder takes as they are."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxvae._checks import at_least, largest
from jaxvae.keys import noise
from jaxvae.losses._arrays import floating
from jaxvae.types import Array, PRNGKey


class OneHotCategorical(NamedTuple):
    """N independent categorical variables over K categories, as one-hot vectors, [B, N, K].

    Attributes:
      logits: [B, N, K].
    """

    logits: Array

    def log_prob(self, x: Array) -> Array:
        """`[B]` nats of one-hot x, [B, N, K]; between one-hot vectors it is linear, and no density."""
        log_probs = jax.nn.log_softmax(floating(self.logits, "logits"))
        chosen = jnp.where(x != 0, log_probs, 0)  # 0 log 0 = 0, where a logit is -inf
        return (x * chosen).sum(axis=(1, 2))

    def sample(self, *, key: PRNGKey) -> Array:
        """One-hot vectors, [B, N, K], not differentiable; one key, or one for each example."""
        gumbel = noise(jax.random.gumbel, key, self.logits.shape)
        return one_hot_of_largest(self.logits + gumbel)

    def mode(self) -> Array:
        """The most probable one-hot vectors."""
        return one_hot_of_largest(self.logits)

    @property
    def mean(self) -> Array:
        """The probabilities, [B, N, K]."""
        return jax.nn.softmax(self.logits)


class SharedOneHot(NamedTuple):
    """The same N categorical variables for every example.

    Attributes:
      logits: [1, N, K].
    """

    logits: Array

    def log_prob(self, x: Array) -> Array:
        """As `OneHotCategorical`'s."""
        return OneHotCategorical(self.logits).log_prob(x)

    def sample(self, num: int, *, key: PRNGKey) -> Array:
        """[num, N, K]; one key, or `num`."""
        at_least(1, num=num)
        return OneHotCategorical(jnp.broadcast_to(self.logits, (num, *self.logits.shape[1:]))).sample(key=key)

    @property
    def mean(self) -> Array:
        """[1, N, K]."""
        return jax.nn.softmax(self.logits)


class RelaxedOneHot(NamedTuple):
    """Draws of a `OneHotCategorical` made smooth: softmax((logits + Gumbel noise) / temperature).

    Its `log_prob` is the categorical one, and its rate the exact categorical KL; but what a decoder says of a smooth
    draw bounds nothing. It is for training, and the ELBO to report is that of the `OneHotCategorical`.

    Attributes:
      logits: [B, N, K].
      temperature: above 0; near 0 draws are one-hot, and their gradients wild.

    References:
      Jang, Gu and Poole, Categorical Reparameterization with Gumbel-Softmax, 2017; Maddison, Mnih and Teh, The Concrete
      Distribution, 2017.
    """

    logits: Array
    temperature: Array | float

    def log_prob(self, x: Array) -> Array:
        """As `OneHotCategorical`'s."""
        return OneHotCategorical(self.logits).log_prob(x)

    def sample(self, *, key: PRNGKey) -> Array:
        """[B, N, K], positive and of sum 1; one key, or one for each example."""
        gumbel = noise(jax.random.gumbel, key, self.logits.shape)
        return jax.nn.softmax((self.logits + gumbel) / self.temperature)

    @property
    def mean(self) -> Array:
        """The probabilities, [B, N, K]."""
        return jax.nn.softmax(self.logits)


class StraightThroughOneHot(RelaxedOneHot):
    """One-hot draws with the gradient of the smooth ones."""

    __slots__ = ()

    def sample(self, *, key: PRNGKey) -> Array:
        """One-hot vectors, [B, N, K]."""
        smooth = super().sample(key=key)
        return jax.lax.stop_gradient(one_hot_of_largest(smooth) - smooth) + smooth


def one_hot_of_largest(scores: Array) -> Array:
    """Scores [..., K] as one-hot vectors; NaN where a score is."""
    best = largest(scores)
    one_hot = jax.nn.one_hot(best, scores.shape[-1], dtype=scores.dtype)
    return jnp.where((best == scores.shape[-1])[..., None], jnp.nan, one_hot)
