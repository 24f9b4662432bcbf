"""Train a VQ-VAE (van den Oord, Vinyals and Kavukcuoglu, 2017) with a codebook that follows by moving averages.

  python -m experiments.vq_vae digits   scikit-learn's 8×8 digits, 17-way categorical pixels; needs no data
  python -m experiments.vq_vae mnist    grey MNIST, 7×7 positions, 128 codes (needs TFDS_DATA_DIR)
  python -m experiments.vq_vae cifar10  the authors' network, 8×8 positions, 512 codes (needs TFDS_DATA_DIR)

A prior over its codes, which makes it generate: python -m experiments.pixelcnn RUN_DIRECTORY. What each costs and which
numbers to expect: experiments/README.md.
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
from experiments.report import EVALUATION_BATCH, EVALUATION_SEED, shown
from experiments.run import Run, RunConfig, console, counter, file_errors, parse, user_errors
from jaxvae import codebook, data, figures
from jaxvae.distributions import Categorical
from jaxvae.models.vq_vae import code_costs
from jaxvae.networks import check_halvings
from jaxvae.types import Array, Batch, LossFn, PRNGKey, PyTree

SEEDING_IMAGES = 256  # whose vectors the codebook starts from
JPEG_CAVEAT = "this copy of CIFAR-10 was once stored as JPEG: compare its errors with those of the same copy only"


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    data: str = "cifar10"
    """digits, or any image set that is prepared for tensorflow-datasets."""
    num_codes: int = 512
    """K, of each codebook."""
    code_dim: int = 64
    """D, of all codebooks of a position together."""
    groups: int = 1
    """Codebooks per position, each for a slice of the vector."""
    channels: tuple[int, ...] = (64, 128)
    """Of the convolutions, each of which halves the image."""
    window: int = 4
    """Of those convolutions."""
    blocks: int = 2
    """Residual blocks."""
    residual: int = 32
    """Channels inside a block."""
    likelihood: Literal["squared-error", "categorical", "discretized-logistic"] = "squared-error"
    """squared-error: over the variance of the training data. The others are nats, and so give bits per dimension."""
    codes: Literal["ema", "gradient"] = "ema"
    """What moves the codes: moving averages, or the second term of the paper's loss."""
    commitment: float = 0.25
    """Weight of the commitment."""
    decay: float = 0.99
    """Of the moving averages."""
    restart_threshold: float = 0.1
    """Codes below this share of the uniform frequency restart; 0 never restarts."""
    seeding: Literal["kmeans", "random"] = "kmeans"
    """Where the codes start: spread over the first images' vectors, or at random."""
    entropy_weight: float = 0.0
    """Of a code's -log frequency, added to its squared distance: for codes that a prior predicts better."""
    learning_rate: float = 3e-4
    """Of Adam."""
    schedule: Literal["constant", "cosine"] = "constant"
    """cosine: the learning rate falls to 0 over all epochs."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the networks compute in; codebook, parameters and losses stay float32."""
    evaluate_every: int = 1000
    """Steps between evaluations, each with a checkpoint."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_codes < 2:
            raise ValueError(f"num_codes must be at least 2, got {self.num_codes}")
        for name in ("code_dim", "groups", "channels", "window", "residual", "evaluate_every"):
            if np.min(getattr(self, name), initial=1) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.blocks < 0:
            raise ValueError(f"blocks must be zero or more, got {self.blocks}")
        if self.code_dim % self.groups:
            raise ValueError(f"code_dim {self.code_dim} does not divide into {self.groups} groups")
        if not 0 < self.decay < 1:
            raise ValueError(f"decay must lie in (0, 1), got {self.decay}")
        if not 0 <= self.restart_threshold < 1:
            raise ValueError(f"restart_threshold must lie in [0, 1), got {self.restart_threshold}")
        if not (self.learning_rate > 0 and np.isfinite(self.learning_rate)):
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate}")
        for name in ("commitment", "entropy_weight"):
            if not (getattr(self, name) >= 0 and np.isfinite(getattr(self, name))):
                raise ValueError(f"{name} must be a finite number, zero or more, got {getattr(self, name)}")
        if self.entropy_weight and self.codes == "gradient":
            raise ValueError("entropy_weight needs the frequencies of --codes ema")


PRESETS = {
    "digits": (
        "scikit-learn's digits: 4×4 positions, 32 codes, 17-way categorical pixels.",
        Config(
            preset="digits",
            data="digits",
            num_codes=32,
            code_dim=16,
            channels=(32,),
            blocks=1,
            likelihood="categorical",
            epochs=60,
            batch_size=64,
            learning_rate=1e-3,
            evaluate_every=220,
        ),
    ),
    "mnist": (
        "Grey MNIST: 7×7 positions, 128 codes of 16 dimensions.",
        Config(
            preset="mnist",
            data="mnist",
            num_codes=128,
            code_dim=16,
            channels=(32, 64),
            window=3,
            blocks=0,
            commitment=1.0,
            entropy_weight=0.15,  # for a prior; see experiments/README.md
            epochs=10,
            batch_size=128,
            learning_rate=4e-3,
            schedule="cosine",
            evaluate_every=468,
        ),
    ),
    "cifar10": (
        "CIFAR-10 with the authors' network: 8×8 positions, 512 codes of 64 dimensions.",
        Config(preset="cifar10", epochs=2, batch_size=32),
    ),
}


def make_model(config: Any) -> jaxvae.VQVAE:
    """The model of a run, from its config.json."""
    body = {
        "channels": tuple(config.channels),
        "blocks": config.blocks,
        "residual": config.residual,
        "window": config.window,
        "dtype": jnp.dtype(config.dtype),
    }
    channels = config.image_shape[-1]
    likelihood, output = {
        "squared-error": (jaxvae.unit_gaussian, channels),
        "categorical": (Categorical, (channels, config.levels)),
        "discretized-logistic": (jaxvae.PixelScale(jaxvae.logistic_image), (channels, 2)),
    }[config.likelihood]
    encoder = jaxvae.ResidualEncoder(config.code_dim, **body)
    return jaxvae.VQVAE(encoder, jaxvae.ResidualDecoder(output, **body), likelihood)


def make_init(config: Config, model: jaxvae.VQVAE, first: Array) -> Any:
    """Networks from the key; the codebook from the first images' vectors, seen through those networks."""
    dim = config.code_dim // config.groups

    def init(*, key: PRNGKey) -> tuple[PyTree, PyTree]:
        network_key, code_key = jax.random.split(key)
        params = model.init(network_key, first[:1])
        keys = jax.random.split(code_key, config.groups)
        if config.seeding == "kmeans":
            encoded = model.apply(params, first, method="encode").reshape(-1, config.groups, dim)
            seed = partial(codebook.seed_codebook, num_codes=config.num_codes)
            state = jax.vmap(lambda each, key: seed(each, key=key), in_axes=(1, 0))(encoded, keys)
        else:
            state = jax.vmap(lambda key: codebook.init_codebook(config.num_codes, dim, key=key))(keys)
        if config.groups == 1:
            state = jax.tree.map(lambda leaf: leaf[0], state)
        if config.codes == "gradient":
            return {**params, "codebook": {"codes": jaxvae.code_vectors(params, state)}}, ()
        return params, state

    return init


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, draw."""
    config = parse(PRESETS, __doc__, argv)
    if config.smoke:
        config = dataclasses.replace(config, epochs=1, evaluate_every=4)

    with user_errors():
        train, test = (data.load(config.data, s, progress=counter(f"decoding {s} images")) for s in ("train", "test"))
        if config.smoke:
            train, test = train.take(slice(512)), test.take(slice(256))
        if config.likelihood == "discretized-logistic" and train.levels != 256:
            raise ValueError(
                f"discretized-logistic is for 256-valued pixels; {config.data!r} has {train.levels} values"
            )
        check_halvings(train.image.shape[1:], config.channels)
        order = data.Order(len(train.image), config.batch_size, config.epochs, config.seed)
        decay = {"decay_epochs": config.epochs} if config.schedule == "cosine" else {}
        run = Run("vq_vae", config, image_shape=train.image.shape[1:], levels=train.levels, **decay)
        model = make_model(SimpleNamespace(**run.settings))
    if config.data == "cifar10":
        console.print(JPEG_CAVEAT, highlight=False)

    prepare = data.make_prepare(train.levels)
    scaled = train.image / np.float32(train.levels - 1)
    variance = float(scaled.var(dtype=np.float64)) if config.likelihood == "squared-error" else None
    first = jnp.asarray(scaled[order.rows(0, -(-SEEDING_IMAGES // config.batch_size)).ravel()])
    learning_rate: Any = config.learning_rate
    if config.schedule == "cosine":
        learning_rate = optax.cosine_decay_schedule(config.learning_rate, order.total_steps)
    loss_fn = make_objective(config, model, variance)
    evaluate_loss = partial(
        jaxvae.make_evaluate(jaxvae.make_eval_step(loss_fn, prepare=prepare)), key=jax.random.key(EVALUATION_SEED)
    )
    held_out = data.evaluation_feed(test, EVALUATION_BATCH)

    def evaluate(state: jaxvae.TrainState) -> dict[str, float]:
        losses = jax.device_get(evaluate_loss(state, *held_out))
        indices = indices_of(model, state.params, state.model_state, prepare, held_out, config.entropy_weight)
        kept = {name: float(losses[name]) for name in ("loss", "distortion", "commitment")}
        return kept | codebook_health(indices, config.num_codes, config.groups)

    state = run.train(
        make_init(config, model, first),
        *(loss_fn, optax.adam(learning_rate), train, order),
        prepare=prepare,
        evaluate=evaluate,
        evaluate_every=config.evaluate_every,
        held_out="test",
    )
    measured = evaluate(state)
    if variance is not None:
        measured["psnr"] = -10 * float(np.log10(measured["distortion"] * variance))
    indices = indices_of(model, state.params, state.model_state, prepare, held_out, config.entropy_weight)
    positions = indices[0].size
    if config.likelihood != "squared-error":  # the codes cost log K each, until a prior knows them better
        nats = measured["distortion"] + positions * float(np.log(config.num_codes))
        measured["bits_per_dim_uniform_prior"] = jaxvae.bits_per_dim(nats, test.image[0].size)
    result: dict[str, Any] = {"test": measured, "positions": positions, "variance": variance}
    if config.data == "cifar10":
        result["caveat"] = JPEG_CAVEAT
    result |= {"step": int(state.step), "device": jax.devices()[0].device_kind}
    run.finish(result, draw(run, config, model, state, test, prepare, indices))


def make_objective(config: Config, model: jaxvae.VQVAE, variance: float | None) -> LossFn:
    """What the run minimises."""
    return partial(
        jaxvae.vq_vae_loss,
        model,
        variance=variance,
        commitment_weight=config.commitment,
        decay=config.decay,
        restart_threshold=config.restart_threshold,
        entropy_weight=config.entropy_weight,
    )


@file_errors()
def draw(
    run: Run,
    config: Config,
    model: jaxvae.VQVAE,
    state: jaxvae.TrainState,
    test: data.ImageSet,
    prepare: Any,
    indices: np.ndarray,
) -> list[Path]:
    """Reconstructions, index maps, the codebook's usage and its health over the run."""
    images = np.asarray(prepare({"image": jnp.asarray(test.image[:32])}, key=jax.random.key(0))["image"])
    codes = jaxvae.code_vectors(state.params, state.model_state)
    reconstructed = shown(model.apply(state.params, jnp.asarray(indices[:32]), codes, method="decode_indices").mean)
    by_group = indices.reshape(-1, config.groups).T
    usage = np.stack([np.bincount(each, minlength=config.num_codes) for each in by_group]) / by_group.shape[1]
    out = run.directory
    return [
        figures.reconstructions(out / "reconstructions.png", images, reconstructed),
        figures.index_maps(
            out / "index_maps.png", images[:10], indices[:10], reconstructed[:10], num_codes=config.num_codes
        ),
        figures.code_usage(out / "code_usage.png", usage),
        figures.codebook_health(out / "codebook_health.png", run.records()),
    ]


