"""The objective of an encoder of a part of x, against a model that is trained already and stays as it is."""

from typing import Any

import jax

from jaxvae.models.vae import log_prob_of_each
from jaxvae.objectives._apply import apply, batch_keys, model_inputs, networks_key, observed_of
from jaxvae.types import Array, Batch, LatentModel, Metrics, PRNGKey, PyTree

FROZEN = "frozen"


def partial_encoder_loss(
    encoder: Any,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    model: LatentModel,
    observation: Any,
    num_samples: int = 1,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""-log r(z|y) at latents of whole examples, the mean over the batch: KL(q(z|x) || r(z|y)) but for a constant.

    .. math:: -\frac1{SB} \sum_{s,i} \log r(z_{si} | y_i), \quad z_{si} \sim q(z | x_i), \quad y_i \sim p(y | x_i)

    The direction of the KL makes r cover all that could be behind y, as an importance proposal must. The model is not
    trained: its variables are in `model_state["frozen"]`, where `init_partial_encoder` puts them.

    Args:
      encoder: a `PartialEncoder`.
      params: the encoder's.
      model_state: "frozen", the model's variables, and collections that the encoder's networks keep.
      batch: whole examples, "x" [B, ...] and "index" [B]; "condition" where the model takes one.
      key: the loss's key; example i draws from `fold_in(key, index[i])`.
      step: not used.
      model: the trained model, such as a `VAE`, with `propose`.
      observation: `evaluation.Visible` or `evaluation.Linear`; of the latter y is drawn anew from x at every step.
      num_samples: S.

    Returns:
      The loss in nats per example and `(model_state, {"loss"})`.

    Raises:
      TypeError: the model has no `propose`, x is not floating, or the key is not typed.
      ValueError: the frozen model is missing, or x, y or the latents do not fit.

    References:
      Harvey, Naderiparizi and Wood, Conditional Image Generation by Conditioning Variational Auto-Encoders, 2022.
    """
    del step
    if not (isinstance(model_state, dict) and FROZEN in model_state):
        raise ValueError("model_state must hold 'frozen', the trained model's variables: init_partial_encoder")
    if not hasattr(model, "propose"):
        raise TypeError(
            f"the model must have propose, z ~ q(z|x) of whole examples, and {type(model).__name__} has not"
        )
    frozen, own = model_state[FROZEN], {name: tree for name, tree in model_state.items() if name != FROZEN}
    model_key, observation_key, encoder_key = jax.random.split(key, 3)
    (latent, _), _ = apply(
        *(model, jax.lax.stop_gradient(frozen), (), *model_inputs(batch)),
        method="propose",
        key=batch_keys(model_key, batch),
        num_samples=num_samples,
        **observed_of(batch, model, "propose"),
    )
    if not isinstance(latent, jax.Array):
        raise TypeError(f"the latents of a {type(model).__name__} are several arrays; a partial encoder is for one")
    seen = observation.seen(observation.simulated(batch, key=batch_keys(observation_key, batch)))
    record, own = apply(
        *(encoder, params, own, seen, *model_inputs(batch)[1:]),
        method="__call__",
        networks_key=networks_key(encoder_key, batch),
    )
    loss = -log_prob_of_each(record, latent, "the partial encoder").mean()
    return loss, ({**own, FROZEN: frozen}, {"loss": loss})


def init_partial_encoder(
    encoder: Any, params: PyTree, model_state: PyTree, observation: Any, batch: Batch, *, key: PRNGKey
) -> tuple[PyTree, PyTree]:
    """A partial encoder's parameters, and the model state that its objective reads.

    Args:
      encoder: a `PartialEncoder`.
      params: the trained model's.
      model_state: the trained model's.
      observation: of which it is to be the encoder.
      batch: some whole examples, whose shapes count.
      key: decides the parameters.

    Returns:
      What `init_train_state` takes, once all but the key is bound.
    """
    init_key, observation_key = jax.random.split(key)
    seen = observation.seen(observation.simulated(batch, key=batch_keys(observation_key, batch)))
    variables = encoder.init(init_key, seen, *model_inputs(batch)[1:])
    own = {name: tree for name, tree in variables.items() if name != "params"}
    collections = model_state if isinstance(model_state, dict) else {}
    return {"params": variables.get("params", {})}, {**own, FROZEN: {**params, **collections}}
