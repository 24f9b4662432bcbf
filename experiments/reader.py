"""The network in whose features `experiments.samples` measures: a classifier or, without labels, an autoencoder.

It is trained on the set's training images and kept as a run of its own.
"""

import dataclasses
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import jaxvae
from experiments import classifier
from experiments.command import RunConfig, console
from experiments.report import evaluator
from experiments.run import Run, init_of, reached
from experiments.splits import Splits
from jaxvae import checkpoint, data
from jaxvae.convolution import Conv
from jaxvae.keys import example_keys, noise
from jaxvae.types import Array, Batch, Prepare, PRNGKey, PyTree

BLOCK = 500  # images that are read at a time
CHANNELS = (32, 32)  # of the autoencoder's convolutions: the classifier's


@dataclasses.dataclass(frozen=True)
class ReaderConfig(RunConfig):
    """Of the network in whose features everything is measured."""

    data: str = "mnist"
    features: str = "classifier"
    learning_rate: float = classifier.LEARNING_RATE


class Read(NamedTuple):
    """Images [N, H, W, C] and what a network makes of them: logits [N, K] of a classifier, and features [N, 128]."""

    images: np.ndarray
    logits: np.ndarray | None
    features: np.ndarray


class Encoder(nn.Module):
    """Images [B, H, W, C] -> codes [B, 128]: the classifier's layers, the last one linear."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Encode a batch."""
        hidden = x
        for channels in CHANNELS:
            hidden = nn.relu(Conv(channels, (4, 4), strides=2)(hidden))
        return nn.Dense(classifier.FEATURES)(hidden.reshape(len(hidden), -1))


def make_model(settings: Any) -> Any:
    """The network of a run, from its config.json."""
    if getattr(settings, "features", "classifier") == "classifier":  # earlier runs say nothing of it
        return classifier.Classifier(settings.num_classes)
    decoder = jaxvae.ConvDecoder(tuple(settings.image_shape), CHANNELS, classifier.FEATURES)
    return jaxvae.Autoencoder(Encoder(), decoder, latent_dim=classifier.FEATURES)


def kind_of(model: Any) -> str:
    """What a network is called: classifier or autoencoder."""
    return "autoencoder" if isinstance(model, jaxvae.Autoencoder) else "classifier"


def load_reader(directory: Path, set_name: str, splits: Splits, config: Any) -> tuple[Any, PyTree]:
    """The network that is kept in a directory, and its parameters; it is trained where there is none."""
    if not (directory / "result.json").is_file():
        train_reader(directory, set_name, splits, config)
    model, params, _, settings = checkpoint.load(directory, make_model)
    kind = kind_of(model)
    if settings.data != set_name:
        raise ValueError(f"the {kind} in {directory} reads {settings.data!r}, and the runs are of {set_name!r}")
    if config.features not in (None, kind):
        raise ValueError(f"{directory} keeps the features of one {kind}: choose another --reader or --out")
    console.print(f"features of the {kind} in {directory}", highlight=False)
    return model, params


def train_reader(directory: Path, set_name: str, splits: Splits, config: Any) -> None:
    """Train the network, of grey pictures on both grey and binarised ones, and keep it as a run of its own."""
    own = ReaderConfig(
        *("reader", config.reader_epochs, classifier.BATCH_SIZE, config.seed),
        out=directory,
        resume=True,
        smoke=config.smoke,
        data=set_name,
        features="autoencoder" if splits.num_classes is None else "classifier",
    )
    train = splits.train
    if train.shape[-1] == 1:
        train = train.with_prepare(half_binarized(splits))
    order = data.Order(len(train), own.batch_size, own.epochs, own.seed)
    run = Run("samples", own, num_classes=splits.num_classes, image_shape=train.shape, decay_epochs=own.epochs)
    model = make_model(SimpleNamespace(**run.settings))
    reads = own.features == "classifier"
    loss_fn = partial(classifier.classification_loss, model.apply) if reads else partial(jaxvae.autoencoder_loss, model)
    schedule = optax.cosine_decay_schedule(own.learning_rate, order.total_steps)
    evaluate = evaluator(loss_fn, splits.test)
    state = run.train(
        *(init_of(model, jnp.zeros((1, *train.shape))), loss_fn, optax.adam(schedule), train, order),
        evaluate=evaluate,
        evaluate_every=order.steps_per_epoch,
        split="test",
    )
    name = "accuracy" if reads else "distortion"
    of_binary = evaluator(loss_fn, splits.binarized().test)(state)[name]
    measured = {name: evaluate(state)[name], f"{name}_of_binarized": of_binary}
    run.finish({"test": measured, **reached(state)}, lambda: [])


def half_binarized(splits: Splits) -> Prepare:
    """Prepares each image by the toss of a coin: as it is, or binarised."""
    grey, binary = splits.train.prepare, splits.binarized().train.prepare

    def prepare(batch: Batch, *, key: PRNGKey) -> Batch:
        one, other = grey(batch, key=key), binary(batch, key=key)
        keys = example_keys(jax.random.fold_in(key, 1), batch["index"])
        coin = noise(jax.random.uniform, keys, (len(one["x"]), 1)).reshape(-1, *[1] * (one["x"].ndim - 1))
        return one | {"x": jnp.where(coin < 0.5, one["x"], other["x"])}

    return prepare


def read(model: Any, params: PyTree, images: np.ndarray) -> Read:
    """What the network makes of images."""
    parts = []
    for start in range(0, len(images), BLOCK):
        some = images[start : start + BLOCK]
        whole = np.concatenate([some, np.zeros((BLOCK - len(some), *some.shape[1:]), some.dtype)])  # one program
        parts.append([np.asarray(values)[: len(some)] for values in _features(model, params, whole)])
    *logits, features = (np.concatenate(values) for values in zip(*parts, strict=True))
    return Read(images, logits[0] if logits else None, features)


@partial(jax.jit, static_argnums=0)
def _features(model: Any, params: PyTree, x: Array) -> tuple[Array, ...]:
    """The classifier's logits and features, or the autoencoder's codes alone."""
    if kind_of(model) == "autoencoder":
        return (model.apply(params, x, method="encode"),)
    return tuple(model.apply(params, x, features=True))
