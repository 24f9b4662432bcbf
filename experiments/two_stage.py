"""The hole problem, and its cure: a prior that is fitted to the codes of a VAE which is trained already.

  python -m experiments.two_stage digits   scikit-learn's digits of 8×8 pixels; needs no data
  python -m experiments.two_stage mnist    MNIST in TFDS_DATA_DIR

A VAE is trained under N(0, I). Where no code lies, the prior still draws, and the decoder has never seen it. So a
second stage fits a mixture of Gaussians and a flow to the codes, while the networks stay as they are
(`jaxvae.objectives.prior_loss`). Of each prior: how far all codes together miss it (`aggregate_kl`: the rate less the
mutual information), -ELBO and -log p(x) of the test images, and how many of its samples a classifier of the training
images reads as a digit at all: with a probability above 0.9, beside the test images themselves.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import optax

import jaxvae
from experiments import classifier, latents
from experiments.command import RunConfig, console, file_errors, parse, user_errors
from experiments.drawing import means_of
from experiments.other_run import checksum
from experiments.report import EVALUATION_SEED, as_pictures, evaluator, importance_sampled, posteriors, prepared
from experiments.run import InitFn, Run, init_of, reached
from experiments.splits import Splits, load_splits
from jaxvae import checkpoint, data, figures
from jaxvae.distributions import StandardNormal
from jaxvae.evaluation import aggregate_posterior
from jaxvae.keys import seed_key
from jaxvae.objectives import init_prior, prior_loss, with_fitted_prior
from jaxvae.types import LossFn, PRNGKey

SURE = 0.9  # a classifier's largest probability, from which on it reads a digit
DRAWN = 36  # samples of each prior in the picture
FITTED = ("mixture", "flow")  # priors of the second stage, each in a directory of its own


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    data: str = "mnist"
    """digits, or any image set that is prepared for tensorflow-datasets."""
    hidden: tuple[int, ...] = (500,)
    """Widths of the dense layers of the VAE."""
    latent_dim: int = 20
    """Size of the latent."""
    learning_rate: float = 1e-3
    """Of Adam; it falls to 0 over all epochs of a stage, which cannot then change."""
    prior_epochs: int = 50
    """Passes over the codes, for each prior."""
    components: int = 100
    """Gaussians of the mixture."""
    prior_layers: int = 6
    """Affine couplings of the flow."""
    prior_hidden: tuple[int, ...] = (128, 128)
    """Widths of their networks."""
    evaluate_every: int = 5
    """Epochs between evaluations, each with a checkpoint."""
    validation: int = 5000
    """Training images kept for validation; they choose the checkpoints."""
    classifier_steps: int = 3000
    """Of the classifier that reads the samples."""
    samples: int = 10_000
    """How many it reads."""
    nll_samples: int = 100
    """Importance samples per test image for -log p(x)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers(
            counts=(
                *("hidden", "latent_dim", "prior_epochs", "components", "prior_layers", "prior_hidden"),
                *("evaluate_every", "validation", "classifier_steps", "samples", "nll_samples"),
            ),
            positive=("learning_rate",),
        )


PRESETS = {
    "digits": (
        "scikit-learn's 1,797 digits of 8×8 pixels, binarised; needs no data.",
        Config(
            *("digits", 200, 64),
            data="digits",
            hidden=(200,),
            latent_dim=10,
            prior_epochs=200,
            components=50,
            validation=200,
        ),
    ),
    "mnist": ("MNIST, binarised anew at every step.", Config("mnist", 50, 128)),
}


def make_model(config: Any, prior: str = "normal") -> jaxvae.VAE:
    """The model of a run, from its config.json, with one of the priors."""
    sizes = tuple(config.hidden)
    return jaxvae.VAE(
        jaxvae.MLPEncoder(config.latent_dim, sizes),
        jaxvae.MLPDecoder(tuple(config.image_shape), sizes[::-1]),
        prior=latents.make_prior(SimpleNamespace(**vars(config) | {"prior": prior})),
    )


def draw(directory: Path, num: int, *, key: PRNGKey) -> np.ndarray:
    """Samples of a run under N(0, I), or of RUN/mixture and RUN/flow, as experiments.drawing wants them."""

    def with_its_prior(settings: Any) -> jaxvae.VAE:
        return make_model(settings, settings.preset if settings.preset in FITTED else "normal")

    model, params, model_state, settings = checkpoint.load(directory, with_its_prior)
    if settings.preset in FITTED:
        params = with_fitted_prior(params, model_state)
    return means_of(model, params, num, key=key)


