"""Code as a user writes it, for `mypy --strict tests/typing_user.py`: the types of the package are those that it says.

pytest does not collect it; `tests/test_package.py` checks it, and so does the workflow. Each `assert_type` fails where
a public function became untyped.
"""

from functools import partial
from pathlib import Path
from typing import Any, assert_type

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

import jaxvae
from jaxvae import data, losses
from jaxvae.training.fit import FitResult, Progress
from jaxvae.types import Batch, PRNGKey, PyTree


class Encoder(nn.Module):
    """A network of one's own."""

    latent_dim: int

    @nn.compact
    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and log variance of q(z|x)."""
        hidden = nn.relu(nn.Dense(64)(x.reshape(len(x), -1)))
        return nn.Dense(self.latent_dim)(hidden), nn.Dense(self.latent_dim)(hidden)


def use_losses(mean: jax.Array, log_var: jax.Array) -> jax.Array:
    """Losses alone."""
    kl = losses.gaussian_kl(mean, log_var)
    assert_type(kl, jax.Array)
    return kl.mean()


def my_loss(
    model: Any, params: PyTree, model_state: PyTree, batch: Batch, *, key: PRNGKey, step: jax.Array
) -> tuple[jax.Array, tuple[PyTree, dict[str, jax.Array]]]:
    """An objective of one's own."""
    loss, (model_state, metrics) = jaxvae.vae_loss(model, params, model_state, batch, key=key, step=step)
    return loss, (model_state, dict(metrics))


def stop_early(progress: Progress) -> bool:
    """A report."""
    return progress.evaluation is not None and progress.evaluation["loss"] < 1.0


def in_one_call(directory: Path) -> jaxvae.Run:
    """From data to a run on disk."""
    mine = data.from_arrays("mine", np.zeros((64, 8, 8, 1), np.uint8), levels=256)
    assert_type(mine, data.Dataset)
    model = jaxvae.VAE(Encoder(2), jaxvae.MLPDecoder((8, 8, 1)), jaxvae.Bernoulli, prior=jaxvae.GaussianMixture(3, 2))
    run = jaxvae.train(model, mine, epochs=2, loss=partial(jaxvae.iwae_loss, num_samples=5), report=stop_early)
    assert_type(run, jaxvae.Run)
    assert_type(run.sample(16), np.ndarray)
    assert_type(run.evaluate(mine), dict[str, float])
    place = run.save(directory)
    assert_type(place, Path)
    again = jaxvae.load(place, parts=[Encoder])
    assert_type(again.push("me/mine", private=True), str)
    return jaxvae.pull("me/mine", revision="main")


def with_the_loop_in_hand(dataset: data.Dataset, model: jaxvae.VAE) -> FitResult:
    """The parts."""
    key = jax.random.key(0)
    optimizer = optax.adam(1e-3)
    step = jaxvae.make_train_step(partial(my_loss, model), optimizer, prepare=dataset.prepare)

    def init(*, key: PRNGKey) -> tuple[PyTree, PyTree]:
        return model.init(key, jnp.zeros((1, 8, 8, 1))), ()

    state = jaxvae.init_train_state(init, optimizer, key=key)
    assert_type(state, jaxvae.TrainState)
    feed = data.Resident(dataset, data.Order(len(dataset), 32, epochs=1, seed=0))
    return jaxvae.fit(state, jaxvae.make_train_epoch(step), feed)
