"""Train a β-VAE and measure what its latents disentangle.

  python -m experiments.beta_vae sprites   64×64 sprites with five known factors, drawn on the fly; needs no data
  python -m experiments.beta_vae dsprites  dSprites (Matthey et al., 2017): 300,000 steps, for a GPU (TFDS_DATA_DIR)
  python -m experiments.beta_vae mnist     dynamically binarised MNIST, ten latents (TFDS_DATA_DIR)

The objective is that of Higgins et al. (2017; --objective beta --beta 1 is a VAE), of Burgess et al. (2018; capacity)
or of Chen et al. (2018; total-correlation). With known factors the report holds MIG, SAP, DCI and the FactorVAE and
BetaVAE scores (Locatello et al., 2019) beside those of the true factors, of noise and of random rotations of the true
factors: a score that a rotation reaches too says nothing about axes. What each costs and which numbers to expect:
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
from rich.table import Table

import jaxvae
from experiments.command import RunConfig, console, file_errors, parse, user_errors
from experiments.drawing import draw_means
from experiments.report import (
    EVALUATION_SEED,
    Report,
    as_pictures,
    elbo_terms,
    evaluator,
    measure,
    posteriors,
    save_pictures,
)
from experiments.run import Run, init_of, reached
from experiments.splits import Splits, check_pictures, load_split
from jaxvae import data, figures
from jaxvae.evaluation import disentanglement
from jaxvae.objectives import beta_from_normalized, cyclical_schedule, normalized_beta
from jaxvae.types import Array, LossFn, PRNGKey, PyTree, Schedule

NUM_TEST = 2_000  # images of a set without a test split
TRAVERSED = 2.5  # latents are moved from minus to plus this


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    data: str = "sprites"
    """sprites, or any image set that is prepared for tensorflow-datasets; those with factors are scored."""
    channels: tuple[int, ...] = (32, 32, 64, 64)
    """Of the 4×4 convolutions, each of which halves the image; the decoder mirrors them."""
    latent_dim: int = 10
    """Size of the latent."""
    binarize: bool = False
    """Draw each pixel as 0 or 1 with its grey value as probability."""
    objective: Literal["beta", "capacity", "total-correlation"] = "beta"
    """beta: β times the rate. capacity: γ times its distance from a capacity. total-correlation: β-TCVAE."""
    beta: float = 4.0
    """Weight of the rate (beta), of the total correlation (total-correlation). 1 is a VAE."""
    normalized_beta: float | None = None
    """In place of --beta: beta · latent_dim / (height · width · channels)."""
    schedule: Literal["constant", "linear", "cyclical"] = "constant"
    """linear: from --beta-start to --beta in --schedule-steps. cyclical: from 0 to --beta again and again, each cycle
    of --schedule-steps, to the middle of the run."""
    beta_start: float = 0.0
    """Where a linear schedule begins: 0 for a warm-up; above --beta it puts few latents in charge first."""
    schedule_steps: int = 1_000
    """Steps of a schedule; of the capacity too."""
    free_bits: float = 0.0
    """Nats that each latent has for nothing (beta, capacity)."""
    gamma: float = 1_000.0
    """Of capacity."""
    capacity: float = 25.0
    """Nats that the capacity grows to, from 0, in --schedule-steps."""
    learning_rate: float = 1e-4
    """Of Adam."""
    evaluate_every: int = 1_000
    """Steps between evaluations, each with a checkpoint."""
    nll_samples: int = 100
    """Importance samples per test image for -log p(x)."""
    score_points: int = 100_000
    """Images whose codes the scores draw from."""
    dci: Literal["model", "all", "none"] = "model"
    """DCI, which takes minutes: of the model, of the fixed points too, or not at all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers(
            counts=("latent_dim", "channels", "schedule_steps", "evaluate_every", "nll_samples", "score_points"),
            weights=("beta", "normalized_beta", "beta_start", "free_bits", "gamma", "capacity"),
            positive=("learning_rate",),
        )
        if self.objective == "capacity" and self.schedule != "constant":
            raise ValueError("with --objective capacity the capacity has the schedule, and gamma none")
        if self.objective == "total-correlation" and self.batch_size < 2:
            raise ValueError(f"the total correlation needs a batch of at least 2 examples, got {self.batch_size}")
        if self.objective == "total-correlation" and self.free_bits:
            raise ValueError("free_bits belong to --objective beta or capacity")


