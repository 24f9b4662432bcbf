"""Mixtures: of discretised logistics whose channels know those before them, for colours; of Gaussians, for latents."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.losses._arrays import LOG_2PI, flat_examples, floating
from jaxvae.losses.likelihoods import discretized_logistic_log_mass


def discretized_logistic_mixture_nll(
    logits: Array, locations: Array, log_scales: Array, coefficients: Array, targets: Array, levels: int = 256
) -> Array:
    r"""-log p(targets) of pixels, each a mixture of logistics that are gathered on `levels` values in [-1, 1].

    .. math:: -\sum_j \log \sum_m \pi_{jm} \prod_c
              P\Big(x_{jc} \,\Big|\, \mu_{jmc} + \sum_{d<c} a_{jmcd} x_{jd}, \, s_{jmc}\Big)

    with P the mass of `discretized_logistic_nll`. A component is that of the whole pixel, and its location for a
    channel moves with the values of the channels before: the masses of all L^C colours of a pixel sum to one.

    Args:
      logits: log π but for a constant, `[B, ..., M]` floating.
      locations: μ, `[B, ..., M, C]`.
      log_scales: log s, `[B, ..., M, C]`.
      coefficients: a, `[B, ..., M, C(C-1)/2]`: of channel 1 for channel 0, of channel 2 for 0 and 1, and so on.
      targets: `[B, ..., C]`; on the values -1, -1 + 2/(levels - 1), ..., 1 (not checked here).
      levels: how many values there are, 256 for 8-bit images.

    Returns:
      `[B]` nats.

    Raises:
      TypeError: an argument is not floating.
      ValueError: the shapes do not fit each other, or `levels` is below 2.

    References:
      Salimans et al., PixelCNN++, 2017.

    >>> locations, alike = jnp.zeros((1, 2, 1)), jnp.zeros((1, 2))  # two components of one channel
    >>> discretized_logistic_mixture_nll(alike, locations, locations, locations[..., :0], jnp.ones((1, 1)), 2)  # log 2
    Array([0.6931472], dtype=float32)
    """
    mass = discretized_logistic_mixture_log_mass(logits, locations, log_scales, coefficients, targets, levels)
    return -flat_examples(mass).sum(axis=1)


def discretized_logistic_mixture_log_mass(
    logits: Array, locations: Array, log_scales: Array, coefficients: Array, targets: Array, levels: int
) -> Array:
    """The log of each pixel's mass, `[B, ...]`: see `discretized_logistic_mixture_nll`."""
    logits, locations, log_scales, coefficients, targets = (
        floating(values, name)
        for name, values in (
            ("logits", logits),
            ("locations", locations),
            ("log_scales", log_scales),
            ("coefficients", coefficients),
            ("targets", targets),
        )
    )
    if locations.ndim < 3 or logits.shape != locations.shape[:-1]:
        raise ValueError(
            f"logits must be [B, ..., M] and locations [B, ..., M, C], got {logits.shape} and {locations.shape}"
        )
    channels = locations.shape[-1]
    for name, values, shape in (
        ("log_scales", log_scales, locations.shape),
        ("coefficients", coefficients, (*logits.shape, channels * (channels - 1) // 2)),
        ("targets", targets, (*logits.shape[:-1], channels)),
    ):
        if values.shape != shape:
            raise ValueError(f"{name} must be {shape} for locations {locations.shape}, got {values.shape}")
    spread = jnp.broadcast_to(targets[..., None, :], locations.shape)
    moved, _ = channel_by_channel(locations, coefficients, lambda _, channel: spread[..., channel])
    of_component = discretized_logistic_log_mass(moved, log_scales, spread, levels).sum(axis=-1)
    return jax.nn.logsumexp(jax.nn.log_softmax(logits, axis=-1) + of_component, axis=-1)


def channel_by_channel(
    locations: Array, coefficients: Array, value_of: Callable[[Array, int], Array]
) -> tuple[Array, Array]:
    """Locations [..., C] moved by the values of the channels before, and those values, [..., C].

    `value_of(location, channel)` says the value of a channel [...], given where its logistic now stands.
    """
    moved: list[Array] = []
    values: list[Array] = []
    first = 0
    for channel in range(locations.shape[-1]):
        location = locations[..., channel]
        for before, value in enumerate(values):
            location = location + coefficients[..., first + before] * value
        moved.append(location)
        values.append(value_of(location, channel))
        first += channel
    return jnp.stack(moved, axis=-1), jnp.stack(values, axis=-1)


def gaussian_mixture_nll(logits: Array, mean: Array, log_var: Array, targets: Array) -> Array:
    r"""-log p(targets) under one mixture of K diagonal Gaussians, the same for every example.

    .. math:: -\log \sum_k \pi_k \prod_j N(x_j; \mu_{kj}, \sigma_{kj}^2)

    Needs memory for [K, B] numbers, where the sum over components of `gaussian_nll` takes [K, B, D] for its gradient.

    Args:
      logits: log π but for a constant, `[K]` floating.
      mean: μ, `[K, ...]`.
      log_var: log σ², as `mean`.
      targets: `[B, ...]`.

    Returns:
      `[B]` nats; a density, so it may be negative.

    Raises:
      TypeError: an argument is not floating.
      ValueError: the shapes do not fit each other.

    >>> alike = jnp.zeros((2, 3))  # two components that are the same one
    >>> gaussian_mixture_nll(jnp.zeros(2), alike, alike, jnp.zeros((1, 3)))  # 3/2 log 2π
    Array([2.7568154], dtype=float32)
    """
    logits, mean, log_var, targets = (
        floating(values, name)
        for name, values in (("logits", logits), ("mean", mean), ("log_var", log_var), ("targets", targets))
    )
    fit = mean.ndim and log_var.shape == mean.shape and logits.shape == mean.shape[:1]
    if not fit or not targets.ndim or targets.shape[1:] != mean.shape[1:]:
        raise ValueError(
            "expected logits [K], mean and log_var [K, ...] and targets [B, ...], "
            f"got {logits.shape}, {mean.shape}, {log_var.shape} and {targets.shape}"
        )
    mean, log_var, targets = (
        values.reshape(len(values), math.prod(mean.shape[1:]))
        for values in (mean, log_var, targets)  # B may be 0
    )
    return -_mixture_log_density(jax.nn.log_softmax(logits), mean, log_var, targets)


def _component_log_joint(log_weights: Array, mean: Array, log_var: Array, x: Array) -> Array:
    """log π + log N of each component for each example, [K, B]: one dimension after the other."""

    def squared(x: Array, mean: Array, inverse_std: Array) -> Array:
        return jnp.square((x[None] - mean[:, None]) * inverse_std[:, None])

    each = x.T, mean.T, jnp.exp(-0.5 * log_var.T)
    total, _ = jax.lax.scan(
        lambda total, one: (total + squared(*one), None),
        squared(*(values[0] for values in each)),
        tuple(values[1:] for values in each),
        unroll=16,  # few programs to start on an accelerator; on a CPU 13 times as fast as all [K, B, D] at once
    )
    return (log_weights - 0.5 * (LOG_2PI + log_var).sum(axis=1))[:, None] - 0.5 * total


def _weighted_squares(weights: Array, mean: Array, x: Array) -> Array:
    """Of weights [K, D] the sums over d of weight (x - mean)², [K, B]; backwards the squares are computed once more."""

    @jax.checkpoint
    def squares(weights: Array, mean: Array, x: Array) -> Array:
        return weights[:, None] * jnp.square(x[None] - mean[:, None])

    each = weights.T, mean.T, x.T
    total, _ = jax.lax.scan(
        lambda total, one: (total + squares(*one), None),
        squares(*(values[0] for values in each)),
        tuple(values[1:] for values in each),
        unroll=16,
    )
    return total


@jax.custom_jvp
def _mixture_log_density(log_weights: Array, mean: Array, log_var: Array, x: Array) -> Array:
    """[B] of weights that are normalised, [K], [K, D], [K, D] and [B, D]."""
    return jax.nn.logsumexp(_component_log_joint(log_weights, mean, log_var, x), axis=0)


@_mixture_log_density.defjvp
def _mixture_log_density_jvp(primals: tuple[Array, ...], tangents: tuple[Array, ...]) -> tuple[Array, Array]:
    """The gradient as matrix products, but for log σ², where as in the value large squares would cancel."""
    log_weights, mean, log_var, x = primals
    d_log_weights, d_mean, d_log_var, d_x = tangents
    joint = _component_log_joint(log_weights, mean, log_var, x)
    value = jax.nn.logsumexp(joint, axis=0)
    share = jax.nn.softmax(joint, axis=0)  # p(k | x), [K, B]

    centre = jax.lax.stop_gradient(mean.mean(axis=0, keepdims=True))  # far from the origin, too, products stay small
    mean, x = mean - centre, x - centre
    precision = jnp.exp(-log_var)
    product = partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)
    pull, slope = precision * d_mean, 0.5 * precision * d_log_var
    of_component = d_log_weights - 0.5 * d_log_var.sum(axis=1) - (mean * pull).sum(axis=1)
    of_each = of_component[:, None] + product(pull, x.T) + _weighted_squares(slope, mean, x)
    of_x = product(share.T, precision * mean) - x * product(share.T, precision)
    return value, (share * of_each).sum(axis=0) + (of_x * d_x).sum(axis=1)
