"""How far are the workloads from what the default device can do at all?

    python -m benchmarks.limits [--cores 0,1] [--tables FILE] [--rounds N] [--json FILE]

Measures the device's rate of float32 matrix products and its memory bandwidth, counts the products and the memory
traffic of a training step of each workload, and says how many examples a second either would allow. FILE holds tables
of `benchmarks.runner`, read on the same device and as many cores: the share of the product rate is printed for each
row.

Products are counted as an ideal device would do them: the cheapest form of each convolution and codebook, no zeros of a
stride or a transposition. The traffic is XLA's count of what its operations read and write, as if none of it stayed in
a cache.
"""

import json
import math
import os
import time
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from jax.extend.core import jaxprs_in_params
from rich.table import Table

import jaxvae
from benchmarks.contestants import beta_vae_jaxvae, iwae_jaxvae, top_down_jaxvae, vae_jaxvae, vq_vae_jaxvae
from benchmarks.timing import DISTURBED, console, foreign_seconds, make_parser, own_cores, write_json
from benchmarks.training import initializer
from jaxvae import data

CPU_SIZES, ACCELERATOR_SIZES = (512, 1024, 2048), (4096, 8192, 16384)
DENSE = {"128×784×400 and back": (128, 784, 400), "784×128×400 and back": (784, 128, 400)}  # of the dense VAE
TRIAD = 2**25  # float32 values in each array: larger than caches
# The runner's tables whose titles begin so: model, objective, images of a batch.
WORKLOADS = {
    "VAE": (vae_jaxvae.make_model, jaxvae.vae_loss, (128, 28, 28, 1)),
    **{
        f"IWAE, {s} samples": (iwae_jaxvae.make_model, partial(jaxvae.iwae_loss, num_samples=s), (20, 28, 28, 1))
        for s in (1, 5, 50)
    },
    "VQ-VAE": (vq_vae_jaxvae.make_model, partial(jaxvae.vq_vae_loss, variance=1.0), (128, 32, 32, 3)),
    "β-VAE": (beta_vae_jaxvae.make_model, partial(jaxvae.vae_loss, beta=4.0), (64, 64, 64, 1)),
    "Top-down VAE, 6 groups": (partial(top_down_jaxvae.make_model, 6), jaxvae.vae_loss, (128, 28, 28, 1)),
}


def make_training(name):
    """A workload's training step, what makes its first state, and the shapes of its batch."""
    make_model, loss_fn, shape = WORKLOADS[name]
    model, optimizer = make_model(), optax.adam(1e-3)

    init = initializer(model, shape[1:])
    train_step = jaxvae.make_train_step(partial(loss_fn, model), optimizer, prepare=data.make_prepare(256))
    batch = {"x": jax.ShapeDtypeStruct(shape, jnp.uint8), "index": jax.ShapeDtypeStruct(shape[:1], jnp.int32)}
    return train_step, partial(jaxvae.init_train_state, init, optimizer, key=jax.random.key(0)), batch


def flops_per_example(name):
    """Of a workload's training step, forward and backward; the optimiser multiplies no matrices."""
    train_step, init_state, batch = make_training(name)
    return matmul_flops(train_step, jax.eval_shape(init_state), batch) / len(batch["index"])


def bytes_per_example(name):
    """XLA's count for a workload's compiled training step."""
    train_step, init_state, batch = make_training(name)
    compiled = jax.jit(train_step, donate_argnums=0).lower(jax.eval_shape(init_state), batch).compile()
    return compiled.cost_analysis()["bytes accessed"] / len(batch["index"])


def matmul_flops(function, *arguments):
    """2·M·N·K, summed over the matrix products and convolutions of `function`; arrays or their shapes go in.

    Of a condition, also of `platform_dependent`, the cheapest branch counts.

    Raises:
      ValueError: there is a product inside a `while_loop`, which may turn any number of times.
    """
    return _flops(jax.make_jaxpr(function)(*arguments).jaxpr)


def _flops(jaxpr):
    total = 0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name == "dot_general":
            (contracted, _), _ = params["dimension_numbers"]
            left, output = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
            total += 2 * math.prod(output) * math.prod(left[axis] for axis in contracted)
        elif name == "conv_general_dilated":
            kernel, output = equation.invars[1].aval.shape, equation.outvars[0].aval.shape
            features = kernel[params["dimension_numbers"].rhs_spec[0]]
            taps = math.prod(kernel) // features  # of which all but one in s meet the zeros between inputs s apart
            total += 2 * math.prod(output) * taps // math.prod(params["lhs_dilation"])
        elif name == "cond":
            total += min(_flops(branch.jaxpr) for branch in params["branches"])
        elif name == "scan":
            total += params["length"] * _flops(params["jaxpr"].jaxpr)
        else:
            inside = sum(_flops(inner) for inner in jaxprs_in_params(params))
            if name == "while" and inside:
                raise ValueError("products inside a while_loop cannot be counted; use a scan")
            total += inside
    return total


