"""A small convolutional classifier: it reads samples, to see whether they show what they were conditioned on."""

import math
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import jaxvae
from experiments.report import over_set
from experiments.run import init_of
from jaxvae import data
from jaxvae.convolution import Conv
from jaxvae.keys import seed_key
from jaxvae.losses import categorical_nll
from jaxvae.types import Array, Batch, Metrics, PRNGKey, PyTree

BATCH_SIZE = 128
FEATURES = 128  # of an image, from which its class is read
LEARNING_RATE = 2e-3  # of Adam; it falls to 0 by a cosine


class Classifier(nn.Module):
    """Images [B, H, W, C] -> logits [B, K]: two 4×4 convolutions that halve the image, then two dense layers.

    With `features`, also the 128 numbers of an image that the last layer reads.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: Array, *, features: bool = False) -> Array | tuple[Array, Array]:
        """Classify a batch."""
        hidden = x
        for channels in (32, 32):
            hidden = nn.relu(Conv(channels, (4, 4), strides=2)(hidden))
        hidden = nn.relu(nn.Dense(FEATURES)(hidden.reshape(len(hidden), -1)))
        logits = nn.Dense(self.num_classes)(hidden)
        return (logits, hidden) if features else logits


def train(
    dataset: data.Dataset, *, num_classes: int, steps: int, seed: int, loss: Callable[..., Any] | None = None
) -> tuple[Classifier, PyTree]:
    """Train for at least `steps` steps, to the end of an epoch; `loss` in place of `classification_loss`."""
    model = Classifier(num_classes)
    order = data.Order(len(dataset), BATCH_SIZE, math.ceil(steps * BATCH_SIZE / len(dataset)), seed)
    feed = data.Resident(dataset, order)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, order.total_steps))
    init = init_of(model, jnp.zeros((1, *dataset.shape)))
    state = jaxvae.init_train_state(init, optimizer, key=seed_key(seed))
    loss_fn = partial(loss or classification_loss, model.apply)
    step = jaxvae.make_train_step(loss_fn, optimizer, prepare=dataset.prepare)
    train_epoch = jaxvae.make_train_epoch(step)
    for start in range(0, order.total_steps, feed.chunk):
        state, _ = train_epoch(state, *feed(start, min(feed.chunk, order.total_steps - start)))
    return model, jax.block_until_ready(state.params)


def classification_loss(
    classify: Callable[..., Array],
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    """-log q(y|x) and the accuracy of a classifier by itself, `classify(params, x)` -> logits [B, K]."""
    del key, step
    logits = classify(params, batch["x"])
    loss = categorical_nll(logits, batch["label"]).mean()
    return loss, (model_state, {"classification": loss, "accuracy": (logits.argmax(axis=1) == batch["label"]).mean()})


@partial(jax.jit, static_argnums=0)
def read(model: Classifier, params: PyTree, x: Array) -> Array:
    """The classes of images [B, H, W, C] in [0, 1], [B]."""
    return model.apply(params, x).argmax(axis=-1)


def accuracy(model: Classifier, params: PyTree, dataset: data.Dataset) -> float:
    """The share of images that are read as their label."""
    state = SimpleNamespace(params=params, model_state=())
    return float(over_set(partial(_right, model), state, dataset).mean())


def _right(model: Classifier, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> Array:
    del model_state, key
    return read(model, params, batch["x"]) == batch["label"]
