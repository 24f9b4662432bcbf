"""Diffusion in continuous time (Kingma et al., 2021): of pixels, or of the latents of a trained VAE, measured in nats.

  python -m experiments.diffusion digits         scikit-learn's digits, 17 grey values; needs no data
  python -m experiments.diffusion mnist          MNIST in TFDS_DATA_DIR, dynamically binarised; for a GPU
  python -m experiments.diffusion latents RUN    the codes of a run directory of experiments.vae: another prior

Every run says what -log p(x) of the test images is at most, and how many of its samples a classifier of the training
images reads as a digit at all, with a probability above .9, in how many steps. What to expect: experiments/README.md.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxvae
from experiments import classifier, vae
from experiments.command import RunConfig, check_guidance, console, counter, file_errors, parse, user_errors
from experiments.drawing import BLOCK, averaged_params, in_blocks, means_of, settings_of
from experiments.hierarchy import averaged
from experiments.other_run import check_made_by, checksum
from experiments.report import as_pictures, evaluator, over_set, prepared
from experiments.run import Run, init_of, reached
from experiments.splits import Splits, load_splits
from experiments.two_stage import read_share
from jaxvae import checkpoint, data, figures
from jaxvae._run import absolute
from jaxvae.keys import example_keys, sample_keys, seed_key
from jaxvae.losses import bits_per_dim
from jaxvae.models import CosineSchedule, Diffusion, DiffusionPrior, LinearSchedule, log_snr_of_levels
from jaxvae.networks import DenoisingMLP, UNet
from jaxvae.objectives import (
    bounded_vae_loss,
    diffusion_loss,
    init_diffusion_prior,
    prior_loss,
    sampled_vae_loss,
    with_fitted_prior,
)
from jaxvae.objectives.diffusion import spread_times
from jaxvae.training import evaluation_params, with_ema
from jaxvae.types import Array, Batch, PRNGKey, PyTree

Draw = Callable[..., tuple[Array, Array]]  # `Diffusion.denoising_path` of `DRAWN` images
DRAWN = 100  # samples in a picture, and at a time
EVALUATED = 8  # times of each image in an evaluation
FEW_STEPS = (2, 5, 10, 20, 50)  # of ddim


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    data: str = "mnist"
    """digits, or any image set that is prepared for tensorflow-datasets. Of latents, that of the VAE."""
    run: Path | None = None
    """A run directory of experiments.vae, whose latents are modelled (latents)."""
    binarize: bool = False
    """Draw each pixel as 0 or 1 with its grey value as probability; without, all grey values are modelled."""
    class_conditional: bool = False
    """Tell the network the label. Of pixels."""
    condition_dropout: float = 0.1
    """How often it is not told in training, so that guidance is of use."""
    channels: tuple[int, ...] = (32, 64)
    """Of the U-Net, at each size."""
    blocks: int = 1
    """Residual blocks at each size; of latents, of the dense network."""
    heads: int = 2
    """Of attention at the smallest size; 0 for none."""
    width: int = 256
    """Of the dense network, of latents."""
    embedding: int = 128
    """Features that tell of the noise."""
    schedule: Literal["linear", "cosine"] = "linear"
    """How the log SNR falls in training: with the same weight for every nat of it, or with more for the ends."""
    log_snr_max: float | None = None
    """At t = 0. Default: of pixels, where noise does not hide the levels (models.log_snr_of_levels); of latents 10."""
    log_snr_min: float = -10.0
    """At t = 1."""
    prediction: Literal["eps", "x", "v"] = "v"
    """What the network says."""
    weighting: Literal["bound", "simple"] = "bound"
    """The loss: the bound, or the error of the noise alone. Of pixels."""
    learning_rate: float = 1e-3
    """Of Adam; it falls to 0 by a cosine over all epochs, which cannot then change."""
    ema: float = 0.999
    """Decay of the average of the parameters that is evaluated; 0: none."""
    evaluate_every: int = 10
    """Epochs between evaluations, each with a checkpoint."""
    bound_samples: int = 16
    """Times at which the bound of each test image is estimated."""
    steps: int = 100
    """Of the samples by ddpm."""
    guidance: float = 1.0
    """Of the samples of a class-conditional model: above 1 they are more of their class."""
    classifier_steps: int = 1000
    """Of the classifier that reads the samples."""
    samples: int = 1000
    """How many it reads, for each number of steps."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers(
            counts=(
                *("channels", "blocks", "width", "embedding", "evaluate_every", "bound_samples", "steps"),
                *("classifier_steps", "samples"),
            ),
            weights=("guidance", "heads"),
            positive=("learning_rate",),
        )
        for name in ("condition_dropout", "ema"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        LinearSchedule(
            10.0 if self.log_snr_max is None else self.log_snr_max, self.log_snr_min
        )  # says what is wrong with its ends
        if self.preset == "latents" and (self.class_conditional or self.weighting != "bound"):
            raise ValueError("latents are modelled without classes, by the bound")
        if self.preset != "latents" and self.run is not None:
            raise ValueError(f"--run belongs to latents, got the preset {self.preset}")
        if self.guidance != 1 and not self.class_conditional:
            raise ValueError(f"guidance {self.guidance} needs --class-conditional")
        check_guidance(self.guidance, self.condition_dropout)


PRESETS = {
    "digits": (
        "scikit-learn's digits, 17 grey values.",
        Config("digits", 200, 64, data="digits", evaluate_every=20),
    ),
    "mnist": (
        "MNIST, binarised anew at every step.",
        Config("mnist", 60, 128, binarize=True, channels=(64, 128, 128), blocks=2, ema=0.9998, evaluate_every=2),
    ),
    "latents": (
        "The latents of a VAE.",
        Config("latents", 100, 128, blocks=4, ema=0.9998, steps=200),
    ),
}


def make_model(config: Any) -> Any:
    """The model of a run, from its config.json: a `Diffusion`, or of latents the VAE with its prior."""
    of_kind = {"linear": LinearSchedule, "cosine": CosineSchedule}[config.schedule]
    default = 10.0 if config.run is not None else log_snr_of_levels(config.levels)
    largest = default if config.log_snr_max is None else config.log_snr_max
    options = {"schedule": of_kind(largest, config.log_snr_min), "prediction": config.prediction}
    if config.run is not None:
        trained = vae.make_model(SimpleNamespace(**settings_of(Path(config.run))))
        network = DenoisingMLP(config.width, config.blocks, embedding=config.embedding)
        diffusion = Diffusion(network, (config.latent_dim,), **options)
        return trained.clone(prior=DiffusionPrior(diffusion, steps=config.steps, schedule=cosine(diffusion)))
    shape, classes = tuple(config.image_shape), config.num_classes
    network = UNet(
        shape[-1], tuple(config.channels), config.blocks, config.heads, config.embedding, num_classes=classes
    )
    return Diffusion(network, shape, levels=config.levels, num_classes=classes, **options)


def draw(directory: Path, num: int, *, key: PRNGKey) -> np.ndarray:
    """Samples of a run by ddpm, as experiments.drawing wants them."""
    model, params, model_state, settings = checkpoint.load(directory, make_model)
    params = averaged_params(directory, params)
    if settings.preset == "latents":
        return means_of(model, with_fitted_prior(params, model_state), num, key=key)

    def draw_block(key: PRNGKey) -> Array:
        told = {}
        if settings.num_classes is not None:
            key, label_key = jax.random.split(key)
            told = {"label": jax.random.randint(label_key, (BLOCK,), 0, settings.num_classes)}
        options = {"steps": settings.steps, "guidance": settings.guidance, "schedule": cosine(model)}
        return model.sample(params, BLOCK, key=key, **options, **told)

    return in_blocks(draw_block, num, key=key)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, draw samples."""
    config = parse(PRESETS, __doc__, run_second(argv))
    if config.smoke:
        few = {"epochs": 1, "evaluate_every": 1, "bound_samples": 2, "classifier_steps": 10, "samples": 20, "steps": 4}
        config = dataclasses.replace(config, **few)
    (of_latents if config.preset == "latents" else of_pixels)(config)


def run_second(argv: Sequence[str] | None) -> list[str]:
    """The command line; a run directory after latents stands for `--run DIRECTORY`."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["latents"] and arguments[1:] and not arguments[1].startswith("-"):
        arguments.insert(1, "--run")
    return arguments


def of_pixels(config: Config) -> None:
    """A diffusion of images."""
    with user_errors():
        splits = load_splits(config, labelled=config.class_conditional)
        levels = 2 if config.binarize else splits.train.levels
        order = data.Order(len(splits.train), config.batch_size, config.epochs, config.seed)
        derived = {"image_shape": splits.train.shape, "levels": levels, "num_classes": splits.num_classes}
        run = Run("diffusion", config, **derived, decay_epochs=config.epochs)
        model = make_model(SimpleNamespace(**run.settings))
    dropping = {"condition_dropout": config.condition_dropout} if config.class_conditional else {}
    loss_fn = partial(diffusion_loss, model, weighting=config.weighting, **dropping)
    label = () if splits.num_classes is None else (jnp.zeros(1, jnp.int32),)
    state = train(run, config, init_of(model, jnp.zeros((1, *splits.train.shape)), *label), loss_fn, splits, order)

    console.print(f"the bound at {config.bound_samples} times for each test image", highlight=False)
    nats = over_set(partial(_bounds, model, config.bound_samples), state, splits.test)
    test = summary(nats)
    test["bits_per_dim"] = bits_per_dim(test["negative_elbo"], splits.test.x[0].size)

    told = {} if splits.num_classes is None else {"label": jnp.arange(DRAWN) % splits.num_classes}
    draw = partial(model.denoising_path, state.params, DRAWN, guidance=config.guidance, schedule=cosine(model), **told)
    test |= by_steps(config, splits, draw)
    run.finish({"test": test, **reached(state)}, partial(pictures, run, config, draw))


def train(run: Run, config: Config, init: Any, loss_fn: Any, splits: Splits, order: data.Order) -> Any:
    """The trained state, with the averaged parameters where there are some."""
    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, order.total_steps))
    state = run.train(
        *(init, loss_fn, with_ema(optimizer, config.ema) if config.ema else optimizer, splits.train, order),
        evaluate=averaged(evaluator(partial(loss_fn, num_samples=EVALUATED), splits.test)),
        evaluate_every=config.evaluate_every * order.steps_per_epoch,
        split="test",
    )
    return state.replace(params=evaluation_params(state))


