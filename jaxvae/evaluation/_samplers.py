"""Draws of p(z|y) for a batch: weighted and resampled, or the ends of Markov chains. Latents are [C, B, ...]."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae._checks import check_shape
from jaxvae._variables import variables_of
from jaxvae.evaluation._draws import draw_of, over
from jaxvae.keys import sample_keys
from jaxvae.models.vae import log_prob_of_each, mean_shape, sample_prior
from jaxvae.types import Array, Batch, PRNGKey, PyTree

BEST_ACCEPTANCE = 0.574  # of Langevin proposals in many dimensions (Roberts and Rosenthal, 1998)
Diagnostics = dict[str, Array]
Propose = Callable[[PRNGKey], tuple[Array, Array]]  # keys [B] -> z [B, ...] and log p(z) - log r(z|y), [B]


class Problem(NamedTuple):
    """p(z, y) of a batch: a model with its variables, and what is observed."""

    model: Any
    params: PyTree
    model_state: PyTree
    batch: Batch
    observation: Any

    def run(self, *inputs: Any, method: str, **options: Any) -> Any:
        """A method of the model, given the condition where there is one."""
        condition = (self.batch["condition"],) if "condition" in self.batch else ()
        return self.model.apply(
            variables_of(self.params, self.model_state), *inputs, *condition, method=method, **options
        )

    def log_prior(self, latent: Array) -> Array:
        """Log p(z), [B]."""
        return log_prob_of_each(self.run(method="latent_prior"), latent[None], "the prior")[0]

    def log_likelihood(self, latent: Array) -> Array:
        """Log p(y|z), [B]."""
        return self.observation.log_prob(self.run(latent, method="decode"), self.batch)

    def log_joint(self, latent: Array) -> Array:
        """Log p(z, y), [B]."""
        return self.log_likelihood(latent) + self.log_prior(latent)

    def filled(self, drawn: Array, known: Array | float | None = None) -> Array:
        """What is drawn [B, ...], with known entries in place of those that need not be: those of x unless given."""
        which = self.observation.known(self.batch)
        return drawn if which is None else jnp.where(which, self.batch["x"] if known is None else known, drawn)

    def from_prior(self, keys: PRNGKey) -> tuple[Array, Array]:
        """Draws of the prior, whose ratio to itself is one."""
        latent = sample_prior(self.run(method="latent_prior"), len(keys), key=keys)
        return latent, jnp.zeros(len(keys), jnp.float32)

    def from_encoder(self, encoder: Any, params: PyTree, model_state: PyTree, keys: PRNGKey) -> tuple[Array, Array]:
        """Draws of a partial encoder."""
        condition = (self.batch["condition"],) if "condition" in self.batch else ()
        collections = {
            name: tree for name, tree in variables_of(params, model_state).items() if name != "frozen"
        }  # the model it was trained against
        record = encoder.apply(collections, self.observation.seen(self.batch), *condition)
        latent = record.sample(key=keys)
        return latent, self.log_prior(latent) - log_prob_of_each(record, latent[None], "the partial encoder")[0]


class _Sums(NamedTuple):
    """Of the samples so far, with weights relative to the largest."""

    largest: Array  # log weight, [B]
    total: Array  # Σ w, [B]
    squares: Array  # Σ w², [B]
    best: Array  # the largest log w + Gumbel noise of each draw, [C, B]
    latent: Array  # where that was, [C, B, ...]


def resample(
    problem: Problem, propose: Propose, *, keys: PRNGKey, num_samples: int, num_draws: int
) -> tuple[Array, Diagnostics]:
    """Importance sampling, then draws with the probability of their share of the weights, [num_draws, B, ...]."""

    def weighted(sample: Array) -> tuple[Array, Array, PRNGKey]:
        own, of_draws = jnp.moveaxis(jax.vmap(partial(jax.random.split, num=2))(fold(keys, sample)), 1, 0)
        latent, log_ratio = propose(own)
        log_weight = problem.log_likelihood(latent) + log_ratio
        return latent, log_weight.astype(jnp.promote_types(log_weight.dtype, jnp.float32)), of_draws

    def add(sums: _Sums, sample: Array) -> tuple[_Sums, None]:
        latent, log_weight, of_draws = weighted(sample)
        largest = jnp.maximum(sums.largest, log_weight)
        shrink, weight = jnp.exp(sums.largest - largest), jnp.exp(log_weight - largest)
        # The largest of log w + Gumbel noise falls on a sample with the probability of its share of the weights.
        gumbel = jax.vmap(lambda each: jax.random.gumbel(each, (num_draws,), log_weight.dtype), out_axes=1)
        noisy = log_weight[None] + gumbel(of_draws)
        better = noisy > sums.best
        added = _Sums(
            largest,
            sums.total * shrink + weight,
            sums.squares * jnp.square(shrink) + jnp.square(weight),
            jnp.maximum(sums.best, noisy),
            jnp.where(over(better, sums.latent), latent[None], sums.latent),
        )
        return added, None

    latent, log_weight, _ = jax.eval_shape(weighted, jax.ShapeDtypeStruct((), jnp.int32))
    zeros = jnp.zeros(log_weight.shape, log_weight.dtype)
    lowest = jnp.full_like(zeros, jnp.finfo(zeros.dtype).min)
    best = jnp.broadcast_to(lowest, (num_draws, *lowest.shape))
    start = _Sums(lowest, zeros, zeros, best, jnp.zeros((num_draws, *latent.shape), latent.dtype))
    sums, _ = jax.lax.scan(add, start, jnp.arange(num_samples, dtype=jnp.int32))
    effective = jnp.square(sums.total) / sums.squares
    dead = over(~jnp.isfinite(effective), latent)[None]  # no sample has a weight, and no draw is one of them
    return jnp.where(dead, jnp.asarray(jnp.nan, latent.dtype), sums.latent), {
        "effective_samples": effective,
        "log_evidence": sums.largest + jnp.log(sums.total / num_samples),
    }


def gibbs(problem: Problem, start: Array, *, keys: PRNGKey, steps: int, burn_in: int) -> tuple[Array, Diagnostics]:
    """Hidden entries from p(x|z), then latents from q(z|x) by a Metropolis step; in the burn-in each is accepted."""
    batch = problem.batch
    dtype = batch["x"].dtype
    whole = {"observed": jnp.ones(batch["x"].shape, bool)} if "observed" in batch else {}

    def fill(latent: Array, keys: PRNGKey) -> tuple[Array, Array, Array]:
        """An x whose hidden entries are drawn; log p(x, z) of it, and log p(y, z) of what is visible."""
        record, log_prior = problem.run(latent, method="decode"), problem.log_prior(latent)
        x = problem.filled(draw_of(record, dtype, key=keys))
        return x, record.log_prob(x) + log_prior, problem.observation.log_prob(record, batch) + log_prior

    def one(latent: Array, keys: PRNGKey, always: Array) -> tuple[Array, Array, Array]:
        of_x, of_latent, of_choice = jnp.moveaxis(jax.vmap(partial(jax.random.split, num=3))(keys), 1, 0)
        x, log_whole, log_joint = fill(latent, of_x)
        posterior = problem.run(x, method="encode", **whole)
        proposed = posterior.sample(key=of_latent)
        log_q = log_prob_of_each(posterior, jnp.stack([latent, proposed]), "the posterior")
        record = problem.run(proposed, method="decode")
        log_ratio = record.log_prob(x) + problem.log_prior(proposed) - log_whole + log_q[0] - log_q[1]
        accept, probability = _metropolis(log_ratio, of_choice)
        accept |= always
        return jnp.where(over(accept, latent), proposed, latent), probability, log_joint

    def step(latent: Array, number: Array, keys: PRNGKey) -> tuple[Array, Array, Array]:
        return jax.vmap(one, in_axes=(0, 0, None))(latent, keys, number < burn_in)

    return _chains(step, start, start, keys=keys, steps=steps, burn_in=burn_in)


class _Moving(NamedTuple):
    """Langevin chains: where they are, log p(z, y) and its gradient there, and log of each one's step."""

    latent: Array
    log_joint: Array
    gradient: Array
    log_step: Array


