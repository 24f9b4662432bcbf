"""From picture to picture: a network that translates, and a discriminator that judges pairs (Isola et al., 2017)."""

from collections.abc import Callable

import jax.numpy as jnp
from flax import linen as nn

from jaxvae._checks import check_x
from jaxvae.models._parts import adopt_parts
from jaxvae.networks._run import run
from jaxvae.types import Array


class Translator(nn.Module):
    """A picture for each condition, such as a photograph for each drawing; and how real a pair of them looks.

    One condition gives one picture: the published networks draw by dropout alone, which a network with `dropout` here
    does in training. `objectives.translation_loss` trains it, with `training.adversarial_optimizer`.

    Attributes:
      generator: conditions [B, ...] -> [B, H, W, C], such as `networks.UNet(C, embedding=None)`.
      discriminator: condition and picture, one after the other on the last axis, -> logits [B], or [B, ...] of patches,
        such as `networks.PatchDiscriminator`. It keeps parameters alone: no batch statistics.
      output: the generator's output -> x, such as `nn.sigmoid` for x in [0, 1]; as it is unless given.

    Networks are as in `VAE`. Call a method through Flax: `model.apply(params, condition, method="translate")`.

    Raises (when it is made):
      TypeError: a part hides JAX arrays that no training would reach.

    References:
      Isola, Zhu, Zhou and Efros, Image-to-Image Translation with Conditional Adversarial Networks, 2017.
    """

    generator: Callable[..., Array]
    discriminator: Callable[..., Array]
    output: Callable[[Array], Array] | None = None

    def __post_init__(self) -> None:
        """Take the parts, or refuse them."""
        adopt_parts(self)
        super().__post_init__()

    def __call__(self, x: Array, condition: Array) -> Array:
        """The discriminator's logits of the pair; also what `init` runs."""
        if self.is_initializing():
            self.translate(condition)
        return self.discriminate(x, condition)

    def translate(self, condition: Array) -> Array:
        """The picture [B, ...] of each condition [B, ...].

        Raises:
          TypeError: the condition is not floating.
          ValueError: it is empty.
        """
        check_x(condition)
        x = run(self.generator, condition, train=self.has_rng("dropout"))
        return x if self.output is None else self.output(x)

    def discriminate(self, x: Array, condition: Array) -> Array:
        """The discriminator's logits of pairs: [B], or [B, ...] of patches.

        Raises:
          TypeError: x is not floating.
          ValueError: x is empty, the condition is not of its size, or there is not a logit for each pair.
        """
        check_x(x)
        if condition.shape[:-1] != x.shape[:-1]:
            raise ValueError(
                f"a pair must agree in all axes but the last, got x {x.shape}, condition {condition.shape}"
            )
        pairs = jnp.concatenate([condition.astype(x.dtype), x], axis=-1)
        logits: Array = run(self.discriminator, pairs, train=self.has_rng("dropout"))
        if logits.shape[:1] != x.shape[:1]:
            raise ValueError(f"the discriminator must return logits ({len(x)}, ...), got {logits.shape}")
        return logits
