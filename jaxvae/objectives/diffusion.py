"""Objectives of diffusions: their bound in nats, the loss that is none, and the ELBO with a diffusion as the prior."""

import math
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp

from jaxvae._checks import at_least, check_shape
from jaxvae._host import host_array
from jaxvae._variables import variables_of
from jaxvae._whole_batch import in_evaluation
from jaxvae.keys import noise, sample_keys
from jaxvae.models.diffusion import Diffusion, DiffusionBound
from jaxvae.models.diffusion_prior import SCALE, DiffusionPrior
from jaxvae.objectives._apply import apply, batch_keys, model_inputs, networks_key, observed_of, refuse_missing
from jaxvae.objectives.prior import PRIOR, init_prior, log_prior_of_each
from jaxvae.types import Array, Batch, Metrics, PRNGKey, PyTree

Weighting = Literal["bound", "simple"]


def diffusion_loss(
    model: Diffusion,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    weighting: Weighting = "bound",
    num_samples: int = 1,
    condition_dropout: float = 0.0,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""The bound on -log p(x) of a `Diffusion`, the mean over the batch; or the loss of Ho et al., which is none.

    .. math:: \frac1B \sum_i -\log p(x_i | z_0) + KL(q(z_1 | x_i) || N(0, I))
              - \frac1{2S} \sum_s \frac{d \log SNR}{dt} |\epsilon_s - \hat\epsilon(z_{t_s}, t_s)|^2
              \quad\text{or}\quad \frac1{BS} \sum_{s,i} |\epsilon_s - \hat\epsilon(z_{t_s}, t_s)|^2

    The times of an example are drawn from its own key, and spread evenly where there are several.

    Args:
      model: a `Diffusion`.
      params: what `model.init` returned.
      model_state: collections that the networks keep.
      batch: "x" [B, *shape] floating, "index" [B]; "label" [B] integer where the model has classes.
      key: the loss's key; example i draws from `fold_in(key, index[i])`.
      step: not used.
      weighting: "bound", or "simple": the error of the noise at uniform times, the sum over the example. Samples often
        look better for it, and the bound is worse.
      num_samples: S, times of each example, which are one batch of S·B to the network.
      condition_dropout: the probability that an example is told in training that there is no label, in [0, 1): what
        `guidance` of `Diffusion.sample` needs. Never in evaluation.

    Returns:
      The loss and `(model_state, metrics)`, means over the batch: "loss"; in nats, whatever the weighting,
      "negative_elbo", "distortion", "rate", and its parts "prior_rate" and "diffusion_rate"; and "squared_error", which
      is no nats.

    Raises:
      TypeError: x is not floating, the labels are not integers, or the key is not typed.
      ValueError: x or the labels do not fit the model, entries of x are missing, there is no such weighting, or the
        probability is out of range or not zero for a model without classes.

    References:
      Kingma et al., Variational Diffusion Models, 2021; Ho et al., Denoising Diffusion Probabilistic Models, 2020.
    """
    del step
    if weighting not in get_args(Weighting):
        raise ValueError(f"weighting must be 'bound' or 'simple', got {weighting!r}")
    at_least(1, num_samples=num_samples)
    refuse_missing(batch, "diffusion_loss")
    check_shape((0, *model.shape), batch["x"].shape)
    x, (time_key, drop_key, draw_key) = batch["x"], _split(batch_keys(key, batch))

    def repeated(values: Array) -> Array:
        return jnp.broadcast_to(values[None], (num_samples, *values.shape)).reshape(-1, *values.shape[1:])

    label = () if model.num_classes is None else (batch.get("label"),)
    bound, model_state = apply(
        *(model, params, model_state, repeated(x), *(each if each is None else repeated(each) for each in label)),
        method="bound",
        networks_key=networks_key(key, batch),
        key=sample_keys(draw_key, num_samples).reshape(-1),
        time=spread_times(time_key, num_samples).reshape(-1),
        **_dropped(model, condition_dropout, drop_key, repeated),
    )
    metrics = metrics_of(bound)
    metrics["loss"] = metrics["negative_elbo" if weighting == "bound" else "squared_error"]
    return metrics["loss"], (model_state, metrics)


def spread_times(key: PRNGKey, num_samples: int) -> Array:
    """Times in [0, 1), [S, B] of keys [B]: each uniform, those of an example 1/S apart (a circle's are all 1/S apart).

    The mean over S of them has less noise than that over S independent ones.
    """
    first = noise(jax.random.uniform, key, key.shape)
    return jnp.mod(first[None] + jnp.arange(num_samples, dtype=first.dtype)[:, None] / num_samples, 1)


def metrics_of(bound: DiffusionBound) -> Metrics:
    """The means of a bound's parts."""
    parts = {**bound._asdict(), "rate": bound.rate, "negative_elbo": bound.negative_elbo}
    return {name: values.mean() for name, values in parts.items()}


def bounded_vae_loss(
    model: Any,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    num_samples: int = 1,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""The negative ELBO of a `VAE` whose prior gives a bound on log p(z), as a `DiffusionPrior` does.

    .. math:: \frac1{SB} \sum_{s,i} \log q(z_{si} | x_i) - b(z_{si}) - \log p(x_i | z_{si}), \quad
              z_{si} \sim q(z | x_i), \quad E[b(z)] \le \log p(z)

    So its mean is a bound on -log p(x) too. A prior with a log p(z) gives `sampled_vae_loss`. The prior's networks are
    run as in evaluation, without dropout.

    Args:
      model: a `VAE` or `CVAE`.
      params: the whole model's; after two stages those of `with_fitted_prior`.
      model_state: collections that the networks keep.
      batch: as for `vae_loss`.
      key: the loss's key; example i draws from `fold_in(key, index[i])`.
      step: not used.
      num_samples: S, draws of the latent for each example, and of the bound.

    Returns:
      The loss in nats per example and `(model_state, metrics)`: "loss", "rate", "distortion" and "negative_elbo", means
      over the batch, in nats.

    Raises:
      TypeError: the model has no `propose`, x is not floating, or the key is not typed.
      ValueError: x does not have the model's shape, or there are no samples.
    """
    del step
    if not hasattr(model, "propose") or not hasattr(model, "latent_prior"):
        raise TypeError(f"this bound is one of a VAE or CVAE, and a {type(model).__name__} has no prior of its codes")
    inputs, keys = model_inputs(batch), batch_keys(key, batch)
    network = networks_key(key, batch)
    (latent, log_posterior), model_state = apply(
        *(model, params, model_state, *inputs),
        method="propose",
        networks_key=network,
        key=keys,
        num_samples=num_samples,
        **observed_of(batch, model, "propose"),
    )
    log_likelihood, model_state = apply(
        *(model, params, model_state, *inputs, latent),
        method="log_likelihood",
        networks_key=network,
        **observed_of(batch, model, "log_likelihood"),
    )
    log_prior = log_prior_of_each(model, variables_of(params, model_state), inputs[1:], latent, key, batch)
    distortion, rate = -log_likelihood.mean(), (log_posterior - log_prior).mean()
    loss = distortion + rate
    return loss, (model_state, {"loss": loss, "rate": rate, "distortion": distortion, "negative_elbo": loss})


def init_diffusion_prior(
    model: Any, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey, std: Any
) -> tuple[PyTree, PyTree]:
    """As `init_prior`, of a model whose new prior is a `DiffusionPrior`, with the scale of the latents in the state.

    Args:
      model: the trained model with another prior: `model.clone(prior=DiffusionPrior(...))`.
      params: the trained model's.
      model_state: the trained model's.
      batch: some examples, whose shapes count.
      key: decides the parameters.
      std: the standard deviation of the codes z ~ q(z|x) of the whole training set: one for all latents, or of the
        latent's shape.

    Returns:
      What `init_train_state` takes, once all but the key is bound.

    Raises:
      TypeError: the prior is no `DiffusionPrior`.
      ValueError: the standard deviation is not positive and finite, or of another shape.
    """
    if not isinstance(model.prior, DiffusionPrior):
        raise TypeError(f"the prior must be a DiffusionPrior, got {type(model.prior).__name__}: take init_prior")
    shape, std = tuple(model.prior.diffusion.shape), host_array(std, "std")
    if std.shape not in ((), shape):
        raise ValueError(f"std must have shape () or {shape}, as the latent, got {std.shape}")
    if not ((std > 0) & (std < math.inf)).all():
        raise ValueError(f"std must be positive and finite, got {std}")
    fresh, state = init_prior(model, params, model_state, batch, key=key)
    return fresh, {**state, SCALE: {PRIOR: {"std": jnp.broadcast_to(jnp.asarray(std, jnp.float32), shape)}}}


def _split(keys: PRNGKey) -> PRNGKey:
    """Three keys of each, [3, B]."""
    return jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)


def _dropped(model: Diffusion, probability: float, keys: PRNGKey, repeated: Callable[[Array], Array]) -> dict[str, Any]:
    """Which examples go without their label, drawn from each one's own key; nothing in evaluation."""
    if not 0 <= probability < 1:
        raise ValueError(f"condition_dropout must lie in [0, 1), got {probability}")
    if probability and model.num_classes is None:
        raise ValueError("the model has no classes that could be dropped: set condition_dropout to 0")
    if not probability or in_evaluation():
        return {}
    return {"dropped": repeated(noise(jax.random.uniform, keys, keys.shape) < probability)}
