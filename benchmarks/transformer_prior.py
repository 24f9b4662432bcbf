"""Maps a second drawn from a transformer prior: cached, by whole passes in one scan, and from a PixelCNN beside it.

    python -m benchmarks.transformer_prior [--num N] [--positions P] [--rounds R] [--json FILE]

7×7 maps of 128 codes, models as the presets of `experiments.prior` make them; compiling is not counted. A whole pass
costs the same at every position, so P of them are timed and multiplied up. And milliseconds of a training step's
gradient (batch 64). Trust the ratios, and those only on a quiet machine.
"""

from functools import partial

import jax
import jax.numpy as jnp

import jaxvae
from benchmarks.timing import make_parser, take_turns, write_json
from jaxvae.keys import example_keys, noise

SHAPE, NUM_VALUES, BATCH = (7, 7), 128, 64
MODELS = {
    "transformer": jaxvae.TransformerPrior(NUM_VALUES, SHAPE, width=96),
    "PixelCNN": jaxvae.PixelCNN(NUM_VALUES, SHAPE, channels=96),
}


def whole_passes(model, params, num, positions):
    """`() -> maps`, of which the first positions are drawn, each by a pass over the whole map."""
    keys = example_keys(jax.random.key(0), jnp.arange(num))

    def fill(values, position):
        logits = model.apply(params, values.reshape(num, *SHAPE)).logits.reshape(num, -1, NUM_VALUES)[:, position]
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, position)
        drawn = jnp.argmax(logits + noise(jax.random.gumbel, own, logits.shape), axis=-1)
        return values.at[:, position].set(drawn), None

    scan = jax.jit(lambda values: jax.lax.scan(fill, values, jnp.arange(positions))[0])
    return partial(scan, jnp.zeros((num, SHAPE[0] * SHAPE[1]), jnp.int32))


def gradient(model, params):
    """`() -> the gradient` of a training step."""
    code = jax.random.randint(jax.random.key(0), (BATCH, *SHAPE), 0, NUM_VALUES)

    def loss(params):
        return jaxvae.code_prior_loss(model, params, (), {"code": code}, key=jax.random.key(0), step=0)[0]

    return partial(jax.jit(jax.grad(loss)), params)


def main():
    parser = make_parser(__doc__, rounds=3)
    parser.add_argument("--num", type=int, default=100)
    parser.add_argument("--positions", type=int, default=5)
    options = parser.parse_args()

    key, total = jax.random.key(0), SHAPE[0] * SHAPE[1]
    positions = min(options.positions, total)
    params = {name: jax.jit(model.init)(key, jnp.zeros((1, *SHAPE), jnp.int32)) for name, model in MODELS.items()}
    contestants = {name: partial(model.sample, params[name], options.num, key=key) for name, model in MODELS.items()}
    transformer = MODELS["transformer"], params["transformer"]
    contestants["transformer, whole passes"] = whole_passes(*transformer, options.num, positions)
    contestants |= {f"{name}, gradient": gradient(model, params[name]) for name, model in MODELS.items()}

    seconds = take_turns(contestants, options.rounds)
    seconds["transformer, whole passes"] *= total / positions
    rates = {name: options.num / value for name, value in seconds.items() if "gradient" not in name}
    steps = {name: 1e3 * seconds[f"{name}, gradient"] for name in MODELS}
    for name, rate in rates.items():
        print(
            f"{name}: {rate:,.0f} maps a second, {options.num} at a time, {rate / rates['PixelCNN']:.2f} of PixelCNN's"
        )
    for name, value in steps.items():
        print(f"{name}: {value:.0f} ms for the gradient of {BATCH} maps")
    write_json(options.json, {"maps_per_second": rates, "gradient_ms": steps})


if __name__ == "__main__":
    main()
