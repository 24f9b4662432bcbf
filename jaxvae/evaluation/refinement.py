"""Inference for each example by itself: what the encoder loses by doing it for all at once."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxvae._checks import at_least
from jaxvae._variables import variables_of
from jaxvae.evaluation.map import map_batches
from jaxvae.losses import iwae_bound
from jaxvae.objectives._apply import batch_keys, model_inputs, observed_of
from jaxvae.objectives._refinement import check_refinable, own_parameters, terms_at, unconstrained
from jaxvae.objectives.elbo import total_rate
from jaxvae.types import Array, Batch, Prepare, PRNGKey, PyTree


class Refined(NamedTuple):
    """Three numbers for each example, from the loosest, nats.

    Attributes:
      amortized: [N], the ELBO of the encoder's q(z|x).
      refined: [N], the ELBO once q's parameters have been moved for this example alone.
      log_likelihood: [N], log p(x), by importance sampling from the refined q: from below, and tight for many samples.
      mean: [N, D], of the refined q.
    """

    amortized: np.ndarray
    refined: np.ndarray
    log_likelihood: np.ndarray
    mean: np.ndarray

    @property
    def amortization_gap(self) -> np.ndarray:
        """[N], what one encoder for all examples loses."""
        return self.refined - self.amortized

    @property
    def approximation_gap(self) -> np.ndarray:
        """[N], what the family of q loses, however it is fitted."""
        return self.log_likelihood - self.refined


class _Options(NamedTuple):
    steps: int
    learning_rate: float
    num_samples: int
    evaluation_samples: int


def refine(
    model: Any,
    params: PyTree,
    model_state: PyTree,
    source: Batch,
    indices: Array,
    *,
    key: PRNGKey,
    steps: int = 300,
    learning_rate: float = 0.03,
    num_samples: int = 8,
    evaluation_samples: int = 500,
    prepare: Prepare | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Refined:
    """Improve q(z|x) of every example by gradient steps on its ELBO, from where the encoder puts it.

    What is between the ELBO of the encoder and log p(x) falls in two: the amortisation gap, which these steps close,
    and the approximation gap, which only a richer family does. An example is refined alike in any batch.

    Args:
      model: a `VAE` or `CVAE` whose posterior is a record of arrays, such as `DiagGaussian`, `FullGaussian` or
        `GaussianMixtures`.
      params: the model's.
      model_state: the model's.
      source: arrays [N, ...], with `indices` from `jaxvae.data.evaluation_feed`: "x" and "index"; "condition" and
        "observed" where the model takes them.
      indices: [n, B] into them; -1 is padding.
      key: decides the noise.
      steps: of Adam for each example.
      learning_rate: of Adam, which falls to 0 by a cosine.
      num_samples: draws for each gradient.
      evaluation_samples: draws for each of the three numbers.
      prepare: as in training.
      progress: called with (batches done, batches).

    Raises:
      TypeError: the model has no `encode`, or a posterior with parameters that all examples share, such as a flow's.
      ValueError: a number is out of range, or as for `map_batches`.

    References:
      Cremer, Li and Duvenaud, Inference Suboptimality in Variational Autoencoders, 2018.
    """
    at_least(1, steps=steps, num_samples=num_samples, evaluation_samples=evaluation_samples)
    if not 0 < learning_rate < np.inf:
        raise ValueError(f"learning_rate must be a positive number, got {learning_rate}")
    check_refinable(model)
    options = _Options(int(steps), float(learning_rate), int(num_samples), int(evaluation_samples))
    found = map_batches(
        *(partial(_refined, model, options), params, model_state, source, indices),
        key=key,
        prepare=prepare,
        progress=progress,
    )
    return Refined(*found)


def _refined(
    model: Any, options: _Options, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey
) -> tuple[Array, Array, Array, Array]:
    variables, inputs = variables_of(params, model_state), model_inputs(batch)
    observed = observed_of(batch, model, "encode")
    first = own_parameters(model.apply(variables, *inputs, method="encode", **observed), len(inputs[0]))
    start, record_of = unconstrained(first)
    prior = model.apply(variables, *inputs[1:], method="latent_prior")
    keys = batch_keys(key, batch)

    def terms(record: Any, keys: PRNGKey, num_samples: int) -> tuple[Array, Array]:
        """The ELBO and log p(x), [B], from these draws."""
        own = observed_of(batch, model, "log_likelihood")
        likelihood = partial(model.apply, variables, *inputs, method="log_likelihood", **own)
        found = terms_at(record, prior, likelihood, key=keys, num_samples=num_samples)
        elbo = found.log_likelihood.mean(axis=0) - total_rate(found)
        return elbo, iwae_bound(found.log_likelihood + found.log_ratio)

    optimizer = optax.adam(optax.cosine_decay_schedule(options.learning_rate, options.steps))
    of_step = jax.vmap(jax.random.fold_in, in_axes=(0, None))

    def one_step(carry: tuple[PyTree, Any], i: Array) -> tuple[tuple[PyTree, Any], None]:
        free, state = carry
        gradient = jax.grad(lambda each: -terms(record_of(each), of_step(keys, i), options.num_samples)[0].sum())(free)
        updates, state = optimizer.update(gradient, state)
        return (optax.apply_updates(free, updates), state), None

    (free, _), _ = jax.lax.scan(one_step, (start, optimizer.init(start)), jnp.arange(options.steps))
    record, last = record_of(free), of_step(keys, options.steps)
    before, _ = terms(first, last, options.evaluation_samples)
    after, log_p = terms(record, last, options.evaluation_samples)
    return before, after, log_p, record.mean