def langevin(
    problem: Problem, start: Array, *, keys: PRNGKey, step_size: Array, steps: int, burn_in: int, adjusted: bool
) -> tuple[Array, Diagnostics]:
    """z + h ∇ log p(z, y) + √(2h) ε, a Metropolis step after each if it is adjusted; the burn-in then adapts h."""

    def density(latent: Array) -> tuple[Array, Array]:
        def total(one: Array) -> tuple[Array, Array]:
            log_joint = problem.log_joint(one)
            return log_joint.sum(), log_joint

        (_, log_joint), gradient = jax.vmap(jax.value_and_grad(total, has_aux=True))(latent)
        return log_joint, gradient

    def squared(values: Array) -> Array:
        return jnp.square(values).reshape(*values.shape[:2], -1).sum(axis=-1)

    def step(state: _Moving, number: Array, keys: PRNGKey) -> tuple[_Moving, Array, Array]:
        of_noise, of_choice = jnp.moveaxis(jax.vmap(jax.vmap(jax.random.split))(keys), 2, 0)
        shape, dtype = state.latent.shape[2:], state.latent.dtype
        noise = jax.vmap(jax.vmap(lambda each: jax.random.normal(each, shape, dtype)))(of_noise)
        h = over(jnp.exp(state.log_step), noise)
        moved = (state.latent + h * state.gradient + jnp.sqrt(2 * h) * noise).astype(dtype)
        log_joint, gradient = density(moved)
        if not adjusted:
            return _Moving(moved, log_joint, gradient, state.log_step), jnp.ones_like(log_joint), log_joint
        back = (state.latent - moved - h * gradient) / jnp.sqrt(2 * h)
        log_ratio = log_joint - state.log_joint + 0.5 * (squared(noise) - squared(back))
        accept, probability = jax.vmap(_metropolis)(log_ratio, of_choice)
        rate = jnp.where(number < burn_in, (number + 1).astype(probability.dtype) ** -0.6, 0)
        moved, log_joint, gradient = (
            jnp.where(over(accept, new), new, old)
            for new, old in zip((moved, log_joint, gradient), state[:3], strict=True)
        )
        log_step = state.log_step + rate * (probability - BEST_ACCEPTANCE)
        return _Moving(moved, log_joint, gradient, log_step), probability, log_joint

    log_joint, gradient = density(start)
    first = _Moving(start, log_joint, gradient, jnp.full_like(log_joint, jnp.log(step_size)))
    last, diagnostics = _chains(step, first, first.latent, keys=keys, steps=steps, burn_in=burn_in)
    return last.latent, diagnostics | {"step_size": jnp.exp(last.log_step).mean(axis=0)}


