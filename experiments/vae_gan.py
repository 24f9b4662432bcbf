"""Adversaries: a GAN by itself, and what a discriminator does for the blur of a VAE.

  python -m experiments.vae_gan digits            VAE/GAN (Larsen et al., 2016) on scikit-learn's digits; needs no data
  python -m experiments.vae_gan mnist             the same on MNIST in TFDS_DATA_DIR, grey
  python -m experiments.vae_gan cifar10           the same on CIFAR-10
  ... --model gan | wgan-gp                       the adversarial half alone; with --class-conditional, given the class
  ... --model gan --generator style               with a style-based generator, whose styles a picture mixes
  ... --model vae-dis                             a VAE with the feature loss of a discriminator that was trained first
  ... --model vq-gan                              a VQ-VAE and a discriminator of patches with an adaptive weight

What reconstructs is trained beside the plain VAE (or VQ-VAE) of the same networks, in a directory within the run's, and
measured as it is: the sharpness of its reconstructions as a share of that of the images, and how much of the plain
one's gap to 1 the adversary closes. A VAE's pixels are Bernoulli variables with the grey value as their mean: its nats
compare within this experiment alone. Samples are read by a classifier of the training images.
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
from flax import linen as nn

import jaxvae
from experiments import classifier, style_mixing
from experiments.command import RunConfig, console, file_errors, parse, user_errors
from experiments.drawing import BLOCK, averaged_params, in_blocks, means_of
from experiments.report import as_pictures, elbo_terms, evaluator, over_set, prepared
from experiments.run import InitFn, Run, init_of, reached
from experiments.splits import Splits, load_splits
from experiments.two_stage import read_share
from jaxvae import checkpoint, data, figures
from jaxvae.distributions import Bernoulli
from jaxvae.evaluation import sharpness_ratio
from jaxvae.keys import seed_key
from jaxvae.losses import WASSERSTEIN
from jaxvae.models import GAN
from jaxvae.networks import ConvDiscriminator, PatchDiscriminator, StyleGenerator
from jaxvae.objectives import (
    feature_vae_loss,
    gan_loss,
    init_feature_vae,
    init_with_discriminator,
    vae_gan_loss,
    vq_gan_loss,
)
from jaxvae.training import adversarial_optimizer, evaluation_params, with_ema
from jaxvae.types import Array, Batch, LossFn, PRNGKey, PyTree

GENERATORS = ("gan", "wgan-gp")
FIRST = ("gan", "vae", "vq-vae")  # what is trained before, in a directory within the run's
PLAIN = {"vae-dis": "vae", "vae-gan": "vae", "vq-gan": "vq-vae"}
EVALUATED = 2000  # test images at an evaluation while a model trains
SHARPNESS_IMAGES = 1000
SEEDING = 1000  # training images that seed a codebook


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    data: str = "mnist"
    """digits, or any set of images with labels that is prepared for tensorflow-datasets."""
    model: Literal["gan", "wgan-gp", "vae-dis", "vae-gan", "vq-gan"] = "vae-gan"
    """What is trained."""
    class_conditional: bool = False
    """Of gan and wgan-gp: give the generator and the discriminator the label."""
    generator: Literal["plain", "style"] = "plain"
    """Of gan and wgan-gp: a decoder, or styles and noise at each size (Karras et al., 2019)."""
    channels: tuple[int, ...] = (32, 64)
    """Of the convolutions of all networks."""
    hidden: int = 256
    """Width of their dense layers."""
    latent_dim: int = 32
    """Size of the latent."""
    num_codes: int = 128
    """Of vq-gan: how many vectors the codebook holds."""
    code_dim: int = 32
    """Of vq-gan: their size."""
    first_epochs: int = 20
    """Passes of what is trained first: the plain model, and vae-dis's discriminator."""
    learning_rate: float = 5e-4
    """Of all Adams; it falls to 0 over all epochs of a stage, which cannot then change."""
    critic_steps: int = 5
    """Of wgan-gp: steps of the critic for one of the generator."""
    penalty: float = 10.0
    """Of wgan-gp: the weight of the gradient penalty."""
    r1: float = 0.1
    """Of gan, and of vae-dis's discriminator: the weight of the slope at images."""
    gamma: float = 20.0
    """Of vae-gan: how much the decoder cares for features beside the discriminator's opinion."""
    beta: float = 0.05
    """Of vae-dis and vae-gan: weight of the rate beside the features; the plain VAE has 1."""
    feature_weight: float = 1.0
    """Of vq-gan: weight of the features' squared error."""
    adversarial_weight: float = 0.5
    """Of vq-gan: what the adaptive weight is multiplied by."""
    ema: float = 0.999
    """Of gan and wgan-gp: decay of the average of the parameters that samples are drawn with."""
    evaluate_every: int = 2
    """Epochs between evaluations, each with a checkpoint."""
    classifier_steps: int = 1000
    """Of the classifier that reads the samples."""
    samples: int = 5000
    """How many it reads."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers(
            counts=(
                *("channels", "hidden", "latent_dim", "num_codes", "code_dim", "first_epochs", "critic_steps"),
                *("evaluate_every", "classifier_steps", "samples"),
            ),
            weights=("penalty", "r1", "gamma", "beta", "feature_weight", "adversarial_weight"),
            positive=("learning_rate",),
        )
        if not 0 < self.ema < 1:
            raise ValueError(f"ema must lie in (0, 1), got {self.ema}")
        for name, given in (("class_conditional", self.class_conditional), ("generator", self.generator != "plain")):
            if given and self.model not in GENERATORS:
                raise ValueError(f"{name} belongs to --model gan and wgan-gp, got {self.model}")


PRESETS = {
    "digits": (
        "scikit-learn's 1,797 digits of 8×8 pixels; needs no data.",
        Config("digits", 150, 64, data="digits", latent_dim=16, first_epochs=100, evaluate_every=10),
    ),
    "mnist": ("MNIST, grey.", Config("mnist", 10, 128, first_epochs=10, r1=3.0)),
    "cifar10": (
        "CIFAR-10.",
        Config("cifar10", 20, 128, data="cifar10", channels=(64, 128, 256), latent_dim=128, num_codes=512, code_dim=64),
    ),
}


def make_model(config: Any, kind: str) -> Any:
    """A model of a run, from its config.json: GAN, VAE or VQ-VAE."""
    channels, shape = tuple(config.channels), tuple(config.image_shape)
    decoder = jaxvae.ConvDecoder(shape, channels, config.hidden)
    if kind in GENERATORS:
        if getattr(config, "generator", "plain") == "style":  # earlier runs say nothing of it
            decoder = StyleGenerator(shape, channels)
        classes = config.num_classes if config.class_conditional else None
        critic = ConvDiscriminator(channels, config.hidden, num_classes=classes)
        if classes is None:
            return GAN(decoder, critic, config.latent_dim, output=nn.sigmoid)
        embed = jaxvae.LabelEmbedding(classes)
        return GAN(jaxvae.Conditioned(decoder), critic, config.latent_dim, output=nn.sigmoid, embed=embed)
    if PLAIN.get(kind, kind) == "vae":
        return jaxvae.VAE(jaxvae.ConvEncoder(config.latent_dim, channels, config.hidden), decoder, Bernoulli)
    return jaxvae.VQVAE(
        jaxvae.ResidualEncoder(config.code_dim, channels, blocks=1),
        jaxvae.ResidualDecoder(shape[-1], channels, blocks=1, spatial=shape[:-1]),
        jaxvae.EMACodebook(config.num_codes),
    )


def make_discriminator(config: Any, kind: str) -> ConvDiscriminator | PatchDiscriminator:
    """The discriminator beside a VAE or a VQ-VAE."""
    channels = tuple(config.channels)
    return PatchDiscriminator(channels) if kind == "vq-gan" else ConvDiscriminator(channels, config.hidden)


def draw(directory: Path, num: int, *, key: PRNGKey) -> np.ndarray:
    """Samples of a run, or of what was trained first within it, as experiments.drawing wants them."""

    def of_its_kind(settings: Any) -> Any:
        return make_model(settings, settings.preset if settings.preset in FIRST else settings.model)

    model, params, _, settings = checkpoint.load(directory, of_its_kind)
    if isinstance(model, jaxvae.VQVAE):
        raise ValueError(f"{directory} holds a VQ-VAE, which draws nothing by itself: fit experiments.prior to it")
    conditional = isinstance(model, GAN) and settings.class_conditional
    label = jnp.arange(num) % settings.num_classes if conditional else None
    return draw_samples(model, averaged_params(directory, params), num, label, key=key)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, draw."""
    config = parse(PRESETS, __doc__, argv)
    if config.smoke:
        few = {"epochs": 1, "first_epochs": 1, "evaluate_every": 1, "classifier_steps": 4, "samples": 100}
        config = dataclasses.replace(config, **few, channels=(4, 8), hidden=16, num_codes=16, code_dim=4)
    with user_errors():
        splits = load_splits(config, labelled=True)
        data.Order(len(splits.train), config.batch_size, config.epochs, config.seed)  # refuses what cannot be
        run = Run("vae_gan", config, **derived(splits), decay_epochs=config.epochs)
    settings = SimpleNamespace(**run.settings)
    (generate if config.model in GENERATORS else reconstruct)(run, config, settings, splits)


