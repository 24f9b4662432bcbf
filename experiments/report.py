"""What a trained model is worth, in numbers and pictures: shared by the experiments with continuous latents."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxvae
from experiments.command import counter, file_errors
from experiments.run import Run
from experiments.splits import Splits
from jaxvae import data, figures
from jaxvae.distributions import StandardNormal
from jaxvae.evaluation import (
    LogLikelihood,
    active_latents,
    active_units,
    aggregate_posterior,
    kl_per_dimension,
    map_batches,
    sharpness_ratio,
)
from jaxvae.keys import example_keys, seed_key
from jaxvae.types import Array, Batch, LatentModel, LogWeightsFn, LossFn, Prepare, PRNGKey, PyTree

EVALUATION_BATCH = 500
EVALUATION_SEED = 0  # the same binarised images and noise at every evaluation of every run
NLL_BATCH = 100  # images at a time in importance sampling, each with its samples
SHARPNESS_IMAGES = 1000
ELBO_TERMS = ("negative_elbo", "rate", "distortion")

Evaluate = Callable[[jaxvae.TrainState], dict[str, float]]


class Report(NamedTuple):
    """Attributes: figures for result.json, the codes [N, D] nearest x, and x [M, ...] with reconstructions."""

    test: dict[str, Any]
    kl: np.ndarray | None
    codes: np.ndarray
    pairs: tuple[np.ndarray, np.ndarray]


def evaluator(loss_fn: LossFn, dataset: data.Dataset) -> Evaluate:
    """Return `state -> metrics`: the means of the loss's metrics over a whole set."""
    evaluate = jaxvae.make_evaluate(jaxvae.make_eval_step(loss_fn, prepare=dataset.prepare))
    feed, key = data.evaluation_feed(dataset, EVALUATION_BATCH), seed_key(EVALUATION_SEED)
    return lambda state: {name: float(value) for name, value in jax.device_get(evaluate(state, *feed, key=key)).items()}


def evaluators(loss_fn: LossFn, splits: Splits) -> tuple[Evaluate, Evaluate]:
    """An evaluator for while a run trains, and one for the test set: the same one where there is no validation set."""
    evaluate = evaluator(loss_fn, splits.evaluated)
    return evaluate, evaluate if splits.validation is None else evaluator(loss_fn, splits.test)


def over_set(fn: Callable[..., PyTree], state: jaxvae.TrainState, dataset: data.Dataset) -> PyTree:
    """`fn(params, model_state, batch, *, key)` of every example of a set."""
    feed = data.evaluation_feed(dataset, EVALUATION_BATCH)
    options = {"key": seed_key(EVALUATION_SEED), "prepare": dataset.prepare}
    return map_batches(fn, state.params, state.model_state, *feed, **options)


def measure(
    model: LatentModel, state: jaxvae.TrainState, dataset: data.Dataset, *, grey: Prepare, nll_samples: int
) -> Report:
    """Measure -log p(x), and the three ways to fail: collapsed latents, holes in the prior, blur.

    `grey` prepares images without binarising them: what reconstructions are compared with.
    """
    estimate = importance_sampled(model, state, dataset, nll_samples=nll_samples)
    test: dict[str, Any] = {"nll": estimate.nll, "nll_standard_error": estimate.nll_standard_error}

    kl = None
    if isinstance(model, jaxvae.HierarchicalVAE):
        layers = over_set(partial(_layer_codes, model), state, dataset)
        codes = layers[0]
        test["active_units"] = [active_units(layer) for layer in layers]
    else:
        codes, log_var = posteriors(model, state, dataset)
        kl = kl_per_dimension(codes, log_var)
        aggregate = aggregate_posterior(codes, log_var, key=seed_key(EVALUATION_SEED))
        test["active_units"] = active_units(codes)
        test["aggregate_kl"], test["mutual_information"] = aggregate.kl, aggregate.mutual_information

    x, reconstructed = over_set(partial(_reconstruct, model), state, dataset.take(slice(SHARPNESS_IMAGES)))
    compared = prepared(dataset.with_prepare(grey), len(x))["x"]
    test["sharpness_ratio"] = sharpness_ratio(compared, reconstructed)
    return Report(test, kl, codes, (x[:32], reconstructed[:32]))


def importance_sampled(
    model: LatentModel | LogWeightsFn,
    state: jaxvae.TrainState,
    dataset: data.Dataset,
    *,
    nll_samples: int,
    name: str | None = "-log p(x)",
) -> LogLikelihood:
    """`jaxvae.log_likelihood` of every example of a set, given its condition where it has one; counted under a name."""
    show = counter(f"{name} with {nll_samples} samples, batch") if name is not None else None
    source, indices = data.evaluation_feed(dataset, EVALUATION_BATCH)
    return jaxvae.log_likelihood(
        model,
        state.params,
        state.model_state,
        source,
        indices.reshape(-1, NLL_BATCH),
        key=seed_key(EVALUATION_SEED),
        num_samples=nll_samples,
        prepare=dataset.prepare,
        progress=show,
    )


