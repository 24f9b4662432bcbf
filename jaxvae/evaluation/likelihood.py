"""How likely a model makes data: log p(x), estimated by importance sampling."""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae._checks import at_least
from jaxvae.evaluation.map import map_batches
from jaxvae.objectives.elbo import vae_log_weights
from jaxvae.types import Array, Batch, LatentModel, LogWeightsFn, Prepare, PRNGKey, PyTree


class LogLikelihood(NamedTuple):
    """Estimates of log p(x), in nats.

    Attributes:
      log_prob: [N], one for each example, in the order of the indices.
      standard_error: [N], the Monte Carlo error of each (delta method); NaN from a single sample.
    """

    log_prob: np.ndarray
    standard_error: np.ndarray

    @property
    def nll(self) -> float:
        """-log p(x), the mean over the examples."""
        return float(-self.log_prob.mean())

    @property
    def nll_standard_error(self) -> float:
        """The Monte Carlo error of `nll`: the importance samples' alone, not that of having drawn these examples."""
        return float(np.sqrt(np.square(self.standard_error).sum()) / len(self.standard_error))


def log_likelihood(
    model: LatentModel | LogWeightsFn,
    params: PyTree,
    model_state: PyTree,
    source: Batch,
    indices: Array,
    *,
    key: PRNGKey,
    num_samples: int,
    samples_per_pass: int = 50,
    prepare: Prepare | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> LogLikelihood:
    r"""Estimate log p(x) of every example by importance sampling from the posterior.

    .. math:: \log \hat p(x) = \log \frac1S \sum_s \frac{p(x, z_s)}{q(z_s | x)}, \quad z_s \sim q(z | x)

    A lower bound in expectation that never falls as S grows. Sample s of example i draws from a key of its own:
    `samples_per_pass` and the batch size set the memory and change nothing else. The sums are float32, or float64
    where the log weights are.

    Args:
      model: one with `terms`, or a function of its log weights, such as
        `functools.partial(cvae_prior_log_weights, model)`. Equal ones compile once, as for `map_batches`.
      params: the model's.
      model_state: the model's.
      source: arrays [N, ...], with `indices` from `jaxvae.data.evaluation_feed`.
      indices: [n, B] into them; -1 is padding.
      key: the same key as for `make_evaluate` gives the same binarised x.
      num_samples: S.
      samples_per_pass: how many go through the decoder at once.
      prepare: as in training.
      progress: called with (batches done, batches).

    Raises:
      TypeError: `model` is neither, or as for `map_batches`.
      ValueError: fewer than one sample, in all or in a pass, log weights that are not [S, B], or as for `map_batches`.

    References:
      Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2016.
    """
    at_least(1, num_samples=num_samples, samples_per_pass=samples_per_pass)
    estimate = partial(
        _estimate,
        _log_weights_of(model),
        num_samples=int(num_samples),
        samples_per_pass=int(min(samples_per_pass, num_samples)),
    )
    log_prob, error = map_batches(
        estimate, params, model_state, source, indices, key=key, prepare=prepare, progress=progress
    )
    return LogLikelihood(log_prob, error)


def _log_weights_of(model: LatentModel | LogWeightsFn) -> Callable[..., Array]:
    if hasattr(model, "terms"):
        return partial(vae_log_weights, cast(LatentModel, model))
    if not callable(model) or hasattr(model, "apply"):  # a Linen module can be called, but not for its log weights
        kind = type(model).__name__
        raise TypeError(f"model must have `terms`, or be a function of log weights (LogWeightsFn), got a {kind}")
    return model


def _estimate(
    log_weights_fn: Callable[..., Array],
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    num_samples: int,
    samples_per_pass: int,
) -> tuple[Array, Array]:
    """log p(x) and its standard error, [B] each: a streaming logsumexp of the log weights and of their doubles."""

    def log_weight(sample: Array) -> Array:
        sample_key = jax.random.fold_in(key, sample)
        log_weights = log_weights_fn(params, model_state, batch, key=sample_key, num_samples=1)
        if log_weights.shape != (1, *batch["index"].shape):
            raise ValueError(
                f"log weights must be [num_samples, B], here {(1, *batch['index'].shape)}, got {log_weights.shape}"
            )
        return log_weights[0].astype(jnp.promote_types(log_weights.dtype, jnp.float32))

    def add(carry: tuple[Array, Array, Array], samples: Array) -> tuple[tuple[Array, Array, Array], None]:
        log_weights = jax.vmap(log_weight)(samples)
        log_weights = jnp.where((samples < num_samples)[:, None], log_weights, -jnp.inf)
        largest, total, total_squared = carry
        new = jnp.maximum(largest, log_weights.max(axis=0))
        weights = jnp.exp(log_weights - new[None])
        shrink = jnp.exp(largest - new)
        total = total * shrink + weights.sum(axis=0)
        total_squared = total_squared * jnp.square(shrink) + jnp.square(weights).sum(axis=0)
        return (new, total, total_squared), None

    one = jax.eval_shape(log_weight, jax.ShapeDtypeStruct((), jnp.int32))
    zeros = jnp.zeros(one.shape, one.dtype)
    start = (jnp.full_like(zeros, jnp.finfo(one.dtype).min), zeros, zeros)
    passes = math.ceil(num_samples / samples_per_pass)
    samples = jnp.arange(passes * samples_per_pass, dtype=jnp.int32).reshape(passes, -1)
    (largest, total, total_squared), _ = jax.lax.scan(add, start, samples)
    log_prob = largest + jnp.log(total / num_samples)
    if num_samples == 1:
        return log_prob, jnp.full_like(zeros, jnp.nan)
    relative_variance = (num_samples * total_squared / jnp.square(total) - 1) / (num_samples - 1)
    return log_prob, jnp.sqrt(jnp.maximum(relative_variance, 0))
