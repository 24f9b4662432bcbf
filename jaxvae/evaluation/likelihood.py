"""How likely a model makes data: the importance-sampled log-likelihood, and which latents it uses.

Everything runs over `(source, indices)` as `jaxvae.data.evaluation_feed` gives them: each index >= 0 counts once, -1
is padding. Example i draws from `fold_in(key, index[i])`, so no figure depends on how the data was batched.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae.types import Array, Batch, LogWeightsFn, Prepare, PRNGKey, PyTree


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
    log_weights_fn: LogWeightsFn,
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
    `samples_per_pass` and the batch size set the memory and change nothing else.

    Args:
      log_weights_fn: for example `functools.partial(vae_log_weights, model)`.
      params: the model's.
      model_state: the model's.
      source: arrays [N, ...].
      indices: [n, B] into them.
      key: the same key as for `make_evaluate` gives the same binarised images.
      num_samples: S.
      samples_per_pass: how many go through the decoder at once.
      prepare: as in training.
      progress: called with (batches done, batches).

    Raises:
      ValueError: fewer than one sample, in all or in a pass.

    References:
      Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2016.
    """
    for name, number in (("num_samples", num_samples), ("samples_per_pass", samples_per_pass)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    log_prob, error = map_batches(
        _Estimate(log_weights_fn, num_samples, min(samples_per_pass, num_samples)),
        params, model_state, source, indices, key=key, prepare=prepare, progress=progress,
    )  # fmt: skip
    return LogLikelihood(log_prob, error)


@dataclass(frozen=True)
class _Estimate:
    """The estimate for one batch. A record, so that equal ones are one compilation."""

    log_weights_fn: LogWeightsFn
    num_samples: int
    samples_per_pass: int

    def __call__(self, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> tuple[Array, Array]:
        """log p(x) and its standard error, [B] each: a streaming logsumexp of the weights and of their squares."""
        num_samples = self.num_samples

        def log_weight(sample: Array) -> Array:
            sample_key = jax.random.fold_in(key, sample)
            return self.log_weights_fn(params, model_state, batch, key=sample_key, num_samples=1)[0]

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

        zeros = jnp.zeros(batch["index"].shape, jnp.float32)
        start = (jnp.full_like(zeros, jnp.finfo(jnp.float32).min), zeros, zeros)
        passes = math.ceil(num_samples / self.samples_per_pass)
        samples = jnp.arange(passes * self.samples_per_pass).reshape(passes, -1)
        (largest, total, total_squared), _ = jax.lax.scan(add, start, samples)
        log_prob = largest + jnp.log(total / num_samples)
        if num_samples == 1:
            return log_prob, jnp.full_like(zeros, jnp.nan)
        relative_variance = (num_samples * total_squared / jnp.square(total) - 1) / (num_samples - 1)
        return log_prob, jnp.sqrt(jnp.maximum(relative_variance, 0))


def active_units(codes: np.ndarray, *, threshold: float = 0.01) -> int:
    """How many latents the posterior means [N, D] use: those whose variance over the data exceeds `threshold`.

    Raises:
      ValueError: a code is not finite.

    References:
      Burda, Grosse and Salakhutdinov, Importance Weighted Autoencoders, 2016, section 2.
    """
    codes = np.asarray(codes, np.float64)
    finite = np.isfinite(codes).all(axis=1)
    if not finite.all():
        row = int(finite.argmin())
        raise ValueError(f"codes must be finite: example {row} has {codes[row][~np.isfinite(codes[row])][0]}")
    return int((codes.var(axis=0) > threshold).sum())


def map_batches(
    fn: Callable[..., PyTree],
    params: PyTree,
    model_state: PyTree,
    source: Batch,
    indices: Array,
    *,
    key: PRNGKey,
    prepare: Prepare | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PyTree:
    """Run `fn(params, model_state, batch, *, key)` -> [B, ...] over a data set and join the results on the host.

    Equal `fn` and `prepare` compile once, however often they are run.

    Returns:
      `fn`'s pytree with NumPy leaves [N, ...], without the padding.
    """
    results = []
    for done, rows in enumerate(indices, start=1):
        results.append(jax.device_get(_run(fn, prepare, params, model_state, source, rows, key)))
        if progress is not None:
            progress(done, len(indices))
    real = np.asarray(indices).reshape(-1) >= 0
    return jax.tree.map(lambda *parts: np.concatenate(parts)[real], *results)


@partial(jax.jit, static_argnums=(0, 1))
def _run(
    fn: Callable[..., PyTree],
    prepare: Prepare | None,
    params: PyTree,
    model_state: PyTree,
    source: Batch,
    rows: Array,
    key: PRNGKey,
) -> PyTree:
    prepare_key, loss_key = jax.random.split(key)
    batch = {name: values[rows] for name, values in source.items()}
    if prepare is not None:
        batch = prepare(batch, key=prepare_key)
    with jax.default_matmul_precision("highest"):  # an accelerator's default may be narrower than float32
        return fn(params, model_state, batch, key=loss_key)
