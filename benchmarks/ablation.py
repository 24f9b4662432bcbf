"""Where does a training step of the dense VAE spend its time? Parts are taken away, one after the other.

    python -m benchmarks.ablation [--cores 0,1] [--rounds N] [--steps N] [--json FILE]

784-400-20, batch 128, on random images, each variant an epoch program. Each row lacks one part more than the row
above; what that saved is the part's share of a whole step. The last row is no program: the step's products at the rate
that large ones reach on this device. Differences of a few percent are noise, and a part can cost more or less where
other parts are still there.
"""

import os
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.table import Table

import jaxvae
from benchmarks.contestants.vae_jaxvae import make_model
from benchmarks.limits import flops_per_example, matmul_peak
from benchmarks.timing import console, make_parser, take_turns, write_json
from benchmarks.training import contestant, initializer, on_device
from jaxvae import data, losses
from jaxvae.training.step import step_keys

BATCH = 128
MODEL = make_model()
LAYERS = [(784, 400), (400, 40), (20, 400), (400, 784)]  # its kernels; mean and log σ² as one


def one_draw_binarize(batch, *, key):
    """One draw for the whole batch in place of one for each example."""
    grey = batch["x"].astype(jnp.float32) / 255
    pixels = jax.lax.optimization_barrier((jax.random.uniform(key, grey.shape) < grey).astype(jnp.float32))
    return batch | {"x": pixels}


def one_draw_loss(params, model_state, batch, *, key, step, noise=True):
    """`vae_loss` with one draw for the whole batch, or none."""
    del step
    posterior = MODEL.apply(params, batch["x"], method="encode")
    latent = posterior.sample(key=key) if noise else posterior.mean
    distortion = -MODEL.apply(params, latent, method="decode").log_prob(batch["x"]).mean()
    rate = losses.gaussian_kl(posterior.mean, posterior.log_var).mean()
    loss = distortion + rate
    return loss, (model_state, {"loss": loss, "rate": rate, "distortion": distortion, "negative_elbo": loss})


def unguarded_step(loss_fn, optimizer, prepare, state, batch, metrics=False):
    """`make_train_step` without looking for NaN."""
    prepare_key, loss_key = step_keys(state.key, state.step)
    batch = prepare(batch, key=prepare_key)
    gradient = jax.grad(loss_fn, has_aux=True)
    grads, (_, taken) = gradient(state.params, (), batch, key=loss_key, step=state.step)
    updates, opt_state = optimizer.update(grads, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    taken = {**taken, "grad_norm": optax.tree.norm(grads)} if metrics else {}
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), taken


def products_step(state, batch):
    """The products of the four layers, forward and backward, and SGD: no bias, activation, likelihood or gather."""
    del batch

    def loss(kernels):
        code = state.model_state @ kernels[0] @ kernels[1]
        return 0.5 * jnp.square(code[:, :20] @ kernels[2] @ kernels[3]).sum()

    params = jax.tree.map(lambda p, g: p - 1e-9 * g, state.params, jax.grad(loss)(state.params))
    return state.replace(step=state.step + 1, params=params), {}


def init_products(*, key):
    return [jax.random.normal(key, shape) / np.sqrt(shape[0]) for shape in LAYERS], jax.random.normal(key, (BATCH, 784))


def variants():
    """{what the row lacks: its step, initialiser and optimiser}, whole step first."""
    adam, sgd = optax.adam(1e-3), optax.sgd(1e-3)
    binarize, scale = data.make_prepare(256, binarize=True), data.make_prepare(256)
    vae_loss, no_noise = partial(jaxvae.vae_loss, MODEL), partial(one_draw_loss, noise=False)
    steps = {
        "the whole step": (jaxvae.make_train_step(vae_loss, adam, prepare=binarize), adam),
        "NaN guard": (partial(unguarded_step, vae_loss, adam, binarize, metrics=True), adam),
        "metrics": (partial(unguarded_step, vae_loss, adam, binarize), adam),
        "a key for each example": (partial(unguarded_step, one_draw_loss, adam, one_draw_binarize), adam),
        "binarisation": (partial(unguarded_step, one_draw_loss, adam, scale), adam),
        "noise": (partial(unguarded_step, no_noise, adam, scale), adam),
        "Adam, not SGD": (partial(unguarded_step, no_noise, sgd, scale), sgd),
    }
    init_model = initializer(MODEL, (28, 28, 1))
    rest = "biases, activations, losses, reading the batch"
    return {name: (step, init_model, optimizer) for name, (step, optimizer) in steps.items()} | {
        rest: (products_step, init_products, sgd)
    }


def main():
    parser = make_parser(__doc__, rounds=7)
    parser.add_argument("--cores", help="for example 0,1; default: all")
    parser.add_argument("--steps", type=int, default=100, help="in a turn")
    args = parser.parse_args()

    if args.cores:
        os.sched_setaffinity(0, map(int, args.cores.split(",")))  # before JAX starts its threads
    rng = np.random.default_rng(0)
    count = args.steps * BATCH
    source = on_device(np.where(rng.random((count, 28, 28, 1)) < 0.13, 255, 0).astype(np.uint8))
    indices = jnp.asarray(rng.permutation(count).reshape(args.steps, BATCH), jnp.int32)
    contestants = {name: contestant(*parts, source, indices) for name, parts in variants().items()}
    seconds = take_turns(contestants, args.rounds)
    milliseconds = {name: 1e3 * value / args.steps for name, value in seconds.items()}
    wall = "whatever keeps products from the peak"
    milliseconds[wall] = 1e3 * BATCH * flops_per_example("VAE") / matmul_peak()

    whole, before = milliseconds["the whole step"], None
    table = Table("without", "ms a step", "share of the step", title="The dense VAE's training step, batch 128")
    shares = {}
    for name, value in milliseconds.items():
        shares[name] = 0.0 if before is None else (before - value) / whole
        table.add_row(name, f"{value:.3f}", "" if before is None else f"{100 * shares[name]:.1f} %")
        before = value
    shares["products at the peak"] = before / whole
    table.add_row("(what is left: products at the peak)", "", f"{100 * before / whole:.1f} %")
    console.print(table)
    write_json(args.json, {"milliseconds": milliseconds, "shares": shares})


if __name__ == "__main__":
    main()
