"""A VAE whose reconstructions are compared by what a discriminator sees in them, trained with it or before."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae._checks import check_shape, weight_at
from jaxvae.distributions import rate
from jaxvae.losses import NON_SATURATING, AdversarialLoss
from jaxvae.models._parts import check_nats
from jaxvae.models.vae import VAE, mean_shape, sample_latents, sample_prior
from jaxvae.objectives._adversary import (
    DISCRIMINATOR,
    PARAMS,
    check_judge,
    discriminator_params,
    feature_distortion,
    judge_of,
    only,
    own_params,
    two_keys,
    without,
)
from jaxvae.objectives._apply import apply, batch_keys, model_inputs, networks_key, refuse_missing
from jaxvae.objectives.partial import FROZEN
from jaxvae.types import Array, Batch, Likelihood, Metrics, PRNGKey, PyTree, Schedule

OF_THE_DECODER = ("decoder", "likelihood")


def vae_gan_loss(
    model: VAE,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    discriminator: Any,
    layer: str | None = None,
    gamma: float | Array | Schedule = 1.0,
    beta: float | Array | Schedule = 1.0,
    loss: AdversarialLoss = NON_SATURATING,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""VAE/GAN: what the encoder, the decoder and the discriminator pay, each with a gradient for itself alone.

    .. math:: \underbrace{\beta\, KL + d}_{\text{encoder}}, \quad
              \underbrace{\gamma\, d + \ell_g(D(\tilde x)) + \ell_g(D(x_p))}_{\text{decoder}}, \quad
              \underbrace{\ell_r(D(x)) + \ell_f(D(\tilde x)) + \ell_f(D(x_p))}_{\text{discriminator}}, \qquad
              d = \tfrac12 \| f(x) - f(\tilde x) \|^2

    where x̃ is decoded from z ~ q(z|x) and x_p from z ~ p(z), both as the likelihood's means, and f are the features of
    a layer of the discriminator. With `loss=MINIMAX` the last two terms of the decoder are -L_GAN, less the term of x.

    Args:
      model: a `VAE`.
      params: as `init_with_discriminator` returned them.
      model_state: collections that the networks of the VAE keep.
      batch: "x" [B, ...] floating, "index" [B] integer; "condition" [B, ...] where the model takes one.
      key: the loss's key; example i draws from `fold_in(key, index[i])`.
      step: what schedules are evaluated at.
      discriminator: of `jaxvae.networks`, or a Linen module with `with_features`; it sees x alone.
      layer: whose features are compared, such as "layer_1"; the last hidden one unless named.
      gamma: γ, how much the decoder cares for d beside the discriminator's opinion.
      beta: β.
      loss: of `jaxvae.losses`.

    Returns:
      The loss, the sum of the three, and `(model_state, metrics)`: "loss", "rate", "feature_distortion" (d),
      "discriminator", "generator", and of the likelihood, which is not trained, "distortion" and "negative_elbo"; means
      over the batch.

    Raises:
      TypeError: x is not floating, the key is not typed, or the discriminator has no `with_features`.
      ValueError: x does not have the model's shape, there is no such layer, the discriminator's parameters are missing,
        or a weight is negative or not a number.

    References:
      Larsen et al., Autoencoding beyond pixels using a learned similarity metric, 2016.
    """
    refuse_missing(batch, "vae_gan_loss")
    x, own_key = batch["x"], networks_key(key, batch)
    posterior_key, prior_key = two_keys(batch_keys(key, batch))
    critic, still = own_params(params), jax.lax.stop_gradient(own_params(params))
    judge = judge_of(discriminator, layer, own_key)

    encoder = without(params, *OF_THE_DECODER, DISCRIMINATOR)
    latent, kl, prior, model_state = _encoded(model, encoder, model_state, batch, key=posterior_key, own_key=own_key)
    prior_latent = sample_prior(prior, len(x), key=prior_key)
    both = jax.lax.stop_gradient(jnp.concatenate([latent, prior_latent]))
    decode = _decode_of(model, model_state, batch, own_key)
    through, _ = decode(jax.lax.stop_gradient(params), latent)  # a gradient for the encoder, none for the decoder
    made, model_state = decode(only(params, *OF_THE_DECODER), both)  # the reverse

    opinions, features = judge(still, jnp.concatenate([through.mean, made.mean]))
    logits, of_critic = judge(critic, jnp.concatenate([x, jax.lax.stop_gradient(made.mean)]))
    target = jax.lax.stop_gradient(of_critic[: len(x)])
    seen, seen_again = (feature_distortion(each, target) for each in jnp.split(features, 3)[:2])
    _, of_made, of_drawn = jnp.split(opinions, 3)
    opinion = loss.generator(of_made) + loss.generator(of_drawn)
    real, fake, fake_of_prior = jnp.split(logits, 3)
    judged = loss.real(real) + loss.fake(fake) + loss.fake(fake_of_prior)

    paid_by_encoder = weight_at("beta", beta, step) * kl + seen
    paid_by_decoder = weight_at("gamma", gamma, step) * seen_again + opinion
    metrics = _metrics(through, x, kl, seen) | {"discriminator": judged.mean(), "generator": opinion.mean()}
    metrics["loss"] = (paid_by_encoder + paid_by_decoder + judged).mean()
    return metrics["loss"], (model_state, metrics)


