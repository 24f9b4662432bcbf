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
from experiments.classifier import classification_loss
from experiments.command import RunConfig, console, file_errors, parse, user_errors
from experiments.label_networks import ImageLabelEncoder, PatternClassifier
from experiments.report import Evaluate, as_pictures, evaluator, label_pictures, over_set, posteriors, prepared
from experiments.run import Run, init_of, reached
from experiments.splits import Splits, load_splits, without_label
from jaxvae import data, figures
from jaxvae.distributions import Bernoulli, Categorical, DiagGaussian
from jaxvae.keys import check_seed, example_keys, seed_key
from jaxvae.types import Array, Batch, LossFn, Prepare, PRNGKey, PyTree

SUPERVISED_STEPS, SUPERVISED_LEARNING_RATE = 1_000, 1e-3  # of the classifier that sees the labelled examples alone
BEGINNING = 0.1  # share of those steps, after which q(y|x) begins: surer of itself, it learns less from other images
FEATURE_HIDDEN, FEATURE_LEARNING_RATE = 500, 1e-3  # of M1
LOWEST_LOG_VAR = -3.947506  # of a code given M2's latent
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
    """Training images kept for validation: M1 and M2 train without them. The evaluations then look at them in place of
    the test images: choose settings by these."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers(
            counts=(
                *("labels_per_class", "feature_epochs", "hidden", "latent_dim", "label_features"),
                *("labelled_batch_size", "evaluate_every"),
            ),
            weights=("classification_weight", "labelled_weight"),
            positive=("learning_rate",),
        )
        for name in ("feature_dim", "validation"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be zero or more, got {getattr(self, name)}")
        check_seed(self.label_seed)


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
        shape, likelihood = (config.feature_dim, 2), jaxvae.PixelScale(lowest=LOWEST_LOG_VAR)
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


class Examples(NamedTuple):
    """What M2 sees: the images, or M1's codes of them.

    Attributes:
      splits: the examples; `grey` prepares what the classifier reads in the end: where images or codes are drawn, their
        means.
      as_images: what M2 sees -> pictures.
      cost: nats by which a bound on -log p(image) exceeds one on -log p(what M2 sees), the mean over the test set.
    """

    splits: Splits
    as_images: Callable[[Array], Array]
    cost: float


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, draw."""
    config = parse(PRESETS, __doc__, argv)
    if config.smoke:
        config = dataclasses.replace(config, epochs=2, feature_epochs=2, evaluate_every=1, labels_per_class=2)

    with user_errors():
        splits = load_splits(config, validation=config.validation, labelled=True)
        train = splits.train
        labelled = choose_labelled(train.label, config.labels_per_class, seed=config.label_seed)
        order = data.Order(len(train), config.batch_size, config.epochs, config.seed)
        derived = {"image_shape": train.shape, "levels": train.levels, "num_classes": splits.num_classes}
        run = Run("semi_supervised", config, **derived, decay_epochs=config.epochs)
        if config.feature_dim:
            inside = dataclasses.replace(config, out=run.directory / "features", epochs=config.feature_epochs)
            features_run = Run("semi_supervised", inside, **derived, decay_epochs=config.feature_epochs)

    examples = Examples(splits, as_images=lambda x: x, cost=0.0)
    if config.feature_dim:
        examples = learn_codes(features_run, inside, splits)
    model, state, measured = train_model(run, config, examples, labelled, order)
    images = np.asarray(prepared(splits.test.with_prepare(splits.grey), COLUMNS)["x"])
    run.finish({"test": measured, **reached(state)}, lambda: save_pictures(run, model, state.params, examples, images))
    console.print(
        f"{len(labelled)} labels: {measured['accuracy']:.2%} of the test images are read right, "
        f"{measured['accuracy_labels_only']:.2%} by the same network trained on those alone",
        highlight=False,
    )


def choose_labelled(label: np.ndarray, per_class: int, *, seed: int) -> np.ndarray:
    """The indices of `per_class` random examples of each class, class by class."""
    classes, counts = np.unique(label, return_counts=True)
    if counts.min() < per_class:
        rarest = classes[counts.argmin()]
        raise ValueError(f"labels_per_class is {per_class}, but class {rarest} has only {counts.min()} images")
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.choice(np.flatnonzero(label == c), per_class, replace=False) for c in classes])


