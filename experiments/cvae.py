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
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxvae
from experiments import classifier, quadrants
from experiments.command import RunConfig, console, counter, file_errors, parse, user_errors
from experiments.drawing import means_of
from experiments.report import (
    EVALUATION_SEED,
    Report,
    as_pictures,
    elbo_terms,
    evaluators,
    importance_sampled,
    label_pictures,
    measure,
    training_pictures,
)
from experiments.run import Run, init_of, reached
from experiments.splits import Splits, load_splits, with_condition
from jaxvae import checkpoint, data
from jaxvae.distributions import Bernoulli, Categorical, StandardNormal
from jaxvae.keys import seed_key
from jaxvae.types import Array, LossFn, Prepare, PRNGKey, PyTree

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
    """Training images kept for validation. They then choose the best checkpoint; the test set never does."""
    nll_samples: int = 100
    """Importance samples for log p(x|y), for each test image and each label."""
    compare: bool = True
    """Train the unconditional model too."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers(
            counts=("latent_dim", "hidden", "label_features", "num_samples", "evaluate_every", "nll_samples"),
            weights=("beta",),
            positive=("learning_rate",),
        )
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
    prior = jaxvae.MLPEncoder(config.latent_dim, ()) if config.prior == "learned" else StandardNormal()
    return jaxvae.CVAE(
        jaxvae.Conditioned(encoder, as_channels=config.network == "conv"),
        jaxvae.Conditioned(decoder),
        likelihood,
        prior=prior,
        embed=jaxvae.LabelEmbedding(config.num_classes, config.label_features),
    )


def draw(directory: Path, num: int, *, key: PRNGKey) -> np.ndarray:
    """Samples of a run, of labels drawn too, as experiments.drawing wants them."""
    model, params, _, settings = checkpoint.load(directory, make_model)
    if settings.preset == "quadrants":
        raise ValueError(f"{directory} completes pictures and draws none: quadrants")
    return means_of(model, params, num, key=key, num_classes=settings.num_classes)


def make_objective(config: Config, model: Any) -> LossFn:
    """What a model minimises."""
    if config.objective == "iwae":
        return partial(jaxvae.iwae_loss, model, num_samples=config.num_samples)
    loss = jaxvae.cvae_loss if isinstance(model, jaxvae.CVAE) else jaxvae.vae_loss
    return partial(loss, model, beta=config.beta, num_samples=config.num_samples)


def main(argv: Sequence[str] | None = None) -> None:
    """Train both, measure, read samples, draw."""
    config = parse(PRESETS, __doc__, argv)
    if isinstance(config, quadrants.Config):
        return quadrants.run(config)
    if config.smoke:
        few = min(config.validation, 64)
        config = dataclasses.replace(config, epochs=2, evaluate_every=1, validation=few, nll_samples=5)
    with user_errors():
        splits = load_splits(config, validation=config.validation, labelled=True)
        train = splits.train
        data.Order(len(train), config.batch_size, config.epochs, config.seed)  # refuses what cannot be
        derived = {"image_shape": train.shape, "levels": train.levels, "decay_epochs": config.epochs}
        run = Run("cvae", config, **derived, num_classes=splits.num_classes)
        if config.compare:
            inside = dataclasses.replace(config, out=run.directory / "unconditional")
            unconditional_run = Run("cvae", inside, **derived, num_classes=None)
    conditional = splits.map(lambda dataset: with_condition(dataset, dataset.label))
    model, state, terms = train_model(run, config, conditional)
    unconditional = train_unconditional(unconditional_run, config, splits) if config.compare else None

    report = measure(model, state, conditional.test, grey=splits.grey, nll_samples=config.nll_samples)
    measured = terms | report.test
    log_prob = label_log_probs(model, state, conditional.test, splits.num_classes, nll_samples=config.nll_samples)
    measured |= of_labels(log_prob, splits.test.label)
    share, accuracy = read_samples(config, model, state.params, splits)
    measured |= {"classifier_accuracy": accuracy, "read_as_condition": float(share.mean())}
    measured["read_as_condition_worst"] = float(share.min())

    result: dict[str, Any] = {"test": measured, "kl_per_dimension": report.kl.tolist()}
    result["read_as_condition_per_class"] = share.tolist()
    if unconditional is not None:
        result["unconditional"] = unconditional
        for name in ("negative_elbo", "nll", "nll_marginal"):
            measured[f"margin_{name}"] = unconditional[name.removesuffix("_marginal")] - measured[name]
    result |= {"nll_samples": config.nll_samples, **reached(state)}
    run.finish(result, lambda: save_pictures(run, model, state.params, report, splits))
    print_found(measured, share, samples_per_class(config), unconditional)


def train_model(run: Run, config: Config, splits: Splits) -> tuple[Any, jaxvae.TrainState, dict[str, float]]:
    """The model of a run directory, its trained state, and the terms of -ELBO on the test images."""
    model = make_model(SimpleNamespace(**run.settings))
    loss_fn = make_objective(config, model)
    train = splits.train
    order = data.Order(len(train), config.batch_size, config.epochs, config.seed)
    condition = [jnp.zeros(1, jnp.int32)] if isinstance(model, jaxvae.CVAE) else []
    evaluate, evaluate_test = evaluators(loss_fn, splits)
    state = run.train(
        init_of(model, jnp.zeros((1, *train.shape)), *condition),
        loss_fn,
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, order.total_steps)),
        *(train, order),
        evaluate=evaluate,
        evaluate_every=config.evaluate_every * order.steps_per_epoch,
        split=splits.split,
        monitor=None if splits.validation is None else "loss",
    )
    return model, state, elbo_terms(evaluate_test(state))


def train_unconditional(run: Run, config: Config, splits: Splits) -> dict[str, float]:
    """Train the model that does not see the label; its figures on the test images."""
    console.print("without the label:", highlight=False)
    model, state, measured = train_model(run, config, splits)
    run.checkpointer.close()
    estimate = importance_sampled(model, state, splits.test, nll_samples=config.nll_samples)
    return measured | {"nll": estimate.nll, "nll_standard_error": estimate.nll_standard_error}


def label_log_probs(
    model: jaxvae.CVAE, state: jaxvae.TrainState, dataset: data.Dataset, num_classes: int, *, nll_samples: int
) -> np.ndarray:
    """log p(x|y) of every image of a set and every label y, [N, K] nats."""
    show = counter(f"log p(x|y) with {nll_samples} samples, label")
    columns = []
    for label in range(num_classes):
        as_label = with_condition(dataset, np.full(len(dataset), label, np.int32))
        columns.append(importance_sampled(model, state, as_label, nll_samples=nll_samples, name=None).log_prob)
        show(label + 1, num_classes)
    return np.stack(columns, axis=1)


def of_labels(log_prob: np.ndarray, label: np.ndarray) -> dict[str, float]:
    """What log p(x|y) [N, K] says without the label, and how often Bayes' rule finds it."""
    marginal = np.logaddexp.reduce(log_prob, axis=1) - np.log(log_prob.shape[1])
    return {"nll_marginal": float(-marginal.mean()), "bayes_accuracy": float((log_prob.argmax(axis=1) == label).mean())}


