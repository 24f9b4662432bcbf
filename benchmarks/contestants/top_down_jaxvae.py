"""jaxvae's convolutional top-down VAE, on its own convolutions or XLA's."""

from functools import partial

import optax

import jaxvae
from benchmarks.contestants.shared_jaxvae import parse, serve_training
from jaxvae.models import top_down_vae
from jaxvae.networks import Stage


def make_model(groups, dtype=None):
    """One group of vectors, and of the others three fifths at 7×7 and two fifths at 14×14."""
    fifth = (groups - 1) // 5
    stages = [Stage(24, (1,) * (2 * fifth), 2), Stage(48, (2,) * (3 * fifth), 2), Stage(64, (16,))]
    return top_down_vae((28, 28, 1), stages, dtype=dtype)


def main():
    args = parse(__doc__)
    serve_training(args, partial(jaxvae.vae_loss, make_model(args.groups, args.dtype)), optax.adam(1e-3))


if __name__ == "__main__":
    main()
