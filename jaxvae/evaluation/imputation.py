"""What is missing, given what is observed: the entries of x that a trained model draws for those that there are not."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxvae._checks import at_least
from jaxvae._variables import variables_of
from jaxvae.evaluation._draws import draw_of, over
from jaxvae.evaluation.map import map_batches
from jaxvae.objectives._apply import apply, batch_keys, model_inputs, observed_of
from jaxvae.types import Array, Batch, LatentModel, Prepare, PRNGKey, PyTree


class Imputed(NamedTuple):
    """Examples with their missing entries filled in, in the units in which the model sees x.

    Attributes:
      mean: [N, ...], E[x_missing | x_observed]; observed entries are themselves.
      std: [N, ...], the standard deviation of p(x_missing | x_observed): the error bar of a missing entry; 0 of an
        observed one.
      standard_error: [N, ...], the Monte Carlo error of `mean` (delta method), which more samples make smaller; 0 of an
        observed one.
      draws: [N, num_draws, ...], whole examples from p(x_missing | x_observed).
      effective_samples: [N], (Σ w)² / Σ w²: how many draws of the exact posterior the weighted samples are worth. Near
        1, a single sample has all the weight: take more, or do not trust it. NaN where none has any, as where an
        observed entry is NaN, and so is then what is filled in.
    """

    mean: np.ndarray
    std: np.ndarray
    standard_error: np.ndarray
    draws: np.ndarray
    effective_samples: np.ndarray


def impute(
    model: LatentModel,
    params: PyTree,
    model_state: PyTree,
    source: Batch,
    indices: Array,
    *,
    key: PRNGKey,
    num_samples: int = 1000,
    num_draws: int = 10,
    prepare: Prepare | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Imputed:
    r"""Draw the missing entries of every example by importance sampling and resampling.

    .. math:: E[x_m | x_o] \approx \sum_s \frac{w_s}{\sum_t w_t} E[x_m | z_s], \quad
              w_s = \frac{p(x_o | z_s)\, p(z_s)}{q(z_s | x_o)}, \quad z_s \sim q(z | x_o)

    and a draw takes z_s with the probability of its share of the weights, then x_m from p(x_m | z_s). Consistent as S
    grows. Sample s of example i draws from a key of its own, whatever the batch size.

    Args:
      model: a `VAE` or `CVAE`, or another `LatentModel` with `propose`, `log_joint` and `decode`, trained with
        "observed" in its batches.
      params: the model's.
      model_state: the model's.
      source: arrays [N, ...] with "x" and "observed", with `indices` from `jaxvae.data.evaluation_feed`.
      indices: [n, B] into them; -1 is padding.
      key: decides the draws.
      num_samples: S.
      num_draws: of each example.
      prepare: as in training.
      progress: called with (batches done, batches).

    Raises:
      TypeError: the model has no form for missing entries, or as for `map_batches`.
      ValueError: the source does not say which entries are observed, fewer than two samples or one draw, or as for
        `map_batches`.

    References:
      Mattei and Frellsen, MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets, 2019.
    """
    at_least(2, num_samples=num_samples)
    at_least(1, num_draws=num_draws)
    if "observed" not in source:
        raise ValueError("nothing says which entries are missing: the source needs 'observed', boolean of x's shape")
    fill = partial(_fill, model, num_samples=int(num_samples), num_draws=int(num_draws))
    filled: Imputed = map_batches(
        fill, params, model_state, source, indices, key=key, prepare=prepare, progress=progress
    )
    return filled


class _Sums(NamedTuple):
    """Of the samples so far, with weights relative to the largest; values are deviations from a fixed centre."""

    largest: Array  # log weight, [B]
    total: Array  # Σ w, [B]
    squares: Array  # Σ w², [B]
    mean: Array  # Σ w m, [B, ...], m the likelihood's mean
    drawn: Array  # Σ w x, x a draw of it
    drawn_squares: Array  # Σ w x²
    mean_of_squares: Array  # Σ w² m
    mean_squares: Array  # Σ w² m²
    best: Array  # the largest log w + Gumbel noise of each draw, [num_draws, B]
    latent: PyTree  # where that was, [num_draws, B, ...]

    @classmethod
    def zero(cls, log_weight: Array, mean: Array, latent: PyTree, num_draws: int) -> "_Sums":
        """Before the first sample; the arguments say shapes."""
        zeros, values = jnp.zeros_like(log_weight), jnp.zeros_like(mean)
        lowest = jnp.full_like(zeros, jnp.finfo(zeros.dtype).min)
        return cls(
            largest=lowest,
            total=zeros,
            squares=zeros,
            mean=values,
            drawn=values,
            drawn_squares=values,
            mean_of_squares=values,
            mean_squares=values,
            best=jnp.broadcast_to(lowest, (num_draws, *lowest.shape)),
            latent=jax.tree.map(lambda leaf: jnp.zeros((num_draws, *leaf.shape), leaf.dtype), latent),
        )

    def add(self, log_weight: Array, mean: Array, drawn: Array, latent: PyTree, gumbel: Array) -> "_Sums":
        """With a sample more; the Gumbel noise is [num_draws, B].

        The largest of log w + Gumbel noise falls on a sample with the probability of its share of the weights.
        """
        largest = jnp.maximum(self.largest, log_weight)
        shrink, weight = jnp.exp(self.largest - largest), jnp.exp(log_weight - largest)

        def plus(total: Array, value: Array | float, power: int = 1) -> Array:
            return total * over(shrink, total) ** power + over(weight, total) ** power * value

        noisy = log_weight[None] + gumbel
        better = noisy > self.best
        return _Sums(
            largest,
            plus(self.total, 1.0),
            plus(self.squares, 1.0, power=2),
            plus(self.mean, mean),
            plus(self.drawn, drawn),
            plus(self.drawn_squares, jnp.square(drawn)),
            plus(self.mean_of_squares, mean, power=2),
            plus(self.mean_squares, jnp.square(mean), power=2),
            jnp.maximum(self.best, noisy),
            jax.tree.map(lambda old, new: jnp.where(over(better, old), new, old), self.latent, latent),
        )


def _fill(
    model: Any, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey, num_samples: int, num_draws: int
) -> Imputed:
    """One batch: `Imputed`, each [B, ...]."""
    inputs = model_inputs(batch)
    dtype = jnp.promote_types(batch["x"].dtype, jnp.float32)  # sums of many samples
    sample_key, draw_key = jax.random.split(key)

    def decode(latent: PyTree) -> Any:
        return model.apply(variables_of(params, model_state), latent, *inputs[1:], method="decode")

    def propose(sample: Array) -> tuple[PyTree, Array, PRNGKey, PRNGKey]:
        """One latent for each example, its log weight [B], and two keys for each."""
        keys = batch_keys(jax.random.fold_in(sample_key, sample), batch)
        own, of_x, of_draws = jnp.moveaxis(jax.vmap(partial(jax.random.split, num=3))(keys), 1, 0)
        run = partial(apply, model, params, model_state, *inputs)
        seen = observed_of(batch, model, "propose")
        (latent, log_posterior), _ = run(method="propose", key=own, num_samples=1, **seen)
        (log_x, log_prior), _ = run(latent, method="log_joint", **observed_of(batch, model, "log_joint"))
        log_weight = (log_x + log_prior - log_posterior)[0]
        wide = log_weight.astype(jnp.promote_types(log_weight.dtype, jnp.float32))
        return jax.tree.map(lambda leaf: leaf[0], latent), wide, of_x, of_draws

    first, log_weight, *_ = propose(jnp.int32(0))
    centre = decode(first).mean.astype(dtype)  # near the values, so that their squares lose nothing

    def add(sums: _Sums, sample: Array) -> tuple[_Sums, None]:
        latent, log_weight, of_x, of_draws = propose(sample)
        record = decode(latent)
        gumbel = jax.vmap(lambda each: jax.random.gumbel(each, (num_draws,), log_weight.dtype), out_axes=1)(of_draws)
        return sums.add(
            log_weight, record.mean - centre, draw_of(record, dtype, key=of_x) - centre, latent, gumbel
        ), None

    start = _Sums.zero(log_weight, centre, first, num_draws)
    sums, _ = jax.lax.scan(add, start, jnp.arange(num_samples, dtype=jnp.int32))
    draws = _draws(decode, sums.latent, batch_keys(draw_key, batch), dtype)
    return _finish(sums, centre, batch, draws)


def _finish(sums: _Sums, centre: Array, batch: Batch, draws: Any) -> Imputed:
    total = over(sums.total, centre)
    mean, drawn = sums.mean / total, sums.drawn / total
    variance = sums.drawn_squares / total - jnp.square(drawn)
    spread = sums.mean_squares - 2 * mean * sums.mean_of_squares + jnp.square(mean) * over(sums.squares, centre)
    x, observed = batch["x"], batch["observed"]
    effective = jnp.square(sums.total) / sums.squares
    draws = jnp.where(over(jnp.isfinite(effective), draws), draws, jnp.nan)  # else no draw is one of the samples
    fields: list[Any] = [
        jnp.where(observed, x, centre + mean),
        jnp.where(observed, 0, jnp.sqrt(jnp.maximum(variance, 0))),
        jnp.where(observed, 0, jnp.sqrt(jnp.maximum(spread, 0)) / total),
        jnp.where(observed[:, None], x[:, None], draws),
        effective,
    ]
    return Imputed(*fields)


def _draws(decode: Callable[[PyTree], Any], latents: PyTree, keys: PRNGKey, dtype: Any) -> Array:
    """One x from each of the latents [num_draws, B, ...], [B, num_draws, ...]."""

    def one(latent_and_number: tuple[PyTree, Array]) -> Array:
        latent, number = latent_and_number
        return draw_of(decode(latent), dtype, key=jax.vmap(lambda each: jax.random.fold_in(each, number))(keys))

    numbers = jnp.arange(len(jax.tree.leaves(latents)[0]))
    return jnp.moveaxis(jax.lax.map(one, (latents, numbers)), 0, 1)
