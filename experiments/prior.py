"""Train a prior over the codes of a VQ-VAE, which makes it generate: a transformer, or a gated PixelCNN.

  python -m experiments.prior RUN                         a transformer over the codes of a run of experiments.vq_vae
  python -m experiments.prior RUN --network pixelcnn      the neighbour that it is compared with
  python -m experiments.prior RUN --network pixelrnn      row LSTMs, another
  python -m experiments.prior RUN --class-conditional --guidance 1.5     given the class, and beyond

A run with several codebooks a position (--groups) needs a transformer, as do sound and video, which it also continues.
What each costs and which numbers to expect: experiments/README.md.
"""

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxvae
from experiments import classifier
from experiments.command import RunConfig, check_guidance, console, parse, user_errors
from experiments.drawing import settings_of
from experiments.maps import SAMPLES, Maps, draw_maps, load_codes, measure, run_first, save_pictures, train_model
from experiments.report import as_pictures
from experiments.run import Run, reached
from jaxvae import data
from jaxvae.keys import seed_key
from jaxvae.types import PRNGKey, PyTree

SAMPLES_PER_CLASS = 1_000  # that the classifier reads
CLASSIFIER_STEPS = 1_000
PIXELCNN = "codes-pixelcnn"
OF_TRANSFORMER = ("temperature", "top_k", "top_p", "guidance")  # what its `sample` is told
NAMES = {"pixelcnn": "PixelCNN", "pixelrnn": "PixelRNN"}


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    run: Path | None = None
    """A run directory of experiments.vq_vae, whose codes are modelled."""
    network: Literal["transformer", "pixelcnn", "pixelrnn"] = "transformer"
    """The model of the codes; a transformer has presets of its own."""
    width: int = 96
    """Features of a transformer; channels of either stack of a PixelCNN."""
    layers: int = 4
    """How many of them."""
    heads: int = 4
    """Of the attention; they divide the width. Of a transformer, as what follows."""
    kv_heads: int | None = None
    """Of keys and values, each for several heads. Default: as many."""
    positions: Literal["rotary", "learned"] = "rotary"
    """How positions are told: angles along the axes of the map, or a vector each."""
    books: Literal["flat", "delay"] = "flat"
    """Several codes a position: one after the other, or side by side, each a step later."""
    dropout: float = 0.0
    """The share of features that are dropped in training."""
    class_conditional: bool = False
    """Give the model the label."""
    condition_dropout: float = 0.1
    """How often a transformer is not told the label in training, so that guidance is of use."""
    learning_rate: float = 3e-3
    """Of Adam; it rises from 0 in the warm-up and falls back by a cosine over all epochs."""
    warm_up: float = 0.05
    """The share of the steps in which it rises."""
    weight_decay: float = 0.1
    """Of Adam (decoupled; AdamW), against a prior that learns its training maps by heart."""
    guidance: float = 1.0
    """Of the samples of a class-conditional transformer: above 1 they are more of their class."""
    temperature: float = 1.0
    """Of the samples."""
    top_k: int | None = None
    """Draw from that many most probable codes. Of a transformer, as top_p."""
    top_p: float | None = None
    """Draw from the smallest set of the most probable codes that has this probability."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers(
            counts=("width", "layers", "heads"),
            weights=("weight_decay", "guidance", "temperature"),
            positive=("learning_rate",),
        )
        for name in ("dropout", "condition_dropout", "warm_up"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], got {self.top_p}")
        if self.guidance != 1 and not (self.class_conditional and self.network == "transformer"):
            raise ValueError(f"guidance {self.guidance} needs a transformer and --class-conditional")
        check_guidance(self.guidance, self.condition_dropout)
        if self.network != "transformer" and not (self.top_k is None and self.top_p is None):
            raise ValueError("top_k and top_p need --network transformer")

    @property
    def sampling(self) -> dict[str, Any]:
        """What the model's `sample` is told."""
        if self.network != "transformer":
            return {"temperature": self.temperature}
        return {name: getattr(self, name) for name in OF_TRANSFORMER}


PRESETS = {
    "codes": (
        "The index maps of a VQ-VAE, by a transformer.",
        Config(preset="codes", epochs=4, batch_size=64),
    ),
    PIXELCNN: (
        "The same by a gated PixelCNN, as experiments.pixelcnn trains it.",
        Config(
            preset=PIXELCNN,
            network="pixelcnn",
            epochs=5,
            batch_size=64,
            width=96,
            layers=6,
            warm_up=0.0,
            weight_decay=0.2,
        ),
    ),
}


def make_model(config: Any) -> jaxvae.PixelCNN | jaxvae.PixelRNN | jaxvae.TransformerPrior:
    """The model of a run, from its config.json."""
    shared = {"layers": config.layers, "num_classes": config.num_classes, "dtype": jnp.dtype(config.dtype)}
    if config.network != "transformer":
        model = jaxvae.PixelRNN if config.network == "pixelrnn" else jaxvae.PixelCNN
        return model(config.num_values, tuple(config.shape), channels=config.width, **shared)
    return jaxvae.TransformerPrior(
        config.num_values,
        tuple(config.shape),
        width=config.width,
        heads=config.heads,
        kv_heads=config.kv_heads,
        positions=config.positions,
        dropout=config.dropout,
        books=config.books,
        **shared,
    )


