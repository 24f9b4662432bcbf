"""The convolutional β-VAE's training step beside XLA's own convolutions and beside PyTorch, in examples per second.

    python -m benchmarks.beta_vae [--cores 0,1] [--peers PYTHON] [--rounds N] [--out FILE]

64×64×1 images, the network of Burgess et al. (2018), 10 latents, β = 4, batch 64, Adam, float32 (on a GPU all may use
TF32). PYTHON belongs to an environment with benchmarks/requirements.txt; without it PyTorch is left out. All start
from the same parameters and see the same batches. Each draws its own noise, so the first losses agree to a thousandth
or so; a β of 1 would make 1.5 %. PyTorch has the images in memory, a fused Adam and one layer for mean and
log-variance; it does not bound log σ², as jaxvae does.
"""

from benchmarks import runner, workload
from benchmarks.contestants.beta_vae_jaxvae import make_model

BATCH = 64
TOLERANCE = 2e-3  # of the losses, relative


def main():
    parser = workload.make_parser(__doc__, tolerance=TOLERANCE, steps=20)
    args = parser.parse_args()

    with workload.problem_file() as problem:
        x = workload.enlarge(workload.patterns(args.steps * BATCH, 8, brightness=0.05), 64)
        workload.write_vae_problem(problem, make_model(), x, BATCH)
        contestants = workload.jaxvae_rows("beta_vae_jaxvae", problem, args, convolutions=True)
        contestants += workload.torch_rows("beta_vae_torch", problem, args, convolutions=True)
        runner.run("β-VAE", contestants, args, ours=workload.OURS)


if __name__ == "__main__":
    main()
