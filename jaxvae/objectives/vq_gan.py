"""A VQ-VAE beside a discriminator, whose opinion counts as much as the reconstruction at the decoder's last layer."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxvae._checks import weight_at
from jaxvae._whole_batch import in_evaluation
from jaxvae.losses import HINGE, AdversarialLoss, adaptive_weight
from jaxvae.models.vq_vae import VQVAE
from jaxvae.objectives._adversary import PARAMS, feature_distortion, judge_of, own_params
from jaxvae.objectives._apply import apply, networks_key, refuse_missing
from jaxvae.objectives.quantized import Passed, vq_vae_distortion, vq_vae_pass
from jaxvae.types import Array, Batch, Likelihood, Metrics, PRNGKey, PyTree, Schedule

LAST_LAYER = ("decoder", "output", "kernel")


def vq_gan_loss(
    model: VQVAE,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    discriminator: Any,
    layer: str | None = None,
    variance: float | None = None,
    commitment_weight: float = 0.25,
    feature_weight: float | Array | Schedule = 1.0,
    adversarial_weight: float | Array | Schedule = 1.0,
    loss: AdversarialLoss = HINGE,
    last_layer: Sequence[str] = LAST_LAYER,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""The loss of a VQ-VAE, a feature loss, and a discriminator with an adaptive weight.

    .. math:: L_{\mathrm{VQ}} + w_f d + w \lambda L_G + L_D, \qquad
              \lambda = \mathrm{clip}\Big(\frac{\| \nabla L_{rec} \|}{\| \nabla L_G \| + 10^{-4}}, 0, 10^4\Big)

    The gradients are those for the decoder's last layer, of the distortion with the feature loss d and of what the
    generator pays for its reconstructions; λ has none itself. L_D moves the discriminator alone, the others all but it.
    Where VQGAN compares the features of a network that was trained to name pictures (LPIPS), this compares those of the
    discriminator: half the squared error, the mean over the features.

    λ is one number for the batch and codebooks look at all of it: train under `jit`, on one device or over a mesh.
    `make_eval_step` leaves λ out.

    Args:
      model: a `VQVAE`.
      params: as `init_with_discriminator` returned them.
      model_state: likewise.
      batch: "x" [B, ...] floating, "index" [B] integer.
      key: as of `vq_vae_loss`.
      step: what schedules are evaluated at.
      discriminator: such as `networks.PatchDiscriminator`, or a Linen module with `with_features`.
      layer: whose features are compared; the last hidden one unless named.
      variance: as of `vq_vae_loss`.
      commitment_weight: as of `vq_vae_loss`.
      feature_weight: w_f.
      adversarial_weight: w; a schedule that starts with zeros lets the autoencoder and the discriminator learn first.
      loss: of `jaxvae.losses`.
      last_layer: where `params["params"]` holds the kernel at which λ is taken.

    Returns:
      The loss and `(model_state, metrics)`: those of `vq_vae_loss`, with "loss" the whole, "feature_distortion",
      "discriminator", "generator" and "adaptive_weight". In evaluation "loss" is the reconstruction's part alone, with
      commitment and features.

    Raises:
      TypeError: x is not floating, the key is not typed, or the discriminator has no `with_features`.
      ValueError: as of `vq_vae_loss`; there is no such layer, kernel or discriminator; some of x is padding.

    References:
      Esser, Rombach and Ommer, Taming Transformers for High-Resolution Image Synthesis, 2021.
    """
    refuse_missing(batch, "vq_gan_loss")
    x, critic = batch["x"], own_params(params)
    options: dict[str, Any] = {"variance": variance, "commitment_weight": commitment_weight, "what": "vq_gan_loss"}
    passed = vq_vae_pass(model, params, model_state, batch, key=key, **options)
    judge, still = judge_of(discriminator, layer, networks_key(key, batch)), jax.lax.stop_gradient(critic)
    fake = jax.lax.stop_gradient(passed.reconstruction.mean)
    logits, features = judge(critic, jnp.concatenate([x, fake]))
    target = jax.lax.stop_gradient(features[: len(x)])
    share = weight_at("feature_weight", feature_weight, step)

    def paid(record: Likelihood) -> tuple[Array, Array, Array]:
        """Distortion with features, what the generator pays, and the features' part."""
        logits, features = judge(still, record.mean)
        seen = (feature_distortion(features, target) * (len(x) / features.size)).mean()
        return vq_vae_distortion(record, x, variance) + share * seen, loss.generator(logits).mean(), seen

    _, generator, seen = paid(passed.reconstruction)
    judged = loss.discriminator(*jnp.split(logits, 2)).mean()
    metrics = passed.metrics | {"feature_distortion": seen, "discriminator": judged, "generator": generator}
    metrics["loss"] = metrics["loss"] + share * seen
    if not in_evaluation():
        decode = _from_last_layer(model, params, passed, networks_key(key, batch), last_layer)
        metrics["adaptive_weight"] = _weight(lambda kernel: paid(decode(kernel))[:2], params, last_layer)
        weight = weight_at("adversarial_weight", adversarial_weight, step) * metrics["adaptive_weight"]
        metrics["loss"] = metrics["loss"] + weight * generator + judged
    return metrics["loss"], (passed.model_state, metrics)


def _weight(paid: Callable[[Array], tuple[Array, Array]], params: PyTree, last_layer: Sequence[str]) -> Array:
    """λ at the kernel of the last layer."""
    kernel = jax.lax.stop_gradient(_kernel(params, last_layer))
    (reconstruction, generator), back = jax.vjp(paid, kernel)
    one, none = jnp.ones_like(reconstruction), jnp.zeros_like(generator)
    return adaptive_weight(*back((one, none)), *back((none, one)))


def _kernel(params: PyTree, last_layer: Sequence[str]) -> Array:
    found = params[PARAMS]
    for name in last_layer:
        if not isinstance(found, dict) or name not in found:
            raise ValueError(
                f"there are no parameters {'/'.join(last_layer)}: pass last_layer=, the path to the kernel of the "
                "decoder's last layer in params['params']"
            )
        found = found[name]
    return found


def _from_last_layer(
    model: VQVAE, params: PyTree, passed: Passed, own_key: PRNGKey, last_layer: Sequence[str]
) -> Callable[[Array], Likelihood]:
    """The decoder's record of the batch as a function of that kernel; XLA computes what is before it once."""
    latent, still = jax.lax.stop_gradient((passed.latent, {PARAMS: params[PARAMS]}))

    def decode(kernel: Array) -> Likelihood:
        def put(tree: Any, path: Sequence[str]) -> Any:
            return {**tree, path[0]: put(tree[path[0]], path[1:])} if path else kernel

        changed = {PARAMS: put(still[PARAMS], last_layer)}
        return apply(model, changed, passed.model_state, latent, method="decode", networks_key=own_key)[0]

    return decode
