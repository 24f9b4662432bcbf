"""A small convolutional classifier: it reads samples, to see whether they show what they were conditioned on."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

import jaxvae
from experiments.report import EVALUATION_BATCH, EVALUATION_SEED
from jaxvae import data
from jaxvae.convolution import Conv
from jaxvae.types import Array, Batch, Metrics, Prepare, PRNGKey, PyTree

BATCH_SIZE = 128
LEARNING_RATE = 2e-3  # of Adam; it falls to 0 by a cosine


class Classifier(nn.Module):
    """Images [B, H, W, C] -> logits [B, K]: two 4×4 convolutions that halve the image, then two dense layers."""

    num_classes: int

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """Classify a batch."""
        features = image
        for channels in (32, 32):
            features = nn.relu(Conv(channels, (4, 4), strides=2)(features))
        features = nn.relu(nn.Dense(128)(features.reshape(len(features), -1)))
        return nn.Dense(self.num_classes)(features)


def train(
    images: data.ImageSet, prepare: Prepare, *, num_classes: int, steps: int, seed: int
) -> tuple[Classifier, PyTree]:
    """Train for at least `steps` steps, to the end of an epoch, on images as `prepare` makes them."""
    model = Classifier(num_classes)
    epochs = math.ceil(steps * BATCH_SIZE / len(images.image))
    order = data.Order(len(images.image), BATCH_SIZE, epochs, seed)
    feed = data.Resident(images, order)
    optimizer = optax.adam(optax.cosine_decay_schedule(LEARNING_RATE, order.total_steps))

    def init(*, key: PRNGKey) -> tuple[PyTree, PyTree]:
        return model.init(key, jnp.zeros((1, *images.image.shape[1:]))), ()

    def loss_fn(
        params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey, step: Array
    ) -> tuple[Array, tuple[PyTree, Metrics]]:
        del key, step
        loss = jaxvae.categorical_nll(model.apply(params, batch["image"]), batch["label"]).mean()
        return loss, (model_state, {"loss": loss})

    state = jaxvae.init_train_state(init, optimizer, key=jaxvae.seed_key(seed))
    train_epoch = jaxvae.make_train_epoch(jaxvae.make_train_step(loss_fn, optimizer, prepare=prepare))
    for start in range(0, order.total_steps, feed.chunk):
        state, _ = train_epoch(state, *feed(start, min(feed.chunk, order.total_steps - start)))
    return model, jax.block_until_ready(state.params)


@partial(jax.jit, static_argnums=0)
def read(model: Classifier, params: PyTree, image: Array) -> Array:
    """The classes of images [B, H, W, C] in [0, 1], [B]."""
    return model.apply(params, image).argmax(axis=-1)


def accuracy(model: Classifier, params: PyTree, images: data.ImageSet, prepare: Prepare) -> float:
    """The share of images that are read as their label."""
    source, rows = data.evaluation_feed(images, EVALUATION_BATCH)
    key = jax.random.key(EVALUATION_SEED)
    right = jaxvae.map_batches(partial(_right, model), params, (), source, rows, key=key, prepare=prepare)
    return float(right.mean())


def _right(model: Classifier, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> Array:
    del model_state, key
    return read(model, params, batch["image"]) == batch["label"]
