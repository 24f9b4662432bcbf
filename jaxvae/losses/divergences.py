"""Divergences between distributions, the importance weighted bound, and what a quantiser adds."""

import math

import jax
import jax.numpy as jnp
from jax import Array

from jaxvae.losses._arrays import aligned, flat_examples, floating, sum_example


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
    mean, log_var = aligned(mean=mean, log_var=log_var)
    return sum_example(0.5 * (jnp.expm1(log_var) - log_var + jnp.square(mean)))


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
    return sum_example(gaussian_kl_terms(mean, log_var, prior_mean, prior_log_var))


def gaussian_kl_terms(mean: Array, log_var: Array, prior_mean: Array, prior_log_var: Array) -> Array:
    """The terms of `gaussian_kl_between`, one for each dimension of the example: [B, D] nats."""
    mean, log_var, prior_mean, prior_log_var = aligned(
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
    return sum_example(categorical_kl_terms(logits, prior_logits))


def categorical_kl_terms(logits: Array, prior_logits: Array) -> Array:
    """The terms of `categorical_kl`, one for each variable of the example: [B, D] nats."""
    logits, prior_logits = floating(logits, "logits"), floating(prior_logits, "prior_logits")
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
    return flat_examples(terms.sum(axis=-1))


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
    log_weights = floating(log_weights, "log_weights")
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


def _mean_squared_error(encoded: Array, quantized: Array) -> Array:
    if jnp.shape(encoded) != jnp.shape(quantized):
        raise ValueError(
            f"encoded and quantized must have one shape [B, ...], got {jnp.shape(encoded)} and {jnp.shape(quantized)}"
        )
    encoded, quantized = aligned(encoded=encoded, quantized=quantized)
    return jnp.square(encoded - quantized).mean(axis=1)
