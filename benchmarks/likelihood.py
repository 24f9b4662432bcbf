"""How much of the machine's matrix-product rate does the importance-sampled log-likelihood reach?

The decoder of Burda et al. (2016), 50-200-200-784, over random binary images. Only the decoder's matrix products are
counted as work: drawing the noise, the activations, the likelihood and the sums are all overhead. The rate to compare
with is that of one large product, and of the decoder's own largest, in the same run.

  python -m benchmarks.likelihood [--images N] [--samples S] [--rounds R] [--json FILE]
"""

from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

import jaxvae
from benchmarks.timing import make_parser, take_turns, write_json
from benchmarks.training import on_device

REPEATS = 20  # products in one turn
ROWS = 5000  # of a pass through the decoder


def main():
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--samples", type=int, default=500)
    options = parser.parse_args()

    model = jaxvae.VAE(jaxvae.MLPEncoder(50, (200, 200), nn.tanh), jaxvae.MLPDecoder((28, 28, 1), (200, 200), nn.tanh))
    key = jax.random.key(0)
    params = model.init(key, jnp.zeros((1, 28, 28, 1)))
    source = on_device(jax.random.bernoulli(key, 0.2, (options.images, 28, 28, 1)).astype(jnp.float32))

    def evaluate():
        return jaxvae.log_likelihood(
            model,
            params,
            (),
            source,
            source["index"].reshape(-1, 100),
            key=key,
            num_samples=options.samples,
            samples_per_pass=ROWS // 100,
        ).log_prob

    @jax.jit
    def products(a, b):
        return jax.lax.fori_loop(0, REPEATS, lambda i, total: total + (a + i) @ b, jnp.zeros((len(a), b.shape[1])))

    shapes = {"the largest layer": (ROWS, 200, 784), "a large product": (2048, 2048, 2048)}
    operands = {name: (jnp.ones((m, k)), jnp.ones((k, n))) for name, (m, k, n) in shapes.items()}
    contestants = {name: partial(products, *arrays) for name, arrays in operands.items()}
    seconds = take_turns({"log_likelihood": evaluate, **contestants}, options.rounds)

    work = {name: 2 * m * k * n * REPEATS for name, (m, k, n) in shapes.items()}
    work["log_likelihood"] = 2 * (50 * 200 + 200 * 200 + 200 * 784) * options.images * options.samples
    rates = {name: work[name] / seconds[name] / 1e9 for name in work}
    results = {"gflops": rates, "share": {name: rates["log_likelihood"] / rates[name] for name in shapes}}
    for name, rate in rates.items():
        print(f"{name}: {rate:.0f} GFLOP/s")
    for name, share in results["share"].items():
        print(f"log_likelihood / {name}: {share:.2f}")
    write_json(options.json, results)


if __name__ == "__main__":
    main()
