"""Train VAEs over a range of β, several seeds each, as one program, and draw rate against distortion.

  python -m experiments.rate_distortion mnist    8 values of β, 3 seeds, dynamically binarised MNIST (TFDS_DATA_DIR)
  python -m experiments.rate_distortion digits   the same on scikit-learn's digits; needs no data
  python -m experiments.rate_distortion sprites  β = 1, 4, 16, 3 seeds, 300,000 steps, with scores by β: for a GPU

The models share their data, its order included, and differ in β and in the seed of parameters and noise. What each
costs and which numbers to expect: experiments/README.md.
"""

import dataclasses
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.table import Table

import jaxvae
from experiments import beta_vae
from experiments.command import RunConfig, console, file_errors, parse, run_or_leave, user_errors
from experiments.report import EVALUATION_BATCH, EVALUATION_SEED, posteriors
from experiments.run import Run, init_of, make_feed
from experiments.splits import Splits
from experiments.sweep_processes import cores
from jaxvae import data, figures
from jaxvae._json import read_numbers
from jaxvae.evaluation import active_units, disentanglement
from jaxvae.keys import check_seed, seed_key
from jaxvae.training.epoch import TrainEpoch
from jaxvae.training.mesh import everywhere, replicated, split
from jaxvae.training.step import TrainStep
from jaxvae.training.sweep import How, Numbers, SweepState, init_sweep_state, make_sweep_epoch, map_members
from jaxvae.types import Batch, Metrics, PRNGKey

MEASURED = ("rate", "distortion", "negative_elbo")
# What pictures call them, with their units.
SAID = {name: f"{name} (nats)" for name in MEASURED} | {
    "negative_elbo": "$-$ELBO (nats)",
    "active_units": "active latents",
}


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Options of this experiment."""

    data: str = "mnist"
    """digits, sprites, or any image set that is prepared for tensorflow-datasets."""
    network: Literal["mlp", "conv"] = "mlp"
    """The body of encoder and decoder."""
    hidden: tuple[int, ...] = (400,)
    """Widths of the dense layers, or channels of the convolutions."""
    latent_dim: int = 20
    """Size of the latent."""
    binarize: bool = True
    """Draw each pixel as 0 or 1 with its grey value as probability."""
    betas: tuple[float, ...] = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
    """Weights of the rate."""
    num_seeds: int = 3
    """Models for each β, with the seeds --seed, --seed + 1, ..."""
    learning_rate: float = 1e-3
    """Of Adam."""
    how: Literal["auto", "vmap", "map", "processes"] = "auto"
    """vmap: all models side by side in one program. map: one after the other in one program. processes: a process and
    a core for each β, on this machine. auto: vmap on an accelerator; on a CPU processes, or map where there are fewer
    than three cores, --distributed or --devices."""
    evaluate_every: int = 1
    """Epochs between evaluations, each with a checkpoint."""
    score_points: int = 100_000
    """Images whose codes the disentanglement scores draw from, where factors are known."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers(
            counts=("latent_dim", "hidden", "num_seeds", "evaluate_every", "score_points"), positive=("learning_rate",)
        )
        check_seed(self.seed + self.num_seeds - 1)  # the last one's
        if not self.betas or not all(beta > 0 and np.isfinite(beta) for beta in self.betas):
            raise ValueError(f"betas must be positive numbers, got {self.betas}")
        if len({f"{beta:g}" for beta in self.betas}) < len(self.betas):  # their directories' names
            raise ValueError(f"betas must differ, in their first six digits, got {self.betas}")
        if self.how == "processes" and self.shared:
            raise ValueError(
                "--how processes gives each β a process and a core of its own: leave out --distributed and --devices, "
                "or pass --how map or vmap"
            )

    @property
    def shared(self) -> bool:
        """Whether several processes or devices were asked to share each batch."""
        return self.distributed or self.devices not in (None, 1)


PRESETS = {
    "mnist": ("MNIST, dynamically binarised, 784-400-20.", Config(preset="mnist", epochs=10, batch_size=128)),
    "digits": (
        "scikit-learn's digits, dynamically binarised.",
        Config(
            preset="digits", data="digits", hidden=(200,), latent_dim=10, epochs=100, batch_size=64, evaluate_every=10
        ),
    ),
    "sprites": (
        "Sprites with the settings of Locatello et al. (2019), 300,000 steps.",
        Config(
            preset="sprites",
            data="sprites",
            network="conv",
            hidden=(32, 32, 64, 64),
            latent_dim=10,
            binarize=False,
            betas=(1.0, 4.0, 16.0),
            learning_rate=1e-4,
            epochs=27,
            batch_size=64,
        ),
    ),
}


