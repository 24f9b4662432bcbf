"""jaxvae's VAE of dense layers."""

from functools import partial

import optax

import jaxvae
from benchmarks.contestants.shared_jaxvae import parse, serve_training


def make_model(dtype=None):
    """784-400-20-400-784."""
    return jaxvae.VAE(jaxvae.MLPEncoder(20, (400,), dtype=dtype), jaxvae.MLPDecoder((28, 28, 1), (400,), dtype=dtype))


def main():
    args = parse(__doc__)
    serve_training(args, partial(jaxvae.vae_loss, make_model(args.dtype)), optax.adam(1e-3))


if __name__ == "__main__":
    main()
