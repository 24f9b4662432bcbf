"""A top-down hierarchy of latents beside a flat one: what each rung holds, and what it is worth in nats.

  python -m experiments.hierarchy mnist     convolutional, six groups at 14×14, 7×7 and above (needs TFDS_DATA_DIR)
  python -m experiments.hierarchy ladder    dense, five groups
  python -m experiments.hierarchy digits    scikit-learn's digits of 8×8 pixels; needs no data
  python -m experiments.hierarchy flat      a convolutional VAE with one latent, of the size of `mnist`
  python -m experiments.hierarchy cifar10   convolutional, discretised logistic pixels
  python -m experiments.hierarchy vdvae, vdvae-cifar10    deep ones, for a GPU

The collapsed variant: `ladder --free-bits 0 --beta-warmup 0`. Costs and numbers to expect: experiments/README.md.
"""

import dataclasses
import time
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
from experiments.command import RunConfig, console, file_errors, parse, user_errors
from experiments.drawing import draw_means
from experiments.report import Evaluate, as_pictures, elbo_terms, evaluator, importance_sampled, over_set, prepared
from experiments.run import Run, init_of, reached
from experiments.splits import Splits, load_splits
from experiments.vae import BITS_CAVEAT
from jaxvae import data, figures
from jaxvae.distributions import Bernoulli
from jaxvae.evaluation import probe
from jaxvae.keys import seed_key
from jaxvae.losses import bits_per_dim
from jaxvae.models import merged_posterior, residual_posterior, top_down_vae
from jaxvae.networks import Stage, logistic_image
from jaxvae.objectives import hierarchical_vae_loss
from jaxvae.training import evaluation_params, with_ema
from jaxvae.types import Array, Batch, LossFn, PRNGKey, PyTree

