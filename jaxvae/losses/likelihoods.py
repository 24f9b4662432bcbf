"""Likelihoods of pictures and of real numbers: Gaussian, Bernoulli, categorical, discretised logistic."""

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.losses._arrays import LOG_2PI, aligned, flat_examples, floating, softplus, sum_example


def gaussian_nll(mean: Array, log_var: Array, targets: Array) -> Array:
    r"""-log N(targets; mean, e^log_var), diagonal covariance.

    .. math:: \tfrac12 \sum_j \left(\log 2\pi + \log \sigma_j^2 + \frac{(x_j - \mu_j)^2}{\sigma_j^2}\right)

    Args:
      mean: `[B, ...]` floating.
      log_var: log σ², broadcasts to `mean`: a scalar is one fixed variance.
      targets: broadcasts to `mean`.

    Returns:
      `[B]` nats; a density, so it may be negative.

    Raises:
      TypeError: an argument is not floating.
      ValueError: there is no batch axis, or the shapes do not broadcast to that of `mean`.

    >>> gaussian_nll(jnp.zeros((1, 2)), jnp.float32(0.0), jnp.zeros((1, 2)))  # log 2π
    Array([1.837877], dtype=float32)
    """
    mean, log_var, targets = aligned(mean=mean, log_var=log_var, targets=targets)
    scaled = jnp.square((targets - mean) * jnp.exp(-0.5 * log_var))
    return sum_example(0.5 * (LOG_2PI + log_var + scaled))


def bernoulli_nll(logits: Array, targets: Array) -> Array:
    r"""-log p(targets) of independent Bernoulli variables, from their logits.

    .. math:: \sum_j \log(1 + e^{l_j}) - x_j l_j

    For grey targets in (0, 1) this is the cross-entropy: the expected value under binarisation, not the logarithm of
    a normalised density.

    Args:
      logits: `[B, ...]` floating, log p/(1 - p).
      targets: broadcasts to `logits`, in [0, 1] (not checked here; see `jaxvae.data`).

    Returns:
      `[B]` nats.

    Raises:
      TypeError: an argument is not floating (for 0..255 images, divide first).
      ValueError: there is no batch axis, or the shapes do not broadcast to that of `logits`.

    >>> bernoulli_nll(jnp.zeros((1, 4)), jnp.ones((1, 4)))  # 4 log 2
    Array([2.7725887], dtype=float32)
    """
    logits, targets = aligned(logits=logits, targets=targets)
    return sum_example(softplus(logits) - targets * logits)


def categorical_nll(logits: Array, targets: Array) -> Array:
    r"""-log p(targets) of independent categorical variables.

    .. math:: \sum_j \log \sum_v e^{l_{jv}} - l_{j x_j}

    Args:
      logits: `[B, ..., V]` floating, unnormalised.
      targets: `[B, ...]` integers in 0 .. V-1. A target outside that range gives NaN, never a silent value.

    Returns:
      `[B]` nats.

    Raises:
      TypeError: `logits` is not floating or `targets` not integer.
      ValueError: the shapes do not match.

    >>> categorical_nll(jnp.zeros((1, 4)), jnp.array([2]))  # log 4
    Array([1.3862944], dtype=float32)
    """
    logits = floating(logits, "logits")
    targets = jnp.asarray(targets)
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise TypeError(f"targets must be integers, got {targets.dtype}")
    if logits.ndim < 2 or targets.shape != logits.shape[:-1]:
        raise ValueError(f"logits must be [B, ..., V] and targets [B, ...], got {logits.shape} and {targets.shape}")
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1, mode="fill", fill_value=jnp.nan).squeeze(-1)
    chosen = jnp.where(targets < 0, jnp.nan, chosen)  # an index below zero would count from the end
    nats = jax.nn.logsumexp(logits, axis=-1) - chosen
    return sum_example(flat_examples(nats))


def discretized_logistic_nll(mean: Array, log_scale: Array, targets: Array, levels: int = 256) -> Array:
    r"""-log p(targets) of a logistic distribution whose mass is gathered on `levels` values in [-1, 1].

    .. math:: -\sum_j \log\left[\varsigma\left(\frac{x_j + h - \mu_j}{s_j}\right)
              - \varsigma\left(\frac{x_j - h - \mu_j}{s_j}\right)\right], \quad h = \frac{1}{\text{levels} - 1}

    with the sigmoid ς. The bins of -1 and 1 are open outwards, so that the masses sum to one.

    Args:
      mean: μ, `[B, ...]` floating.
      log_scale: log s, broadcasts to `mean`.
      targets: broadcasts to `mean`; on the values -1, -1 + 2h, ..., 1 (not checked here).
      levels: how many values there are, 256 for 8-bit images.

    Returns:
      `[B]` nats.

    Raises:
      TypeError: an argument is not floating.
      ValueError: there is no batch axis, the shapes do not broadcast to that of `mean`, or `levels` is below 2.

    References:
      Kingma et al., Improved Variational Inference with Inverse Autoregressive Flow, 2016; Salimans et al.,
      PixelCNN++, 2017.

    >>> discretized_logistic_nll(jnp.zeros((1, 1)), jnp.zeros((1, 1)), jnp.ones((1, 1)), levels=2)  # log 2
    Array([0.6931472], dtype=float32)
    """
    mean, log_scale, targets = aligned(mean=mean, log_scale=log_scale, targets=targets)
    return sum_example(-discretized_logistic_log_mass(mean, log_scale, targets, levels))


def discretized_logistic_log_mass(mean: Array, log_scale: Array, targets: Array, levels: int) -> Array:
    """The log of each target's mass, elementwise: see `discretized_logistic_nll`."""
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
    half_bin = 1 / (levels - 1)
    inverse_scale = jnp.exp(-log_scale)
    centred = targets - mean
    upper, lower = (centred + half_bin) * inverse_scale, (centred - half_bin) * inverse_scale
    below = -softplus(-upper)  # all the mass up to the bin's upper edge
    above = -softplus(lower)  # all the mass from its lower edge
    # log(sigmoid(upper) - sigmoid(lower)) without the difference
    inside = below + above + jnp.log(-jnp.expm1(-2 * half_bin * inverse_scale))
    return jnp.where(targets < half_bin - 1, below, jnp.where(targets > 1 - half_bin, above, inside))
