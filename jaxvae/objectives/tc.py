"""β-TCVAE (Chen, Li, Grosse and Duvenaud, Isolating Sources of Disentanglement in VAEs, 2018).

The rate is taken apart into what the latents say about x, how much they depend on each other, and how far
each is from its prior; β weighs the dependence alone.
"""

import math
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae import losses
from jaxvae._checks import weight_at
from jaxvae._whole_batch import needs_whole_batch
from jaxvae.distributions import DiagGaussian, StandardNormal, rate
from jaxvae.losses._arrays import floating
from jaxvae.models._parts import check_nats
from jaxvae.models.vae import sample_latents
from jaxvae.objectives._apply import apply, batch_keys, model_inputs, networks_key, observed_of
from jaxvae.types import Array, Batch, LatentModel, Metrics, Prior, PRNGKey, PyTree, Schedule

Estimator = Literal["stratified", "weighted"]
STANDARD_NORMAL = StandardNormal()


class RateTerms(NamedTuple):
    """The rate of each example in three parts, each [B] nats; their sum is log q(z|x) - log p(z).

    Attributes:
      mutual_information: log q(z|x) - log q(z).
      total_correlation: log q(z) - Σ_j log q(z_j).
      dimension_kl: Σ_j log q(z_j) - log p(z_j).
    """

    mutual_information: Array
    total_correlation: Array
    dimension_kl: Array


def rate_terms(
    posterior: DiagGaussian,
    latent: Array,
    *,
    num_examples: int,
    estimator: Estimator = "stratified",
    prior: Prior = STANDARD_NORMAL,
) -> RateTerms:
    r"""Mutual information, total correlation and dimension-wise KL, estimated from a batch.

    The aggregate posterior q(z) = 1/N Σ_n q(z|x_n) of N examples is estimated at each z_i from the batch of B:

    .. math:: \hat q(z_i) = \frac1N q(z_i|x_i) + \frac{N-1}{N(B-1)} \sum_{j \ne i} q(z_i|x_j)
              \quad\text{(stratified)}, \qquad
              \hat q(z_i) = \frac{1}{NB} \sum_j q(z_i|x_j) \quad\text{(weighted)}

    and the same for every q(z_j). The stratified density is unbiased, and exact where the batch is the whole set (its
    logarithm is biased low, as any estimate's). The weighted one is too small, by a factor N where the batch is the
    whole set. A batch must not hold an example twice.

    Args:
      posterior: q(z|x) of the batch, [B, D].
      latent: z ~ q(z|x), [B, D].
      num_examples: N, of the whole training set; at least B.
      estimator: "stratified", or "weighted", the minibatch weighting of the paper's section 3.
      prior: the record of p(z).

    Raises:
      TypeError: the posterior's density does not factorise over the latents, or not known how.
      ValueError: a batch of one, or one larger than the set; a prior whose `log_prob` is not [B].

    References:
      Chen et al., 2018, section 3 and appendix C; the weights here are those that make the estimate exact for B = N.
    """
    if type(posterior) is not DiagGaussian or latent.ndim != 2:  # a class made from it may have another density
        raise TypeError(
            "the total correlation needs a posterior whose density factorises over latents [B, D]: a DiagGaussian, got "
            f"{type(posterior).__name__} over {latent.shape}"
        )
    batch_size = len(latent)
    if batch_size < 2:
        raise ValueError(f"the total correlation needs a batch of at least 2 examples, got {batch_size}")
    if num_examples < batch_size:
        raise ValueError(
            f"num_examples must be the training set's, at least the batch's {batch_size}, got {num_examples}"
        )
    if estimator not in ("stratified", "weighted"):
        raise ValueError(f"estimator must be 'stratified' or 'weighted', got {estimator!r}")

    latent = floating(latent, "latent")
    mean, log_var = (jnp.broadcast_to(floating(leaf, "posterior"), latent.shape) for leaf in posterior)
    centred = jnp.square(latent[:, None] - mean[None]) * jnp.exp(-log_var)[None]
    log_density = -0.5 * (centred + log_var[None] + losses.LOG_2PI)  # log q(z_i[d] | x_j), [i, j, d]

    if estimator == "stratified":
        other = math.log((num_examples - 1) / (num_examples * (batch_size - 1)))
        log_share = jnp.where(jnp.eye(batch_size, dtype=bool), -math.log(num_examples), other)
    else:
        log_share = jnp.full((batch_size, batch_size), -math.log(num_examples * batch_size))

    log_joint = jax.nn.logsumexp(log_density.sum(axis=-1) + log_share, axis=1)
    log_marginals = jax.nn.logsumexp(log_density + log_share[..., None], axis=1).sum(axis=-1)
    return RateTerms(
        mutual_information=posterior.log_prob(latent) - log_joint,
        total_correlation=log_joint - log_marginals,
        dimension_kl=log_marginals - check_nats("the prior", prior.log_prob(latent), batch_size),
    )


