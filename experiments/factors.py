"""A linear VAE with a variance for each pixel is factor analysis, and must come as far: exact nats of both, and PPCA's.

  python -m experiments.factors digits                   scikit-learn's digits of 8×8 pixels; needs no data
  python -m experiments.factors digits --latent-dim 10   with ten factors

The grey values are spread within their level (dequantised), once: some pixels are the same in nearly all digits, and
factor analysis has no maximum where one does not vary.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxvae
from experiments.command import RunConfig, console, file_errors, parse, user_errors
from experiments.report import evaluator
from experiments.run import Run, init_of, reached
from experiments.splits import load_split
from jaxvae import data, figures
from jaxvae.evaluation import classical
from jaxvae.keys import seed_key
from jaxvae.models import linear_vae
from jaxvae.objectives import linear_vae_loss
from jaxvae.types import PyTree

DEQUANTISED = 0  # the seed of where each grey value lies within its level: the same for all runs


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    data: str = "digits"
    """digits, or any image set that is prepared for tensorflow-datasets."""
    latent_dim: int = 5
    """How many factors."""
    learning_rate: float = 1e-2
    """Of Adam; it falls to 0 over all epochs, which cannot then change."""
    evaluate_every: int = 500
    """Epochs between evaluations, each with a checkpoint."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers(counts=("latent_dim", "evaluate_every"), positive=("learning_rate",))


PRESETS = {
    "digits": (
        "scikit-learn's 1,797 digits of 8×8 pixels; needs no data.",
        Config(preset="digits", epochs=10_000, batch_size=1437),
    )
}


def make_model(config: Any) -> jaxvae.VAE:
    """The model of a run, from its config.json."""
    return linear_vae(tuple(config.image_shape), config.latent_dim, per_element=True)


def dequantised(split: data.Dataset, seed: int) -> data.Dataset:
    """Grey values, spread evenly within their level, in [0, 1)."""
    noise = np.random.default_rng(seed).random(split.x.shape)
    x = (split.x + noise) / split.levels
    return data.from_arrays(split.name, x, split.label, domain="real")


def main(argv: Sequence[str] | None = None) -> None:
    """Fit all three, compare, draw the factors."""
    config = parse(PRESETS, __doc__, argv)
    if config.smoke:
        config = dataclasses.replace(config, epochs=20, evaluate_every=10)
    with user_errors():
        train, test = (
            dequantised(load_split(config.data, split), DEQUANTISED + i) for i, split in enumerate(("train", "test"))
        )
        order = data.Order(len(train), min(config.batch_size, len(train)), config.epochs, config.seed)
        run = Run("factors", config, image_shape=train.shape, decay_epochs=config.epochs)
    model = make_model(SimpleNamespace(**run.settings))
    loss_fn = partial(linear_vae_loss, model)
    state = run.train(
        init_of(model, jnp.zeros((1, *train.shape))),
        loss_fn,
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, order.total_steps)),
        *(train, order),
        evaluate=evaluator(loss_fn, test),
        evaluate_every=config.evaluate_every * order.steps_per_epoch,
        split="test",
    )
    console.print("fitting factor analysis and PPCA", highlight=False)
    factors, ppca = (fit(train.x, config.latent_dim) for fit in (classical.fit_factor_analysis, classical.fit_ppca))
    result = {}
    for name, split in {"train": train, "test": test}.items():
        result[name] = {
            "factor_analysis": float(factors.log_prob(split.x).mean()),
            "linear_vae": exact_elbo(model, state.params, split.x),
            "ppca": float(ppca.log_prob(split.x).mean()),
        }
    gap = result["train"]["factor_analysis"] - result["train"]["linear_vae"]
    console.print(f"on the training images the linear VAE is {gap:.4f} nats below factor analysis", highlight=False)
    run.finish(result | {"gap": gap, **reached(state)}, lambda: save_pictures(run, state.params, factors))


def exact_elbo(model: jaxvae.VAE, params: PyTree, x: np.ndarray) -> float:
    """The mean ELBO in float64 nats, of a density."""
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), params)
        batch = {"x": jnp.asarray(np.asarray(x, np.float64))}
        return -float(linear_vae_loss(model, wide, (), batch, key=seed_key(0), step=0)[0])


@file_errors()
def save_pictures(run: Run, params: PyTree, factors: classical.FactorAnalysis) -> list[Path]:
    """Draw the columns of W of both, the largest first, their signs alike, and return the paths."""
    trained = np.asarray(params["params"]["decoder"]["output"]["kernel"], np.float64).T
    first, second = in_grey(factors.weights), in_grey(trained)
    against = ((first - 0.5) * (second - 0.5)).sum(axis=1, keepdims=True) < 0  # a column's sign means nothing
    drawn = [rows.reshape(-1, *factors.mean.shape) for rows in (first, np.where(against, 1 - second, second))]
    path, title = run.picture("factors"), "columns of W, the largest first, each on a scale of its own"
    names = ["factor analysis", "linear VAE"]
    return [
        figures.image_grid(path, np.concatenate(drawn), columns=len(drawn[0]), row_names=names, title=title),
        figures.learning_curves(run.picture("learning_curves"), run.records()),
    ]


def in_grey(weights: np.ndarray) -> np.ndarray:
    """Columns of W [d, k] as rows in [0, 1], float32: zero in the middle, what is largest white, by falling norm."""
    rows = weights[:, np.argsort(np.square(weights).sum(axis=0))[::-1]].T
    largest = rows[np.arange(len(rows)), np.abs(rows).argmax(axis=1)]
    return (0.5 + 0.5 * rows / largest[:, None]).astype(np.float32)


if __name__ == "__main__":
    main()
