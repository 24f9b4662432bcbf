"""Fifty thousand steps: nothing overflows, nothing drifts away, nothing piles up."""

import os
import subprocess
import sys
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from variants import mlp, vq_vae

import jaxvae
from jaxvae import data
from jaxvae.distributions import Bernoulli

STEPS, EARLY, CHUNK = 50_000, 10_000, 1_000
VAE = jaxvae.VAE(*mlp(), Bernoulli)
VQ_VAE = vq_vae(jaxvae.EMACodebook(32, restart_threshold=0.1))


def resident_megabytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def train(loss_fn, init):
    """The last state, the losses of all steps, how many codes restarted, and the memory at each chunk's end."""
    digits = data.load("digits", "train")
    order = data.Order(len(digits), 32, epochs=STEPS // (len(digits) // 32) + 1, seed=0)
    feed = data.Resident(digits, order, chunk=CHUNK)
    optimizer = optax.adam(1e-3)
    state = jaxvae.init_train_state(init, optimizer, key=jax.random.key(0))
    step = jaxvae.make_train_step(loss_fn, optimizer, prepare=digits.prepare)
    train_epoch = jaxvae.make_train_epoch(step)
    losses, restarts, memory = [], [], []
    for start in range(0, STEPS, CHUNK):
        state, metrics = train_epoch(state, *feed(start, CHUNK))
        losses.append(np.asarray(metrics["loss"]))
        restarts.append(np.asarray(metrics.get("restarts", 0)).sum())
        memory.append(resident_megabytes())
    assert int(state.step) == STEPS
    assert int(state.first_bad) == -1
    return state, np.concatenate(losses), sum(restarts), memory


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "vq-vae"])
def test_fifty_thousand_steps_stay_finite_and_in_place(name):
    """In a process of its own: what earlier tests have freed would move the memory that is measured."""
    done = subprocess.run([sys.executable, __file__, name], capture_output=True, text=True, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert f"{name}: loss" in done.stdout


def check(name):
    """What the test asserts."""
    if name == "vae":
        loss_fn = partial(jaxvae.vae_loss, VAE)
        state, losses, restarts, memory = train(loss_fn, lambda *, key: (VAE.init(key, jnp.zeros((1, 8, 8, 1))), ()))
    else:
        state, losses, restarts, memory = train(VQ_VAE.loss_fn, VQ_VAE.init)
    floating = [leaf for leaf in jax.tree.leaves(state) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    chex.assert_tree_all_finite((floating, losses))
    adam = state.opt_state[0]
    assert int(adam.count) == STEPS
    assert min(float(leaf.min()) for leaf in jax.tree.leaves(adam.nu)) >= 0
    early, late = losses[EARLY - CHUNK : EARLY].mean(), losses[-CHUNK:].mean()
    growth = memory[-1] - memory[EARLY // CHUNK - 1]
    print(f"{name}: loss {early:.3f} at {EARLY} steps, {late:.3f} at {STEPS}; {memory[-1]:.0f} MB, {growth:+.2f} since")
    assert late < early + 0.2  # it learned all it could long ago, and forgot nothing
    assert growth < 4
    if name == "vq-vae":
        frequency = np.asarray(state.model_state["quantizer"]["frequency"], np.float64)
        assert frequency.sum() == pytest.approx(1, abs=1e-3)
        x = data.load("digits", "train").x / np.float32(16)
        encoded = np.asarray(VQ_VAE.model.apply(state.params, x, method="encode")).reshape(-1, 4)
        vectors = np.asarray(VQ_VAE.model.codes(state.params, state.model_state))
        span = encoded.max(axis=0) - encoded.min(axis=0)
        print(
            f"frequencies sum to {frequency.sum():.6f}, the rarest is {32 * frequency.min():.2f} of the uniform share"
        )
        print(f"{restarts:.0f} restarts; past the encoder's range, as a share of it, by at most ", end="")
        print(np.max([encoded.min(axis=0) - vectors, vectors - encoded.max(axis=0)] / span))
        assert restarts > 0
        assert np.all(vectors >= encoded.min(axis=0) - 0.01 * span)
        assert np.all(vectors <= encoded.max(axis=0) + 0.01 * span)
        assert len(np.unique(vectors, axis=0)) == 32


if __name__ == "__main__":
    check(sys.argv[1])
