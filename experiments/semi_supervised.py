"""Semi-supervised learning as Kingma, Mohamed, Rezende and Welling (2014): few images have labels, all of them teach.

  python -m experiments.semi_supervised digits         scikit-learn's 8×8 digits, 5 labels for each class
  python -m experiments.semi_supervised mnist          binarised MNIST, 10 labels for each class (needs TFDS_DATA_DIR)
  python -m experiments.semi_supervised mnist-pixels   the same, M2 alone

A VAE learns codes without labels (the paper's M1), and the semi-supervised VAE (M2) models codes and classes: together
the paper's M1+M2. With `--feature-dim 0`, M2 models the images themselves, and q(y|x) takes its first steps on the
labelled images alone. The report holds the test accuracy of q(y|x), beside that of the same network trained on those
alone to the end, and the bound on -log p(x). What each costs and which numbers to expect: experiments/README.md.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
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
from experiments.report import EVALUATION_BATCH, EVALUATION_SEED, encode_images, label_pictures, shown
from experiments.run import Run, RunConfig, console, counter, file_errors, parse, user_errors
from jaxvae import data, figures
from jaxvae.convolution import Conv
from jaxvae.distributions import Bernoulli, Categorical, DiagGaussian
from jaxvae.networks import GaussianHead
from jaxvae.types import Array, Batch, LossFn, Metrics, Prepare, PRNGKey, PyTree

ALONE_STEPS, ALONE_LEARNING_RATE = 1_000, 1e-3  # of the classifier that sees the labelled examples alone
BEGINNING = 0.1  # share of those steps, after which q(y|x) begins: surer of itself, it learns less from other images
FEATURE_HIDDEN, FEATURE_LEARNING_RATE = 500, 1e-3  # of M1
COLUMNS = 10  # latents in samples.png, and images in analogies.png


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    data: str = "digits"
    """digits, or any labelled image set that is prepared for tensorflow-datasets."""
    labels_per_class: int = 10
    """Training images of each class that keep their label."""
    label_seed: int = 0
    """Decides which; apart from the seed, so that several draws of the labels can be compared."""
    feature_dim: int = 30
    """Size of M1's codes, which M2 sees in place of the images; 0 for none."""
    feature_epochs: int = 15
    """Passes of M1 over the training images."""
    hidden: int = 256
    """Width of the one hidden layer of each of M2's networks."""
    latent_dim: int = 10
    """Size of M2's latent, beside the class."""
    label_features: int = 16
    """Size of a label's embedding, which encoder and decoder share."""
    classification_weight: float = 50.0
    """Weight of -log q(y|x) where the label is known (alpha)."""
    labelled_weight: float = 0.01
    """Weight of -ELBO where the label is known. At 1, M2 learns the few labelled examples by heart."""
    labelled_batch_size: int = 100
    """Images with labels per step, beside batch_size images without; all of them where there are fewer."""
    binarize: bool = False
    """Draw each pixel as 0 or 1 with its grey value as probability; without, each grey value is a category."""
    learning_rate: float = 3e-3
    """Of Adam; it falls to 0 by a cosine over all epochs."""
    evaluate_every: int = 5
    """Epochs between evaluations, each with a checkpoint; they choose nothing."""
    validation: int = 0
    """Training images to hold out, without which M1 and M2 train. The evaluations then look at them in place of the
    test images: choose settings by these."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positive = ("labels_per_class", "feature_epochs", "hidden", "latent_dim", "label_features")
        for name in (*positive, "labelled_batch_size", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("classification_weight", "labelled_weight"):
            if not (getattr(self, name) >= 0 and np.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be a finite number, zero or more, got {getattr(self, name)}")
        if not (self.learning_rate > 0 and np.isfinite(self.learning_rate)):
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate}")
        for name in ("feature_dim", "validation"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be zero or more, got {getattr(self, name)}")
        jaxvae.keys.check_seed(self.label_seed)


PRESETS = {
    "digits": (
        "scikit-learn's 1,797 digits of 8×8 pixels; needs no data.",
        Config(
            preset="digits",
            labels_per_class=5,
            feature_dim=10,
            feature_epochs=30,
            latent_dim=5,
            labelled_batch_size=50,
            batch_size=64,
            epochs=150,
            evaluate_every=10,
        ),
    ),
    "mnist": (
        "MNIST, dynamically binarised, 100 labels.",
        Config(preset="mnist", data="mnist", binarize=True, batch_size=200, epochs=30),
    ),
    "mnist-pixels": (
        "The same, M2 alone.",
        Config(
            preset="mnist-pixels",
            data="mnist",
            binarize=True,
            feature_dim=0,
            latent_dim=8,
            labelled_batch_size=50,
            batch_size=200,
            epochs=20,
        ),
    ),
}


def make_features(config: Any) -> jaxvae.VAE:
    """M1, of RUN/features, from its config.json."""
    shape = (*config.image_shape, *(() if config.binarize else (config.levels,)))
    return jaxvae.VAE(
        jaxvae.MLPEncoder(config.feature_dim, (FEATURE_HIDDEN,)),
        jaxvae.MLPDecoder(shape, (FEATURE_HIDDEN,)),
        Bernoulli if config.binarize else Categorical,
    )


def make_model(config: Any) -> jaxvae.SemiSupervisedVAE:
    """M2, from its config.json."""
    if config.feature_dim:
        encoder = jaxvae.Conditioned(jaxvae.MLPEncoder(config.latent_dim, (config.hidden,)))
        shape, likelihood = (config.feature_dim, 2), jaxvae.PixelScale(lowest=-4.0)
    else:
        encoder = ImageLabelEncoder(config.latent_dim, config.hidden)
        shape = (*config.image_shape, *(() if config.binarize else (config.levels,)))
        likelihood = Bernoulli if config.binarize else Categorical
    cvae = jaxvae.CVAE(
        encoder,
        jaxvae.Conditioned(jaxvae.MLPDecoder(shape, (config.hidden,))),
        likelihood,
        embed=jaxvae.LabelEmbedding(config.num_classes, config.label_features),
    )
    return jaxvae.SemiSupervisedVAE(cvae, make_classifier(config))


def make_classifier(config: Any) -> nn.Module:
    """The network of q(y|x)."""
    if config.feature_dim:
        return jaxvae.MLPDecoder((config.num_classes,), (config.hidden,))
    return PatternClassifier(config.num_classes)


class ImageLabelEncoder(nn.Module):
    """Images [B, ...] and label embeddings [B, E] -> (mean, log_var), each [B, D], through one dense layer.

    As `Conditioned(MLPEncoder(...))`, but the image's part of the layer is apart: M2 needs it once for all classes.
    """

    latent_dim: int
    hidden: int

    @nn.compact
    def __call__(self, image: Array, label: Array) -> tuple[Array, Array]:
        """Encode a batch."""
        features = nn.Dense(self.hidden)(image.reshape(len(image), -1))
        features = features + nn.Dense(self.hidden, use_bias=False)(label)
        return GaussianHead(self.latent_dim, name="head")(nn.relu(features))


class PatternClassifier(nn.Module):
    """Images [B, H, W, C] -> logits [B, K], from how well each of 64 patterns fits in each quarter of the image.

    Where exactly in the quarter does not matter: that is what few labels cannot teach. A pattern has at most 10×10
    pixels and moves in steps of two.
    """

    num_classes: int

    @nn.compact
    def __call__(self, image: Array) -> Array:
        """Classify a batch."""
        window = [min(10, side // 2) for side in image.shape[1:3]]
        features = nn.relu(Conv(64, window, strides=2, padding="VALID")(image))
        halves = jnp.array_split(features, 2, axis=1)
        quarters = [quarter for half in halves for quarter in jnp.array_split(half, 2, axis=2)]
        best = [quarter.max(axis=(1, 2)) for quarter in quarters]
        return nn.Dense(self.num_classes)(jnp.concatenate(best, axis=1))


def choose_labelled(label: np.ndarray, per_class: int, *, seed: int) -> np.ndarray:
    """The rows of `per_class` random examples of each class, class by class."""
    classes, counts = np.unique(label, return_counts=True)
    if counts.min() < per_class:
        rarest = classes[counts.argmin()]
        raise ValueError(f"labels_per_class is {per_class}, but class {rarest} has only {counts.min()} images")
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.choice(np.flatnonzero(label == c), per_class, replace=False) for c in classes])


def make_prepare(plain: Prepare, train: data.ImageSet, rows: np.ndarray, batch_size: int) -> Prepare:
    """Prepare a batch, and beside it `batch_size` of the labelled examples, those at `rows`."""
    labelled = {"image": train.image[rows], "label": train.label[rows], "index": rows.astype(np.int32)}

    def prepare(batch: Batch, *, key: PRNGKey) -> Batch:
        choice_key, image_key = jax.random.split(key)
        chosen = jax.random.permutation(choice_key, len(rows))[:batch_size]
        few = {name: jnp.asarray(values)[chosen] for name, values in labelled.items()}  # constants, in every process
        return plain(batch, key=image_key) | {"labelled": plain(few, key=image_key)}

    return prepare


def draw_code(batch: Batch, *, key: PRNGKey) -> Batch:
    """The `Prepare` of codes, stored as mean and log σ² [B, 2, D]: a draw from each posterior, [B, D]."""
    posterior = DiagGaussian(batch["image"][:, 0], batch["image"][:, 1])
    return batch | {"image": posterior.sample(key=jaxvae.example_keys(key, batch["index"]))}


def mean_code(batch: Batch, *, key: PRNGKey) -> Batch:
    """The means, [B, D]."""
    del key
    return batch | {"image": batch["image"][:, 0]}


class Inputs(NamedTuple):
    """What M2 sees: the images, or M1's codes of them.

    Attributes:
      train: the training examples, unprepared.
      held_out: those that a run is evaluated on while it trains.
      test: the test examples.
      prepare: what M2 is trained and measured on.
      read: what the classifier reads in the end: where images or codes are drawn, their means.
      decode: what M2 sees -> pictures.
      cost: nats by which a bound on -log p(image) exceeds one on -log p(input), the mean over the test set.
    """

    train: data.ImageSet
    held_out: data.ImageSet
    test: data.ImageSet
    prepare: Prepare
    read: Prepare
    decode: Callable[[Array], Array]
    cost: float


def load_splits(config: Config) -> tuple[data.ImageSet, data.ImageSet, data.ImageSet]:
    """The images to train on, those to evaluate on while training, and the test images.

    Raises:
      ValueError: the training images have no labels, or there are not more of them than `config.validation`.
    """
    train, test = (data.load(config.data, s, progress=counter(f"decoding {s} images")) for s in ("train", "test"))
    if train.label is None:
        raise ValueError(f"{train.name!r} has no labels")
    if config.smoke:
        train, test = train.take(slice(256)), test.take(slice(256))
    if not config.validation:
        return train, test, test
    return *data.split_validation(train, config.validation, seed=config.seed), test


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, draw."""
    config = parse(PRESETS, __doc__, argv)
    if config.smoke:
        config = dataclasses.replace(config, epochs=2, feature_epochs=2, evaluate_every=1, labels_per_class=2)

    with user_errors():
        train, held_out, test = load_splits(config)
        rows = choose_labelled(train.label, config.labels_per_class, seed=config.label_seed)
        order = data.Order(len(train.image), config.batch_size, config.epochs, config.seed)
        derived = {"image_shape": train.image.shape[1:], "levels": train.levels}
        derived["num_classes"] = int(train.label.max()) + 1
        run = Run("semi_supervised", config, **derived, decay_epochs=config.epochs)
        if config.feature_dim:
            inside = dataclasses.replace(config, out=run.directory / "features", epochs=config.feature_epochs)
            features_run = Run("semi_supervised", inside, **derived, decay_epochs=config.feature_epochs)

    plain = data.make_prepare(train.levels, binarize=config.binarize)
    grey = data.make_prepare(train.levels)
    inputs = Inputs(train, held_out, test, plain, grey, decode=lambda image: image, cost=0.0)
    if config.feature_dim:
        inputs = learn_codes(features_run, inside, inputs)
    settings = SimpleNamespace(**run.settings)
    model = make_model(settings)
    loss_fn = partial(
        jaxvae.semi_supervised_loss,
        model,
        classification_weight=config.classification_weight,
        labelled_weight=config.labelled_weight,
    )
    read_loss_fn = partial(classification_loss, partial(model.apply, method="classify"))

    bounds, reading = make_evaluate(loss_fn, inputs.prepare), make_evaluate(read_loss_fn, inputs.read)
    feeds = {name: data.evaluation_feed(getattr(inputs, name), EVALUATION_BATCH) for name in ("held_out", "test")}

    def measure(state: jaxvae.TrainState, name: str) -> Metrics:
        return bounds(state, *feeds[name]) | reading(state, *feeds[name])

    network = make_classifier(settings)

    beginning, alone = learn_alone(config, network, inputs, rows)

    def init(*, key: PRNGKey) -> tuple[PyTree, PyTree]:
        params = model.init(key, first(inputs.train, 1, inputs.prepare))["params"]
        if not config.feature_dim:
            params = params | {"classifier": beginning["params"]}
        return {"params": params}, ()

    state = run.train(
        init,
        loss_fn,
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, order.total_steps)),
        *(inputs.train._replace(label=None), order),
        prepare=make_prepare(inputs.prepare, inputs.train, rows, config.labelled_batch_size),
        evaluate=partial(measure, name="held_out"),
        evaluate_every=config.evaluate_every * order.steps_per_epoch,
        held_out=held_out_name(config),
    )
    measured = {name: float(value) for name, value in measure(state, "test").items() if name != "loss"}
    if config.feature_dim:
        measured["negative_elbo_of_images"] = measured["negative_elbo"] + inputs.cost
    read_alone = make_evaluate(partial(classification_loss, network.apply), inputs.read)
    measured["accuracy_alone"] = float(read_alone(alone, *feeds["test"])["accuracy"])

    result = {"test": measured, "step": int(state.step), "device": jax.devices()[0].device_kind}
    images = test.image[:COLUMNS] / np.float32(test.levels - 1)
    run.finish(result, draw(run, model, state.params, inputs, images))
    console.print(
        f"{len(rows)} labels: {measured['accuracy']:.2%} of the test images are read right, "
        f"{measured['accuracy_alone']:.2%} by the same network trained on those alone",
        highlight=False,
    )