def feature_vae_loss(
    model: VAE,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    discriminator: Any,
    layer: str | None = None,
    beta: float | Array | Schedule = 1.0,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""A VAE whose distortion is that of the features of a discriminator that was trained before and stays as it is.

    .. math:: \frac1B \sum_i \beta\, KL(q(z | x_i) || p(z)) + \tfrac12 \| f(x_i) - f(\tilde x_i) \|^2

    with x̃ the likelihood's mean at z ~ q(z|x). It is the VAE_Dis of Larsen et al. (2016).

    Args:
      model: a `VAE`.
      params: the VAE's.
      model_state: "frozen", the discriminator's variables, as `init_feature_vae` puts them; and collections that the
        networks of the VAE keep.
      batch: "x" [B, ...] floating, "index" [B] integer; "condition" [B, ...] where the model takes one.
      key: the loss's key; example i draws from `fold_in(key, index[i])`.
      step: what a schedule is evaluated at.
      discriminator: as it was trained, such as `gan.discriminator`; it sees x alone.
      layer: whose features are compared; the last hidden one unless named.
      beta: β.

    Returns:
      The loss and `(model_state, metrics)`: "loss", "rate", "feature_distortion", and of the likelihood, which is not
      trained, "distortion" and "negative_elbo"; means over the batch, in nats.

    Raises:
      TypeError: x is not floating, the key is not typed, or the discriminator has no `with_features`.
      ValueError: x does not have the model's shape, there is no such layer, or the discriminator's variables are
        missing.
    """
    if not (isinstance(model_state, dict) and FROZEN in model_state):
        raise ValueError("model_state must hold 'frozen', the discriminator's variables: init_feature_vae")
    refuse_missing(batch, "feature_vae_loss")
    frozen, own = model_state[FROZEN], {name: tree for name, tree in model_state.items() if name != FROZEN}
    x, own_key = batch["x"], networks_key(key, batch)
    latent, kl, _, own = _encoded(model, params, own, batch, key=batch_keys(key, batch), own_key=own_key)
    record, own = _decode_of(model, own, batch, own_key)(params, latent)

    judge, still = judge_of(discriminator, layer, own_key), jax.lax.stop_gradient(frozen[PARAMS])
    seen = feature_distortion(*jnp.split(judge(still, jnp.concatenate([record.mean, x]))[1], 2))
    metrics = _metrics(record, x, kl, seen)
    metrics["loss"] = (weight_at("beta", beta, step) * kl + seen).mean()
    return metrics["loss"], ({**own, FROZEN: frozen}, metrics)


def init_feature_vae(
    model: VAE, discriminator: Any, trained: PyTree, x: Array, *condition: Array, key: PRNGKey
) -> tuple[PyTree, PyTree]:
    """The parameters of a VAE, and the model state that `feature_vae_loss` reads.

    Args:
      model: the VAE.
      discriminator: that of the trained model.
      trained: the parameters that hold the discriminator's, such as a trained `GAN`'s.
      x: [B, ...], an example or more, whose shape counts.
      condition: [B, ...], where the model takes one.
      key: decides the parameters.

    Returns:
      What `init_train_state` takes, once all but the key is bound.

    Raises:
      TypeError: the discriminator has no `with_features`.
      ValueError: there are no parameters of a discriminator.
    """
    check_judge(discriminator)
    variables = dict(model.init(key, x[:1], *(each[:1] for each in condition)))
    own = {PARAMS: own_params(trained)}
    jax.eval_shape(lambda: discriminator.apply(own, x[:1], method="with_features"))
    params = variables.pop(PARAMS)
    return {PARAMS: params}, {**variables, FROZEN: {PARAMS: discriminator_params(own)}}


def _encoded(
    model: VAE, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey, own_key: PRNGKey
) -> tuple[Array, Array, Any, PyTree]:
    """z ~ q(z|x) [B, D], KL(q || p) [B] nats, the prior's record, and the model state."""
    x, *condition = model_inputs(batch)
    posterior, model_state = apply(model, params, model_state, x, *condition, method="encode", networks_key=own_key)
    prior, model_state = apply(
        model, params, model_state, *condition, method="latent_prior", networks_key=own_key, floating=False
    )
    latent, log_posterior = sample_latents(posterior, key=key, num_samples=1)
    kl = rate(posterior, prior, latent, log_posterior).sum(axis=-1).mean(axis=0)
    return latent[0], kl, prior, model_state


def _decode_of(
    model: VAE, model_state: PyTree, batch: Batch, own_key: PRNGKey
) -> Callable[[PyTree, Array], tuple[Likelihood, PyTree]]:
    """(parameters, latents [B, D], or of several such batches) -> p(x|z), and the model state."""
    x, *condition = model_inputs(batch)

    def decode(params: PyTree, latent: Array) -> tuple[Likelihood, PyTree]:
        given = [jnp.concatenate([each] * (len(latent) // len(x))) for each in condition]
        record, after = apply(model, params, model_state, latent, *given, method="decode", networks_key=own_key)
        check_shape(mean_shape(record), x.shape)
        return record, after

    return decode


def _metrics(record: Likelihood, x: Array, kl: Array, seen: Array) -> Metrics:
    distortion = -jax.lax.stop_gradient(check_nats("the likelihood", record.log_prob(x), len(x)))
    nats = {"rate": kl, "feature_distortion": seen, "distortion": distortion, "negative_elbo": distortion + kl}
    return {name: jnp.asarray(values.mean()) for name, values in nats.items()}