def make_model(config: Config, image_shape: Sequence[int]) -> jaxvae.VAE:
    """The model of every member."""
    if config.network == "conv":
        encoder = jaxvae.ConvEncoder(config.latent_dim, config.hidden)
        return jaxvae.VAE(encoder, jaxvae.ConvDecoder(tuple(image_shape), config.hidden))
    encoder = jaxvae.MLPEncoder(config.latent_dim, config.hidden)
    return jaxvae.VAE(encoder, jaxvae.MLPDecoder(tuple(image_shape), config.hidden[::-1]))


def main(argv: Sequence[str] | None = None) -> None:
    """Train all members, measure them, draw them together."""
    config = parse(PRESETS, __doc__, argv)
    if config.smoke:
        config = dataclasses.replace(config, epochs=1, betas=config.betas[:2], num_seeds=2, score_points=1_000)
    on_cpu = jax.default_backend() == "cpu"
    how = config.how
    if how == "auto":
        how = "vmap" if not on_cpu else "processes" if len(cores()) > 2 and not config.shared else "map"
    with user_errors():
        if how == "processes" and not on_cpu:
            raise ValueError("--how processes is for CPUs: several processes cannot share an accelerator's memory")
        splits = beta_vae.load(config)
        order = data.Order(len(splits.train), config.batch_size, config.epochs, config.seed)
        run = Run("rate_distortion", config)

    in_processes = how == "processes"
    members = train_in_processes(run, config) if in_processes else train_together(run, config, how, splits, order)
    report(run, config, how, members)


def train_together(run: Run, config: Config, how: How, splits: Splits, order: data.Order) -> list[dict[str, Any]]:
    """All members in one program; what each of them measured."""
    model = make_model(config, splits.train.shape)
    beta, seed = (grid.ravel() for grid in np.meshgrid(config.betas, np.arange(config.num_seeds), indexing="ij"))
    seed = seed + config.seed
    keys = jax.vmap(jax.random.key)(jnp.asarray(seed, jnp.uint32))
    init = init_of(model, jnp.zeros((1, *splits.train.shape)))
    state = init_sweep_state(init, optax.adam(config.learning_rate), {"beta": beta}, keys=keys)
    with user_errors():
        state = run.restore(state)
    evaluate_members = make_evaluate_members(model, splits.test, how)

    def evaluate(state: SweepState) -> dict[str, float]:
        metrics = jax.device_get(evaluate_members(state.members))
        means = {name: metrics[name].mean() for name in MEASURED}
        each = zip(beta, seed, *(metrics[name] for name in ("rate", "distortion")), strict=True)
        for b, s, rate, distortion in each:
            means |= {f"rate, beta {b:g}, seed {s}": rate, f"distortion, beta {b:g}, seed {s}": distortion}
        return means

    if run.mesh is not None:
        state = everywhere(state, run.mesh)
    state = run.fit(
        state,
        make_members_epoch(run, config, model, splits.train, how),
        make_feed(splits.train, order, run.mesh, whole=True),
        evaluate=evaluate,
        evaluate_every=config.evaluate_every * order.steps_per_epoch,
        split="test",
    )
    metrics = jax.device_get(evaluate_members(state.members))
    members = []
    for m in range(len(beta)):
        member = jax.tree.map(lambda leaf, m=m: leaf[m], state.members)
        measured: dict[str, Any] = {"beta": float(beta[m]), "seed": int(seed[m])}
        measured |= {name: float(metrics[name][m]) for name in MEASURED}
        members.append(measured | measure_member(config, model, member, splits, measured))
    return members


def make_members_epoch(run: Run, config: Config, model: jaxvae.VAE, train: data.Dataset, how: How) -> TrainEpoch:
    """The program that takes the steps of all members."""

    def prepare_shares(batch: Batch, *, key: PRNGKey) -> Batch:
        """Each device prepares its share of the batch, and so computes on that share alone."""
        if run.mesh is not None:
            batch = jax.lax.with_sharding_constraint(batch, split(run.mesh))
        return train.prepare(batch, key=key)

    def make_step(numbers: Numbers) -> TrainStep:
        loss_fn = partial(jaxvae.vae_loss, model, beta=numbers["beta"])
        return jaxvae.make_train_step(loss_fn, optax.adam(config.learning_rate), prepare=prepare_shares)

    train_epoch = make_sweep_epoch(make_step, how=how)
    if run.mesh is None:
        return train_epoch
    return jax.jit(train_epoch, donate_argnums=0, out_shardings=replicated(run.mesh))


def make_evaluate_members(model: jaxvae.VAE, test: data.Dataset, how: How) -> Callable[[jaxvae.TrainState], Metrics]:
    """Return `members -> metrics` [M] over a whole set, the plain ELBO's."""
    evaluate = jaxvae.make_evaluate(jaxvae.make_eval_step(partial(jaxvae.vae_loss, model), prepare=test.prepare))
    feed = data.evaluation_feed(test, EVALUATION_BATCH)

    @jax.jit
    def evaluate_members(members: jaxvae.TrainState) -> Metrics:
        key = seed_key(EVALUATION_SEED)
        return map_members(lambda member: evaluate(member, *feed, key=key), members, how=how)

    return evaluate_members


