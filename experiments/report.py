"""What a trained model is worth, in numbers and pictures: shared by the experiments with continuous latents."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxvae
from experiments.run import Run, counter, file_errors
from jaxvae import figures
from jaxvae.evaluation.diagnostics import aggregate_posterior, kl_per_dimension, sharpness_ratio
from jaxvae.models.vae import inputs
from jaxvae.types import Array, Batch, LogWeightsFn, Prepare, PRNGKey, PyTree

EVALUATION_BATCH = 500
EVALUATION_SEED = 0  # the same binarised images and noise at every evaluation of every run
NLL_BATCH = 100  # images at a time in importance sampling, each with its samples
SHARPNESS_IMAGES = 1000


class Report(NamedTuple):
    """Attributes: figures for result.json, the codes [N, D] nearest the image, and images with reconstructions."""

    test: dict[str, Any]
    kl: np.ndarray | None
    codes: np.ndarray
    pairs: tuple[np.ndarray, np.ndarray]


def measure(
    model: Any,
    state: jaxvae.TrainState,
    prepare: Prepare,
    feed: tuple[Batch, Array],
    *,
    grey: Prepare,
    nll_samples: int,
) -> Report:
    """Measure -log p(x), and the three ways to fail: collapsed latents, holes in the prior, blur.

    `grey` prepares images without binarising them: what reconstructions are compared with.
    """
    source, rows = feed
    look = {"key": jax.random.key(EVALUATION_SEED), "prepare": prepare}
    map_test = partial(jaxvae.map_batches, params=state.params, model_state=state.model_state, source=source, **look)
    weights = partial(jaxvae.vae_log_weights, model)
    show = counter(f"-log p(x) with {nll_samples} samples, batch")
    estimate = importance_sampled(weights, state, prepare, feed, nll_samples=nll_samples, progress=show)
    test: dict[str, Any] = {"nll": estimate.nll, "nll_standard_error": estimate.nll_standard_error}

    kl = None
    if isinstance(model, jaxvae.HierarchicalVAE):
        layers = map_test(partial(_layer_codes, model), indices=rows)
        codes = layers[0]
        test["active_units"] = [jaxvae.active_units(layer) for layer in layers]
    else:
        codes, log_var = encode_images(model, state, prepare, feed)
        kl = kl_per_dimension(codes, log_var)
        aggregate = aggregate_posterior(codes, log_var, key=jax.random.key(EVALUATION_SEED))
        test["active_units"] = jaxvae.active_units(codes)
        test["aggregate_kl"], test["mutual_information"] = aggregate.kl, aggregate.mutual_information

    images, reconstructed = map_test(partial(_reconstruct, model), indices=rows[: SHARPNESS_IMAGES // rows.shape[1]])
    compared = grey({"image": source["image"][: len(images)]}, key=look["key"])["image"]
    test["sharpness_ratio"] = sharpness_ratio(compared, reconstructed)
    return Report(test, kl, codes, (images[:32], reconstructed[:32]))


def importance_sampled(
    log_weights_fn: LogWeightsFn,
    state: jaxvae.TrainState,
    prepare: Prepare,
    feed: tuple[Batch, Array],
    *,
    nll_samples: int,
    progress: Callable[[int, int], None] | None = None,
) -> jaxvae.LogLikelihood:
    """`jaxvae.log_likelihood` of all images of a feed; of the condition too where `prepare` gives one."""
    source, rows = feed
    return jaxvae.log_likelihood(
        log_weights_fn,
        state.params,
        state.model_state,
        source,
        rows.reshape(-1, NLL_BATCH),
        key=jax.random.key(EVALUATION_SEED),
        num_samples=nll_samples,
        prepare=prepare,
        progress=progress,
    )


def label_pictures(directory: Path, samples: np.ndarray, images: np.ndarray, analogies: np.ndarray) -> list[Path]:
    """Samples, [K·S, H, W, C] class by class; images [N, H, W, C] beside themselves as each class, [N·K, H, W, C]."""
    num_classes = len(analogies) // len(images)
    rows = np.concatenate([images[:, None], analogies.reshape(-1, num_classes, *images.shape[1:])], axis=1)
    return [
        figures.image_grid(
            directory / "samples.png",
            samples,
            columns=len(samples) // num_classes,
            title="a class in each row, a latent in each column",
        ),
        figures.image_grid(
            directory / "analogies.png",
            rows.reshape(-1, *images.shape[1:]),
            columns=num_classes + 1,
            title="test images (left), and every class in their style",
        ),
    ]


@file_errors()
def draw(run: Run, model: Any, params: PyTree, report: Report, label: np.ndarray | None) -> list[Path]:
    """Draw the pictures of a run and return their paths."""
    codes = report.codes

    @jax.jit
    def decode(latent: Array) -> Array:
        return model.apply(params, latent, method="decode").mean

    samples = model.apply(params, 100, key=jax.random.key(1), method="sample").mean
    start, end = codes[:8, None], codes[8:16, None]
    share = np.linspace(0, 1, 11, dtype=np.float32)[:, None]
    between = np.asarray(decode(((1 - share) * start + share * end).reshape(-1, codes.shape[-1])))
    out = run.directory
    paths = [
        figures.reconstructions(out / "reconstructions.png", *map(shown, report.pairs)),
        figures.image_grid(out / "samples.png", shown(samples), title="samples from the prior (means)"),
        figures.interpolation(out / "interpolation.png", shown(between).reshape(8, 11, *between.shape[1:])),
        figures.learning_curves(out / "learning_curves.png", run.records()),
    ]
    if report.kl is not None:
        paths.append(figures.kl_bars(out / "kl_per_dimension.png", report.kl, title="KL per latent"))
    if codes.shape[-1] == 2:
        paths += [
            figures.manifold(out / "manifold.png", lambda latent: shown(decode(latent))),
            figures.latent_scatter(out / "codes.png", codes, label, title="test codes"),
        ]
    return paths


def encode_images(
    model: Any, state: jaxvae.TrainState, prepare: Prepare, feed: tuple[Batch, Array]
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and log σ² of the posteriors of all images of a feed, each [N, D].

    Those of a conditional model come in the coordinates in which its prior p(z|c) is N(0, I).
    """
    source, rows = feed
    key = jax.random.key(EVALUATION_SEED)
    return jaxvae.map_batches(
        partial(_posterior, model), state.params, state.model_state, source, rows, key=key, prepare=prepare
    )


def _posterior(model: Any, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> tuple[Array, Array]:
    del model_state, key
    posterior = model.apply(params, *inputs(batch), method="encode")
    if "condition" not in batch:
        return tuple(posterior)
    prior = model.apply(params, batch["condition"], method="latent_prior")
    mean = (posterior.mean - prior.mean) * jnp.exp(-0.5 * prior.log_var)
    return mean, posterior.log_var - prior.log_var


def _layer_codes(model: Any, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> tuple[Array, ...]:
    del model_state
    keys = jaxvae.example_keys(key, batch["index"])
    return model.apply(params, batch["image"], key=keys, num_samples=50, method="posterior_means")


def _reconstruct(model: Any, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> tuple[Array, Array]:
    """Through the posterior's mean; up and down through the means where there are several layers."""
    del model_state, key
    return batch["image"], model.apply(params, *inputs(batch)).mean


def shown(images: Array) -> np.ndarray:
    """A Gaussian's mean may lie outside [0, 1]; a picture cannot."""
    return np.asarray(images).clip(0, 1)
