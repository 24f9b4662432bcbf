"""Eight values of β: eight runs one after the other against one program, in examples per second of all together.

    python -m benchmarks.sweep [--preset mnist|digits] [--rounds N] [--steps N] [--json FILE]

Network, batch and β of a preset of `experiments.rate_distortion` (mnist: 784-400-20, batch 128; digits: 64-200-10,
batch 64) on 60,000 random images of that size. The contestants take turns:

- sequential: `make_train_epoch` for one β after the other; the program is compiled once and timed without that.
- vmap, map: `make_sweep_epoch`, all members in one program.
- processes: a process per core, each pinned to it; compiled before the clock starts. On CPUs only.
"""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxvae
from benchmarks.timing import make_parser, take_turns, write_json
from benchmarks.training import initializer, on_device
from experiments.rate_distortion import PRESETS, make_model
from experiments.run import console
from experiments.sweep_processes import cores
from jaxvae import data
from jaxvae.training.sweep import init_sweep_state, make_sweep_epoch

SIDES = {"mnist": 28, "digits": 8}
NUM_IMAGES = 60_000


def make_step(model, numbers):
    loss_fn = partial(jaxvae.vae_loss, model, beta=numbers["beta"])
    return jaxvae.make_train_step(loss_fn, optax.adam(1e-3), prepare=data.make_prepare(256, binarize=True))


class Problem:
    """The data on the device, the model and the indices of one turn."""

    def __init__(self, preset, steps):
        rng = np.random.default_rng(0)
        config = PRESETS[preset][1]
        self.shape = (SIDES[preset], SIDES[preset], 1)
        x = (rng.random((NUM_IMAGES, *self.shape)) < 0.1).astype(np.uint8) * np.uint8(255)
        self.source = on_device(x)
        self.indices = jnp.asarray(rng.integers(0, NUM_IMAGES, (steps, config.batch_size)), jnp.int32)
        self.model = make_model(config, self.shape)
        # The beta is an argument of the compiled program here too: eight runs are not to compile eight times.
        self.one = make_sweep_epoch(partial(make_step, self.model), how="map")

        self.states = {}

    def init(self, betas):
        """Members that start alike; compiling that is nobody's share of a turn."""
        if len(betas) not in self.states:
            keys = jax.vmap(jax.random.key)(jnp.zeros(len(betas), jnp.uint32))
            init = initializer(self.model, self.shape)
            self.states[len(betas)] = init_sweep_state(init, optax.adam(1e-3), {"beta": betas}, keys=keys)
        state = jax.tree.map(jnp.copy, self.states[len(betas)])
        return state.replace(numbers={"beta": jnp.asarray(betas, jnp.float32)})

    def run(self, betas, epoch):
        """Train them for one turn."""
        return jax.block_until_ready(epoch(self.init(betas), self.source, self.indices)[0].step)


PROBLEM = None  # of a worker process


def start_worker(free_cores, preset, steps):
    """Pin the process to a core of its own and compile."""
    global PROBLEM
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen=false"
    os.sched_setaffinity(0, {free_cores.get()})
    PROBLEM = Problem(preset, steps)
    train_one(1.0)


def train_one(beta):
    return int(PROBLEM.run([beta], PROBLEM.one))


def main():
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--preset", choices=SIDES, default="mnist")
    parser.add_argument("--steps", type=int, default=469, help="of each member in a turn; 469 is an epoch of 60,000")
    args = parser.parse_args()

    problem = Problem(args.preset, args.steps)
    betas = PRESETS[args.preset][1].betas
    compilations = []

    def counted(numbers):
        compilations.append(1)
        return make_step(problem.model, numbers)

    vmapped = make_sweep_epoch(counted, how="vmap")
    mapped = make_sweep_epoch(counted, how="map")
    contestants = {
        "sequential": lambda: [problem.run([beta], problem.one) for beta in betas],
        "vmap": lambda: problem.run(betas, vmapped),
        "map": lambda: problem.run(betas, mapped),
    }
    on_cpu = jax.default_backend() == "cpu"
    pool = None
    if on_cpu and hasattr(os, "sched_setaffinity"):
        context = multiprocessing.get_context("spawn")
        free_cores = context.Queue()
        for core in cores():
            free_cores.put(core)
        pool = ProcessPoolExecutor(len(cores()), context, start_worker, (free_cores, args.preset, args.steps))
        list(pool.map(train_one, [1.0] * 4 * len(cores())))  # all workers have started and compiled
        contestants["processes"] = lambda: list(pool.map(train_one, betas))
    seconds = take_turns(contestants, args.rounds)
    if pool is not None:
        pool.shutdown()

    examples = len(betas) * problem.indices.size
    results = {name: examples / time for name, time in seconds.items()}
    for name, speed in results.items():
        ratio = speed / results["sequential"]
        console.print(f"{name:12} {speed:10,.0f} examples/s  {ratio:5.2f} × sequential", highlight=False)
    console.print(f"the step was traced {len(compilations)} times for two programs, {args.rounds + 1} turns of each")
    write_json(args.json, results)


if __name__ == "__main__":
    main()
