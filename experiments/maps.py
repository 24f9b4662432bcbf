"""Maps of integers and the programs that model them: the codes of a VQ-VAE, or pixels; training, figures, samples."""

import dataclasses
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxvae
from experiments import vq_vae
from experiments.codes import choose_indices, indices_of
from experiments.command import console, file_errors
from experiments.drawing import BLOCK, in_blocks
from experiments.other_run import check_made_by, check_unchanged, checksum
from experiments.report import as_pictures, evaluator, over_set
from experiments.run import Run, init_of
from experiments.signals import FEW, SIGNALS, save_pairs
from experiments.splits import Splits, load_splits
from jaxvae import checkpoint, data, figures
from jaxvae._run import absolute
from jaxvae.keys import seed_key
from jaxvae.losses import bits_per_dim
from jaxvae.types import Array, Batch, CodePrior, LossFn, PRNGKey, PyTree

SAMPLES = 100
DRAWN = 7  # sounds or videos in a row


class Maps(NamedTuple):
    """What is modelled.

    Attributes:
      train: maps of integers, codes or pixels, to train on.
      test: maps to measure on.
      num_values: K of them; of each book, where a position has several codes.
      num_dims: how many numbers are an image.
      num_classes: of the labels; None where these are not given.
      as_images: maps -> pictures.
      image_nll: -log p(image|map) of the test images, [N] nats; None where the maps are the images, or the decoder's
        likelihood is no density of images.
      images: the images themselves.
      run_checksum: of the VQ-VAE whose codes they are; None for pixels.
    """

    train: data.Dataset
    test: data.Dataset
    num_values: int | tuple[int, ...]
    num_dims: int
    num_classes: int | None
    as_images: Callable[[Array], Array]
    image_nll: np.ndarray | None
    images: Splits
    run_checksum: str | None = None

    @property
    def signals(self) -> bool:
        """Whether they are sounds or videos."""
        return self.images.test.name in SIGNALS

    @property
    def derived(self) -> dict[str, Any]:
        """For config.json: what a model's sizes follow from."""
        books = isinstance(self.num_values, tuple)
        shape = self.train.x.shape[1:-1] if books else self.train.x.shape[1:]
        sizes = {"num_values": self.num_values, "shape": shape, "num_classes": self.num_classes}
        return sizes if self.run_checksum is None else sizes | {"run_checksum": self.run_checksum}


