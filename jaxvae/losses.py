"""Divergences, likelihoods and bounds: arrays in, nats out.

Every `_kl` and `_nll` sums over the example and keeps the batch: `[B, ...] -> [B]`, natural logarithm. Take `.mean()`
yourself. The squared errors of VQ-VAE alone are means over the example, and no nats. Arguments in a narrower floating
type are widened to float32 first. This file needs nothing but JAX.
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
    return _sum_example(gaussian_kl_terms(mean, log_var, prior_mean, prior_log_var))


def gaussian_kl_terms(mean: Array, log_var: Array, prior_mean: Array, prior_log_var: Array) -> Array:
    """The terms of `gaussian_kl_between`, one for each dimension of the example: [B, D] nats."""
    mean, log_var, prior_mean, prior_log_var = _aligned(
        mean=mean, log_var=log_var, prior_mean=prior_mean, prior_log_var=prior_log_var
    )
    log_ratio = log_var - prior_log_var
    scaled = jnp.square((mean - prior_mean) * jnp.exp(-0.5 * prior_log_var))
    return 0.5 * (jnp.expm1(log_ratio) - log_ratio + scaled)


def categorical_kl(logits: Array, prior_logits: Array) -> Array:
    r"""KL(softmax(logits) || softmax(prior_logits)) of independent categorical variables.

    .. math:: \sum_j \sum_v p_{jv} \left(\log p_{jv} - \log q_{jv}\right)

    Args:
      logits: `[B, ..., V]` floating, unnormalised.
      prior_logits: broadcasts to `logits`; zeros are the uniform distribution.

    Returns:
      `[B]` nats.

    Raises:
      TypeError: an argument is not floating.
      ValueError: `logits` is not `[B, ..., V]`, or the shapes do not broadcast to it.

    >>> categorical_kl(jnp.array([[0.0, -1e4]]), jnp.zeros(2))  # log 2
    Array([0.6931472], dtype=float32)
    """
    return _sum_example(categorical_kl_terms(logits, prior_logits))


def categorical_kl_terms(logits: Array, prior_logits: Array) -> Array:
    """The terms of `categorical_kl`, one for each variable of the example: [B, D] nats."""
    logits, prior_logits = _floating(logits, "logits"), _floating(prior_logits, "prior_logits")
    if logits.ndim < 2:
        raise ValueError(f"logits must be [B, ..., V], got {logits.shape}")
    try:
        prior_logits = jnp.broadcast_to(prior_logits, logits.shape)
    except ValueError:
        raise ValueError(f"prior_logits must broadcast to logits {logits.shape}, got {prior_logits.shape}") from None
    log_p, log_q = jax.nn.log_softmax(logits), jax.nn.log_softmax(prior_logits)
    p = jnp.exp(log_p)
    # 0 log 0 = 0, also where a logit is -inf: there the difference would be NaN.
    terms = jnp.where(p > 0, p * jnp.where(p > 0, log_p - log_q, 0), 0)
    return terms.sum(axis=-1).reshape(len(logits), -1)


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
      targets: broadcasts to `logits`, in [0, 1] (not checked here; see `jaxvae.data`).

    Returns:
      `[B]` nats.

    Raises:
      TypeError: an argument is not floating (for 0..255 images, divide first).
      ValueError: there is no batch axis, or the shapes do not broadcast to that of `logits`.

    >>> bernoulli_nll(jnp.zeros((1, 4)), jnp.ones((1, 4)))  # 4 log 2
    Array([2.7725887], dtype=float32)
    """
    logits, targets = _aligned(logits=logits, targets=targets)
    return _sum_example(_softplus(logits) - targets * logits)


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
    nats = jax.nn.logsumexp(logits, axis=-1) - chosen
    return _sum_example(nats.reshape(len(nats), -1))


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
    mean, log_scale, targets = _aligned(mean=mean, log_scale=log_scale, targets=targets)
    return _sum_example(-discretized_logistic_log_mass(mean, log_scale, targets, levels))


def discretized_logistic_log_mass(mean: Array, log_scale: Array, targets: Array, levels: int) -> Array:
    """The log of each target's mass, elementwise: see `discretized_logistic_nll`."""
    if levels < 2:
        raise ValueError(f"levels must be at least 2, got {levels}")
    half_bin = 1 / (levels - 1)
    inverse_scale = jnp.exp(-log_scale)
    centred = targets - mean
    upper, lower = (centred + half_bin) * inverse_scale, (centred - half_bin) * inverse_scale
    below = -_softplus(-upper)  # all the mass up to the bin's upper edge
    above = -_softplus(lower)  # all the mass from its lower edge
    # log(sigmoid(upper) - sigmoid(lower)) without the difference
    inside = below + above + jnp.log(-jnp.expm1(-2 * half_bin * inverse_scale))
    return jnp.where(targets < half_bin - 1, below, jnp.where(targets > 1 - half_bin, above, inside))