def measure_member(
    config: Config, model: jaxvae.VAE, member: jaxvae.TrainState, splits: Splits, named: dict[str, Any]
) -> dict[str, Any]:
    """What remains to be measured of one: its latents, where it stopped, and its scores where factors are known."""
    codes, _ = posteriors(model, member, splits.test)
    measured: dict[str, Any] = {"active_units": active_units(codes) if np.isfinite(codes).all() else float("nan")}
    if int(member.first_bad) >= 0:
        measured["stopped_at"] = int(member.first_bad)
        where = f"beta {named['beta']:g}, seed {named['seed']} stopped at step {measured['stopped_at']}"
        console.print(f"{where}: not finite")
    if splits.train.factors is not None:
        chosen = beta_vae.scored_examples(splits.train, config.score_points)
        codes, _ = posteriors(model, member, chosen)
        measured["scores"] = disentanglement.disentanglement_scores(codes, chosen.factors)
    return measured


@file_errors()
def train_in_processes(run: Run, config: Config) -> list[dict[str, Any]]:
    """One process for each β; what its members measured. Each has a run directory of its own and resumes by itself."""
    signal.signal(signal.SIGTERM, _leave)
    folder = run.directory / "members"
    folder.mkdir(exist_ok=True)
    common = []
    for field in dataclasses.fields(config):
        value, option = getattr(config, field.name), f"--{field.name.replace('_', '-')}"
        if field.name in ("preset", "out", "resume", "how", "betas", "smoke", "devices", "distributed"):
            continue
        if isinstance(value, bool):
            common.append(option if value else option.replace("--", "--no-", 1))
        else:
            common += [option, *(map(str, value) if isinstance(value, tuple) else [str(value)])]
    program = ["-m", "experiments.rate_distortion", config.preset, *common, "--how", "map", "--resume"]
    commands = {}
    for beta in config.betas:
        name = f"beta-{beta:g}"
        commands[name] = [*program, "--betas", str(beta), "--out", str(folder / name)]
    run_or_leave(commands, folder, go_on=f"continue with --out {run.directory} --resume")
    with user_errors():
        results = [read_numbers(folder / name / "result.json") for name in commands]
    return [member for result in results for member in result["members"]]


def report(run: Run, config: Config, how: str, members: list[dict[str, Any]]) -> None:
    """Means over the seeds by β, result.json, the pictures."""
    betas = sorted(config.betas)
    flat = [{**member, **member.get("scores", {})} for member in members]
    names = [name for name in flat[0] if name not in ("beta", "seed", "scores", "stopped_at")]
    rows = [{name: float(np.mean([m[name] for m in flat if m["beta"] == beta])) for name in names} for beta in betas]
    table = Table("beta", *(name.replace("_", " ") for name in names), title=f"means over {config.num_seeds} seeds")
    for beta, row in zip(betas, rows, strict=True):
        table.add_row(f"{beta:g}", *(f"{value:.3f}" for value in row.values()))
    console.print(table)
    rates = [row["rate"] for row in rows]
    falls = bool(np.all(np.diff(rates) < 0))
    test = {"best_negative_elbo": min(row["negative_elbo"] for row in rows), "rate_falls_with_beta": falls}
    by_beta = [{"beta": beta, **row} for beta, row in zip(betas, rows, strict=True)]
    result = {"test": test, "by_beta": by_beta, "members": members, "how": how}
    if records := run.records():  # the loop counts every image once, however many members see it
        result["examples_per_second"] = len(members) * records[-1]["examples_per_second"]
    metrics = {SAID.get(name, name.replace("_", " ")): [member[name] for member in flat] for name in names}
    run.finish(result | {"device": jax.devices()[0].device_kind}, lambda: save_pictures(run, members, metrics))


@file_errors()
def save_pictures(run: Run, members: list[dict[str, Any]], metrics: dict[str, list[float]]) -> list[Path]:
    """Draw rate against distortion, and every metric against β."""
    rate, distortion, beta = ([member[name] for member in members] for name in ("rate", "distortion", "beta"))
    return [
        figures.rate_distortion(
            run.picture("rate_distortion"), rate, distortion, beta, title="test images, nats per example"
        ),
        figures.metrics_by_beta(run.picture("metrics_by_beta"), beta, metrics, title="on the test images"),
    ]


def _leave(number: int, frame: FrameType | None) -> None:
    sys.exit(143)  # through `finally`, so that the processes stop too


if __name__ == "__main__":
    main()
