"""Richer posteriors and richer priors, each in the same network under the same schedule.

  python -m experiments.latents mnist                      N(0, I) and a diagonal Gaussian, as in experiments.vae burda
  python -m experiments.latents mnist --prior flow         or mixture, vamp: a learned prior p(z)
  python -m experiments.latents mnist --posterior iaf      or cholesky, mixture, planar, sylvester, spline: a richer q
  python -m experiments.latents best                       the best of both
  python -m experiments.latents digits --prior flow        scikit-learn's digits; needs no data

The network and schedule are those of Burda et al. (2016) with one stochastic layer, 784-200-200-50. Which numbers to
expect: experiments/README.md.
"""

import dataclasses
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import jaxvae
from experiments import vae
from experiments.command import file_errors, parse, user_errors
from experiments.drawing import draw_means
from experiments.report import (
    EVALUATION_SEED,
    as_pictures,
    elbo_terms,
    importance_sampled,
    over_set,
    prepared,
)
from experiments.run import Run, reached
from jaxvae import data, figures
from jaxvae.distributions import DiagGaussian, StandardNormal
from jaxvae.evaluation import active_latents, aggregate_posterior
from jaxvae.flows import (
    AffineCoupling,
    Autoregressive,
    FlowPosterior,
    FullCovariance,
    Planar,
    SplineCoupling,
    Sylvester,
)
from jaxvae.keys import example_keys, seed_key
from jaxvae.posteriors import MixturePosterior
from jaxvae.priors import Examples, FlowPrior, GaussianMixture, VampPrior
from jaxvae.types import Array, Batch, PRNGKey, PyTree

CODES = 2000  # draws in the picture of the prior beside the aggregate posterior
PAIRS = 32
POSTERIORS, DRAWS, CELLS = 6, 20_000, 60  # in the picture of two latents
NOISE = nn.initializers.uniform(1.0)


@dataclasses.dataclass(frozen=True)
class Config(vae.Config):
    """Options of this experiment."""

    posterior: Literal["diagonal", "cholesky", "mixture", "planar", "sylvester", "iaf", "spline"] = "diagonal"
    """q(z|x): a Gaussian, diagonal or with all covariances, a mixture of them, or a flow that starts from one."""
    posterior_components: int = 5
    """Gaussians of a mixture as the posterior."""
    posterior_layers: int = 4
    """Bijections of a flow as the posterior."""
    posterior_units: int = 16
    """Directions that each bijection of sylvester bends; all latents where they are fewer."""
    posterior_hidden: tuple[int, ...] = (320,)
    """Widths of their networks, of iaf and spline."""
    context_dim: int = 200
    """How many numbers the encoder tells them of x."""
    prior: Literal["normal", "mixture", "vamp", "flow"] = "normal"
    """p(z): N(0, I), a mixture of Gaussians, one of the posteriors of pseudo-inputs, or a flow of affine couplings."""
    components: int = 500
    """Gaussians of the mixture, or pseudo-inputs, which start as training images."""
    prior_layers: int = 6
    """Couplings of the flow as the prior."""
    prior_hidden: tuple[int, ...] = (128, 128)
    """Widths of their networks."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.check_numbers(
            counts=(
                *("posterior_components", "posterior_layers", "posterior_units", "posterior_hidden", "context_dim"),
                *("components", "prior_layers", "prior_hidden"),
            )
        )
        if self.network != "burda" or self.stochastic_layers != 1:
            raise ValueError("latents are compared in one network: --network burda with one stochastic layer")


MNIST = Config(**vars(vae.PRESETS["burda"][1]) | {"preset": "mnist"})
DIGITS = dataclasses.replace(
    MNIST, preset="digits", data="digits", latent_dim=10, epochs=100, validation=200, components=100, nll_samples=1000
)
ROWS: dict[str, tuple[str, dict[str, Any]]] = {
    "mixture": ("500 Gaussians as the prior.", {"prior": "mixture"}),
    "vamp": ("The posteriors of 500 pseudo-inputs as the prior.", {"prior": "vamp"}),
    "flow": ("Six affine couplings as the prior.", {"prior": "flow"}),
    "planar": ("Planar flows as the posterior.", {"posterior": "planar", "posterior_layers": 16}),
    "sylvester": ("Orthogonal Sylvester flows as the posterior.", {"posterior": "sylvester"}),
    "iaf": ("Inverse autoregressive flows as the posterior.", {"posterior": "iaf"}),
    "spline": ("Spline couplings as the posterior.", {"posterior": "spline", "posterior_hidden": (128,)}),
    "cholesky": ("A Gaussian with all covariances as the posterior.", {"posterior": "cholesky"}),
    "mixtures": ("A mixture of five Gaussians as the posterior.", {"posterior": "mixture"}),
    "best": ("The best prior with the best posterior.", {"prior": "flow", "posterior": "iaf", "prior_layers": 10}),
}
PRESETS = {
    "mnist": ("MNIST, binarised anew at every step: N(0, I), a diagonal Gaussian, unless said otherwise.", MNIST),
    "digits": ("scikit-learn's 1,797 digits of 8×8 pixels, binarised; needs no data.", DIGITS),
    **{
        name: (f"mnist: {said}", dataclasses.replace(MNIST, preset=name, **changed))
        for name, (said, changed) in ROWS.items()
    },
}


def make_posterior(config: Any) -> Any:
    """What an encoder's output stands for."""
    layers, hidden = config.posterior_layers, tuple(config.posterior_hidden)
    if config.posterior == "diagonal":
        return DiagGaussian
    if config.posterior == "cholesky":
        return FullCovariance()
    if config.posterior == "mixture":
        return MixturePosterior(config.posterior_components)
    made = {
        "planar": lambda i: Planar(),
        "sylvester": lambda i: Sylvester(min(config.posterior_units, config.latent_dim)),
        "iaf": lambda i: Autoregressive(hidden, reverse=i % 2 == 1),
        "spline": lambda i: SplineCoupling(hidden, reverse=i % 2 == 1),
    }[config.posterior]
    return FlowPosterior(tuple(made(i) for i in range(layers)))


