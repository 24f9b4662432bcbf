"""The semi-supervised VAE (M2) of Kingma, Mohamed, Rezende and Welling (2014): the class is a latent, seen at times.

p(x) = Σ_y ∫ p(y) p(z|y) p(x|y, z) dz with p(y) = 1/K. A `CVAE` given the class is p(z|y) p(x|y, z) and q(z|x, y); a
classifier is q(y|x), and learns from images without labels too.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvae import losses
from jaxvae.models.cvae import CVAE
from jaxvae.models.vae import Likelihood, apply_to_images, batch_keys, draws, weight_at
from jaxvae.types import Array, Batch, Metrics, PRNGKey, PyTree, Schedule


class SemiSupervisedVAE(nn.Module):
    """q(y|x) beside a conditional VAE.

    Attributes:
      cvae: its condition is a label; its `embed` says how many classes there are (`LabelEmbedding(K)`).
      classifier: images [B, ...] -> logits of q(y|x), [B, K], such as `MLPDecoder((K,))`.

    The CVAE's own methods take its part of the parameters:
    `model.cvae.apply({"params": params["params"]["cvae"]}, label, key=key, method="sample")`.
    """

    cvae: CVAE
    classifier: Callable[[Array], Array]

    @property
    def num_classes(self) -> int:
        """K."""
        return self.cvae.embed.num_classes  # type: ignore[union-attr]

    @property
    def latent_dim(self) -> int | None:
        """D of the CVAE, where it has one."""
        return self.cvae.latent_dim or getattr(self.cvae.encoder, "latent_dim", None)

    def __call__(self, image: Array) -> Likelihood:
        """Reconstruct images as the class that they are taken for; also what `init` runs."""
        return self.cvae(image, self.classify(image).argmax(axis=-1))

    def classify(self, image: Array) -> Array:
        """Logits of q(y|x): images [B, ...] -> [B, K].

        Raises:
          ValueError: the classifier makes another shape.
        """
        logits = self.classifier(image)
        if logits.shape != (len(image), self.num_classes):
            raise ValueError(f"the classifier must make logits ({len(image)}, {self.num_classes}), got {logits.shape}")
        return logits

    def decode(self, latent: Array, label: Array) -> Likelihood:
        """p(x|y, z): latents [B, D] and labels [B] -> a record over images [B, ...]."""
        return self.cvae.decode(latent, label)

    def elbo_terms(self, image: Array, label: Array, *, key: PRNGKey) -> tuple[Array, Array]:
        """Distortion -log p(x|y, z) at one z ~ q(z|x, y), and rate KL(q(z|x, y) || p(z|y)): each [B] nats."""
        posterior = self.cvae.encode(image, label)
        latent = draws(posterior, key=key, num_samples=1)
        prior = self.cvae.latent_prior(label)
        distortion = -self.cvae.log_joint(image, label, latent)[0][0]
        return distortion, losses.gaussian_kl_between(*posterior, *prior)


def semi_supervised_loss(
    model: Any,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    classification_weight: float | Array | Schedule,
    labelled_weight: float | Array | Schedule = 1.0,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""The mean of U over images without labels, and those of w · L and of α · (-log q(y|x)) over images with labels.

    .. math:: L(x, y) = -\log p(x|y, z) + KL(q(z|x, y) || p(z|y)) + \log K, \quad z \sim q(z|x, y)

    .. math:: U(x) = \sum_y q(y|x) \left(L(x, y) + \log q(y|x)\right)

    In expectation U(x) is no smaller than -log p(x), and L(x, y) no smaller than -log p(x, y).

    Args:
      model: a `SemiSupervisedVAE`, or a module with the same `num_classes`, `classify` and `elbo_terms`.
      params: what `model.init` returned.
      model_state: handed through; the model has none.
      batch: "image" [B, ...] floating in [0, 1] and "index" [B] integer, without labels; and "labelled", a batch within
        the batch, with "image", "label" and "index" of M other examples. Without it the images' own "label" serves:
        so `make_eval_step` measures both bounds and the accuracy on a test set.
      key: the step's key; example i draws from `fold_in(key, index[i])`, one noise for all classes: the ELBOs, whose
        differences teach the classifier, then differ by the class alone.
      step: what a schedule is evaluated at.
      classification_weight: α, a number or an optax schedule of the step. Zero or more; a traced value is not checked.
      labelled_weight: w, likewise. At 1, M few images weigh as much as all others, and may be learned by heart; in the
        paper's sum over all examples w is the number of those with labels over that of those without.

    Returns:
      The loss and `(model_state, metrics)`. Means over the images without labels, in nats: "negative_elbo", U, which
      is "distortion" + "rate"; the rate is that of class and latent, KL(q(y|x) || p(y)) included. Means over those
      with labels: "labelled_negative_elbo" L, "classification" -log q(y|x), in nats, and "accuracy". And "loss".

    Raises:
      TypeError: images are not floating, labels not integers, or the key is not typed.
      ValueError: there are no labels, something does not fit the model, or a weight is negative or not finite.

    References:
      Kingma, Mohamed, Rezende and Welling, Semi-Supervised Learning with Deep Generative Models, 2014, equations 6-9.
    """
    labelled: Any = batch.get("labelled", batch)
    if "label" not in labelled:
        raise ValueError(f"batch['labelled'] needs image, label and index, got {', '.join(sorted(labelled))}")
    alpha = weight_at("classification_weight", classification_weight, step)
    weight = weight_at("labelled_weight", labelled_weight, step)
    log_num_classes = math.log(model.num_classes)

    image, keys = batch["image"], batch_keys(key, batch)

    @jax.vmap  # one batch of B·K; what does not depend on the class is computed once
    def as_class(label: Array) -> tuple[Array, Array]:
        return apply_to_images(model, params, image, jnp.full(len(image), label), key=keys, method="elbo_terms")

    distortion, rate = (term.T for term in as_class(jnp.arange(model.num_classes)))
    log_posterior = jax.nn.log_softmax(model.apply(params, image, method="classify"))
    posterior = jnp.exp(log_posterior)
    unlabelled = {
        "distortion": (posterior * distortion).sum(axis=1),
        "rate": (posterior * (rate + log_posterior + log_num_classes)).sum(axis=1),
    }

    image, label, keys = labelled["image"], labelled["label"], batch_keys(key, labelled)
    distortion, rate = apply_to_images(model, params, image, label, key=keys, method="elbo_terms")
    logits = model.apply(params, image, method="classify")
    metrics = unlabelled | {
        "labelled_negative_elbo": distortion + rate + log_num_classes,
        "classification": losses.categorical_nll(logits, label),
        "accuracy": (logits.argmax(axis=1) == label).astype(logits.dtype),
    }
    metrics = {name: values.mean() for name, values in metrics.items()}
    metrics["negative_elbo"] = metrics["distortion"] + metrics["rate"]
    supervised = weight * metrics["labelled_negative_elbo"] + alpha * metrics["classification"]
    metrics["loss"] = metrics["negative_elbo"] + supervised
    return metrics["loss"], (model_state, metrics)