def _metropolis(log_ratio: Array, keys: PRNGKey) -> tuple[Array, Array]:
    """Whether proposals are accepted, and with which probability, [B] each; one that is not a number is not."""
    probability = jnp.where(jnp.isnan(log_ratio), 0, jnp.exp(jnp.minimum(log_ratio, 0)))
    return jax.vmap(jax.random.uniform)(keys) < probability, probability


class _Watch(NamedTuple):
    """Of the steps that count: of each chain the mean acceptance, and mean and squared deviations of log p(z, y)."""

    acceptance: Array
    mean: Array
    squares: Array


def _chains(
    step: Callable[..., tuple[Any, Array, Array]],
    start: Any,
    latent: Array,
    *,
    keys: PRNGKey,
    steps: int,
    burn_in: int,
) -> tuple[Any, Diagnostics]:
    """Where chains are in the end, and how they got there. Each has a key of its own for each example and step."""
    chain_keys = sample_keys(keys, len(latent))
    zeros = jnp.zeros(latent.shape[:2], jnp.promote_types(latent.dtype, jnp.float32))

    def body(carry: tuple[Any, _Watch], number: Array) -> tuple[tuple[Any, _Watch], None]:
        state, watch = carry
        state, probability, log_joint = step(state, number, jax.vmap(fold, in_axes=(0, None))(chain_keys, number))
        probability, log_joint = probability.astype(zeros.dtype), log_joint.astype(zeros.dtype)
        count = jnp.maximum(number - burn_in + 1, 1).astype(zeros.dtype)
        change = log_joint - watch.mean
        mean = watch.mean + change / count
        counted = _Watch(
            watch.acceptance + (probability - watch.acceptance) / count,
            mean,
            watch.squares + change * (log_joint - mean),
        )
        watch = jax.tree.map(lambda new, old: jnp.where(number >= burn_in, new, old), counted, watch)
        return (state, watch), None

    start = start, _Watch(zeros, zeros, zeros)
    (state, watch), _ = jax.lax.scan(body, start, jnp.arange(burn_in + steps, dtype=jnp.int32))
    within = (watch.squares / (steps - 1)).mean(axis=0)
    between = jnp.var(watch.mean, axis=0, ddof=1)
    r_hat = jnp.sqrt((steps - 1) / steps + between / within)
    return state, {"acceptance": watch.acceptance.mean(axis=0), "r_hat": r_hat}


def fold(keys: PRNGKey, number: Array) -> PRNGKey:
    """The keys [B] of the examples for one of many samples or steps."""
    return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, number)


def completed(problem: Problem, latents: Array, *, keys: PRNGKey) -> tuple[Array, Array]:
    """The mean of p(x|z), and one x, of each of the latents: [C, B, ...] each."""

    def one(latent_and_number: tuple[Array, Array]) -> tuple[Array, Array]:
        latent, number = latent_and_number
        record = problem.run(latent, method="decode")
        dtype = jnp.promote_types(record.mean.dtype, jnp.float32)
        if "x" in problem.batch:
            check_shape(mean_shape(record), problem.batch["x"].shape)
        return record.mean.astype(dtype), draw_of(record, dtype, key=fold(keys, number))

    return jax.lax.map(one, (latents, jnp.arange(len(latents), dtype=jnp.int32)))