def derived(splits: Splits) -> dict[str, Any]:
    """For config.json: what the models' sizes follow from."""
    return {"image_shape": splits.train.shape, "num_classes": splits.num_classes}


def generate(run: Run, config: Config, settings: Any, splits: Splits) -> None:
    """A GAN by itself."""
    model = make_model(settings, config.model)
    state = train(run, config, config.model, model, splits, config.epochs)
    averaged = state.replace(params=evaluation_params(state))
    label = jnp.arange(config.samples, dtype=jnp.int32) // 10 % splits.num_classes if config.class_conditional else None
    samples = draw_samples(model, averaged.params, config.samples, label, key=seed_key(1))
    test = measure_samples(samples, label, splits, config)
    test |= evaluator(make_objective(config, config.model, model), few(splits))(state)

    def pictures() -> list[Path]:
        mixed = config.generator == "style" and not config.class_conditional
        paths = [style_mixing.save(run.picture("style_mixing"), model, averaged.params)] if mixed else []
        return [save_samples(run, samples, label), *paths]

    run.finish({"test": test, **reached(state)}, pictures)


def reconstruct(run: Run, config: Config, settings: Any, splits: Splits) -> None:
    """What has an encoder, beside the same without an adversary."""
    plain = PLAIN[config.model]
    model, own = make_model(settings, plain), {}
    before = first_stage(run, config, plain, model, splits)
    if config.model == "vae-dis":
        gan = make_model(settings, "gan")
        own["trained"] = first_stage(run, config, "gan", gan, splits).params
    state = train(run, config, config.model, model, splits, config.epochs, **own)

    test, pairs = {}, []
    for suffix, each in (("", state), (f"_{plain.replace('-', '_')}", before)):
        measured, pair = measure_reconstructions(model, each, splits)
        test |= {f"{name}{suffix}": value for name, value in measured.items()}
        pairs.append(pair)
        if plain == "vae":
            samples = draw_samples(model, each.params, config.samples, key=seed_key(1))
            test |= {f"{name}{suffix}": value for name, value in measure_samples(samples, None, splits, config).items()}
    blurred = test[f"sharpness_ratio_{plain.replace('-', '_')}"]
    test["gap_closed"] = 1 - abs(1 - test["sharpness_ratio"]) / abs(1 - blurred)

    def pictures() -> list[Path]:
        paths = [save_reconstructions(run, [pairs[0][0], pairs[1][1], pairs[0][1]], plain)]
        if plain == "vae":
            paths += [save_samples(run, draw_samples(model, state.params, 100, key=seed_key(1)), None)]
            paths += [figures.learning_curves(run.picture("learning_curves"), run.records())]
        return paths

    run.finish({"test": test, **reached(state)}, pictures)