def iwae_bound(log_weights: Array) -> Array:
    r"""The importance-weighted bound on log p(x).

    .. math:: \log \frac1S \sum_s w_s, \quad w_s = \frac{p(x, z_s)}{q(z_s | x)}, \quad z_s \sim q(z | x)

    Its expectation is the ELBO at S = 1, never falls as S grows, and tends to log p(x).

    Args:
      log_weights: log w, `[S, B]` floating.

    Returns:
      `[B]` nats, to be maximised.

    Raises:
      TypeError: `log_weights` is not floating.
      ValueError: it is not `[S, B]` with S of 1 or more.

    References:
      Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2016.

    >>> iwae_bound(jnp.log(jnp.array([[1.0], [3.0]])))  # log 2
    Array([0.6931472], dtype=float32)
    """
    log_weights = _floating(log_weights, "log_weights")
    if log_weights.ndim != 2 or not len(log_weights):
        raise ValueError(f"log_weights must be [S, B] with S of 1 or more, got {log_weights.shape}")
    return jax.nn.logsumexp(log_weights, axis=0) - math.log(len(log_weights))


def commitment(encoded: Array, quantized: Array) -> Array:
    r"""How far the encoder's output is from its code: the third term of the VQ-VAE, gradient to the encoder alone.

    .. math:: \frac1n \sum_j (z_j - \mathrm{sg}[e_j])^2

    A mean over the example, as the authors' code has it, where every other loss here is a sum; and no nats, but the
    square of the latents' unit. sg stops the gradient.

    Args:
      encoded: z, `[B, ...]` floating, before quantisation.
      quantized: e, the codes chosen, of the same shape; before `straight_through`.

    Returns:
      `[B]`.

    Raises:
      TypeError: an argument is not floating.
      ValueError: there is no batch axis, or the shapes differ.

    References:
      van den Oord, Vinyals and Kavukcuoglu, Neural Discrete Representation Learning, 2017, equation 3.

    >>> commitment(jnp.array([[1.0, 2.0]]), jnp.zeros((1, 2)))
    Array([2.5], dtype=float32)
    """
    return _mean_squared_error(encoded, jax.lax.stop_gradient(quantized))


def codebook_loss(encoded: Array, quantized: Array) -> Array:
    r"""The value of `commitment` with its gradient to the codes alone: the second term of the VQ-VAE.

    .. math:: \frac1n \sum_j (\mathrm{sg}[z_j] - e_j)^2

    For codes that are a parameter; those of `jaxvae.codebook.ema_update` need none. Arguments, result and errors are
    those of `commitment`.
    """
    return _mean_squared_error(jax.lax.stop_gradient(encoded), quantized)


def bits_per_dim(nats: Array, num_dims: int) -> Array:
    """Nats per example as bits per dimension: nats / (num_dims · log 2).

    Take means first: it is the figure that papers print for images, 3072 dimensions for 32×32×3. Only the probability
    of quantised values has a meaning in bits; a density's depends on the scale of the data.

    Raises:
      ValueError: `num_dims` is below 1.
    """
    if num_dims < 1:
        raise ValueError(f"num_dims must be at least 1, got {num_dims}")
    return nats / (num_dims * math.log(2))


@jax.custom_jvp
def _softplus(x: Array) -> Array:
    """log(1 + e^x). `jax.nn.softplus` treats infinities too, at several times the cost on CPU."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))


# Not what autodiff would find: at 0 it takes one-sided derivatives of max and abs.
_softplus.defjvps(lambda tangent, _, x: jax.nn.sigmoid(x) * tangent)


def _floating(values: Array, name: str) -> Array:
    values = jnp.asarray(values)
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating, got {values.dtype}; convert it first")
    return values.astype(jnp.promote_types(values.dtype, jnp.float32))


def _aligned(**arrays: Array) -> list[Array]:
    """Widen to at least float32, broadcast all to the first one's shape, which carries the batch, and flatten: [B, n].

    Flat, because XLA on CPU runs fused loops over [28, 28, 1] at a fraction of the speed of those over [784].
    """
    name, first = next(iter(arrays.items()))
    shape = jnp.shape(first)
    if not shape:
        raise ValueError(f"{name} must have a batch axis, [B, ...], got a scalar")
    aligned = []
    for other, values in arrays.items():
        values = _floating(values, other)
        try:
            aligned.append(jnp.broadcast_to(values, shape).reshape(shape[0], -1))
        except ValueError:
            raise ValueError(f"{other} must broadcast to {name} {shape}, got {values.shape}") from None
    return aligned


def _mean_squared_error(encoded: Array, quantized: Array) -> Array:
    if jnp.shape(encoded) != jnp.shape(quantized):
        raise ValueError(
            f"encoded and quantized must have one shape [B, ...], got {jnp.shape(encoded)} and {jnp.shape(quantized)}"
        )
    encoded, quantized = _aligned(encoded=encoded, quantized=quantized)
    return jnp.square(encoded - quantized).mean(axis=1)


def _sum_example(terms: Array) -> Array:
    return terms.sum(axis=1)
