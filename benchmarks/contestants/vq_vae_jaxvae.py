"""jaxvae's VQ-VAE, on its own convolutions or XLA's."""

from functools import partial

import numpy as np
import optax

import jaxvae
from benchmarks.contestants.shared_jaxvae import parse, serve_training


def make_model(dtype=None):
    """The authors' network for 32×32×3: 128 channels, two residual blocks of 32."""
    return jaxvae.VQVAE(jaxvae.ResidualEncoder(64, dtype=dtype), jaxvae.ResidualDecoder(3, dtype=dtype))


def main():
    args = parse(__doc__)
    problem = np.load(args.problem)
    loss_fn = partial(jaxvae.vq_vae_loss, make_model(args.dtype), variance=float(problem["variance"]))
    codes = jaxvae.CodebookState(problem["codebook/frequency"], problem["codebook/moment"])
    serve_training(args, problem, loss_fn, optax.adam(3e-4), codes)


if __name__ == "__main__":
    main()
