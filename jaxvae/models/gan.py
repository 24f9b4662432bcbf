"""The generative adversarial network (Goodfellow et al., Generative Adversarial Nets, 2014)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvae._checks import at_least, check_x
from jaxvae.distributions import StandardNormal
from jaxvae.keys import check_key
from jaxvae.models._parts import adopt_parts
from jaxvae.models.vae import sample_prior
from jaxvae.networks._run import run
from jaxvae.types import Array, PRNGKey

OF_THE_NOISE = 2**32 - 1  # beyond what is drawn for a latent


class GAN(nn.Module):
    """A generator of x from latents of a prior, and a discriminator that tells what it makes from data.

    It says no probability of x: `objectives.gan_loss` trains it, and `training.adversarial_optimizer` moves the two
    parts, each by its own optimiser.

    Attributes:
      generator: latents [B, D] -> [B, ...], such as `ConvDecoder`; with `embed`, of latents and a condition, such as
        `Conditioned(ConvDecoder(...))`. One with a parameter `key`, such as `networks.StyleGenerator`, gets the key of
        its noise, with one key or with one for each example.
      discriminator: x [B, ...] -> logits [B], or [B, ...] of patches, such as `networks.ConvDiscriminator`; with
        `embed`, of x and labels. It keeps parameters alone: no batch statistics.
      latent_dim: D.
      prior: of `jaxvae.priors`, or yours; only its `sample` is asked for.
      output: the generator's output -> x, such as `nn.sigmoid` for x in [0, 1]; as it is unless given.
      embed: labels [B] -> the generator's condition [B, E], such as `LabelEmbedding`; None for a model without.

    Networks are as in `VAE`. Call a method through Flax: `model.apply(params, 16, key=key, method="sample")`.

    Raises (when it is made):
      TypeError: a part hides JAX arrays that no training would reach.
      ValueError: `latent_dim` is below 1.
    """

    generator: Callable[..., Array]
    discriminator: Callable[..., Array]
    latent_dim: int
    prior: Callable[..., Any] = StandardNormal()
    output: Callable[[Array], Array] | None = None
    embed: Callable[[Array], Array] | None = None

    def __post_init__(self) -> None:
        """Take the parts, or refuse them."""
        at_least(1, latent_dim=self.latent_dim)
        adopt_parts(self)
        super().__post_init__()

    def __call__(self, x: Array, *label: Array) -> Array:
        """The discriminator's logits of x; also what `init` runs."""
        if self.is_initializing():
            self.latent_prior()
            self.generate(jnp.zeros((len(x), self.latent_dim)), *label)
        return self.discriminate(x, *label)

    def latent_prior(self) -> Any:
        """The prior's record.

        Raises:
          TypeError: the prior returned nothing that can be drawn from.
        """
        record = run(self.prior, train=self.has_rng("dropout"))
        if isinstance(record, StandardNormal) and record.shape is None:
            return StandardNormal(self.latent_dim)
        if not hasattr(record, "sample"):
            raise TypeError(f"the prior must return a record with sample, got {type(record).__name__}")
        return record

    def generate(self, latent: Array, *label: Array, key: PRNGKey | None = None) -> Array:
        """The generator's x [B, ...] at latents [B, D], and labels [B] where it takes them; its noise is the key's."""
        condition = self._embedded(len(latent), label)
        x = run(self.generator, latent, *condition, train=self.has_rng("dropout"), key=key)
        return x if self.output is None else self.output(x)

    def sample(self, num: int, *, key: PRNGKey, label: Array | None = None) -> Array:
        """The generator's x [num, ...] at latents from the prior, with one key or with `num`.

        Raises:
          TypeError: the key is not typed, or the labels are not integers.
          ValueError: `num` is below 1, there are not `num` labels, or labels where the model takes none.
        """
        check_key(key)
        at_least(1, num=num)
        return self._drawn(num, () if label is None else (label,), key)

    def simulate(self, key: PRNGKey, *label: Array) -> Array:
        """`sample` of one x for each of the keys [B]."""
        return self._drawn(len(key), label, key)

    def _drawn(self, num: int, label: tuple[Array, ...], key: PRNGKey) -> Array:
        latent = sample_prior(self.latent_prior(), num, key=key)
        own = jax.random.fold_in if key.shape == () else jax.vmap(jax.random.fold_in, (0, None))
        return self.generate(latent, *label, key=own(key, OF_THE_NOISE))

    def discriminate(self, x: Array, *label: Array) -> Array:
        """The discriminator's logits of x [B, ...]: [B], or [B, ...] of patches.

        Raises:
          TypeError: x is not floating.
          ValueError: x is empty, the labels do not fit the model, or there is not a logit for each example.
        """
        check_x(x)
        self._check_labels(len(x), label)
        logits: Array = run(self.discriminator, x, *label, train=self.has_rng("dropout"))
        if logits.shape[:1] != x.shape[:1]:
            raise ValueError(f"the discriminator must return logits ({len(x)}, ...), got {logits.shape}")
        return logits

    def _embedded(self, count: int, label: tuple[Array, ...]) -> tuple[Array, ...]:
        self._check_labels(count, label)
        return () if self.embed is None else (run(self.embed, *label, train=self.has_rng("dropout")),)

    def _check_labels(self, count: int, label: tuple[Array, ...]) -> None:
        if self.embed is None and label:
            raise ValueError("the model takes no labels: make it with embed=LabelEmbedding(num_classes)")
        if self.embed is not None and [jnp.shape(each) for each in label] != [(count,)]:
            got = ", ".join(str(jnp.shape(each)) for each in label) or "none"
            raise ValueError(f"the model takes labels ({count},), got {got}")
