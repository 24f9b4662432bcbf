"""A table with holes: what is missing, drawn given what is observed (MIWAE; Mattei and Frellsen, 2019).

  python -m experiments.imputation breast-cancer   scikit-learn's 569 × 30 measurements; needs no data

Entries are hidden at random. The model learns from what is left, by the importance weighted bound on log p of it, and
fills in the rest by importance sampling; beside it stand the mean of each column, the nearest neighbours and
scikit-learn's IterativeImputer. Errors are of the hidden entries, in standard deviations of what is observed of their
column. Nothing is chosen by them: they are not looked at before the end.
"""

import dataclasses
import warnings
from collections.abc import Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax.numpy as jnp
import numpy as np
import optax
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import ConvergenceWarning
from sklearn.experimental import enable_iterative_imputer  # noqa: F401  # makes the next line work
from sklearn.impute import IterativeImputer, KNNImputer, SimpleImputer

import jaxvae
from experiments.command import RunConfig, parse, user_errors
from experiments.report import EVALUATION_BATCH, evaluator
from experiments.run import Run, reached
from jaxvae import data, figures
from jaxvae.evaluation import Imputed, impute
from jaxvae.keys import seed_key
from jaxvae.types import PRNGKey, PyTree

NEIGHBOURS, ROUNDS = 5, 30  # of the baselines
INTERVAL = 1.96  # standard deviations, of which a normal distribution has 95 %


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    share: float = 0.3
    """Of the entries, hidden at random; the seed decides which."""
    hidden: tuple[int, ...] = (128, 128)
    """Widths of the dense layers."""
    latent_dim: int = 10
    """Size of the latent."""
    num_samples: int = 20
    """Importance samples of the bound."""
    imputation_samples: int = 20_000
    """Importance samples for what is filled in."""
    learning_rate: float = 1e-3
    """Of AdamW; it falls to 0 over all epochs, which cannot then change."""
    weight_decay: float = 0.1
    """Of AdamW."""
    lowest_log_var: float = -5.0
    """Below which no entry's log variance goes: what is observed would be learned by heart."""
    evaluate_every: int = 50
    """Epochs between evaluations, each with a checkpoint."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers(
            counts=("latent_dim", "num_samples", "imputation_samples", "evaluate_every"),
            positive=("learning_rate",),
            weights=("weight_decay",),
        )
        if not 0 < self.share < 1:
            raise ValueError(f"share must lie between 0 and 1, got {self.share}")


PRESETS = {
    "breast-cancer": (
        "569 tumours, 30 measurements of each; needs no data.",
        Config(preset="breast-cancer", epochs=500, batch_size=64),
    ),
}


def make_model(config: Any) -> jaxvae.VAE:
    """The model of a run, from its config.json."""
    sizes = tuple(config.hidden)
    decoder = jaxvae.MLPDecoder((config.num_columns, 2), sizes[::-1])  # a mean and a variance for each column
    return jaxvae.VAE(
        jaxvae.MLPEncoder(config.latent_dim, sizes), decoder, jaxvae.PixelScale(lowest=config.lowest_log_var)
    )


def load_table(config: Config) -> tuple[data.Dataset, np.ndarray]:
    """The table with its holes, in standard deviations of what is observed of each column, and the whole of it."""
    table = load_breast_cancer().data
    observed = np.random.default_rng(config.seed).random(table.shape) >= config.share
    if config.smoke:
        table, observed = table[:128], observed[:128]
    holed = np.where(observed, table, np.nan)
    whole = (table - np.nanmean(holed, axis=0)) / np.nanstd(holed, axis=0)
    return data.from_arrays(config.preset, whole, domain="real", observed=observed), whole


def main(argv: Sequence[str] | None = None) -> None:
    """Train, fill in, compare, draw."""
    config = parse(PRESETS, __doc__, argv)
    if config.smoke:
        config = dataclasses.replace(config, epochs=2, evaluate_every=1, imputation_samples=20)
    with user_errors():
        dataset, whole = load_table(config)
        order = data.Order(len(dataset), config.batch_size, config.epochs, config.seed)
        run = Run("imputation", config, num_columns=whole.shape[1], decay_epochs=config.epochs)
    model = make_model(SimpleNamespace(**run.settings))
    loss_fn = partial(jaxvae.iwae_loss, model, num_samples=config.num_samples)

    def init(*, key: PRNGKey) -> tuple[PyTree, PyTree]:
        x = jnp.zeros((1, *dataset.shape))
        return model.init(key, x, observed=jnp.ones(x.shape, bool)), ()

    schedule = optax.cosine_decay_schedule(config.learning_rate, order.total_steps)
    state = run.train(
        *(init, loss_fn, optax.adamw(schedule, weight_decay=config.weight_decay), dataset, order),
        evaluate=evaluator(loss_fn, dataset),
        evaluate_every=config.evaluate_every * order.steps_per_epoch,
        split="train",
    )
    filled = impute(
        *(model, state.params, state.model_state, *data.evaluation_feed(dataset, EVALUATION_BATCH)),
        key=seed_key(config.seed),
        num_samples=config.imputation_samples,
    )
    measured = measure(filled, dataset, whole) | baselines(dataset, whole, rounds=1 if config.smoke else ROUNDS)
    result = {"test": measured} | reached(state)
    curves = run.picture("learning_curves")
    run.finish(result, lambda: [figures.learning_curves(curves, run.records())])


def measure(filled: Imputed, dataset: data.Dataset, whole: np.ndarray) -> dict[str, float]:
    """Root mean squared errors of the hidden entries, and how many of them lie within the error bars."""
    hidden = ~dataset.arrays["observed"]
    inside = np.abs(filled.mean - whole) <= INTERVAL * filled.std
    return {
        "error": error_of(filled.mean, hidden, whole),
        "within_error_bars": float(inside[hidden].mean()),
        "effective_samples": float(np.median(filled.effective_samples)),
    }


def baselines(dataset: data.Dataset, whole: np.ndarray, *, rounds: int) -> dict[str, float]:
    """The errors of what scikit-learn fills in."""
    hidden = ~dataset.arrays["observed"]
    imputers = {
        "mean": SimpleImputer(),
        "nearest_neighbours": KNNImputer(n_neighbors=NEIGHBOURS),
        "iterative_imputer": IterativeImputer(max_iter=rounds, random_state=0),
    }
    holed = np.where(hidden, np.nan, whole)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # more rounds change nothing that is reported
        filled = {name: imputer.fit_transform(holed) for name, imputer in imputers.items()}
    return {f"error_{name}": error_of(guess, hidden, whole) for name, guess in filled.items()}


def error_of(guess: np.ndarray, hidden: np.ndarray, whole: np.ndarray) -> float:
    """The root mean squared error of the hidden entries."""
    return float(np.sqrt(np.square(guess - whole)[hidden].mean()))


if __name__ == "__main__":
    main()
