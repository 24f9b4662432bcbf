"""Train a conditional VAE (Sohn, Lee and Yan, 2015): the condition is the label, or a part of the image.

  python -m experiments.cvae digits   scikit-learn's 8×8 digits, 17-way categorical pixels, 16 latents
  python -m experiments.cvae mnist    convolutions, Bernoulli pixels, dynamic binarisation (needs TFDS_DATA_DIR)
  python -m experiments.cvae mnist --prior learned     p(z|c) in place of p(z) = N(0, I)
  python -m experiments.cvae quadrants --visible 1     the hidden quadrants of MNIST from 1, 2 or 3 visible ones

With labels, the report holds log p(x|y), the unconditional likelihood log mean_y p(x|y) that follows from it, how
often Bayes' rule finds the label, and how often a classifier, trained in the run, reads a sample as the class it was
drawn for. The unconditional model, a VAE of the same size, seed and budget, is in RUN/unconditional. What each costs
and which numbers to expect: experiments/README.md.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxvae
from experiments import classifier, quadrants
from experiments.report import (
    EVALUATION_BATCH,
    EVALUATION_SEED,
    Report,
    importance_sampled,
    label_pictures,
    measure,
    shown,
)
from experiments.run import Run, RunConfig, console, counter, file_errors, parse, user_errors
from jaxvae import data, figures
from jaxvae.distributions import Bernoulli, Categorical
from jaxvae.networks import check_halvings
from jaxvae.types import Array, Batch, LossFn, Prepare, PRNGKey, PyTree

CLASSIFIER_STEPS = 1_500
SAMPLES_PER_CLASS = 1_000  # that the classifier reads
COLUMNS = 10  # latents in samples.png, and images in analogies.png


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    data: str = "digits"
    """digits, or any labelled image set that is prepared for tensorflow-datasets."""
    network: Literal["mlp", "conv"] = "mlp"
    """The body of encoder and decoder."""
    hidden: tuple[int, ...] = (500,)
    """Widths of the dense layers, or channels of the convolutions."""
    latent_dim: int = 20
    """Size of the latent."""
    label_features: int = 16
    """Size of a label's embedding, which encoder, decoder and prior share."""
    prior: Literal["standard", "learned"] = "standard"
    """p(z) = N(0, I), or a Gaussian p(z|c) for each class."""
    objective: Literal["vae", "iwae"] = "vae"
    """The ELBO, or the importance weighted bound."""
    num_samples: int = 1
    """Draws of the latent for each image in the objective (k)."""
    binarize: bool = False
    """Draw each pixel as 0 or 1 with its grey value as probability; without, each grey value is a category."""
    beta: float = 1.0
    """Weight of the rate."""
    learning_rate: float = 1e-3
    """Of Adam; it falls to 0 by a cosine over all epochs."""
    evaluate_every: int = 2
    """Epochs between evaluations, each with a checkpoint."""
    validation: int = 0
    """Training images to hold out. They then choose the best checkpoint; the test set never does."""
    nll_samples: int = 100
    """Importance samples for log p(x|y), for each test image and each label."""
    compare: bool = True
    """Train the unconditional model too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("latent_dim", "hidden", "label_features", "num_samples", "evaluate_every", "nll_samples"):
            if np.min(getattr(self, name), initial=1) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (self.beta >= 0 and np.isfinite(self.beta)):
            raise ValueError(f"beta must be a finite number, zero or more, got {self.beta}")
        if not (self.learning_rate > 0 and np.isfinite(self.learning_rate)):
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate}")
        if self.objective == "iwae" and self.beta != 1:
            raise ValueError("beta belongs to --objective vae")


PRESETS = {
    "digits": (
        "scikit-learn's 1,797 digits of 8×8 pixels; needs no data.",
        Config(
            preset="digits",
            network="conv",
            hidden=(32, 64),
            latent_dim=16,
            batch_size=64,
            epochs=100,
            evaluate_every=5,
            validation=200,
        ),
    ),
    "mnist": (
        "MNIST, dynamically binarised.",
        Config(
            preset="mnist",
            data="mnist",
            binarize=True,
            network="conv",
            hidden=(32, 64),
            latent_dim=10,
            batch_size=128,
            epochs=10,
            nll_samples=20,  # for each label of each image, through convolutions
        ),
    ),
    "quadrants": (
        "MNIST, grey: the hidden quadrants of an image from the visible ones.",
        quadrants.Config(preset="quadrants", batch_size=128, epochs=20),
    ),
}


def make_model(config: Any) -> Any:
    """The model of a run, from its config.json: a `CVAE`, or a `VAE` from that of RUN/unconditional."""
    if config.preset == "quadrants":
        return quadrants.make_model(config)
    likelihood = Bernoulli if config.binarize else Categorical
    shape = (*config.image_shape, *(() if config.binarize else (config.levels,)))
    sizes = tuple(config.hidden)
    if config.network == "conv":
        encoder = jaxvae.ConvEncoder(config.latent_dim, sizes)
        decoder = jaxvae.ConvDecoder(shape, sizes)
    else:
        encoder = jaxvae.MLPEncoder(config.latent_dim, sizes)
        decoder = jaxvae.MLPDecoder(shape, sizes[::-1])
    if config.num_classes is None:
        return jaxvae.VAE(encoder, decoder, likelihood)
    # A mean and a variance for each class need no hidden layer between them and the embedding.
    prior = jaxvae.MLPEncoder(config.latent_dim, ()) if config.prior == "learned" else None
    return jaxvae.CVAE(
        jaxvae.Conditioned(encoder, as_channels=config.network == "conv"),
        jaxvae.Conditioned(decoder),
        likelihood,
        prior,
        jaxvae.LabelEmbedding(config.num_classes, config.label_features),
    )


def make_objective(config: Config, model: Any) -> LossFn:
    """What a model minimises."""
    if config.objective == "iwae":
        return partial(jaxvae.iwae_loss, model, num_samples=config.num_samples)
    loss = jaxvae.cvae_loss if isinstance(model, jaxvae.CVAE) else jaxvae.vae_loss
    return partial(loss, model, beta=config.beta, num_samples=config.num_samples)


class Splits(NamedTuple):
    """Attributes: the images of a run; `validation` is None where none were held out."""

    train: data.ImageSet
    validation: data.ImageSet | None
    test: data.ImageSet


def load(config: Config) -> Splits:
    """The images of a run."""
    train, test = (data.load(config.data, s, progress=counter(f"decoding {s} images")) for s in ("train", "test"))
    if train.label is None:
        raise ValueError(f"{train.name!r} has no labels to condition on")
    if config.smoke:
        train, test = train.take(slice(256)), test.take(slice(256))
    if not config.validation:
        return Splits(train, None, test)
    return Splits(*data.split_validation(train, config.validation, seed=config.seed), test)


def main(argv: Sequence[str] | None = None) -> None:
    """Train both, measure, read samples, draw."""
    config = parse(PRESETS, __doc__, argv)
    if isinstance(config, quadrants.Config):
        return quadrants.run(config)
    if config.smoke:
        few = min(config.validation, 64)
        config = dataclasses.replace(config, epochs=2, evaluate_every=1, validation=few, nll_samples=5)
    with user_errors():
        splits = load(config)
        train, _, test = splits
        if config.network == "conv":
            check_halvings(train.image.shape[1:], config.hidden)
        data.Order(len(train.image), config.batch_size, config.epochs, config.seed)  # refuses what cannot be
        num_classes = int(train.label.max()) + 1
        derived = {"image_shape": train.image.shape[1:], "levels": train.levels, "decay_epochs": config.epochs}
        run = Run("cvae", config, **derived, num_classes=num_classes)
        if config.compare:
            inside = dataclasses.replace(config, out=run.directory / "unconditional")
            unconditional_run = Run("cvae", inside, **derived, num_classes=None)

    plain = data.make_prepare(train.levels, binarize=config.binarize)
    grey = data.make_prepare(train.levels)
    prepare = partial(with_condition, plain)
    feed = data.evaluation_feed(test, EVALUATION_BATCH)
    model, state, metrics = train_model(run, config, splits, prepare)
    unconditional = train_unconditional(unconditional_run, config, splits, plain) if config.compare else None

    report = measure(model, state, prepare, feed, grey=grey, nll_samples=config.nll_samples)
    measured = metrics | report.test
    log_prob = label_log_probs(model, state, prepare, feed, num_classes, nll_samples=config.nll_samples)
    measured["nll_marginal"] = float(-(np.logaddexp.reduce(log_prob, axis=1) - np.log(num_classes)).mean())
    measured["bayes_accuracy"] = float((log_prob.argmax(axis=1) == test.label).mean())

    steps, per_class = (20, 20) if config.smoke else (CLASSIFIER_STEPS, SAMPLES_PER_CLASS)
    reader = classifier.train(train, plain, num_classes=num_classes, steps=steps, seed=config.seed)
    measured["classifier_accuracy"] = classifier.accuracy(*reader, test, plain)
    share = read_as_condition(model, state.params, *reader, grey, per_class=per_class)
    measured["read_as_condition"], measured["read_as_condition_worst"] = float(share.mean()), float(share.min())

    result: dict[str, Any] = {"test": measured, "kl_per_dimension": report.kl.tolist()}
    result["read_as_condition_per_class"] = share.tolist()
    if unconditional is not None:
        result["unconditional"] = unconditional
        for name in ("negative_elbo", "nll", "nll_marginal"):
            measured[f"margin_{name}"] = unconditional[name.removesuffix("_marginal")] - measured[name]
    result |= {"nll_samples": config.nll_samples, "step": int(state.step), "device": jax.devices()[0].device_kind}
    run.finish(result, draw(run, model, state.params, report, test, num_classes))
    console.print(
        f"read as their condition: {share.mean():.2%} of {per_class * num_classes:,} samples, "
        f"{share.min():.2%} of class {share.argmin()}, the worst; "
        f"the classifier is right on {measured['classifier_accuracy']:.2%} of the test images",
        highlight=False,
    )
    if unconditional is not None:
        print_margins(measured, unconditional)


def with_condition(prepare: Prepare, batch: Batch, *, key: PRNGKey) -> Batch:
    """Make the label the condition."""
    return prepare(batch, key=key) | {"condition": batch["label"]}


def train_model(
    run: Run, config: Config, splits: Splits, prepare: Prepare
) -> tuple[Any, jaxvae.TrainState, dict[str, float]]:
    """The model of a run directory, its trained state, and the terms of -ELBO on the test images."""
    model = make_model(SimpleNamespace(**run.settings))
    loss_fn = make_objective(config, model)
    images = splits.train
    order = data.Order(len(images.image), config.batch_size, config.epochs, config.seed)

    def init(*, key: PRNGKey) -> tuple[PyTree, PyTree]:
        condition = [jnp.zeros(1, jnp.int32)] if isinstance(model, jaxvae.CVAE) else []
        return model.init(key, jnp.zeros((1, *images.image.shape[1:])), *condition), ()

    evaluate = partial(
        jaxvae.make_evaluate(jaxvae.make_eval_step(loss_fn, prepare=prepare)), key=jax.random.key(EVALUATION_SEED)
    )
    test_feed = data.evaluation_feed(splits.test, EVALUATION_BATCH)
    held_out = test_feed
    if splits.validation is not None:
        held_out = data.evaluation_feed(splits.validation, EVALUATION_BATCH)
    state = run.train(
        init,
        loss_fn,
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, order.total_steps)),
        *(images, order),
        prepare=prepare,
        evaluate=lambda state: jax.device_get(evaluate(state, *held_out)),
        evaluate_every=config.evaluate_every * order.steps_per_epoch,
        held_out="test" if splits.validation is None else "validation",
        monitor=None if splits.validation is None else "loss",
    )
    if splits.validation is not None:
        state = run.best(state)
    metrics = jax.device_get(evaluate(state, *test_feed))
    return model, state, {name: float(metrics[name]) for name in ("negative_elbo", "rate", "distortion")}


def train_unconditional(run: Run, config: Config, splits: Splits, prepare: Prepare) -> dict[str, float]:
    """Train the model that does not see the label; its figures on the test images."""
    console.print("without the label:", highlight=False)
    model, state, measured = train_model(run, config, splits, prepare)
    run.checkpointer.close()
    estimate = importance_sampled(
        partial(jaxvae.vae_log_weights, model),
        state,
        prepare,
        data.evaluation_feed(splits.test, EVALUATION_BATCH),
        nll_samples=config.nll_samples,
    )
    return measured | {"nll": estimate.nll, "nll_standard_error": estimate.nll_standard_error}


def label_log_probs(
    model: jaxvae.CVAE,
    state: jaxvae.TrainState,
    prepare: Prepare,
    feed: tuple[Batch, Array],
    num_classes: int,
    *,
    nll_samples: int,
) -> np.ndarray:
    """log p(x|y) of every image of a feed and every label y, [N, K] nats."""
    source, rows = feed
    weights = partial(jaxvae.vae_log_weights, model)  # one object for all labels: compiled once
    show = counter(f"log p(x|y) with {nll_samples} samples, label")
    columns = []
    for label in range(num_classes):
        given = source | {"label": jnp.full_like(source["label"], label)}
        estimate = importance_sampled(weights, state, prepare, (given, rows), nll_samples=nll_samples)
        columns.append(estimate.log_prob)
        show(label + 1, num_classes)
    return np.stack(columns, axis=1)


def read_as_condition(
    model: jaxvae.CVAE,
    params: PyTree,
    reader: classifier.Classifier,
    reader_params: PyTree,
    grey: Prepare,
    *,
    per_class: int,
) -> np.ndarray:
    """The share of samples of each class that the classifier reads as that class, [K].

    Samples are drawn from the likelihood, so that their pixels have values that the classifier was trained on.
    """

    @jax.jit
    def share(params: PyTree, reader_params: PyTree, label: Array, key: PRNGKey) -> Array:
        latent_key, image_key = jax.random.split(key)
        condition = jnp.full(per_class, label)
        sampled = model.apply(params, condition, key=latent_key, method="sample").sample(key=image_key)
        image = grey({"image": sampled}, key=key)["image"]  # a categorical pixel is an integer, as a stored one is
        return (classifier.read(reader, reader_params, image) == condition).mean()

    keys = jax.random.split(jax.random.key(EVALUATION_SEED), reader.num_classes)
    return np.array([share(params, reader_params, jnp.int32(label), key) for label, key in enumerate(keys)])


@file_errors()
def draw(
    run: Run, model: jaxvae.CVAE, params: PyTree, report: Report, test: data.ImageSet, num_classes: int
) -> list[Path]:
    """Draw the pictures of a run and return their paths."""
    classes = jnp.arange(num_classes)
    latents = jax.random.split(jax.random.key(1), COLUMNS)
    apply = jax.jit(model.apply, static_argnames="method")
    samples = apply(
        params, classes.repeat(COLUMNS), key=latents[jnp.tile(jnp.arange(COLUMNS), num_classes)], method="sample"
    ).mean

    images, label = report.pairs[0][:COLUMNS], test.label[:COLUMNS]
    analogies = apply(
        params,
        images.repeat(num_classes, axis=0),
        label.repeat(num_classes),
        jnp.tile(classes, len(images)),
        method="transfer",
    ).mean
    out = run.directory
    return [
        *label_pictures(out, shown(samples), images, shown(analogies)),
        figures.reconstructions(out / "reconstructions.png", *map(shown, report.pairs)),
        figures.learning_curves(out / "learning_curves.png", run.records()),
        figures.kl_bars(out / "kl_per_dimension.png", report.kl, title="KL per latent"),
    ]


def print_margins(measured: dict[str, Any], unconditional: dict[str, float]) -> None:
    """What knowing the label is worth, and what remains of it where the label is summed out."""
    for name, said in (
        ("negative_elbo", "-ELBO given the label"),
        ("nll", "-log p(x|y)"),
        ("nll_marginal", "-log mean_y p(x|y)"),
    ):
        other = unconditional[name.removesuffix("_marginal")]
        margin = measured[f"margin_{name}"]
        console.print(
            f"{said}: {measured[name]:.3f}, unconditional model {other:.3f}, margin {margin:.3f} nats", highlight=False
        )


if __name__ == "__main__":
    main()
