"""jaxvae's EMA codebook, with or without restarts."""

import argparse

import jax
import numpy as np

import jaxvae
from benchmarks.contestants.shared_jax import serve_jax, stepwise
from jaxvae import codebook


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problem", type=np.load, help="the npz that benchmarks.quantizer writes")
    parser.add_argument("--restarts", action="store_true")
    args = parser.parse_args()
    problem = args.problem
    options = {} if args.restarts else {"restart_threshold": 0.0}
    quantizer = jaxvae.EMACodebook(len(problem["frequency"]), **options)
    state = jax.device_put({name: problem[name] for name in ("frequency", "moment")})
    key = jax.random.key(0)

    @jax.jit
    def step(state, encoded, number):
        quantized = quantizer({}, state, encoded)
        state, _ = quantizer.update(state, encoded, quantized.indices, key=jax.random.fold_in(key, number))
        loss = 0.25 * quantized.commitment.mean()
        return state, codebook.straight_through(encoded, quantized.vectors), loss

    batches = list(jax.device_put(problem["encoded"]))
    jax.block_until_ready(batches)

    def inputs_of(indices):
        number = indices[0] // len(indices)
        return batches[number], number

    serve_jax(stepwise(step, state, inputs_of), problem["indices"])


if __name__ == "__main__":
    main()
