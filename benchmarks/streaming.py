"""Does training from the host cost anything? Streamed epochs against epochs from the device, in examples per second.

    python -m benchmarks.streaming [--rounds N] [--epochs N] [--json FILE]

The dense VAE, 784-400-20, batch 128, on 60,000 random images of one byte a pixel. The contestants take turns, and each
reads the next chunk while the device works, as `fit` does:

- resident: the whole set on the device, the indices to take from the host.
- streamed: the examples of a chunk from the host's memory.
- streamed from a file: the same from a memory map, which the system's file cache holds.
"""

import dataclasses
import tempfile
from functools import partial
from pathlib import Path

import jax
import numpy as np
import optax

import jaxvae
from benchmarks.contestants.vae_jaxvae import make_model
from benchmarks.timing import console, make_parser, take_turns, write_json
from benchmarks.training import initializer
from jaxvae import data

NUM_IMAGES, BATCH = 60_000, 128
CHUNK = 78  # steps: six chunks are an epoch


def contestant(feed):
    """A turn: from the first step of the feed to its last."""
    model, optimizer = make_model(), optax.adam(1e-3)
    step = jaxvae.make_train_step(partial(jaxvae.vae_loss, model), optimizer, prepare=data.make_prepare(256))
    train_epoch = jaxvae.make_train_epoch(step)

    state = jaxvae.init_train_state(initializer(model, (28, 28, 1)), optimizer, key=jax.random.key(0))

    def run():
        nonlocal state
        chunk = feed(0, CHUNK)
        for end in range(CHUNK, feed.total_steps + 1, CHUNK):
            state, metrics = train_epoch(state, *chunk)
            chunk = feed(end, CHUNK) if end < feed.total_steps else None
            jax.device_get(metrics)
        return state.step

    return run


def main():
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--epochs", type=int, default=1, help="in a turn")
    args = parser.parse_args()

    x = np.random.default_rng(0).integers(0, 256, (NUM_IMAGES, 28, 28, 1), np.uint8)
    images = data.from_arrays("random", x)
    order = data.Order(NUM_IMAGES, BATCH, args.epochs, 0)
    with tempfile.TemporaryDirectory() as scratch:
        np.save(Path(scratch) / "x.npy", x)
        mapped = dataclasses.replace(images, arrays={"x": np.load(Path(scratch) / "x.npy", mmap_mode="r")})
        feeds = {
            "resident": data.Resident(images, order, chunk=CHUNK),
            "streamed": data.Streamed(images, order, chunk=CHUNK),
            "streamed from a file": data.Streamed(mapped, order, chunk=CHUNK),
        }
        seconds = take_turns({name: contestant(feed) for name, feed in feeds.items()}, args.rounds)
    results = {name: order.total_steps * BATCH / value for name, value in seconds.items()}
    for name, speed in results.items():
        console.print(f"{name:20} {speed:9,.0f} examples/s  {speed / results['resident']:.3f} of resident")
    write_json(args.json, results)


if __name__ == "__main__":
    main()