def summary(nats: dict[str, np.ndarray]) -> dict[str, float]:
    """Means over the examples, and the standard error of the bound's: of these examples and of the draws together."""
    test = {name: float(values.mean(dtype=np.float64)) for name, values in nats.items()}
    spread = nats["negative_elbo"].std(dtype=np.float64, ddof=1) / np.sqrt(len(nats["negative_elbo"]))
    return test | {"negative_elbo_standard_error": float(spread)}


def cosine(model: Diffusion) -> CosineSchedule:
    """What samples step by, whatever the schedule in training."""
    return CosineSchedule(model.schedule.log_snr_max, model.schedule.log_snr_min)


def kinds(config: Config) -> list[tuple[str, int]]:
    """The samplers and numbers of steps that are compared."""
    return [*(("ddim", steps) for steps in FEW_STEPS if steps <= config.steps), ("ddpm", config.steps)]


def first_block() -> PRNGKey:
    """The key of the samples that are shown, the first ones that are read."""
    return seed_key(1)


def by_steps(config: Config, splits: Splits, draw: Draw) -> dict[str, float]:
    """How many of the samples a classifier reads as some digit, and as theirs, by sampler and number of steps."""
    if splits.train.label is None:
        return {}
    classes = len(np.unique(splits.train.label))
    reader = classifier.train(splits.train, num_classes=classes, steps=config.classifier_steps, seed=config.seed)
    images = prepared(splits.test, min(config.samples, len(splits.test)))["x"]
    test = {"read_test_images": read_share(*reader, images)}
    show = counter("reading samples,")
    for done, (sampler, steps) in enumerate(kinds(config), 1):
        parts = []
        for block in range(-(-config.samples // DRAWN)):
            key = jax.random.fold_in(first_block(), block) if block else first_block()
            parts.append(np.asarray(draw(key=key, sampler=sampler, steps=steps)[0]))
        drawn = np.concatenate(parts)
        test[f"read_{sampler}_{steps}"] = read_share(*reader, drawn)
        if config.class_conditional:
            right = np.asarray(classifier.read(*reader, drawn)) == np.tile(np.arange(DRAWN) % classes, len(parts))
            test[f"read_as_condition_{sampler}_{steps}"] = float(right.mean())
        show(done, len(kinds(config)))
    return test


@file_errors()
def pictures(run: Run, config: Config, draw: Draw, **others: Array) -> list[Path]:
    """Save samples, how ten of them came about, what fewer steps make of their noise, and other images."""
    samples, path = draw(key=first_block(), sampler="ddpm", steps=config.steps)
    rows = [np.asarray(draw(key=first_block(), sampler=name, steps=steps)[0])[:10] for name, steps in kinds(config)]
    shown = np.unique(np.linspace(0, len(path) - 1, 10).round().astype(int))
    columns = np.swapaxes(np.asarray(path)[shown, :10], 0, 1)
    in_steps = [f"{sampler}, {steps} steps" for sampler, steps in kinds(config)]
    grids = {
        "samples": (samples, "samples"),
        "denoising": (columns.reshape(-1, *columns.shape[2:]), "what the network takes for x, from noise on"),
        "few_steps": (np.concatenate(rows), "samples of the same noise in fewer steps"),
        **{name: (images, name.replace("_", " ")) for name, images in others.items()},
    }
    curves = [] if config.preset == "latents" else [run.picture("learning_curves")]  # a prior has the loss alone
    return [
        *(
            figures.image_grid(
                run.picture(name),
                as_pictures(images),
                columns=len(shown) if name == "denoising" else 10,
                row_names=in_steps if name == "few_steps" else None,
                title=title,
            )
            for name, (images, title) in grids.items()
        ),
        *(figures.learning_curves(path, run.records()) for path in curves),
    ]


def of_latents(config: Config) -> None:
    """A diffusion as the prior of a trained VAE, in place of its own."""
    with user_errors():
        if config.run is None:
            raise ValueError("latents needs the run directory of a VAE: latents RUN")
        config = dataclasses.replace(config, run=absolute(config.run, "the run"))
        trained, params, model_state, settings = checkpoint.load(config.run, vae.make_model)
        check_made_by(settings, config.run, "vae")
        if not isinstance(trained, jaxvae.VAE):
            raise ValueError(f"{config.run} holds a {type(trained).__name__}; latents needs a VAE, with one layer")
        of_vae = SimpleNamespace(**vars(settings) | {"smoke": config.smoke})
        splits = load_splits(of_vae, validation=0 if config.smoke else settings.validation)
        order = data.Order(len(splits.train), config.batch_size, config.epochs, config.seed)
        derived = {"latent_dim": settings.latent_dim, "run_checksum": checksum(params, model_state)}
        run = Run("diffusion", config, **derived, decay_epochs=config.epochs)
        model = make_model(SimpleNamespace(**run.settings))
    before = SimpleNamespace(params=params, model_state=model_state)
    codes = over_set(partial(_draws, trained), before, splits.train)
    console.print(f"codes of {config.run}", highlight=False)
    init = partial(
        init_diffusion_prior, model, params, model_state, prepared(splits.train, 1), std=codes.std(axis=0, dtype=float)
    )
    state = train(run, config, init, partial(prior_loss, model), splits, order)
    after = SimpleNamespace(params=with_fitted_prior(state.params, state.model_state), model_state=())

    test = {}
    both = ("normal", trained, before, sampled_vae_loss), ("diffusion", model, after, bounded_vae_loss)
    for name, each, own, loss in both:
        nats = over_set(partial(_losses, partial(loss, each, num_samples=config.bound_samples)), own, splits.test)
        test |= {f"{figure}_{name}": value for figure, value in summary(nats).items() if figure != "loss"}

    own = {"params": after.params["params"]["prior"]["diffusion"]}
    diffusion = model.prior.diffusion
    latents = partial(diffusion.denoising_path, own, DRAWN, schedule=cosine(diffusion))
    std = after.params["latent_scale"]["prior"]["std"]
    draw = partial(_decoded, trained, before.params, std, latents)
    test |= by_steps(config, splits, draw)
    first = trained.apply(params, DRAWN, key=first_block(), method="sample").mean
    run.finish({"test": test, **reached(state)}, partial(pictures, run, config, draw, samples_of_the_first_prior=first))


def _decoded(model: jaxvae.VAE, params: PyTree, std: Array, draw: Draw, **options: Any) -> tuple[Array, Array]:
    """Images of drawn latents, and of the first ten of a path's."""
    z, path = draw(**options)
    together = jnp.concatenate([z, path[:, :10].reshape(-1, z.shape[1])]) * std[None]
    images = model.apply(params, together, method="decode").mean
    return images[: len(z)], images[len(z) :].reshape(len(path), -1, *images.shape[1:])


def _bounds(
    model: Diffusion, num_samples: int, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey
) -> dict[str, Array]:
    """The parts of the bound of each example, [B] each, the means over `num_samples` times; one pass for each."""
    del model_state
    time_keys, draw_keys = jax.vmap(jax.random.split, out_axes=1)(example_keys(key, batch["index"]))
    label = () if model.num_classes is None else (batch["label"],)

    def at(time_and_keys: tuple[Array, PRNGKey]) -> dict[str, Array]:
        time, keys = time_and_keys
        bound = model.apply(params, batch["x"], *label, key=keys, time=time, method="bound")
        parts = ("distortion", "prior_rate", "diffusion_rate", "negative_elbo")
        return {name: getattr(bound, name) for name in parts}

    parts = jax.lax.map(at, (spread_times(time_keys, num_samples), sample_keys(draw_keys, num_samples)))
    return {name: values.mean(axis=0) for name, values in parts.items()}


def _losses(loss_fn: Any, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> dict[str, Array]:
    """The metrics of each example by itself, [B] each."""

    def of_one(example: Batch) -> dict[str, Array]:
        one = jax.tree.map(lambda leaf: leaf[None], example)
        return loss_fn(params, model_state, one, key=key, step=0)[1][1]

    return jax.vmap(of_one)(batch)


def _draws(model: Any, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> Array:
    """One z ~ q(z|x) of each example, [B, D]."""
    del model_state
    return model.apply(params, batch["x"], method="encode").sample(key=example_keys(key, batch["index"]))


if __name__ == "__main__":
    main()
