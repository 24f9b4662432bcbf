"""What the loop costs: `fit` with everything on against the bare program, in examples per second.

    python -m benchmarks.fit [--rounds N] [--json FILE]

The network, batch and schedule of `experiments.vae mnist` on 60,000 random images. The contestants take turns:

- bare: ELBO, Adam and one key per step in a donated `lax.scan`, written out here; nothing else.
- program: `make_train_epoch`, with one key per example, metrics and the NaN guard.
- fit: the same program under `fit`, with progress, training metrics, checkpoints and metrics.jsonl.
- fit, evaluating: also the test set (10,000 images) every second epoch, as the preset does.
"""

import dataclasses
import shutil
import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxvae
from benchmarks.timing import make_parser, take_turns, write_json
from benchmarks.training import initializer
from experiments.run import Run, console
from experiments.vae import PRESETS
from jaxvae import data

EPOCHS = 6  # in a turn


def random_images(num):
    """As bright as MNIST: a tenth of the pixels is on."""
    rng = np.random.default_rng(0)
    return data.from_arrays("random", (rng.random((num, 28, 28, 1)) < 0.1).astype(np.uint8) * np.uint8(255))


def bare_epoch(model, optimizer, batch_size):
    """A training program as one would write it by hand."""

    def step(carry, indices, x):
        params, opt_state, key, n = carry
        pixel_key, latent_key = jax.random.split(jax.random.fold_in(key, n))
        grey = x[indices].astype(jnp.float32) / 255
        pixels = (jax.random.uniform(pixel_key, grey.shape) < grey).astype(jnp.float32)

        def loss(params):
            mean, log_var = model.apply(params, pixels, method="encode")
            latent = mean + jnp.exp(0.5 * log_var) * jax.random.normal(latent_key, mean.shape)
            logits = model.apply(params, latent, method="decode").logits
            distortion = (jax.nn.softplus(logits) - pixels * logits).sum((1, 2, 3))
            rate = 0.5 * (jnp.exp(log_var) - 1 - log_var + mean**2).sum(1)
            return (distortion + rate).mean()

        updates, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return (optax.apply_updates(params, updates), opt_state, key, n + 1), None

    @partial(jax.jit, donate_argnums=0)
    def epoch(carry, x, indices):
        return jax.lax.scan(lambda carry, each: step(carry, each, x), carry, indices)[0]

    return epoch


def main():
    parser = make_parser(__doc__, rounds=5)
    args = parser.parse_args()

    console.quiet = True
    config = dataclasses.replace(PRESETS["mnist"][1], epochs=EPOCHS)
    model = jaxvae.VAE(jaxvae.MLPEncoder(20, (500,)), jaxvae.MLPDecoder((28, 28, 1), (500,)))
    optimizer = optax.adam(config.learning_rate)
    train, test = random_images(60_000), random_images(10_000)
    order = data.Order(len(train), config.batch_size, EPOCHS, 0)
    feed = data.Resident(train, order, chunk=1000)
    prepare = data.make_prepare(256, binarize=True)
    loss_fn = partial(jaxvae.vae_loss, model)
    train_epoch = jaxvae.make_train_epoch(jaxvae.make_train_step(loss_fn, optimizer, prepare=prepare))
    evaluate = jaxvae.make_evaluate(jaxvae.make_eval_step(loss_fn, prepare=prepare))
    test_set = data.evaluation_feed(test, batch_size=500)
    evaluation_key = jax.random.key(0)
    run_epoch = bare_epoch(model, optimizer, config.batch_size)
    x = jnp.asarray(train.x)
    scratch = Path(tempfile.mkdtemp())

    initial = jaxvae.init_train_state(initializer(model, (28, 28, 1)), optimizer, key=jax.random.key(0))

    def state():  # a copy, which a turn donates; making one anew would compile in every turn
        return jax.tree.map(jnp.copy, initial)

    def bare():
        start = state()
        carry = start.params, start.opt_state, start.key, jnp.int32(0)
        for epoch in range(EPOCHS):
            indices = order.indices(epoch * order.steps_per_epoch, order.steps_per_epoch)
            carry = run_epoch(carry, x, jnp.asarray(indices))
        return carry[0]

    def program():
        reached = state()
        for epoch in range(EPOCHS):
            reached, _ = train_epoch(reached, *feed(epoch * order.steps_per_epoch, order.steps_per_epoch))
        return reached.params

    def fit(evaluate_fn):
        run = Run("vae", dataclasses.replace(config, out=scratch / "run"))
        every = config.evaluate_every * order.steps_per_epoch
        reached = run.fit(state(), train_epoch, feed, evaluate=evaluate_fn, evaluate_every=every, split="test")
        run.checkpointer.close()
        shutil.rmtree(scratch / "run")
        return reached.params

    contestants = {
        "bare": bare,
        "program": program,
        "fit": lambda: fit(None),
        "fit, evaluating": lambda: fit(lambda s: jax.device_get(evaluate(s, *test_set, key=evaluation_key))),
    }
    seconds = take_turns(contestants, args.rounds)
    shutil.rmtree(scratch)
    examples = order.total_steps * config.batch_size
    for name, value in seconds.items():
        ratios = ", ".join(f"{seconds[other] / value:.3f} of {other}" for other in ("bare", "program"))
        print(f"{name:16} {examples / value:9,.0f} examples/s   {ratios}")
    write_json(args.json, {name: examples / value for name, value in seconds.items()})


if __name__ == "__main__":
    main()
