"""Train a gated PixelCNN (van den Oord et al., 2016): the prior that makes a VQ-VAE generate, or a model of pixels.

  python -m experiments.pixelcnn RUN          over the codes of a run directory of experiments.vq_vae
  python -m experiments.pixelcnn codes --run RUN --class-conditional     the same, given the class
  python -m experiments.pixelcnn digits       grey pixels of scikit-learn's digits, 17 values; needs no data
  python -m experiments.pixelcnn mnist        dynamically binarised MNIST (needs TFDS_DATA_DIR); for a GPU
  python -m experiments.pixelcnn mnist --no-binarize     its 256 grey values

What each costs and which numbers to expect: experiments/README.md.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
import optax

import jaxvae
from experiments.command import RunConfig, parse, user_errors
from experiments.maps import draw_maps, load_codes, load_pixels, measure, run_first, save_pictures, train_model
from experiments.run import Run, reached
from jaxvae import data
from jaxvae.types import PRNGKey


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


def draw(directory: Path, num: int, *, key: PRNGKey) -> np.ndarray:
    """Samples of a run, as experiments.drawing wants them."""
    return draw_maps(directory, make_model, num, key=key, options=("temperature",))


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, draw samples."""
    config = parse(PRESETS, __doc__, run_first(argv, list(PRESETS), "codes"))
    if config.smoke:
        config = dataclasses.replace(config, epochs=1)

    with user_errors():
        if config.preset == "codes" and config.run is None:
            raise ValueError("codes needs the run directory of a VQ-VAE: --run RUN")
        maps = load_pixels(config) if config.run is None else load_codes(config)
        if isinstance(maps.num_values, tuple):
            raise ValueError(
                f"a PixelCNN needs one codebook per position, {config.run} has {len(maps.num_values)}: take a "
                "transformer, python -m experiments.prior RUN"
            )
        order = data.Order(len(maps.train), config.batch_size, config.epochs, config.seed)
        run = Run("pixelcnn", config, **maps.derived, decay_epochs=config.epochs)
        model = make_model(SimpleNamespace(**run.settings))
    loss_fn = partial(jaxvae.pixel_cnn_loss, model, field="x")
    schedule = optax.cosine_decay_schedule(config.learning_rate, order.total_steps)
    optimizer = optax.adamw(schedule, weight_decay=config.weight_decay)
    state, metrics = train_model(run, model, loss_fn, optimizer, maps, order)
    result = {"test": measure(metrics, maps, pixels=config.run is None), **reached(state)}
    run.finish(result, lambda: save_pictures(run, model, state.params, maps, temperature=config.temperature))


if __name__ == "__main__":
    main()
