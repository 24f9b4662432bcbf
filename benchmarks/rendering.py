"""What drawing sprites inside the step costs, against the same step on stored images.

    python -m benchmarks.rendering [--rounds N] [--steps N] [--json FILE]

The network of `experiments.beta_vae sprites`, batch 64. The contestants take turns: sprites drawn from their factors in
the step, and the same sprites drawn beforehand and kept on the device as bytes.
"""

from functools import partial
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import optax

import jaxvae
from benchmarks.timing import make_parser, take_turns, write_json
from benchmarks.training import contestant, initializer, on_device
from experiments.beta_vae import PRESETS, make_model
from experiments.run import console
from jaxvae import data
from jaxvae.data import sprites

BATCH = 64
STORED = 4_096  # sprites


def main():
    parser = make_parser(__doc__, rounds=5)
    parser.add_argument("--steps", type=int, default=50, help="in a turn")
    args = parser.parse_args()

    preset = PRESETS["sprites"][1]
    shape = (sprites.SIZE, sprites.SIZE, 1)
    model = make_model(SimpleNamespace(latent_dim=preset.latent_dim, channels=preset.channels, image_shape=shape))
    rng = np.random.default_rng(0)
    factors = sprites.factors_at(rng.integers(sprites.NUM_IMAGES, size=STORED)).astype(np.uint8)
    stored = np.asarray(sprites.render(jnp.asarray(factors))).astype(np.uint8)
    indices = jnp.asarray(rng.integers(0, STORED, (args.steps, BATCH)), jnp.int32)
    optimizer = optax.adam(1e-4)

    def turn(x, prepare):
        step = jaxvae.make_train_step(partial(jaxvae.vae_loss, model), optimizer, prepare=prepare)
        return contestant(step, initializer(model, shape), optimizer, on_device(x), indices)

    contestants = {
        "stored": turn(stored, data.make_prepare(2)),
        "drawn": turn(factors, sprites.prepare),
    }
    seconds = take_turns(contestants, args.rounds)
    results = {name: args.steps * BATCH / time for name, time in seconds.items()}
    for name, speed in results.items():
        console.print(f"{name:8} {speed:8,.0f} examples/s", highlight=False)
    share = seconds["drawn"] / seconds["stored"] - 1
    console.print(f"drawing adds {100 * share:.1f} % to a step", highlight=False)
    write_json(args.json, results | {"added_share": share})


if __name__ == "__main__":
    main()