def run_first(argv: Sequence[str] | None, presets: Sequence[str], preset: str) -> list[str]:
    """The command line; a run directory in the first place stands for `preset --run DIRECTORY`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments and arguments[0] not in presets and Path(arguments[0]).is_dir():
        return [preset, "--run", *arguments]
    return arguments


def load_pixels(config: Any) -> Maps:
    """The pixels of `config.data`, as values of their own."""
    splits = load_splits(config, labelled=config.class_conditional)
    num_values = 2 if config.binarize else splits.train.levels

    as_images = partial(pixels_as_images, num_values=num_values)
    num_dims = splits.test.x[0].size
    return Maps(splits.train, splits.test, num_values, num_dims, splits.num_classes, as_images, None, splits)


def load_codes(config: Any) -> Maps:
    """The codes of a trained VQ-VAE for the images, sounds or videos of its own data."""
    directory = absolute(config.run, "--run")
    vq, params, model_state, settings = checkpoint.load(directory, vq_vae.make_model)
    check_made_by(settings, directory, "vq_vae")
    run_checksum = checksum(params, model_state)
    check_unchanged(config, directory, run_checksum)
    signals = settings.data in SIGNALS
    options = {"few": FEW, "pictures": False} if signals else {}
    named = SimpleNamespace(data=settings.data, smoke=config.smoke)
    splits = load_splits(named, labelled=config.class_conditional, **options)
    console.print(f"codes of {directory}", highlight=False)
    trained = SimpleNamespace(params=params, model_state=model_state)
    image_nll = None
    if settings.likelihood != "squared-error":
        image_nll = over_set(partial(_image_nll, vq), trained, splits.test)
    num_values = vq.quantizer.num_codes
    domain = data.Domain("categories", int(np.max(num_values)))
    train, test = (
        dataclasses.replace(
            dataset.with_prepare(as_they_are),
            arrays={**dataset.arrays, "x": indices_of(vq, trained, dataset)},
            domain=domain,
        )
        for dataset in (splits.train, splits.test)
    )

    @jax.jit
    def as_images(maps: Array) -> Array:
        return vq.decode_indices(params, model_state, maps).mean

    sizes = num_values, splits.test.x[0].size, splits.num_classes
    return Maps(train, test, *sizes, as_images, image_nll, splits, run_checksum)


def draw_maps(
    directory: Path, make_model: Callable[[SimpleNamespace], Any], num: int, *, key: PRNGKey, options: Sequence[str]
) -> np.ndarray:
    """Samples of a run over codes or pixels as pictures, as experiments.drawing wants them.

    `options` names the settings of the run that its model's `sample` is told.
    """
    model, params, _, settings = checkpoint.load(directory, make_model)
    if settings.run is None:
        as_images = partial(pixels_as_images, num_values=settings.num_values)
    else:
        of_codes = absolute(settings.run, "the run that it stands on")
        vq, vq_params, vq_state, _ = checkpoint.load(of_codes, vq_vae.make_model)
        check_unchanged(settings, of_codes, checksum(vq_params, vq_state))
        as_images = jax.jit(lambda maps: vq.decode_indices(vq_params, vq_state, maps).mean)
    told = {name: getattr(settings, name) for name in options}

    def draw_block(key: PRNGKey) -> Array:
        label_key, key = jax.random.split(key)
        classes, label = settings.num_classes, None
        if classes is not None:
            label = jax.random.randint(label_key, (BLOCK,), 0, classes)
        return as_images(model.sample(params, BLOCK, key=key, label=label, **told))

    return in_blocks(draw_block, num, key=key)


def pixels_as_images(maps: Array, num_values: int) -> np.ndarray:
    """Levels as pictures in [0, 1]."""
    return np.asarray(maps) / np.float32(num_values - 1)


def as_they_are(batch: Batch, *, key: PRNGKey) -> Batch:
    """The `prepare` of index maps."""
    del key
    return batch


def _image_nll(vq: jaxvae.VQVAE, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> Array:
    indices = choose_indices(vq, params, model_state, batch, key=key)
    return -vq.decode_indices(params, model_state, indices).log_prob(batch["x"])


def train_model(
    run: Run,
    model: CodePrior,
    loss_fn: LossFn,
    optimizer: optax.GradientTransformation,
    maps: Maps,
    order: data.Order,
) -> tuple[jaxvae.TrainState, dict[str, float]]:
    """The trained state, and its metrics on the test maps."""
    label = None if maps.num_classes is None else jnp.zeros(1, jnp.int32)
    evaluate = evaluator(loss_fn, maps.test)
    state = run.train(
        init_of(model, jnp.zeros((1, *maps.train.x.shape[1:]), jnp.int32), label),
        *(loss_fn, optimizer, maps.train, order),
        evaluate=evaluate,
        evaluate_every=order.steps_per_epoch,
        split="test",
    )
    return state, evaluate(state)


def measure(metrics: dict[str, float], maps: Maps, *, pixels: bool) -> dict[str, float]:
    """What result.json says of the test maps."""
    measured = {name: value for name, value in metrics.items() if name != "loss"}
    if pixels:
        measured["bits_per_dim"] = bits_per_dim(measured["nll"], maps.num_dims)
    if maps.image_nll is not None:  # codes are a function of the image: with them, no more than a bound on log p(image)
        measured["distortion"] = float(maps.image_nll.mean())
        measured["negative_elbo"] = measured["nll"] + measured["distortion"]
        measured["bits_per_dim"] = bits_per_dim(measured["negative_elbo"], maps.num_dims)
    return measured


@file_errors()
def save_pictures(run: Run, model: Any, params: PyTree, maps: Maps, **options: Any) -> list[Path]:
    """Draw samples, class by class where there are classes, and the learning curves.

    The options are those of the model's `sample`, such as the temperature.
    """
    if maps.signals:
        return save_signals(run, model, params, maps, **options)
    label = None if maps.num_classes is None else jnp.arange(SAMPLES, dtype=jnp.int32) // 10 % maps.num_classes
    began = time.perf_counter()
    drawn = model.sample(params, SAMPLES, key=seed_key(1), label=label, **options)
    images = as_pictures(maps.as_images(drawn))
    console.print(f"{SAMPLES} samples in {time.perf_counter() - began:.1f} s, compiling included", highlight=False)
    title = "samples" if label is None else "samples, a row for each class"
    names = None if label is None else list(map(str, np.asarray(label)[::10]))
    return [
        figures.image_grid(run.picture("samples"), images, columns=10, row_names=names, title=title),
        figures.learning_curves(run.picture("learning_curves"), run.records()),
    ]


def save_signals(run: Run, model: Any, params: PyTree, maps: Maps, **options: Any) -> list[Path]:
    """Sounds or videos that are drawn, and test ones whose second half is: continued from the codes of the first."""
    label = None if maps.num_classes is None else jnp.arange(2 * DRAWN, dtype=jnp.int32) % maps.num_classes
    drawn = np.asarray(maps.as_images(model.sample(params, 2 * DRAWN, key=seed_key(1), label=label, **options)))
    heard = jnp.asarray(maps.test.x[:DRAWN], jnp.int32)
    first_half = jnp.arange(heard.shape[1]) < heard.shape[1] // 2  # of the time, the first axis of all
    known = jnp.broadcast_to(first_half.reshape(1, -1, *(1,) * (heard.ndim - 2)), heard.shape)
    label = None if maps.num_classes is None else jnp.asarray(maps.test.label[:DRAWN], jnp.int32)
    continued = model.complete(params, heard, known, key=seed_key(2), label=label, **options)
    pair = (np.asarray(maps.as_images(each)) for each in (heard, continued))
    out, dataset, suffix = run.directory, maps.images.test, f".{run.settings['picture_format']}"
    return [
        *save_pairs(out, dataset, "continued", *pair, ("decoded", "continued"), suffix=suffix),
        *save_pairs(out, dataset, "samples", drawn[:DRAWN], drawn[DRAWN:], ("samples", "more"), suffix=suffix),
        figures.learning_curves(run.picture("learning_curves"), run.records()),
    ]
