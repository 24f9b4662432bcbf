"""The likelihood of colour pixels: mixtures of discretised logistics whose channels know the channels before them."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.losses._arrays import floating
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
    return -mass.reshape(len(mass), -1).sum(axis=1)


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