def product_rate(m, k, n, dtype, rounds):
    """FLOP/s of [m, k] × [k, n] and, back again, [m, n] × [n, k], in a chain; the best round."""
    repeats = max(1, int(_turn() // (4 * m * k * n)))
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = (m, k), (k, n), (n, k)  # scaled so that no number of repeats over- or underflows
    x, there, back = (
        (jax.random.normal(key, shape) / math.sqrt(shape[0])).astype(dtype)
        for key, shape in zip(keys, shapes, strict=True)
    )

    @jax.jit
    def chain(x, there, back):
        return jax.lax.fori_loop(0, repeats, lambda _, x: (x @ there) @ back, x)

    return 4 * m * k * n * repeats / best_seconds(lambda: chain(x, there, back), rounds)


def _turn():
    """FLOP of a turn: on a CPU a few milliseconds, which others may leave alone; else more than a launch costs."""
    return 3e8 if jax.default_backend() == "cpu" else 1e12


def bandwidth(rounds):
    """Bytes per second of a = a/2 + b over arrays much larger than the caches; the best round."""
    repeats = 1 if jax.default_backend() == "cpu" else 20
    a, b = jnp.ones(TRIAD), jnp.ones(TRIAD)
    triad = jax.jit(lambda a, b: a / 2 + b, donate_argnums=0)

    def run():
        nonlocal a
        for _ in range(repeats):
            a = triad(a, b)
        return a

    return repeats * 3 * 4 * TRIAD / best_seconds(run, rounds)


def best_seconds(run, rounds):
    """The shortest of the rounds: a limit is what was reached once. The first, which compiles, does not count."""
    seconds = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def matmul_peak(dtype=jnp.float32, rounds=20):
    """FLOP/s of the default device's matrix products, the best of several sizes, at JAX's default precision."""
    sizes = CPU_SIZES if jax.default_backend() == "cpu" else ACCELERATOR_SIZES
    return max(product_rate(size, size, size, dtype, rounds) for size in sizes)


def fractions(tables, peaks):
    """{title: {row: share of the peak}} for the runner's tables of a workload.

    `peaks` {"float32": FLOP/s, "bfloat16": FLOP/s} are of one device: rows on several are left out. A table is
    bfloat16's if its title says so.
    """
    shares = {}
    for title, table in tables.items():
        for name in WORKLOADS:
            if title.startswith(name):
                peak = peaks["bfloat16" if "bfloat16" in title else "float32"]
                flops = flops_per_example(name)
                rows = {row: values for row, values in table["rows"].items() if not row.endswith("devices")}
                shares[title] = {row: values["median"] * flops / peak for row, values in rows.items()}
    return shares


def main():
    parser = make_parser(__doc__, rounds=20)
    parser.add_argument("--cores", help="for example 0,1; default: all")
    parser.add_argument("--tables", type=Path, help="a JSON file that a workload wrote with --out")
    args = parser.parse_args()

    if args.cores:
        os.sched_setaffinity(0, map(int, args.cores.split(",")))  # before JAX starts its threads
    device, cores = jax.devices()[0].device_kind, len(own_cores())
    console.print(f"device: {device}, {cores} cores")
    before, start = foreign_seconds(), time.perf_counter()
    kinds = ("float32",) if jax.default_backend() == "cpu" else ("float32", "bfloat16")
    peaks = {kind: matmul_peak(jnp.dtype(kind), args.rounds) for kind in kinds}
    for kind, peak in peaks.items():
        console.print(f"{kind} products, large and square: {peak / 1e9:,.0f} GFLOP/s")
    dense = {name: product_rate(*sizes, jnp.float32, args.rounds) for name, sizes in DENSE.items()}
    for name, rate in dense.items():
        console.print(f"float32 products, {name}: {rate / 1e9:,.0f} GFLOP/s")
    memory = bandwidth(args.rounds)
    console.print(f"memory, a = a/2 + b: {memory / 1e9:,.1f} GB/s")
    others = (foreign_seconds() - before) / ((time.perf_counter() - start) * cores)
    if others > DISTURBED:
        console.print(
            f"Others used {100 * others:.0f} % of the cores: the limits may be too low, and shares of them too high.",
            style="bold red",
        )

    results = {"peaks": peaks, "dense": dense, "bandwidth": memory, "others": others, "workloads": {}, "fractions": {}}
    columns = ("MFLOP an example", "kB an example", "examples/s at the peak", "at the bandwidth")
    table = Table("", *columns, title="One training step, per example")
    for name in WORKLOADS:
        flops, traffic = flops_per_example(name), bytes_per_example(name)
        results["workloads"][name] = {"flops": flops, "bytes": traffic}
        limits = f"{peaks['float32'] / flops:,.0f}", f"{memory / traffic:,.0f}"
        table.add_row(name, f"{flops / 1e6:.2f}", f"{traffic / 1e3:,.0f}", *limits)
    console.print(table)

    if args.tables:
        tables = json.loads(args.tables.read_text())
        for title, result in tables.items():
            if (result["device"], result["cores"]) != (device, cores):
                parser.error(f"{title!r} was read on {result['device']}, {result['cores']} cores")
        results["fractions"] = fractions(tables, peaks)
        table = Table("", "", "of the peak", title="Shares of the product rate")
        for title, rows in results["fractions"].items():
            for row, share in rows.items():
                table.add_row(title, row, f"{share:.2f}")
        console.print(table)
    write_json(args.json, results)


if __name__ == "__main__":
    main()
