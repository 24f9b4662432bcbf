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
from experiments import vq_vae
from experiments.report import EVALUATION_BATCH, EVALUATION_SEED, shown
from experiments.run import Run, RunConfig, console, counter, file_errors, parse, user_errors
from jaxvae import checkpoint, data, figures
from jaxvae.models.pixel_cnn import sample
from jaxvae.types import Array, Batch, Prepare, PRNGKey, PyTree


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
        for name in ("channels", "layers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.kernel < 3 or self.kernel % 2 == 0:
            raise ValueError(f"kernel must be odd and at least 3, got {self.kernel}")
        for name in ("learning_rate", "temperature"):
            if not (getattr(self, name) > 0 and np.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be a positive number, got {getattr(self, name)}")
        if not (self.weight_decay >= 0 and np.isfinite(self.weight_decay)):
            raise ValueError(f"weight_decay must be a finite number, zero or more, got {self.weight_decay}")


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
        train, test, num_values, decode, image_nll = load(config)
        if config.smoke:
            train, test = train.take(slice(256)), test.take(slice(256))
        num_classes = None
        if config.class_conditional:
            if train.label is None:
                raise ValueError(f"{train.name!r} has no labels to condition on")
            num_classes = int(train.label.max()) + 1
        order = data.Order(len(train.image), config.batch_size, config.epochs, config.seed)
        derived = {"num_values": num_values, "shape": train.image.shape[1:], "num_classes": num_classes}
        run = Run("pixelcnn", config, **derived, decay_epochs=config.epochs)
        model = make_model(SimpleNamespace(**run.settings))

    prepare: Prepare = prepare_codes
    if config.run is None:
        prepare = data.make_prepare(train.levels, binarize=config.binarize)
    loss_fn = partial(jaxvae.pixel_cnn_loss, model, field="image")

    def init(*, key: PRNGKey) -> tuple[PyTree, PyTree]:
        label = None if num_classes is None else jnp.zeros(1, jnp.int32)
        return model.init(key, jnp.zeros((1, *train.image.shape[1:]), jnp.int32), label), ()

    evaluate = partial(
        jaxvae.make_evaluate(jaxvae.make_eval_step(loss_fn, prepare=prepare)), key=jax.random.key(EVALUATION_SEED)
    )
    held_out = data.evaluation_feed(test, EVALUATION_BATCH)
    state = run.train(
        *(
            init,
            loss_fn,
            optax.adamw(
                optax.cosine_decay_schedule(config.learning_rate, order.total_steps), weight_decay=config.weight_decay
            ),
            train,
            order,
        ),
        prepare=prepare,
        evaluate=lambda state: jax.device_get(evaluate(state, *held_out)),
        evaluate_every=order.steps_per_epoch,
        held_out="test",
    )
    measured = {name: float(value) for name, value in jax.device_get(evaluate(state, *held_out)).items()}
    del measured["loss"]
    if config.run is None:
        measured["bits_per_dim"] = jaxvae.bits_per_dim(measured["nll"], test.image[0].size)
    if image_nll is not None:  # the codes are a function of the image: with them, no more than a bound on log p(image)
        measured["distortion"] = float(image_nll[: len(test.image)].mean())
        measured["negative_elbo"] = measured["nll"] + measured["distortion"]
    result: dict[str, Any] = {"test": measured, "step": int(state.step), "device": jax.devices()[0].device_kind}
    label = None if num_classes is None else jnp.arange(100, dtype=jnp.int32) // 10 % num_classes
    began = time.perf_counter()
    maps = sample(model, state.params, 100, key=jax.random.key(1), label=label, temperature=config.temperature)
    images = shown(decode(maps))
    if image_nll is not None:
        measured["bits_per_dim"] = jaxvae.bits_per_dim(measured["negative_elbo"], images[0].size)
    console.print(f"100 samples in {time.perf_counter() - began:.1f} s, compiling included", highlight=False)
    title = "samples" if num_classes is None else "samples, a row for each class"
    with file_errors():
        pictures = [
            figures.image_grid(run.directory / "samples.png", images, columns=10, title=title),
            figures.learning_curves(run.directory / "learning_curves.png", run.records()),
        ]
    run.finish(result, pictures)


def load(config: Config) -> tuple[data.ImageSet, data.ImageSet, int, Any, np.ndarray | None]:
    """Training and test maps or images, the number of their values, pictures of maps, and -log p(image|map).

    The last is [N] nats for the test images, or None where the decoder's likelihood is no density of images.
    """
    name, vq = config.data, None
    if config.run is not None:
        directory = config.run.expanduser().resolve()
        vq, params, model_state, settings = checkpoint.load(directory, vq_vae.make_model)
        if settings.groups > 1:
            raise ValueError(f"a prior needs one codebook per position, {directory} has {settings.groups}")
        name = settings.data
    train, test = (data.load(name, s, progress=counter(f"decoding {s} images")) for s in ("train", "test"))
    if vq is None:
        num_values = 2 if config.binarize else train.levels
        return train, test, num_values, lambda maps: np.asarray(maps) / np.float32(num_values - 1), None

    state = jaxvae.CodebookState(**model_state) if model_state else ()
    prepare = data.make_prepare(train.levels)
    console.print(f"codes of {directory}", highlight=False)
    image_nll = None
    if settings.likelihood != "squared-error":
        feed, key = data.evaluation_feed(test, EVALUATION_BATCH), jax.random.key(EVALUATION_SEED)
        nll = partial(_image_nll, vq, settings.entropy_weight)
        image_nll = jaxvae.map_batches(nll, params, state, *feed, key=key, prepare=prepare)
    maps = [
        vq_vae.indices_of(
            vq, params, state, prepare, data.evaluation_feed(images, EVALUATION_BATCH), settings.entropy_weight
        )
        for images in (train, test)
    ]

    @jax.jit
    def decode(indices: Array) -> Array:
        return vq.apply(params, indices, jaxvae.code_vectors(params, state), method="decode_indices").mean

    train, test = (images._replace(image=each) for images, each in zip((train, test), maps, strict=True))
    return train, test, settings.num_codes, decode, image_nll


def _image_nll(
    vq: jaxvae.VQVAE, entropy_weight: float, params: PyTree, state: PyTree, batch: Batch, *, key: PRNGKey
) -> Array:
    indices = vq_vae.choose_indices(vq, entropy_weight, params, state, batch, key=key)
    reconstruction = vq.apply(params, indices, jaxvae.code_vectors(params, state), method="decode_indices")
    return -reconstruction.log_prob(batch["image"])


def prepare_codes(batch: Batch, *, key: PRNGKey) -> Batch:
    """Index maps are used as they are."""
    del key
    return batch


if __name__ == "__main__":
    main()
