"""The table of variants that the contract test and the training tests run over. A new variant is one row here."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxvae
from jaxvae.distributions import Bernoulli, Categorical, DiagGaussian

SHAPE = (8, 8, 1)


class Variant(NamedTuple):
    """A small model with its objective; the functions are compiled once for all tests."""

    model: Any
    loss_fn: Any
    init: Any
    log_weights_fn: Any = None

    @property
    def tolerance(self):
        """How far two programs for the same thing may be apart, relatively."""
        return 2e-2 if getattr(self.model.encoder, "dtype", None) == jnp.bfloat16 else 1e-4


def vae(encoder, decoder, likelihood, **options):
    model = jaxvae.VAE(encoder, decoder, likelihood)

    def init(*, key):
        return model.init(key, jnp.zeros((1, *SHAPE))), ()

    log_weights = jax.jit(partial(jaxvae.vae_log_weights, model), static_argnames="num_samples")
    return Variant(model, jax.jit(partial(jaxvae.vae_loss, model, **options)), jax.jit(init), log_weights)


def mlp(latent_dim=3, channels=(), **options):
    return jaxvae.MLPEncoder(latent_dim, (16,), **options), jaxvae.MLPDecoder((*SHAPE, *channels), (16,), **options)


def conv(**options):
    return jaxvae.ConvEncoder(3, (4, 8), 16, **options), jaxvae.ConvDecoder(SHAPE, (4, 8), 16, **options)


VARIANTS = {
    "bernoulli": vae(*mlp(), Bernoulli),
    "categorical": vae(*mlp(channels=(17,)), Categorical),
    "gaussian": vae(*mlp(), partial(DiagGaussian, log_var=jnp.float32(-1.0))),
    "convolutional": vae(*conv(), Bernoulli),
    "bfloat16": vae(*conv(dtype=jnp.bfloat16), Bernoulli),
    "beta": vae(*mlp(), Bernoulli, beta=4.0),
    "beta schedule": vae(*mlp(), Bernoulli, beta=lambda step: jnp.minimum(1.0, 0.25 * (step + 1))),
}


def batch(num, seed=0, start=0):
    """Grey images and their indices."""
    image = jax.random.uniform(jax.random.key(seed), (num, *SHAPE))
    return {"image": image, "index": jnp.arange(start, start + num, dtype=jnp.int32)}
