"""Structured prediction (Sohn, Lee and Yan, 2015): the hidden quadrants of an image from the visible ones.

Run it by `python -m experiments.cvae quadrants --visible 1` (or 2, 3).

First a baseline learns the hidden pixels by themselves, each from what is visible. Then a CVAE is trained around it:
its prior p(z|c) sees the visible pixels and the baseline's guess, its decoder only z, so that z has to tell all on
which the hidden pixels agree. Both stop early on images held out from the training set.
"""

import dataclasses
import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import jaxvae
from experiments.report import EVALUATION_BATCH, EVALUATION_SEED, importance_sampled
from experiments.run import Run, RunConfig, counter, file_errors, user_errors
from jaxvae import checkpoint, data, figures, quadrants
from jaxvae.types import Array, Batch, LossFn, Metrics, Prepare, PRNGKey, PyTree

RECOGNITION_SAMPLES = 10  # draws from q(z|x, c) for each image in the -ELBO that is reported
DRAWN_IMAGES, DRAWN_SAMPLES, AVERAGED_SAMPLES = 10, 6, 100


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    data: str = "mnist"
    """digits, or any image set that is prepared for tensorflow-datasets."""
    visible: Literal[1, 2, 3] = 1
    """Quadrants that are given: bottom left, top left, top right."""
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
    """Training images to hold out; they choose the checkpoint."""
    patience: int = 3
    """Stop after this many evaluations without progress on the validation images."""
    nll_samples: int = 100
    """Samples per test image for -log p(x|c)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in (
            *("latent_dim", "hidden", "baseline_epochs", "evaluate_every"),
            *("validation", "patience", "nll_samples"),
        ):
            if np.min(getattr(self, name), initial=1) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (self.learning_rate > 0 and np.isfinite(self.learning_rate)):
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate}")


class Splits(NamedTuple):
    """Attributes: the images of a run, and how a step prepares them."""

    train: data.ImageSet
    validation: data.ImageSet
    test: data.ImageSet
    prepare: Prepare


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
    loss = jaxvae.bernoulli_nll(model.apply(params, batch["condition"]), batch["image"]).mean()
    return loss, (model_state, {"loss": loss, "nll": loss})


def run(config: Config) -> None:
    """Train the baseline, then the CVAE; measure and draw both."""
    if config.smoke:
        few = {"epochs": 2, "baseline_epochs": 2, "validation": min(config.validation, 64), "nll_samples": 10}
        config = dataclasses.replace(config, **few)
    with user_errors():
        train, test = (data.load(config.data, s, progress=counter(f"decoding {s} images")) for s in ("train", "test"))
        if config.smoke:
            train, test = train.take(slice(256)), test.take(slice(256))
        train, validation = data.split_validation(train, config.validation, seed=config.seed)
        data.Order(len(train.image), config.batch_size, config.epochs, config.seed)  # refuses what cannot be
        prepare = quadrants.make_prepare(data.make_prepare(train.levels), config.visible)
        splits = Splits(train, validation, test, prepare)
        derived = {"image_shape": train.image.shape[1:], "levels": train.levels}
        this_run = Run("cvae", config, **derived, decay_epochs=config.epochs)  # so that a resume must agree
    baseline = finished_baseline(config, splits, this_run.directory / "baseline", **derived)
    model = make_model(SimpleNamespace(**this_run.settings))

    def init(*, key: PRNGKey) -> tuple[PyTree, PyTree]:
        params = model.init(key, *example(splits))["params"]
        return {"params": params | {"prior": params["prior"] | {"baseline": baseline["params"]}}}, ()

    loss_fn = partial(jaxvae.cvae_loss, model)
    state = train_best(this_run, config, init, loss_fn, partial(loss_fn, num_samples=RECOGNITION_SAMPLES), splits)
    test_feed = data.evaluation_feed(test, EVALUATION_BATCH)
    measured = measure(model, state, prepare, test_feed, nll_samples=config.nll_samples)
    measured["baseline_nll"] = json.loads((this_run.directory / "baseline" / "result.json").read_text())["test"]["nll"]

    with file_errors():
        pictures = [
            draw_completions(this_run.directory / "completions.png", config, model, state.params, splits),
            figures.learning_curves(this_run.directory / "learning_curves.png", this_run.records()),
        ]
    result = {"test": measured, "nll_samples": config.nll_samples, "step": int(state.step)}
    this_run.finish(result | {"device": jax.devices()[0].device_kind}, pictures)


def example(splits: Splits) -> tuple[Array, Array]:
    """Hidden pixels [1, M] and visible ones [1, V], for `init`."""
    batch = splits.prepare({"image": jnp.asarray(splits.train.image[:1])}, key=jax.random.key(0))
    return batch["image"], batch["condition"]


def finished_baseline(config: Config, splits: Splits, directory: Path, **derived: Any) -> PyTree:
    """The baseline's parameters, from a run of its own in `directory`; a finished one is not trained again."""
    if not (directory / "result.json").exists():
        config = dataclasses.replace(config, preset="baseline", epochs=config.baseline_epochs, out=directory)
        with user_errors():
            baseline_run = Run("cvae", config, **derived)
        baseline = make_baseline(SimpleNamespace(**baseline_run.settings))

        def init(*, key: PRNGKey) -> tuple[PyTree, PyTree]:
            return baseline.init(key, example(splits)[1]), ()

        loss_fn = partial(baseline_loss, baseline)
        state = train_best(baseline_run, config, init, loss_fn, loss_fn, splits)
        evaluate = jaxvae.make_evaluate(jaxvae.make_eval_step(loss_fn, prepare=splits.prepare))
        test_feed = data.evaluation_feed(splits.test, EVALUATION_BATCH)
        nll = float(evaluate(state, *test_feed, key=jax.random.key(EVALUATION_SEED))["nll"])
        with file_errors():
            path = directory / "learning_curves.png"
            curves = figures.learning_curves(path, baseline_run.records(), title="baseline")
        baseline_run.finish({"test": {"nll": nll}, "step": int(state.step)}, [curves])
    return checkpoint.load(directory, make_baseline)[1]