def indices_of(
    model: jaxvae.VQVAE,
    params: PyTree,
    model_state: PyTree,
    prepare: Any,
    feed: tuple[Batch, Array],
    entropy_weight: float = 0.0,
) -> np.ndarray:
    """The indices of all images of a feed, [N, *positions], or [N, *positions, G]."""
    key = jax.random.key(EVALUATION_SEED)
    return jaxvae.map_batches(
        partial(choose_indices, model, entropy_weight), params, model_state, *feed, key=key, prepare=prepare
    )


def codebook_health(indices: np.ndarray, num_codes: int, groups: int) -> dict[str, float]:
    """Perplexity and codes in use over a whole set; the mean over the groups."""
    by_group = indices.reshape(-1, groups)
    usage = np.stack([np.bincount(each, minlength=num_codes) for each in by_group.T]) / len(by_group)
    perplexity = [float(codebook.perplexity(jnp.asarray(each, jnp.float32))) for each in usage]
    return {"perplexity": float(np.mean(perplexity)), "codes_used": float((usage > 0).sum(axis=1).mean())}


def choose_indices(
    model: jaxvae.VQVAE, entropy_weight: float, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey
) -> Array:
    """The indices of a batch, [B, *positions], or [B, *positions, G]."""
    del key
    codes, costs = jaxvae.code_vectors(params, model_state), code_costs(model_state, entropy_weight)
    return model.apply(params, batch["image"], codes, costs, method="encode_indices")


if __name__ == "__main__":
    main()
