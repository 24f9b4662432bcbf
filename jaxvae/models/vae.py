"""The variational autoencoder of Kingma and Welling (Auto-Encoding Variational Bayes, 2014).

Prior p(z), posterior q(z|x) and likelihood p(x|z) of your choice; given a condition c, all three may depend on it.
"""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvae._checks import at_least, check_shape, check_x
from jaxvae.distributions import (
    Bernoulli,
    DiagGaussian,
    Masked,
    OneHotCategorical,
    RelaxedOneHot,
    StandardNormal,
    equal_mixture,
    rate,
)
from jaxvae.keys import check_key, sample_keys
from jaxvae.models._parts import adopt_parts, check_nats, record_of
from jaxvae.networks._run import run
from jaxvae.priors import PseudoInputs
from jaxvae.types import Array, Distribution, Likelihood, Prior, PRNGKey, Terms

POSITIONAL = (
    inspect.Parameter.POSITIONAL_ONLY,
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.VAR_POSITIONAL,
)


class VAE(nn.Module):
    """An encoder, a decoder, and what their outputs stand for.

    Attributes:
      encoder: x [B, ...] -> the posterior's parameters, a tuple such as (mean, log_var), each [B, D].
      decoder: latents [B, D] -> the likelihood's parameters, [B, ...].
      likelihood: the decoder's output -> a record with `log_prob`, `sample`, `mode` and `mean`, such as `Bernoulli`,
        `Categorical` or `functools.partial(DiagGaussian, log_var=0.0)`.
      posterior: the encoder's output -> a record over latents [B, D] with `log_prob`, `sample` and `mean`, and where
        both come cheaper together `sample_and_log_prob(key=)`.
      prior: of `jaxvae.priors`, or yours: called with the condition, if any, it returns a record with `log_prob` and
        `sample`; a network that returns (mean, log_var) is a diagonal Gaussian given the condition.
      latent_dim: D, where the encoder has no attribute of that name; only sampling from N(0, I) needs it.

    Networks are Linen modules, NNX modules or functions without parameters. One whose `__call__` has an argument
    `train` is told whether it is in training (`deterministic`: whether it is not). Where encoder and decoder take a
    condition [B, ...] after their first argument, so does every method here but `sample`, which is `CVAE`'s.

    Where entries of x are missing, every method that takes x takes `observed` too, boolean of x's shape: the encoder is
    given x, zero where it is not observed, and the mask beside it, one array twice as wide along the last axis, and the
    likelihood sums the observed entries alone (`Masked`). A model is made for one or the other: `init` with `observed`
    where batches have it.

    Call a method through Flax: `model.apply(params, x, method="encode")`. The module draws nothing by itself.

    Raises (when it is made):
      TypeError: a part hides JAX arrays that no training would reach.
    """

    encoder: Callable[..., tuple[Array, ...]]
    decoder: Callable[..., Any]
    likelihood: Callable[..., Likelihood] = Bernoulli
    posterior: Callable[..., Distribution] = DiagGaussian
    prior: Callable[..., Any] = StandardNormal()
    latent_dim: int | None = None

    def __post_init__(self) -> None:
        """Take the parts, or refuse them."""
        adopt_parts(self)
        super().__post_init__()

    def __call__(self, x: Array, *condition: Array, observed: Array | None = None) -> Likelihood:
        """Reconstruct through the posterior's mean; also what `init` runs."""
        if self.is_initializing():
            self.latent_prior(*condition)  # makes its parameters
        return self.decode(self.encode(x, *condition, observed=observed).mean, *condition)

    def encode(self, x: Array, *condition: Array, observed: Array | None = None) -> Distribution:
        """q(z|x): x [B, ...] -> a record over latents [B, D].

        Raises:
          TypeError: x is not floating, `observed` is not boolean, the encoder's output is no tuple, or in training a
            posterior whose draws have no gradient.
          ValueError: x is empty, `observed` has another shape, or the encoder's output does not fit the posterior.
        """
        check_x(x)
        train = self.has_rng("dropout")
        seen = x if observed is None else with_mask(x, observed)
        output = run(self.encoder, seen, *self.embedded(condition, len(x)), train=train)
        record = record_of(self.posterior, output, len(x), train=train)
        if train and isinstance(record, OneHotCategorical):
            raise TypeError(
                "draws of a OneHotCategorical have no gradient, and the encoder would not learn from the likelihood: "
                "pass posterior=jaxvae.posteriors.GumbelSoftmax(), or train by objectives.enumerated_vae_loss"
            )
        return record

    def decode(self, latent: Array, *condition: Array) -> Likelihood:
        """p(x|z): latents [B, D] -> a record over x [B, ...]."""
        train = self.has_rng("dropout")
        output = run(self.decoder, latent, *self.embedded(condition, len(latent)), train=train)
        return run(self.likelihood, output, train=train)

    def latent_prior(self, *condition: Array) -> Prior:
        """p(z): the prior's record, of every example alike or of each given its condition [B, ...].

        Raises:
          TypeError: the prior returned no record.
          ValueError: it returned a tuple that is no mean and log-variance of each example.
        """
        count = len(condition[0]) if condition else 0
        record = run(self.prior, *self.embedded(condition, count), train=self.has_rng("dropout"))
        if isinstance(record, PseudoInputs):
            if condition:
                raise TypeError("a VampPrior mixes posteriors of x alone, and those of this model take a condition too")
            output = run(self.encoder, record.x, train=False)
            record = equal_mixture(record_of(self.posterior, output, len(record.x), train=False))
        if isinstance(record, tuple) and not hasattr(record, "log_prob"):
            record = _gaussian(record)
        if isinstance(record, StandardNormal) and record.shape is None:
            record = StandardNormal(latent_dim_of(self))
        if not (hasattr(record, "log_prob") and hasattr(record, "sample")):
            raise TypeError(f"the prior must return a record with log_prob and sample, got {type(record).__name__}")
        return record

    def sample(self, num: int, *, key: PRNGKey) -> Likelihood:
        """p(x|z) at `num` latents from the prior; its `.mean` is a picture, its `.sample(key=)` an x."""
        check_key(key)
        at_least(1, num=num)
        return self.decode(sample_prior(self.latent_prior(), num, key=key))

    def propose(
        self, x: Array, *condition: Array, key: PRNGKey, num_samples: int, observed: Array | None = None
    ) -> tuple[Array, Array]:
        """Draw z ~ q(z|x), `num_samples` times for each example.

        Args:
          x: [B, ...].
          condition: [B, ...], where the model takes one.
          key: of shape () or [B] (one per example); the first S draws are the same for every larger S.
          num_samples: S.
          observed: [B, ...], which entries of x there are; all unless given.

        Returns:
          The latents [S, B, D] and their log q(z|x), [S, B] nats.
        """
        posterior = self.encode(x, *condition, observed=observed)
        return sample_latents(posterior, key=key, num_samples=num_samples)

    def log_posterior(self, x: Array, *condition_and_latent: Array, observed: Array | None = None) -> Array:
        """Log q(z|x) of latents [S, B, D], the last argument, [S, B] nats."""
        *condition, latent = condition_and_latent
        posterior = self.encode(x, *condition, observed=observed)
        if isinstance(posterior, RelaxedOneHot):
            raise TypeError(
                "relaxed draws have no density log q(z|x), which the doubly reparameterised gradient needs: train by "
                "vae_loss, or iwae_loss with doubly_reparameterized=False"
            )
        return log_prob_of_each(posterior, latent, "the posterior")

    def log_joint(self, x: Array, *condition_and_latent: Array, observed: Array | None = None) -> tuple[Array, Array]:
        """Log p(x|z) and log p(z) of latents [S, B, D], the last argument, each [S, B] nats."""
        *condition, latent = condition_and_latent
        log_prior = log_prob_of_each(self.latent_prior(*condition), latent, "the prior")
        return self.log_likelihood(x, *condition, latent, observed=observed), log_prior

    def log_likelihood(self, x: Array, *condition_and_latent: Array, observed: Array | None = None) -> Array:
        """Log p(x|z) of latents [S, B, D], the last argument, [S, B] nats; they are decoded as one batch of S·B."""
        *condition, latent = condition_and_latent
        repeated = [jnp.broadcast_to(c, (len(latent), *c.shape)).reshape(-1, *c.shape[1:]) for c in condition]
        return decoded_log_prob(lambda z: self.decode(z, *repeated), x, latent, observed)

    def terms(
        self, x: Array, *condition: Array, key: PRNGKey, num_samples: int, observed: Array | None = None
    ) -> Terms:
        """What objectives and estimates read, at `propose`'s draws: see `jaxvae.types.Terms`."""
        posterior, prior = self.encode(x, *condition, observed=observed), self.latent_prior(*condition)
        latent, log_posterior = sample_latents(posterior, key=key, num_samples=num_samples)
        log_ratio = log_prob_of_each(prior, latent, "the prior") - log_posterior
        rates = {"z": rate(posterior, prior, latent, log_posterior)}
        return Terms(self.log_likelihood(x, *condition, latent, observed=observed), log_ratio, rates)

    def embedded(self, condition: tuple[Array, ...], count: int) -> tuple[Array, ...]:
        """The conditions of `count` examples as the networks see them: here as they are."""
        del count
        return condition


