"""An autoencoder beside a VAE: the same networks, the same few images, two latents.

Run it by `python -m experiments.vae illustration`.

The autoencoder's codes lie where they like, with gaps between them; the VAE's fill the prior, so that any point of it
decodes to something. One figure shows both: reconstructions, codes and manifolds.
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
from experiments.command import RunConfig, file_errors, user_errors
from experiments.report import ELBO_TERMS, as_pictures, evaluator, prepared
from experiments.run import Run, reached
from experiments.splits import load_splits
from jaxvae import data, figures
from jaxvae.types import Array, Batch, Metrics, PRNGKey, PyTree

GRID = 20  # images on each side of a manifold


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    data: str = "mnist"
    """digits, or any image set that is prepared for tensorflow-datasets."""
    examples: int = 1000
    """Training images: the first so many."""
    hidden: tuple[int, ...] = (400, 200)
    """Widths of the dense layers."""
    latent_dim: int = 2
    """Two: the figure draws them."""
    learning_rate: float = 1e-3
    """Of Adam."""
    evaluate_every: int = 100
    """Epochs between evaluations, each with a checkpoint."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers(counts=("examples", "evaluate_every"), positive=("learning_rate",))
        if self.latent_dim != 2:
            raise ValueError(f"latent_dim must be 2, which the figure draws, got {self.latent_dim}")


def make_model(config: Any) -> dict[str, Any]:
    """Both models, from a run's config.json: "autoencoder" and "vae", as are the parameters."""
    shape, sizes = tuple(config.image_shape), tuple(config.hidden)
    decoder = jaxvae.MLPDecoder(shape, sizes[::-1])
    return {
        "autoencoder": jaxvae.Autoencoder(jaxvae.MLPDecoder((config.latent_dim,), sizes), decoder),
        "vae": jaxvae.VAE(jaxvae.MLPEncoder(config.latent_dim, sizes), decoder),
    }


def init_both(models: dict[str, Any], shape: Sequence[int], *, key: PRNGKey) -> tuple[PyTree, PyTree]:
    """The parameters of each, for x of this shape."""
    return {name: model.init(key, jnp.zeros((1, *shape))) for name, model in models.items()}, ()


def both_losses(
    models: dict[str, Any], params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey, step: Array
) -> tuple[Array, tuple[PyTree, Metrics]]:
    """Sum the two objectives: no parameter is in both, so Adam treats each as if the other were not there."""
    options = {"model_state": model_state, "batch": batch, "key": key, "step": step}
    autoencoder, _ = jaxvae.autoencoder_loss(models["autoencoder"], params["autoencoder"], **options)
    vae, (_, metrics) = jaxvae.vae_loss(models["vae"], params["vae"], **options)
    loss = autoencoder + vae
    return loss, (model_state, metrics | {"loss": loss, "autoencoder_distortion": autoencoder})


def run(config: Config) -> None:
    """Train both, measure both, draw both."""
    if config.smoke:
        config = dataclasses.replace(config, epochs=2, evaluate_every=1, examples=min(config.examples, 256))
    with user_errors():
        splits = load_splits(config)
        train, test = (dataset.take(slice(config.examples)) for dataset in (splits.train, splits.test))
        order = data.Order(len(train), config.batch_size, config.epochs, config.seed)
        this_run = Run("vae", config, image_shape=train.shape, levels=train.levels)
    models = make_model(SimpleNamespace(**this_run.settings))
    loss_fn = partial(both_losses, models)

    evaluate = {"train": evaluator(loss_fn, train), "test": evaluator(loss_fn, test)}
    state = this_run.train(
        *(partial(init_both, models, train.shape), loss_fn, optax.adam(config.learning_rate), train, order),
        evaluate=evaluate["test"],
        evaluate_every=config.evaluate_every * order.steps_per_epoch,
        split="test",
    )

    measured = (*ELBO_TERMS, "autoencoder_distortion")
    result: dict[str, Any] = {}
    for name, evaluate_one in evaluate.items():
        metrics = evaluate_one(state)
        result[name] = {quantity: metrics[quantity] for quantity in measured}
    this_run.finish(result | reached(state), lambda: save_pictures(this_run, models, state.params, train, test))


@file_errors()
def save_pictures(
    this_run: Run, models: dict[str, Any], params: PyTree, train: data.Dataset, test: data.Dataset
) -> list[Path]:
    """Both models beside each other, and the VAE's curves."""
    panels = {
        "autoencoder": _panel(models["autoencoder"], params["autoencoder"], train, test, lambda code: code),
        "VAE": _panel(models["vae"], params["vae"], train, test, lambda posterior: posterior.mean),
    }
    panels["autoencoder"] = panels["autoencoder"]._replace(prior=False)
    title = f"reconstructed test images; codes of {len(train)} training images; manifolds"
    return [
        figures.side_by_side(this_run.picture("illustration"), panels, title=title),
        figures.learning_curves(this_run.picture("learning_curves"), this_run.records(), title="VAE"),
    ]


def _panel(model: Any, params: PyTree, train: data.Dataset, test: data.Dataset, code_of: Any) -> figures.Panel:
    """What `figures.side_by_side` shows of one model."""

    @jax.jit
    def encode(x: Array) -> Array:
        return code_of(model.apply(params, x, method="encode"))

    @jax.jit
    def decode(code: Array) -> Array:
        return model.apply(params, code, method="decode").mean

    codes = encode(prepared(train, len(train))["x"])
    x = prepared(test, 20)["x"]
    latents = figures.prior_grid(GRID) if isinstance(model, jaxvae.VAE) else figures.code_grid(codes, GRID)
    labels = np.zeros(len(codes), np.int32) if train.label is None else train.label
    reconstructed, manifold = as_pictures(decode(encode(x))), as_pictures(decode(latents))
    return figures.Panel(x, reconstructed, codes, labels, latents, manifold)
