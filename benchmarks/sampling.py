"""How many images a second does the dense VAE's decoder draw, 10,000 in one call and in calls of 100?

    python -m benchmarks.sampling [--num N] [--batch B] [--rounds N] [--json FILE]

784-400-20: latents from the prior, decoded to probabilities, jitted. The contestants take turns. Sampling through a
PixelCNN prior is in `benchmarks.pixel_cnn`.
"""

from functools import partial

import jax
import jax.numpy as jnp

from benchmarks.contestants.vae_jaxvae import make_model
from benchmarks.timing import console, make_parser, take_turns, write_json


def main():
    parser = make_parser(__doc__, rounds=11)
    parser.add_argument("--num", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=100)
    args = parser.parse_args()

    model = make_model()
    params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 28, 28, 1)))
    keys = jax.random.split(jax.random.key(1), -(-args.num // args.batch))

    @partial(jax.jit, static_argnums=0)
    def draw(num, key):
        return model.apply(params, num, key=key, method="sample").mean

    contestants = {
        f"{args.num:,} in one call": lambda: draw(args.num, keys[0]),
        f"calls of {args.batch:,}": lambda: [draw(args.batch, key) for key in keys],
    }
    seconds = take_turns(contestants, args.rounds)
    drawn = dict(zip(contestants, (args.num, len(keys) * args.batch), strict=True))
    results = {name: drawn[name] / value for name, value in seconds.items()}
    first = next(iter(results.values()))
    for name, speed in results.items():
        console.print(f"{name:20} {speed:12,.0f} images/s  {speed / first:.2f}")
    write_json(args.json, results)


if __name__ == "__main__":
    main()