def make_prior(config: Any, initial: Any = NOISE) -> Any:
    """p(z); `initial` is of pseudo-inputs."""
    if config.prior == "normal":
        return StandardNormal()
    if config.prior == "mixture":
        return GaussianMixture(config.components, config.latent_dim)
    if config.prior == "vamp":
        return VampPrior(config.components, tuple(config.image_shape), initial)
    couplings = (AffineCoupling(tuple(config.prior_hidden), reverse=i % 2 == 1) for i in range(config.prior_layers))
    return FlowPrior(tuple(couplings), config.latent_dim)


def make_model(config: Any, initial: Any = NOISE) -> jaxvae.VAE:
    """The model of a run, from its config.json."""
    options: dict[str, Any] = {"activation": nn.tanh, "kernel_init": nn.initializers.glorot_uniform()}
    sizes = tuple(config.hidden)
    context = None if config.posterior == "diagonal" else config.context_dim
    return jaxvae.VAE(
        jaxvae.MLPEncoder(config.latent_dim, sizes, context_dim=context, **options),
        jaxvae.MLPDecoder(tuple(config.image_shape), sizes[::-1], **options),
        posterior=make_posterior(config),
        prior=make_prior(config, initial),
    )


def draw(directory: Path, num: int, *, key: PRNGKey) -> np.ndarray:
    """Samples of a run, as experiments.drawing wants them."""
    return draw_means(directory, make_model, num, key=key)


def main(argv: Sequence[str] | None = None) -> None:
    """Train, measure, draw."""
    config = parse(PRESETS, __doc__, argv)
    if config.smoke:
        few = min(config.validation, 64)
        config = dataclasses.replace(config, epochs=2, evaluate_every=1, validation=few, nll_samples=10, components=20)
    with user_errors():
        splits, order = vae.load(config)
        run = Run("latents", config, image_shape=splits.train.shape, levels=splits.train.levels)
        settings = SimpleNamespace(**run.settings)
        initial = Examples(splits.train.prepared(5000, key=seed_key(config.seed))["x"])
        model = make_model(settings, initial) if config.prior == "vamp" else make_model(settings)
    start = time.perf_counter()
    state, metrics = vae.train(run, config, model, splits, order)
    seconds = time.perf_counter() - start

    test = elbo_terms(metrics) | measure(model, state, splits.test, metrics["rate"], config.nll_samples)
    result = {"test": test, "train_seconds": seconds, "nll_samples": config.nll_samples, **reached(state)}
    run.finish(result, lambda: save_pictures(run, model, state, splits.test))


