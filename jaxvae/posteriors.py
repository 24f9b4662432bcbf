"""Posteriors over latents: what an encoder's output stands for, from a diagonal Gaussian on.

A posterior is called with the arrays that the encoder returned and gives a record with `log_prob`, `sample` and `mean`:
`DiagGaussian` itself, or a module here, whose parameters are trained with the model. The modules take (mean, log_var)
and a context of x, which the encoder makes with `context_dim=C`; without it what they add is the same for every x.
"""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvae._checks import at_least
from jaxvae.distributions import (
    DiagGaussian,
    GaussianMixtures,
    OneHotCategorical,
    RelaxedOneHot,
    StraightThroughOneHot,
)
from jaxvae.flows import FlowPosterior, FullCovariance
from jaxvae.flows._parameters import amortized, check_input
from jaxvae.types import Array, Schedule

__all__ = ["CommittedGaussian", "DiagGaussian", "FlowPosterior", "FullCovariance", "GumbelSoftmax", "MixturePosterior"]


class MixturePosterior(nn.Module):
    """q(z|x) as a mixture of K diagonal Gaussians around the encoder's.

    Their means lie at first within a standard deviation of the encoder's, their variances are its own and their weights
    equal; how far they move, a linear map of the context says. Draws are differentiable in all of it.

    Attributes:
      num_components: K.

    References:
      Morningstar et al., Automatic Differentiation Variational Inference with Mixtures, 2021, for mixtures;
      `GaussianMixtures.sample` for the gradient.
    """

    num_components: int

    @nn.compact
    def __call__(self, mean: Array, log_var: Array, *context: Array) -> GaussianMixtures:
        """The record, of means and log-variances [B, D]."""
        at_least(1, num_components=self.num_components)
        check_input(mean, context)
        count, dim = self.num_components, mean.shape[1]
        shape = (-1, count, dim)
        offset = amortized(self, "offset", count * dim, context, nn.initializers.normal(0.5)).reshape(shape)
        widened = amortized(self, "log_var", count * dim, context, nn.initializers.zeros).reshape(shape)
        logits = amortized(self, "logits", count, context, nn.initializers.zeros)
        return GaussianMixtures(
            jnp.broadcast_to(logits, (len(mean), count)),
            mean[:, None] + jnp.exp(0.5 * log_var)[:, None] * offset,
            log_var[:, None] + widened,
        )


@dataclass(frozen=True)
class CommittedGaussian:
    """A diagonal Gaussian that cannot collapse: whatever the encoder says, each latent costs at least δ nats.

    Its log-variances are softly bounded from above, so that KL(q || N(0, 1)) >= δ for every latent and every x. The
    encoder must then make something of what is paid for anyway. For the prior N(0, I).

    Attributes:
      delta: δ, above 0, in nats for each latent.

    Raises (when it is made):
      ValueError: δ is not a positive number.

    References:
      Razavi et al., Preventing Posterior Collapse with delta-VAEs, 2019, section 2, for independent latents.
    """

    delta: float

    def __post_init__(self) -> None:
        """Check δ."""
        if not 0 < self.delta < math.inf:
            raise ValueError(f"delta must be a positive number of nats, got {self.delta}")

    def __call__(self, mean: Array, log_var: Array) -> DiagGaussian:
        """The record, of means and log-variances [B, D]."""
        highest = self.highest
        return DiagGaussian(mean, highest - jax.nn.softplus(highest - log_var))

    @property
    def highest(self) -> float:
        """The largest log-variance v: where (exp(v) - 1 - v) / 2 = δ, below 0."""
        low, high = -2 * self.delta - 1, 0.0  # the rate exceeds δ at the first, and is 0 at the second
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if math.expm1(middle) - middle > 2 * self.delta else (low, middle)
        return low


class GumbelSoftmax(nn.Module):
    """q(z|x) as N categorical variables over K categories: relaxed draws in training, one-hot ones in evaluation.

    The encoder returns (logits,), [B, N, K], as `jaxvae.networks.CategoricalEncoder` does; the decoder is given
    [B, N, K]. The rate is the exact categorical KL in both. In training the loss is that of relaxed draws, which bounds
    nothing: report what evaluation says. For few categories `jaxvae.objectives.enumerated_vae_loss` is exact.

    Attributes:
      temperature: above 0; or step -> temperature, counted by the module itself in the collection "annealing".
      straight_through: whether draws in training are one-hot, with the gradient of the relaxed ones.

    References:
      Jang, Gu and Poole, Categorical Reparameterization with Gumbel-Softmax, 2017; Maddison, Mnih and Teh, The Concrete
      Distribution, 2017.
    """

    temperature: float | Schedule = 0.67
    straight_through: bool = False

    @nn.compact
    def __call__(self, logits: Array, *, train: bool) -> OneHotCategorical | RelaxedOneHot:
        """The record.

        Raises:
          ValueError: logits that are not [B, N, K], or a temperature that is not a positive number.
        """
        if logits.ndim != 3 or logits.shape[-1] < 2:
            raise ValueError(f"logits must be [B, N, K] of at least two categories, got {logits.shape}")
        temperature: Array | float
        if callable(self.temperature):
            steps = self.variable("annealing", "steps", lambda: jnp.zeros((), jnp.int32))
            temperature = self.temperature(steps.value)
            if train and not self.is_initializing():
                steps.value = steps.value + 1
        else:
            temperature = self.temperature
            if not 0 < temperature < float("inf"):
                raise ValueError(f"temperature must be a positive number, got {temperature}")
        if not train:
            return OneHotCategorical(logits)
        return (StraightThroughOneHot if self.straight_through else RelaxedOneHot)(logits, temperature)
