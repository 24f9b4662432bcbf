"""What `experiments.inpaint` completes, and what the completions are worth: upper halves of images given the lower."""

import dataclasses
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

import jaxvae
from experiments.command import complain, console
from experiments.report import EVALUATION_SEED
from jaxvae.distributions import Masked
from jaxvae.evaluation import Visible, invert, map_batches
from jaxvae.keys import example_keys, sample_keys, seed_key
from jaxvae.types import Array, Batch, PRNGKey, PyTree

EVALUATED_AT_ONCE = 50
REFERENCE_SAMPLES = 2000
DRAWN_SAMPLES = 3


def halves(x: Array) -> tuple[Array, Array]:
    """The upper and the lower half of images [B, H, W, C], flat: the hidden pixels and the visible ones."""
    middle = x.shape[1] // 2
    return x[:, :middle].reshape(len(x), -1), x[:, middle:].reshape(len(x), -1)


@dataclasses.dataclass(frozen=True)
class Completed:
    """What a method has drawn: log p(hidden | z) averaged over draws [N], mean and some single completions, and more.

    Means are of the hidden pixels, [N, ...] and [N, S, ...]; `spread` is the standard deviation of the latents over the
    draws, its mean over latents and images.
    """

    log_prob: np.ndarray
    mean: np.ndarray
    singles: np.ndarray
    error: float
    spread: float
    seconds: float
    diagnostics: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def complete(
    model: jaxvae.VAE,
    state: jaxvae.TrainState,
    visible: Visible,
    images: Batch,
    methods: Mapping[str, Any],
    *,
    num_draws: int,
    seed: int,
) -> dict[str, Completed]:
    """The upper halves by methods of `jaxvae.evaluation.invert`."""
    completed = {}
    for name, method in methods.items():
        console.print(f"completing {len(images['x'])} images: {name}")
        began = time.perf_counter()
        try:
            inverted = invert(
                *(model, state.params, state.model_state, images, batches_of(images), visible),
                key=seed_key(seed),
                method=method,
                num_draws=num_draws,
            )
        except ValueError as error:
            if getattr(method, "adjusted", True):
                raise
            complain("warning", f"{name} is left out: {error}")  # a step this large has no stationary distribution
            continue
        seconds = time.perf_counter() - began
        look = partial(look_at_vae, model, visible)
        completed[name] = look_at(look, state, images, inverted.latent, seconds, inverted.diagnostics)
    return completed


def complete_by_cvae(
    cvae: jaxvae.CVAE, state: jaxvae.TrainState, images: Batch, *, num_draws: int, seed: int
) -> Completed:
    """The same by the model that was trained for it, whose latents come from its prior given the lower half."""
    began = time.perf_counter()
    upper, lower = halves(images["x"])
    source = images | {"x": upper, "condition": lower}
    draw = partial(_draw_of_cvae, cvae, num_draws)
    latents = map_batches(draw, state.params, state.model_state, source, batches_of(images), key=seed_key(seed))
    return look_at(partial(look_at_cvae, cvae), state, source, latents, time.perf_counter() - began, {})


def look_at(
    look: Callable[..., PyTree],
    state: jaxvae.TrainState,
    source: Batch,
    latent: np.ndarray,
    seconds: float,
    diagnostics: dict[str, np.ndarray],
) -> Completed:
    """What completions from latents [N, C, D] are worth."""
    source = source | {"latent": jnp.asarray(latent)}
    log_prob, mean, singles, error = map_batches(
        look, state.params, state.model_state, source, batches_of(source), key=seed_key(0)
    )
    spread = float(latent.std(axis=1, ddof=1).mean())
    return Completed(log_prob, mean, singles, float(error.mean()), spread, seconds, diagnostics)


