"""Divergences, likelihoods and bounds: arrays in, nats out.

Every `_kl` and `_nll` sums over the example and keeps the batch: `[B, ...] -> [B]`, natural logarithm. Take `.mean()`
yourself. Arguments in a narrower floating type are widened to float32 first. This file needs nothing but JAX.
"""

import math

import jax
import jax.numpy as jnp
from jax import Array

LOG_2PI = math.log(2 * math.pi)


def gaussian_kl(mean: Array, log_var: Array) -> Array:
    r"""KL(N(mean, e^log_var) || N(0, I)).

    .. math:: \tfrac12 \sum_j \left(\sigma_j^2 - 1 - \log \sigma_j^2 + \mu_j^2\right)

    Never negative: `expm1` keeps the digits that `exp(log_var) - 1` loses where the posterior nears the prior.

    Args:
      mean: `[B, ...]` floating.
      log_var: log σ², broadcasts to `mean`.

    Returns:
      `[B]` nats.

    Raises:
      TypeError: an argument is not floating.
      ValueError: there is no batch axis, or the shapes do not broadcast to that of `mean`.

    References:
      Kingma and Welling, Auto-Encoding Variational Bayes, 2014, appendix B.

    >>> gaussian_kl(jnp.array([[1.0, 0.0]]), jnp.zeros((1, 2)))
    Array([0.5], dtype=float32)
    """
    mean, log_var = _aligned(mean=mean, log_var=log_var)
    return _sum_example(0.5 * (jnp.expm1(log_var) - log_var + jnp.square(mean)))


def gaussian_kl_between(mean: Array, log_var: Array, prior_mean: Array, prior_log_var: Array) -> Array:
    r"""KL(N(mean, e^log_var) || N(prior_mean, e^prior_log_var)), diagonal covariances.

    .. math:: \tfrac12 \sum_j \left(\frac{\sigma_j^2}{s_j^2} - 1 - \log \frac{\sigma_j^2}{s_j^2}
              + \frac{(\mu_j - m_j)^2}{s_j^2}\right)

    Args:
      mean: `[B, ...]` floating.
      log_var: log σ², broadcasts to `mean`.
      prior_mean: m, broadcasts to `mean`.
      prior_log_var: log s², broadcasts to `mean`.

    Returns:
      `[B]` nats.

    Raises:
      TypeError: an argument is not floating.
      ValueError: there is no batch axis, or the shapes do not broadcast to that of `mean`.

    >>> gaussian_kl_between(*(jnp.full((1, 2), v) for v in (1.0, 0.5, 1.0, 0.5)))
    Array([0.], dtype=float32)
    """
    mean, log_var, prior_mean, prior_log_var = _aligned(
        mean=mean, log_var=log_var, prior_mean=prior_mean, prior_log_var=prior_log_var
    )
    log_ratio = log_var - prior_log_var
    scaled = jnp.square((mean - prior_mean) * jnp.exp(-0.5 * prior_log_var))
    return _sum_example(0.5 * (jnp.expm1(log_ratio) - log_ratio + scaled))


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
    mean, log_var, targets = _aligned(mean=mean, log_var=log_var, targets=targets)
    scaled = jnp.square((targets - mean) * jnp.exp(-0.5 * log_var))
    return _sum_example(0.5 * (LOG_2PI + log_var + scaled))


def bernoulli_nll(logits: Array, targets: Array) -> Array:
    r"""-log p(targets) of independent Bernoulli variables, from their logits.

    .. math:: \sum_j \log(1 + e^{l_j}) - x_j l_j

    For grey targets in (0, 1) this is the cross-entropy: the expected value under binarisation, not the logarithm of
    a normalised density.

    Args:
      logits: `[B, ...]` floating, log p/(1 - p).
      targets: broadcasts to `logits`, in [0, 1] (not checked here; see `jaxvae.data.check_images`).

    Returns:
      `[B]` nats.

    Raises:
      TypeError: an argument is not floating (for 0..255 images, divide first).
      ValueError: there is no batch axis, or the shapes do not broadcast to that of `logits`.

    >>> bernoulli_nll(jnp.zeros((1, 4)), jnp.ones((1, 4)))  # 4 log 2
    Array([2.7725887], dtype=float32)
    """
    logits, targets = _aligned(logits=logits, targets=targets)
    return _sum_example(jax.nn.softplus(logits) - targets * logits)


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
    logits = _floating(logits, "logits")
    targets = jnp.asarray(targets)
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise TypeError(f"targets must be integers, got {targets.dtype}")
    if logits.ndim < 2 or targets.shape != logits.shape[:-1]:
        raise ValueError(f"logits must be [B, ..., V] and targets [B, ...], got {logits.shape} and {targets.shape}")
    chosen = jnp.take_along_axis(logits, targets[..., None], axis=-1, mode="fill", fill_value=jnp.nan).squeeze(-1)
    chosen = jnp.where(targets < 0, jnp.nan, chosen)  # an index below zero would count from the end
    return _sum_example(jax.nn.logsumexp(logits, axis=-1) - chosen)


def _floating(values: Array, name: str) -> Array:
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating, got {values.dtype}; convert it first")
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def _aligned(**arrays: Array) -> list[Array]:
    """Widen to at least float32 and broadcast all to the first one's shape, which carries the batch."""
    name, first = next(iter(arrays.items()))
    shape = jnp.shape(first)
    if not shape:
        raise ValueError(f"{name} must have a batch axis, [B, ...], got a scalar")
    aligned = []
    for other, values in arrays.items():
        values = _floating(values, other)
        try:
            aligned.append(jnp.broadcast_to(values, shape))
        except ValueError:
            raise ValueError(f"{other} must broadcast to {name} {shape}, got {values.shape}") from None
    return aligned


def _sum_example(terms: Array) -> Array:
    return terms.sum(axis=tuple(range(1, terms.ndim)))