def learn_codes(run: Run, config: Config, splits: Splits) -> Examples:
    """Train M1, a VAE of the images without labels, and put its posteriors in their place."""
    console.print("M1, the codes:", highlight=False)
    model = make_features(SimpleNamespace(**run.settings))
    order = data.Order(len(splits.train), config.batch_size, config.epochs, config.seed)
    loss_fn = partial(jaxvae.vae_loss, model)
    state = run.train(
        init_of(model, jnp.zeros((1, *splits.train.shape))),
        loss_fn,
        optax.adam(optax.cosine_decay_schedule(FEATURE_LEARNING_RATE, order.total_steps)),
        *(without_label(splits.train), order),
        evaluate=evaluator(loss_fn, splits.evaluated),
        evaluate_every=config.evaluate_every * order.steps_per_epoch,
        split=splits.split,
    )
    run.checkpointer.close()

    def encode(dataset: data.Dataset) -> data.Dataset:
        codes = np.stack(posteriors(model, state, dataset.with_prepare(splits.grey)), axis=1)
        arrays = {**dataset.arrays, "x": codes}
        return dataclasses.replace(dataset, arrays=arrays, prepare=draw_code, domain=data.Domain("real"))

    def as_images(code: Array) -> Array:
        return model.apply(state.params, code, method="decode").mean

    codes = splits.map(encode)._replace(grey=mean_code)
    return Examples(codes, as_images, decoding_cost(model, state, splits.test, codes.test))


def draw_code(batch: Batch, *, key: PRNGKey) -> Batch:
    """The `Prepare` of codes, stored as mean and log σ² [B, 2, D]: a draw from each posterior, [B, D]."""
    posterior = DiagGaussian(batch["x"][:, 0], batch["x"][:, 1])
    return batch | {"x": posterior.sample(key=example_keys(key, batch["index"]))}


def mean_code(batch: Batch, *, key: PRNGKey) -> Batch:
    """The means, [B, D]."""
    del key
    return batch | {"x": batch["x"][:, 0]}


def decoding_cost(model: jaxvae.VAE, state: jaxvae.TrainState, test: data.Dataset, codes: data.Dataset) -> float:
    """The mean of log q(z|x) - log p(x|z) at draws of the codes: with a bound on -log p(z), one on -log p(x)."""

    def cost(params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> Array:
        del model_state
        posterior = DiagGaussian(batch["code"][:, 0], batch["code"][:, 1])
        code = posterior.sample(key=example_keys(key, batch["index"]))
        return posterior.log_prob(code) - model.apply(params, code, method="decode").log_prob(batch["x"])

    both = dataclasses.replace(test, arrays={**test.arrays, "code": codes.x})
    return float(over_set(cost, state, both).mean())


def train_model(
    run: Run, config: Config, examples: Examples, labelled: np.ndarray, order: data.Order
) -> tuple[jaxvae.SemiSupervisedVAE, jaxvae.TrainState, dict[str, float]]:
    """M2, its trained state, and its figures on the test set beside those of the classifier trained by itself."""
    settings, splits = SimpleNamespace(**run.settings), examples.splits
    model, network = make_model(settings), make_classifier(settings)
    beginning, supervised = learn_from_labels(config, network, splits.train, labelled)
    loss_fn = partial(
        jaxvae.semi_supervised_loss,
        model,
        classification_weight=config.classification_weight,
        labelled_weight=config.labelled_weight,
    )

    def init(*, key: PRNGKey) -> tuple[PyTree, PyTree]:
        params = model.init(key, prepared(splits.train, 1)["x"])["params"]
        if not config.feature_dim:
            params = params | {"classifier": beginning["params"]}
        return {"params": params}, ()

    evaluate = make_evaluate(model, loss_fn, splits.evaluated, splits.grey)
    state = run.train(
        init,
        loss_fn,
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, order.total_steps)),
        *(with_labelled(splits.train, labelled, config.labelled_batch_size), order),
        evaluate=evaluate,
        evaluate_every=config.evaluate_every * order.steps_per_epoch,
        split=splits.split,
    )
    if splits.validation is not None:
        evaluate = make_evaluate(model, loss_fn, splits.test, splits.grey)
    measured = {name: value for name, value in evaluate(state).items() if name != "loss"}
    if config.feature_dim:
        measured["negative_elbo_of_images"] = measured["negative_elbo"] + examples.cost
    read = evaluator(partial(classification_loss, network.apply), splits.test.with_prepare(splits.grey))
    measured["accuracy_labels_only"] = read(supervised)["accuracy"]
    return model, state, measured