PRESETS = {
    "sprites": (
        "Sprites: 3 shapes × 6 scales × 40 orientations × 32 × 32 places; one pass, with a capacity that grows.",
        Config(
            preset="sprites",
            objective="capacity",  # at a constant β the place often ends up spread over three latents
            gamma=100.0,
            capacity=7.0,
            schedule_steps=11_000,
            epochs=1,
            batch_size=64,
            learning_rate=1e-3,
        ),
    ),
    "dsprites": (
        "dSprites, with the settings of Locatello et al. (2019): 300,000 steps.",
        Config(preset="dsprites", data="dsprites", epochs=27, batch_size=64, evaluate_every=10_000),
    ),
    "mnist": (
        "MNIST, dynamically binarised.",
        Config(
            preset="mnist",
            data="mnist",
            channels=(32, 64),
            binarize=True,
            epochs=10,
            batch_size=128,
            learning_rate=1e-3,
        ),
    ),
}


def make_model(config: Any) -> jaxvae.VAE:
    """The model of a run, from its config.json."""
    return jaxvae.VAE(
        jaxvae.ConvEncoder(config.latent_dim, tuple(config.channels)),
        jaxvae.ConvDecoder(tuple(config.image_shape), tuple(config.channels)),
    )


def draw(directory: Path, num: int, *, key: PRNGKey) -> np.ndarray:
    """Samples of a run, as experiments.drawing wants them."""
    return draw_means(directory, make_model, num, key=key)


