"""Structured prediction (Sohn, Lee and Yan, 2015): the hidden quadrants of an image from the visible ones.

Run it by `python -m experiments.cvae quadrants --visible 1` (or 2, 3).

First a baseline learns the hidden pixels by themselves, each from what is visible. Then a CVAE is trained around it:
its prior p(z|c) sees the visible pixels and the baseline's guess, its decoder only z, so that z has to tell all on
which the hidden pixels agree. Both stop early on validation images.
"""

import dataclasses
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import jaxvae
from experiments.command import RunConfig, file_errors, user_errors
from experiments.report import (
    ELBO_TERMS,
    EVALUATION_BATCH,
    EVALUATION_SEED,
    evaluator,
    importance_sampled,
    prepared,
)
from experiments.run import InitFn, Run, init_of, reached
from experiments.splits import Splits, load_splits
from jaxvae import checkpoint, data, figures
from jaxvae._json import read_numbers
from jaxvae.data import quadrants
from jaxvae.keys import seed_key
from jaxvae.losses import bernoulli_nll
from jaxvae.objectives import cvae_prior_log_weights, vae_log_weights
from jaxvae.types import Array, Batch, LossFn, Metrics, PRNGKey, PyTree

RECOGNITION_SAMPLES = 10  # draws from q(z|x, c) for each image in the -ELBO that is reported
DRAWN_IMAGES, DRAWN_SAMPLES, AVERAGED_SAMPLES = 10, 6, 100


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    data: str = "mnist"
    """digits, or any image set that is prepared for tensorflow-datasets."""
    visible: Literal[1, 2, 3] = 1
    """Quadrants that are visible: bottom left, top left, top right."""
    hidden: tuple[int, ...] = (500, 500)
    """Widths of the dense layers of all four networks."""
    latent_dim: int = 30
    """Size of the latent."""
    learning_rate: float = 1e-3
    """Of Adam, in both phases; it falls to 0 over all epochs, which cannot then change."""
    baseline_epochs: int = 8
    """Passes over the training images for the baseline. Where it overfits, its guesses at them mislead the prior."""
    evaluate_every: int = 1
    """Epochs between evaluations, each with a checkpoint."""
    validation: int = 5000
    """Training images kept for validation; they choose the checkpoint."""
    patience: int = 3
    """Stop after this many evaluations without progress on the validation images."""
    nll_samples: int = 100
    """Samples per test image for -log p(x|c)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers(
            counts=(
                "latent_dim",
                "hidden",
                "baseline_epochs",
                "evaluate_every",
                "validation",
                "patience",
                "nll_samples",
            ),
            positive=("learning_rate",),
        )


class BaselinePrior(nn.Module):
    """p(z|c) from the visible pixels and a baseline's guess at the others.

    The baseline is frozen: no gradient reaches it, so that Adam leaves it as it is.
    """

    baseline: nn.Module
    network: nn.Module

    def __call__(self, condition: Array) -> tuple[Array, Array]:
        """(mean, log_var), each [B, D], for visible pixels [B, V]."""
        guess = jax.lax.stop_gradient(nn.sigmoid(self.baseline(condition)))
        return self.network(jnp.concatenate([condition, guess], axis=1))


def make_baseline(config: Any) -> nn.Module:
    """Logits of the hidden pixels [B, M], from the visible ones [B, V]."""
    _, hidden = quadrants.pixels(config.image_shape, config.visible)
    return jaxvae.MLPDecoder((len(hidden),), tuple(config.hidden))


def make_model(config: Any) -> jaxvae.CVAE:
    """The model of a run, from its config.json; its parameters hold the baseline's."""
    sizes = tuple(config.hidden)
    baseline = make_baseline(config)
    return jaxvae.CVAE(
        encoder=jaxvae.Conditioned(jaxvae.MLPEncoder(config.latent_dim, sizes)),
        decoder=jaxvae.Unconditioned(jaxvae.MLPDecoder(baseline.output_shape, sizes)),
        prior=BaselinePrior(baseline, jaxvae.MLPEncoder(config.latent_dim, sizes)),
    )


def baseline_loss(
    model: nn.Module, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey, step: Array | int
) -> tuple[Array, tuple[PyTree, Metrics]]:
    """-log p(x|c) of the hidden pixels as independent Bernoulli variables, the mean over the batch in nats."""
    del key, step
    loss = bernoulli_nll(model.apply(params, batch["condition"]), batch["x"]).mean()
    return loss, (model_state, {"loss": loss, "nll": loss})


def run(config: Config) -> None:
    """Train the baseline, then the CVAE; measure and draw both."""
    if config.smoke:
        few = {"epochs": 2, "baseline_epochs": 2, "validation": min(config.validation, 64), "nll_samples": 10}
        config = dataclasses.replace(config, **few)
    with user_errors():
        whole = load_splits(config, validation=config.validation)
        data.Order(len(whole.train), config.batch_size, config.epochs, config.seed)  # refuses what cannot be
        splits = whole.map(lambda dataset: hide_quadrants(dataset, config.visible))
        derived = {"image_shape": whole.train.shape, "levels": whole.train.levels}
        this_run = Run("cvae", config, **derived, decay_epochs=config.epochs)  # so that a resume must agree
    baseline = finished_baseline(config, splits, this_run.directory / "baseline", **derived)
    model = make_model(SimpleNamespace(**this_run.settings))

    def init(*, key: PRNGKey) -> tuple[PyTree, PyTree]:
        batch = prepared(splits.train, 1)
        params = model.init(key, batch["x"], batch["condition"])["params"]
        return {"params": params | {"prior": params["prior"] | {"baseline": baseline["params"]}}}, ()

    loss_fn = partial(jaxvae.cvae_loss, model)
    state = train_best(this_run, config, init, loss_fn, partial(loss_fn, num_samples=RECOGNITION_SAMPLES), splits)
    measured = measure(model, state, splits.test, nll_samples=config.nll_samples)
    measured["baseline_nll"] = read_numbers(this_run.directory / "baseline" / "result.json")["test"]["nll"]
    result = {"test": measured, "nll_samples": config.nll_samples, **reached(state)}
    this_run.finish(result, lambda: save_pictures(this_run, config, model, state.params, splits.test))


