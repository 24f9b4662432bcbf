"""jaxvae's VQ-VAE training step: as an epoch program or under a jit of its own, on our convolutions or XLA's."""

import argparse
from functools import partial
from importlib.metadata import version

import flax.linen as nn
import jax
import numpy as np
import optax
from flax.traverse_util import unflatten_dict

import jaxvae
from benchmarks.contestants import serve
from jaxvae import data, networks


def make_model():
    """The authors' network for 32×32×3: 128 channels, two residual blocks of 32."""
    return jaxvae.VQVAE(jaxvae.ResidualEncoder(64), jaxvae.ResidualDecoder(3))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problem", help="the npz that benchmarks.vq_vae writes")
    parser.add_argument("--per-step", action="store_true", help="no epoch program")
    parser.add_argument("--stock", action="store_true", help="flax's convolutions")
    args = parser.parse_args()

    jax.config.update("jax_enable_compilation_cache", False)  # compilations are timed
    if args.stock:
        networks.Conv, networks.ConvTranspose = nn.Conv, nn.ConvTranspose
    problem = dict(np.load(args.problem))
    image, rows, variance = (problem.pop(name) for name in ("image", "rows", "variance"))
    codes = jaxvae.CodebookState(problem.pop("codebook/frequency"), problem.pop("codebook/moment"))
    params = {"params": unflatten_dict(problem, sep="/")}

    loss_fn = partial(jaxvae.vq_vae_loss, make_model(), variance=float(variance))
    optimizer, prepare = optax.adam(3e-4), data.make_prepare(256)
    state = jaxvae.init_train_state(lambda *, key: (params, codes), optimizer, key=jax.random.key(0))
    source = {"image": image, "index": np.arange(len(image), dtype=np.int32)}
    train_step = jaxvae.jit_train_step(loss_fn, optimizer, prepare=prepare)
    train_epoch = jaxvae.make_train_epoch(jaxvae.make_train_step(loss_fn, optimizer, prepare=prepare))
    on_device = jax.device_put(source)

    def one_by_one(rows):
        nonlocal state
        losses = []
        for row in rows:
            state, metrics = train_step(state, {name: values[row] for name, values in source.items()})
            losses.append(metrics["loss"])
        return [float(loss) for loss in jax.device_get(losses)]

    def program(part):
        nonlocal state
        padded = np.full_like(rows, -1)  # one shape for every call, as in training
        padded[: len(part)] = part
        state, metrics = train_epoch(state, on_device, padded)
        return np.asarray(metrics["loss"])[: len(part)].tolist()

    compilations = 0

    def count(event, duration, **_):
        nonlocal compilations
        compilations += event == "/jax/core/compile/backend_compile_duration"

    jax.monitoring.register_event_duration_secs_listener(count)
    serve(
        one_by_one if args.per_step else program,
        rows,
        device=jax.devices()[0].device_kind,
        versions={name: version(name) for name in ("jax", "jaxlib", "flax", "optax")},
        counts=lambda: {"compilations": compilations},
    )


if __name__ == "__main__":
    main()