SILENT = 0.5  # nats of a group, below which it is called silent
COLUMNS = 12  # pictures in a row
FORMS = {"residual": residual_posterior, "merged": merged_posterior}


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    data: str = "mnist"
    """digits, or any image set that is prepared for tensorflow-datasets."""
    widths: tuple[int, ...] = (24, 48, 128)
    """Channels of each stage, from the image upwards."""
    shrinks: tuple[int, ...] = (2, 2, 0)
    """How many times smaller each stage is than the one below; 0: vectors, without positions."""
    groups: tuple[int, ...] = (2, 3, 1)
    """Groups of latents of each stage."""
    latents: tuple[int, ...] = (1, 2, 16)
    """Channels of each group of a stage."""
    blocks: int = 1
    """Residual blocks of a stage on the way up, and of a group on the way down."""
    bottleneck: int = 1
    """How many times fewer channels there are inside a block."""
    windows: tuple[int, ...] = (3, 1)
    """What each layer of a block sees of each axis; odd. 3 3 sees farther and costs more."""
    output_width: int = 0
    """Channels of one more layer at the size of the image; 0: none."""
    posterior: Literal["residual", "merged"] = "residual"
    """What x says is added to the prior (NVAE), or multiplied with it (ladder VAE)."""
    conditional: bool = True
    """If not, the variational ladder autoencoder: each prior is N(0, I), each posterior sees x alone."""
    flat: bool = False
    """A VAE with one latent of latents[0] numbers; widths are channels, the last that of the dense layer."""
    likelihood: Literal["bernoulli", "discretized-logistic"] = "bernoulli"
    """Of a pixel. Bernoulli pixels are binarised anew at every step."""
    free_bits: float = 0.5
    """Nats that each group may have for nothing."""
    beta_warmup: float = 3.0
    """Epochs over which beta grows linearly to 1."""
    balanced: bool = False
    """Whether the groups are balanced while beta grows (NVAE)."""
    learning_rate: float = 2e-3
    """Of AdamW: grown over an epoch, then falling to 0 over all epochs, which cannot then change."""
    weight_decay: float = 1e-4
    """Of AdamW."""
    b2: float = 0.999
    """Of AdamW: the decay of its average of squared gradients, of which the first are enormous."""
    clip: float = 200.0
    """The largest norm of the gradient; a larger one is scaled down to it."""
    skip_above: float = 1e5
    """A step whose gradient has a larger norm changes nothing. Above what the first steps have (3,000 on MNIST)."""
    ema: float = 0.999
    """Decay of the average of the parameters that is evaluated; 0: none."""
    checkpoint: bool = False
    """Compute activations again in the backward pass in place of keeping them."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What the networks compute in; parameters and losses stay float32."""
    evaluate_every: int = 1
    """Epochs between evaluations, each with a checkpoint."""
    nll_samples: int = 1000
    """Importance samples per test image for -log p(x)."""
    nll_images: int | None = None
    """How many test images they are drawn for. Default: all."""
    num_labels: int = 1000
    """Labelled training images for the probe of each group."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers(
            counts=(
                *("widths", "groups", "latents", "blocks", "bottleneck", "windows"),
                *("evaluate_every", "nll_samples", "num_labels"),
            ),
            weights=("free_bits", "beta_warmup", "weight_decay", "output_width"),
            positive=("learning_rate", "clip", "skip_above"),
        )
        for name in ("ema", "b2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if self.balanced and not self.beta_warmup:
            raise ValueError("groups are balanced while beta grows: pass --beta-warmup EPOCHS")
        if self.flat and (self.shrinks or self.groups or len(self.latents) != 1):
            raise ValueError("a flat model has one latent and no stages: begin from the preset flat")
        rungs = ("blocks", "bottleneck", "windows", "output_width", "posterior", "conditional", "checkpoint")
        if self.flat and (given := [name for name in rungs if getattr(self, name) != getattr(Config, name)]):
            raise ValueError(f"a flat model has no rungs, which {', '.join(given)} would be of: leave that out")
        sizes = {name: len(getattr(self, name)) for name in ("widths", "shrinks", "groups", "latents")}
        if not self.flat and len(set(sizes.values())) > 1:
            raise ValueError(f"every stage needs a width, a shrink, groups and latents, got {sizes}")
        if self.nll_images is not None and self.nll_images < 1:
            raise ValueError(f"nll_images must be at least 1, got {self.nll_images}")


MNIST = Config("mnist", 20, 128)
LADDER = dataclasses.replace(
    MNIST,
    preset="ladder",
    widths=(512, 256, 128, 64, 32),
    shrinks=(0,) * 5,
    groups=(1,) * 5,
    latents=(64, 32, 16, 8, 4),
    epochs=60,
    batch_size=256,
    beta_warmup=10.0,
    evaluate_every=5,
    nll_samples=5000,
)
DIGITS = dataclasses.replace(
    MNIST,
    preset="digits",
    data="digits",
    widths=(64, 32),
    shrinks=(0, 0),
    groups=(1, 1),
    latents=(16, 4),
    epochs=200,
    batch_size=64,
    beta_warmup=20.0,
    evaluate_every=20,
    num_labels=500,
)
VDVAE = dataclasses.replace(
    MNIST,
    preset="vdvae",
    widths=(128, 192, 256, 256),
    shrinks=(2, 2, 2, 0),
    groups=(6, 8, 6, 2),
    latents=(2, 4, 8, 16),
    blocks=2,
    bottleneck=4,
    windows=(1, 3, 3, 1),
    epochs=400,
    free_bits=0.0,
    learning_rate=5e-4,
    ema=0.9998,
    checkpoint=True,
)
CIFAR10: Any = {"data": "cifar10", "likelihood": "discretized-logistic", "skip_above": 1e6, "nll_samples": 100}
PRESETS = {
    "mnist": (
        "MNIST, binarised anew at every step: convolutional, six groups.",
        dataclasses.replace(
            MNIST, widths=(24, 48, 256), windows=(3, 3), output_width=16, epochs=22, batch_size=64, b2=0.95
        ),
    ),
    "ladder": ("The same images: dense, five groups.", LADDER),
    "digits": ("scikit-learn's 1,797 digits of 8×8 pixels, binarised; needs no data.", DIGITS),
    "flat": (
        "MNIST: a convolutional VAE with one latent.",
        dataclasses.replace(
            *(MNIST,),
            **{"preset": "flat", "flat": True, "free_bits": 0.0},
            **{"widths": (32, 64, 256), "shrinks": (), "groups": (), "latents": (50,)},
        ),
    ),
    "cifar10": (
        "CIFAR-10, 256-valued pixels as discretised logistic variables.",
        dataclasses.replace(
            MNIST,
            preset="cifar10",
            widths=(48, 64, 96),
            shrinks=(2, 2, 2),
            groups=(3, 3, 2),
            latents=(4, 8, 16),
            **CIFAR10,
        ),
    ),
    "vdvae": ("MNIST, 22 groups; for a GPU.", VDVAE),
    "vdvae-cifar10": (
        "CIFAR-10, 43 groups; for a GPU.",
        dataclasses.replace(
            VDVAE,
            preset="vdvae-cifar10",
            widths=(256, 256, 256, 256),
            shrinks=(1, 2, 2, 2),
            groups=(21, 11, 6, 5),
            latents=(16, 16, 16, 16),
            batch_size=32,
            **CIFAR10,
        ),
    ),
}


def make_model(config: Any) -> Any:
    """The model of a run, from its config.json."""
    likelihood, channels = {
        "bernoulli": (Bernoulli, ()),
        "discretized-logistic": (jaxvae.PixelScale(logistic_image), (2,)),
    }[config.likelihood]
    shape, dtype = tuple(config.image_shape), jnp.dtype(config.dtype)
    if config.flat:
        *sizes, hidden = config.widths
        encoder = jaxvae.ConvEncoder(config.latents[0], tuple(sizes), hidden, dtype=dtype)
        return jaxvae.VAE(
            encoder, jaxvae.ConvDecoder((*shape, *channels), tuple(sizes), hidden, dtype=dtype), likelihood
        )
    of_stages = zip(config.widths, config.groups, config.latents, config.shrinks, strict=True)
    return top_down_vae(
        shape,
        [Stage(width, (latent,) * groups, shrink or None) for width, groups, latent, shrink in of_stages],
        blocks=config.blocks,
        bottleneck=config.bottleneck,
        windows=getattr(config, "windows", (3, 1)),  # earlier runs have neither
        output_width=getattr(config, "output_width", 0),
        channels=channels,
        likelihood=likelihood,
        posterior=FORMS[config.posterior],
        conditional=config.conditional,
        checkpoint=config.checkpoint,
        dtype=dtype,
    )


def draw(directory: Path, num: int, *, key: PRNGKey) -> np.ndarray:
    """Samples of a run, as experiments.drawing wants them."""
    return draw_means(directory, make_model, num, key=key, averaged=True)


def make_objective(config: Config, model: Any, steps_per_epoch: int) -> LossFn:
    """What the run minimises."""
    warmup = round(config.beta_warmup * steps_per_epoch)
    beta: Any = optax.linear_schedule(0.0, 1.0, warmup) if warmup else 1.0
    options: dict[str, Any] = {"free_bits": config.free_bits, "balanced": config.balanced}
    return partial(hierarchical_vae_loss, model, beta=beta, **options)


def make_optimizer(config: Config, order: data.Order) -> optax.GradientTransformation:
    """AdamW at the scheduled rate, its gradient clipped, its parameters averaged."""
    warm = min(order.steps_per_epoch, order.total_steps // 2)
    rate = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, max(1, warm), order.total_steps)
    adam = optax.adamw(rate, b2=config.b2, weight_decay=config.weight_decay)
    optimizer = optax.chain(optax.clip_by_global_norm(config.clip), adam)
    return with_ema(optimizer, config.ema) if config.ema else optimizer


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, draw."""
    config = parse(PRESETS, __doc__, argv)
    if config.smoke:
        config = dataclasses.replace(config, epochs=2, evaluate_every=1, nll_samples=10, nll_images=20, num_labels=100)
    with user_errors():
        splits = load_splits(config)
        check_probe(config, splits)
        splits = splits.binarized() if config.likelihood == "bernoulli" else splits
        order = data.Order(len(splits.train), config.batch_size, config.epochs, config.seed)
        run = Run("hierarchy", config, image_shape=splits.train.shape, decay_epochs=config.epochs)
        model = make_model(SimpleNamespace(**run.settings))
    evaluate = evaluator(partial(hierarchical_vae_loss, model), splits.test)
    start = time.perf_counter()
    state = run.train(
        init_of(model, jnp.zeros((1, *splits.train.shape))),
        make_objective(config, model, order.steps_per_epoch),
        make_optimizer(config, order),
        *(splits.train, order),
        evaluate=averaged(evaluate),
        evaluate_every=config.evaluate_every * order.steps_per_epoch,
        split="test",
        skip_above=config.skip_above,
    )
    seconds = time.perf_counter() - start
    state = state.replace(params=evaluation_params(state))
    test = measure(model, state, evaluate(state), splits, config)
    size = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    result = {"test": test, "train_seconds": seconds, "parameters": size, **reached(state)}
    if config.likelihood == "discretized-logistic":
        result["caveat"] = BITS_CAVEAT
        console.print(BITS_CAVEAT, highlight=False)
    run.finish(result, lambda: save_pictures(run, model, state.params, splits))


