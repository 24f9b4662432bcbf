"""Train a variational autoencoder (Kingma and Welling, 2014) and measure it in nats.

  python -m experiments.vae digits   scikit-learn's 8×8 digits, 17-way categorical pixels, 16 latents
  python -m experiments.vae mnist    784-500-20 ReLU, Bernoulli pixels, dynamic binarisation (needs TFDS_DATA_DIR)
  python -m experiments.vae burda    table 1 of Burda et al. (2016): VAE and IWAE, one or two stochastic layers
  python -m experiments.vae linear   a linear VAE on MNIST against its closed form, probabilistic PCA
  python -m experiments.vae cifar10  convolutions, discretised logistic pixels, bits per dimension
  python -m experiments.vae illustration   an autoencoder beside a VAE, 1000 images, two latents

What each costs and which numbers to expect: experiments/README.md.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import jaxvae
from experiments import illustration
from experiments.command import RunConfig, console, parse, user_errors
from experiments.drawing import draw_means
from experiments.report import Report, elbo_terms, evaluators, measure, save_pictures
from experiments.run import InitFn, Run, init_of, reached
from experiments.splits import Splits, check_256_levels, load_splits
from jaxvae import data
from jaxvae.distributions import Bernoulli, Categorical, DiagGaussian
from jaxvae.evaluation import classical
from jaxvae.keys import seed_key
from jaxvae.losses import bits_per_dim
from jaxvae.models import linear_vae
from jaxvae.networks import logistic_image
from jaxvae.objectives import linear_vae_loss
from jaxvae.types import Array, LossFn, PRNGKey, PyTree, Schedule


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    data: str = "digits"
    """digits, or any image set that is prepared for tensorflow-datasets."""
    network: Literal["mlp", "conv", "burda", "linear"] = "mlp"
    """The body of encoder and decoder. burda: tanh layers, started as in Burda et al. (2016)."""
    hidden: tuple[int, ...] = (500,)
    """Widths of the dense layers, or channels of the convolutions."""
    latent_dim: int = 20
    """Size of the latent. With 2, the run also draws the manifold and the codes."""
    stochastic_layers: Literal[1, 2] = 1
    """With 2 (burda only), a layer of twice the latent's size lies between the latent and the image."""
    likelihood: Literal[
        "bernoulli", "categorical", "discretized-logistic", "gaussian", "shared-gaussian", "pixel-gaussian"
    ] = "bernoulli"
    """Of a pixel. Gaussians: of variance 1, of one learned variance (the σ-VAE), of one for each pixel."""
    objective: Literal["vae", "iwae"] = "vae"
    """The ELBO, or the importance weighted bound."""
    num_samples: int = 1
    """Draws of the latent for each image in the objective (k)."""
    doubly_reparameterized: bool = False
    """Of iwae: the gradient of Tucker et al. (2019) for the encoder."""
    binarize: bool = False
    """Draw each pixel as 0 or 1 with its grey value as probability: anew at every step, once for the test set."""
    beta: float = 1.0
    """Weight of the rate."""
    beta_warmup: int = 0
    """Epochs over which beta grows linearly from 0."""
    learning_rate: float = 1e-3
    """Of Adam."""
    adam_epsilon: float = 1e-8
    """Of Adam."""
    schedule: Literal["constant", "cosine", "burda"] = "constant"
    """cosine: the learning rate falls to 0 over all epochs, which cannot then change. burda: the learning rate times
    10^(-i/7) for 3^i passes, i = 0 .. 7: 3280 passes, 121 with i = 4, 364 with i = 5."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the networks compute in; parameters and losses stay float32."""
    evaluate_every: int = 1
    """Epochs between evaluations, each with a checkpoint."""
    validation: int = 0
    """Training images kept for validation. They then choose the best checkpoint; the test set never does."""
    patience: int | None = None
    """Stop after this many evaluations without progress on the validation images. Off unless given."""
    nll_samples: int = 1000
    """Importance samples per test image for -log p(x)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers(
            counts=("latent_dim", "hidden", "evaluate_every", "nll_samples", "num_samples"),
            weights=("beta",),
            positive=("learning_rate", "adam_epsilon"),
        )
        if self.beta_warmup < 0:
            raise ValueError(f"beta_warmup must be zero or more, got {self.beta_warmup}")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience must be at least 1, got {self.patience}")
        if self.patience is not None and not self.validation:
            raise ValueError("patience needs validation images: pass --validation N")
        sampled = self.objective == "iwae" or self.stochastic_layers == 2
        if sampled and (self.beta != 1 or self.beta_warmup):
            raise ValueError("beta and beta_warmup belong to --objective vae with one stochastic layer")
        if self.doubly_reparameterized and self.objective != "iwae":
            raise ValueError("doubly_reparameterized belongs to --objective iwae")
        if self.network == "linear" and (self.likelihood != "shared-gaussian" or self.binarize):
            raise ValueError("a linear VAE needs --likelihood shared-gaussian and grey images")
        if self.network == "burda" and self.likelihood != "bernoulli":
            raise ValueError(f"network burda starts at Bernoulli logits: --likelihood bernoulli, got {self.likelihood}")
        if self.stochastic_layers == 2 and self.network != "burda":
            raise ValueError(f"two stochastic layers need --network burda, got {self.network}")


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
            schedule="cosine",  # at a constant rate the last epochs scatter
            evaluate_every=2,
            nll_samples=100,
        ),
    ),
    "burda": (
        "MNIST as in Burda et al. (2016), table 1.",
        Config(
            preset="burda",
            data="mnist",
            binarize=True,
            network="burda",
            hidden=(200, 200),
            latent_dim=50,
            batch_size=20,
            epochs=121,
            adam_epsilon=1e-4,
            schedule="burda",
            evaluate_every=4,
            nll_samples=5000,
        ),
    ),
    "linear": (
        "A linear VAE on grey MNIST; probabilistic PCA is its closed form.",
        Config(
            preset="linear",
            data="mnist",
            network="linear",
            likelihood="shared-gaussian",
            hidden=(),
            latent_dim=10,
            batch_size=250,
            epochs=200,
            learning_rate=1e-2,
            schedule="cosine",
            evaluate_every=10,
            nll_samples=100,
        ),
    ),
    "cifar10": (
        "CIFAR-10, 256-valued pixels as discretised logistic variables.",
        Config(
            preset="cifar10",
            data="cifar10",
            network="conv",
            likelihood="discretized-logistic",
            hidden=(32, 64, 128),
            latent_dim=128,
            batch_size=128,
            epochs=10,
            evaluate_every=2,
            nll_samples=100,
        ),
    ),
    "illustration": (
        "1000 MNIST images: an autoencoder beside a VAE, two latents.",
        illustration.Config(preset="illustration", epochs=1000, batch_size=100),
    ),
}
BITS_CAVEAT = (
    "bits per dimension are those of the pixels in your copy of the data: where they were ever stored as JPEG, as in "
    "some copies of CIFAR-10, the figure is not CIFAR-10's and must not be compared with published ones"
)


def make_model(config: Any) -> Any:
    """The model of a run, from its config.json."""
    if config.preset == "illustration":
        return illustration.make_model(config)
    likelihood, channels = {
        "bernoulli": (Bernoulli, ()),
        "categorical": (Categorical, (config.levels,)),
        "discretized-logistic": (jaxvae.PixelScale(logistic_image), (2,)),
        "gaussian": (partial(DiagGaussian, log_var=0.0), ()),
        "shared-gaussian": (jaxvae.SharedScale(), ()),
        "pixel-gaussian": (jaxvae.PixelScale(), (2,)),
    }[config.likelihood]
    if config.network == "linear":
        return linear_vae(tuple(config.image_shape), config.latent_dim)
    shape = (*config.image_shape, *channels)
    sizes, dtype = tuple(config.hidden), jnp.dtype(config.dtype)
    if config.network == "conv":
        encoder = jaxvae.ConvEncoder(config.latent_dim, sizes, dtype=dtype)
        return jaxvae.VAE(encoder, jaxvae.ConvDecoder(shape, sizes, dtype=dtype), likelihood)

    options: dict[str, Any] = {"dtype": dtype}
    if config.network == "burda":
        options |= {"activation": nn.tanh, "kernel_init": nn.initializers.glorot_uniform()}
    Encoder, Decoder = (partial(body, **options) for body in (jaxvae.MLPEncoder, jaxvae.MLPDecoder))
    if config.stochastic_layers == 1:
        return jaxvae.VAE(Encoder(config.latent_dim, sizes), Decoder(shape, sizes[::-1]), likelihood)
    middle, half = 2 * config.latent_dim, tuple(size // 2 for size in sizes)
    return jaxvae.HierarchicalVAE(
        encoders=(Encoder(middle, sizes), Encoder(config.latent_dim, half)),
        decoders=(Decoder(shape, sizes[::-1]), Encoder(middle, half[::-1])),
        likelihood=likelihood,
    )


def draw(directory: Path, num: int, *, key: PRNGKey) -> np.ndarray:
    """Samples of a run, as experiments.drawing wants them."""
    return draw_means(directory, make_model, num, key=key)


def make_objective(config: Config, model: Any, *, beta: float | Schedule) -> LossFn:
    """What the run minimises."""
    if config.objective == "iwae":
        options = {"num_samples": config.num_samples, "doubly_reparameterized": config.doubly_reparameterized}
        return partial(jaxvae.iwae_loss, model, **options)
    if config.stochastic_layers == 2:
        return partial(jaxvae.sampled_vae_loss, model, num_samples=config.num_samples)
    return partial(jaxvae.vae_loss, model, beta=beta, num_samples=config.num_samples)


def make_optimizer(config: Config, steps_per_epoch: int) -> optax.GradientTransformation:
    """Adam at the scheduled rate."""
    rate: float | Schedule = config.learning_rate
    if config.schedule == "cosine":
        rate = optax.cosine_decay_schedule(config.learning_rate, config.epochs * steps_per_epoch)
    if config.schedule == "burda":
        ends = {sum(3**j for j in range(i + 1)) * steps_per_epoch: 10 ** (-1 / 7) for i in range(7)}
        rate = optax.piecewise_constant_schedule(config.learning_rate, ends)
    return optax.adam(rate, eps=config.adam_epsilon)


def start_at_the_mean(params: PyTree, images: np.ndarray, levels: int) -> PyTree:
    """The output's bias at the logits of the mean training image, held to [.001, .999] (Burda et al., 2016)."""
    mean = images.mean(axis=0, dtype=np.float64) / (1 if images.dtype == np.float32 else levels - 1)
    mean = mean.clip(0.001, 0.999)
    logits = jnp.asarray(np.log(mean / (1 - mean)).ravel(), jnp.float32)
    decoder = "decoder" if "decoder" in params["params"] else "decoders_0"
    output = params["params"][decoder]["output"]
    changed = params["params"] | {decoder: params["params"][decoder] | {"output": output | {"bias": logits}}}
    return params | {"params": changed}


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, draw."""
    config = parse(PRESETS, __doc__, argv)
    if isinstance(config, illustration.Config):
        return illustration.run(config)
    if config.smoke:
        few = min(config.validation, 64)
        config = dataclasses.replace(config, epochs=2, evaluate_every=1, validation=few, nll_samples=10)

    with user_errors():
        splits, order = load(config)
        ppca = None
        if config.network == "linear":
            ppca = classical.fit_ppca(in_unit_interval(splits.train), config.latent_dim)
        decay = {"decay_epochs": config.epochs} if config.schedule == "cosine" else {}  # so that a resume must agree
        run = Run("vae", config, image_shape=splits.train.shape, levels=splits.train.levels, **decay)
        model = make_model(SimpleNamespace(**run.settings))
    state, metrics = train(run, config, model, splits, order)

    report = measure(model, state, splits.test, grey=splits.grey, nll_samples=config.nll_samples)
    result = result_of(config, report, metrics, splits.test)
    if ppca is not None:
        result |= against_closed_form(ppca, model, state.params, {"train": splits.train, "test": splits.test})
    result |= {"nll_samples": config.nll_samples, **reached(state)}
    run.finish(result, lambda: save_pictures(run, model, state.params, report, splits.test.label))


def load(config: Config) -> tuple[Splits, data.Order]:
    """The images of a run and their order, checked."""
    splits = load_splits(config, validation=config.validation)
    train = splits.train
    order = data.Order(len(train), config.batch_size, config.epochs, config.seed)
    if config.likelihood == "discretized-logistic":
        check_256_levels(train)
    return splits, order


def train(
    run: Run, config: Config, model: Any, splits: Splits, order: data.Order
) -> tuple[jaxvae.TrainState, dict[str, float]]:
    """The trained state, the best on the validation images where there are some, and its metrics on the test images."""
    beta = config.beta
    if config.beta_warmup:
        beta = optax.linear_schedule(0.0, config.beta, config.beta_warmup * order.steps_per_epoch)
    final_loss_fn = make_objective(config, model, beta=config.beta)  # what a warm-up warms up to
    evaluate, evaluate_test = evaluators(final_loss_fn, splits)
    state = run.train(
        make_init(config, model, splits.train),
        make_objective(config, model, beta=beta),
        make_optimizer(config, order.steps_per_epoch),
        *(splits.train, order),
        evaluate=evaluate,
        evaluate_every=config.evaluate_every * order.steps_per_epoch,
        split=splits.split,
        monitor=None if splits.validation is None else "loss",
        patience=config.patience,
    )
    return state, evaluate_test(state)


def make_init(config: Config, model: Any, train: data.Dataset) -> InitFn:
    """The parameters that a run starts from."""
    init = init_of(model, jnp.zeros((1, *train.shape)))
    if config.network != "burda":
        return init

    def init_at_the_mean(*, key: PRNGKey) -> tuple[PyTree, PyTree]:
        params, model_state = init(key=key)
        return start_at_the_mean(params, train.x, train.levels), model_state

    return init_at_the_mean


def result_of(config: Config, report: Report, metrics: Mapping[str, float], test: data.Dataset) -> dict[str, Any]:
    """What result.json says of the test images."""
    measured = elbo_terms(metrics) | report.test
    if config.objective == "iwae":
        measured["negative_iwae_bound"] = metrics["loss"]
    result: dict[str, Any] = {"test": measured}
    if config.likelihood in ("categorical", "discretized-logistic"):
        num_dims = test.x[0].size
        measured["bits_per_dim"] = bits_per_dim(measured["nll"], num_dims)
        measured["bits_per_dim_elbo"] = bits_per_dim(measured["negative_elbo"], num_dims)
    if config.likelihood == "discretized-logistic":
        result["caveat"] = BITS_CAVEAT
        console.print(BITS_CAVEAT, highlight=False)
    if report.kl is not None:
        result["kl_per_dimension"] = report.kl.tolist()
    return result


def in_unit_interval(dataset: data.Dataset) -> np.ndarray:
    """Grey images in float64, as the closed form reads them."""
    return dataset.x / np.float64(dataset.levels - 1)


def against_closed_form(
    ppca: classical.PPCA, model: jaxvae.VAE, params: PyTree, splits: Mapping[str, data.Dataset]
) -> dict[str, Any]:
    """Exact log-likelihoods of PPCA at its maximum and exact ELBOs of a linear VAE, per split, in float64 nats."""
    images = {name: in_unit_interval(dataset) for name, dataset in splits.items()}
    with jax.enable_x64(True):
        wide = jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf), jnp.float64), params)

        @jax.jit
        def elbo(x: Array) -> Array:
            return -linear_vae_loss(model, wide, (), {"x": x}, key=seed_key(0), step=0)[0]

        def mean_elbo(x: np.ndarray) -> float:
            parts = np.array_split(x, max(1, len(x) // 10_000))
            return float(np.average([elbo(part) for part in parts], weights=[len(part) for part in parts]))

        trained = {name: mean_elbo(x) for name, x in images.items()}
    closed_form = {name: float(ppca.log_prob(x).mean()) for name, x in images.items()}
    gap = {name: closed_form[name] - trained[name] for name in images}
    for name in images:
        found = f"closed form {closed_form[name]:.4f}, trained {trained[name]:.4f}, gap {gap[name]:.4f} nats"
        console.print(f"{name}: {found}")
    return {"closed_form": closed_form, "trained": trained, "gap": gap}


if __name__ == "__main__":
    main()
