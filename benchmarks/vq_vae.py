"""The VQ-VAE's training step beside XLA's own convolutions and beside PyTorch, in examples per second.

    python -m benchmarks.vq_vae [--cores 0,1] [--peers PYTHON] [--rounds N] [--bfloat16] [--out FILE]

32×32×3 images, 128 channels, two residual blocks, 512 codes of 64 dimensions, batch 128, Adam, float32 (on a GPU all
may use TF32) or, with --bfloat16, networks in bfloat16. PYTHON belongs to an environment with
benchmarks/requirements.txt; without it PyTorch is left out. All start from the same parameters and codes and see the
same batches. The EMA codebook of vector-quantize-pytorch also smooths its counts (Laplace, 1e-5), which together with
the order of sums makes losses differ in about the fifth digit. PyTorch has the images in memory as floats and a fused
Adam; its bfloat16 is autocast's.
"""

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks import runner, workload
from benchmarks.contestants.vq_vae_jaxvae import make_model
from jaxvae import data

BATCH = 128
TOLERANCE = 1e-3  # of the losses, relative


def write_problem(path, name, steps):
    """Images, initial parameters and codes."""
    if name == "random":
        coarse = np.random.default_rng(0).integers(0, 256, (steps * BATCH, 4, 4, 3), np.uint8)
        x = workload.enlarge(coarse, 32)
    else:
        x = np.asarray(data.load(name, "train").x[: steps * BATCH])
    scaled, model = x / np.float32(255), make_model()
    params = workload.init_params(model, x)

    @jax.jit
    def seed(params, first):
        encoded = model.apply(params, first, method="encode")
        return model.quantizer.init(encoded.shape[-1], key=jax.random.key(0), encoded=encoded)[1]

    codes = jax.device_get(seed(params, jnp.asarray(scaled[workload.shuffled(len(x), BATCH)[0]])))
    arrays = {f"quantizer/{name}": values for name, values in codes.items()}
    workload.write_problem(path, x, BATCH, params, variance=scaled.var(dtype=np.float64), **arrays)


def main():
    parser = workload.make_parser(__doc__, tolerance=TOLERANCE, steps=10, data="cifar10")
    parser.add_argument("--bfloat16", action="store_true", help="everyone's networks; for GPUs, with --tolerance 0.02")
    args = parser.parse_args()

    with workload.problem_file() as problem:
        write_problem(problem, args.data, args.steps)
        options = ["--bfloat16"] if args.bfloat16 else []
        contestants = workload.jaxvae_rows("vq_vae_jaxvae", problem, args, *options, convolutions=True)
        contestants += workload.torch_rows("vq_vae_torch", problem, args, *options, convolutions=True)
        title = f"VQ-VAE, {args.data}" + (", bfloat16" if args.bfloat16 else "")
        runner.run(title, contestants, args, ours=workload.OURS)


if __name__ == "__main__":
    main()
