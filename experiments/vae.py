"""Train a variational autoencoder (Kingma and Welling, 2014) and measure it in nats.

  python -m experiments.vae digits   scikit-learn's 8×8 digits, 17-way categorical pixels, 16 latents
  python -m experiments.vae mnist    784-500-20 ReLU, Bernoulli pixels, dynamic binarisation (needs TFDS_DATA_DIR)

What each costs and which numbers to expect: experiments/README.md.
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
from experiments.run import Run, RunConfig, counter, parse, user_errors
from jaxvae import data, figures
from jaxvae.distributions import Bernoulli, Categorical
from jaxvae.types import Array, Batch, Prepare, PRNGKey, PyTree

EVALUATION_BATCH = 500
EVALUATION_SEED = 0  # the same binarised images and noise at every evaluation of every run
STREAM_ABOVE_BYTES = 2**30  # larger training sets stay on the host


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    data: str = "digits"
    """digits, or any image set that is prepared for tensorflow-datasets."""
    network: Literal["mlp", "conv"] = "mlp"
    """The body of encoder and decoder."""
    hidden: tuple[int, ...] = (500,)
    """Widths of the dense layers, or channels of the convolutions."""
    latent_dim: int = 20
    """Size of the latent. With 2, the run also draws the manifold and the codes."""
    likelihood: Literal["bernoulli", "categorical"] = "bernoulli"
    """Of a pixel."""
    binarize: bool = False
    """Draw each pixel as 0 or 1 with its grey value as probability: anew at every step, once for the test set."""
    beta: float = 1.0
    """Weight of the rate."""
    beta_warmup: int = 0
    """Epochs over which beta grows linearly from 0."""
    learning_rate: float = 1e-3
    """Of Adam."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the networks compute in; parameters and losses stay float32."""
    evaluate_every: int = 1
    """Epochs between evaluations, each with a checkpoint."""
    validation: int = 0
    """Training images to hold out. They then choose the best checkpoint; the test set never does."""
    patience: int | None = None
    """Stop after this many evaluations without progress on the validation images. Off unless given."""
    nll_samples: int = 1000
    """Importance samples per test image for -log p(x)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("latent_dim", "evaluate_every", "nll_samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (self.beta >= 0 and np.isfinite(self.beta)):
            raise ValueError(f"beta must be a finite number, zero or more, got {self.beta}")
        if not (self.learning_rate > 0 and np.isfinite(self.learning_rate)):
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate}")
        if self.patience is not None and not self.validation:
            raise ValueError("patience needs validation images: pass --validation N")


PRESETS = {
    "digits": (
        "scikit-learn's 1,797 digits of 8×8 pixels; needs no data.",
        Config(
            preset="digits",
            data="digits",
            network="conv",
            hidden=(32, 64),
            latent_dim=16,
            likelihood="categorical",
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
            batch_size=128,
            epochs=50,
            evaluate_every=2,
            nll_samples=100,
        ),
    ),
}


def make_model(config: Any) -> jaxvae.VAE:
    """The model of a run, from its config.json."""
    shape = tuple(config.image_shape)
    likelihood = {"bernoulli": Bernoulli, "categorical": Categorical}[config.likelihood]
    output_shape = (*shape, config.levels) if config.likelihood == "categorical" else shape
    sizes, dtype = tuple(config.hidden), jnp.dtype(config.dtype)
    if config.network == "mlp":
        encoder = jaxvae.MLPEncoder(config.latent_dim, sizes, dtype=dtype)
        decoder = jaxvae.MLPDecoder(output_shape, sizes[::-1], dtype=dtype)
    else:
        encoder = jaxvae.ConvEncoder(config.latent_dim, sizes, dtype=dtype)
        decoder = jaxvae.ConvDecoder(output_shape, sizes, dtype=dtype)
    return jaxvae.VAE(encoder, decoder, likelihood)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, draw."""
    config = parse(PRESETS, __doc__, argv)
    if config.smoke:
        few = min(config.validation, 64)
        config = dataclasses.replace(config, epochs=2, evaluate_every=1, validation=few, nll_samples=10)

    with user_errors():
        train, test = (data.load(config.data, s, progress=counter(f"decoding {s} images")) for s in ("train", "test"))
        if config.smoke:
            train, test = train.take(slice(256)), test.take(slice(256))
        validation = None
        if config.validation:
            train, validation = data.split_validation(train, config.validation, seed=config.seed)
        order = data.Order(len(train.image), config.batch_size, config.epochs, config.seed)
        run = Run("vae", config, image_shape=train.image.shape[1:], levels=train.levels)
        model = make_model(SimpleNamespace(**run.settings))

    beta = config.beta
    if config.beta_warmup:
        beta = optax.linear_schedule(0.0, config.beta, config.beta_warmup * order.steps_per_epoch)
    loss_fn = partial(jaxvae.vae_loss, model, beta=beta)
    optimizer = optax.adam(config.learning_rate)
    prepare = data.make_prepare(train.levels, binarize=config.binarize)

    def init(*, key: PRNGKey) -> tuple[PyTree, PyTree]:
        return model.init(key, jnp.zeros((1, *train.image.shape[1:]))), ()

    state = jaxvae.init_train_state(init, optimizer, key=jaxvae.seed_key(config.seed))
    with user_errors():
        state = run.restore(state)

    final_loss_fn = partial(jaxvae.vae_loss, model, beta=config.beta)  # what a warm-up warms up to
    evaluate = partial(
        jaxvae.make_evaluate(jaxvae.make_eval_step(final_loss_fn, prepare=prepare)), key=jax.random.key(EVALUATION_SEED)
    )
    held_out = data.evaluation_feed(test if validation is None else validation, EVALUATION_BATCH)
    make_feed = data.Streamed if train.image.nbytes > STREAM_ABOVE_BYTES else data.Resident
    state = run.fit(
        state,
        jaxvae.make_train_epoch(jaxvae.make_train_step(loss_fn, optimizer, prepare=prepare)),
        make_feed(train, order),
        evaluate=lambda state: jax.device_get(evaluate(state, *held_out)),
        evaluate_every=config.evaluate_every * order.steps_per_epoch,
        held_out="test" if validation is None else "validation",
        monitor=None if validation is None else "loss",
        patience=config.patience,
    )
    if validation is not None:
        state = run.best(state)

    test_feed = held_out if validation is None else data.evaluation_feed(test, EVALUATION_BATCH)
    measured, codes, pairs = measure(model, state, prepare, test_feed, config.nll_samples)
    metrics = jax.device_get(evaluate(state, *test_feed))
    result = {
        "test": {name: float(metrics[name]) for name in ("negative_elbo", "rate", "distortion")} | measured,
        "nll_samples": config.nll_samples,
        "step": int(state.step),
        "device": jax.devices()[0].device_kind,
    }
    run.finish(result, draw(run, model, state.params, codes, pairs, test.label))


