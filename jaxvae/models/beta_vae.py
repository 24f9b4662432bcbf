"""The rate under control: β schedules, a capacity that grows, free bits.

A constant or scheduled β alone is `jaxvae.vae_loss(beta=...)`.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxvae import losses
from jaxvae.models.vae import apply_to_images, batch_keys, decoded_log_prob, draws, weight_at
from jaxvae.types import Array, Batch, Metrics, PRNGKey, PyTree, Schedule


def beta_vae_loss(
    model: Any,
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
              R = \sum_j \max\Big(\lambda, \frac1B \sum_i KL(q(z_j | x_i) || N(0, 1))\Big)

    With a capacity C, β is what Burgess et al. call γ, about 1000, and C grows from 0:
    `optax.linear_schedule(0.0, 25.0, 100_000)`. With free bits λ, a latent pays nothing for its first λ nats. Without
    either this is `vae_loss`.

    A function of the batch's mean rate is not a mean over examples (`global_batch`): train it under `jit`, on one
    device or over a mesh, and evaluate by `vae_loss`.

    Args:
      model: a `VAE`, or a module with the same `encode` and `decode`.
      params: what `model.init` returned.
      model_state: handed through.
      batch: "image" [B, ...] floating in [0, 1], "index" [B] integer.
      key: the step's key; example i draws from `fold_in(key, index[i])`.
      step: what schedules are evaluated at.
      beta: β, or γ where there is a capacity.
      capacity: C in nats for all latents together; None for no target.
      free_bits: λ in nats for each latent (Kingma et al., 2016).

    Each of the three is a number, zero or more, or an optax schedule of the step; a traced value is not checked.

    Returns:
      The loss in nats per image and `(model_state, metrics)`: "loss", "rate" (the true one), "distortion",
      "negative_elbo", and "capacity" where there is one; means over the batch, in nats.

    Raises:
      TypeError: the images are not floating, or the key is not typed.
      ValueError: the images do not have the model's shape; β, capacity or free bits are negative or not a number.

    References:
      Higgins et al., beta-VAE, 2017; Burgess et al., Understanding disentangling in beta-VAE, 2018; Kingma et al.,
      Improved Variational Inference with Inverse Autoregressive Flow, 2016 (free bits).
    """
    image = batch["image"]
    posterior = apply_to_images(model, params, image, method="encode")
    latent = draws(posterior, key=batch_keys(key, batch), num_samples=1)
    distortion = -decoded_log_prob(lambda z: model.apply(params, z, method="decode"), image, latent).mean()
    rates = jax.vmap(losses.gaussian_kl, in_axes=1)(*posterior).mean(axis=1)  # [D]
    rate = rates.sum()

    paid = jnp.maximum(rates, weight_at("free_bits", free_bits, step)).sum()
    metrics = {"rate": rate, "distortion": distortion, "negative_elbo": distortion + rate}
    if capacity is not None:
        metrics["capacity"] = jnp.asarray(weight_at("capacity", capacity, step), rate.dtype)
        paid = jnp.abs(paid - metrics["capacity"])
    metrics["loss"] = distortion + weight_at("beta", beta, step) * paid
    return metrics["loss"], (model_state, metrics)


beta_vae_loss.global_batch = True  # type: ignore[attr-defined]


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
    if period < 1 or num_cycles < 1:
        raise ValueError(f"period and num_cycles must be at least 1, got {period} and {num_cycles}")
    if not 0 < ramp <= 1:
        raise ValueError(f"ramp must lie in (0, 1], got {ramp}")
    cycle = optax.linear_schedule(0.0, peak, max(1, round(ramp * period)))
    return optax.join_schedules([cycle] * num_cycles, [period * i for i in range(1, num_cycles)])
