"""Posteriors of a 2-D latent beside the exact one: how far each family of q can come, by integration on a grid.

  python -m experiments.densities

Four unnormalised densities of two variables stand for exact posteriors: a bent one, a ring, a wave of two branches and
two modes, all leaning (after the potentials of Rezende and Mohamed, 2015). A diagonal Gaussian, one with covariance, a
mixture and a flow of spline couplings minimise KL(q || p) by draws of q; what remains is integrated on a grid.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro
from rich.table import Table

from experiments.command import PictureFormat, console, file_errors, keep_programs, user_errors
from jaxvae import figures
from jaxvae._directory import write_whole
from jaxvae._json import to_json
from jaxvae._run import absolute
from jaxvae.distributions import DiagGaussian
from jaxvae.flows import FlowPosterior, FullCovariance, SplineCoupling
from jaxvae.keys import check_seed, seed_key
from jaxvae.posteriors import MixturePosterior
from jaxvae.types import Array, PyTree

EDGE, CELLS = 6.0, 300  # the grid is [-EDGE, EDGE]², CELLS on a side


def leaning(log_density: Callable[[Array], Array]) -> Callable[[Array], Array]:
    """The same, turned by 35 degrees, so that its variables hang together."""
    angle = np.deg2rad(35)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], np.float32)
    return lambda z: log_density(z @ turn)


def banana(z: Array) -> Array:
    """One mode, bent: z₂ about z₁² / 2."""
    return -0.5 * jnp.square(z[:, 0]) - 0.5 * jnp.square((z[:, 1] - 0.5 * jnp.square(z[:, 0]) + 1) / 0.4)


def ring(z: Array) -> Array:
    """A circle, heavier on its left and right."""
    radius = jnp.sqrt(jnp.square(z).sum(axis=1) + 1e-12)
    sides = [-0.5 * jnp.square((z[:, 0] - side) / 0.8) for side in (-2.0, 2.0)]
    return -0.5 * jnp.square((radius - 2) / 0.4) + jnp.logaddexp(*sides)


def wave(z: Array) -> Array:
    """A sine with a second branch beside it."""
    middle = jnp.sin(0.5 * jnp.pi * z[:, 0])
    branch = 2 * jnp.exp(-0.5 * jnp.square((z[:, 0] - 1) / 0.6))
    paths = [-0.5 * jnp.square((z[:, 1] - each) / 0.35) for each in (middle, middle - branch)]
    return jnp.logaddexp(*paths) - 0.5 * jnp.square(z[:, 0] / 1.5)


def two_modes(z: Array) -> Array:
    """Two long Gaussians side by side."""
    modes = [-0.5 * jnp.square(z[:, 0] / 1.2) - 0.5 * jnp.square((z[:, 1] - side) / 0.35) for side in (-1.0, 1.0)]
    return jnp.logaddexp(*modes)


DENSITIES: dict[str, Callable[[Array], Array]] = {
    "banana": leaning(banana),
    "ring": leaning(ring),
    "wave": leaning(wave),
    "two modes": leaning(two_modes),
}
COUPLINGS = tuple(SplineCoupling((32, 32), reverse=i % 2 == 1) for i in range(6))
FAMILIES: dict[str, Any] = {
    "diagonal": DiagGaussian,
    "Cholesky": FullCovariance(),
    "mixture": MixturePosterior(5),
    "flow": FlowPosterior(COUPLINGS),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Posteriors of a 2-D latent beside the exact one."""

    steps: int = 4000
    """Of Adam, for each."""
    samples: int = 256
    """Draws for each step."""
    learning_rate: float = 5e-3
    """Of Adam; it falls to 0 by a cosine."""
    seed: int = 0
    """Decides the start and all noise."""
    out: Path | None = None
    """Where the picture and the figures go. Default: runs/densities-TIME."""
    picture_format: PictureFormat = "png"
    """What pictures are: pixels, or vectors for print."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name in ("steps", "samples"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not 0 < self.learning_rate < np.inf:
            raise ValueError(f"learning_rate must be a positive number, got {self.learning_rate}")


def main(argv: Sequence[str] | None = None) -> None:
    """Fit every family to every density, integrate, draw."""
    with user_errors():
        config = tyro.cli(Config, description=__doc__, args=argv)
        keep_programs()
        out = absolute(config.out or Path("runs", f"densities-{time.strftime('%Y%m%d-%H%M%S')}"), "--out")
    grid, area = make_grid()
    kl: dict[str, dict[str, float]] = {}
    pictures = []
    for name, log_density in DENSITIES.items():
        exact = np.asarray(log_density(grid), np.float64)
        exact -= np.log(np.exp(exact).sum() * area)
        drawn = [np.exp(exact)]
        kl[name] = {}
        for family, posterior in FAMILIES.items():
            log_q = fit(posterior, log_density, config, grid)
            kl[name][family] = float((np.exp(log_q) * (log_q - exact)).sum() * area)
            inside = float(np.exp(log_q).sum() * area)
            if not abs(inside - 1) < 0.02:
                console.print(f"warning: {family} for {name} has {inside:.3f} of its mass on the grid", highlight=False)
            drawn.append(np.exp(log_q))
        console.print(f"{name}: " + ", ".join(f"{family} {value:.3f}" for family, value in kl[name].items()))
        pictures += [density / density.max() for density in drawn]
    images = np.stack(pictures).reshape(-1, CELLS, CELLS, 1)[:, ::-1][:, ::3, ::3].astype(np.float32)
    names = {"row_names": list(DENSITIES), "column_names": ["p", *FAMILIES]}
    title = "densities p of two variables, and the best q of each family"
    path = out / f"densities.{config.picture_format}"
    with file_errors("run this again"):
        out.mkdir(parents=True, exist_ok=True)
        record = to_json({"kl": kl, **dataclasses.asdict(config)}, indent=2, default=str)
        write_whole(out / "densities.json", record + "\n")
        figures.image_grid(path, images, columns=1 + len(FAMILIES), title=title, **names)
    show(kl)
    for written in (path, out / "densities.json"):
        console.print(str(written), highlight=False)


def make_grid() -> tuple[Array, float]:
    """The middles of all cells, [CELLS², 2], by rows of z₂, and the area of one."""
    width = 2 * EDGE / CELLS
    middles = np.linspace(-EDGE + width / 2, EDGE - width / 2, CELLS)
    second, first = np.meshgrid(middles, middles, indexing="ij")
    return jnp.asarray(np.stack([first.ravel(), second.ravel()], axis=1), jnp.float32), width * width


def fit(posterior: Any, log_density: Callable[[Array], Array], config: Config, grid: Array) -> np.ndarray:
    """The log-density of the fitted q at every point of the grid, float64 nats."""
    init_key, step_key = jax.random.split(seed_key(config.seed))
    start = jnp.zeros((1, 2))
    modules = {} if posterior is DiagGaussian else posterior.init(init_key, start, start)
    params = {"mean": start, "log_var": start, "modules": modules}

    def record(params: PyTree, count: int) -> Any:
        mean, log_var = (jnp.broadcast_to(params[name], (count, 2)) for name in ("mean", "log_var"))
        return (
            posterior(mean, log_var) if posterior is DiagGaussian else posterior.apply(params["modules"], mean, log_var)
        )

    def divergence(params: PyTree, key: Array) -> Array:
        q = record(params, config.samples)
        if hasattr(q, "sample_and_log_prob"):
            z, log_q = q.sample_and_log_prob(key=key)
        else:
            z = q.sample(key=key)
            log_q = q.log_prob(z)
        return (log_q - log_density(z)).mean()

    optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, config.steps))

    @jax.jit
    def train(params: PyTree) -> PyTree:
        def step(carry: tuple[PyTree, Any], i: Array) -> tuple[tuple[PyTree, Any], None]:
            params, state = carry
            gradient = jax.grad(divergence)(params, jax.random.fold_in(step_key, i))
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimizer.init(params)), jnp.arange(config.steps))[0][0]

    params = train(params)
    return np.asarray(jax.jit(lambda p: record(p, len(grid)).log_prob(grid))(params), np.float64)


def show(kl: dict[str, dict[str, float]]) -> None:
    """Print the table."""
    table = Table(title="KL(q || p), nats")
    for heading in ("", *FAMILIES):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, values in kl.items():
        table.add_row(name, *(f"{value:.3f}" for value in values.values()))
    console.print(table)


if __name__ == "__main__":
    main()