def measure(
    model: jaxvae.VAE, state: jaxvae.TrainState, prepare: Prepare, feed: tuple[Batch, Array], nll_samples: int
) -> tuple[dict[str, float], np.ndarray, tuple[np.ndarray, np.ndarray]]:
    """Return the figures beyond the ELBO, the codes [N, D], and 32 images with their reconstructions."""

    def encode(params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> Array:
        del model_state, key
        return model.apply(params, batch["image"], method="encode").mean

    def reconstruct(params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> tuple[Array, Array]:
        latent = encode(params, model_state, batch, key=key)
        return batch["image"], model.apply(params, latent, method="decode").mean

    source, rows = feed
    look = {"key": jax.random.key(EVALUATION_SEED), "prepare": prepare}
    estimate = jaxvae.log_likelihood(
        partial(jaxvae.vae_log_weights, model),
        state.params,
        state.model_state,
        source,
        rows.reshape(-1, EVALUATION_BATCH // 5),  # each with its samples
        num_samples=nll_samples,
        progress=counter(f"-log p(x) with {nll_samples} samples, batch"),
        **look,
    )
    codes = jaxvae.map_batches(encode, state.params, state.model_state, source, rows, **look)
    pairs = jaxvae.map_batches(reconstruct, state.params, state.model_state, source, rows[:1, :32], **look)
    measured = {
        "nll": estimate.nll,
        "nll_standard_error": estimate.nll_standard_error,
        "active_units": jaxvae.active_units(codes),
    }
    return measured, codes, pairs


def draw(
    run: Run,
    model: jaxvae.VAE,
    params: PyTree,
    codes: np.ndarray,
    pairs: tuple[np.ndarray, np.ndarray],
    label: np.ndarray | None,
) -> list[Path]:
    """Draw the pictures of a run and return their paths: test codes [N, D], images and their reconstructions."""

    @jax.jit
    def decode(latent: Array) -> Array:
        return model.apply(params, latent, method="decode").mean

    samples = model.apply(params, 100, key=jax.random.key(1), method="sample").mean
    start, end = codes[:8, None], codes[8:16, None]
    share = np.linspace(0, 1, 11, dtype=np.float32)[:, None]
    between = np.asarray(decode(((1 - share) * start + share * end).reshape(-1, codes.shape[-1])))
    out = run.directory
    paths = [
        figures.reconstructions(out / "reconstructions.png", *pairs),
        figures.image_grid(out / "samples.png", np.asarray(samples), title="samples from the prior (means)"),
        figures.interpolation(out / "interpolation.png", between.reshape(8, 11, *between.shape[1:])),
        figures.learning_curves(out / "learning_curves.png", run.records()),
    ]
    if codes.shape[-1] == 2:
        paths += [
            figures.manifold(out / "manifold.png", decode),
            figures.latent_scatter(out / "codes.png", codes, label, title="test codes"),
        ]
    return paths


if __name__ == "__main__":
    main()
