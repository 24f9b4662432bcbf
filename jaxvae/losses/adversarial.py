"""What a discriminator and a generator pay, from logits, and what a critic's slope costs.

Logits are [B], or [B, ...] of a discriminator that judges patches: each example then pays the mean over its own. All
losses are [B], one number for each example; those of probabilities are nats, the others on the scale of the logits.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.losses._arrays import flat_examples, floating, softplus

LARGEST_WEIGHT = 1e4


def real_nll(logits: Array) -> Array:
    """-log D, with D the sigmoid of the logits: what real examples cost a discriminator, [B] nats."""
    return _each(softplus(-floating(logits, "logits")))


def fake_nll(logits: Array) -> Array:
    """-log(1 - D), with D the sigmoid of the logits: what fakes cost a discriminator, [B] nats."""
    return _each(softplus(floating(logits, "logits")))


def _negative_fake_nll(logits: Array) -> Array:
    return -fake_nll(logits)


def _below_one(logits: Array) -> Array:
    return _each(jnp.maximum(1 - floating(logits, "logits"), 0))


def _above_minus_one(logits: Array) -> Array:
    return _each(jnp.maximum(1 + floating(logits, "logits"), 0))


def _low(logits: Array) -> Array:
    return _each(-floating(logits, "logits"))


def _high(logits: Array) -> Array:
    return _each(floating(logits, "logits"))


class AdversarialLoss(NamedTuple):
    """An adversarial game: three functions of logits, each [B, ...] -> [B].

    Attributes:
      real: what the discriminator pays for real examples.
      fake: what it pays for fakes.
      generator: what the generator pays for its fakes.
    """

    real: Callable[[Array], Array]
    fake: Callable[[Array], Array]
    generator: Callable[[Array], Array]

    def discriminator(self, real: Array, fake: Array) -> Array:
        """What the discriminator pays for the logits of real examples and of as many fakes, [B]."""
        return self.real(real) + self.fake(fake)


# Goodfellow et al., Generative Adversarial Nets, 2014: the game. At the best discriminator, D = p / (p + q),
# log 4 - 2 JS(p, q) is what it pays.
MINIMAX = AdversarialLoss(real_nll, fake_nll, _negative_fake_nll)
# The same paper: the form in which the generator's gradient does not vanish while the discriminator is sure.
NON_SATURATING = AdversarialLoss(real_nll, fake_nll, real_nll)
# Lim and Ye, Geometric GAN, 2017.
HINGE = AdversarialLoss(_below_one, _above_minus_one, _low)
# Arjovsky, Chintala and Bottou, Wasserstein GAN, 2017: where the critic's slope is at most 1, what it pays is at least
# minus the distance W₁ between data and fakes, and that at the best critic.
WASSERSTEIN = AdversarialLoss(_low, _high, _low)


def gradient_penalty(critic: Callable[[Array], Array], real: Array, fake: Array, *, key: Array) -> Array:
    r"""How far the slope of a critic is from 1 between real examples and fakes.

    .. math:: (\| \nabla_{\hat x} D(\hat x) \|_2 - 1)^2, \quad \hat x = \epsilon x + (1 - \epsilon) \tilde x, \quad
              \epsilon \sim U(0, 1)

    One ε for each example, the norm over all of the example. Where a slope is 0, so is its gradient, not NaN.

    Args:
      critic: examples [B, ...] -> logits [B, ...], each of its own example alone: no batch statistics.
      real: [B, ...].
      fake: [B, ...], of the same shape.
      key: a typed key, of shape () or [B] (one for each example).

    Returns:
      [B], to be weighted by λ, usually 10.

    Raises:
      TypeError: an argument is not floating, or the key is not typed.
      ValueError: the shapes differ, the key's does not fit, or the critic has not a logit for each example.

    References:
      Gulrajani et al., Improved Training of Wasserstein GANs, 2017.
    """
    real, fake = floating(real, "real"), floating(fake, "fake")
    if real.shape != fake.shape:
        raise ValueError(f"real and fake must have one shape, got {real.shape} and {fake.shape}")
    share = _uniform(key, len(real)).reshape(-1, *[1] * (real.ndim - 1))
    square = _squared_slope(critic, share * real + (1 - share) * fake)
    steep = square > 0
    norm = jnp.where(steep, jnp.sqrt(jnp.where(steep, square, 1)), 0)  # the root's gradient at 0 is infinite
    return jnp.square(norm - 1)


def r1_penalty(critic: Callable[[Array], Array], real: Array) -> Array:
    """Half the squared slope of a discriminator at real examples, ½ ‖∇D(x)‖², [B], to be weighted by γ.

    Args:
      critic: examples [B, ...] -> logits [B, ...], each of its own example alone: no batch statistics.
      real: [B, ...].

    Raises:
      TypeError: the examples are not floating.
      ValueError: the critic has not a logit for each example.

    References:
      Mescheder, Geiger and Nowozin, Which Training Methods for GANs do actually Converge?, 2018.
    """
    return 0.5 * _squared_slope(critic, floating(real, "real"))


def adaptive_weight(reconstruction: Array, adversarial: Array) -> Array:
    """The weight λ of an adversarial loss that makes its gradient as large as the reconstruction's; no gradient.

    λ = clip(‖reconstruction‖ / (‖adversarial‖ + 1e-4), 0, 1e4).

    Args:
      reconstruction: the gradient of the reconstruction's loss for the decoder's last layer.
      adversarial: that of the generator's loss, of the same shape.

    References:
      Esser, Rombach and Ommer, Taming Transformers for High-Resolution Image Synthesis, 2021, equation 7.
    """
    ratio = _norm(reconstruction) / (_norm(adversarial) + 1e-4)
    return jax.lax.stop_gradient(jnp.clip(ratio, 0, LARGEST_WEIGHT))


def _norm(gradient: Array) -> Array:
    return jnp.sqrt(jnp.square(floating(gradient, "a gradient")).sum())


def _each(values: Array) -> Array:
    """[B, ...] -> [B], the mean over the example's own."""
    if not values.ndim:
        raise ValueError("logits must have a batch axis, [B, ...], got a scalar")
    return values if values.ndim == 1 else flat_examples(values).mean(axis=1)


def _squared_slope(critic: Callable[[Array], Array], x: Array) -> Array:
    def total(x: Array) -> Array:
        logits = _high(critic(x))
        if logits.shape != x.shape[:1]:
            raise ValueError(f"the critic must return logits ({len(x)}, ...), got one for each of {len(logits)}")
        return logits.sum()

    return flat_examples(jnp.square(jax.grad(total)(x))).sum(axis=1)


def _uniform(key: Array, count: int) -> Array:
    if not (hasattr(key, "dtype") and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)):
        raise TypeError(f"key must come from jax.random.key, got {getattr(key, 'dtype', key)!r}")
    if key.shape == ():
        return jax.random.uniform(key, (count,))
    if key.shape != (count,):
        raise ValueError(f"key must have shape () or ({count},) (one for each example), got {key.shape}")
    return jax.vmap(jax.random.uniform)(key)
