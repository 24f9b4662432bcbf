"""The objective of vector-quantised autoencoders, whatever quantises."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxvae._checks import check_shape, check_x, weight_at, where_mask
from jaxvae._variables import QUANTIZER
from jaxvae._whole_batch import in_evaluation, needs_whole_batch
from jaxvae.distributions import Masked
from jaxvae.keys import check_key
from jaxvae.models._parts import check_nats
from jaxvae.models.vae import mean_shape
from jaxvae.models.vq_vae import VQVAE, quantizer_variables
from jaxvae.objectives._apply import apply, batch_keys, networks_key, refuse_missing
from jaxvae.quantizers._parts import call, encoded_of, latent_of, needs_key
from jaxvae.types import Array, Batch, Likelihood, Metrics, PRNGKey, PyTree, Quantized

OF_THE_CHOICE = 2**32 - 2  # no example's index, nor the networks': this key is nobody else's


def vq_vae_loss(
    model: VQVAE,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    variance: float | None = None,
    commitment_weight: float = 0.25,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""Distortion + commitment + the quantiser's own loss, and the quantiser's next state.

    .. math:: \frac1B \sum_i d(x_i, \hat x_i) + \alpha \| z_e - \mathrm{sg}[z_q] \|^2
              \; (+ \, \| \mathrm{sg}[z_e] - z_q \|^2 \text{ of a } \texttt{GradientCodebook})

    The squared terms are means over the example. How the gradient of the distortion passes the quantisation is the
    quantiser's to say: as if it were the identity, where it says nothing.

    Args:
      model: a `VQVAE`.
      params: as `model.init_with_quantizer` returned them: "params", and "quantizer" where it has parameters.
      model_state: likewise: "quantizer" where it has a state.
      batch: "x" [B, ...] floating; "mask", boolean, [B, *the axes of x but the last], where some of it is padding,
        such as the ends of short sequences: what is false counts in no loss, statistic or restart, and the encoder
        sees zeros there. A code counts where any of the positions of x that it stands for does.
      key: given to the quantiser's `update`, for the vectors that dead codes restart from; also for dropout, and for a
        quantiser that draws in training, where example i draws from a key of its own by batch["index"].
      step: not used.
      variance: of the training data. The distortion is then the squared error over it, the mean over the example: 1 for
        a model that knows the mean only. None: -log p(x|z) in nats, which a likelihood of quantised values makes a
        figure in bits.
      commitment_weight: α.

    Returns:
      The loss and `(model_state, metrics)`: "loss", "distortion" and "commitment", means over the batch, and what the
      quantiser measures, such as "batch_perplexity" and "restarts" of an `EMACodebook`.

    Raises:
      TypeError: x is not floating, or the key is not typed.
      ValueError: x or the vectors do not have the shape of model and codes, there are no codes, the quantiser or the
        likelihood does not return one number for each example, or a weight is out of range.

    A quantiser's `update` looks at the whole batch: train under `jit`, on one device or over a mesh. `make_eval_step`
    leaves out the update with its metrics, so that the others are means over the examples.
    """
    del step
    refuse_missing(batch, "vq_vae_loss", padding=True)
    options: dict[str, Any] = {"variance": variance, "commitment_weight": commitment_weight, "what": "vq_vae_loss"}
    passed = vq_vae_pass(model, params, model_state, batch, key=key, **options)
    return passed.metrics["loss"], (passed.model_state, passed.metrics)


class Passed(NamedTuple):
    """A batch through a `VQVAE`.

    Attributes:
      latent: what was decoded, [B, *positions, D].
      reconstruction: the record that the decoder says.
      metrics: of `vq_vae_loss`.
      model_state: the next one.
    """

    latent: Array
    reconstruction: Likelihood
    metrics: Metrics
    model_state: PyTree


