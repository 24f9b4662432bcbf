"""The objective of the semi-supervised VAE: two bounds and a classifier's loss."""

import math
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae import losses
from jaxvae._checks import integers, largest, weight_at
from jaxvae.models.semi_supervised import SemiSupervisedVAE
from jaxvae.objectives._apply import apply, batch_keys, networks_key, refuse_missing
from jaxvae.objectives.elbo import total_rate
from jaxvae.types import Array, Batch, Metrics, PRNGKey, PyTree, Schedule


def semi_supervised_loss(
    model: SemiSupervisedVAE,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    classification_weight: float | Array | Schedule,
    labelled_weight: float | Array | Schedule = 1.0,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""The mean of U over examples without labels, and of w · L and of α · (-log q(y|x)) over those with labels.

    .. math:: L(x, y) = -\log p(x|y, z) + KL(q(z|x, y) || p(z|y)) + \log K, \quad z \sim q(z|x, y)

    .. math:: U(x) = \sum_y q(y|x) \left(L(x, y) + \log q(y|x)\right)

    In expectation U(x) is no smaller than -log p(x), and L(x, y) no smaller than -log p(x, y).

    Args:
      model: a `SemiSupervisedVAE`, or a module with the same `num_classes`, `classify` and `class_terms`.
      params: what `model.init` returned.
      model_state: collections that the networks keep.
      batch: "x" [B, ...] floating and "index" [B] integer, without labels; and "labelled", a batch within the batch,
        with "x", "label" and "index" of M other examples. Without it the examples' own "label" serves: so
        `make_eval_step` measures both bounds and the accuracy on a test set.
      key: the loss's key; example i draws from `fold_in(key, index[i])`, one noise for all classes: the ELBOs, whose
        differences teach the classifier, then differ by the class alone.
      step: what a schedule is evaluated at.
      classification_weight: α, a number or an optax schedule of the step. Zero or more; a traced value is not checked.
      labelled_weight: w, likewise. At 1, M few examples weigh as much as all others, and may be learned by heart; in
        the paper's sum over all examples w is the number of those with labels over that of those without.

    Returns:
      The loss and `(model_state, metrics)`. Means over the examples without labels, in nats: "negative_elbo", U, which
      is "distortion" + "rate"; the rate is that of class and latent, KL(q(y|x) || p(y)) included. Means over those
      with labels: "labelled_negative_elbo" L, "classification" -log q(y|x), in nats, and "accuracy". And "loss".

    Raises:
      TypeError: x is not floating, labels not integers, or the key is not typed.
      ValueError: there are no labels, something does not fit the model, or a weight is negative or not finite.

    References:
      Kingma, Mohamed, Rezende and Welling, Semi-Supervised Learning with Deep Generative Models, 2014, equations 6-9.
    """
    labelled: Any = batch.get("labelled", batch)
    if "label" not in labelled:
        raise ValueError(f"batch['labelled'] needs x, label and index, got {', '.join(sorted(labelled))}")
    for each in (batch, labelled):
        refuse_missing(each, "semi_supervised_loss")
    alpha = weight_at("classification_weight", classification_weight, step)
    weight = weight_at("labelled_weight", labelled_weight, step)
    log_num_classes = math.log(model.num_classes)

    x, keys = batch["x"], batch_keys(key, batch)
    run = partial(apply, model, params, model_state, networks_key=networks_key(key, batch))

    @jax.vmap  # one batch of B·K; what does not depend on the class is computed once
    def as_class(label: Array) -> tuple[Array, Array]:
        terms, state = run(x, jnp.full(len(x), label), key=keys, num_samples=1, method="class_terms")
        if state is not model_state:
            raise ValueError(
                "the CVAE sees each example once for every class, so its networks must not keep batch statistics; the "
                "classifier may"
            )
        return -terms.log_likelihood[0], total_rate(terms)

    distortion, rate = (term.T for term in as_class(jnp.arange(model.num_classes)))
    logits, new_state = run(x, method="classify")
    posterior = jax.nn.softmax(logits)
    unlabelled = {
        "distortion": (posterior * distortion).sum(axis=1),
        "rate": (posterior * rate).sum(axis=1) + losses.categorical_kl(logits, jnp.zeros_like(logits)),
    }

    x, label, keys = labelled["x"], integers(labelled["label"], "labels", "(batch,)"), batch_keys(key, labelled)
    terms, _ = run(x, label, key=keys, num_samples=1, method="class_terms")
    logits, _ = run(x, method="classify")
    metrics = unlabelled | {
        "labelled_negative_elbo": total_rate(terms) - terms.log_likelihood[0] + log_num_classes,
        "classification": losses.categorical_nll(logits, label),
        "accuracy": (largest(logits) == label).astype(logits.dtype),
    }
    metrics = {name: values.mean() for name, values in metrics.items()}
    metrics["negative_elbo"] = metrics["distortion"] + metrics["rate"]
    supervised = weight * metrics["labelled_negative_elbo"] + alpha * metrics["classification"]
    metrics["loss"] = metrics["negative_elbo"] + supervised
    return metrics["loss"], (new_state, metrics)
