"""The ELBO of an example under any q(z), not the encoder's alone: what moves q for each example by itself."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae.distributions import FullGaussian, OneHotCategorical, rate
from jaxvae.models.vae import sample_latents
from jaxvae.types import Array, PRNGKey, PyTree, Terms

METHODS = ("encode", "latent_prior", "log_likelihood")


def check_refinable(model: Any) -> None:
    """Raise `TypeError` where a model has no q(z|x) to move and nothing to measure it by."""
    for method in METHODS:
        if not hasattr(model, method):
            raise TypeError(
                f"only the posteriors of a VAE or CVAE are refined, and {type(model).__name__} has no {method}"
            )


def own_parameters(record: Any, count: int) -> Any:
    """The record with arrays of each example alone; `TypeError` where it has others."""
    leaves = jax.tree.leaves(record)
    if isinstance(record, OneHotCategorical):
        raise TypeError("draws of categorical latents have no gradient to refine q(z|x) by")
    if not isinstance(record, tuple) or not all(leaf.ndim >= 2 for leaf in leaves):
        raise TypeError(
            f"the posterior is a {type(record).__name__}, whose parameters are not arrays of each example: refine that "
            "of a DiagGaussian, a FullGaussian or GaussianMixtures"
        )
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (count, *leaf.shape[1:])), record)


def unconstrained(record: Any) -> tuple[PyTree, Callable[[PyTree], Any]]:
    """Arrays that gradient steps may move anywhere, and what makes the record of them again.

    Of a `FullGaussian` the diagonal of its factor by its logarithm: a step of itself could take it below zero, where
    there is no density. Other records of arrays are such arrays already.
    """
    if type(record) is not FullGaussian:
        return record, lambda free: free

    def with_diagonal(record: Any, of: Callable[[Array], Array]) -> FullGaussian:
        diagonal = of(jnp.diagonal(record.factor, axis1=1, axis2=2))
        own = jnp.eye(diagonal.shape[1], dtype=bool)[None]
        return FullGaussian(record.mean, jnp.where(own, diagonal[..., None], record.factor))

    return with_diagonal(record, jnp.log), lambda free: with_diagonal(free, jnp.exp)


def terms_at(
    record: Any, prior: Any, log_likelihood: Callable[[Array], Array], *, key: PRNGKey, num_samples: int
) -> Terms:
    """The terms of a batch where q is `record`, at draws of it; `log_likelihood` is log p(x|z) of latents [S, B, D]."""
    latent, log_posterior = sample_latents(record, key=key, num_samples=num_samples)
    log_ratio = jax.vmap(prior.log_prob)(latent) - log_posterior
    return Terms(log_likelihood(latent), log_ratio, {"z": rate(record, prior, latent, log_posterior)})
