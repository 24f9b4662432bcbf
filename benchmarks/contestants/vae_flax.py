"""The same VAE as a user of flax writes it: a jitted step with a donated state, batches from NumPy; needs no jaxvae."""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax.training.train_state import TrainState

from benchmarks.contestants.shared_jax import serve_jax, stepwise

NAMES = {
    "hidden": "encoder/Dense_0",
    "mean": "encoder/head/mean",
    "log_var": "encoder/head/log_var",
    "decoder": "decoder/Dense_0",
    "logits": "decoder/output",
}


class VAE(nn.Module):
    """Images [B, 784] -> logits, and the posterior's mean and log-variance."""

    @nn.compact
    def __call__(self, x, key):
        """Reconstruct from a draw of the latent."""
        hidden = nn.relu(nn.Dense(400, name="hidden")(x))
        mean, log_var = nn.Dense(20, name="mean")(hidden), nn.Dense(20, name="log_var")(hidden)
        latent = mean + jnp.exp(0.5 * log_var) * jax.random.normal(key, mean.shape)
        hidden = nn.relu(nn.Dense(400, name="decoder")(latent))
        return nn.Dense(784, name="logits")(hidden), mean, log_var


@partial(jax.jit, donate_argnums=0)
def train_step(state, x, key):
    def loss_of(params):
        logits, mean, log_var = state.apply_fn({"params": params}, x, jax.random.fold_in(key, state.step))
        distortion = optax.sigmoid_binary_cross_entropy(logits, x).sum(axis=1)
        rate = 0.5 * (jnp.square(mean) + jnp.exp(log_var) - log_var - 1).sum(axis=1)
        return (distortion + rate).mean()

    loss, gradient = jax.value_and_grad(loss_of)(state.params)
    return state.apply_gradients(grads=gradient), loss


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problem", help="the npz that benchmarks.vae writes")
    problem = np.load(parser.parse_args().problem)

    params = {
        name: {part: jnp.array(problem[f"{ours}/{part}"]) for part in ("kernel", "bias")}
        for name, ours in NAMES.items()
    }
    state = TrainState.create(apply_fn=VAE().apply, params=params, tx=optax.adam(1e-3))
    images = problem["x"].reshape(-1, 784).astype(np.float32) / 255
    key = jax.random.key(0)

    def inputs_of(indices):
        return images[indices], key

    serve_jax(stepwise(train_step, state, inputs_of), problem["indices"], ("flax", "optax"))


if __name__ == "__main__":
    main()
