"""Posterior collapse, shown and cured: digits under a Gaussian of variance 1, or by pixels that see each other.

  python -m experiments.collapse                                  dense networks, pixels as N(mean, 1)
  python -m experiments.collapse --model pixel-vae --rate 0.5     PixelVAEs of binarised digits

Under the first, pixels lie in [0, 1], as where the squared error is summed without a thought to its scale. What the
latents could tell is then worth less than it costs, and all of them collapse onto the prior. Free bits (Kingma et al.,
2016) and a posterior of committed rate (delta-VAE; Razavi et al., 2019) make the latents pay and be used; a learned
variance (sigma-VAE; Rybkin et al., 2021) removes the cause. Under the second (Gulrajani et al., 2017), a PixelCNN that
sees far predicts pixels without the latent. Free bits keep it in use; to see less is a cure only where neighbours tell
little (Chen et al., 2017), which those of 8×8 pixels do not.
"""

import dataclasses
import re
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from rich.table import Table

import jaxvae
from experiments.command import PictureFormat, console, file_errors, keep_programs, user_errors
from experiments.splits import load_split
from jaxvae import data, figures
from jaxvae._directory import write_whole
from jaxvae._json import to_json
from jaxvae._run import absolute
from jaxvae.distributions import DiagGaussian
from jaxvae.evaluation import active_units, aggregate_posterior
from jaxvae.keys import check_seed, seed_key
from jaxvae.models import pixel_vae
from jaxvae.posteriors import CommittedGaussian

DRAWN = 10


@dataclasses.dataclass(frozen=True)
class Config:
    """Posterior collapse, shown and cured."""

    model: Literal["dense", "pixel-vae"] = "dense"
    """What collapses: a Gaussian of variance 1 on grey pixels, or binary pixels that see those before them."""
    data: str = "digits"
    """digits, or any image set that is prepared for tensorflow-datasets."""
    latent_dim: int = 8
    """Size of the latent."""
    hidden: tuple[int, ...] = (128,)
    """Widths of the dense layers."""
    epochs: int | None = None
    """Passes over the training images, for each of the four. Default: 300, or 30 of the PixelVAEs."""
    batch_size: int = 64
    """Images per step."""
    rate: float = 1.0
    """Nats for each latent: those that are free, and those that are committed."""
    seed: int = 0
    """Decides the initial parameters, the order of the images and all noise."""
    out: Path | None = None
    """Where the picture, the figures and the four runs go. Default: runs/collapse-TIME."""
    picture_format: PictureFormat = "png"
    """What pictures are: pixels, or vectors for print."""
    resume: bool = False
    """Continue in --out, bit for bit: the runs that ended are read, the one that was stopped goes on."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name in ("latent_dim", "epochs", "batch_size", *(["hidden"] if self.hidden else [])):
            value = getattr(self, name)
            if value is not None and np.min(value) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if not 0 < self.rate < np.inf:
            raise ValueError(f"rate must be a positive number, got {self.rate}")
        if self.resume and self.out is None:
            raise ValueError("--resume needs the directory of what goes on: pass --out")


def make_models(config: Config, train: data.Dataset) -> dict[str, tuple[jaxvae.VAE, Any]]:
    """The model and the objective of each, under its name."""
    sizes, shape = tuple(config.hidden), train.shape

    def model(**options: Any) -> jaxvae.VAE:
        parts = jaxvae.MLPEncoder(config.latent_dim, sizes), jaxvae.MLPDecoder(shape, sizes[::-1])
        return jaxvae.VAE(*parts, **{"likelihood": partial(DiagGaussian, log_var=0.0)} | options)

    free_bits = partial(jaxvae.beta_vae_loss, beta=1.0, free_bits=config.rate)
    if config.model == "pixel-vae":
        return pixel_models(config, train, free_bits)
    return {
        "variance 1": (model(), jaxvae.vae_loss),
        "free bits": (model(), free_bits),
        "committed": (model(posterior=CommittedGaussian(config.rate)), jaxvae.vae_loss),
        "learned variance": (model(likelihood=jaxvae.SharedScale()), jaxvae.vae_loss),
    }


def pixel_models(config: Config, train: data.Dataset, free_bits: Any) -> dict[str, tuple[jaxvae.VAE, Any]]:
    """The same of PixelVAEs: pixels that see six columns to either side and seven rows, the next ones, or none."""
    sizes, shape = tuple(config.hidden), train.shape
    options = {"num_values": 2, "channels": 24, "hidden": sizes, "dense": True}
    pixels = partial(pixel_vae, shape, config.latent_dim, **options)
    far, near = {"layers": 3, "kernel": 5}, {"layers": 1, "kernel": 3}
    none = jaxvae.VAE(jaxvae.MLPEncoder(config.latent_dim, sizes), jaxvae.MLPDecoder(shape, sizes[::-1]))
    return {
        "pixels see far": (pixels(**far), jaxvae.vae_loss),
        "far, free bits": (pixels(**far), free_bits),
        "pixels see near": (pixels(**near), jaxvae.vae_loss),
        "pixels see none": (none, jaxvae.vae_loss),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Train the four, measure, draw."""
    with user_errors():
        config = tyro.cli(Config, description=__doc__, args=argv)
        keep_programs()
        train, test = (load_split(config.data, split) for split in ("train", "test"))
        change = in_unit_interval if config.model == "dense" else binarized
        train, test = change(train), change(test)
        out = absolute(config.out or Path("runs", f"collapse-{time.strftime('%Y%m%d-%H%M%S')}"), "--out")
    measured, drawn = {}, {}
    x = np.asarray(test.prepared(len(test), key=seed_key(0))["x"])
    for name, (model, loss) in make_models(config, train).items():
        console.print(f"training: {name}", highlight=False)
        run = train_one(config, model, loss, train, out / re.sub(r"\W+", "-", name))
        means = reconstruct(run, x)
        measured[name] = measure(run, x, means)
        drawn[name] = means[:DRAWN].clip(0, 1)
    record = to_json({"test": measured, **dataclasses.asdict(config)}, indent=2, default=str)
    names, title = ["test image", *drawn], "test digits and their reconstructions (means)"
    rows = np.concatenate([x[:DRAWN], *drawn.values()])
    path = out / f"collapse.{config.picture_format}"
    with file_errors():
        write_whole(out / "collapse.json", record + "\n")
        figures.image_grid(path, rows, columns=len(x[:DRAWN]), row_names=names, title=title)
    show(measured)
    for written in (path, out / "collapse.json"):
        console.print(str(written), highlight=False)