def make_objective(config: Config, model: jaxvae.VAE, num_examples: int, total_steps: int) -> LossFn:
    """What the run minimises."""
    beta: float | Schedule = config.beta
    if config.schedule == "linear":
        beta = optax.linear_schedule(config.beta_start, config.beta, config.schedule_steps)
    if config.schedule == "cyclical":
        cycles = max(1, total_steps // (2 * config.schedule_steps))
        beta = cyclical_schedule(config.beta, period=config.schedule_steps, num_cycles=cycles)
    if config.objective == "total-correlation":
        return partial(jaxvae.tc_vae_loss, model, beta=beta, num_examples=num_examples)
    if config.objective == "capacity":
        capacity = optax.linear_schedule(0.0, config.capacity, config.schedule_steps)
        options = {"beta": config.gamma, "capacity": capacity, "free_bits": config.free_bits}
        return partial(jaxvae.beta_vae_loss, model, **options)
    if config.free_bits:
        return partial(jaxvae.beta_vae_loss, model, beta=beta, free_bits=config.free_bits)
    return partial(jaxvae.vae_loss, model, beta=beta)


def load(config: Any) -> Splits:
    """The images of a run. Those with factors are complete grids without a test split: some become the test images."""
    train = load_split(config.data, "train")
    if train.factors is None:
        test = load_split(config.data, "test")
    else:
        train, test = data.split_validation(train, NUM_TEST, seed=0)
    check_pictures(train)
    if config.smoke:
        few = np.random.default_rng(0).permutation(len(train))[:512]  # the first ones have one factor's value
        train, test = train.take(few), test.take(slice(256))
    splits = Splits(train, None, test, grey=train.prepare)
    return splits.binarized() if config.binarize and config.data != "sprites" else splits


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, score, draw."""
    config = parse(PRESETS, __doc__, argv)
    if config.smoke:
        config = dataclasses.replace(config, epochs=1, nll_samples=5, score_points=2_000, dci="none")

    with user_errors():
        splits = load(config)
        train, test = splits.train, splits.test
        config = with_beta(config, int(np.prod(train.shape)))
        order = data.Order(len(train), config.batch_size, config.epochs, config.seed)
        run = Run("beta_vae", config, image_shape=train.shape)
        model = make_model(SimpleNamespace(**run.settings))
    # Test images are measured by the plain ELBO, whatever the objective.
    evaluate = evaluator(partial(jaxvae.vae_loss, model), test)
    state = run.train(
        init_of(model, jnp.zeros((1, *train.shape))),
        make_objective(config, model, len(train), order.total_steps),
        optax.adam(config.learning_rate),
        *(train, order),
        evaluate=evaluate,
        evaluate_every=config.evaluate_every,
        split="test",
    )

    report = measure(model, state, test, grey=splits.grey, nll_samples=config.nll_samples)
    measured = elbo_terms(evaluate(state)) | report.test
    result: dict[str, Any] = {"test": measured, "beta": config.beta, "normalized_beta": config.normalized_beta}
    result["kl_per_dimension"] = report.kl.tolist()
    if train.factors is not None:
        scored, information = score(model, state, train, config)
        measured |= scored["model"]
        result |= {"scores": scored, "information": information}
    result |= {"nll_samples": config.nll_samples, **reached(state)}
    run.finish(result, lambda: save_all_pictures(run, model, state.params, report, test, result.get("information")))
    if train.factors is not None:
        print_scores(scored, information, train.factor_names)


def with_beta(config: Config, num_pixels: int) -> Config:
    """Fill in β from the normalised one or the other way round, and print both."""
    size = {"latent_dim": config.latent_dim, "num_pixels": num_pixels}
    if config.normalized_beta is not None:
        config = dataclasses.replace(config, beta=beta_from_normalized(config.normalized_beta, **size))
    config = dataclasses.replace(config, normalized_beta=normalized_beta(config.beta, **size))
    if config.objective == "capacity":
        text = f"gamma {config.gamma:g}, capacity to {config.capacity:g} nats in {config.schedule_steps:,} steps"
        console.print(text, highlight=False)
        return config
    text = f"beta {config.beta:g}, normalised {config.normalized_beta:.4g} = beta · {config.latent_dim} / {num_pixels}"
    console.print(text, highlight=False)
    return config


def score(
    model: jaxvae.VAE, state: jaxvae.TrainState, dataset: data.Dataset, config: Config
) -> tuple[dict[str, dict[str, float]], list[list[float]]]:
    """The disentanglement scores of the model and of the fixed points, and I(latent; factor) / H(factor), [D, F]."""
    chosen = scored_examples(dataset, config.score_points)
    codes, _ = posteriors(model, state, chosen)
    cheap, everything = disentanglement.CHEAP_SCORES, disentanglement.SCORES
    console.print(f"scoring {config.score_points:,} codes" + ("" if config.dci == "none" else "; DCI takes minutes"))
    scores = disentanglement.disentanglement_scores(
        codes, chosen.factors, scores=cheap if config.dci == "none" else everything
    )
    points = disentanglement.fixed_points(
        chosen.factors,
        latent_dim=config.latent_dim,
        rotations=3 if config.smoke else 20,
        scores=everything if config.dci == "all" else cheap,
    )
    information = disentanglement.mutual_information(codes, chosen.factors)
    return {"model": scores, **points}, (information / disentanglement.factor_entropy(chosen.factors)).tolist()


def scored_examples(dataset: data.Dataset, count: int) -> data.Dataset:
    """The examples, drawn with replacement, whose codes the scores read."""
    indices = np.random.default_rng(EVALUATION_SEED).integers(len(dataset), size=count)
    return dataset.take(np.sort(indices))


def save_all_pictures(
    run: Run,
    model: jaxvae.VAE,
    params: PyTree,
    report: Report,
    test: data.Dataset,
    information: list[list[float]] | None,
) -> list[Path]:
    """Draw the pictures of a run and return their paths."""
    pictures = save_pictures(run, model, params, report, test.label) + save_traversals(run, model, params, report)
    if information is not None:
        pictures.append(draw_information(run, information, report.kl, test.factor_names))
    return pictures


@file_errors()
def save_traversals(run: Run, model: jaxvae.VAE, params: PyTree, report: Report) -> list[Path]:
    """One latent moved from -2.5 to 2.5, the others at the code nearest the prior's mean, by falling KL."""
    order = np.argsort(-report.kl)
    base = report.codes[np.square(report.codes).sum(axis=1).argmin()]

    @jax.jit
    def decode(latent: Array) -> Array:
        return model.apply(params, latent, method="decode").mean

    def moved(values: np.ndarray) -> np.ndarray:
        latents = np.tile(base, (len(order), len(values), 1)).astype(np.float32)
        for row, latent in zip(latents, order, strict=True):
            row[:, latent] = values
        images = as_pictures(decode(latents.reshape(-1, len(base))))
        return images.reshape(len(order), len(values), *images.shape[1:])

    values = np.linspace(-TRAVERSED, TRAVERSED, 11)
    labels = [f"{figures.latent_name(latent)}  {report.kl[latent]:.2f} nats" for latent in order]
    moving = moved(np.linspace(-TRAVERSED, TRAVERSED, 20))
    return [
        figures.traversals(
            *(run.picture("traversals"), moved(values), values),
            labels=labels,
            title="means where one latent moves and the others stay",
        ),
        figures.traversal_gif(run.directory / "traversals.gif", moving, labels=labels),
    ]


@file_errors()
def draw_information(run: Run, information: list[list[float]], kl: np.ndarray, names: Sequence[str]) -> Path:
    """The heat map of which latent tells which factor, by falling KL."""
    order = np.argsort(-kl)
    labels, title = [figures.latent_name(latent) for latent in order], "what each latent tells of each factor"
    path = run.picture("information")
    return figures.factor_information(path, np.asarray(information)[order], names, labels=labels, title=title)


def print_scores(scored: dict[str, dict[str, float]], information: list[list[float]], names: Sequence[str]) -> None:
    """The scores beside those of the fixed points, and the latent that says most about each factor."""
    table = Table("score", *(name.replace("_", " ") for name in scored))
    for name in scored["model"]:
        cells = [f"{scores[name]:.3f}" if name in scores else "" for scores in scored.values()]
        table.add_row(name.replace("_", " "), *cells)
    console.print(table)
    for name, column in zip(names, np.asarray(information).T, strict=True):
        latent = int(column.argmax())
        console.print(f"{name}: z{latent + 1} tells {column[latent]:.2f} of it", highlight=False)


if __name__ == "__main__":
    main()
