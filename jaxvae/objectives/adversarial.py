"""The objective of generative adversarial networks: one scalar whose gradient each part takes as its own."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxvae._checks import at_least, check_shape, check_x, weight_at
from jaxvae._whole_batch import in_evaluation
from jaxvae.losses import NON_SATURATING, AdversarialLoss, gradient_penalty, r1_penalty
from jaxvae.models.gan import GAN
from jaxvae.objectives._adversary import DISCRIMINATOR, is_nothing, only, two_keys, without
from jaxvae.objectives._apply import apply, batch_keys, networks_key, refuse_missing
from jaxvae.types import Array, Batch, Metrics, PRNGKey, PyTree, Schedule


def gan_loss(
    model: GAN,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    loss: AdversarialLoss = NON_SATURATING,
    penalty: float | Array | Schedule = 0.0,
    r1: float | Array | Schedule = 0.0,
    critic_steps: int = 1,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""What the discriminator pays and what the generator pays, each with a gradient for its own parameters alone.

    .. math:: \frac1B \sum_i \ell_r(D(x_i)) + \ell_f(D(\mathrm{sg}[G(z_i)])) + \lambda P_i + \gamma R_i
              + \ell_g(\bar D(G(z_i))), \quad z_i \sim p(z)

    with P the gradient penalty at a random point between x and G(z), R that of the slope at x, and a bar over what
    takes no gradient. WGAN-GP is `loss=WASSERSTEIN, penalty=10.0, critic_steps=5`. `adversarial_optimizer` of
    `jaxvae.training` moves both parts in one step.

    Args:
      model: a `GAN`.
      params: what `model.init` returned.
      model_state: collections that the generator's networks keep.
      batch: "x" [B, ...] floating, "index" [B] integer; "label" [B] integer where the model takes labels.
      key: the loss's key; example i draws its latent, and its point between, from `fold_in(key, index[i])`.
      step: what schedules are evaluated at, and what `critic_steps` counts by.
      loss: of `jaxvae.losses`: `NON_SATURATING`, `HINGE`, `WASSERSTEIN`, `MINIMAX`, or yours.
      penalty: λ, of the gradient penalty.
      r1: γ.
      critic_steps: the generator has a gradient in every such step, the last of each round, and none in the others,
        which `adversarial_optimizer` then spares it.

    Returns:
      The loss and `(model_state, metrics)`: "loss", "discriminator" and "generator" (what each pays, at every step),
      and "penalty" and "r1", not weighted, where they count; means over the batch.

    Raises:
      TypeError: x is not floating, the key is not typed, or the labels are not integers.
      ValueError: x does not have the model's shape, labels are missing, a weight is negative or not a number,
        `critic_steps` is below 1, or the discriminator has batch statistics.

    References:
      Goodfellow et al., Generative Adversarial Nets, 2014; Gulrajani et al., Improved Training of Wasserstein GANs,
      2017; Mescheder et al., Which Training Methods for GANs do actually Converge?, 2018.
    """
    at_least(1, critic_steps=critic_steps)
    refuse_missing(batch, "gan_loss")
    check_x(batch["x"])
    x, label, own_key = batch["x"], _label(model, batch), networks_key(key, batch)
    latent_key, point_key = two_keys(batch_keys(key, batch))
    critic, still = only(params, DISCRIMINATOR), jax.lax.stop_gradient(params)

    def simulate(params: PyTree) -> tuple[Array, PyTree]:
        options: dict[str, Any] = {"method": "simulate", "networks_key": own_key, "floating": False}
        return apply(model, params, model_state, latent_key, *label, **options)

    def judge(params: PyTree, x: Array) -> Array:
        labels = [jnp.concatenate([each] * (len(x) // len(each))) for each in label]
        logits, after = apply(model, params, model_state, x, *labels, method="discriminate", networks_key=own_key)
        if after is not model_state:
            raise ValueError("a discriminator with batch statistics judges no example by itself: use LayerNorm in it")
        return logits

    fake, next_state = simulate(still)
    check_shape(fake.shape, x.shape)
    real_logits, logits = jnp.split(judge(critic, jnp.concatenate([x, fake])), 2)
    metrics = {"discriminator": loss.discriminator(real_logits, logits).mean()}
    paid = metrics["discriminator"]
    if not is_nothing(penalty):
        metrics["penalty"] = gradient_penalty(lambda x: judge(critic, x), x, fake, key=point_key).mean()
        paid += weight_at("penalty", penalty, step) * metrics["penalty"]
    if not is_nothing(r1):
        metrics["r1"] = r1_penalty(lambda x: judge(critic, x), x).mean()
        paid += weight_at("r1", r1, step) * metrics["r1"]

    def moving() -> Array:
        return loss.generator(judge(still, simulate(without(params, DISCRIMINATOR))[0])).mean()

    metrics["generator"] = jax.lax.stop_gradient(loss.generator(logits).mean())
    generator = metrics["generator"]
    if not in_evaluation():
        turn = jnp.asarray(step) % critic_steps == critic_steps - 1
        generator = moving() if critic_steps == 1 else jax.lax.cond(turn, moving, lambda: metrics["generator"])
    metrics["loss"] = paid + generator
    return metrics["loss"], (next_state, metrics)


def _label(model: GAN, batch: Batch) -> tuple[Array, ...]:
    if model.embed is None:
        return ()
    if "label" not in batch:
        raise ValueError(f"the model takes labels, and the batch has no 'label', only {', '.join(sorted(batch))}")
    return (batch["label"],)
