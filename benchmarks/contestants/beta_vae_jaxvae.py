"""jaxvae's convolutional β-VAE, on its own convolutions or XLA's."""

from functools import partial

import optax

import jaxvae
from benchmarks.contestants.shared_jaxvae import parse, serve_training

CHANNELS = (32, 32, 64, 64)


def make_model(dtype=None):
    """The network of Burgess et al. (2018) for 64×64×1, ten latents."""
    return jaxvae.VAE(
        jaxvae.ConvEncoder(10, CHANNELS, dtype=dtype), jaxvae.ConvDecoder((64, 64, 1), CHANNELS, dtype=dtype)
    )


def main():
    args = parse(__doc__)
    serve_training(args, partial(jaxvae.vae_loss, make_model(args.dtype), beta=4.0), optax.adam(1e-4))


if __name__ == "__main__":
    main()