def check_probe(config: Config, splits: Splits) -> None:
    """Raise `ValueError`, before anything is trained, where the classes cannot share the labelled images."""
    if splits.train.label is None or config.flat:
        return
    counts = np.unique(splits.train.label, return_counts=True)[1]
    if config.num_labels % len(counts) or config.num_labels > len(counts) * counts.min():
        most = len(counts) * int(counts.min())
        raise ValueError(f"num_labels must be a multiple of {len(counts)} classes, at most {most}: {config.num_labels}")


def averaged(evaluate: Evaluate) -> Evaluate:
    """The evaluation of the averaged parameters, where there is an average."""
    return lambda state: evaluate(state.replace(params=evaluation_params(state)))


def measure(
    model: Any, state: jaxvae.TrainState, metrics: dict[str, float], splits: Splits, config: Config
) -> dict[str, Any]:
    """-ELBO and the rate of each group, -log p(x), and the classes that a classifier reads in each group."""
    rates = {name: value for name, value in metrics.items() if name.startswith("rate_")}
    test: dict[str, Any] = elbo_terms(metrics) | rates
    test["groups_in_use"] = sum(value >= SILENT for value in rates.values())
    few = splits.test if config.nll_images is None else splits.test.take(slice(config.nll_images))
    estimate = importance_sampled(model, state, few, nll_samples=config.nll_samples)
    test |= {"nll": estimate.nll, "nll_standard_error": estimate.nll_standard_error}
    if config.likelihood == "discretized-logistic":
        test["bits_per_dim"] = bits_per_dim(test["nll"], splits.test.x[0].size)
        test["bits_per_dim_elbo"] = bits_per_dim(test["negative_elbo"], splits.test.x[0].size)
    if splits.train.label is None or splits.test.label is None or config.flat:
        return test
    codes = [over_set(partial(_group_means, model), state, dataset) for dataset in (splits.train, splits.test)]
    features = {f"z{i + 1}": pair for i, pair in enumerate(zip(*codes, strict=True))}
    labels = splits.train.label, splits.test.label
    for found in probe(features, *labels, num_labels=(config.num_labels,), seed=config.seed):
        if found.classifier == "logistic regression":
            test[f"accuracy_{found.features}"] = float(found.accuracy.mean())
    return test


