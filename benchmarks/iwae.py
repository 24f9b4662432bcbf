"""The importance weighted autoencoder's training step beside PyTorch, in examples per second, at 1, 5 and 50 samples.

    python -m benchmarks.iwae [--cores 0,1] [--peers PYTHON] [--rounds N] [--samples 5,50] [--data mnist] [--out FILE]

784-200-200-50, tanh, Bernoulli pixels, batch 20, Adam, float32 (on a GPU all may use TF32). PYTHON belongs to an
environment with benchmarks/requirements.txt; without it PyTorch is left out. All start from the same parameters, see
the same batches and decode all samples in one matrix product. Each draws its own noise, so the first losses agree to a
percent or two: that notices a missing rate, which makes a tenth. PyTorch has the images in memory, a fused Adam and one
layer for mean and log-variance; it does not bound log σ², as jaxvae does.
"""

from benchmarks import runner, workload
from benchmarks.contestants.iwae_jaxvae import make_model

BATCH = 20
TOLERANCE = 0.025  # of the losses, relative


def main():
    parser = workload.make_parser(__doc__, tolerance=TOLERANCE, steps=500, data="mnist")
    parser.add_argument("--samples", type=lambda text: text.split(","), default=["1", "5", "50"])
    args = parser.parse_args()

    with workload.problem_file() as problem:
        x = workload.digits(args.data, args.steps * BATCH)
        workload.write_vae_problem(problem, make_model(), x, BATCH)
        for samples in args.samples:
            contestants = workload.jaxvae_rows("iwae_jaxvae", problem, args, "--samples", samples)
            contestants += workload.torch_rows("iwae_torch", problem, args, "--samples", samples)
            runner.run(f"IWAE, {samples} samples, {args.data}", contestants, args, ours=workload.OURS)


if __name__ == "__main__":
    main()
