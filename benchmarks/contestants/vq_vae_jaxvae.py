"""jaxvae's VQ-VAE, on its own convolutions or XLA's."""

from functools import partial

import optax

import jaxvae
from benchmarks.contestants.shared_jaxvae import parse, serve_training


def make_model(dtype=None, codes=512):
    """The authors' network for 32×32×3: 128 channels, two residual blocks of 32, codes of 64 dimensions."""
    encoder, decoder = jaxvae.ResidualEncoder(64, dtype=dtype), jaxvae.ResidualDecoder(3, dtype=dtype)
    return jaxvae.VQVAE(encoder, decoder, jaxvae.EMACodebook(codes))


def main():
    args = parse(__doc__)
    variance = float(args.problem["variance"])
    serve_training(args, partial(jaxvae.vq_vae_loss, make_model(args.dtype), variance=variance), optax.adam(3e-4))


if __name__ == "__main__":
    main()