def batches_of(source: Batch) -> Array:
    """Indices of all its examples, [n, B], the last ones padded."""
    count = len(source["x"])
    rows = -(-count // EVALUATED_AT_ONCE)
    padded = np.full(rows * min(count, EVALUATED_AT_ONCE), -1, np.int32)
    padded[:count] = np.arange(count)
    return jnp.asarray(padded.reshape(rows, -1))


def look_at_vae(
    model: jaxvae.VAE, visible: Visible, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey
) -> tuple[Array, ...]:
    """Of a batch with "latent" [B, C, D]: log p(hidden | z), its mean over the draws, mean, some completions, error."""
    del model_state, key
    hidden = ~visible.visible(batch)

    def one(latent: Array) -> tuple[Array, Array]:
        record = model.apply(params, latent, method="decode")
        return Masked(record, hidden).log_prob(batch["x"]), halves(record.mean)[0]

    return _look(one, halves(batch["x"])[0], batch["latent"])


def look_at_cvae(
    cvae: jaxvae.CVAE, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey
) -> tuple[Array, ...]:
    """The same, of a batch whose x is the upper half and whose condition the lower."""
    del model_state, key

    def one(latent: Array) -> tuple[Array, Array]:
        record = cvae.apply(params, latent, batch["condition"], method="decode")
        return record.log_prob(batch["x"]), record.mean

    return _look(one, batch["x"], batch["latent"])


def _look(one: Callable[[Array], tuple[Array, Array]], upper: Array, latent: Array) -> tuple[Array, ...]:
    log_prob, means = jax.lax.map(one, jnp.moveaxis(latent, 1, 0))
    mean = means.mean(axis=0)
    average = jax.nn.logsumexp(log_prob, axis=0) - np.log(len(log_prob))
    return average, mean, jnp.moveaxis(means[:DRAWN_SAMPLES], 0, 1), jnp.square(mean - upper).mean(axis=1)


def _draw_of_cvae(
    cvae: jaxvae.CVAE, num_draws: int, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey
) -> Array:
    del model_state
    prior = cvae.apply(params, batch["condition"], method="latent_prior")
    keys = sample_keys(example_keys(key, batch["index"]), num_draws)
    return jax.vmap(lambda each: prior.sample(key=each), out_axes=1)(keys)


def reference_nll(
    model: jaxvae.VAE,
    state: jaxvae.TrainState,
    cvae: jaxvae.CVAE,
    conditional: jaxvae.TrainState,
    images: Batch,
    log_visible: np.ndarray,
) -> dict[str, float]:
    """-log p(hidden | visible) by importance sampling: the best estimates of what the two models say.

    Of the VAE it is log p(visible), which is given, less log p(x); of the CVAE it takes its encoder of both halves.
    """
    options: dict[str, Any] = {"key": seed_key(EVALUATION_SEED), "num_samples": REFERENCE_SAMPLES}
    upper, lower = halves(images["x"])
    whole, in_two = (
        jaxvae.log_likelihood(each, its.params, its.model_state, source, batches_of(source), **options).nll
        for each, its, source in (
            (model, state, images),
            (cvae, conditional, images | {"x": upper, "condition": lower}),
        )
    )
    return {"nll_vae_importance": whole + float(log_visible.mean()), "nll_cvae_importance": in_two}


def figures_of(completed: dict[str, Completed]) -> dict[str, float]:
    """For result.json: method by method, error, nats per image and seconds."""
    named = {}
    for name, each in completed.items():
        own = {"error": each.error, "nll": -float(each.log_prob.mean()), "latent_std": each.spread}
        named |= {
            f"{figure}_{name.lower().replace(' ', '_')}": value
            for figure, value in (own | {"seconds": each.seconds}).items()
        }
    return named


def diagnostics_of(completed: dict[str, Completed]) -> dict[str, dict[str, float]]:
    """The medians over the images of what each method says of itself."""
    return {
        name: {what: float(np.median(values)) for what, values in each.diagnostics.items()}
        for name, each in completed.items()
        if each.diagnostics
    }


def show(completed: dict[str, Completed]) -> None:
    """A table: a row for each method."""
    table = Table("method", "squared error", "-log p", "std of latents", "seconds", "medians", title="upper halves")
    medians = diagnostics_of(completed)
    for name, each in completed.items():
        said = ", ".join(f"{what.replace('_', ' ')} {value:.3g}" for what, value in medians.get(name, {}).items())
        nll = f"{-each.log_prob.mean():.2f}"
        table.add_row(name, f"{each.error:.4f}", nll, f"{each.spread:.3f}", f"{each.seconds:.0f}", said)
    console.print(table)