def _group_means(model: Any, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> tuple[Array, ...]:
    """The posterior's mean of every group, [B, D] each, given the means of those above."""
    del model_state, key
    return tuple(q.mean.reshape(len(q.mean), -1) for q in model.apply(params, batch["x"], method="encode"))


@file_errors()
def save_pictures(run: Run, model: Any, params: PyTree, splits: Splits) -> list[Path]:
    """Draw the pictures of a run and return their paths."""
    draw = partial(model.apply, params, method="sample")
    curves = [figures.learning_curves(run.picture("learning_curves"), run.records())]
    x = prepared(splits.test, COLUMNS)["x"]
    if run.settings["flat"]:
        samples = as_pictures(draw(100, key=seed_key(1)).mean)
        return [
            *curves,
            figures.image_grid(run.picture("samples"), samples, title="samples (means)"),
            figures.reconstructions(
                *(run.picture("reconstructions"), as_pictures(x), as_pictures(model.apply(params, x).mean)),
                title="test images and their reconstructions (means)",
            ),
        ]
    groups = range(len(model.rungs), 0, -1)
    below = [draw(COLUMNS, key=seed_key(2), from_group=i).mean for i in groups]
    seen = [model.apply(params, x, up_to=i, method="reconstruct").mean for i in groups]
    names = [figures.latent_name(i - 1) for i in groups]
    known = [names[0], *(f"{names[0]} to {name}" for name in names[1:])]
    shared, by = ["nothing shared", *(f"{each} shared" for each in known[:-1])], [f"by {each}" for each in known]
    grids: dict[str, tuple[Any, int, Sequence[str] | None, str]] = {
        f"samples_{t}": (draw(100, key=seed_key(1), temperature=t).mean, 10, None, f"samples (means), temperature {t}")
        for t in (0.7, 1.0)
    }
    grids["rungs"] = (np.concatenate(below), COLUMNS, shared, "samples (means) that share the upper groups")
    title = "test images, and what is known of them from the top down (means)"
    grids["reconstructions"] = (np.concatenate([x, *seen]), COLUMNS, ["test image", *by], title)
    return [
        *curves,
        figures.group_rates(run.picture("group_rates"), run.records()),
        *(
            figures.image_grid(run.picture(name), as_pictures(images), columns=columns, row_names=names, title=title)
            for name, (images, columns, names, title) in grids.items()
        ),
    ]


if __name__ == "__main__":
    main()