def train(
    run: Run, config: Config, kind: str, model: Any, splits: Splits, epochs: int, *, trained: PyTree = None
) -> jaxvae.TrainState:
    """A model of this kind; `trained` holds the parameters of vae-dis's discriminator."""
    order = data.Order(len(splits.train), config.batch_size, epochs, config.seed)
    critic = make_discriminator(config, kind)
    loss_fn = make_objective(config, kind, model, critic=critic, variance=variance_of(splits, kind))
    return run.train(
        make_init(config, kind, model, critic, trained, splits),
        loss_fn,
        make_optimizer(config, kind, order.total_steps),
        *(splits.train, order),
        evaluate=evaluator(loss_fn, few(splits)),
        evaluate_every=config.evaluate_every * order.steps_per_epoch,
        split="test",
    )


def first_stage(outer: Run, config: Config, kind: str, model: Any, splits: Splits) -> jaxvae.TrainState:
    """What is trained before, in a directory of its own within the run's."""
    console.print(f"training a {kind} first", highlight=False)
    with user_errors():
        own = dataclasses.replace(config, preset=kind, out=outer.directory / kind, epochs=config.first_epochs)
        run = Run("vae_gan", own, **derived(splits), decay_epochs=config.first_epochs)
    state = train(run, config, kind, model, splits, config.first_epochs)
    loss_fn = make_objective(config, kind, model, variance=variance_of(splits, kind))
    run.finish({"test": evaluator(loss_fn, few(splits))(state), **reached(state)}, lambda: [])
    return state


