"""Train a model of maps or images, one pixel after the other: the prior of a VQ-VAE's codes, or a density of pixels.

  python -m experiments.pixelcnn RUN          a gated PixelCNN over the codes of a run directory of experiments.vq_vae
  python -m experiments.pixelcnn codes --run RUN --class-conditional     the same, given the class
  python -m experiments.pixelcnn digits       grey pixels of scikit-learn's digits, 17 values; needs no data
  python -m experiments.pixelcnn mnist        dynamically binarised MNIST (needs TFDS_DATA_DIR)
  python -m experiments.pixelcnn mnist --no-binarize     its 256 grey values
  python -m experiments.pixelcnn cifar10      PixelCNN++ on colour images; for a GPU
  python -m experiments.pixelcnn mnist --network pixelrnn     row LSTMs in place of the PixelCNN (van den Oord, 2016)

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
from experiments.command import RunConfig, console, parse, user_errors
from experiments.maps import draw_maps, load_codes, load_pixels, measure, run_first, save_pictures, train_model
from experiments.run import Run, reached
from experiments.vae import BITS_CAVEAT
from jaxvae import data
from jaxvae.types import PRNGKey


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    run: Path | None = None
    """A run directory of experiments.vq_vae, whose codes are modelled; without one, the pixels of --data."""
    data: str = "mnist"
    """digits, or any set of images that is prepared for tensorflow-datasets; colour needs pixelcnn++."""
    network: Literal["pixelcnn", "pixelrnn", "pixelcnn++"] = "pixelcnn"
    """pixelrnn: row LSTMs, with presets of its own. pixelcnn++: pixels as mixtures of discretised logistics."""
    binarize: bool = False
    """Draw each pixel as 0 or 1 with its grey value as probability; without, all grey values are modelled."""
    class_conditional: bool = False
    """Give the model the label."""
    channels: int = 48
    """Of either stack, or of an LSTM."""
    layers: int = 6
    """Each widens what a position sees by half a kernel."""
    kernel: int = 3
    """Width of a window."""
    dilations: tuple[int, ...] = (1,)
    """Steps between the places of a window, of one layer after the other and from the first again (pixelcnn)."""
    components: int = 10
    """Of a pixel's mixture (pixelcnn++)."""
    dropout: float = 0.0
    """The share of features that are dropped in training (pixelcnn++)."""
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
            counts=("channels", "layers", "components", "dilations"),
            weights=("weight_decay",),
            positive=("learning_rate", "temperature"),
        )
        if self.kernel < 3 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and at least 3, got {self.kernel}")
        if self.dilations != (1,) and self.network != "pixelcnn":
            raise ValueError(f"dilations need --network pixelcnn, got {self.network}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")
        if self.dropout and self.network != "pixelcnn++":
            raise ValueError(f"dropout needs --network pixelcnn++, got {self.network}")
        if self.run is not None and self.network == "pixelcnn++":
            raise ValueError("codes are categories in no order: take --network pixelcnn or pixelrnn")


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
        Config(
            preset="mnist",
            binarize=True,
            epochs=2,
            batch_size=32,
            channels=24,
            layers=8,
            dilations=(1, 2, 4, 8),
            learning_rate=3e-3,
        ),
    ),
    "cifar10": (
        "CIFAR-10 by PixelCNN++, 256 values of each colour.",
        Config(
            preset="cifar10",
            data="cifar10",
            network="pixelcnn++",
            epochs=100,
            batch_size=64,
            channels=128,
            layers=12,
            kernel=5,
            dropout=0.5,
        ),
    ),
    "digits-pixelrnn": (
        "The digits by row LSTMs.",
        Config(
            preset="digits-pixelrnn",
            data="digits",
            network="pixelrnn",
            epochs=30,
            batch_size=64,
            channels=32,
            layers=2,
            learning_rate=3e-3,
        ),
    ),
    "mnist-pixelrnn": (
        "MNIST by row LSTMs.",
        Config(
            preset="mnist-pixelrnn",
            network="pixelrnn",
            binarize=True,
            epochs=10,
            batch_size=64,
            channels=32,
            layers=4,
            learning_rate=3e-3,
        ),
    ),
}


def make_model(config: Any) -> jaxvae.PixelCNN | jaxvae.PixelRNN | jaxvae.PixelCNNPP:
    """The model of a run, from its config.json."""
    shape, dtype = tuple(config.shape), jnp.dtype(config.dtype)
    sizes = {name: getattr(config, name) for name in ("channels", "layers", "kernel", "num_classes")}
    network = getattr(config, "network", "pixelcnn")  # what runs from before it was asked for are
    if network == "pixelcnn++":
        options = {"components": config.components, "dropout": config.dropout}
        return jaxvae.PixelCNNPP(shape, config.num_values, dtype=dtype, **sizes, **options)
    if network == "pixelrnn":
        return jaxvae.PixelRNN(config.num_values, shape, dtype=dtype, **sizes)
    dilations = tuple(getattr(config, "dilations", (1,)))  # earlier runs have none
    return jaxvae.PixelCNN(config.num_values, shape, dtype=dtype, dilations=dilations, **sizes)


def of_network(arguments: list[str]) -> list[str]:
    """The command line, whose preset is that of the network asked for where it has one."""
    asked = " ".join(arguments).replace("--network=", "--network ") + " "
    own = f"{arguments[0]}-pixelrnn" if arguments else ""
    return [own, *arguments[1:]] if "--network pixelrnn " in asked and own in PRESETS else arguments


def draw(directory: Path, num: int, *, key: PRNGKey) -> np.ndarray:
    """Samples of a run, as experiments.drawing wants them."""
    return draw_maps(directory, make_model, num, key=key, options=("temperature",))


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, draw samples."""
    config = parse(PRESETS, __doc__, of_network(run_first(argv, list(PRESETS), "codes")))
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
        if config.run is None and maps.train.shape[-1] > 1 and config.network != "pixelcnn++":
            raise ValueError(f"{config.data!r} has {maps.train.shape[-1]} channels: take --network pixelcnn++")
        order = data.Order(len(maps.train), config.batch_size, config.epochs, config.seed)
        run = Run("pixelcnn", config, **maps.derived, decay_epochs=config.epochs)
        model = make_model(SimpleNamespace(**run.settings))
    loss_fn = partial(jaxvae.pixel_cnn_loss, model, field="x")
    schedule = optax.cosine_decay_schedule(config.learning_rate, order.total_steps)
    optimizer = optax.adamw(schedule, weight_decay=config.weight_decay)
    state, metrics = train_model(run, model, loss_fn, optimizer, maps, order)
    result: dict[str, Any] = {"test": measure(metrics, maps, pixels=config.run is None), **reached(state)}
    if config.run is None and maps.num_values == 256:
        result["caveat"] = BITS_CAVEAT
        console.print(BITS_CAVEAT, highlight=False)
    run.finish(result, lambda: save_pictures(run, model, state.params, maps, temperature=config.temperature))


if __name__ == "__main__":
    main()
