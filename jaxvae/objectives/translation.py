"""The objective of translation from picture to picture: the absolute error, and what a discriminator thinks of it."""

import jax
import jax.numpy as jnp

from jaxvae._checks import check_shape, check_x, weight_at
from jaxvae.losses import NON_SATURATING, AdversarialLoss
from jaxvae.models.translator import Translator
from jaxvae.objectives._adversary import DISCRIMINATOR, is_nothing, only
from jaxvae.objectives._apply import apply, networks_key, refuse_missing
from jaxvae.types import Array, Batch, Metrics, PRNGKey, PyTree, Schedule


def translation_loss(
    model: Translator,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    loss: AdversarialLoss = NON_SATURATING,
    absolute_weight: float | Array | Schedule = 0.1,
    adversarial_weight: float | Array | Schedule = 1.0,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""The absolute error of a translated picture and the generator's part of the game, and the discriminator's.

    .. math:: \frac1B \sum_i w |x_i - G(c_i)|_1 + a\, \ell_g(\bar D(c_i, G(c_i)))
              + \tfrac12 \left(\ell_r(D(c_i, x_i)) + \ell_f(D(c_i, \mathrm{sg}[G(c_i)]))\right)

    with a bar over what takes no gradient: each part has its own. Half of what the discriminator pays slows it down, as
    published. `training.adversarial_optimizer` moves both in one step.

    Args:
      model: a `Translator`.
      params: what `model.init(key, x, condition)` returned.
      model_state: collections that the generator's networks keep.
      batch: "x" [B, H, W, C] floating, "condition" [B, H, W, C'], "index" [B].
      key: the loss's key, for dropout.
      step: what schedules are evaluated at.
      loss: of `jaxvae.losses`: `NON_SATURATING`, `HINGE`, or yours.
      absolute_weight: w, of the absolute error summed over the picture: the nats of a Laplace variable of scale 1 / w,
        but for a constant. The published 100 on a mean over pixels is 100 / (H W C) here.
      adversarial_weight: a; the number 0 leaves the whole game out, for a network of the absolute error alone.

    Returns:
      The loss and `(model_state, metrics)`: "loss", "absolute_error" (the sum over the picture) and, unless left out,
      "generator" and "discriminator"; means over the batch.

    Raises:
      TypeError: x or the condition is not floating, or the key is not typed.
      ValueError: they do not fit each other or the model, a weight is negative or not finite, or the discriminator has
        batch statistics.

    References:
      Isola, Zhu, Zhou and Efros, Image-to-Image Translation with Conditional Adversarial Networks, 2017.
    """
    refuse_missing(batch, "translation_loss")
    if "condition" not in batch:
        raise ValueError(f"the batch has no 'condition' to translate, only {', '.join(sorted(batch))}")
    x, condition, own_key = batch["x"], batch["condition"], networks_key(key, batch)
    check_x(x)
    made, next_state = apply(model, params, model_state, condition, method="translate", networks_key=own_key)
    check_shape(made.shape, x.shape)
    absolute = jnp.abs(x - made).reshape(len(x), -1).sum(axis=1).mean()
    metrics = {"absolute_error": absolute, "loss": weight_at("absolute_weight", absolute_weight, step) * absolute}
    if not is_nothing(adversarial_weight):

        def judge(params: PyTree, x: Array) -> Array:
            logits, after = apply(
                *(model, params, model_state, x, condition), method="discriminate", networks_key=own_key
            )
            if after is not model_state:
                raise ValueError("a discriminator with batch statistics judges no pair by itself: use LayerNorm in it")
            return logits

        critic = only(params, DISCRIMINATOR)
        metrics["generator"] = loss.generator(judge(jax.lax.stop_gradient(params), made)).mean()
        paid = loss.discriminator(judge(critic, x), judge(critic, jax.lax.stop_gradient(made)))
        metrics["discriminator"] = paid.mean()
        weight = weight_at("adversarial_weight", adversarial_weight, step)
        metrics["loss"] += weight * metrics["generator"] + 0.5 * metrics["discriminator"]
    return metrics["loss"], (next_state, metrics)
