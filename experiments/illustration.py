"""An autoencoder beside a VAE: the same networks, the same few images, two latents.

Run it by `python -m experiments.vae illustration`.

The autoencoder's codes lie where they like, with gaps between them; the VAE's fill the prior, so that any point of it
decodes to something. One figure shows both: reconstructions, codes and manifolds.
"""

import dataclasses
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxvae
from experiments.report import EVALUATION_BATCH, EVALUATION_SEED
from experiments.run import Run, RunConfig, counter, file_errors, user_errors
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
        for name in ("examples", "evaluate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.latent_dim != 2:
            raise ValueError(f"latent_dim must be 2, which the figure draws, got {self.latent_dim}")
        if not (self.learning_rate > 0 and np.isfinite(self.learning_rate)):
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate}")


def make_model(config: Any) -> dict[str, Any]:
    """Both models, from a run's config.json: "autoencoder" and "vae", as are the parameters."""
    shape, sizes = tuple(config.image_shape), tuple(config.hidden)
    decoder = jaxvae.MLPDecoder(shape, sizes[::-1])
    return {
        "autoencoder": jaxvae.Autoencoder(jaxvae.MLPDecoder((config.latent_dim,), sizes), decoder),
        "vae": jaxvae.VAE(jaxvae.MLPEncoder(config.latent_dim, sizes), decoder),
    }


def both_losses(
    models: dict[str, Any], params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey, step: Array
) -> tuple[Array, tuple[PyTree, Metrics]]:
    """Sum the two objectives: no parameter is in both, so Adam treats each as if it were alone."""
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
        train, test = (data.load(config.data, s, progress=counter(f"decoding {s} images")) for s in ("train", "test"))
        train, test = train.take(slice(config.examples)), test.take(slice(config.examples))
        order = data.Order(len(train.image), config.batch_size, config.epochs, config.seed)
        this_run = Run("vae", config, image_shape=train.image.shape[1:], levels=train.levels)
    models = make_model(SimpleNamespace(**this_run.settings))
    loss_fn = partial(both_losses, models)
    optimizer = optax.adam(config.learning_rate)
    prepare = data.make_prepare(train.levels)

    def init(*, key: PRNGKey) -> tuple[PyTree, PyTree]:
        images = jnp.zeros((1, *train.image.shape[1:]))
        return {name: model.init(key, images) for name, model in models.items()}, ()

    evaluate = partial(
        jaxvae.make_evaluate(jaxvae.make_eval_step(loss_fn, prepare=prepare)), key=jax.random.key(EVALUATION_SEED)
    )
    feeds = {name: data.evaluation_feed(split, EVALUATION_BATCH) for name, split in (("train", train), ("test", test))}
    state = this_run.train(
        *(init, loss_fn, optimizer, train, order),
        prepare=prepare,
        evaluate=lambda state: jax.device_get(evaluate(state, *feeds["test"])),
        evaluate_every=config.evaluate_every * order.steps_per_epoch,
        held_out="test",
    )

    shown = ("negative_elbo", "rate", "distortion", "autoencoder_distortion")
    result: dict[str, Any] = {}
    for name, feed in feeds.items():
        metrics = jax.device_get(evaluate(state, *feed))
        result[name] = {quantity: float(metrics[quantity]) for quantity in shown}
    panels = {
        "autoencoder": _panel(models["autoencoder"], state.params["autoencoder"], train, test, lambda code: code),
        "VAE": _panel(models["vae"], state.params["vae"], train, test, lambda posterior: posterior.mean),
    }
    panels["autoencoder"] = panels["autoencoder"]._replace(prior=False)
    out = this_run.directory
    with file_errors():
        pictures = [
            figures.side_by_side(
                out / "illustration.png",
                panels,
                title=f"reconstructed test images; codes of {len(train.image)} training images; manifolds",
            ),
            figures.learning_curves(out / "learning_curves.png", this_run.records(), title="VAE"),
        ]
    this_run.finish(result | {"step": int(state.step), "device": jax.devices()[0].device_kind}, pictures)


def _panel(model: Any, params: PyTree, train: data.ImageSet, test: data.ImageSet, code_of: Any) -> figures.Panel:
    """What `figures.side_by_side` shows of one model."""

    @jax.jit
    def encode(image: Array) -> Array:
        return code_of(model.apply(params, image, method="encode"))

    @jax.jit
    def decode(code: Array) -> Array:
        return model.apply(params, code, method="decode").mean

    def scaled(images: np.ndarray) -> Array:
        return data.make_prepare(train.levels)({"image": jnp.asarray(images)}, key=jax.random.key(0))["image"]

    codes = encode(scaled(train.image))
    images = scaled(test.image[:20])
    latents = figures.prior_grid(GRID) if isinstance(model, jaxvae.VAE) else figures.code_grid(codes, GRID)
    labels = np.zeros(len(codes), np.int32) if train.label is None else train.label
    return figures.Panel(images, decode(encode(images)), codes, labels, latents, decode(latents))
