"""The variational autoencoder of Kingma and Welling (Auto-Encoding Variational Bayes, 2014).

Prior z ~ N(0, I), posterior q(z|x) = N(mean(x), e^log_var(x)), likelihood p(x|z) of your choice.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from flax import errors
from flax import linen as nn

from jaxvae import losses
from jaxvae.distributions import Bernoulli, DiagGaussian
from jaxvae.keys import check_key, example_keys, sample_keys
from jaxvae.types import Array, Batch, Metrics, PRNGKey, PyTree, Schedule


class Likelihood(Protocol):
    """What a decoder's output stands for: any record of `jaxvae.distributions`."""

    @property
    def mean(self) -> Array: ...  # noqa: D102
    def log_prob(self, x: Array) -> Array: ...  # noqa: D102
    def sample(self, *, key: PRNGKey) -> Array: ...  # noqa: D102
    def mode(self) -> Array: ...  # noqa: D102


class VAE(nn.Module):
    """An encoder, a decoder and a likelihood.

    Attributes:
      encoder: images [B, ...] in [0, 1] -> (mean, log_var), each [B, D].
      decoder: latents [B, D] -> the likelihood's parameters, [B, ...].
      likelihood: the decoder's output -> a record with `log_prob`, `sample`, `mode` and `mean`, such as `Bernoulli`,
        `Categorical` or `functools.partial(DiagGaussian, log_var=0.0)`.
      latent_dim: D, where the encoder has no attribute of that name; only `sample` needs it.

    Call a method through Flax: `model.apply(params, image, method="encode")`. The module draws nothing by itself.
    """

    encoder: Callable[[Array], tuple[Array, Array]]
    decoder: Callable[[Array], Array]
    likelihood: Callable[[Array], Likelihood] = Bernoulli
    latent_dim: int | None = None

    def __call__(self, image: Array) -> Likelihood:
        """Reconstruct through the posterior's mean; also what `init` runs."""
        return self.decode(self.encode(image).mean)

    def encode(self, image: Array) -> DiagGaussian:
        """q(z|x): images [B, ...] -> a Gaussian over [B, D]."""
        check_floating(image)
        return DiagGaussian(*self.encoder(image))

    def decode(self, latent: Array) -> Likelihood:
        """p(x|z): latents [B, D] -> a record over images [B, ...]."""
        return self.likelihood(self.decoder(latent))

    def sample(self, num: int, *, key: PRNGKey) -> Likelihood:
        """p(x|z) at `num` latents from the prior; its `.mean` is a picture, its `.sample(key=)` an image."""
        check_key(key)
        check_num(num)
        latent_dim = _latent_dim(self)
        if latent_dim is None:
            raise ValueError("sample needs the size of the latent: pass VAE(..., latent_dim=D)")
        return self.decode(jax.random.normal(key, (num, latent_dim), jnp.float32))

    def propose(self, image: Array, *, key: PRNGKey, num_samples: int) -> tuple[Array, Array]:
        """Draw z ~ q(z|x), `num_samples` times for each image.

        Args:
          image: [B, ...] in [0, 1].
          key: of shape () or [B] (one per example); the first S draws are the same for every larger S.
          num_samples: S.

        Returns:
          The latents [S, B, D] and their log q(z|x), [S, B] nats.
        """
        posterior = self.encode(image)
        latent = draws(posterior, key=key, num_samples=num_samples)
        return latent, jax.vmap(posterior.log_prob)(latent)

    def log_posterior(self, image: Array, latent: Array) -> Array:
        """Log q(z|x) of latents [S, B, D], [S, B] nats."""
        return jax.vmap(self.encode(image).log_prob)(latent)

    def log_joint(self, image: Array, latent: Array) -> tuple[Array, Array]:
        """Log p(x|z) and log p(z) of latents [S, B, D], each [S, B] nats; they are decoded as one batch of S·B."""
        return decoded_log_prob(self.decode, image, latent), jax.vmap(standard_log_prob)(latent)

    def log_weights(self, image: Array, *, key: PRNGKey, num_samples: int) -> Array:
        """Log p(x, z) - log q(z|x) at `propose`'s draws, [S, B] nats.

        `jaxvae.losses.iwae_bound` turns them into a bound on log p(x).
        """
        latent, log_posterior = self.propose(image, key=key, num_samples=num_samples)
        log_likelihood, log_prior = self.log_joint(image, latent)
        return log_likelihood + log_prior - log_posterior