def read_samples(config: Config, model: jaxvae.CVAE, params: PyTree, splits: Splits) -> tuple[np.ndarray, float]:
    """The share of samples of each class that a classifier reads as it, [K], and its accuracy on the test images."""
    steps = 20 if config.smoke else CLASSIFIER_STEPS
    reader = classifier.train(splits.train, num_classes=splits.num_classes, steps=steps, seed=config.seed)
    share = read_as_condition(model, params, *reader, splits.grey, per_class=samples_per_class(config))
    return share, classifier.accuracy(*reader, splits.test)


def samples_per_class(config: Config) -> int:
    """How many the classifier reads."""
    return 20 if config.smoke else SAMPLES_PER_CLASS


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
        latent_key, x_key = jax.random.split(key)
        condition = jnp.full(per_class, label)
        sampled = model.apply(params, condition, key=latent_key, method="sample").sample(key=x_key)
        x = grey({"x": sampled}, key=key)["x"]  # a categorical pixel is an integer, as a stored one is
        return (classifier.read(reader, reader_params, x) == condition).mean()

    keys = jax.random.split(seed_key(EVALUATION_SEED), reader.num_classes)
    return np.array([share(params, reader_params, jnp.int32(label), key) for label, key in enumerate(keys)])


@file_errors()
def save_pictures(run: Run, model: jaxvae.CVAE, params: PyTree, report: Report, splits: Splits) -> list[Path]:
    """Draw the pictures of a run and return their paths."""
    classes = jnp.arange(splits.num_classes)
    latents = jax.random.split(seed_key(1), COLUMNS)
    apply = jax.jit(model.apply, static_argnames="method")
    samples = apply(
        params, classes.repeat(COLUMNS), key=latents[jnp.tile(jnp.arange(COLUMNS), len(classes))], method="sample"
    ).mean

    images, label = report.pairs[0][:COLUMNS], splits.test.label[:COLUMNS]
    analogies = apply(
        params,
        images.repeat(len(classes), axis=0),
        label.repeat(len(classes)),
        jnp.tile(classes, len(images)),
        method="transfer",
    ).mean
    pictures = label_pictures(run, as_pictures(samples), images, as_pictures(analogies))
    return pictures + training_pictures(run, report, condition="y")


def print_found(
    measured: dict[str, Any], share: np.ndarray, per_class: int, unconditional: dict[str, float] | None
) -> None:
    """What the classifier read; what knowing the label is worth, and what remains where the label is summed out."""
    console.print(
        f"read as their condition: {share.mean():.2%} of {per_class * len(share):,} samples, "
        f"{share.min():.2%} of class {share.argmin()}, the worst; "
        f"the classifier is right on {measured['classifier_accuracy']:.2%} of the test images",
        highlight=False,
    )
    if unconditional is None:
        return
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
