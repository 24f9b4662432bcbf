"""The VAE's training step beside flax, PyTorch and pythae, in examples per second.

    python -m benchmarks.vae [--cores 0,1] [--peers PYTHON] [--rounds N] [--data mnist] [--out FILE]

784-400-20, ReLU, Bernoulli pixels, batch 128, Adam, float32 (on a GPU all may use TF32). PYTHON belongs to an
environment with benchmarks/requirements.txt; without it PyTorch and pythae are left out. All start from the same
parameters and see the same batches; jaxvae stores them as bytes, the others as floats. Each draws its own noise, so the
first losses agree to a percent: that notices a missing rate, which makes 5 %.

* jaxvae bounds log σ² and skips steps that are not finite; nobody else does.
* flax is a jitted step with donated state on batches from NumPy, optax's cross-entropy, the losses fetched at the end.
* PyTorch and torch.compile have the images in memory, a fused Adam and one layer for mean and log-variance; with the
  DataLoader, Adam as it comes, two things that its users mostly write. No extra processes load data.
* pythae is its own trainer's epoch; checkpoints, which it writes after one, are left out.
"""

from benchmarks import runner, workload
from benchmarks.contestants.vae_jaxvae import make_model

BATCH = 128
TOLERANCE = 0.01  # of the losses, relative


def main():
    parser = workload.make_parser(__doc__, tolerance=TOLERANCE, steps=468, data="mnist")  # an epoch of MNIST
    args = parser.parse_args()

    with workload.problem_file() as problem:
        x = workload.digits(args.data, args.steps * BATCH)
        workload.write_vae_problem(problem, make_model(), x, BATCH)
        contestants = workload.jaxvae_rows("vae_jaxvae", problem, args)
        contestants.append(workload.row("flax, jit", None, "vae_flax", problem))
        if args.peers:
            contestants += workload.torch_rows("vae_torch", problem, args)
            contestants.append(workload.row("PyTorch, DataLoader", args.peers, "vae_torch", problem, "--loader"))
            contestants.append(workload.row("pythae", args.peers, "vae_pythae", problem))
        runner.run(f"VAE, {args.data}", contestants, args, ours=workload.OURS)


if __name__ == "__main__":
    main()