def draw(directory: Path, num: int, *, key: PRNGKey) -> np.ndarray:
    """Samples of a run, as experiments.drawing wants them."""
    told = settings_of(directory)["network"]
    options = OF_TRANSFORMER if told == "transformer" else ("temperature",)
    return draw_maps(directory, make_model, num, key=key, options=options)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, draw samples."""
    config = parse(PRESETS, __doc__, of_network(run_first(argv, list(PRESETS), "codes")))
    if config.smoke:
        config = dataclasses.replace(config, epochs=1)

    with user_errors():
        if config.run is None:
            raise ValueError(f"{config.preset} needs the run directory of a VQ-VAE: --run RUN")
        maps = load_codes(config)
        if config.network != "transformer" and isinstance(maps.num_values, tuple):
            raise ValueError(
                f"a {NAMES[config.network]} needs one codebook per position, {config.run} has "
                f"{len(maps.num_values)}: take "
                "--network transformer"
            )
        if config.top_k is not None and config.top_k > np.max(maps.num_values):  # the samples come after training
            raise ValueError(f"top_k must be at most {np.max(maps.num_values)}, the codes, got {config.top_k}")
        order = data.Order(len(maps.train), config.batch_size, config.epochs, config.seed)
        run = Run("prior", config, **maps.derived, decay_epochs=config.epochs)
        model = make_model(SimpleNamespace(**run.settings))
    dropping = {}
    if config.class_conditional and config.network == "transformer":
        dropping = {"condition_dropout": config.condition_dropout}
    loss_fn = partial(jaxvae.code_prior_loss, model, field="x", **dropping)
    state, metrics = train_model(run, model, loss_fn, make_optimizer(config, order), maps, order)

    measured: dict[str, Any] = measure(metrics, maps, pixels=False)
    measured["samples_per_second"] = samples_per_second(config, model, state.params, maps)
    if maps.num_classes is not None and not maps.signals:
        measured |= read_samples(config, model, state.params, maps)
    result = {"test": measured, **reached(state)}
    run.finish(result, lambda: save_pictures(run, model, state.params, maps, **config.sampling))


def of_network(arguments: list[str]) -> list[str]:
    """The command line, whose preset is that of the network asked for."""
    asked = " ".join(arguments).replace("--network=", "--network ")
    if arguments[:1] == ["codes"] and ("--network pixelcnn" in asked or "--network pixelrnn" in asked):
        return [PIXELCNN, *arguments[1:]]
    return arguments


def make_optimizer(config: Config, order: data.Order) -> optax.GradientTransformation:
    """AdamW, whose learning rate rises in the warm-up and falls to 0 by a cosine."""
    rate, warm_up = config.learning_rate, round(config.warm_up * order.total_steps)
    schedule = optax.cosine_decay_schedule(rate, order.total_steps)
    if warm_up:
        schedule = optax.warmup_cosine_decay_schedule(0.0, rate, warm_up, order.total_steps)
    shorter = {"b2": 0.95} if config.network == "transformer" else {}
    return optax.adamw(schedule, weight_decay=config.weight_decay, **shorter)


def samples_per_second(config: Config, model: Any, params: PyTree, maps: Maps) -> float:
    """How many maps are drawn in a second, `SAMPLES` at a time; compiling is not counted, decoding neither."""
    label = None if maps.num_classes is None else jnp.arange(SAMPLES) % maps.num_classes
    draw = partial(model.sample, params, SAMPLES, key=seed_key(1), label=label, **config.sampling)
    jax.block_until_ready(draw())
    began = time.perf_counter()
    jax.block_until_ready(draw())
    rate = SAMPLES / (time.perf_counter() - began)
    console.print(f"{rate:,.0f} samples a second, {SAMPLES} at a time, compiling not counted", highlight=False)
    return rate


def read_samples(config: Config, model: Any, params: PyTree, maps: Maps) -> dict[str, float]:
    """How many of the samples of each class a classifier reads as it; it is trained on the images of the VQ-VAE."""
    classes, per_class = maps.num_classes, 20 if config.smoke else SAMPLES_PER_CLASS
    steps = 20 if config.smoke else CLASSIFIER_STEPS
    reader = classifier.train(maps.images.train, num_classes=classes, steps=steps, seed=config.seed)
    right = []
    for block in range(0, per_class, 20):
        label = jnp.arange(20 * classes) % classes
        drawn = model.sample(
            params, len(label), key=jax.random.fold_in(seed_key(2), block), label=label, **config.sampling
        )
        images = as_pictures(maps.as_images(drawn))
        right.append(np.asarray(classifier.read(*reader, images) == label).reshape(-1, classes))
    share = np.concatenate(right).mean(axis=0)
    accuracy = classifier.accuracy(*reader, maps.images.test)
    console.print(
        f"read as their class: {share.mean():.2%} of {per_class * classes:,} samples, {share.min():.2%} of class "
        f"{share.argmin()}, the worst; the classifier is right on {accuracy:.2%} of the test images",
        highlight=False,
    )
    return {
        "read_as_condition": float(share.mean()),
        "read_of_worst_class": float(share.min()),
        "classifier_accuracy": accuracy,
    }


if __name__ == "__main__":
    main()