def make_objective(
    config: Config, kind: str, model: Any, *, critic: Any = None, variance: float | None = None
) -> LossFn:
    """What a model of this kind minimises."""
    layer = f"layer_{len(config.channels) - 1}"  # the last convolution: what is where still matters
    seen: dict[str, Any] = {"discriminator": critic, "layer": layer}
    weights = {"feature_weight": config.feature_weight, "adversarial_weight": config.adversarial_weight}
    steps = {"penalty": config.penalty, "critic_steps": config.critic_steps}
    return {
        "gan": partial(gan_loss, model, r1=config.r1),
        "wgan-gp": partial(gan_loss, model, loss=WASSERSTEIN, **steps),
        "vae": partial(jaxvae.vae_loss, model),
        "vae-dis": partial(feature_vae_loss, model, beta=config.beta, **seen),
        "vae-gan": partial(vae_gan_loss, model, beta=config.beta, gamma=config.gamma, **seen),
        "vq-vae": partial(jaxvae.vq_vae_loss, model, variance=variance),
        "vq-gan": partial(vq_gan_loss, model, variance=variance, **weights, **seen),
    }[kind]


def make_init(config: Config, kind: str, model: Any, critic: Any, trained: PyTree, splits: Splits) -> InitFn:
    """The parameters that a model of this kind starts from."""
    x = prepared(splits.train, SEEDING if kind.startswith("vq") else 1)["x"]
    if kind == "vae-dis":
        return partial(init_feature_vae, model, critic, trained, x)
    if kind in ("vae-gan", "vq-gan"):
        return partial(init_with_discriminator, model, critic, x)
    if kind == "vq-vae":
        return partial(model.init_with_quantizer, x)
    return init_of(model, x, *([jnp.zeros(1, jnp.int32)] if kind in GENERATORS and config.class_conditional else []))