def train_best(
    this_run: Run, config: Config, init: Any, loss_fn: LossFn, validation_loss_fn: LossFn, splits: Splits
) -> jaxvae.TrainState:
    """Train until the validation images gain nothing, and return the state that was best on them."""
    order = data.Order(len(splits.train.image), config.batch_size, config.epochs, config.seed)
    evaluate = jaxvae.make_evaluate(jaxvae.make_eval_step(validation_loss_fn, prepare=splits.prepare))
    held_out = data.evaluation_feed(splits.validation, EVALUATION_BATCH)
    state = this_run.train(
        init,
        loss_fn,
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, order.total_steps)),
        splits.train,
        order,
        prepare=splits.prepare,
        evaluate=lambda state: jax.device_get(evaluate(state, *held_out, key=jax.random.key(EVALUATION_SEED))),
        evaluate_every=config.evaluate_every * order.steps_per_epoch,
        held_out="validation",
        monitor="loss",
        patience=config.patience,
    )
    return this_run.best(state)


def measure(
    model: jaxvae.CVAE, state: jaxvae.TrainState, prepare: Prepare, feed: tuple[Batch, Array], *, nll_samples: int
) -> dict[str, float]:
    """-log p(x|c) of the hidden pixels in three ways, nats per image, each with its Monte Carlo error.

    The -ELBO, importance sampling from q(z|x, c) ("nll") and Monte Carlo from p(z|c) ("nll_from_prior").
    """
    evaluate = jaxvae.make_evaluate(jaxvae.make_eval_step(partial(jaxvae.cvae_loss, model), prepare=prepare))
    keys = jax.random.split(jax.random.key(EVALUATION_SEED), RECOGNITION_SAMPLES)
    draws = [jax.device_get(evaluate(state, *feed, key=key)) for key in keys]
    measured = {
        name: float(np.mean([draw[name] for draw in draws])) for name in ("negative_elbo", "rate", "distortion")
    }
    spread = np.std([draw["negative_elbo"] for draw in draws], ddof=1)
    measured["negative_elbo_standard_error"] = float(spread / np.sqrt(RECOGNITION_SAMPLES))
    weights = {"nll": jaxvae.vae_log_weights, "nll_from_prior": jaxvae.cvae_prior_log_weights}
    for name, log_weights in weights.items():
        show = counter(f"{name.replace('_', ' ')} with {nll_samples} samples, batch")
        estimate = importance_sampled(
            partial(log_weights, model), state, prepare, feed, nll_samples=nll_samples, progress=show
        )
        measured[name], measured[f"{name}_standard_error"] = estimate.nll, estimate.nll_standard_error
    return measured


def draw_completions(path: Path, config: Config, model: jaxvae.CVAE, params: PyTree, splits: Splits) -> Path:
    """Some test images: what is visible, completions by the CVAE and by the baseline, the truth."""
    few = splits.test.take(slice(DRAWN_IMAGES))
    batch = splits.prepare({"image": jnp.asarray(few.image)}, key=jax.random.key(EVALUATION_SEED))
    condition = batch["condition"]

    def sample(key: PRNGKey) -> Array:
        return model.apply(params, condition, key=key, method="sample").mean

    def joined(target: Array) -> Array:
        return quadrants.join(condition, target, few.image.shape[1:], config.visible)

    samples = jax.vmap(sample)(jax.random.split(jax.random.key(1), AVERAGED_SAMPLES))
    logits = model.prior.baseline.apply({"params": params["params"]["prior"]["baseline"]}, condition)
    return figures.completions(
        path,
        joined(jnp.full_like(batch["image"], 0.5)),
        jax.vmap(joined, out_axes=1)(samples[:DRAWN_SAMPLES]),
        {
            f"mean of {AVERAGED_SAMPLES}": joined(samples.mean(axis=0)),
            "baseline": joined(nn.sigmoid(logits)),
            "truth": joined(batch["image"]),
        },
        title=f"hidden quadrants of test images ({config.visible} visible)",
    )
