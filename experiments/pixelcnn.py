"""Train a gated PixelCNN (van den Oord et al., 2016): the prior that makes a VQ-VAE generate, or a model of pixels.

  python -m experiments.pixelcnn RUN          over the codes of a run directory of experiments.vq_vae
  python -m experiments.pixelcnn codes --run RUN --class-conditional     the same, given the class
  python -m experiments.pixelcnn digits       grey pixels of scikit-learn's digits, 17 values; needs no data
  python -m experiments.pixelcnn mnist        dynamically binarised MNIST (needs TFDS_DATA_DIR); for a GPU
  python -m experiments.pixelcnn mnist --no-binarize     its 256 grey values

What each costs and which numbers to expect: experiments/README.md.
"""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxvae
from experiments import vq_vae
from experiments.command import RunConfig, console, file_errors, parse, user_errors
from experiments.report import as_pictures, evaluator, over_set
from experiments.run import Run, init_of, reached
from experiments.splits import load_splits
from jaxvae import checkpoint, data, figures
from jaxvae.keys import seed_key
from jaxvae.losses import bits_per_dim
from jaxvae.types import Array, Batch, PRNGKey, PyTree

SAMPLES = 100


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    run: Path | None = None
    """A run directory of experiments.vq_vae, whose codes are modelled; without one, the pixels of --data."""
    data: str = "mnist"
    """digits, or any set of grey images that is prepared for tensorflow-datasets."""
    binarize: bool = False
    """Draw each pixel as 0 or 1 with its grey value as probability; without, all grey values are modelled."""
    class_conditional: bool = False
    """Give the model the label."""
    channels: int = 48
    """Of either stack."""
    layers: int = 6
    """Each widens what a position sees by half a kernel."""
    kernel: int = 3
    """Width of a window."""
    learning_rate: float = 1e-3
    """Of Adam; it falls to 0 by a cosine over all epochs."""
    weight_decay: float = 0.0
    """Of Adam (decoupled; AdamW), against a prior that learns its training maps by heart."""
    temperature: float = 1.0
    """Of the samples that are drawn."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the network computes in."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers(
            counts=("channels", "layers"),
            weights=("weight_decay",),
            positive=("learning_rate", "temperature"),
        )
        if self.kernel < 3 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and at least 3, got {self.kernel}")


PRESETS = {
    "codes": (
        "The index maps of a VQ-VAE.",
        Config(preset="codes", epochs=5, batch_size=64, channels=96, learning_rate=3e-3, weight_decay=0.2),
    ),
    "digits": (
        "scikit-learn's digits, pixel by pixel.",
        Config(preset="digits", data="digits", epochs=30, batch_size=64, channels=32),
    ),
    "mnist": (
        "MNIST, pixel by pixel.",
        Config(preset="mnist", binarize=True, epochs=10, batch_size=64, channels=32, layers=10, kernel=5),
    ),
}


def make_model(config: Any) -> jaxvae.PixelCNN:
    """The model of a run, from its config.json."""
    return jaxvae.PixelCNN(
        config.num_values,
        tuple(config.shape),
        channels=config.channels,
        layers=config.layers,
        kernel=config.kernel,
        num_classes=config.num_classes,
        dtype=jnp.dtype(config.dtype),
    )


class Maps(NamedTuple):
    """What is modelled.

    Attributes:
      train: maps of integers, codes or pixels, to train on.
      test: maps to measure on.
      num_values: K of them.
      num_dims: how many numbers are an image.
      num_classes: of the labels; None where these are not given.
      as_images: maps -> pictures.
      image_nll: -log p(image|map) of the test images, [N] nats; None where the maps are the images, or the decoder's
        likelihood is no density of images.
    """

    train: data.Dataset
    test: data.Dataset
    num_values: int
    num_dims: int
    num_classes: int | None
    as_images: Callable[[Array], Array]
    image_nll: np.ndarray | None


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, draw samples."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] not in PRESETS and Path(arguments[0]).is_dir():
        arguments = ["codes", "--run", *arguments]
    config = parse(PRESETS, __doc__, arguments)
    if config.smoke:
        config = dataclasses.replace(config, epochs=1)

    with user_errors():
        if config.preset == "codes" and config.run is None:
            raise ValueError("codes needs the run directory of a VQ-VAE: --run RUN")
        maps = load_pixels(config) if config.run is None else load_codes(config)
        train = maps.train
        order = data.Order(len(train), config.batch_size, config.epochs, config.seed)
        derived = {"num_values": maps.num_values, "shape": train.x.shape[1:], "num_classes": maps.num_classes}
        run = Run("pixelcnn", config, **derived, decay_epochs=config.epochs)
        model = make_model(SimpleNamespace(**run.settings))
    state, metrics = train_model(run, config, model, maps, order)
    result = {"test": measure(config, metrics, maps), **reached(state)}
    run.finish(result, lambda: save_pictures(run, config, model, state.params, maps))


def load_pixels(config: Config) -> Maps:
    """The pixels of `config.data`, as values of their own."""
    splits = load_splits(config, labelled=config.class_conditional)
    num_values = 2 if config.binarize else splits.train.levels

    def as_images(maps: Array) -> np.ndarray:
        return np.asarray(maps) / np.float32(num_values - 1)

    return Maps(splits.train, splits.test, num_values, splits.test.x[0].size, splits.num_classes, as_images, None)


def load_codes(config: Config) -> Maps:
    """The codes of a trained VQ-VAE for the images of its own data."""
    directory = config.run.expanduser().resolve()
    vq, params, model_state, settings = checkpoint.load(directory, vq_vae.make_model)
    if settings.groups > 1:
        raise ValueError(f"a prior needs one codebook per position, {directory} has {settings.groups}")
    splits = load_splits(SimpleNamespace(data=settings.data, smoke=config.smoke), labelled=config.class_conditional)
    console.print(f"codes of {directory}", highlight=False)
    trained = SimpleNamespace(params=params, model_state=model_state)
    image_nll = None
    if settings.likelihood != "squared-error":
        image_nll = over_set(partial(_image_nll, vq), trained, splits.test)
    domain = data.Domain("categories", settings.num_codes)
    train, test = (
        dataclasses.replace(
            dataset.with_prepare(as_they_are),
            arrays={**dataset.arrays, "x": vq_vae.indices_of(vq, trained, dataset)},
            domain=domain,
        )
        for dataset in (splits.train, splits.test)
    )

    @jax.jit
    def as_images(maps: Array) -> Array:
        return vq.decode_indices(params, model_state, maps).mean

    return Maps(train, test, settings.num_codes, splits.test.x[0].size, splits.num_classes, as_images, image_nll)


def as_they_are(batch: Batch, *, key: PRNGKey) -> Batch:
    """The `prepare` of index maps."""
    del key
    return batch


def _image_nll(vq: jaxvae.VQVAE, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> Array:
    indices = vq_vae.choose_indices(vq, params, model_state, batch, key=key)
    return -vq.decode_indices(params, model_state, indices).log_prob(batch["x"])


def train_model(
    run: Run, config: Config, model: jaxvae.PixelCNN, maps: Maps, order: data.Order
) -> tuple[jaxvae.TrainState, dict[str, float]]:
    """The trained state, and its metrics on the test maps."""
    loss_fn = partial(jaxvae.pixel_cnn_loss, model, field="x")
    label = None if maps.num_classes is None else jnp.zeros(1, jnp.int32)
    schedule = optax.cosine_decay_schedule(config.learning_rate, order.total_steps)
    evaluate = evaluator(loss_fn, maps.test)
    state = run.train(
        init_of(model, jnp.zeros((1, *model.shape), jnp.int32), label),
        *(loss_fn, optax.adamw(schedule, weight_decay=config.weight_decay), maps.train, order),
        evaluate=evaluate,
        evaluate_every=order.steps_per_epoch,
        split="test",
    )
    return state, evaluate(state)


def measure(config: Config, metrics: dict[str, float], maps: Maps) -> dict[str, float]:
    """What result.json says of the test maps."""
    measured = {name: value for name, value in metrics.items() if name != "loss"}
    if config.run is None:
        measured["bits_per_dim"] = bits_per_dim(measured["nll"], maps.num_dims)
    if maps.image_nll is not None:  # codes are a function of the image: with them, no more than a bound on log p(image)
        measured["distortion"] = float(maps.image_nll.mean())
        measured["negative_elbo"] = measured["nll"] + measured["distortion"]
        measured["bits_per_dim"] = bits_per_dim(measured["negative_elbo"], maps.num_dims)
    return measured


@file_errors()
def save_pictures(run: Run, config: Config, model: jaxvae.PixelCNN, params: PyTree, maps: Maps) -> list[Path]:
    """Draw samples, class by class where there are classes, and the learning curves."""
    label = None if maps.num_classes is None else jnp.arange(SAMPLES, dtype=jnp.int32) // 10 % maps.num_classes
    began = time.perf_counter()
    drawn = model.sample(params, SAMPLES, key=seed_key(1), label=label, temperature=config.temperature)
    images = as_pictures(maps.as_images(drawn))
    console.print(f"{SAMPLES} samples in {time.perf_counter() - began:.1f} s, compiling included", highlight=False)
    title = "samples" if label is None else "samples, a row for each class"
    return [
        figures.image_grid(run.directory / "samples.png", images, columns=10, title=title),
        figures.learning_curves(run.directory / "learning_curves.png", run.records()),
    ]


if __name__ == "__main__":
    main()
