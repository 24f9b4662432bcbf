"""The vector-quantised VAE (van den Oord, Vinyals and Kavukcuoglu, Neural Discrete Representation Learning, 2017).

The encoder's vectors are replaced by the nearest of K codes. The codes are no parameters of the network: an exponential
moving average (`jaxvae.codebook.CodebookState`) that the objective reads and returns updated, or an array at
`params["codebook"]["codes"]` that the gradient moves.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxvae import codebook, losses
from jaxvae.codebook import CodebookState
from jaxvae.distributions import DiagGaussian
from jaxvae.models.vae import Likelihood, apply_to_images, check_floating, check_shape
from jaxvae.networks import out_of_range
from jaxvae.types import Array, Batch, Metrics, PRNGKey, PyTree


def unit_gaussian(output: Array) -> DiagGaussian:
    """N(output + ½, I): the squared error, for a network around 0 and images in [0, 1]."""
    return DiagGaussian(output + 0.5, jnp.zeros((), output.dtype))


class VQVAE(nn.Module):
    """An encoder, a decoder and a likelihood; the codes are arguments.

    Attributes:
      encoder: images [B, ...] -> [B, *positions, D]; in one, two or three dimensions for speech, images and video.
      decoder: [B, *positions, D] -> the likelihood's parameters, [B, ...].
      likelihood: the decoder's output -> a record with `log_prob`, `sample`, `mode` and `mean`.

    Codes are [K, D], or [G, K, D / G] for G codebooks per position, each of which quantises a slice of the vector;
    indices are then [B, *positions, G].
    """

    encoder: Callable[[Array], Array]
    decoder: Callable[[Array], Array]
    likelihood: Callable[[Array], Likelihood] = unit_gaussian

    def __call__(self, image: Array) -> Likelihood:
        """Reconstruct without quantising: what `init` runs."""
        return self.decode(self.encode(image))

    def encode(self, image: Array) -> Array:
        """Images [B, ...] -> vectors [B, *positions, D] that are not quantised yet."""
        check_floating(image)
        return self.encoder(image)

    def decode(self, latent: Array) -> Likelihood:
        """p(x|z): vectors [B, *positions, D] -> a record over images [B, ...]."""
        return self.likelihood(self.decoder(latent))

    def encode_indices(self, image: Array, codes: Array, costs: Array | None = None) -> Array:
        """The nearest code of every position, [B, *positions] int32, or [B, *positions, G]; costs as in `quantize`."""
        return quantize(self.encode(image), codes, costs)[0]

    def decode_indices(self, indices: Array, codes: Array) -> Likelihood:
        """p(x|z) at the codes of these indices.

        Under `jit` no error can be raised for an index out of range: its vector becomes NaN.

        Raises:
          TypeError: the indices are not integers.
          ValueError: one is out of range and not traced.
        """
        if not jnp.issubdtype(indices.dtype, jnp.integer):
            raise TypeError(f"indices must be integers, got {indices.dtype}")
        outside = out_of_range("code", indices, codes.shape[-2])
        outside = outside if codes.ndim == 2 else outside.any(axis=-1)
        return self.decode(jnp.where(outside[..., None], jnp.nan, look_up(codes, indices)))


def look_up(codes: Array, indices: Array) -> Array:
    """Vectors [..., D] of indices [...] into codes [K, D], or of [..., G] into [G, K, D / G]."""
    if codes.ndim == 2:
        return codes[indices]
    vectors = jax.vmap(lambda each, index: each[index], in_axes=(0, -1), out_axes=-2)(codes, indices)
    return vectors.reshape(*vectors.shape[:-2], -1)


def quantize(encoded: Array, codes: Array, costs: Array | None = None) -> tuple[Array, Array]:
    """The nearest codes of encoded [..., D]: indices [...] or [..., G], and their vectors [..., D].

    `costs` [K], or [G, K], are added to the squared distances.
    """
    if codes.ndim == 2:
        indices = codebook.nearest(codes, encoded, costs)
    else:
        choose = jax.vmap(codebook.nearest, in_axes=(0, -2, None if costs is None else 0), out_axes=-1)
        indices = choose(codes, grouped(encoded, codes), costs)
    return indices, look_up(codes, indices)


def grouped(encoded: Array, codes: Array) -> Array:
    """Encoded [..., D] as [..., G, D / G]."""
    groups, _, dim = codes.shape
    if encoded.shape[-1] != groups * dim:
        raise ValueError(f"{groups} codebooks of dimension {dim} need vectors of {groups * dim}, got {encoded.shape}")
    return encoded.reshape(*encoded.shape[:-1], groups, dim)


def vq_vae_loss(
    model: Any,
    params: PyTree,
    model_state: CodebookState | tuple[()],
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array | int,
    variance: float | None = None,
    commitment_weight: float = 0.25,
    decay: float = 0.99,
    restart_threshold: float = 0.1,
    entropy_weight: float = 0.0,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    r"""Distortion + commitment; the codes follow by moving averages or, where `params` has a "codebook", by gradient.

    .. math:: \frac1B \sum_i d(x_i, \hat x_i) + \alpha \| z_e - \mathrm{sg}[z_q] \|^2
              \; (+ \, \| \mathrm{sg}[z_e] - z_q \|^2 \text{ where the gradient moves the codes})

    The squared terms are means over the example. The gradient of the distortion passes the quantisation as if it were
    the identity.

    Args:
      model: a `VQVAE`.
      params: what `model.init` returned; for codes that the gradient moves, {"codebook": {"codes": [K, D]}} joins it.
      model_state: a `CodebookState` (its leaves with a leading axis of G for G codebooks); `()` with "codebook".
      batch: "image" [B, ...] floating in [0, 1].
      key: draws the encoder outputs that dead codes restart from.
      step: not used.
      variance: of the training data. The distortion is then the squared error over it, the mean over the example: 1 for
        a model that knows the mean only. None: -log p(x|z) in nats, which a likelihood of quantised values makes a
        figure in bits.
      commitment_weight: α.
      decay: γ of the moving averages.
      restart_threshold: codes below this share of the uniform frequency restart at encoder outputs; 0 never restarts.
      entropy_weight: λ of `codebook.code_costs`, for codes that a prior predicts better; 0 takes the nearest code.

    Returns:
      The loss and `(model_state, metrics)`: "loss", "distortion", "commitment", "batch_perplexity" (of this batch: it
      is biased low; measure the whole set too) and "restarts" (codes in this step).

    Raises:
      TypeError: the images are not floating, or the key is not typed.
      ValueError: the images or vectors do not have the shape of model and codes, there are no codes, or a weight is
        out of range.

    The moving averages are means over the batch, and restarts look at all of it (`global_batch`): train it under `jit`,
    on one device or over a mesh.
    """
    del step
    _check_weights(variance, commitment_weight=commitment_weight, entropy_weight=entropy_weight)
    if entropy_weight and not isinstance(model_state, CodebookState):
        raise ValueError("entropy_weight needs the frequencies of an EMA codebook; codes moved by gradient have none")
    image = batch["image"]
    codes = code_vectors(params, model_state)
    encoded = apply_to_images(model, params, image, method="encode")
    indices, quantized = quantize(encoded, codes, code_costs(model_state, entropy_weight))
    latent = codebook.straight_through(encoded, quantized)
    reconstruction = model.apply(params, latent, method="decode")
    check_shape(reconstruction.mean.shape, image.shape)
    if variance is None:
        distortion = -reconstruction.log_prob(image)
    else:
        squares = jnp.square(reconstruction.mean - image).reshape(len(image), -1)
        distortion = squares.mean(axis=1) / variance

    metrics = {"distortion": distortion.mean(), "commitment": losses.commitment(encoded, quantized).mean()}
    metrics["loss"] = metrics["distortion"] + commitment_weight * metrics["commitment"]
    metrics["batch_perplexity"] = _batch_perplexity(indices, codes)
    if isinstance(model_state, CodebookState):
        model_state, restarts = _follow(
            model_state, encoded, indices, key=key, decay=decay, threshold=restart_threshold
        )
        metrics["restarts"] = restarts.astype(jnp.float32)
    else:
        metrics["loss"] += losses.codebook_loss(encoded, quantized).mean()
    return metrics["loss"], (model_state, metrics)


vq_vae_loss.global_batch = True  # type: ignore[attr-defined]


def code_vectors(params: PyTree, model_state: CodebookState | tuple[()]) -> Array:
    """The codes of a trained model, [K, D] or [G, K, D / G], whichever way they were moved."""
    if "codebook" in params:
        return params["codebook"]["codes"]
    if not isinstance(model_state, CodebookState):
        raise ValueError(
            f"there are no codes: pass a CodebookState as model_state, got {type(model_state).__name__}, or add "
            "{'codebook': {'codes': [K, D]}} to params"
        )
    return jax.vmap(codebook.vectors)(model_state) if model_state.moment.ndim == 3 else codebook.vectors(model_state)


def code_costs(model_state: CodebookState | tuple[()], weight: float) -> Array | None:
    """What `quantize` adds to the squared distances, [K] or [G, K]; None for a weight of 0."""
    if not weight:
        return None
    assert isinstance(model_state, CodebookState)
    one = partial(codebook.code_costs, weight=weight)
    return jax.vmap(one)(model_state) if model_state.moment.ndim == 3 else one(model_state)


def _follow(
    state: CodebookState, encoded: Array, indices: Array, *, key: PRNGKey, decay: float, threshold: float
) -> tuple[CodebookState, Array]:
    """Move the averages, restart dead codes; also how many restarted."""

    def one(state: CodebookState, encoded: Array, indices: Array, key: PRNGKey) -> tuple[CodebookState, Array]:
        state = codebook.ema_update(state, encoded, indices, decay=decay)
        if not threshold:
            return state, jnp.zeros((), jnp.int32)
        dead = codebook.dead_codes(state, threshold=threshold)
        return codebook.restart_dead_codes(state, encoded, key=key, threshold=threshold), dead

    if state.moment.ndim == 2:
        return one(state, encoded, indices, key)
    keys = jax.random.split(key, len(state.moment))
    state, dead = jax.vmap(one, in_axes=(0, -2, -1, 0))(state, grouped(encoded, state.moment), indices, keys)
    return state, dead.sum()


def _batch_perplexity(indices: Array, codes: Array) -> Array:
    """The effective number of codes in use, the mean over the groups."""
    by_group = indices[..., None] if codes.ndim == 2 else indices
    usage = jax.vmap(lambda each: codebook.usage(each, codes.shape[-2]), in_axes=-1)(by_group)
    return jax.vmap(codebook.perplexity)(usage).mean()


def _check_weights(variance: float | None, **weights: float) -> None:
    if variance is not None and not (variance > 0 and math.isfinite(variance)):
        raise ValueError(f"variance must be positive, got {variance}")
    for name, weight in weights.items():
        if not (weight >= 0 and math.isfinite(weight)):
            raise ValueError(f"{name} must be a finite number, zero or more, got {weight}")
