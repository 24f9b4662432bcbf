"""The semi-supervised VAE (M2) of Kingma, Mohamed, Rezende and Welling (2014): the class is a latent, seen at times.

p(x) = Σ_y ∫ p(y) p(z|y) p(x|y, z) dz with p(y) = 1/K. A `CVAE` given the class is p(z|y) p(x|y, z) and q(z|x, y); a
classifier is q(y|x), and learns from examples without labels too.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvae import losses
from jaxvae._checks import largest
from jaxvae.models._parts import adopt_parts
from jaxvae.models.cvae import CVAE
from jaxvae.networks._run import run
from jaxvae.types import Array, Likelihood, PRNGKey, Terms


class SemiSupervisedVAE(nn.Module):
    """q(y|x) beside a conditional VAE.

    Attributes:
      cvae: its condition is a label; its `embed` says how many classes there are (`LabelEmbedding(K)`).
      classifier: x [B, ...] -> logits of q(y|x), [B, K], such as `MLPDecoder((K,))`.

    The CVAE's own methods take its part of the parameters:
    `model.cvae.apply({"params": params["params"]["cvae"]}, label, key=key, method="sample")`.

    Raises (when it is made):
      TypeError: the CVAE's `embed` does not say how many classes there are.
    """

    cvae: CVAE
    classifier: Callable[..., Array]

    def __post_init__(self) -> None:
        """Take the parts, or refuse them."""
        if not hasattr(getattr(self.cvae, "embed", None), "num_classes"):
            raise TypeError("the number of classes is that of cvae.embed: make it CVAE(..., embed=LabelEmbedding(K))")
        adopt_parts(self)
        super().__post_init__()

    @property
    def num_classes(self) -> int:
        """K."""
        return self.cvae.embed.num_classes  # type: ignore[union-attr]

    @property
    def latent_dim(self) -> int | None:
        """D of the CVAE, where it has one."""
        return self.cvae.latent_dim or getattr(self.cvae.encoder, "latent_dim", None)

    def __call__(self, x: Array) -> Likelihood:
        """Reconstruct x as the class that it is taken for; also what `init` runs."""
        return self.cvae(x, largest(self.classify(x)))

    def classify(self, x: Array) -> Array:
        """Logits of q(y|x): x [B, ...] -> [B, K].

        Raises:
          ValueError: the classifier makes another shape.
        """
        logits = run(self.classifier, x, train=self.has_rng("dropout"))
        if logits.shape != (len(x), self.num_classes):
            raise ValueError(f"the classifier must make logits ({len(x)}, {self.num_classes}), got {logits.shape}")
        return logits

    def decode(self, latent: Array, label: Array) -> Likelihood:
        """p(x|y, z): latents [B, D] and labels [B] -> a record over x [B, ...]."""
        return self.cvae.decode(latent, label)

    def class_terms(self, x: Array, label: Array, *, key: PRNGKey, num_samples: int) -> Terms:
        """The terms of x [B, ...] as of the classes [B]: those of the CVAE, without p(y)."""
        return self.cvae.terms(x, label, key=key, num_samples=num_samples)

    def terms(self, x: Array, *, key: PRNGKey, num_samples: int) -> Terms:
        """The terms of x [B, ...] with the class summed out.

        The rates are KL(q(y|x) || p(y)), "y", and the mean over q(y|x) of the CVAE's, "z". What a sample weighs in an
        importance-weighted bound is the sum over all classes of p(x, y, z) / q(z|x, y): its logarithm is the sum of the
        two terms. The log-likelihood alone is its mean over q(y|x).
        """
        logits = self.classify(x)  # [B, K]
        num_classes = self.num_classes
        labels = jnp.repeat(jnp.arange(num_classes), len(x))
        keys = key if key.shape == () else jnp.tile(key, num_classes)  # one noise for all classes
        repeated = jnp.tile(x, (num_classes, *[1] * (x.ndim - 1)))
        of_each = self.class_terms(repeated, labels, key=keys, num_samples=num_samples)

        def by_class(values: Array) -> Array:  # [S, K·B, ...] -> [S, B, K, ...]
            return jnp.moveaxis(values.reshape(len(values), num_classes, len(x), *values.shape[2:]), 1, 2)

        log_likelihood, log_ratio = by_class(of_each.log_likelihood), by_class(of_each.log_ratio)
        log_weight = jax.nn.logsumexp(log_likelihood + log_ratio, axis=2) - math.log(num_classes)
        q = jax.nn.softmax(logits)[None]
        expected = (q * log_likelihood).sum(axis=2)
        rates = {name: (q[..., None] * by_class(rate)).sum(axis=2) for name, rate in of_each.rates.items()}
        rates["y"] = losses.categorical_kl_terms(logits, jnp.zeros_like(logits))[None]
        return Terms(expected, log_weight - expected, rates)
