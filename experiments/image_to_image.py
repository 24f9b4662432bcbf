"""From picture to picture with a U-Net and a discriminator of patches (pix2pix: Isola et al., 2017).

  python -m experiments.image_to_image digits     edges -> scikit-learn's digits of 8×8 pixels; needs no data
  python -m experiments.image_to_image sprites    outlines -> filled shapes of 32×32 pixels; needs no data
  python -m experiments.image_to_image mnist      edges -> MNIST's digits (needs TFDS_DATA_DIR)

The drawings are made from the pictures. The same U-Net is trained twice, for the absolute error alone, in a directory
within the run's, and with the discriminator, and both are measured on test pairs: the error, how well the shapes
agree (intersection over union) and how sharp the pictures are. What each costs and which numbers to expect:
experiments/README.md.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import jaxvae
from experiments.command import RunConfig, console, file_errors, parse, user_errors
from experiments.report import as_pictures, evaluator, over_set
from experiments.run import Run, init_of, reached
from experiments.splits import load_splits
from jaxvae import data, figures
from jaxvae.data import pairs, sprites
from jaxvae.evaluation import sharpness_ratio
from jaxvae.keys import seed_key
from jaxvae.models import Translator
from jaxvae.networks import PatchDiscriminator, UNet
from jaxvae.objectives import translation_loss
from jaxvae.training import adversarial_optimizer
from jaxvae.types import Array, Batch, PRNGKey, PyTree

SIZE = sprites.SIZE // 2
DRAWN = 12  # pairs in the picture
RENDERED_AT_ONCE = 1000
ALONE, BESIDE = "absolute error alone", "with a discriminator"


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    data: str = "mnist"
    """sprites, digits, or any set of grey images that is prepared for tensorflow-datasets."""
    images: int = 20_000
    """Sprites to train on; a tenth as many are for the test."""
    channels: tuple[int, ...] = (32, 64)
    """Of the U-Net at each size, each half as large as the one before."""
    critic_channels: tuple[int, ...] = (32, 64)
    """Of the discriminator's convolutions, each of which halves the picture."""
    absolute_weight: float = 0.1
    """Of the absolute error, summed over the picture."""
    adversarial_weight: float = 1.0
    """Of the discriminator's opinion; 0 trains the first network alone."""
    learning_rate: float = 1e-3
    """Of the U-Net's Adam; it falls to 0 by a cosine over all epochs."""
    critic_rate: float = 2e-4
    """Of the discriminator's."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers(
            counts=("images", "channels", "critic_channels"),
            weights=("adversarial_weight",),
            positive=("absolute_weight", "learning_rate", "critic_rate"),
        )


PRESETS = {
    "digits": (
        "Edges to scikit-learn's digits of 8×8 pixels.",
        Config("digits", 60, 64, data="digits", channels=(16, 32), critic_channels=(16,)),
    ),
    "sprites": ("Outlines to filled sprites of 32×32 pixels.", Config("sprites", 4, 64, data="sprites")),
    "mnist": ("Edges to MNIST's digits.", Config("mnist", 2, 64)),
}


def make_model(config: Any) -> Translator:
    """The model of a run, from its config.json."""
    unet = UNet(config.image_shape[-1], channels=tuple(config.channels), embedding=None)
    return Translator(unet, PatchDiscriminator(tuple(config.critic_channels)), nn.sigmoid)


def main(argv: Sequence[str] | None = None) -> None:
    """Train both, measure, draw."""
    config = parse(PRESETS, __doc__, argv)
    if config.smoke:
        config = dataclasses.replace(config, epochs=1, images=256, channels=(4, 8), critic_channels=(4,))
    with user_errors():
        train, test = load(config)
        data.Order(len(train), config.batch_size, config.epochs, config.seed)  # refuses what cannot be
        run = Run("image_to_image", config, image_shape=train.shape, decay_epochs=config.epochs)
    model = make_model(SimpleNamespace(**run.settings))

    states = {}
    if config.adversarial_weight:
        console.print("training for the absolute error alone first", highlight=False)
        own = dataclasses.replace(config, out=run.directory / "absolute", adversarial_weight=0.0)
        with user_errors():
            inner = Run("image_to_image", own, image_shape=train.shape, decay_epochs=config.epochs)
        states[ALONE] = train_model(inner, own, model, train, test)
        inner.finish({"test": measure(model, states[ALONE], test)[0], **reached(states[ALONE])}, lambda: [])
        states[BESIDE] = train_model(run, config, model, train, test)
    else:
        states[ALONE] = train_model(run, config, model, train, test)

    measured = {name: measure(model, state, test) for name, state in states.items()}
    result = {
        "test": list(measured.values())[-1][0],
        "by_objective": {name: numbers for name, (numbers, _) in measured.items()},
        **reached(list(states.values())[-1]),
    }
    rows = {name: made for name, (_, made) in measured.items()}
    run.finish(result, lambda: save_pictures(run, test, rows))


def load(config: Config) -> tuple[data.Dataset, data.Dataset]:
    """Pictures with their drawings, to train on and to test with."""
    if config.data == "sprites":
        chosen = np.random.default_rng(config.seed).choice(
            sprites.NUM_IMAGES, config.images + -(-config.images // 10), replace=False
        )
        x = np.concatenate([rendered(part) for part in np.array_split(chosen, -(-len(chosen) // RENDERED_AT_ONCE))])
        both = x[: config.images], x[config.images :]
        return tuple(  # type: ignore[return-value]
            pairs.paired(data.from_arrays("sprites", each, domain="levels", levels=2), pairs.outlines) for each in both
        )
    splits = load_splits(config)
    if splits.train.shape[-1] != 1:
        raise ValueError(f"edges are of grey pictures, {config.data!r} has {splits.train.shape}")
    return pairs.paired(splits.train, pairs.edges), pairs.paired(splits.test, pairs.edges)


def rendered(index: np.ndarray) -> np.ndarray:
    """Sprites of 32×32 pixels, of zeros and ones: white where half of a pixel or more is."""
    return np.asarray(_halved(jnp.asarray(sprites.factors_at(index)))).astype(np.uint8)


@jax.jit
def _halved(factors: Array) -> Array:
    images = sprites.render(factors)
    return images.reshape(len(factors), SIZE, 2, SIZE, 2, 1).sum(axis=(2, 4)) >= 2


def train_model(
    run: Run, config: Config, model: Translator, train: data.Dataset, test: data.Dataset
) -> jaxvae.TrainState:
    """One of the two."""
    order = data.Order(len(train), config.batch_size, config.epochs, config.seed)
    weights = {name: getattr(config, name) for name in ("absolute_weight", "adversarial_weight")}
    loss_fn = partial(translation_loss, model, **weights)
    adams = (
        optax.adam(optax.cosine_decay_schedule(rate, order.total_steps), b1=0.5)
        for rate in (config.learning_rate, config.critic_rate)
    )
    x = jnp.zeros((1, *train.shape))
    return run.train(
        init_of(model, x, x),
        *(loss_fn, adversarial_optimizer(*adams), train, order),
        evaluate=evaluator(loss_fn, test),
        evaluate_every=order.steps_per_epoch * max(1, config.epochs // 20),
        split="test",
    )


def measure(model: Translator, state: jaxvae.TrainState, test: data.Dataset) -> tuple[dict[str, float], np.ndarray]:
    """How a network translates test drawings, and its pictures."""
    x, made = over_set(partial(_translate, model), state, test)
    real, drawn = x >= 0.5, made >= 0.5
    union = (real | drawn).reshape(len(x), -1).sum(axis=1)
    overlap = (real & drawn).reshape(len(x), -1).sum(axis=1) / np.maximum(union, 1)
    return {
        "absolute_error": float(np.abs(x - made).mean()),
        "intersection_over_union": float(np.where(union, overlap, 1).mean()),
        "sharpness_ratio": sharpness_ratio(x, made),
    }, made


def _translate(
    model: Translator, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey
) -> tuple[Array, Array]:
    del model_state, key
    return batch["x"], model.apply(params, batch["condition"], method="translate")


@file_errors()
def save_pictures(run: Run, test: data.Dataset, made: dict[str, np.ndarray]) -> list[Path]:
    """Test drawings, what each network makes of them, and the pictures that they were drawn from."""
    batch = test.prepared(DRAWN, key=seed_key(0))
    rows = [np.asarray(batch["condition"]), *(each[:DRAWN] for each in made.values()), np.asarray(batch["x"])]
    images = as_pictures(np.concatenate(rows))
    names, title = ["drawing", *made, "picture"], "test drawings, what each network makes of them, the truth"
    return [figures.image_grid(run.picture("translations"), images, columns=DRAWN, row_names=names, title=title)]


if __name__ == "__main__":
    main()
