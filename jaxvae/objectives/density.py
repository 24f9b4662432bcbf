"""Objectives of models with an exact or no density: maximum likelihood and reconstruction."""

import inspect
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae._whole_batch import in_evaluation
from jaxvae.keys import noise
from jaxvae.models._parts import check_nats
from jaxvae.networks._run import mode_of
from jaxvae.objectives._apply import apply, batch_keys, networks_key, observed_of, refuse_missing
from jaxvae.types import Array, Batch, CodePrior, LatentModel, Metrics, PRNGKey, PyTree


def code_prior_loss(
    model: CodePrior,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    field: str = "code",
    condition_dropout: float = 0.0,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""The mean negative log-likelihood, in nats per example: no bound, the model's own.

    .. math:: -\frac1B \sum_b \sum_n \log p(x_{bn} | x_{b,<n}, y_b)

    Args:
      model: a `PixelCNN`, a `TransformerPrior`, or another `jaxvae.types.CodePrior` that is a Flax module. One with an
        attribute `num_classes` other than None is given the labels, one with a `prefix` other than None the prefixes.
      params: what `model.init` returned.
      model_state: collections that the networks keep; these two have none.
      batch: `field` [B, *shape], as the model takes values; "label" [B] integer where it has classes, "prefix" [B, L]
        integer where it has a prefix; "mask" [B, *positions] bool, where positions may be missing; "index" [B] for
        `condition_dropout`.
      key: for networks with dropout, and for `condition_dropout`; the model draws nothing else.
      step: not used.
      field: "code" for index maps, "x" for the data itself.
      condition_dropout: the probability that an example is told in training that there is neither label nor prefix, in
        [0, 1): what `guidance` of `TransformerPrior.sample` needs. Never in evaluation.

    Returns:
      The loss and `(model_state, metrics)`, means over the batch: "loss" and "nll" in nats per example,
      "nats_per_value" in nats per value; with a mask also "values" per example, and "nats_per_value" is the mean over
      the examples of the mean over an example's values.

    Raises:
      TypeError: the labels or prefixes are not integers, or the model takes no mask and the batch has one.
      ValueError: there is no such field, values, labels, prefixes or mask do not fit the model, or the probability is
        out of range or not zero for a model without a condition.

    References:
      van den Oord et al., Conditional Image Generation with PixelCNN Decoders, 2016; Ho and Salimans, Classifier-Free
      Diffusion Guidance, 2022.
    """
    del step
    if field not in batch:
        raise ValueError(f"the batch has no {field!r}, only {', '.join(sorted(batch))}: pass field=")
    refuse_missing(batch, "code_prior_loss", padding=True)
    values = batch[field]
    log_prob, model_state = apply(
        model,
        params,
        model_state,
        *(values, *_label(model, batch)),
        method="log_prob",
        networks_key=networks_key(key, batch),
        floating=False,
        **mode_of(model, "log_prob", train=not in_evaluation()),
        **_prefix_and_mask(model, batch),
        **_dropped(model, batch, field, condition_dropout, key),
    )
    nll = -check_nats("the model", log_prob, len(values))
    metrics = {"loss": nll.mean(), "nll": nll.mean(), "nats_per_value": nll.mean() / values[0].size}
    if "mask" in batch:
        count = batch["mask"].reshape(len(values), -1).sum(axis=1) * (values[0].size // batch["mask"][0].size)
        metrics |= {"nats_per_value": (nll / jnp.maximum(count, 1)).mean(), "values": count.astype(nll.dtype).mean()}
    return metrics["loss"], (model_state, metrics)


pixel_cnn_loss = code_prior_loss  # the name it had when that was the only one


def _label(model: CodePrior, batch: Batch) -> tuple[Any, ...]:
    return () if getattr(model, "num_classes", None) is None else (batch.get("label"),)


def _prefix_and_mask(model: CodePrior, batch: Batch) -> dict[str, Array | None]:
    """What a model's log_prob is told beside values and label.

    Raises:
      TypeError: there is a mask that it does not take, so that it would count what stands in missing positions.
    """
    told = {} if getattr(model, "prefix", None) is None else {"prefix": batch.get("prefix")}
    if "mask" in batch and "mask" not in inspect.signature(model.log_prob).parameters:
        raise TypeError(
            f"the batch has missing positions (batch['mask']), and {type(model).__name__}.log_prob has no argument "
            "mask to be told of them: use a TransformerPrior, or leave mask out"
        )
    return told | ({"mask": batch["mask"]} if "mask" in batch else {})


def _dropped(model: CodePrior, batch: Batch, field: str, probability: float, key: PRNGKey) -> dict[str, Array]:
    """Which examples go without their condition, drawn from each one's own key; nothing in evaluation."""
    if not 0 <= probability < 1:
        raise ValueError(f"condition_dropout must lie in [0, 1), got {probability}")
    if probability and "dropped" not in inspect.signature(model.log_prob).parameters:
        raise ValueError(f"{type(model).__name__}.log_prob has no argument dropped: set condition_dropout to 0")
    if not probability or in_evaluation():
        return {}
    uniform = noise(jax.random.uniform, batch_keys(key, batch, field), (len(batch[field]),))
    return {"dropped": uniform < probability}


def autoencoder_loss(
    model: LatentModel,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    """The mean of -log p(x | code(x)): the distortion alone.

    Args:
      model: an `Autoencoder`.
      params: what `model.init` returned.
      model_state: collections that the networks keep.
      batch: "x" [B, ...] floating.
      key: for networks with dropout; the model draws nothing.
      step: not used.

    Returns:
      The loss in nats per example and `(model_state, metrics)`, the metrics "loss" and "distortion" being means over
      the batch.

    Raises:
      TypeError: x is not floating.
      ValueError: x does not have the model's shape, or the model has a prior, whose rate this would leave out.
    """
    del step
    terms, model_state = apply(
        model,
        params,
        model_state,
        batch["x"],
        method="terms",
        networks_key=networks_key(key, batch),
        key=key,
        num_samples=1,
        **observed_of(batch, model, "terms"),
    )
    if terms.rates:
        raise ValueError("autoencoder_loss leaves out the rate of a model with a prior: train it by vae_loss")
    loss = -terms.log_likelihood.mean()
    return loss, (model_state, {"loss": loss, "distortion": loss})
