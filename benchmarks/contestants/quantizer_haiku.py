"""dm-haiku's EMA codebook."""

import argparse

import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.contestants.shared_jax import serve_jax, stepwise

OLD = 10_000  # calls so far: averages that the correction of their start leaves alone


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problem", help="the npz that benchmarks.quantizer writes")
    problem = np.load(parser.parse_args().problem)
    num_codes, dim = problem["moment"].shape
    positions = problem["indices"].shape[1]

    def quantize(encoded):
        return hk.nets.VectorQuantizerEMA(dim, num_codes, 0.25, 0.99, name="quantizer")(encoded, is_training=True)

    module = hk.transform_with_state(quantize)
    batches = list(jax.device_put(problem["encoded"]))
    _, state = module.init(jax.random.key(0), batches[0])
    counts, sums = positions * problem["frequency"], positions * problem["moment"].T
    warm = {
        "quantizer": {"embeddings": sums / counts},
        "quantizer/~/ema_cluster_size": {"hidden": counts, "average": counts, "counter": np.int32(OLD)},
        "quantizer/~/ema_dw": {"hidden": sums, "average": sums, "counter": np.int32(OLD)},
    }
    state = jax.tree.map(lambda value, shape: jnp.asarray(value, shape.dtype), warm, dict(state))

    @jax.jit
    def step(state, encoded):
        output, state = module.apply({}, state, None, encoded)
        return state, output["quantize"], output["loss"]

    def inputs_of(indices):
        return (batches[indices[0] // positions],)

    serve_jax(stepwise(step, state, inputs_of), problem["indices"], ("dm-haiku",))


if __name__ == "__main__":
    main()
