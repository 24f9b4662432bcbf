"""Bounds on log p(x) from the terms of any latent-variable model: the ELBO, sampled or in closed form, and β.

Every objective here reads `terms` and nothing else, so that any prior, posterior, likelihood and hierarchy will do.
"""

import jax.numpy as jnp
import optax

from jaxvae._checks import at_least, weight_at
from jaxvae._whole_batch import needs_whole_batch
from jaxvae.objectives._apply import terms_of
from jaxvae.types import Array, Batch, LatentModel, Metrics, PRNGKey, PyTree, Schedule, Terms


def vae_loss(
    model: LatentModel,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    beta: float | Array | Schedule = 1.0,
    num_samples: int = 1,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""The mean of distortion + β · rate: the negative ELBO at β = 1, with the KL in closed form where it has one.

    .. math:: \frac1B \sum_i -\frac1S \sum_s \log p(x_i | z_{si}) + \beta\, KL(q(z | x_i) || p(z)),
              \quad z_{si} \sim q(z | x_i)

    Bind the model and it is a `LossFn`: `functools.partial(vae_loss, model)`.

    Args:
      model: a `LatentModel`, such as `VAE`, `CVAE` or `HierarchicalVAE`.
      params: what `model.init` returned.
      model_state: collections that the networks keep; `()` where there are none.
      batch: "x" [B, ...] floating, "index" [B] integer, "condition" [B, ...] where the model takes one, and where
        entries of x are missing "observed" [B, ...], boolean: the bound is then one on log p of those that there are.
      key: the loss's key; example i draws from `fold_in(key, index[i])`.
      step: what a schedule is evaluated at.
      beta: a number, or an optax schedule of the step. Zero or more; a traced value is not checked.
      num_samples: S, draws of the latent for each example.

    Returns:
      The loss in nats per example and `(model_state, metrics)`, the metrics "loss", "rate", "distortion" and
      "negative_elbo" being means over the batch, in nats.

    Raises:
      TypeError: x is not floating, or the key is not typed.
      ValueError: x does not have the model's shape, or β is negative or not a number.

    References:
      Kingma and Welling, Auto-Encoding Variational Bayes, 2014; Higgins et al., beta-VAE, 2017 (β ≠ 1).
    """
    weight = weight_at("beta", beta, step)
    terms, model_state = terms_of(model, params, model_state, batch, key=key, num_samples=num_samples)
    distortion, rate = -terms.log_likelihood.mean(axis=0), total_rate(terms)
    metrics = {
        "loss": distortion + weight * rate,
        "rate": rate,
        "distortion": distortion,
        "negative_elbo": distortion + rate,
    }
    metrics = {name: values.mean() for name, values in metrics.items()}
    return metrics["loss"], (model_state, metrics)


def sampled_vae_loss(
    model: LatentModel,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    num_samples: int = 1,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""The negative ELBO with every term sampled, also where a KL has a closed form.

    .. math:: \frac1{SB} \sum_{s,i} \log q(z_{si} | x_i) - \log p(x_i, z_{si}), \quad z_{si} \sim q(z | x_i)

    Args:
      model: a `LatentModel` with a prior.
      params: what `model.init` returned.
      model_state: collections that the networks keep.
      batch: as for `vae_loss`.
      key: the loss's key; example i draws from `fold_in(key, index[i])`.
      step: not used.
      num_samples: S, draws of the latents for each example.

    Returns:
      The loss in nats per example and `(model_state, metrics)`: "loss", "rate", "distortion" and "negative_elbo", means
      over the batch, in nats. The rate is log q(z|x) - log p(z) at the draws. Of a `SemiSupervisedVAE`, whose classes
      are summed out at each draw, it is a tighter bound than `vae_loss`'s.

    Raises:
      TypeError: x is not floating, or the key is not typed.
      ValueError: x does not have the model's shape, there are no samples, or the model has no prior.
    """
    del step
    terms, model_state = terms_of(model, params, model_state, batch, key=key, num_samples=num_samples)
    metrics = elbo_metrics(*ratio_terms(terms))
    metrics["loss"] = metrics["negative_elbo"]
    return metrics["loss"], (model_state, metrics)


def beta_vae_loss(
    model: LatentModel,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    beta: float | Array | Schedule = 4.0,
    capacity: float | Array | Schedule | None = None,
    free_bits: float | Array | Schedule = 0.0,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""The mean distortion and a penalty on the batch's mean rate R.

    .. math:: \frac1B \sum_i -\log p(x_i | z_i) + \beta R \quad\text{or, with a capacity,}\quad
              \dots + \beta\, |R - C|, \qquad
              R = \sum_j \max\Big(\lambda, \frac1B \sum_i KL(q(z_j | x_i) || p(z_j))\Big)

    With a capacity C, β is what Burgess et al. call γ, about 1000, and C grows from 0:
    `optax.linear_schedule(0.0, 25.0, 100_000)`. With free bits λ, a latent pays nothing for its first λ nats. Without
    either this is `vae_loss`.

    The sum runs over latents whose rate has a closed form, and over groups of latents where it is sampled. With a
    capacity or free bits this is no mean over examples: train it under `jit`, on one device or over a mesh, and
    evaluate by `vae_loss`.

    Args:
      model: a `LatentModel`.
      params: what `model.init` returned.
      model_state: collections that the networks keep.
      batch: as for `vae_loss`.
      key: the loss's key; example i draws from `fold_in(key, index[i])`.
      step: what schedules are evaluated at.
      beta: β, or γ where there is a capacity.
      capacity: C in nats for all latents together; None for no target.
      free_bits: λ in nats for each latent, or for each group of latents whose rate is sampled (Kingma et al., 2016).

    Each of the three is a number, zero or more, or an optax schedule of the step; a traced value is not checked.

    Returns:
      The loss in nats per example and `(model_state, metrics)`: "loss", "rate" (what it is, not what is paid),
      "distortion", "negative_elbo", and "capacity" where there is one; means over the batch, in nats.

    Raises:
      TypeError: x is not floating, or the key is not typed.
      ValueError: x does not have the model's shape; β, capacity or free bits are negative or not a number.

    References:
      Higgins et al., beta-VAE, 2017; Burgess et al., Understanding disentangling in beta-VAE, 2018; Kingma et al.,
      Improved Variational Inference with Inverse Autoregressive Flow, 2016 (free bits).
    """
    terms, model_state = terms_of(model, params, model_state, batch, key=key, num_samples=1)
    check_prior(terms)
    if capacity is not None or callable(free_bits) or isinstance(free_bits, Array) or free_bits:
        needs_whole_batch("beta_vae_loss with a capacity or free bits", instead="evaluate by vae_loss")
    distortion = -terms.log_likelihood.mean()
    rates = [rate.mean(axis=(0, 1)) for rate in terms.rates.values()]  # of each group [D], or [1] where it is sampled
    rate = sum((each.sum() for each in rates), jnp.zeros_like(distortion))

    floor = weight_at("free_bits", free_bits, step)
    paid = sum((jnp.maximum(each, floor).sum() for each in rates), jnp.zeros_like(distortion))
    metrics = {"rate": rate, "distortion": distortion, "negative_elbo": distortion + rate}
    if capacity is not None:
        metrics["capacity"] = jnp.asarray(weight_at("capacity", capacity, step), rate.dtype)
        paid = jnp.abs(paid - metrics["capacity"])
    metrics["loss"] = distortion + weight_at("beta", beta, step) * paid
    return metrics["loss"], (model_state, metrics)


def vae_log_weights(
    model: LatentModel, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey, num_samples: int
) -> Array:
    """Log p(x, z) - log q(z|x) at z ~ q(z|x) as a `LogWeightsFn`, [S, B] nats; example i draws from its own key.

    `jaxvae.losses.iwae_bound` turns them into a bound on log p(x).

    Raises:
      ValueError: the model has no prior, so that it gives x no probability.
    """
    terms, _ = terms_of(model, params, model_state, batch, key=key, num_samples=num_samples, train=False)
    log_likelihood, log_ratio = ratio_terms(terms)
    return log_likelihood + log_ratio


def total_rate(terms: Terms) -> Array:
    """The rate of each example, [B] nats: all groups of latents together."""
    check_prior(terms)
    zeros = jnp.zeros_like(terms.log_likelihood[0])
    return sum((rate.sum(axis=-1).mean(axis=0) for rate in terms.rates.values()), zeros)


def ratio_terms(terms: Terms) -> tuple[Array, Array]:
    """The terms whose sum is the log weight, each [S, B] nats."""
    check_prior(terms)
    return terms.log_likelihood, terms.log_ratio


def check_prior(terms: Terms) -> None:
    """Raise `ValueError` where a model gives x no probability."""
    if not terms.rates:
        raise ValueError(
            "this model has no prior, so it gives x no probability: train and measure it by autoencoder_loss"
        )


def elbo_metrics(log_likelihood: Array, log_ratio: Array) -> Metrics:
    """The means of what `ratio_terms` returns, signed as losses."""
    distortion, rate = -log_likelihood.mean(), -log_ratio.mean()
    return {"rate": rate, "distortion": distortion, "negative_elbo": distortion + rate}


def normalized_beta(beta: float, *, latent_dim: int, num_pixels: int) -> float:
    """β · D / (H·W·C): β beside a reconstruction term averaged over pixels and a rate averaged over latents.

    It compares models of other image and latent sizes (Higgins et al., 2017). `num_pixels` counts the channels too.

    >>> normalized_beta(4.0, latent_dim=10, num_pixels=64 * 64)
    0.009765625
    """
    return beta * latent_dim / num_pixels


def beta_from_normalized(normalized: float, *, latent_dim: int, num_pixels: int) -> float:
    """The β of `vae_loss`, whose terms are sums, for a normalised one: its inverse.

    >>> beta_from_normalized(0.009765625, latent_dim=10, num_pixels=64 * 64)
    4.0
    """
    return normalized * num_pixels / latent_dim


def cyclical_schedule(peak: float | Array, *, period: int, num_cycles: int, ramp: float = 0.5) -> Schedule:
    """A weight that grows from 0 to `peak` in the first part of every period, then stays; after the last, for good.

    Args:
      peak: the largest value; may be traced.
      period: steps of one cycle.
      num_cycles: how many times the weight starts from 0.
      ramp: the share of a cycle in which it grows linearly.

    Raises:
      ValueError: a peak that is negative or not finite, a period or a number of cycles below 1, a ramp outside (0, 1].

    References:
      Fu et al., Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing, 2019. One warm-up alone is
      `optax.linear_schedule(0.0, peak, steps)`.
    """
    peak = weight_at("peak", peak, 0)
    at_least(1, period=period, num_cycles=num_cycles)
    if not 0 < ramp <= 1:
        raise ValueError(f"ramp must lie in (0, 1], got {ramp}")
    cycle = optax.linear_schedule(0.0, peak, max(1, round(ramp * period)))
    return optax.join_schedules([cycle] * num_cycles, [period * i for i in range(1, num_cycles)])
