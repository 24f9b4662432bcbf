"""What drawing sprites inside the step costs, against the same step on stored images.

    python -m benchmarks.rendering [--rounds N] [--steps N] [--json FILE]

The network of `experiments.beta_vae sprites`, batch 64. The contestants take turns: sprites drawn from their factors in
the step, and the same sprites drawn beforehand and kept on the device as bytes.
"""

import argparse
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxvae
from benchmarks.timing import take_turns, write_json
from experiments.beta_vae import PRESETS, make_model
from experiments.run import console
from jaxvae import data, sprites

BATCH = 64
STORED = 4_096  # sprites


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=50, help="in a turn")
    parser.add_argument("--json", type=Path, help="write the numbers and the environment here")
    args = parser.parse_args()

    preset = PRESETS["sprites"][1]
    shape = (sprites.SIZE, sprites.SIZE, 1)
    model = make_model(SimpleNamespace(latent_dim=preset.latent_dim, channels=preset.channels, image_shape=shape))
    rng = np.random.default_rng(0)
    factors = sprites.factors_at(rng.integers(sprites.NUM_IMAGES, size=STORED)).astype(np.uint8)
    stored = np.asarray(sprites.render(jnp.asarray(factors))).astype(np.uint8)
    index = np.arange(STORED, dtype=np.int32)
    rows = jnp.asarray(rng.integers(0, STORED, (args.steps, BATCH)), jnp.int32)

    def contestant(image, prepare):
        def init(*, key):
            return model.init(key, jnp.zeros((1, *shape))), ()

        source = jax.device_put({"image": image, "index": index})
        optimizer = optax.adam(1e-4)
        epoch = jaxvae.make_train_epoch(
            jaxvae.make_train_step(partial(jaxvae.vae_loss, model), optimizer, prepare=prepare)
        )
        states = [jaxvae.init_train_state(init, optimizer, key=jax.random.key(0))]

        def run():
            states[0], metrics = epoch(states[0], source, rows)
            return metrics

        return run

    contestants = {
        "stored": contestant(stored, data.make_prepare(2)),
        "drawn": contestant(factors, sprites.prepare),
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