def vae_loss(
    model: Any,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    beta: float | Array | Schedule = 1.0,
    num_samples: int = 1,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""The mean of distortion + β · rate: the negative ELBO at β = 1, with the KL in closed form.

    .. math:: \frac1B \sum_i -\frac1S \sum_s \log p(x_i | z_{si}) + \beta\, KL(q(z | x_i) || N(0, I)),
              \quad z_{si} \sim q(z | x_i)

    Bind the model and it is a `LossFn`: `functools.partial(vae_loss, model)`.

    Args:
      model: a `VAE`, or a module with the same `encode` and `decode`.
      params: what `model.init` returned.
      model_state: handed through; a VAE has none.
      batch: "image" [B, ...] floating in [0, 1], "index" [B] integer.
      key: the step's key; example i draws from `fold_in(key, index[i])`.
      step: what a schedule is evaluated at.
      beta: a number, or an optax schedule of the step. Zero or more; a traced value is not checked.
      num_samples: S, draws of the latent for each image.

    Returns:
      The loss in nats per image and `(model_state, metrics)`, the metrics "loss", "rate", "distortion" and
      "negative_elbo" being means over the batch, in nats.

    Raises:
      TypeError: the images are not floating, or the key is not typed.
      ValueError: the images do not have the model's shape, or β is negative or not a number.

    References:
      Kingma and Welling, Auto-Encoding Variational Bayes, 2014; Higgins et al., beta-VAE, 2017 (β ≠ 1).
    """
    image = batch["image"]
    weight = weight_at("beta", beta, step)
    posterior = apply_to_images(model, params, image, method="encode")
    latent = draws(posterior, key=batch_keys(key, batch), num_samples=num_samples)

    decode = partial(model.apply, params, method="decode")
    distortion = -decoded_log_prob(decode, image, latent).mean(axis=0)
    rate = losses.gaussian_kl(posterior.mean, posterior.log_var)
    metrics = weighted_elbo_metrics(distortion, rate, weight)
    return metrics["loss"], (model_state, metrics)


def sampled_vae_loss(
    model: Any,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    num_samples: int = 1,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""The negative ELBO with every term sampled: for models whose KL has no closed form.

    .. math:: \frac1{SB} \sum_{s,i} \log q(z_{si} | x_i) - \log p(x_i, z_{si}), \quad z_{si} \sim q(z | x_i)

    Args:
      model: a module with `propose` and `log_joint`, such as `VAE` or `HierarchicalVAE`.
      params: what `model.init` returned.
      model_state: handed through.
      batch: "image" [B, ...] floating in [0, 1], "index" [B] integer.
      key: the step's key; example i draws from `fold_in(key, index[i])`.
      step: not used.
      num_samples: S, draws of the latents for each image.

    Returns:
      The loss in nats per image and `(model_state, metrics)`: "loss", "rate", "distortion" and "negative_elbo", means
      over the batch, in nats. The rate is log q(z|x) - log p(z) at the draws.

    Raises:
      TypeError: the images are not floating, or the key is not typed.
      ValueError: the images do not have the model's shape, or there are no samples.

    References:
      Kingma and Welling, Auto-Encoding Variational Bayes, 2014, equation 6.
    """
    del step
    log_likelihood, log_ratio = log_weight_terms(model, params, batch, key=key, num_samples=num_samples)
    metrics = elbo_metrics(log_likelihood, log_ratio)
    metrics["loss"] = metrics["negative_elbo"]
    return metrics["loss"], (model_state, metrics)


def vae_log_weights(
    model: Any, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey, num_samples: int
) -> Array:
    """`VAE.log_weights` as a `LogWeightsFn`, [S, B] nats; example i draws from `fold_in(key, index[i])`."""
    del model_state
    keys = batch_keys(key, batch)
    return apply_to_images(model, params, *inputs(batch), key=keys, num_samples=num_samples, method="log_weights")


def log_weight_terms(
    model: Any, params: PyTree, batch: Batch, *, key: PRNGKey, num_samples: int
) -> tuple[Array, Array]:
    """Log p(x|z) and log p(z) - log q(z|x) at z ~ q(z|x), each [S, B] nats. Their sum is the log weight."""
    keys = batch_keys(key, batch)
    latent, log_posterior = apply_to_images(
        model, params, *inputs(batch), key=keys, num_samples=num_samples, method="propose"
    )
    log_likelihood, log_prior = model.apply(params, *inputs(batch), latent, method="log_joint")
    return log_likelihood, log_prior - log_posterior


def weighted_elbo_metrics(distortion: Array, rate: Array, weight: float | Array) -> Metrics:
    """The means of distortion + weight · rate, its parts [B], and the negative ELBO."""
    metrics = {
        "loss": distortion + weight * rate,
        "rate": rate,
        "distortion": distortion,
        "negative_elbo": distortion + rate,
    }
    return {name: values.mean() for name, values in metrics.items()}


def elbo_metrics(log_likelihood: Array, log_ratio: Array) -> Metrics:
    """The means of what `log_weight_terms` returns, signed as losses."""
    distortion, rate = -log_likelihood.mean(), -log_ratio.mean()
    return {"rate": rate, "distortion": distortion, "negative_elbo": distortion + rate}


def draws(posterior: DiagGaussian, *, key: PRNGKey, num_samples: int) -> Array:
    """`num_samples` samples of each example, [S, B, D]; the key has shape () or [B]."""
    if num_samples < 1:
        raise ValueError(f"num_samples must be at least 1, got {num_samples}")
    return jax.vmap(lambda each: posterior.sample(key=each))(sample_keys(key, num_samples))


def standard_log_prob(latent: Array) -> Array:
    """Log N(z; 0, I) of latents [B, D], [B] nats."""
    return DiagGaussian(jnp.zeros_like(latent), jnp.zeros((), latent.dtype)).log_prob(latent)


def decoded_log_prob(decode: Callable[[Array], Likelihood], image: Array, latent: Array) -> Array:
    """Log p(x|z) of images [B, ...] at latents [S, B, D], [S, B] nats; the decoder sees one batch of S·B."""
    num_samples = len(latent)
    reconstruction = decode(latent.reshape(-1, *latent.shape[2:]))
    check_shape(reconstruction.mean.shape, image.shape)
    images = jnp.broadcast_to(image, (num_samples, *image.shape)).reshape(-1, *image.shape[1:])
    return reconstruction.log_prob(images).reshape(num_samples, -1)


def weight_at(name: str, value: float | Array | Schedule, step: Array | int) -> float | Array:
    """A number, or a schedule's value at the step; `ValueError` names it where it is negative or not finite."""
    value = value(jnp.asarray(step)) if callable(value) else value
    if not isinstance(value, jax.core.Tracer) and not 0 <= float(value) < math.inf:
        raise ValueError(f"{name} must be a finite number, zero or more, got {value}")
    return value


def check_num(num: int) -> None:
    """Raise `ValueError` unless there is something to sample."""
    if num < 1:
        raise ValueError(f"num must be at least 1, got {num}")


def batch_keys(key: PRNGKey, batch: Batch) -> PRNGKey:
    """One key per example, [B], by its position in the split, batch["index"]."""
    index, shape = batch.get("index"), batch["image"].shape
    if index is None or index.shape != shape[:1] or not jnp.issubdtype(index.dtype, jnp.integer):
        given = "none" if index is None else f"{index.dtype}{list(index.shape)}"
        raise ValueError(f"batch['index'] must be integers {shape[:1]}, one for each of images {shape}, got {given}")
    return example_keys(key, index)


def inputs(batch: Batch) -> tuple[Array, ...]:
    """What a model looks at: the images, and their conditions where the batch has them."""
    return (batch["image"], batch["condition"]) if "condition" in batch else (batch["image"],)


def apply_to_images(model: Any, params: PyTree, image: Array, *condition: Array, method: str, **options: Any) -> Any:
    """`model.apply(params, image, ...)`; where the images do not fit the model, the error says which would."""
    check_floating(image)
    try:
        return model.apply(params, image, *condition, method=method, **options)
    except (errors.ScopeParamShapeError, ValueError) as error:
        # A network says which kernel did not fit; a person wants to hear which image would.
        latent_dim = _latent_dim(model)
        if latent_dim is None:
            if isinstance(error, ValueError):
                raise
            raise ValueError(f"images {image.shape} are not [batch, ...] as the model's: {error}") from error
        latent = jnp.zeros((len(image), latent_dim))
        decoded = jax.eval_shape(lambda: model.apply(params, latent, *condition, method="decode").mean)
        if decoded.shape[1:] == image.shape[1:]:
            raise
        check_shape(decoded.shape, image.shape, error)
        raise


def _latent_dim(model: Any) -> int | None:
    own = getattr(model, "latent_dim", None)
    return own if own is not None else getattr(getattr(model, "encoder", None), "latent_dim", None)


def check_floating(image: Array) -> None:
    """Raise `TypeError` unless the images are floating, `ValueError` where there are none."""
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise TypeError(
            f"images must be floating in [0, 1], got {image.dtype}; scale them first (jaxvae.data.make_prepare)"
        )
    if not image.size:
        raise ValueError(f"expected images (batch, ...), got {image.shape}, which holds none")


def check_shape(expected: tuple[int, ...], given: tuple[int, ...], cause: Exception | None = None) -> None:
    """Raise `ValueError` unless images of shape `given` fit a model of images of shape `expected`; not their number."""
    if expected[1:] != given[1:]:
        shape = ", ".join(map(str, ("batch", *expected[1:])))
        raise ValueError(f"expected images ({shape}), got {given}") from cause