def held_out_name(config: Config) -> str:
    """Of the images that a run is evaluated on while it trains."""
    return "validation" if config.validation else "test"


def learn_codes(run: Run, config: Config, images: Inputs) -> Inputs:
    """Train M1, a VAE of the images without labels, and put its posteriors in their place."""
    console.print("M1, the codes:", highlight=False)
    model = make_features(SimpleNamespace(**run.settings))
    train, held_out, test, plain, grey, *_ = images
    order = data.Order(len(train.image), config.batch_size, config.epochs, config.seed)
    loss_fn = partial(jaxvae.vae_loss, model)
    evaluate = make_evaluate(loss_fn, plain)
    held_out_feed = data.evaluation_feed(held_out, EVALUATION_BATCH)

    def init(*, key: PRNGKey) -> tuple[PyTree, PyTree]:
        return model.init(key, jnp.zeros((1, *train.image.shape[1:]))), ()

    state = run.train(
        init,
        loss_fn,
        optax.adam(optax.cosine_decay_schedule(FEATURE_LEARNING_RATE, order.total_steps)),
        *(train._replace(label=None), order),
        prepare=plain,
        evaluate=lambda state: evaluate(state, *held_out_feed),
        evaluate_every=config.evaluate_every * order.steps_per_epoch,
        held_out=held_out_name(config),
    )
    run.checkpointer.close()

    def encode(images: data.ImageSet) -> data.ImageSet:
        feed = data.evaluation_feed(images, EVALUATION_BATCH)
        posterior = encode_images(model, state, grey, feed)
        return images._replace(image=np.stack(posterior, axis=1))

    def decode(code: Array) -> Array:
        return model.apply(state.params, code, method="decode").mean

    codes = encode(test)
    cost = decoding_cost(model, state, plain, test, codes)
    return Inputs(encode(train), encode(held_out), codes, draw_code, mean_code, decode, cost)


