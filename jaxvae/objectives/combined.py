"""Combinations of importance weighted bounds: tight for the decoder, without starving the encoder's gradient."""

from collections.abc import Sequence

import jax

from jaxvae import losses
from jaxvae._checks import at_least
from jaxvae.objectives._apply import terms_of
from jaxvae.objectives.elbo import elbo_metrics, ratio_terms
from jaxvae.types import Array, Batch, LatentModel, Metrics, PRNGKey, PyTree

PROPOSAL = ("encoder", "posterior")


def multiple_iwae_loss(
    model: LatentModel,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    num_bounds: int,
    num_samples: int,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""The mean of M importance weighted bounds of K samples each: the MIWAE of Rainforth et al. (2018).

    .. math:: -\frac1{BM} \sum_{i,m} \log \frac1K \sum_k w_{imk}, \quad w = p(x, z) / q(z | x)

    The encoder's gradient has a signal-to-noise ratio of O(√(M/K)): M bounds cost as much as one of M·K samples, and
    give the encoder more to go by. (The MIWAE of missing entries is another: `iwae_loss` where x has some.)

    Args:
      model: as for `iwae_loss`.
      params: what `model.init` returned.
      model_state: collections that the networks keep.
      batch: as for `vae_loss`.
      key: the loss's key; example i draws from `fold_in(key, index[i])`.
      step: not used.
      num_bounds: M; with 1 it is `iwae_loss`.
      num_samples: K; with 1 it is the ELBO of M samples.

    Returns:
      The loss in nats per example and `(model_state, metrics)`: "loss", and at the same draws "rate", "distortion" and
      "negative_elbo", means over the batch, in nats.

    Raises:
      TypeError: x is not floating, or the key is not typed.
      ValueError: x does not have the model's shape, a number is below 1, or the model has no prior.

    References:
      Rainforth et al., Tighter Variational Bounds are Not Necessarily Better, 2018, section 4.
    """
    del step
    log_w, model_state, metrics = _log_weights(model, params, model_state, batch, key, num_bounds, num_samples)
    loss = -_bounds(log_w).mean()
    return loss, (model_state, {"loss": loss, **metrics})


def combined_iwae_loss(
    model: LatentModel,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    num_samples: int,
    elbo_weight: float,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""A convex combination of the ELBO and the importance weighted bound: CIWAE.

    .. math:: -\frac1B \sum_i \left[ \beta \frac1K \sum_k \log w_{ik} + (1 - \beta) \log \frac1K \sum_k w_{ik} \right]

    Args:
      model: as for `iwae_loss`.
      params: what `model.init` returned.
      model_state: collections that the networks keep.
      batch: as for `vae_loss`.
      key: the loss's key; example i draws from `fold_in(key, index[i])`.
      step: not used.
      num_samples: K.
      elbo_weight: β in [0, 1]; 0 is `iwae_loss`.

    Returns:
      As `multiple_iwae_loss`.

    Raises:
      TypeError: x is not floating, or the key is not typed.
      ValueError: as `multiple_iwae_loss`, or β lies outside [0, 1].

    References:
      Rainforth et al., Tighter Variational Bounds are Not Necessarily Better, 2018, section 4.
    """
    del step
    if not 0 <= elbo_weight <= 1:
        raise ValueError(f"elbo_weight must lie in [0, 1], got {elbo_weight}")
    log_w, model_state, metrics = _log_weights(model, params, model_state, batch, key, 1, num_samples)
    bounds = elbo_weight * log_w.mean(axis=(0, 1)) + (1 - elbo_weight) * _bounds(log_w)
    loss = -bounds.mean()
    return loss, (model_state, {"loss": loss, **metrics})


def partial_iwae_loss(
    model: LatentModel,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    num_bounds: int,
    num_samples: int,
    proposal: Sequence[str] = PROPOSAL,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""The bound of M·K samples for the decoder and the prior, the mean of M bounds of K for the encoder: PIWAE.

    The value is that of `iwae_loss` with M·K samples; the gradient of the parameters in `proposal` is that of
    `multiple_iwae_loss` at the same draws.

    Args:
      model: as for `iwae_loss`; one whose parts in `proposal` say q(z|x) and nothing else, such as a `VAE` whose prior
        does not share the encoder.
      params: what `model.init` returned.
      model_state: collections that the networks keep.
      batch: as for `vae_loss`.
      key: the loss's key; example i draws from `fold_in(key, index[i])`.
      step: not used.
      num_bounds: M.
      num_samples: K.
      proposal: the names of the parameters of q in params["params"]; those that the model does not have are passed
        over, but one of them it must have.

    Returns:
      As `multiple_iwae_loss`, the loss being the bound of M·K samples.

    Raises:
      TypeError: x is not floating, or the key is not typed.
      ValueError: as `multiple_iwae_loss`, or no parameter has a name in `proposal`.

    References:
      Rainforth et al., Tighter Variational Bounds are Not Necessarily Better, 2018, section 4.
    """
    del step
    own = params["params"]
    if not any(name in own for name in proposal):
        raise ValueError(f"no parameters are named {', '.join(proposal)}, only {', '.join(own)}: pass proposal=")

    def log_weights(moved: bool) -> tuple[Array, PyTree, Metrics]:
        """With the gradient of the proposal's parameters, or of all others; compiled, the values are computed once."""
        parts = {
            name: tree if (name in proposal) == moved else jax.lax.stop_gradient(tree) for name, tree in own.items()
        }
        seen = {**params, "params": parts}
        return _log_weights(model, seen, model_state, batch, key, num_bounds, num_samples)

    log_w, new_state, metrics = log_weights(moved=False)
    together = -_bounds(log_w.reshape(1, -1, log_w.shape[-1])).mean()
    apart = -_bounds(log_weights(moved=True)[0]).mean()
    loss = together + apart - jax.lax.stop_gradient(apart)
    return loss, (new_state, {"loss": loss, **metrics})


def _log_weights(
    model: LatentModel,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    key: PRNGKey,
    num_bounds: int,
    num_samples: int,
) -> tuple[Array, PyTree, Metrics]:
    """Log w, [M, K, B] nats, the state, and the metrics at the draws."""
    at_least(1, num_bounds=num_bounds, num_samples=num_samples)
    terms, model_state = terms_of(model, params, model_state, batch, key=key, num_samples=num_bounds * num_samples)
    log_likelihood, log_ratio = ratio_terms(terms)
    log_w = (log_likelihood + log_ratio).reshape(num_bounds, num_samples, -1)
    return log_w, model_state, elbo_metrics(log_likelihood, log_ratio)


def _bounds(log_w: Array) -> Array:
    """The mean over M of the bounds of K samples, [B]."""
    return jax.vmap(losses.iwae_bound)(log_w).mean(axis=0)
