"""The hidden half of an image, completed in many ways by a model that was never trained to complete.

  python -m experiments.inpaint digits   scikit-learn's digits of 8×8 pixels; needs no data
  python -m experiments.inpaint mnist    MNIST in TFDS_DATA_DIR

A VAE learns whole images, binarised. Then the upper half of test images is hidden and drawn given the lower one
(`jaxvae.evaluation.invert`): by importance sampling from the prior and from an encoder of the lower half, which is
trained against the frozen VAE (Harvey, Naderiparizi and Wood, 2022); by Metropolis within Gibbs through the VAE's own
encoder; by Langevin steps in the space of the latents, with their Metropolis correction and without. Beside them stands
a CVAE of the same networks that was trained for these halves and no others.

Of each, from as many draws: the squared error of the mean completion, and -log p(hidden | visible), the mean of
p(hidden | z) over the draws. Both are of draws alone, so that a method which draws wrongly cannot hide it.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import optax

import jaxvae
from experiments.command import RunConfig, file_errors, parse, user_errors
from experiments.completion import (
    DRAWN_SAMPLES,
    Completed,
    complete,
    complete_by_cvae,
    diagnostics_of,
    figures_of,
    halves,
    reference_nll,
    show,
)
from experiments.report import EVALUATION_SEED, evaluator, prepared
from experiments.run import InitFn, Run, init_of, reached
from experiments.splits import Splits, load_splits
from jaxvae import data, figures
from jaxvae.evaluation import Gibbs, Importance, Langevin, TrainedEncoder, Visible
from jaxvae.keys import seed_key
from jaxvae.models import PartialEncoder
from jaxvae.objectives import init_partial_encoder, partial_encoder_loss
from jaxvae.types import Batch, LossFn, Prepare, PRNGKey

DRAWN_IMAGES = 8


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    data: str = "mnist"
    """digits, or any image set that is prepared for tensorflow-datasets."""
    hidden: tuple[int, ...] = (500,)
    """Widths of the dense layers of all networks."""
    latent_dim: int = 20
    """Size of the latent."""
    learning_rate: float = 1e-3
    """Of Adam; it falls to 0 over all epochs of a network, which cannot then change."""
    evaluate_every: int = 5
    """Epochs between evaluations, each with a checkpoint."""
    validation: int = 5000
    """Training images kept for validation; they choose the checkpoints."""
    patience: int = 3
    """Stop after this many evaluations without progress on the validation images."""
    images: int = 200
    """Test images to complete: the first so many."""
    draws: int = 100
    """Completions of each."""
    importance_samples: int = 10_000
    """Of each image, from the prior; a tenth of it from the encoder that is trained for it."""
    steps: int = 200
    """Of each chain, Gibbs and Langevin. Every draw is the end of one of its own."""
    burn_in: int = 200
    """Steps before."""
    step_sizes: tuple[float, ...] = (0.01, 0.1)
    """Of Langevin without its correction, once with each: how the bias grows. With it, the first one of the burn-in."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers(
            counts=("hidden", "latent_dim", "evaluate_every", "validation", "patience", "images"),
            positive=("learning_rate",),
            weights=("burn_in",),
        )
        if not self.step_sizes or not all(0 < each < np.inf for each in self.step_sizes):
            raise ValueError(f"step_sizes must be positive numbers, got {self.step_sizes}")
        if len({f"{each:g}" for each in self.step_sizes}) < len(self.step_sizes):  # their rows' names
            raise ValueError(f"step_sizes must differ, in their first six digits, got {self.step_sizes}")
        for name, least in (("draws", 2), ("steps", 2), ("importance_samples", 20)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, got {getattr(self, name)}")


PRESETS = {
    "digits": (
        "scikit-learn's 1,797 digits of 8×8 pixels; needs no data.",
        Config(preset="digits", data="digits", hidden=(200,), latent_dim=10, epochs=200, batch_size=64, validation=200),
    ),
    "mnist": (
        "MNIST, from TFDS_DATA_DIR.",
        Config(
            preset="mnist", epochs=30, batch_size=128, evaluate_every=2, images=50, draws=50, step_sizes=(0.002, 0.01)
        ),
    ),
}


@dataclasses.dataclass(frozen=True)
class Halves:
    """`prepare`, then the lower half of an image as the condition and the upper one as x, both flat."""

    prepare: Prepare

    def __call__(self, batch: Batch, *, key: PRNGKey) -> Batch:
        """The batch with its images in two."""
        batch = self.prepare(batch, key=key)
        upper, lower = halves(batch["x"])
        return batch | {"x": upper, "condition": lower}


def lower_half(shape: Sequence[int]) -> np.ndarray:
    """Which pixels of an image are visible."""
    mask = np.ones(shape, bool)
    mask[: shape[0] // 2] = False
    return mask


def make_model(config: Any) -> jaxvae.VAE:
    """The model of whole images, from a run's config.json."""
    sizes = tuple(config.hidden)
    return jaxvae.VAE(
        jaxvae.MLPEncoder(config.latent_dim, sizes), jaxvae.MLPDecoder(tuple(config.image_shape), sizes[::-1])
    )


def make_encoder(config: Any) -> PartialEncoder:
    """The encoder of the lower half."""
    return PartialEncoder(jaxvae.MLPEncoder(config.latent_dim, tuple(config.hidden)))


def make_cvae(config: Any) -> jaxvae.CVAE:
    """The model of the upper half given the lower one."""
    sizes, height = tuple(config.hidden), config.image_shape[0] // 2
    upper = (height * int(np.prod(config.image_shape[1:])),)
    return jaxvae.CVAE(
        jaxvae.Conditioned(jaxvae.MLPEncoder(config.latent_dim, sizes)),
        jaxvae.Conditioned(jaxvae.MLPDecoder(upper, sizes[::-1])),
        prior=jaxvae.MLPEncoder(config.latent_dim, sizes),
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Train all three, complete test images by each method, compare, draw."""
    config = parse(PRESETS, __doc__, argv)
    if config.smoke:
        few = {"epochs": 2, "evaluate_every": 1, "validation": 64, "images": 10, "draws": 4, "steps": 5, "burn_in": 5}
        config = dataclasses.replace(config, **few, importance_samples=50)
    with user_errors():
        splits = load_splits(config, validation=config.validation).binarized()
        data.Order(len(splits.train), config.batch_size, config.epochs, config.seed)  # refuses what cannot be
        this_run = Run("inpaint", config, image_shape=splits.train.shape, decay_epochs=config.epochs)
    settings, x = SimpleNamespace(**this_run.settings), prepared(splits.train, 1)
    model, encoder, cvae = make_model(settings), make_encoder(settings), make_cvae(settings)
    visible = Visible(lower_half(splits.train.shape))

    state = train(this_run, config, init_of(model, x["x"]), partial(jaxvae.vae_loss, model), splits)
    loss_fn = partial(partial_encoder_loss, encoder, model=model, observation=visible)
    init = partial(init_partial_encoder, encoder, state.params, state.model_state, visible, x)
    trained = train_beside(this_run, "encoder", config, init, loss_fn, splits)
    in_two = splits.map(lambda dataset: dataset.with_prepare(Halves(dataset.prepare)))
    upper, lower = halves(x["x"])
    conditional = train_beside(
        this_run, "cvae", config, init_of(cvae, upper, lower), partial(jaxvae.cvae_loss, cvae), in_two
    )

    images = test_images(splits.test, config.images)
    methods = methods_of(config, TrainedEncoder(encoder, trained.params, trained.model_state))
    options: dict[str, Any] = {"num_draws": config.draws, "seed": config.seed}
    completed = complete(model, state, visible, images, methods, **options)
    completed["CVAE"] = complete_by_cvae(cvae, conditional, images, **options)
    log_visible = completed["encoder"].diagnostics["log_evidence"]
    reference = reference_nll(model, state, cvae, conditional, images, log_visible)
    show(completed)
    result = {"test": figures_of(completed) | reference, "diagnostics": diagnostics_of(completed), **reached(state)}
    this_run.finish(result, lambda: save_pictures(this_run, images, visible, completed, config))


def methods_of(config: Config, proposal: TrainedEncoder) -> dict[str, Any]:
    """How the upper halves are drawn, under the names of the table."""
    chains: dict[str, Any] = {"steps": config.steps, "burn_in": config.burn_in}
    return {
        "prior": Importance(config.importance_samples),
        "encoder": Importance(config.importance_samples // 10, proposal),
        "Gibbs": Gibbs(**chains),
        "Langevin": Langevin(config.step_sizes[0], **chains),
        **{f"unadjusted {h:g}": Langevin(h, **chains, adjusted=False) for h in config.step_sizes},
    }


def train(run: Run, config: Config, init: InitFn, loss_fn: LossFn, splits: Splits) -> jaxvae.TrainState:
    """Train until the validation images gain nothing, and return the state that was best on them."""
    order = data.Order(len(splits.train), config.batch_size, config.epochs, config.seed)
    return run.train(
        init,
        loss_fn,
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, order.total_steps)),
        *(splits.train, order),
        evaluate=evaluator(loss_fn, splits.validation),
        evaluate_every=config.evaluate_every * order.steps_per_epoch,
        split="validation",
        monitor="loss",
        patience=config.patience,
    )


def train_beside(
    outer: Run, name: str, config: Config, init: InitFn, loss_fn: LossFn, splits: Splits
) -> jaxvae.TrainState:
    """The same for another network, in a directory of its own within the run's."""
    derived = {name: outer.settings[name] for name in ("image_shape", "decay_epochs")}
    with user_errors():
        run = Run("inpaint", dataclasses.replace(config, preset=name, out=outer.directory / name), **derived)
    state = train(run, config, init, loss_fn, splits)
    loss = evaluator(loss_fn, splits.test)(state)["loss"]
    run.finish({"test": {"loss": loss}} | reached(state), lambda: [])
    return state


def test_images(dataset: data.Dataset, count: int) -> Batch:
    """The first test images, binarised once."""
    batch = dataset.prepared(min(count, len(dataset)), key=seed_key(EVALUATION_SEED))
    return {name: batch[name] for name in ("x", "index")}


@file_errors()
def save_pictures(
    run: Run, images: Batch, visible: Visible, completed: dict[str, Completed], config: Config
) -> list[Path]:
    """Draw the pictures of a run and return their paths."""
    x = np.asarray(images["x"][:DRAWN_IMAGES])

    def joined(upper: np.ndarray) -> np.ndarray:
        whole = np.broadcast_to(x[:, None], (len(x), upper.shape[1], *x.shape[1:])).copy()
        middle = x.shape[1] // 2
        whole[:, :, :middle] = upper[: len(x)].reshape(*whole.shape[:2], middle, *x.shape[2:])
        return whole

    # Of the unadjusted steps the last, so that every name has room.
    groups = {name.split()[0]: joined(each.singles) for name, each in completed.items()}
    path = run.picture("completions")
    seen = np.where(visible.mask, x, 0.5)
    title = f"upper halves of test images, {DRAWN_SAMPLES} of {config.draws} completions by each method"
    return [
        figures.completions(path, seen, groups, {"truth": x}, title=title),
        figures.learning_curves(run.picture("learning_curves"), run.records(), title="VAE"),
    ]


if __name__ == "__main__":
    main()
