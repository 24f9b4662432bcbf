"""The importance weighted autoencoder of Burda, Grosse and Salakhutdinov (2016): a VAE's parts, a tighter bound."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxvae import losses
from jaxvae.objectives._apply import apply, batch_keys, model_inputs, networks_key, observed_of, terms_of
from jaxvae.objectives.elbo import elbo_metrics, ratio_terms
from jaxvae.types import Array, Batch, LatentModel, Metrics, PRNGKey, PyTree


def iwae_loss(
    model: LatentModel,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    num_samples: int,
    doubly_reparameterized: bool = False,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""The negative importance-weighted bound, mean over the batch.

    .. math:: -\frac1B \sum_i \log \frac1S \sum_s \frac{p(x_i, z_{si})}{q(z_{si} | x_i)}, \quad z_{si} \sim q(z | x_i)

    At S = 1 it is the sampled negative ELBO. The S·B draws go through the decoder as one batch. Where entries of x are
    missing (batch["observed"]) this is the bound of MIWAE on log p of those that there are, which holds where what is
    missing does not depend on what it would have been.

    Args:
      model: a `LatentModel` with a prior; for the doubly reparameterised gradient one with `propose`, `log_joint` and
        `log_posterior` too, such as `VAE` or `HierarchicalVAE`.
      params: what `model.init` returned.
      model_state: collections that the networks keep.
      batch: as for `vae_loss`.
      key: the loss's key; example i draws from `fold_in(key, index[i])`.
      step: not used.
      num_samples: S.
      doubly_reparameterized: the same value, and another unbiased estimate of the encoder's gradient: one whose
        signal-to-noise ratio grows with S instead of falling. For `jax.grad` alone: not for forward mode, nor for a
        second derivative.

    Returns:
      The loss in nats per example and `(model_state, metrics)`: "loss", and at the same draws "rate", "distortion" and
      "negative_elbo", means over the batch, in nats.

    Raises:
      TypeError: x is not floating, or the key is not typed.
      ValueError: x does not have the model's shape, there are no samples, or the model has no prior.

    References:
      Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2016; Mattei and Frellsen, MIWAE: Deep
      Generative Modelling and Imputation of Incomplete Data Sets, 2019; Tucker, Lawson, Gu and Maddison, Doubly
      Reparameterized Gradient Estimators for Monte Carlo Objectives, 2019.
    """
    del step
    if doubly_reparameterized:
        loss, model_state, metrics = _doubly_reparameterized(
            model, params, model_state, batch, key=key, num_samples=num_samples
        )
    else:
        terms, model_state = terms_of(model, params, model_state, batch, key=key, num_samples=num_samples)
        log_likelihood, log_ratio = ratio_terms(terms)
        loss = -losses.iwae_bound(log_likelihood + log_ratio).mean()
        metrics = elbo_metrics(log_likelihood, log_ratio)
    return loss, (model_state, {"loss": loss, **metrics})


def _doubly_reparameterized(
    model: LatentModel, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey, num_samples: int
) -> tuple[Array, PyTree, Metrics]:
    """The loss with the gradient of Tucker et al. (2019), equation 8.

    With weights w and their shares v = w / Σ w, the generative parameters get Σ v ∂log p, as ever, and those of the
    proposal Σ v² (∂log w / ∂z) (∂z / ∂φ) alone: the score ∂log q / ∂φ has been integrated out.
    """
    inputs, keys = model_inputs(batch), batch_keys(key, batch)

    def run(params: PyTree, *arguments: Any, **options: Any) -> tuple[Any, PyTree]:
        networks = networks_key(key, batch)
        options |= observed_of(batch, model, options["method"])
        output, state = apply(model, params, model_state, *inputs, *arguments, networks_key=networks, **options)
        if state is not model_state:
            raise ValueError(
                "the doubly reparameterised gradient runs the networks several times, so they must not keep batch "
                "statistics: use doubly_reparameterized=False"
            )
        return output, state

    (latents, _), new_state = run(params, key=keys, num_samples=num_samples, method="propose")
    frozen = jax.lax.stop_gradient(params)

    def log_weights(params: PyTree, latents: PyTree) -> tuple[Array, tuple[Array, Array]]:
        (log_likelihood, log_prior), _ = run(params, latents, method="log_joint")
        log_posterior, _ = run(frozen, latents, method="log_posterior")  # φ only through z
        log_ratio = log_prior - log_posterior
        return log_likelihood + log_ratio, (log_likelihood, log_ratio)

    log_w, pull_back, terms = jax.vjp(log_weights, frozen, jax.lax.stop_gradient(latents), has_aux=True)
    shares = jax.nn.softmax(log_w, axis=0)
    to_params, to_latents = pull_back(-shares / shares.shape[1])
    to_latents = jax.tree.map(lambda g: g * shares.reshape(*shares.shape, *[1] * (g.ndim - 2)), to_latents)
    # Linear in params and latents with these gradients: what differentiating the loss gives.
    carrier = _dot(to_params, params) + _dot(to_latents, latents)
    loss = -losses.iwae_bound(log_w).mean() + carrier - jax.lax.stop_gradient(carrier)
    return loss, new_state, elbo_metrics(*jax.lax.stop_gradient(terms))


def _dot(gradients: PyTree, values: PyTree) -> Array:
    """Σ gradient · value over all leaves; the gradients are constants."""
    products = jax.tree.map(lambda g, v: jnp.vdot(jax.lax.stop_gradient(g), v), gradients, values)
    return sum(jax.tree.leaves(products), jnp.float32(0))
