"""Seconds to draw maps from a PixelCNN: cached, by whole passes in one scan, and by a Python loop of jitted passes.

    python -m benchmarks.pixel_cnn [--num N] [--positions P] [--rounds R] [--json FILE]

A whole pass costs the same at every position, so P of them are timed and multiplied up. And milliseconds of a training
step (batch 128, Adam) in an epoch program. Trust the ratios, and those only on a quiet machine.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp
import optax

import jaxvae
from benchmarks.timing import make_parser, take_turns, write_json
from benchmarks.training import contestant
from jaxvae import PixelCNN
from jaxvae.keys import example_keys, noise

SAMPLED = {
    "codes 7x7, K = 128": PixelCNN(128, (7, 7), channels=32, layers=6),
    "pixels 28x28, K = 2": PixelCNN(2, (28, 28), channels=32, layers=6),
    "pixels 28x28, K = 256": PixelCNN(256, (28, 28), channels=32, layers=6),
}
TRAINED = {f"codes 7x7, K = 128, {c} channels": PixelCNN(128, (7, 7), channels=c, layers=6) for c in (32, 48, 64)}
STEPS, BATCH = 4, 128


def sampling(model, params, num, positions, rounds):
    """Median seconds for `num` maps."""
    key = jax.random.key(0)
    keys = example_keys(key, jnp.arange(num))
    blank = jnp.zeros((num, *model.shape), jnp.int32)
    total = blank[0].size
    positions = min(positions, total)

    def fill(values, position):
        logits = model.apply(params, values).logits.reshape(num, total, model.num_values)[:, position]
        gumbel = noise(jax.random.gumbel, jax.vmap(jax.random.fold_in, (0, None))(keys, position), logits.shape)
        drawn = jnp.argmax(logits + gumbel, axis=-1)
        return values.reshape(num, total).at[:, position].set(drawn).reshape(blank.shape), None

    jit_fill = jax.jit(fill)

    def loop():
        values = blank
        for position in range(positions):
            values, _ = jit_fill(values, position)
        return values

    @jax.jit
    def scan(values):
        return jax.lax.scan(fill, values, jnp.arange(positions))[0]

    cached = partial(model.sample, params, num, key=key)
    contestants = {"cached": cached, "whole passes, scan": partial(scan, blank), "whole passes, loop": loop}
    seconds = take_turns(contestants, rounds)
    whole = total / positions
    return {name: value * (1 if name == "cached" else whole) for name, value in seconds.items()}


def training(model, rounds):
    """Median milliseconds of a training step, and the number of parameters."""
    index = jnp.arange(STEPS * BATCH, dtype=jnp.int32)
    code = jax.random.randint(jax.random.key(0), (len(index), *model.shape), 0, model.num_values)
    optimizer = optax.adam(1e-3)
    step = jaxvae.make_train_step(partial(jaxvae.pixel_cnn_loss, model), optimizer)

    def init(*, key):
        return model.init(key, code[:1]), ()

    parameters = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(jax.eval_shape(init, key=jax.random.key(0))))
    epoch = contestant(step, init, optimizer, {"code": code, "index": index}, index.reshape(STEPS, BATCH))
    return 1e3 * take_turns({"epoch": epoch}, rounds)["epoch"] / STEPS, parameters


def main():
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--num", type=int, default=100)
    parser.add_argument("--positions", type=int, default=5)
    options = parser.parse_args()

    results = {"sampling_s": {}, "training": {}}
    for name, model in TRAINED.items():
        step, parameters = training(model, options.rounds)
        results["training"][name] = {"step_ms": step, "parameters": parameters}
        print(f"{name}: {parameters:,} parameters, {step:.0f} ms a training step", flush=True)
    for name, model in SAMPLED.items():
        params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *model.shape), jnp.int32))
        seconds = results["sampling_s"][name] = sampling(model, params, options.num, options.positions, options.rounds)
        print(name)
        for way, value in seconds.items():
            print(f"  {way}: {value:.2f} s, {value / seconds['cached']:.1f} times the cached", flush=True)
    write_json(options.json, results)


if __name__ == "__main__":
    main()
