"""Semi-amortised training: inference begins where the encoder says, and gradient steps for each example go on."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxvae._checks import at_least
from jaxvae.objectives._apply import apply, batch_keys, model_inputs, networks_key, observed_of
from jaxvae.objectives._refinement import check_refinable, own_parameters, terms_at, unconstrained
from jaxvae.objectives.elbo import total_rate
from jaxvae.types import Array, Batch, Metrics, PRNGKey, PyTree

OF_THE_STEPS = 2**32 - 1  # no draw's number, so their keys are nobody else's


def semi_amortized_vae_loss(
    model: Any,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    num_steps: int = 4,
    step_size: float = 0.1,
    max_norm: float = 5.0,
    num_samples: int = 1,
    first_order: bool = False,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""The negative ELBO once q's parameters have been moved for each example, with the gradient through these steps.

    .. math:: \frac1B \sum_i -\mathrm{ELBO}(\lambda_i^K; x_i), \quad
              \lambda_i^{k+1} = \lambda_i^k + \eta\, c_i^k \nabla_\lambda \mathrm{ELBO}(\lambda_i^k; x_i)

    with λ⁰ what the encoder says and c the largest number up to 1 that keeps the gradient's norm within `max_norm`. It
    costs K + 1 passes through the decoder and, with the gradient through the steps, second derivatives of it. In the
    steps networks are not in training. Of a `FullGaussian` λ has the logarithm of the factor's diagonal.
    `evaluation.refine` measures what is left to gain.

    Args:
      model: a `VAE` or `CVAE` whose posterior is a record of arrays, such as `DiagGaussian`.
      params: what `model.init` returned.
      model_state: collections that the networks keep; these must not move.
      batch: as for `vae_loss`.
      key: the loss's key; example i draws from `fold_in(key, index[i])`.
      step: not used.
      num_steps: K.
      step_size: η.
      max_norm: of the gradient of an example.
      num_samples: draws for each of the K + 1 ELBOs.
      first_order: let λ^K depend on the encoder as λ⁰ does, and on the decoder not at all: no second derivatives.

    Returns:
      The loss in nats per example and `(model_state, metrics)`: "loss", "rate", "distortion" and "negative_elbo", which
      is the loss, and "amortized", the negative ELBO of the encoder's q; means over the batch, in nats.

    Raises:
      TypeError: x is not floating, the key is not typed, or the posterior has parameters that all examples share.
      ValueError: x does not have the model's shape, a number is out of range, or a network keeps batch statistics.

    References:
      Kim, Wiseman, Miller, Sontag and Rush, Semi-Amortized Variational Autoencoders, 2018.
    """
    del step
    at_least(1, num_steps=num_steps, num_samples=num_samples)
    for name, value in (("step_size", step_size), ("max_norm", max_norm)):
        if callable(value):  # a schedule
            raise TypeError(f"{name} must be a number, the same at every step, got {value!r}")
        if not 0 < value < float("inf"):
            raise ValueError(f"{name} must be a positive number, got {value}")
    check_refinable(model)
    inputs, keys = model_inputs(batch), batch_keys(key, batch)
    of_networks = networks_key(key, batch)

    def run(method: str, *arguments: Array, own: PRNGKey | None = of_networks, floating: bool = True) -> Any:
        observed = {} if method == "latent_prior" else observed_of(batch, model, method)
        options: dict[str, Any] = {"method": method, "networks_key": own, "floating": floating, **observed}
        output, state = apply(model, params, model_state, *arguments, **options)
        if state is not model_state:
            raise ValueError("semi_amortized_vae_loss runs the networks several times: they must keep no statistics")
        return output

    start, record_of = unconstrained(own_parameters(run("encode", *inputs), len(inputs[0])))
    prior = run("latent_prior", *inputs[1:], floating=False)

    def negative_elbo(free: PyTree, key: PRNGKey) -> tuple[Array, Array]:
        likelihood = lambda latent: run("log_likelihood", *inputs, latent, own=None)  # noqa: E731
        terms = terms_at(record_of(free), prior, likelihood, key=key, num_samples=num_samples)
        paid = total_rate(terms) - terms.log_likelihood.mean(axis=0)
        return paid.sum(), paid

    of_step = jax.vmap(lambda key, i: jax.random.fold_in(jax.random.fold_in(key, OF_THE_STEPS), i), (0, None))

    def move(free: PyTree, i: Array) -> tuple[PyTree, Array]:
        gradient, paid = jax.grad(negative_elbo, has_aux=True)(free, of_step(keys, i))
        return jax.tree.map(lambda at, by: at - step_size * by, free, _clipped(gradient, max_norm)), paid

    refined, paid = jax.lax.scan(move, start, jnp.arange(num_steps))
    if first_order:
        refined = jax.tree.map(lambda end, first: first + jax.lax.stop_gradient(end - first), refined, start)
    last = lambda latent: run("log_likelihood", *inputs, latent)  # noqa: E731
    terms = terms_at(record_of(refined), prior, last, key=keys, num_samples=num_samples)
    rate, distortion = total_rate(terms).mean(), -terms.log_likelihood.mean()
    metrics = {"rate": rate, "distortion": distortion, "negative_elbo": distortion + rate}
    metrics["amortized"] = jax.lax.stop_gradient(paid[0].mean())
    metrics["loss"] = metrics["negative_elbo"]
    return metrics["loss"], (model_state, metrics)


def _clipped(gradient: Any, max_norm: float) -> Any:
    """Each example's gradient, not longer than `max_norm`; smooth where it is zero."""
    leaves = jax.tree.leaves(gradient)
    square = sum(jnp.square(leaf).reshape(len(leaf), -1).sum(axis=1) for leaf in leaves)
    scale = max_norm * jax.lax.rsqrt(jnp.maximum(square, max_norm**2))
    return jax.tree.map(lambda leaf: leaf * scale.reshape(-1, *[1] * (leaf.ndim - 1)), gradient)
