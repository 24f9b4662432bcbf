"""Features for few labels: what classifiers read from the codes of an autoencoder and of a VAE.

  python -m experiments.probe digits   scikit-learn's digits of 8×8 pixels; needs no data
  python -m experiments.probe mnist    MNIST in TFDS_DATA_DIR

Both models have the same networks and see all training images, without labels. Then logistic regression and nearest
neighbours learn from 100 and 1,000 labelled codes, of the same images as the pixels themselves and their principal
components, as many as there are latents. Each accuracy is the mean over five draws of the labelled images.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import optax
from rich.table import Table

import jaxvae
from experiments.command import RunConfig, console, parse, user_errors
from experiments.illustration import both_losses, init_both, make_model
from experiments.report import evaluator, over_set
from experiments.run import Run, reached
from experiments.splits import load_splits
from jaxvae import data, figures
from jaxvae.evaluation import Probe, principal_components, probe
from jaxvae.types import Array, Batch, PRNGKey, PyTree


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    data: str = "mnist"
    """digits, or any labelled image set that is prepared for tensorflow-datasets."""
    hidden: tuple[int, ...] = (400, 200)
    """Widths of the dense layers."""
    latent_dim: int = 10
    """Size of the codes, and the number of principal components."""
    learning_rate: float = 1e-3
    """Of Adam."""
    num_labels: tuple[int, ...] = (100, 1000)
    """How many labelled images, each a multiple of the number of classes."""
    num_draws: int = 5
    """Draws of the labelled images."""
    evaluate_every: int = 10
    """Epochs between evaluations, each with a checkpoint."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers(
            counts=("latent_dim", "num_labels", "num_draws", "evaluate_every"), positive=("learning_rate",)
        )


PRESETS = {
    "digits": (
        "scikit-learn's 1,797 digits of 8×8 pixels; needs no data.",
        Config(preset="digits", data="digits", hidden=(128, 64), num_labels=(50, 500), epochs=100, batch_size=64),
    ),
    "mnist": ("MNIST, from TFDS_DATA_DIR.", Config(preset="mnist", epochs=30, batch_size=128)),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Train both, probe four kinds of features, draw."""
    config = parse(PRESETS, __doc__, argv)
    if config.smoke:
        config = dataclasses.replace(config, epochs=2, evaluate_every=1, num_draws=2)
    with user_errors():
        splits = load_splits(config, labelled=True)
        train, test = splits.train, splits.test
        for count in config.num_labels:
            if splits.num_classes and count % splits.num_classes:
                raise ValueError(f"num_labels must be a multiple of the {splits.num_classes} classes, got {count}")
        order = data.Order(len(train), config.batch_size, config.epochs, config.seed)
        run = Run("probe", config, image_shape=train.shape, levels=train.levels)
    models = make_model(SimpleNamespace(**run.settings))
    loss_fn = partial(both_losses, models)

    state = run.train(
        *(partial(init_both, models, train.shape), loss_fn, optax.adam(config.learning_rate), train, order),
        evaluate=evaluator(loss_fn, test),
        evaluate_every=config.evaluate_every * order.steps_per_epoch,
        split="test",
    )
    with user_errors():
        probes = probe_all(models, state, train, test, config)
    show(probes)
    measured = {f"{p.features}, {p.classifier}, {p.num_labels}": float(p.accuracy.mean()) for p in probes}
    spread = {name: p.accuracy.tolist() for name, p in zip(measured, probes, strict=True)}
    title = f"{config.data}: {config.latent_dim} latents, {config.num_draws} draws of the labels"
    run.finish(
        {"test": measured, "accuracies": spread} | reached(state),
        lambda: [
            figures.probe_accuracy(run.picture("probe"), probes, title=title),
            figures.learning_curves(run.picture("learning_curves"), run.records(), title="VAE"),
        ],
    )


def probe_all(
    models: dict[str, Any], state: jaxvae.TrainState, train: data.Dataset, test: data.Dataset, config: Config
) -> list[Probe]:
    """The two models' codes beside pixels and principal components."""

    def codes(name: str, code_of: Callable[[Any], Array]) -> tuple[np.ndarray, np.ndarray]:
        encode = partial(_encode, models[name], name, code_of)
        return over_set(encode, state, train), over_set(encode, state, test)

    features = {
        "autoencoder": codes("autoencoder", _itself),
        "VAE": codes("vae", _mean),
        "principal components": principal_components(train.x, test.x, config.latent_dim),
        "pixels": (train.x, test.x),
    }
    return probe(
        features,
        *(train.label, test.label),
        num_labels=config.num_labels,
        num_draws=config.num_draws,
        seed=config.seed,
    )


def _encode(
    model: Any,
    name: str,
    code_of: Callable[[Any], Array],
    params: PyTree,
    model_state: PyTree,
    batch: Batch,
    *,
    key: PRNGKey,
) -> Array:
    del model_state, key
    return code_of(model.apply(params[name], batch["x"], method="encode"))


def _itself(code: jax.Array) -> Array:
    return code


def _mean(posterior: Any) -> Array:
    return posterior.mean


def show(probes: Sequence[Probe]) -> None:
    """A table: a row for each kind of features and classifier, a column for each number of labels."""
    counts = sorted({p.num_labels for p in probes})
    table = Table("features", "classifier", *(f"{count} labels" for count in counts), title="test accuracy")
    cells = {(p.features, p.classifier, p.num_labels): p.accuracy for p in probes}
    for features, classifier in dict.fromkeys((p.features, p.classifier) for p in probes):
        row = [cells[features, classifier, count] for count in counts]
        table.add_row(features, classifier, *(f"{each.mean():.1%} ± {each.std():.1%}" for each in row))
    console.print(table)


if __name__ == "__main__":
    main()