def posteriors(model: Any, state: jaxvae.TrainState, dataset: data.Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Mean and log σ² of the posteriors of every example of a set, each [N, D].

    Those of a conditional model come in the coordinates in which its prior p(z|c) is N(0, I).
    """
    return over_set(partial(_posterior, model), state, dataset)


def prepared(dataset: data.Dataset, count: int) -> Batch:
    """The first examples of a set, as its `prepare` makes them."""
    return dataset.prepared(count, key=seed_key(EVALUATION_SEED))


def label_pictures(
    run: Run,
    samples: np.ndarray,
    images: np.ndarray,
    analogies: np.ndarray,
    *,
    names: Sequence[Any] = (),
) -> list[Path]:
    """Samples, [K·S, H, W, C] class by class; images [N, H, W, C] beside themselves as each class, [N·K, H, W, C].

    The classes are called 0, 1, ... unless there are `names`.
    """
    num_classes = len(analogies) // len(images)
    classes = list(map(str, names or range(num_classes)))
    rows = np.concatenate([images[:, None], analogies.reshape(-1, num_classes, *images.shape[1:])], axis=1)
    return [
        figures.image_grid(
            run.picture("samples"),
            samples,
            columns=len(samples) // num_classes,
            row_names=classes,
            title="means given the class: a class in each row, a latent in each column",
        ),
        figures.image_grid(
            run.picture("analogies"),
            rows.reshape(-1, *images.shape[1:]),
            columns=num_classes + 1,
            column_names=["test image", *classes],
            title="test images, and every class in their style (means)",
        ),
    ]


@file_errors()
def save_pictures(run: Run, model: Any, params: PyTree, report: Report, label: np.ndarray | None) -> list[Path]:
    """Draw the pictures of a run and return their paths."""
    codes = report.codes

    @jax.jit
    def decode(latent: Array) -> Array:
        return model.apply(params, latent, method="decode").mean

    samples = model.apply(params, 100, key=seed_key(1), method="sample").mean
    start, end = codes[:8, None], codes[8:16, None]
    share = np.linspace(0, 1, 11, dtype=np.float32)[:, None]
    between = np.asarray(decode(((1 - share) * start + share * end).reshape(-1, codes.shape[-1])))
    paths = [
        *training_pictures(run, report),
        figures.image_grid(run.picture("samples"), as_pictures(samples), title="samples from the prior (means)"),
        figures.interpolation(
            run.picture("interpolation"),
            as_pictures(between).reshape(-1, len(share), *between.shape[1:]),
            title="between the codes of two test images (means)",
        ),
    ]
    if codes.shape[-1] == 2:
        paths += [
            figures.manifold(
                run.picture("manifold"), lambda latent: as_pictures(decode(latent)), title="means over the latents"
            ),
            figures.latent_scatter(run.picture("codes"), codes, label, title="test codes"),
        ]
    return paths


def training_pictures(run: Run, report: Report, *, condition: str | None = None) -> list[Path]:
    """What a model with latents has made of x, how it got there, and which latents it uses.

    `condition` is the letter of what a conditional model is given.
    """
    title = "test images and their reconstructions (means)"
    paths = [
        figures.reconstructions(run.picture("reconstructions"), *map(as_pictures, report.pairs), title=title),
        figures.learning_curves(run.picture("learning_curves"), run.records(), condition=condition),
    ]
    if report.kl is not None:
        path, active = run.picture("kl_per_dimension"), active_latents(report.codes)
        paths.append(figures.kl_bars(path, report.kl, active=active, title="KL per latent"))
    return paths


def elbo_terms(metrics: Mapping[str, float]) -> dict[str, float]:
    """Of an evaluation's metrics, those that add up to -ELBO."""
    return {name: metrics[name] for name in ELBO_TERMS}


def as_pictures(means: Array) -> np.ndarray:
    """A Gaussian's mean may lie outside [0, 1]; a picture cannot."""
    return np.asarray(means).clip(0, 1)


def _inputs(batch: Batch) -> tuple[Array, ...]:
    """x, and the condition where there is one."""
    return tuple(batch[name] for name in ("x", "condition") if name in batch)


def _posterior(model: Any, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> tuple[Array, Array]:
    del model_state, key
    x, *condition = _inputs(batch)
    posterior = model.apply(params, x, *condition, method="encode")
    prior = model.apply(params, *condition, method="latent_prior")
    if isinstance(prior, StandardNormal):
        return tuple(posterior)
    mean = (posterior.mean - prior.mean) * jnp.exp(-0.5 * prior.log_var)
    return mean, posterior.log_var - prior.log_var


def _layer_codes(model: Any, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> tuple[Array, ...]:
    del model_state
    keys = example_keys(key, batch["index"])
    return model.apply(params, batch["x"], key=keys, num_samples=50, method="posterior_means")


def _reconstruct(model: Any, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> tuple[Array, Array]:
    """Through the posterior's mean; up and down through the means where there are several layers."""
    del model_state, key
    return batch["x"], model.apply(params, *_inputs(batch)).mean