def learn_from_labels(
    config: Config, network: nn.Module, train: data.Dataset, labelled: np.ndarray
) -> tuple[PyTree, jaxvae.TrainState]:
    """Train the classifier's network on the labelled examples alone: early parameters, last state."""
    few = train.take(labelled)
    batch_size = min(config.labelled_batch_size, len(few))
    epochs = math.ceil((20 if config.smoke else SUPERVISED_STEPS) / (len(few) // batch_size))
    order = data.Order(len(few), batch_size, epochs, config.seed)
    feed = data.Resident(few, order, chunk=order.total_steps)
    optimizer = optax.adam(SUPERVISED_LEARNING_RATE)
    init = init_of(network, prepared(few, 1)["x"])
    state = jaxvae.init_train_state(init, optimizer, key=seed_key(config.seed))
    step = jaxvae.make_train_step(partial(classification_loss, network.apply), optimizer, prepare=few.prepare)
    train_epoch = jaxvae.make_train_epoch(step)
    early = int(BEGINNING * order.total_steps)
    state, _ = train_epoch(state, *feed(0, early))
    beginning = jax.device_get(state.params)
    state, _ = train_epoch(state, *feed(early, order.total_steps - early))
    return beginning, jax.block_until_ready(state)


def with_labelled(train: data.Dataset, labelled: np.ndarray, batch_size: int) -> data.Dataset:
    """The examples without labels; beside a batch of them `prepare` puts `batch_size` of the labelled ones."""
    plain: Prepare = train.prepare
    few = {"x": train.x[labelled], "label": train.label[labelled], "index": labelled.astype(np.int32)}

    def prepare(batch: Batch, *, key: PRNGKey) -> Batch:
        choice_key, x_key = jax.random.split(key)
        chosen = jax.random.permutation(choice_key, len(labelled))[:batch_size]
        taken = {name: jnp.asarray(values)[chosen] for name, values in few.items()}  # constants, in every process
        return plain(batch, key=x_key) | {"labelled": plain(taken, key=x_key)}

    return without_label(train).with_prepare(prepare)


def make_evaluate(model: jaxvae.SemiSupervisedVAE, loss_fn: LossFn, dataset: data.Dataset, grey: Prepare) -> Evaluate:
    """Return `state -> metrics` of a set: the bounds, and the accuracy of reading what `grey` prepares."""
    bounds = evaluator(loss_fn, dataset)
    classify = partial(model.apply, method="classify")
    read = evaluator(partial(classification_loss, classify), dataset.with_prepare(grey))
    return lambda state: bounds(state) | read(state)


@file_errors()
def save_pictures(
    run: Run, model: jaxvae.SemiSupervisedVAE, params: PyTree, examples: Examples, images: np.ndarray
) -> list[Path]:
    """Draw the pictures of a run and return their paths; `images` are the first of the test set."""
    cvae, cvae_params = model.cvae, {"params": params["params"]["cvae"]}
    classes = jnp.arange(model.num_classes)
    latents = jax.random.split(seed_key(1), COLUMNS)[jnp.tile(jnp.arange(COLUMNS), len(classes))]
    samples = examples.as_images(cvae.apply(cvae_params, classes.repeat(COLUMNS), key=latents, method="sample").mean)

    seen = prepared(examples.splits.test.with_prepare(examples.splits.grey), len(images))["x"]
    label = model.apply(params, seen, method="classify").argmax(axis=-1)
    others = (seen.repeat(len(classes), axis=0), label.repeat(len(classes)), jnp.tile(classes, len(images)))
    analogies = as_pictures(examples.as_images(cvae.apply(cvae_params, *others, method="transfer").mean))
    return [
        *label_pictures(run, as_pictures(samples), images, analogies),
        figures.learning_curves(run.picture("learning_curves"), run.records()),
    ]


if __name__ == "__main__":
    main()
