"""Objectives of models with an exact or no density: maximum likelihood and reconstruction."""

from jaxvae._whole_batch import in_evaluation
from jaxvae.models._parts import check_nats
from jaxvae.networks._run import mode_of
from jaxvae.objectives._apply import apply, networks_key, observed_of, refuse_missing
from jaxvae.types import Array, Batch, CodePrior, LatentModel, Metrics, PRNGKey, PyTree


def pixel_cnn_loss(
    model: CodePrior,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    field: str = "code",
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""The mean negative log-likelihood, in nats per example: no bound, the model's own.

    .. math:: -\frac1B \sum_b \sum_{ij} \log p(x_{bij} | x_{b,<ij}, y_b)

    Args:
      model: a `PixelCNN`, or another `jaxvae.types.CodePrior` that is a Flax module; one with an attribute
        `num_classes` other than None is given the labels.
      params: what `model.init` returned.
      model_state: collections that the networks keep; a PixelCNN has none.
      batch: `field` [B, *shape], as `PixelCNN` takes values; "label" [B] integer where the model has classes.
      key: for networks with dropout; the model draws nothing.
      step: not used.
      field: "code" for index maps, "x" for the data itself.

    Returns:
      The loss and `(model_state, metrics)`, means over the batch: "loss" and "nll" in nats per example,
      "nats_per_value" in nats per position.

    Raises:
      TypeError: the labels are not integers.
      ValueError: there is no such field, or values or labels do not fit the model.

    References:
      van den Oord et al., Conditional Image Generation with PixelCNN Decoders, 2016.
    """
    del step
    if field not in batch:
        raise ValueError(f"the batch has no {field!r}, only {', '.join(sorted(batch))}: pass field=")
    refuse_missing(batch, "pixel_cnn_loss")
    values = batch[field]
    label = () if getattr(model, "num_classes", None) is None else (batch.get("label"),)
    log_prob, model_state = apply(
        model,
        params,
        model_state,
        *(values, *label),
        method="log_prob",
        networks_key=networks_key(key, batch),
        floating=False,
        **mode_of(model, "log_prob", train=not in_evaluation()),
    )
    nll = -check_nats("the model", log_prob, len(values)).mean()
    return nll, (model_state, {"loss": nll, "nll": nll, "nats_per_value": nll / values[0].size})


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