def hide_quadrants(dataset: data.Dataset, visible: int) -> data.Dataset:
    """The same images, of which some quadrants are the condition and the others x."""
    return dataset.with_prepare(quadrants.make_prepare(dataset.prepare, visible))


def finished_baseline(config: Config, splits: Splits, directory: Path, **derived: Any) -> PyTree:
    """The baseline's parameters, from a run of its own in `directory`; a finished one is not trained again."""
    if not (directory / "result.json").exists():
        config = dataclasses.replace(config, preset="baseline", epochs=config.baseline_epochs, out=directory)
        with user_errors():
            baseline_run = Run("cvae", config, **derived)
        baseline = make_baseline(SimpleNamespace(**baseline_run.settings))
        init = init_of(baseline, prepared(splits.train, 1)["condition"])
        loss_fn = partial(baseline_loss, baseline)
        state = train_best(baseline_run, config, init, loss_fn, loss_fn, splits)
        nll = evaluator(loss_fn, splits.test)(state)["nll"]
        result = {"test": {"nll": nll}, "step": int(state.step)}
        baseline_run.finish(result, lambda: draw_baseline(baseline_run))
    return checkpoint.load(directory, make_baseline)[1]


def train_best(
    this_run: Run, config: Config, init: InitFn, loss_fn: LossFn, validation_loss_fn: LossFn, splits: Splits
) -> jaxvae.TrainState:
    """Train until the validation images gain nothing, and return the state that was best on them."""
    order = data.Order(len(splits.train), config.batch_size, config.epochs, config.seed)
    return this_run.train(
        init,
        loss_fn,
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, order.total_steps)),
        *(splits.train, order),
        evaluate=evaluator(validation_loss_fn, splits.validation),
        evaluate_every=config.evaluate_every * order.steps_per_epoch,
        split="validation",
        monitor="loss",
        patience=config.patience,
    )


def measure(
    model: jaxvae.CVAE, state: jaxvae.TrainState, dataset: data.Dataset, *, nll_samples: int
) -> dict[str, float]:
    """-log p(x|c) of the hidden pixels in three ways, nats per image, each with its Monte Carlo error.

    The -ELBO, importance sampling from q(z|x, c) ("nll") and Monte Carlo from p(z|c) ("nll_from_prior").
    """
    eval_step = jaxvae.make_eval_step(partial(jaxvae.cvae_loss, model), prepare=dataset.prepare)
    evaluate, feed = jaxvae.make_evaluate(eval_step), data.evaluation_feed(dataset, EVALUATION_BATCH)
    keys = jax.random.split(seed_key(EVALUATION_SEED), RECOGNITION_SAMPLES)
    evaluations = [jax.device_get(evaluate(state, *feed, key=key)) for key in keys]
    measured = {name: float(np.mean([each[name] for each in evaluations])) for name in ELBO_TERMS}
    spread = np.std([each["negative_elbo"] for each in evaluations], ddof=1)
    measured["negative_elbo_standard_error"] = float(spread / np.sqrt(RECOGNITION_SAMPLES))
    log_weights = {"nll": vae_log_weights, "nll_from_prior": cvae_prior_log_weights}
    for name, log_weights_fn in log_weights.items():
        estimate = importance_sampled(
            partial(log_weights_fn, model), state, dataset, nll_samples=nll_samples, name=name.replace("_", " ")
        )
        measured[name], measured[f"{name}_standard_error"] = estimate.nll, estimate.nll_standard_error
    return measured


@file_errors()
def save_pictures(this_run: Run, config: Config, model: jaxvae.CVAE, params: PyTree, test: data.Dataset) -> list[Path]:
    """Draw the pictures of a run and return their paths."""
    return [
        draw_completions(this_run.picture("completions"), config, model, params, test),
        figures.learning_curves(this_run.picture("learning_curves"), this_run.records(), condition="c"),
    ]


@file_errors()
def draw_baseline(this_run: Run) -> list[Path]:
    """The baseline's learning curve."""
    path = this_run.picture("learning_curves")
    return [figures.learning_curves(path, this_run.records(), title="baseline")]


def draw_completions(path: Path, config: Config, model: jaxvae.CVAE, params: PyTree, test: data.Dataset) -> Path:
    """Some test images: what is visible, completions by the CVAE and by the baseline, the truth."""
    batch = prepared(test, DRAWN_IMAGES)
    x, condition = batch["x"], batch["condition"]

    def sample(key: PRNGKey) -> Array:
        return model.apply(params, condition, key=key, method="sample").mean

    def joined(target: Array) -> Array:
        return quadrants.join(condition, target, test.x.shape[1:], config.visible)

    samples = jax.vmap(sample)(jax.random.split(seed_key(1), AVERAGED_SAMPLES))
    logits = model.prior.baseline.apply({"params": params["params"]["prior"]["baseline"]}, condition)
    return figures.completions(
        path,
        joined(jnp.full_like(x, 0.5)),
        jax.vmap(joined, out_axes=1)(samples[:DRAWN_SAMPLES]),
        {
            f"mean of {AVERAGED_SAMPLES}": joined(samples.mean(axis=0)),
            "baseline": joined(nn.sigmoid(logits)),
            "truth": joined(x),
        },
        title=f"hidden quadrants of test images ({config.visible} visible)",
    )
