"""How many modes of a mixture a generator finds: a ring of 8 Gaussians, or a grid of 25, in the plane.

  python -m experiments.modes ring                 WGAN-GP (Gulrajani et al., 2017)
  python -m experiments.modes grid --model gan     the plain GAN (Goodfellow et al., 2014), which drops or blurs modes

A sample counts where it is within three standard deviations of the nearest mode, and a mode as covered where a tenth
of its fair share of the samples counts for it. `modes.png` shows data and samples as densities.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
import optax

import jaxvae
from experiments.command import RunConfig, file_errors, parse, user_errors
from experiments.run import Run, init_of, reached
from jaxvae import data, figures
from jaxvae.keys import seed_key
from jaxvae.losses import NON_SATURATING, WASSERSTEIN
from jaxvae.models import GAN
from jaxvae.networks import MLPDiscriminator
from jaxvae.objectives import gan_loss
from jaxvae.training import adversarial_optimizer
from jaxvae.types import PyTree

POINTS, MEASURED, CELLS = 50_000, 10_000, 160
LEAST_SHARE = 0.1  # of a mode's fair share of samples, from which on it is covered


class Mixture(NamedTuple):
    """Equal Gaussians: their centres [K, 2], the standard deviation of each, and how far a picture reaches."""

    centres: np.ndarray
    scale: float
    edge: float


def ring() -> Mixture:
    """8 on a circle."""
    angle = 2 * np.pi * np.arange(8) / 8
    return Mixture(2 * np.stack([np.cos(angle), np.sin(angle)], axis=1), 0.05, 2.5)


def grid() -> Mixture:
    """25, five by five."""
    side = np.arange(-2.0, 3.0)
    return Mixture(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2), 0.05, 2.5)


MIXTURES = {"ring": ring(), "grid": grid()}


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    model: Literal["wgan-gp", "gan"] = "wgan-gp"
    """A critic with a gradient penalty, or the plain game with its non-saturating form."""
    hidden: tuple[int, ...] = (128, 128, 128)
    """Widths of the layers of both networks."""
    latent_dim: int = 2
    """Size of the latent."""
    learning_rate: float = 1e-3
    """Of both Adams; it falls to 0 over all epochs, which cannot then change."""
    critic_steps: int = 2
    """Of wgan-gp: steps of the critic for one of the generator."""
    penalty: float = 0.1
    """Of wgan-gp: the weight of the gradient penalty."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers(
            counts=("hidden", "latent_dim", "critic_steps"), weights=("penalty",), positive=("learning_rate",)
        )


PRESETS = {
    "ring": ("8 Gaussians on a circle.", Config("ring", 45, 256)),
    "grid": ("25 Gaussians, five by five.", Config("grid", 90, 256)),
}


def make_model(config: Any) -> GAN:
    """The model of a run, from its config.json."""
    sizes = tuple(config.hidden)
    return GAN(jaxvae.MLPDecoder((2,), sizes), MLPDiscriminator(sizes), config.latent_dim)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, count modes, draw."""
    config = parse(PRESETS, __doc__, argv)
    if config.smoke:
        config = dataclasses.replace(config, epochs=1, hidden=(16,))
    mixture = MIXTURES[config.preset]
    with user_errors():
        train = data.from_arrays(
            config.preset, draw(mixture, 512 if config.smoke else POINTS, config.seed), domain="real"
        )
        order = data.Order(len(train), config.batch_size, config.epochs, config.seed)
        run = Run("modes", config, decay_epochs=config.epochs)
    model = make_model(SimpleNamespace(**run.settings))
    evaluate = partial(measure, model, mixture)
    state = run.train(
        init_of(model, jnp.zeros((1, 2))),
        make_objective(config, model),
        make_optimizer(config, order.total_steps),
        *(train, order),
        evaluate=evaluate,
        evaluate_every=max(1, config.epochs // 10) * order.steps_per_epoch,
        split="test",
    )
    run.finish({"test": evaluate(state), **reached(state)}, lambda: save_pictures(run, model, state.params, mixture))


def make_objective(config: Config, model: GAN) -> Any:
    """What the run minimises."""
    if config.model == "gan":
        return partial(gan_loss, model, loss=NON_SATURATING)
    return partial(gan_loss, model, loss=WASSERSTEIN, penalty=config.penalty, critic_steps=config.critic_steps)


def make_optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """An Adam each; the generator's rate falls by its own steps."""
    turns = config.critic_steps if config.model == "wgan-gp" else 1
    generator, critic = (
        optax.adam(optax.cosine_decay_schedule(config.learning_rate, max(1, count)), b1=0.5, b2=0.9)
        for count in (steps // turns, steps)
    )
    return adversarial_optimizer(generator, critic)


def draw(mixture: Mixture, count: int, seed: int) -> np.ndarray:
    """Points [count, 2] of a mixture."""
    generator = np.random.default_rng(seed)
    centre = mixture.centres[generator.integers(len(mixture.centres), size=count)]
    return (centre + mixture.scale * generator.standard_normal((count, 2))).astype(np.float32)


def samples_of(model: GAN, params: PyTree) -> np.ndarray:
    """The same draws at every evaluation, [N, 2]."""
    return np.asarray(model.apply(params, MEASURED, key=seed_key(1), method="sample"), np.float64)


def measure(model: GAN, mixture: Mixture, state: jaxvae.TrainState) -> dict[str, float]:
    """The figures of a state's samples."""
    return coverage(samples_of(model, state.params), mixture)


def coverage(samples: np.ndarray, mixture: Mixture) -> dict[str, float]:
    """How many modes samples [N, 2] cover, the share of samples at a mode, and how unequally they fall on the modes.

    The last is KL(shares of the modes || equal shares), nats: 0 for all alike.
    """
    distance = np.linalg.norm(samples[:, None] - mixture.centres[None], axis=-1)
    nearest, near = distance.argmin(axis=1), distance.min(axis=1) <= 3 * mixture.scale
    counts = np.bincount(nearest[near], minlength=len(mixture.centres))
    fair = len(samples) / len(mixture.centres)
    share = counts / max(1, counts.sum())
    entropy = -float((share * np.log(np.where(share > 0, share, 1))).sum())
    return {
        "modes_covered": float((counts >= LEAST_SHARE * fair).sum()),
        "modes": float(len(counts)),
        "samples_at_a_mode": float(near.mean()),
        "modes_kl": float(np.log(len(counts))) - entropy,
    }


@file_errors()
def save_pictures(run: Run, model: GAN, params: PyTree, mixture: Mixture) -> list[Path]:
    """Draw data and samples as densities, side by side."""
    both = [draw(mixture, MEASURED, 1), samples_of(model, params)]
    images = np.stack([density(points, mixture.edge) for points in both])
    names, title = ["data", run.settings["model"]], f"{run.settings['preset']}: where samples lie"
    return [figures.image_grid(run.picture("modes"), images, columns=2, column_names=names, title=title)]


def density(points: np.ndarray, edge: float) -> np.ndarray:
    """A picture [CELLS, CELLS, 1] of where points are, up being up; bright from a few points in a cell on."""
    counts, *_ = np.histogram2d(points[:, 1], points[:, 0], bins=CELLS, range=[[-edge, edge]] * 2)
    return np.minimum(counts / 6, 1).astype(np.float32)[::-1, :, None]


if __name__ == "__main__":
    main()
