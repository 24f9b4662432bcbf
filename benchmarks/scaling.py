"""How does the cost of a training step grow? Milliseconds at doubling sizes, and the exponent that fits them.

    python -m benchmarks.scaling [--only width,depth] [--sizes batch=128,1024] [--rounds N] [--png FILE] [--json FILE]

- batch, width (of the hidden layer), depth (hidden layers on each side), latent, images (in the set, on the device):
  of a dense VAE, 784-400-20, batch 128, of which one number at a time is varied.
- samples: of the importance weighted bound on the same VAE, batch 20.
- codes: in the codebook of the convolutional VQ-VAE of `benchmarks.vq_vae`, batch 16.

An exponent of 1 is a cost that doubles with the size, 0 one that does not depend on it. The sizes of one kind take
turns.
"""

from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax
from rich.table import Table

import jaxvae
from benchmarks.contestants import vq_vae_jaxvae
from benchmarks.timing import console, make_parser, take_turns, write_json
from benchmarks.training import contestant, initializer, on_device
from jaxvae import data
from jaxvae.figures._page import COLORS, INK, new_figure, save, tidy

SIZES = {
    "batch": (32, 64, 128, 256, 512),
    "width": (100, 200, 400, 800, 1600),
    "depth": (1, 2, 4, 8),
    "latent": (5, 10, 20, 40, 80),
    "images": (4_000, 8_000, 16_000, 32_000, 64_000),
    "samples": (1, 5, 10, 50, 100),
    "codes": (128, 256, 512, 1024, 2048),
}


def dense_contestant(batch=128, width=400, depth=1, latent=20, images=8_000, steps=20):
    """A turn: `steps` steps of the dense VAE in one program."""
    hidden = (width,) * depth
    model = jaxvae.VAE(jaxvae.MLPEncoder(latent, hidden), jaxvae.MLPDecoder((28, 28, 1), hidden))
    return make_contestant(partial(jaxvae.vae_loss, model), model, (28, 28, 1), images, batch, steps)


def importance_contestant(samples=5, batch=20, steps=20):
    """A turn: `steps` steps of the dense VAE by the importance weighted bound in one program."""
    model = jaxvae.VAE(jaxvae.MLPEncoder(20, (400,)), jaxvae.MLPDecoder((28, 28, 1), (400,)))
    loss_fn = partial(jaxvae.iwae_loss, model, num_samples=samples)
    return make_contestant(loss_fn, model, (28, 28, 1), 8_000, batch, steps)


def codebook_contestant(codes=512, batch=16, steps=2):
    """A turn: `steps` steps of the convolutional VQ-VAE in one program."""
    model = vq_vae_jaxvae.make_model(codes=codes)
    return make_contestant(partial(jaxvae.vq_vae_loss, model, variance=1.0), model, (32, 32, 3), 256, batch, steps)


def make_contestant(loss_fn, model, shape, images, batch, steps):
    optimizer = optax.adam(1e-3)
    rng = np.random.default_rng(0)
    source = on_device(rng.integers(0, 256, (images, *shape), np.uint8))
    indices = jax.device_put(rng.integers(0, images, (steps, batch), np.int32))
    step = jaxvae.make_train_step(loss_fn, optimizer, prepare=data.make_prepare(256))
    return contestant(step, initializer(model, shape), optimizer, source, indices), steps


def measure(kind, sizes, rounds):
    """{size: milliseconds a step}."""
    make = {"codes": codebook_contestant, "samples": importance_contestant}.get(kind, dense_contestant)
    made = {size: make(**{kind: size}) for size in sizes}
    seconds = take_turns({size: run for size, (run, _) in made.items()}, rounds)
    return {size: 1e3 * seconds[size] / steps for size, (_, steps) in made.items()}


def exponent(times):
    """The slope of log time over log size, by least squares."""
    return np.polyfit(np.log(list(times)), np.log(list(times.values())), 1)[0]


def of_a_kind(text):
    """("batch", (128, 1024)) from batch=128,1024."""
    kind, _, sizes = text.partition("=")
    if kind not in SIZES:
        raise ValueError(f"no kind {kind!r} among {', '.join(SIZES)}")
    return kind, tuple(int(size) for size in sizes.split(","))


def draw(results, path):
    figure = new_figure(10, 3 * -(-len(results) // 3), layout="constrained")
    for place, (kind, times) in enumerate(results.items(), start=1):
        axes = figure.add_subplot(-(-len(results) // 3), 3, place)
        axes.loglog(list(times), list(times.values()), "o-", color=COLORS[0])
        axes.set(xlabel=kind, ylabel="ms a step")
        axes.set_xticks(list(times), [f"{size:,}" for size in times])
        axes.set_yticks(list(times.values()), [f"{value:.3g}" for value in times.values()])
        axes.minorticks_off()
        axes.set_title(f"size to the power {exponent(times):.2f}", fontsize=10, color=INK)
        tidy(axes)
    save(figure, path)


def main():
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--only", default=",".join(SIZES), help="kinds of size, between commas; default: all")
    parser.add_argument("--sizes", nargs="+", default=[], type=of_a_kind, metavar="KIND=SIZES", help="in place of ours")
    parser.add_argument("--png", type=Path, help="draw the times here")
    args = parser.parse_args()

    results, sizes = {}, SIZES | dict(args.sizes)
    for kind in args.only.split(","):
        times = results[kind] = measure(kind, sizes[kind], args.rounds)
        table = Table(kind, *map(str, times), "exponent")
        table.add_row("ms a step", *(f"{value:.2f}" for value in times.values()), f"{exponent(times):.2f}")
        console.print(table)
    if args.png:
        draw(results, args.png)
    exponents = {kind: exponent(times) for kind, times in results.items()}
    write_json(args.json, {"milliseconds": results, "exponents": exponents})


if __name__ == "__main__":
    main()
