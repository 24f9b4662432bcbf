"""Likelihoods of counts: Poisson, negative binomial, and both with more zeros than they expect.

None of them is a difference of large numbers: in float32 as in float64 the error is that of parameters which are a few
roundings off, for counts up to 10⁶ and as the negative binomial tends to a Poisson.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.losses._arrays import aligned, softplus, sum_example
from jaxvae.losses._gamma import log_ratio, stirling


def poisson_nll(log_rate: Array, targets: Array) -> Array:
    r"""-log p(targets) of independent Poisson variables.

    .. math:: \sum_j \lambda_j - x_j \log \lambda_j + \log x_j!

    Args:
      log_rate: log λ, `[B, ...]` floating, below 88 in float32.
      targets: counts of any integer or floating type, broadcast to `log_rate`. A negative one gives NaN; that they are
        whole numbers is not checked here.

    Returns:
      `[B]` nats.

    Raises:
      TypeError: `log_rate` is not floating, or `targets` are no real numbers.
      ValueError: there is no batch axis, or the shapes do not broadcast to that of `log_rate`.

    >>> poisson_nll(jnp.zeros((1, 2)), jnp.array([[0, 1]]))
    Array([2.], dtype=float32)
    """
    log_rate, targets = _with_counts(targets, log_rate=log_rate)
    return sum_example(poisson_terms(log_rate, targets))


def poisson_terms(log_rate: Array, targets: Array) -> Array:
    """The terms of `poisson_nll`, elementwise, of floating arrays of one shape."""
    rate = jnp.exp(log_rate)
    count = jnp.where(targets == 0, 1, targets)  # at zero, where no logarithm is needed, its gradient would be NaN
    log_count = jnp.log(count)
    log_rate_of_count = log_ratio((rate - count) / count, log_rate - log_count)
    # The rate's distance from the count, as a divergence, and the nats at the best rate.
    nats = rate - count - count * log_rate_of_count + stirling(count, log_count)
    return jnp.where(targets == 0, rate, nats)


def negative_binomial_nll(log_mean: Array, log_dispersion: Array, targets: Array) -> Array:
    r"""-log p(targets) of independent negative binomial variables: Poisson, with a rate drawn from a gamma.

    .. math:: \sum_j \log\frac{\Gamma(r_j)\, x_j!}{\Gamma(x_j + r_j)} + r_j \log\frac{r_j + \mu_j}{r_j}
              + x_j \log\frac{r_j + \mu_j}{\mu_j}

    The variance is μ + μ²/r: the larger the dispersion r, the nearer to a Poisson.

    Args:
      log_mean: log μ, `[B, ...]` floating, below 88 in float32; with an offset where the counts have one, such as the
        log of a library's size.
      log_dispersion: log r, below 88, broadcasts to `log_mean`: one for each element, each column, each example, or
        all.
      targets: counts of any integer or floating type, broadcast to `log_mean`. A negative one gives NaN; that they are
        whole numbers is not checked here.

    Returns:
      `[B]` nats.

    Raises:
      TypeError: a parameter is not floating, or `targets` are no real numbers.
      ValueError: there is no batch axis, or the shapes do not broadcast to that of `log_mean`.

    References:
      Lopez et al., Deep Generative Modeling for Single-Cell Transcriptomics, 2018 (there r is θ).

    >>> negative_binomial_nll(jnp.zeros((1, 1)), jnp.float32(0.0), jnp.array([[2]]))  # 3 log 2
    Array([2.0794...], dtype=float32)
    """
    log_mean, log_dispersion, targets = _with_counts(targets, log_mean=log_mean, log_dispersion=log_dispersion)
    return sum_example(negative_binomial_terms(log_mean, log_dispersion, targets))


def negative_binomial_terms(log_mean: Array, log_dispersion: Array, targets: Array) -> Array:
    """The terms of `negative_binomial_nll`, elementwise, of floating arrays of one shape."""
    mean, dispersion = jnp.exp(log_mean), jnp.exp(log_dispersion)
    count = jnp.where(targets == 0, 1, targets)  # as for a Poisson
    total = dispersion + count
    log_count, log_total = jnp.log(count), jnp.log(total)
    share = jax.nn.sigmoid(log_dispersion - log_mean)  # r / (r + μ): all of it for a Poisson
    of_total = log_ratio((mean - count) / total, jnp.logaddexp(log_mean, log_dispersion) - log_total)
    of_count = log_ratio(share * (mean - count) / count, log_mean - log_count - of_total)
    nats = dispersion * of_total - count * of_count  # none where the mean is the count
    nats += stirling(count, log_count) + stirling(dispersion, log_dispersion) - stirling(total, log_total)
    # log (r + x)/r
    many = dispersion > count
    nats += jnp.where(many, jnp.log1p(count / jnp.where(many, dispersion, count)), log_total - log_dispersion)
    return jnp.where(targets == 0, dispersion * softplus(log_mean - log_dispersion), nats)


def zero_inflated_poisson_nll(log_rate: Array, zero_logits: Array, targets: Array) -> Array:
    r"""-log p(targets) where each count is zero with probability π, and else a Poisson variable.

    .. math:: -\sum_j \log\left[\pi_j\, 1(x_j = 0) + (1 - \pi_j)\, p(x_j)\right]

    Args:
      log_rate: `[B, ...]`, as for `poisson_nll`.
      zero_logits: log π/(1 - π), broadcasts to `log_rate`.
      targets: as for `poisson_nll`.

    Returns:
      `[B]` nats.

    Raises:
      TypeError: a parameter is not floating, or `targets` are no real numbers.
      ValueError: there is no batch axis, or the shapes do not broadcast to that of `log_rate`.

    References:
      Lambert, Zero-Inflated Poisson Regression, 1992.

    >>> zero_inflated_poisson_nll(jnp.zeros((1, 1)), jnp.float32(-1e4), jnp.array([[0]]))  # never one more
    Array([1.], dtype=float32)
    """
    log_rate, zero_logits, targets = _with_counts(targets, log_rate=log_rate, zero_logits=zero_logits)
    return sum_example(zero_inflated_terms(poisson_terms(log_rate, targets), zero_logits, targets))


def zero_inflated_negative_binomial_nll(
    log_mean: Array, log_dispersion: Array, zero_logits: Array, targets: Array
) -> Array:
    """-log p(targets) where each count is zero with probability π, and else a negative binomial variable.

    The formula is that of `zero_inflated_poisson_nll`; arguments, result and errors are those of
    `negative_binomial_nll`, and `zero_logits`, log π/(1 - π), broadcasts to `log_mean`.
    """
    log_mean, log_dispersion, zero_logits, targets = _with_counts(
        targets, log_mean=log_mean, log_dispersion=log_dispersion, zero_logits=zero_logits
    )
    nats = negative_binomial_terms(log_mean, log_dispersion, targets)
    return sum_example(zero_inflated_terms(nats, zero_logits, targets))


def zero_inflated_terms(nats: Array, zero_logits: Array, targets: Array) -> Array:
    """What becomes of the nats of counts, elementwise, where zeros are added with log odds `zero_logits`."""
    # log(1 + e^logits) less its large part, if it has one; by `where`, for at 0 abs and max have one-sided derivatives.
    positive = zero_logits > 0
    large, small = jnp.where(positive, zero_logits, 0), softplus(jnp.where(positive, -zero_logits, zero_logits))
    of_zero = small - jnp.logaddexp(zero_logits - large, -nats - large)
    return jnp.where(targets == 0, of_zero, nats + softplus(zero_logits))


def _with_counts(targets: Array, **parameters: Array) -> list[Array]:
    """The parameters and the counts, aligned; integers become floating first, in a type that is no narrower."""
    targets = jnp.asarray(targets)
    if jnp.issubdtype(targets.dtype, jnp.integer):
        first = jnp.result_type(next(iter(parameters.values())))
        targets = targets.astype(jnp.promote_types(first, jnp.float32))
    elif not jnp.issubdtype(targets.dtype, jnp.floating):
        raise TypeError(f"targets must be counts, integer or floating, got {targets.dtype}")
    return aligned(**parameters, targets=targets)