def tc_vae_loss(
    model: LatentModel,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    num_examples: int,
    beta: float | Array | Schedule = 6.0,
    information_weight: float = 1.0,
    dimension_weight: float = 1.0,
    estimator: Estimator = "stratified",
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""Distortion + α · mutual information + β · total correlation + γ · dimension-wise KL, means over the batch.

    At α = β = γ = 1 it is the sampled negative ELBO, whatever the estimator. The estimates compare the examples of the
    batch, so it is no mean over examples: train it under `jit`, on one device or over a mesh, and evaluate by
    `vae_loss`.

    Args:
      model: a `VAE` whose posterior is a diagonal Gaussian, or a module with the same `encode`, `latent_prior` and
        `log_likelihood`.
      params: what `model.init` returned.
      model_state: collections that the networks keep.
      batch: as for `vae_loss`; B at least 2, no example twice.
      key: the loss's key; example i draws from `fold_in(key, index[i])`.
      step: what a schedule is evaluated at.
      num_examples: N, of the whole training set.
      beta: weight of the total correlation: a number, zero or more, or an optax schedule. 6 in the paper's dSprites.
      information_weight: α, of the mutual information; zero or more.
      dimension_weight: γ, of the dimension-wise KL; zero or more.
      estimator: of `rate_terms`.

    Returns:
      The loss in nats per example and `(model_state, metrics)`: "loss", "distortion", "rate" (closed form),
      "negative_elbo", "mutual_information", "total_correlation" and "dimension_kl", means over the batch, in nats.

    Raises:
      TypeError: x is not floating, the key is not typed, the posterior does not factorise, or the model is no VAE.
      ValueError: x does not have the model's shape, a weight is negative or not a number, or as `rate_terms`.
    """
    inputs, run = model_inputs(batch), partial(apply, model, params, model_state, networks_key=networks_key(key, batch))
    observed = observed_of(batch, model, "encode")
    if not hasattr(model, "latent_prior"):
        raise TypeError(
            f"a {type(model).__name__} has no latent_prior: the total correlation is of one array of latents under a "
            "prior of its own, as a VAE or a CVAE has; train it by vae_loss"
        )
    posterior, new_state = run(*inputs, method="encode", **observed)
    needs_whole_batch("tc_vae_loss", instead="evaluate by vae_loss")
    latent, log_posterior = sample_latents(posterior, key=batch_keys(key, batch), num_samples=1)
    prior, new_state = apply(
        *(model, params, new_state, *inputs[1:]),
        method="latent_prior",
        networks_key=networks_key(key, batch),
        floating=False,
    )
    log_likelihood, new_state = apply(
        *(model, params, new_state, *inputs, latent),
        method="log_likelihood",
        networks_key=networks_key(key, batch),
        **observed,
    )
    terms = rate_terms(posterior, latent[0], num_examples=num_examples, estimator=estimator, prior=prior)
    distortion, kl = -log_likelihood.mean(), rate(posterior, prior, latent, log_posterior).sum(axis=-1).mean()
    metrics = {name: values.mean() for name, values in terms._asdict().items()}
    metrics |= {"distortion": distortion, "rate": kl, "negative_elbo": distortion + kl}
    metrics["loss"] = (
        metrics["distortion"]
        + weight_at("information_weight", information_weight, step) * metrics["mutual_information"]
        + weight_at("beta", beta, step) * metrics["total_correlation"]
        + weight_at("dimension_weight", dimension_weight, step) * metrics["dimension_kl"]
    )
    return metrics["loss"], (new_state, metrics)