def make_optimizer(config: Config, kind: str, steps: int) -> optax.GradientTransformation:
    """An Adam for each part; those of a game look back less far."""

    def adam(steps: int, **options: float) -> optax.GradientTransformation:
        return optax.adam(optax.cosine_decay_schedule(config.learning_rate, max(1, steps)), **options)

    if kind in ("vae", "vae-dis", "vq-vae"):
        return adam(steps)
    turns = config.critic_steps if kind == "wgan-gp" else 1
    both = adversarial_optimizer(adam(steps // turns, b1=0.5, b2=0.99), adam(steps, b1=0.5, b2=0.99))
    return with_ema(both, config.ema) if kind in GENERATORS else both


def few(splits: Splits) -> data.Dataset:
    """The test images of an evaluation."""
    return splits.test.take(slice(EVALUATED))


def variance_of(splits: Splits, kind: str) -> float | None:
    """Of the training images, the unit of a VQ-VAE's squared errors."""
    if not kind.startswith("vq"):
        return None
    scale = 1 if splits.train.x.dtype == np.float32 else splits.train.levels - 1
    return float(np.var(splits.train.x, dtype=np.float64)) / scale**2


def draw_samples(model: Any, params: PyTree, num: int, label: Array | None = None, *, key: PRNGKey) -> np.ndarray:
    """Samples, or the means of a decoder at latents from the prior, [num, H, W, C]; of the given classes."""
    if not isinstance(model, GAN):
        return means_of(model, params, num, key=key)
    block = jax.jit(lambda key, label: model.apply(params, BLOCK, key=key, label=label, method="sample"))
    labels = iter(() if label is None else jnp.resize(label, (-(-num // BLOCK), BLOCK)))
    return in_blocks(lambda each: block(each, next(labels, None)), num, key=key)


def measure_samples(samples: np.ndarray, label: Array | None, splits: Splits, config: Config) -> dict[str, float]:
    """How sharp samples are beside images, and what a classifier of images reads in them."""
    x = np.asarray(prepared(splits.test, SHARPNESS_IMAGES)["x"])
    reader = classifier.train(
        splits.train, num_classes=splits.num_classes, steps=config.classifier_steps, seed=config.seed
    )
    test = {"sample_sharpness_ratio": sharpness_ratio(x, samples), "read": read_share(*reader, jnp.asarray(samples))}
    if label is not None:
        test["read_as_the_label"] = float((classifier.read(*reader, jnp.asarray(samples)) == label).mean())
    return test


def measure_reconstructions(
    model: Any, state: jaxvae.TrainState, splits: Splits
) -> tuple[dict[str, float], tuple[np.ndarray, np.ndarray]]:
    """How sharp and how near reconstructions of test images are, and some of both."""
    x, made = over_set(partial(_reconstruct, model), state, splits.test.take(slice(SHARPNESS_IMAGES)))
    test = {"sharpness_ratio": sharpness_ratio(x, made), "squared_error": float(np.square(made - x).mean())}
    if isinstance(model, jaxvae.VAE):
        test |= elbo_terms(evaluator(partial(jaxvae.vae_loss, model), splits.test)(state))
    return test, (x[:32], made[:32])


def _reconstruct(model: Any, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> tuple[Array, Array]:
    """Through the posterior's mean, or the codes."""
    del key
    if isinstance(model, jaxvae.VAE):
        return batch["x"], model.apply(params, batch["x"]).mean
    indices = model.encode_indices(params, model_state, batch["x"])
    return batch["x"], model.decode_indices(params, model_state, indices).mean


@file_errors()
def save_samples(run: Run, samples: np.ndarray, label: Array | None) -> Path:
    """Draw samples, a row for each class where they have some."""
    title = f"{run.settings['model']}: samples" + ("" if label is None else ", a row for each class")
    drawn, names = as_pictures(samples[:100]), None if label is None else list(map(str, np.asarray(label)[:100:10]))
    return figures.image_grid(run.picture("samples"), drawn, columns=10, row_names=names, title=title)


@file_errors()
def save_reconstructions(run: Run, rows: Sequence[np.ndarray], plain: str) -> Path:
    """Draw test images, what the plain model and what this one makes of them, below each other."""
    blocks = np.stack([as_pictures(row[:16]) for row in rows])
    names, title = ["test image", plain, run.settings["model"]], "test images and their reconstructions (means)"
    images = blocks.reshape(-1, *blocks.shape[2:])
    options = {"columns": blocks.shape[1], "row_names": names, "title": title}
    return figures.image_grid(run.picture("reconstructions"), images, **options)


if __name__ == "__main__":
    main()