def main(argv: Sequence[str] | None = None) -> None:
    """Train the VAE and then the priors, compare them, draw from them."""
    config = parse(PRESETS, __doc__, argv)
    if config.smoke:
        few = {"epochs": 2, "prior_epochs": 2, "evaluate_every": 1, "validation": 64, "classifier_steps": 10}
        config = dataclasses.replace(config, **few, samples=200, nll_samples=10, components=5)
    with user_errors():
        splits = load_splits(config, validation=config.validation, labelled=True).binarized()
        data.Order(len(splits.train), config.batch_size, config.epochs, config.seed)  # refuses what cannot be
        this_run = Run("two_stage", config, image_shape=splits.train.shape, decay_epochs=config.epochs)
    settings, x = SimpleNamespace(**this_run.settings), prepared(splits.train, 1)

    model = make_model(settings)
    state = train(this_run, config, config.epochs, init_of(model, x["x"]), partial(jaxvae.vae_loss, model), splits)
    fitted = {"normal": (model, state)}
    for name in FITTED:
        fitted[name] = fit_prior(this_run, config, make_model(settings, name), name, state, splits)

    reader = classifier.train(
        splits.train, num_classes=splits.num_classes, steps=config.classifier_steps, seed=config.seed
    )
    test: dict[str, Any] = {}
    for name, (each, its_state) in fitted.items():
        test |= {
            f"{figure}_{name}": value for figure, value in measure(each, its_state, splits, reader, config).items()
        }
    images = prepared(splits.test, min(config.samples, len(splits.test)))["x"]
    test["read_test_images"] = read_share(*reader, images)
    this_run.finish({"test": test, **reached(state)}, lambda: save_pictures(this_run, fitted))


def train(run: Run, config: Config, epochs: int, init: InitFn, loss_fn: LossFn, splits: Splits) -> jaxvae.TrainState:
    """Train, and return the state that was best on the validation images."""
    order = data.Order(len(splits.train), config.batch_size, epochs, config.seed)
    return run.train(
        init,
        loss_fn,
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, order.total_steps)),
        *(splits.train, order),
        evaluate=evaluator(loss_fn, splits.validation),
        evaluate_every=config.evaluate_every * order.steps_per_epoch,
        split="validation",
        monitor="loss",
    )


def fit_prior(
    outer: Run, config: Config, model: jaxvae.VAE, name: str, state: jaxvae.TrainState, splits: Splits
) -> tuple[jaxvae.VAE, jaxvae.TrainState]:
    """The second stage, in a directory of its own within the run's: the model with its prior, and its state."""
    console.print(f"fitting a {name} to the codes", highlight=False)
    derived = {"image_shape": outer.settings["image_shape"], "decay_epochs": config.prior_epochs}
    derived["run_checksum"] = checksum(state.params, state.model_state)
    with user_errors():
        own = dataclasses.replace(config, preset=name, out=outer.directory / name, epochs=config.prior_epochs)
        run = Run("two_stage", own, **derived)
    loss_fn = partial(prior_loss, model)
    init = partial(init_prior, model, state.params, state.model_state, prepared(splits.train, 1))
    trained = train(run, config, config.prior_epochs, init, loss_fn, splits)
    loss = evaluator(loss_fn, splits.test)(trained)["loss"]
    run.finish({"test": {"loss": loss}} | reached(trained), lambda: [])
    return model, state.replace(params=with_fitted_prior(trained.params, trained.model_state))


def measure(
    model: jaxvae.VAE, state: jaxvae.TrainState, splits: Splits, reader: tuple[Any, Any], config: Config
) -> dict[str, float]:
    """What a prior is worth: how far the codes miss it, what x costs under it, and what it draws."""
    terms = evaluator(partial(jaxvae.sampled_vae_loss, model, num_samples=10), splits.test)(state)
    codes = posteriors(make_normal(model), state, splits.test)
    information = aggregate_posterior(*codes, key=seed_key(EVALUATION_SEED)).mutual_information
    estimate = importance_sampled(model, state, splits.test, nll_samples=config.nll_samples)
    sample_key, x_key = jax.random.split(seed_key(1))
    samples = model.apply(state.params, config.samples, key=sample_key, method="sample").sample(key=x_key)
    return {
        "aggregate_kl": terms["rate"] - information,
        "negative_elbo": terms["negative_elbo"],
        "nll": estimate.nll,
        "read": read_share(*reader, samples),
    }


def make_normal(model: jaxvae.VAE) -> jaxvae.VAE:
    """The same encoder under N(0, I)."""
    return model.clone(prior=StandardNormal())


def read_share(reader: classifier.Classifier, params: Any, x: Any) -> float:
    """The share of images [N, H, W, C] that the classifier reads as some digit, whichever, with certainty."""
    probabilities = jax.nn.softmax(reader.apply(params, x))
    return float((probabilities.max(axis=-1) > SURE).mean())


@file_errors()
def save_pictures(run: Run, fitted: dict[str, tuple[jaxvae.VAE, jaxvae.TrainState]]) -> list[Path]:
    """Draw samples of every prior and return the paths."""
    paths = []
    for name, (model, state) in fitted.items():
        samples = model.apply(state.params, DRAWN, key=seed_key(2), method="sample").mean
        path, title = run.picture(f"samples_{name}"), f"samples of the prior: {name}"
        paths.append(figures.image_grid(path, as_pictures(np.asarray(samples)), title=title))
    paths.append(figures.learning_curves(run.picture("learning_curves"), run.records(), title="VAE"))
    return paths


if __name__ == "__main__":
    main()