def decoding_cost(
    model: jaxvae.VAE, state: jaxvae.TrainState, plain: Prepare, test: data.ImageSet, codes: data.ImageSet
) -> float:
    """The mean of log q(z|x) - log p(x|z) at draws of the codes: with a bound on -log p(z), one on -log p(x)."""
    source, rows = data.evaluation_feed(test, EVALUATION_BATCH)

    def cost(params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> Array:
        del model_state
        posterior = DiagGaussian(batch["code"][:, 0], batch["code"][:, 1])
        code = posterior.sample(key=jaxvae.example_keys(key, batch["index"]))
        return posterior.log_prob(code) - model.apply(params, code, method="decode").log_prob(batch["image"])

    source = source | {"code": jnp.asarray(codes.image)}
    key = jax.random.key(EVALUATION_SEED)
    return float(jaxvae.map_batches(cost, state.params, (), source, rows, key=key, prepare=plain).mean())


def first(examples: data.ImageSet, count: int, prepare: Prepare) -> Array:
    """The first examples, prepared."""
    batch = {"image": jnp.asarray(examples.image[:count]), "index": jnp.arange(count)}
    return prepare(batch, key=jax.random.key(EVALUATION_SEED))["image"]


def make_evaluate(loss_fn: LossFn, prepare: Prepare) -> Callable[[jaxvae.TrainState, Batch, Array], Metrics]:
    """A state and a feed -> the metrics of a loss over the whole feed."""
    evaluate = jaxvae.make_evaluate(jaxvae.make_eval_step(loss_fn, prepare=prepare))
    return lambda state, *feed: jax.device_get(evaluate(state, *feed, key=jax.random.key(EVALUATION_SEED)))


def classification_loss(
    classify: Callable[..., Array],
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
    step: Array,
) -> tuple[Array, tuple[PyTree, Metrics]]:
    """-log q(y|x) and the accuracy of a classifier by itself."""
    del key, step
    logits = classify(params, batch["image"])
    loss = jaxvae.categorical_nll(logits, batch["label"]).mean()
    return loss, (model_state, {"classification": loss, "accuracy": (logits.argmax(axis=1) == batch["label"]).mean()})


def learn_alone(
    config: Config, network: nn.Module, inputs: Inputs, rows: np.ndarray
) -> tuple[PyTree, jaxvae.TrainState]:
    """Train the classifier's network on the labelled examples alone, those at `rows`: early parameters, last state."""
    labelled = inputs.train.take(rows)
    batch_size = min(config.labelled_batch_size, len(rows))
    epochs = math.ceil((20 if config.smoke else ALONE_STEPS) / (len(rows) // batch_size))
    order = data.Order(len(rows), batch_size, epochs, config.seed)
    feed = data.Resident(labelled, order, chunk=order.total_steps)

    def init(*, key: PRNGKey) -> tuple[PyTree, PyTree]:
        return network.init(key, first(labelled, 1, inputs.prepare)), ()

    loss_fn = partial(classification_loss, network.apply)
    optimizer = optax.adam(ALONE_LEARNING_RATE)
    state = jaxvae.init_train_state(init, optimizer, key=jaxvae.seed_key(config.seed))
    train_epoch = jaxvae.make_train_epoch(jaxvae.make_train_step(loss_fn, optimizer, prepare=inputs.prepare))
    early = int(BEGINNING * order.total_steps)
    state, _ = train_epoch(state, *feed(0, early))
    beginning = jax.device_get(state.params)
    state, _ = train_epoch(state, *feed(early, order.total_steps - early))
    return beginning, jax.block_until_ready(state)


@file_errors()
def draw(run: Run, model: jaxvae.SemiSupervisedVAE, params: PyTree, inputs: Inputs, images: np.ndarray) -> list[Path]:
    """Draw the pictures of a run and return their paths; `images` are the first of the test set."""
    cvae, inside = model.cvae, {"params": params["params"]["cvae"]}
    classes = jnp.arange(model.num_classes)
    latents = jax.random.split(jax.random.key(1), COLUMNS)[jnp.tile(jnp.arange(COLUMNS), len(classes))]
    samples = inputs.decode(cvae.apply(inside, classes.repeat(COLUMNS), key=latents, method="sample").mean)

    seen = first(inputs.test, len(images), inputs.read)
    label = model.apply(params, seen, method="classify").argmax(axis=-1)
    others = (seen.repeat(len(classes), axis=0), label.repeat(len(classes)), jnp.tile(classes, len(images)))
    analogies = shown(inputs.decode(cvae.apply(inside, *others, method="transfer").mean))
    out = run.directory
    return [
        *label_pictures(out, shown(samples), images, analogies),
        figures.learning_curves(out / "learning_curves.png", run.records()),
    ]


if __name__ == "__main__":
    main()