def train_one(config: Config, model: jaxvae.VAE, loss: Any, train: data.Dataset, out: Path) -> jaxvae.Run:
    """One of the four, in a directory of its own; a signal ends the program once its state is saved."""
    options: dict[str, Any] = {
        "epochs": config.epochs or (30 if config.model == "pixel-vae" else 300),
        "batch_size": min(config.batch_size, len(train)),
        "progress": config.model == "pixel-vae",
        "seed": config.seed,
    }
    with user_errors(lambda text: text.replace("resume=True", "--resume").replace("out=", "--out")):
        run = jaxvae.train(model, train, loss=loss, validation=0, out=out, resume=config.resume, **options)
    if run.stopped in ("SIGINT", "SIGTERM"):
        again = f"the same options, --out {out.parent} --resume"
        console.print(f"stopped by {run.stopped} at step {run.step}; continue with {again}", highlight=False)
        sys.exit(130 if run.stopped == "SIGINT" else 143)
    return run


def in_unit_interval(split: data.Dataset) -> data.Dataset:
    """Grey values as real numbers in [0, 1]."""
    return data.from_arrays(split.name, split.x / np.float32(split.levels - 1), split.label, domain="real")


def binarized(split: data.Dataset) -> data.Dataset:
    """Each pixel drawn as 0 or 1 with its grey value as probability, anew at every step."""
    return split.with_prepare(data.make_prepare(split.levels, binarize=True))


def reconstruct(run: jaxvae.Run, x: np.ndarray) -> np.ndarray:
    """The means of p(x|z) at the means of q(z|x); of PixelVAEs those of some draws."""
    return np.asarray(jax.jit(lambda variables, x: run.model.apply(variables, x).mean)(run.variables, x))


def measure(run: jaxvae.Run, x: np.ndarray, means: np.ndarray) -> dict[str, float]:
    """How much the latents cost, how much they tell, the bound, and the mean squared error of what is made of them."""
    posterior = run.model.apply(run.variables, x, method="encode")
    mean, log_var = (np.asarray(np.broadcast_to(each, posterior.mean.shape)) for each in posterior)
    found = aggregate_posterior(mean, log_var, key=seed_key(0))
    batch = {"x": x, "index": jnp.arange(len(x), dtype=jnp.int32)}
    loss = jax.jit(partial(jaxvae.vae_loss, run.model))
    _, (_, metrics) = loss(run.params, run.model_state, batch, key=seed_key(0), step=0)
    return {
        "rate": found.kl + found.mutual_information,
        "mutual_information": found.mutual_information,
        "active_latents": float(active_units(mean)),
        "negative_elbo": float(metrics["negative_elbo"]),
        "error": float(np.square(means - x).mean()),
    }


def show(measured: dict[str, dict[str, float]]) -> None:
    """Print the table."""
    table = Table(title="test images")
    for heading in ("", "rate", "I(x; z)", "active latents", "-ELBO", "squared error of a pixel"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, of in measured.items():
        cells = (
            f"{of['rate']:.2f}",
            f"{of['mutual_information']:.2f}",
            f"{of['active_latents']:.0f}",
            f"{of['negative_elbo']:.2f}",
            f"{of['error']:.4f}",
        )
        table.add_row(name, *cells)
    console.print(table)


if __name__ == "__main__":
    main()
