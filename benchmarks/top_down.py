"""A top-down VAE's training step beside PyTorch, in examples per second, at several numbers of groups.

    python -m benchmarks.top_down [--cores 0,1] [--peers PYTHON] [--rounds N] [--groups 6,11,21] [--out FILE]

The convolutional ladder of `experiments.hierarchy mnist`: 28×28×1, one group of vectors, and of the others three fifths
at 7×7 and two fifths at 14×14, residual posteriors, batch 128, Adam, float32 (on a GPU all may use TF32). PYTHON
belongs to an environment with benchmarks/requirements.txt; without it PyTorch is left out. All start from the same
parameters and see the same batches. Each draws its own noise, so the first losses agree to some thousandths, while a
rate that is missing would show from the third step on. PyTorch has the images in memory and a fused Adam; it does not
bound log σ², as jaxvae does.
"""

from benchmarks import runner, workload
from benchmarks.contestants.top_down_jaxvae import make_model

BATCH = 128
TOLERANCE = 5e-3  # of the losses, relative


def main():
    parser = workload.make_parser(__doc__, tolerance=TOLERANCE, steps=10, data="mnist")
    parser.add_argument("--groups", type=lambda text: [int(each) for each in text.split(",")], default=[6])
    args = parser.parse_args()

    with workload.problem_file() as problem:
        x = workload.digits(args.data, args.steps * BATCH)
        for groups in args.groups:
            if groups < 6 or (groups - 1) % 5:
                parser.error(f"--groups must be 6, 11, 16 and so on, got {groups}")
            workload.write_problem(problem, x, BATCH, workload.init_params(make_model(groups), x))
            options = ("--groups", str(groups))
            contestants = workload.jaxvae_rows("top_down_jaxvae", problem, args, *options, convolutions=True)
            contestants += workload.torch_rows("top_down_torch", problem, args, *options, convolutions=True)
            runner.run(f"Top-down VAE, {groups} groups, {args.data}", contestants, args, ours=workload.OURS)


if __name__ == "__main__":
    main()