def vq_vae_pass(
    model: VQVAE,
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    variance: float | None,
    commitment_weight: float,
    what: str,
) -> Passed:
    """What `vq_vae_loss` makes of a batch; `what` is the objective that asks."""
    if variance is not None and not 0 < variance < math.inf:
        raise ValueError(f"variance must be positive, got {variance}")
    weight_at("commitment_weight", commitment_weight, 0)
    check_key(key)
    x, evaluating = batch["x"], in_evaluation()
    check_x(x)
    padding = batch.get("mask")
    if padding is not None:
        x = where_mask(x, padding, "x")
    if not evaluating:
        needs_whole_batch(what)

    own_key = networks_key(key, batch)
    encoded, next_state = apply(model, params, model_state, x, method="encode", networks_key=own_key)
    parameters, state = quantizer_variables(params, model_state)
    drawn = not evaluating and needs_key(model.quantizer)
    keys = batch_keys(jax.random.fold_in(key, OF_THE_CHOICE), batch) if drawn else None
    mask = None if padding is None else _of_positions(padding, encoded.shape[:-1])
    quantized = call(model.quantizer, parameters, state, encoded, mask=mask, key=keys)
    _check_quantized(quantized, encoded)
    latent = latent_of(quantized, encoded)
    reconstruction, next_state = apply(model, params, next_state, latent, method="decode", networks_key=own_key)

    metrics = {
        "distortion": vq_vae_distortion(reconstruction, x, variance, padding),
        "commitment": quantized.commitment.mean(),
    }
    metrics["loss"] = metrics["distortion"] + commitment_weight * metrics["commitment"] + quantized.loss.mean()
    measured = dict(quantized.metrics)
    if not evaluating:
        seen = encoded_of(quantized, encoded)
        updated = model.quantizer.update(state, seen, quantized.indices, mask=mask, key=key)
        if not isinstance(updated, tuple) or len(updated) != 2:
            raise TypeError(f"the quantiser's update must return (state, metrics), got {type(updated).__name__}")
        state, about_the_batch = updated
        measured |= about_the_batch
        if isinstance(next_state, Mapping) and QUANTIZER in next_state:
            next_state = {**next_state, QUANTIZER: state}
    if taken := sorted(metrics.keys() & measured.keys()):
        raise ValueError(f"the quantiser's metrics must not be called as the objective's own, got {', '.join(taken)}")
    metrics |= {name: jnp.asarray(value, jnp.float32) for name, value in measured.items()}
    return Passed(latent, reconstruction, metrics, next_state)


def vq_vae_distortion(reconstruction: Likelihood, x: Array, variance: float | None, mask: Array | None = None) -> Array:
    """The mean distortion of a batch, where `mask` is true: see `vq_vae_loss`."""
    decoded = mean_shape(reconstruction)
    if len(decoded) == x.ndim and decoded != x.shape and decoded[-1] == x.shape[-1]:
        raise ValueError(
            f"x is {x.shape}, and the decoder returns {decoded}: where the encoder rounds a size up, tell the decoder "
            f"the true one, ResidualDecoder(..., spatial={x.shape[1:-1]})"
        )
    check_shape(decoded, x.shape)
    if variance is None:
        likelihood = reconstruction if mask is None else Masked(reconstruction, mask[..., None])
        return -check_nats("the likelihood", likelihood.log_prob(x), len(x)).mean()
    errors = jnp.square(reconstruction.mean - x)
    if mask is None:
        return (errors.reshape(len(x), -1).mean(axis=1) / variance).mean()
    counted = jnp.where(mask[..., None], errors, 0).reshape(len(x), -1).sum(axis=1)
    counts = mask.reshape(len(x), -1).sum(axis=1) * x.shape[-1]
    return (counted / jnp.maximum(counts, 1) / variance).mean()


def _of_positions(mask: Array, positions: tuple[int, ...]) -> Array:
    """A mask of x [B, *S] as one of the codes [B, *P]: true where any of the block of x is that a code stands for."""
    blocks = [mask.shape[0]]
    for size, count in zip(mask.shape[1:], positions[1:], strict=False):
        blocks += [count, size // count]
    if len(mask.shape) != len(positions) or math.prod(blocks) != mask.size:
        raise ValueError(
            f"batch['mask'] {mask.shape} must divide into the positions of the codes {positions}: pad x to a multiple "
            "of what the encoder shrinks it by"
        )
    return mask.reshape(blocks).any(axis=tuple(range(2, len(blocks), 2)))


def _check_quantized(quantized: Quantized, encoded: Array) -> None:
    """Raise unless the quantiser has returned what `jaxvae.types.Quantized` says, of the encoder's vectors."""
    required = (name for name in Quantized._fields if name not in Quantized._field_defaults)
    if missing := [name for name in required if not hasattr(quantized, name)]:
        raise TypeError(
            f"the quantiser must return a jaxvae.types.Quantized, got {type(quantized).__name__} without "
            f"{', '.join(missing)}"
        )
    count, positions = len(encoded), encoded.shape[:-1]
    for name in ("commitment", "loss"):
        shape = jnp.shape(getattr(quantized, name))
        if shape != (count,):
            raise ValueError(f"the quantiser's {name} must be ({count},), one number for each example, got {shape}")
    if jnp.shape(quantized.vectors) != encoded.shape:
        raise ValueError(f"the quantiser's vectors must be {encoded.shape}, got {jnp.shape(quantized.vectors)}")
    if (shape := jnp.shape(latent_of(quantized, encoded))) != encoded.shape:
        raise ValueError(f"the quantiser's latent must be {encoded.shape}, as the encoder's vectors are, got {shape}")
    indices = jnp.asarray(quantized.indices)
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(f"the quantiser's indices must be integers, got {indices.dtype}")
    if indices.shape[: len(positions)] != positions or indices.ndim > encoded.ndim:
        raise ValueError(
            f"the quantiser's indices must be {positions}, or with one axis more where a position takes several, got "
            f"{indices.shape}"
        )
