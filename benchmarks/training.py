"""What the benchmarks share that train in their own process, on examples that are on the device."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxvae


def initializer(model, shape):
    """The `init_fn` of a model whose x has this shape; a VQ-VAE's codes are random."""

    def init(*, key):
        x = jnp.zeros((1, *shape))
        if isinstance(model, jaxvae.VQVAE):
            return model.init_with_quantizer(x, key=key, seeded=False)
        return model.init(key, x), ()

    return init


def on_device(x):
    """x [N, ...] with the positions of its examples, as an epoch program takes them."""
    return jax.device_put({"x": x, "index": np.arange(len(x), dtype=np.int32)})


def contestant(train_step, init, optimizer, source, indices):
    """A turn: the steps of `indices` [n, B] in one program."""
    state = jaxvae.init_train_state(init, optimizer, key=jax.random.key(0))
    train_epoch = jaxvae.make_train_epoch(train_step)

    def run():
        nonlocal state
        state, _ = train_epoch(state, source, indices)
        return state.step

    return run
