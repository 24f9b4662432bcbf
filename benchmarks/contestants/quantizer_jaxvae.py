"""jaxvae's EMA codebook, with or without restarts."""

import argparse

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contestants.shared_jax import serve_jax
from jaxvae import codebook


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problem", help="the npz that benchmarks.quantizer writes")
    parser.add_argument("--restarts", action="store_true")
    args = parser.parse_args()
    problem = np.load(args.problem)
    state = jax.device_put(codebook.CodebookState(problem["frequency"], problem["moment"]))
    key = jax.random.key(0)

    @jax.jit
    def step(state, encoded, number):
        codes = codebook.vectors(state)
        indices = codebook.nearest(codes, encoded)
        quantized = codes[indices]
        state = codebook.ema_update(state, encoded, indices, decay=0.99)
        if args.restarts:
            state = codebook.restart_dead_codes(state, encoded, key=jax.random.fold_in(key, number))
        loss = 0.25 * jnp.square(encoded - quantized).mean()
        return state, codebook.straight_through(encoded, quantized), loss

    batches = list(jax.device_put(problem["encoded"]))
    jax.block_until_ready(batches)

    def train(rows):
        nonlocal state
        losses = []
        for number in rows[:, 0] // rows.shape[1]:
            state, _, loss = step(state, batches[number], number)
            losses.append(loss)
        return [float(loss) for loss in jax.device_get(losses)]

    serve_jax(train, problem["rows"])


if __name__ == "__main__":
    main()
