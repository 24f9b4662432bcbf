"""The codebook's step beside dm-haiku's, in positions per second, for 512, 2,048 and 8,192 codes.

    python -m benchmarks.quantizer [--cores 0,1] [--peers PYTHON] [--rounds N] [--out FILE]

Each call is a jitted program: the nearest codes of 8,192 vectors of 64 dimensions, the straight-through vectors, the
commitment and the moved averages, forward only. PYTHON belongs to an environment with benchmarks/requirements.txt;
without it dm-haiku is left out. All start from the same codes and averages and see the same vectors. dm-haiku smooths
its counts (Laplace, 1e-5), which changes little, and corrects averages for their start, which these are too old for.
It takes distances in the device's default precision, on a GPU TF32; jaxvae always in float32.
"""

from functools import partial

import jax
import numpy as np

import jaxvae
from benchmarks import runner, workload

OURS = "jaxvae"
POSITIONS, DIM = 8192, 64
SIZES = (512, 2048, 8192)  # codes
TOLERANCE = 1e-3  # of the quantisation errors, relative


def write_problem(path, num_codes, calls):
    """Vectors around more centres than there are codes, [calls, N, D], and the codes and averages to start from."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4 * num_codes, DIM)).astype(np.float32)
    noise = rng.normal(scale=0.3, size=(calls, POSITIONS, DIM)).astype(np.float32)
    encoded = centres[rng.integers(len(centres), size=(calls, POSITIONS))] + noise
    init = jax.jit(partial(jaxvae.EMACodebook(num_codes).init, DIM))
    _, state = init(key=jax.random.key(0), encoded=encoded[1:3].reshape(-1, DIM))  # more vectors than codes
    indices = np.arange(calls * POSITIONS, dtype=np.int32).reshape(calls, POSITIONS)
    np.savez(path, encoded=encoded, indices=indices, **state)


def main():
    parser = runner.make_parser(__doc__, tolerance=TOLERANCE)
    parser.add_argument("--calls", type=int, default=50, help="in a turn, of the smallest codebook; 10 or more")
    args = parser.parse_args()

    for num_codes in SIZES:
        with workload.problem_file() as problem:
            write_problem(problem, num_codes, max(10, args.calls * SIZES[0] // num_codes))
            contestants = [
                workload.row(OURS, None, "quantizer_jaxvae", problem),
                workload.row("jaxvae, with restarts", None, "quantizer_jaxvae", problem, "--restarts"),
            ]
            if args.peers:
                contestants.append(workload.row("dm-haiku", args.peers, "quantizer_haiku", problem))
            runner.run(f"Codebook of {num_codes}", contestants, args, ours=OURS)


if __name__ == "__main__":
    main()
