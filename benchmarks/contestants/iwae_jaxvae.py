"""jaxvae's importance weighted autoencoder."""

from functools import partial

import flax.linen as nn
import optax

import jaxvae
from benchmarks.contestants.shared_jaxvae import parse, serve_training


def make_model(dtype=None):
    """784-200-200-50-200-200-784, tanh."""
    options = {"activation": nn.tanh, "kernel_init": nn.initializers.glorot_uniform(), "dtype": dtype}
    return jaxvae.VAE(
        jaxvae.MLPEncoder(50, (200, 200), **options), jaxvae.MLPDecoder((28, 28, 1), (200, 200), **options)
    )


def main():
    args = parse(__doc__)
    loss_fn = partial(jaxvae.iwae_loss, make_model(args.dtype), num_samples=args.samples)
    serve_training(args, loss_fn, optax.adam(1e-3, eps=1e-4))


if __name__ == "__main__":
    main()