def _gaussian(output: tuple[Array, ...]) -> DiagGaussian:
    """The prior that a network's (mean, log_var) stand for."""
    shapes = [jnp.shape(each) for each in output]
    if len(output) != 2 or any(len(shape) < 2 for shape in shapes):
        raise ValueError(
            "a prior that returns a tuple says (mean, log_var) of each example given its condition, [B, D]; one that "
            f"is the same for every example returns a record with log_prob and sample(num, key=). Got {shapes}"
        )
    return DiagGaussian(*output)


def latent_dim_of(model: Any) -> int | None:
    """The size of the latent, where the model or its encoder says it."""
    own = getattr(model, "latent_dim", None)
    return own if own is not None else getattr(getattr(model, "encoder", None), "latent_dim", None)


def sample_prior(prior: Prior, num: int, *, key: PRNGKey) -> Array:
    """Draw `num` latents from a prior's record, which describes all examples alike or each of `num` by itself."""
    first = next(iter(inspect.signature(prior.sample).parameters.values()), None)
    if first is not None and first.kind in POSITIONAL and first.name != "key":  # whatever it calls the number
        latent: Array = prior.sample(num, key=key)
    else:
        latent = prior.sample(key=key)
    if len(latent) != num:
        raise ValueError(
            f"the prior's sample returned {len(latent)} latents where {num} are asked for: a prior that is the same "
            "for every example has sample(num, key=)"
        )
    return latent


