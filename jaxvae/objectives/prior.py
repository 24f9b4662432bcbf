"""The objective of a prior that is fitted to the codes of a model which is trained already."""

from typing import Any

import jax

from jaxvae.keys import sample_keys
from jaxvae.models._parts import check_nats
from jaxvae.models.vae import log_prob_of_each
from jaxvae.objectives._apply import apply, batch_keys, model_inputs, observed_of
from jaxvae.objectives.partial import FROZEN
from jaxvae.types import Array, Batch, Metrics, PRNGKey, PyTree

PRIOR = "prior"
OF_A_BOUND = 2**32 - 2  # no example's index, so the draws of a prior's bound are nobody else's


def prior_loss(
    model: Any,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    num_samples: int = 1,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""-log p(z) at codes of a trained model, the mean over the batch: KL(q(z) || p(z)) but for a constant.

    .. math:: -\frac1{SB} \sum_{s,i} \log p(z_{si}), \quad z_{si} \sim q(z | x_i)

    The second stage of two: the ELBO of the model with this prior differs from that of the first stage by what the
    prior misses of the aggregate posterior q(z) alone, and samples come from where there are codes. The encoder and the
    decoder are not trained: they are in `model_state["frozen"]`, where `init_prior` puts them. Of a prior with a bound
    on log p(z) alone, a `DiffusionPrior`, it is the mean of that bound, estimated at draws. All networks, the prior's
    too, are run as in evaluation: without dropout, and no batch statistics move.

    Args:
      model: the trained `VAE` with another prior: `model.clone(prior=...)`.
      params: the prior's, {"params": {"prior": ...}}.
      model_state: "frozen", the trained model's variables.
      batch: "x" [B, ...] and "index" [B]; "condition" where the model takes one.
      key: the loss's key; example i draws from `fold_in(key, index[i])`.
      step: not used.
      num_samples: S.

    Returns:
      The loss in nats per example and `(model_state, {"loss"})`.

    Raises:
      TypeError: the model has no `propose` or no `latent_prior`, x is not floating, or the key is not typed.
      ValueError: the frozen model is missing, or the prior is over latents of another size.

    References:
      van den Oord et al., Neural Discrete Representation Learning, 2017, and Dai and Wipf, Diagnosing and Enhancing VAE
      Models, 2019, for the two stages; Hoffman and Johnson, ELBO Surgery, 2016, for what the prior misses.
    """
    del step
    variables = with_fitted_prior(params, model_state)
    _check(model)
    inputs = model_inputs(batch)
    (latent, _), _ = apply(
        *(model, jax.lax.stop_gradient(model_state[FROZEN]), (), *inputs),
        method="propose",
        key=batch_keys(key, batch),
        num_samples=num_samples,
        **observed_of(batch, model, "propose"),
    )
    loss = -log_prior_of_each(model, variables, inputs[1:], latent, key, batch).mean()
    return loss, (model_state, {"loss": loss})


def init_prior(model: Any, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> tuple[PyTree, PyTree]:
    """The parameters of a model's new prior, and the model state that `prior_loss` reads.

    Args:
      model: the trained model with another prior: `model.clone(prior=...)`.
      params: the trained model's.
      model_state: the trained model's.
      batch: some examples, whose shapes count.
      key: decides the parameters.

    Returns:
      What `init_train_state` takes, once all but the key is bound.

    Raises:
      TypeError: the model has no `propose` or no `latent_prior`.
      ValueError: the prior has no parameters.
    """
    _check(model)
    fresh = model.init(key, *model_inputs(batch), **observed_of(batch, model, "__call__"))
    if PRIOR not in fresh["params"]:
        raise ValueError(f"there is nothing to fit: {type(model.prior).__name__} has no parameters")
    collections = model_state if isinstance(model_state, dict) else {}
    of_the_prior = {name: {PRIOR: tree[PRIOR]} for name, tree in fresh.items() if name != "params" and PRIOR in tree}
    return {"params": {PRIOR: fresh["params"][PRIOR]}}, {**of_the_prior, FROZEN: {**params, **collections}}


def with_fitted_prior(params: PyTree, model_state: PyTree) -> PyTree:
    """The variables of the whole model, of what `prior_loss` trains and what it keeps.

    Raises:
      ValueError: the frozen model is missing.
    """
    if not (isinstance(model_state, dict) and FROZEN in model_state):
        raise ValueError("model_state must hold 'frozen', the trained model's variables: init_prior")
    frozen = jax.lax.stop_gradient(model_state[FROZEN])
    joined = {
        name: {**frozen.get(name, {}), PRIOR: tree[PRIOR]}
        for name, tree in {**model_state, "params": params["params"]}.items()
        if name != FROZEN and PRIOR in tree
    }
    return {**frozen, **joined}


def log_prior_of_each(
    model: Any, variables: PyTree, condition: tuple[Array, ...], latent: Array, key: PRNGKey, batch: Batch
) -> Array:
    """Log p(z) of latents [S, B, D], or what the prior says it is at least, [S, B] nats; `key` is the loss's."""
    record = model.apply(variables, *condition, method="latent_prior")
    if not hasattr(record, "log_prob_bound"):
        return log_prob_of_each(record, latent, "the prior")
    keys = sample_keys(batch_keys(jax.random.fold_in(key, OF_A_BOUND), batch), len(latent))
    nats: Array = jax.vmap(lambda z, each: record.log_prob_bound(z, key=each))(latent, keys)
    check_nats("the prior", nats[0], latent.shape[1])
    return nats


def _check(model: Any) -> None:
    if not (hasattr(model, "propose") and hasattr(model, "latent_prior")):
        raise TypeError(f"a prior is fitted to the codes of a VAE or CVAE, and a {type(model).__name__} has none")
