"""Which form of each part of the codebook's step is fastest on the default device, in milliseconds?

    python -m benchmarks.codebook [--rounds N] [--json FILE]

The forms take turns, and the medians are compared: trust the ratios, and those only on a quiet machine. "The step"
is all that a training step does with a codebook; "textbook" is the same with whole distances and a one-hot matrix.
"""

from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.timing import make_parser, take_turns, write_json
from jaxvae import codebook

SIZES = [(2048, 64, 512), (8192, 64, 512)]  # positions, dimensions, codes
HIGHEST = jax.lax.Precision.HIGHEST


def draw_by_permutation(encoded, num_codes, key):
    return encoded[jax.random.permutation(key, len(encoded))[:num_codes]]


def draw_by_top_k(encoded, num_codes, key):
    return encoded[jax.lax.top_k(jax.random.uniform(key, (len(encoded),)), num_codes)[1]]


def step(state, encoded, key, restarts=True):
    codes = codebook.vectors(state)
    indices = codebook.nearest(codes, encoded)
    state = codebook.ema_update(state, encoded, indices, decay=0.99)
    if restarts:
        state = codebook.restart_dead_codes(state, encoded, key=key)
    return state, codes[indices]


def textbook_step(state, encoded, key):
    del key
    codes = codebook.vectors(state)
    norms = jnp.square(encoded).sum(1)[:, None] + jnp.square(codes).sum(1)[None]
    distances = norms - 2 * jnp.dot(encoded, codes.T, precision=HIGHEST)
    one_hot = jax.nn.one_hot(distances.argmin(axis=1), len(codes))
    frequency = 0.99 * state.frequency + 0.01 * one_hot.mean(axis=0)
    moment = 0.99 * state.moment + 0.01 * jnp.dot(one_hot.T, encoded, precision=HIGHEST) / len(encoded)
    return codebook.CodebookState(frequency, moment), jnp.dot(one_hot, codes, precision=HIGHEST)


def measure(positions, dim, num_codes, rounds):
    """Median milliseconds of every form, each a program of its own."""
    key = jax.random.key(0)
    encoded = jax.random.normal(key, (positions, dim))
    state = codebook.init_codebook(num_codes, dim, key=key)
    codes = codebook.vectors(state)
    indices = codebook.nearest(codes, encoded)
    forms = {
        "nearest": (codebook.nearest, codes, encoded),
        "statistics, segment_sum": (partial(codebook.segment_means, num_codes=num_codes), encoded, indices),
        "statistics, one-hot": (partial(codebook.one_hot_means, num_codes=num_codes), encoded, indices),
        "draws, top_k": (lambda z, k: draw_by_top_k(z, num_codes, k), encoded, key),
        "draws, permutation": (lambda z, k: draw_by_permutation(z, num_codes, k), encoded, key),
        "the step": (step, state, encoded, key),
        "the step without restarts": (partial(step, restarts=False), state, encoded, key),
        "the textbook step": (textbook_step, state, encoded, key),
        "seed_codebook": (lambda z, k: codebook.seed_codebook(z, num_codes, key=k), encoded, key),
    }
    seconds = take_turns({name: partial(jax.jit(form), *arrays) for name, (form, *arrays) in forms.items()}, rounds)
    return {name: 1e3 * value for name, value in seconds.items()}


def main():
    parser = make_parser(__doc__, rounds=21)
    args = parser.parse_args()

    results = {"N = {}, D = {}, K = {}".format(*size): measure(*size, args.rounds) for size in SIZES}
    for size, times in results.items():
        print(size)
        for name, milliseconds in times.items():
            print(f"  {name:26}{milliseconds:9.2f} ms")
        print(f"  textbook / ours           {times['the textbook step'] / times['the step']:9.2f}")
        print(f"  one-hot / segment_sum     {times['statistics, one-hot'] / times['statistics, segment_sum']:9.2f}")
    write_json(args.json, results)


if __name__ == "__main__":
    main()
