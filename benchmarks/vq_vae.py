"""The VQ-VAE's training step beside XLA's own convolutions and beside PyTorch, in examples per second.

    python -m benchmarks.vq_vae [--cores 0,1] [--peers PYTHON] [--rounds N] [--out FILE]

32×32×3 images, 128 channels, two residual blocks, 512 codes of 64 dimensions, batch 128, Adam, float32. PYTHON belongs
to an environment with benchmarks/requirements.txt; without it PyTorch is left out. All start from the same
parameters and codes and see the same batches. The EMA codebook of vector-quantize-pytorch also smooths its counts
(Laplace, 1e-5), which together with the order of sums makes losses differ in about the fifth digit.
"""

import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from benchmarks import runner
from benchmarks.contestants.vq_vae_jax import make_model
from jaxvae import codebook, data

BATCH = 128
TOLERANCE = 1e-3  # of the losses, relative


def write_problem(path, name, steps):
    """Images, the rows of a turn, initial parameters and codes, as one npz that needs neither jax nor torch."""
    rng = np.random.default_rng(0)
    if name == "random":
        coarse = rng.integers(0, 256, (steps * BATCH, 4, 4, 3), np.uint8)  # of noise alone no loss would tell much
        image = coarse.repeat(8, axis=1).repeat(8, axis=2)
    else:
        image = np.asarray(data.load(name, "train").image[: steps * BATCH])
    scaled = image / np.float32(255)
    rows = rng.permutation(len(image)).astype(np.int32).reshape(steps, BATCH)

    @jax.jit
    def init(key, first):
        params = make_model().init(key, first[:1])
        encoded = make_model().apply(params, first, method="encode").reshape(-1, 64)
        return params, codebook.seed_codebook(encoded, 512, key=key)

    params, codes = jax.device_get(init(jax.random.key(0), jnp.asarray(scaled[rows[0]])))
    arrays = flatten_dict(params["params"], sep="/")
    arrays |= {f"codebook/{name}": values for name, values in codes._asdict().items()}
    np.savez(path, image=image, rows=rows, variance=scaled.var(dtype=np.float64), **arrays)


def main():
    parser = runner.make_parser(__doc__)
    parser.add_argument("--steps", type=int, default=10, help="in a turn, 10 or more")
    parser.add_argument("--data", choices=("random", "cifar10"), default="random")
    args = parser.parse_args()

    jax.config.update("jax_platforms", "cpu")  # the device is for the contestants
    with tempfile.TemporaryDirectory() as scratch:
        problem = str(Path(scratch) / "problem.npz")
        write_problem(problem, args.data, args.steps)
        ours = [sys.executable, "-m", "benchmarks.contestants.vq_vae_jax", problem]
        contestants = [
            runner.Contestant("stock convolutions, jit", [*ours, "--per-step", "--stock"]),
            runner.Contestant("jaxvae, jit", [*ours, "--per-step"]),
            runner.Contestant("jaxvae, epoch program", ours),
        ]
        if args.peers:
            theirs = [args.peers, "-m", "benchmarks.contestants.vq_vae_torch", problem]
            contestants += [
                runner.Contestant("PyTorch", theirs),
                runner.Contestant("PyTorch, channels last", [*theirs, "--channels-last"]),
                runner.Contestant("torch.compile", [*theirs, "--compile"]),
            ]
        table = runner.compete(contestants, cores=args.cores, rounds=args.rounds, tolerance=TOLERANCE)
    runner.report(f"VQ-VAE, {args.data}", table, args.out)


if __name__ == "__main__":
    main()
