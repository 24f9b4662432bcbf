"""Train a VQ-VAE (van den Oord, Vinyals and Kavukcuoglu, 2017) with a codebook that follows by moving averages.

  python -m experiments.vq_vae digits   scikit-learn's 8×8 digits, 17-way categorical pixels; needs no data
  python -m experiments.vq_vae mnist    grey MNIST, 7×7 positions, 128 codes (needs TFDS_DATA_DIR)
  python -m experiments.vq_vae cifar10  the authors' network, 8×8 positions, 512 codes (needs TFDS_DATA_DIR)
  python -m experiments.vq_vae speech   drawn vowels and chirps, 128 positions of 16 samples; needs no data
  python -m experiments.vq_vae video    drawn moving sprites, 4×8×8 positions; needs no data

A prior over its codes, which makes it generate: python -m experiments.prior RUN_DIRECTORY (a transformer, which several
codes a position need) or python -m experiments.pixelcnn RUN_DIRECTORY. What each costs and which numbers to expect:
experiments/README.md.
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
from experiments.codes import codebook_health, indices_of, make_quantizer, parts_of, usage_of
from experiments.command import RunConfig, console, file_errors, parse, user_errors
from experiments.report import Evaluate, evaluator, prepared
from experiments.run import InitFn, Run, reached
from experiments.signals import FEW, SIGNALS, save_reconstructions
from experiments.splits import Splits, check_256_levels, load_splits
from jaxvae import data, figures
from jaxvae.distributions import Categorical
from jaxvae.losses import bits_per_dim
from jaxvae.models.vq_vae import signed_gaussian, unit_gaussian
from jaxvae.networks import logistic_image
from jaxvae.types import Array, LossFn, PRNGKey, PyTree

SEEDING_IMAGES, SEEDING_VIDEOS = 256, 64  # whose vectors the codebook starts from
JPEG_CAVEAT = "this copy of CIFAR-10 was once stored as JPEG: compare its errors with those of the same copy only"


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    data: str = "cifar10"
    """digits, speech, moving_sprites, or any image set that is prepared for tensorflow-datasets."""
    num_codes: int = 512
    """K, of each quantiser; a power of two for those without a codebook."""
    code_dim: int = 64
    """D, of all codebooks of a position together."""
    groups: int = 1
    """Quantisers side by side, each for a slice of the vector."""
    channels: tuple[int, ...] = (64, 128)
    """Of the convolutions, each of which halves every axis of the image, sound or video."""
    window: int = 4
    """Of those convolutions."""
    blocks: int = 2
    """Residual blocks."""
    residual: int = 32
    """Channels inside a block."""
    likelihood: Literal["squared-error", "categorical", "discretized-logistic"] = "squared-error"
    """squared-error: over the variance of the training data. The others are nats, and so give bits per dimension."""
    codes: Literal["ema", "gradient", "cosine", "sim", "gumbel", "finite-scalar", "lookup-free", "spherical"] = "ema"
    """ema: codes that follow by moving averages; gradient: by the paper's second term; cosine: ema, compared by
    direction; sim: constant under a learned map (SimVQ); gumbel: drawn from a categorical posterior (a discrete VAE);
    the others have no codebook (FSQ, LFQ, BSQ)."""
    depth: int = 1
    """Residual levels: quantisers one after the other, each of what the ones before have left."""
    project: int = 0
    """Dimensions that a learned map takes the vectors to before they are quantised; 0: none, or as many as it needs."""
    estimator: Literal["straight-through", "rotation"] = "straight-through"
    """How the decoder's gradient passes the choice of a code."""
    code_temperature: float = 0.0
    """At which training draws the codes, in squared distances; 0: the nearest."""
    gumbel_temperature: float = 0.0625
    """Of --codes gumbel: what the temperature of the relaxed draws falls to, from 1, by a cosine over all epochs."""
    kl_weight: float = 5e-4
    """Of --codes gumbel: the weight of the KL to uniform codes, a mean over the positions, in nats."""
    level_dropout: float = 0.0
    """How often training uses the first residual levels alone."""
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
        self.check_numbers(
            counts=("code_dim", "groups", "depth", "channels", "window", "residual", "evaluate_every"),
            weights=("commitment", "entropy_weight", "code_temperature", "kl_weight"),
            positive=("learning_rate",),
        )
        if self.blocks < 0:
            raise ValueError(f"blocks must be zero or more, got {self.blocks}")
        if self.code_dim % self.groups:
            raise ValueError(f"code_dim {self.code_dim} does not divide into {self.groups} groups")
        if self.codes == "gumbel" and (self.code_temperature or self.estimator != "straight-through"):
            raise ValueError("code_temperature and estimator are not for --codes gumbel, which mixes its codes")
        if not 0 < self.gumbel_temperature <= 1:
            raise ValueError(f"gumbel_temperature must lie in (0, 1], got {self.gumbel_temperature}")
        if not 0 < self.decay < 1:
            raise ValueError(f"decay must lie in (0, 1), got {self.decay}")
        if not 0 <= self.restart_threshold < 1:
            raise ValueError(f"restart_threshold must lie in [0, 1), got {self.restart_threshold}")
        if self.entropy_weight and self.codes not in ("ema", "cosine"):
            raise ValueError("entropy_weight needs the frequencies of --codes ema or cosine")
        if self.project < 0 or (self.project and self.codes in ("finite-scalar", "lookup-free", "spherical")):
            raise ValueError(f"project must be zero or more, and 0 for {self.codes}, got {self.project}")


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
    "speech": (
        "Vowels and chirps, 2,048 samples each: 128 positions, 256 codes of 32 dimensions.",
        Config(
            preset="speech",
            data="speech",
            num_codes=256,
            code_dim=32,
            channels=(32, 64, 64, 64),
            epochs=30,
            batch_size=32,
            learning_rate=1e-3,
            schedule="cosine",
            evaluate_every=325,
        ),
    ),
    "video": (
        "Moving sprites, 16 frames of 32×32 pixels: 4×8×8 positions, 128 codes of 16 dimensions.",
        Config(
            preset="video",
            data="moving_sprites",
            num_codes=128,
            code_dim=16,
            channels=(16, 32),
            blocks=1,
            residual=16,
            decay=0.95,  # most of a video is black: slower averages lose the few vectors that are not
            epochs=8,
            batch_size=16,
            learning_rate=1e-3,
            schedule="cosine",
            evaluate_every=187,
        ),
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
    *spatial, channels = config.image_shape
    sound = config.levels is None  # in [-1, 1]
    likelihood, output = {
        "squared-error": (signed_gaussian if sound else unit_gaussian, channels),
        "categorical": (Categorical, (channels, config.levels)),
        "discretized-logistic": (jaxvae.PixelScale(logistic_image), (channels, 2)),
    }[config.likelihood]
    encoder = jaxvae.ResidualEncoder(config.code_dim, **body, centre=0.0 if sound else 0.5)
    decoder = jaxvae.ResidualDecoder(output, **body, spatial=tuple(spatial))
    return jaxvae.VQVAE(encoder, decoder, make_quantizer(config), likelihood)


def make_init(config: Config, model: jaxvae.VQVAE, first: Array) -> InitFn:
    """Networks from the key; the codebook from the first images' vectors, seen through those networks."""

    def init(*, key: PRNGKey) -> tuple[PyTree, PyTree]:
        x = jax.lax.optimization_barrier(first)  # otherwise XLA computes with it, for minutes, while it compiles
        network_key, code_key = jax.random.split(key)
        params = model.init(network_key, x[:1])
        if config.groups == 1:
            code_key = jax.random.split(code_key, 1)[0]  # as `Grouped` gives one to each
        encoded = model.apply(params, x, method="encode") if config.seeding == "kmeans" else None
        codes, state = model.quantizer.init(config.code_dim, key=code_key, encoded=encoded)
        return params | ({"quantizer": codes} if codes else {}), {"quantizer": state} if state else ()

    return init


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, draw."""
    config = parse(PRESETS, __doc__, argv)
    if config.smoke:
        config = dataclasses.replace(config, epochs=1, evaluate_every=4)

    with user_errors():
        make_quantizer(SimpleNamespace(**vars(config), total_steps=1))  # whose own checks name what does not fit
        signals = config.data in SIGNALS
        splits = load_splits(config, few=FEW if signals else (512, 256), pictures=not signals)
        train, test = splits.train, splits.test
        if train.levels is None and config.likelihood != "squared-error":
            raise ValueError(f"sound is measured by squared-error, got --likelihood {config.likelihood}")
        if config.likelihood == "discretized-logistic":
            check_256_levels(train)
        order = data.Order(len(train), config.batch_size, config.epochs, config.seed)
        decay = {"decay_epochs": config.epochs} if config.schedule == "cosine" else {}
        falling = {"total_steps": order.total_steps} if config.codes == "gumbel" else {}
        run = Run("vq_vae", config, image_shape=train.shape, levels=train.levels, **decay, **falling)
        model = make_model(SimpleNamespace(**run.settings))
    if config.data == "cifar10":
        console.print(JPEG_CAVEAT, highlight=False)
    state, measured, variance = train_model(run, config, model, splits, order)

    indices = indices_of(model, state, test)
    positions = indices[0].size
    if config.likelihood != "squared-error":  # the codes cost log K each, until a prior knows them better
        nats = measured["distortion"] + positions * float(np.log(config.num_codes))
        measured["bits_per_dim_uniform_prior"] = bits_per_dim(nats, test.x[0].size)
    result: dict[str, Any] = {"test": measured, "positions": positions, "variance": variance}
    if config.data == "cifar10":
        result["caveat"] = JPEG_CAVEAT
    run.finish(result | reached(state), lambda: save_pictures(run, config, model, state, test, indices))


def train_model(
    run: Run, config: Config, model: jaxvae.VQVAE, splits: Splits, order: data.Order
) -> tuple[jaxvae.TrainState, dict[str, float], float | None]:
    """The trained state, its figures on the test images, and the training data's variance where it is the unit."""
    train = splits.train
    images = train.x.ndim == 4  # scaled on the host: a device rounds 1/255 in another way
    scaled = train.x / np.float32(train.levels - 1) if images else np.asarray(prepared(train, len(train))["x"])
    variance = float(scaled.var(dtype=np.float64)) if config.likelihood == "squared-error" else None
    seeding = SEEDING_VIDEOS if scaled.ndim == 5 else SEEDING_IMAGES
    first = jnp.asarray(scaled[order.indices(0, -(-seeding // config.batch_size)).ravel()])
    learning_rate: Any = config.learning_rate
    if config.schedule == "cosine":
        learning_rate = optax.cosine_decay_schedule(config.learning_rate, order.total_steps)
    loss_fn = partial(jaxvae.vq_vae_loss, model, variance=variance, commitment_weight=config.commitment)
    evaluate = make_evaluate(config, model, loss_fn, splits.test)
    state = run.train(
        make_init(config, model, first),
        *(loss_fn, optax.adam(learning_rate), train, order),
        evaluate=evaluate,
        evaluate_every=config.evaluate_every,
        split="test",
    )
    measured = evaluate(state)
    if variance is not None:  # a peak has 1 in a picture; sound is compared with its own power
        power = 1.0 if train.levels else float(np.square(splits.test.x, dtype=np.float64).mean())
        ratio = power / (measured["distortion"] * variance)
        measured["psnr" if train.levels else "snr"] = 10 * float(np.log10(ratio))
    return state, measured, variance


def make_evaluate(config: Config, model: jaxvae.VQVAE, loss_fn: LossFn, test: data.Dataset) -> Evaluate:
    """Return `state -> metrics`: losses, and the codebook's health over the whole set."""
    evaluate_loss = evaluator(loss_fn, test)

    def evaluate(state: jaxvae.TrainState) -> dict[str, float]:
        losses = evaluate_loss(state)
        kept = {name: losses[name] for name in ("loss", "distortion", "commitment")}
        return kept | codebook_health(indices_of(model, state, test), config.num_codes, parts_of(config))

    return evaluate


@file_errors()
def save_pictures(
    run: Run,
    config: Config,
    model: jaxvae.VQVAE,
    state: jaxvae.TrainState,
    test: data.Dataset,
    indices: np.ndarray,
) -> list[Path]:
    """Reconstructions, index maps of images, the codebook's usage and its health over the run."""
    x = np.asarray(prepared(test, 32)["x"])
    decode = jax.jit(lambda *variables: model.decode_indices(*variables).mean)  # in one program, not one an operation
    reconstructed = decode(state.params, state.model_state, jnp.asarray(indices[:32]))
    return [
        *save_reconstructions(
            *(run.directory, test, x, np.asarray(reconstructed), indices),
            suffix=f".{config.picture_format}",
            num_codes=config.num_codes,
        ),
        figures.code_usage(
            run.picture("code_usage"),
            usage_of(indices, config.num_codes, parts_of(config)),
            title="codes of the test set",
        ),
        figures.codebook_health(run.picture("codebook_health"), run.records(), title="the codebook while it trained"),
    ]


if __name__ == "__main__":
    main()