def measure(
    model: jaxvae.VAE, state: jaxvae.TrainState, dataset: data.Dataset, rate: float, nll_samples: int
) -> dict[str, Any]:
    """-log p(x), how many latents say something about x and, of Gaussian posteriors, how far all miss the prior."""
    estimate = importance_sampled(model, state, dataset, nll_samples=nll_samples)
    test: dict[str, Any] = {"nll": estimate.nll, "nll_standard_error": estimate.nll_standard_error}
    codes = over_set(partial(_codes, model), state, dataset)
    test["active_units"] = int(active_latents(codes["mean"]).sum())
    if "log_var" in codes:
        found = aggregate_posterior(codes["mean"], codes["log_var"], key=seed_key(EVALUATION_SEED))
        test["mutual_information"] = found.mutual_information
        test["aggregate_kl"] = rate - found.mutual_information
    return test


@file_errors()
def save_pictures(run: Run, model: jaxvae.VAE, state: jaxvae.TrainState, dataset: data.Dataset) -> list[Path]:
    """Draw the pictures of a run and return their paths."""
    variables = state.variables
    samples = model.apply(variables, 100, key=seed_key(1), method="sample").mean
    x = prepared(dataset, PAIRS)["x"]
    pairs = as_pictures(x), as_pictures(model.apply(variables, x).mean)
    few = dataset.take(slice(CODES))
    codes = over_set(partial(_codes, model), state, few)
    prior = model.apply(variables, method="latent_prior")
    of_prior = np.asarray(prior.sample(len(few), key=seed_key(2)))
    spread = codes["mean"].std(axis=0)
    first, second = np.argsort(spread)[::-1][:2]
    drawn = np.concatenate([codes["draw"], of_prior])[:, [first, second]]
    named = np.repeat(["q(z|x)", "p(z)"], len(few))
    of_two = posterior_pictures(run, model, variables, x[:POSTERIORS]) if codes["mean"].shape[1] == 2 else []
    return [
        *of_two,
        figures.reconstructions(run.picture("reconstructions"), *pairs, title="test images and their reconstructions"),
        figures.learning_curves(run.picture("learning_curves"), run.records()),
        figures.image_grid(run.picture("samples"), as_pictures(samples), title="samples from the prior (means)"),
        figures.latent_scatter(
            *(run.picture("prior"), drawn, named),
            circles=run.settings["prior"] == "normal",
            latents=(int(first), int(second)),
            title="draws of all posteriors, and of the prior",
        ),
    ]


def posterior_pictures(run: Run, model: jaxvae.VAE, params: PyTree, x: Array) -> list[Path]:
    """Of two latents, the exact p(z|x) of each image on a grid, above draws of q(z|x) on the same grid."""
    exact, approximate = [], []
    for i, one in enumerate(x):
        many = jnp.broadcast_to(one[None], (DRAWS, *one.shape))
        draws = np.asarray(model.apply(params, many, method="encode").sample(key=seed_key(i)))
        centre, half = draws.mean(axis=0), 5 * draws.std(axis=0).max()
        edges = [np.linspace(c - half, c + half, CELLS + 1) for c in centre]
        middles = [(each[1:] + each[:-1]) / 2 for each in edges]
        grid = np.stack(np.meshgrid(*middles, indexing="ij"), axis=-1).reshape(-1, 1, 2).astype(np.float32)
        log_likelihood, log_prior = model.apply(params, one[None], grid, method="log_joint")
        joint = np.asarray(log_likelihood + log_prior, np.float64).reshape(CELLS, CELLS)
        exact.append(np.exp(joint - joint.max()))
        counted, *_ = np.histogram2d(*draws.T, bins=edges)
        approximate.append(counted / counted.max())
    images = np.stack(exact + approximate)[..., None].astype(np.float32)
    names = ["exact p(z|x)", f"{run.settings['posterior']} q(z|x)"]
    path, title = run.picture("posteriors"), f"posteriors of {len(exact)} test images over two latents"
    return [figures.image_grid(path, images, columns=len(exact), row_names=names, title=title)]


def _codes(model: jaxvae.VAE, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey) -> dict[str, Array]:
    """The middle of every posterior and a draw from it; log σ² where it is a diagonal Gaussian."""
    del model_state
    posterior = model.apply(params, batch["x"], method="encode")
    codes = {"mean": posterior.mean, "draw": posterior.sample(key=example_keys(key, batch["index"]))}
    if isinstance(posterior, DiagGaussian):
        codes["log_var"] = jnp.broadcast_to(posterior.log_var, posterior.mean.shape)
    return codes


if __name__ == "__main__":
    main()
