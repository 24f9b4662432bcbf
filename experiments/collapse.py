"""Posterior collapse, shown and cured: digits under a Gaussian of variance 1, and three ways out.

  python -m experiments.collapse

Pixels lie in [0, 1], and their likelihood is N(mean, 1), as where the squared error is summed without a thought to its
scale. What the latents could tell is then worth less than it costs, and all of them collapse onto the prior. Free bits
(Kingma et al., 2016) and a posterior of committed rate (delta-VAE; Razavi et al., 2019) make the latents pay and be
used; a learned variance (sigma-VAE; Rybkin et al., 2021) removes the cause.
"""

import dataclasses
import json
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from rich.table import Table

import jaxvae
from experiments.command import console, user_errors
from experiments.splits import load_split
from jaxvae import data, figures
from jaxvae.distributions import DiagGaussian
from jaxvae.evaluation import active_units, aggregate_posterior
from jaxvae.keys import check_seed, seed_key
from jaxvae.posteriors import CommittedGaussian

DRAWN = 10


@dataclasses.dataclass(frozen=True)
class Config:
    """Posterior collapse, shown and cured."""

    data: str = "digits"
    """digits, or any image set that is prepared for tensorflow-datasets."""
    latent_dim: int = 8
    """Size of the latent."""
    hidden: tuple[int, ...] = (128,)
    """Widths of the dense layers."""
    epochs: int = 300
    """Passes over the training images, for each of the four."""
    batch_size: int = 64
    """Images per step."""
    rate: float = 1.0
    """Nats for each latent: those that are free, and those that are committed."""
    seed: int = 0
    """Decides the initial parameters, the order of the images and all noise."""
    out: Path | None = None
    """Where the picture and the figures go. Default: runs/collapse-TIME."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name in ("latent_dim", "epochs", "batch_size", *(["hidden"] if self.hidden else [])):
            if np.min(getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.rate < np.inf:
            raise ValueError(f"rate must be a positive number, got {self.rate}")


def make_models(config: Config, shape: tuple[int, ...]) -> dict[str, tuple[jaxvae.VAE, Any]]:
    """The model and the objective of each, under its name."""
    sizes = tuple(config.hidden)

    def model(**options: Any) -> jaxvae.VAE:
        parts = jaxvae.MLPEncoder(config.latent_dim, sizes), jaxvae.MLPDecoder(shape, sizes[::-1])
        return jaxvae.VAE(*parts, **{"likelihood": partial(DiagGaussian, log_var=0.0)} | options)

    free_bits = partial(jaxvae.beta_vae_loss, beta=1.0, free_bits=config.rate)
    return {
        "variance 1": (model(), jaxvae.vae_loss),
        "free bits": (model(), free_bits),
        "committed": (model(posterior=CommittedGaussian(config.rate)), jaxvae.vae_loss),
        "learned variance": (model(likelihood=jaxvae.SharedScale()), jaxvae.vae_loss),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Train the four, measure, draw."""
    with user_errors():
        config = tyro.cli(Config, description=__doc__, args=argv)
        train, test = (in_unit_interval(load_split(config.data, split)) for split in ("train", "test"))
    out = (config.out or Path("runs", f"collapse-{time.strftime('%Y%m%d-%H%M%S')}")).expanduser()
    measured, drawn = {}, {}
    for name, (model, loss) in make_models(config, train.shape).items():
        console.print(f"training: {name}", highlight=False)
        options = {"epochs": config.epochs, "batch_size": min(config.batch_size, len(train)), "seed": config.seed}
        run = jaxvae.train(model, train, loss=loss, validation=0, progress=False, **options)
        measured[name] = measure(run, test)
        drawn[name] = run.reconstruct(test.take(slice(DRAWN))).clip(0, 1)[:, None]
    out.mkdir(parents=True, exist_ok=True)
    record = json.dumps({"test": measured, **dataclasses.asdict(config)}, indent=2, default=str)
    (out / "collapse.json").write_text(record + "\n")
    x = np.asarray(test.prepared(DRAWN, key=seed_key(0))["x"])
    title = "test digits, and reconstructions by each"
    path = figures.completions(out / "collapse.png", x, drawn, {}, title=title)
    show(measured)
    for written in (path, out / "collapse.json"):
        console.print(str(written), highlight=False)


def in_unit_interval(split: data.Dataset) -> data.Dataset:
    """Grey values as real numbers in [0, 1]."""
    return data.from_arrays(split.name, split.x / np.float32(split.levels - 1), split.label, domain="real")


def measure(run: jaxvae.Run, test: data.Dataset) -> dict[str, float]:
    """How much the latents cost, how much they tell, and the mean squared error of what is made of them."""
    x = np.asarray(test.prepared(len(test), key=seed_key(0))["x"])
    posterior = run.model.apply(run.variables, x, method="encode")
    mean, log_var = (np.asarray(np.broadcast_to(each, posterior.mean.shape)) for each in posterior)
    found = aggregate_posterior(mean, log_var, key=seed_key(0))
    return {
        "rate": found.kl + found.mutual_information,
        "mutual_information": found.mutual_information,
        "active_latents": float(active_units(mean)),
        "error": float(np.square(run.reconstruct(x) - x).mean()),
    }


def show(measured: dict[str, dict[str, float]]) -> None:
    """Print the table."""
    table = Table(title="test images")
    for heading in ("", "rate", "I(x; z)", "active latents", "squared error of a pixel"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, of in measured.items():
        cells = (
            f"{of['rate']:.2f}",
            f"{of['mutual_information']:.2f}",
            f"{of['active_latents']:.0f}",
            f"{of['error']:.4f}",
        )
        table.add_row(name, *cells)
    console.print(table)


if __name__ == "__main__":
    main()