def sample_latents(posterior: Distribution, *, key: PRNGKey, num_samples: int) -> tuple[Array, Array]:
    """`num_samples` draws of each example, [S, B, ...], and their log q, [S, B] nats; the key has shape () or [B]."""
    at_least(1, num_samples=num_samples)
    keys = sample_keys(key, num_samples)
    if hasattr(posterior, "sample_and_log_prob"):
        latent, log_prob = jax.vmap(lambda each: posterior.sample_and_log_prob(key=each))(keys)
        check_nats("the posterior", log_prob[0], latent.shape[1])
        return latent, log_prob
    latent = jax.vmap(lambda each: posterior.sample(key=each))(keys)
    return latent, log_prob_of_each(posterior, latent, "the posterior")


def log_prob_of_each(record: Any, latent: Array, name: str) -> Array:
    """The log-probability of latents [S, B, ...] under a record over [B, ...], [S, B] nats."""
    says = _size_of(record)
    if says is not None and len(says) == latent.ndim - 1 and says[1:] != latent.shape[2:]:
        raise ValueError(f"{name} is over latents of shape {says[1:]}, but those of the encoder are {latent.shape[2:]}")
    log_prob = jax.vmap(record.log_prob)(latent)
    check_nats(name, log_prob[0], latent.shape[1])
    return log_prob


def _size_of(record: Any) -> tuple[int, ...] | None:
    """The shape of a record's mean; None where it says none or, as N(0, I), takes latents of any size."""
    if isinstance(record, StandardNormal) and record.shape is None:
        return None
    try:
        return None if callable(getattr(record, "mean", None)) else _shape_of_mean(record)
    except (AttributeError, NotImplementedError):  # a prior need not have one
        return None


def with_mask(x: Array, observed: Array) -> Array:
    """What an encoder sees of x [B, ..., C] with missing entries, [B, ..., 2C]: zeros in their place, then the mask.

    Raises:
      TypeError: `observed` is not boolean.
      ValueError: it has another shape than x.
    """
    if observed.dtype != bool:
        raise TypeError(f"observed must be bool, true where a value counts, got {observed.dtype}")
    if observed.shape != x.shape:
        raise ValueError(f"observed must be {x.shape}, as x is, got {observed.shape}")
    return jnp.concatenate([jnp.where(observed, x, 0), observed.astype(x.dtype)], axis=-1)


def decoded_log_prob(
    decode: Callable[[Array], Likelihood], x: Array, latent: Array, observed: Array | None = None
) -> Array:
    """Log p(x|z) of x [B, ...] at latents [S, B, D], [S, B] nats; the decoder sees one batch of S·B."""
    num_samples = len(latent)
    reconstruction = decode(latent.reshape(-1, *latent.shape[2:]))
    check_shape(mean_shape(reconstruction), x.shape)

    def repeat(values: Array) -> Array:
        return jnp.broadcast_to(values, (num_samples, *values.shape)).reshape(-1, *values.shape[1:])

    if observed is not None:
        reconstruction = Masked(reconstruction, repeat(observed))
    repeated = repeat(x)
    nats = check_nats("the likelihood", reconstruction.log_prob(repeated), len(repeated))
    return nats.reshape(num_samples, -1)


def mean_shape(record: Distribution) -> tuple[int, ...]:
    """The shape of a record's mean, which is not computed for it.

    Raises:
      TypeError: it has none.
    """
    try:
        return _shape_of_mean(record)
    except AttributeError as error:
        if hasattr(type(record), "mean"):  # there is one, and the error is its own
            raise
        raise TypeError(
            f"{type(record).__name__} has no `mean`: a posterior or a likelihood needs its means [B, ...], "
            "see jaxvae.types.Distribution"
        ) from error


def _shape_of_mean(record: Distribution) -> tuple[int, ...]:
    return jax.eval_shape(lambda: record.mean).shape
