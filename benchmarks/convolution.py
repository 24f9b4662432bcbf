"""Our convolutions against the stock ones: milliseconds a training step, scanned and step by step.

    python -m benchmarks.convolution [--rounds N] [--json FILE]

Autoencoders with squared error and SGD, forward and backward, on the default device. The four programs take
turns, and the medians are compared: trust the ratios, and those only on a quiet machine.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import jaxvae
import jaxvae.convolution
from benchmarks.timing import make_parser, take_turns, write_json
from benchmarks.training import contestant, initializer, on_device

OURS = (jaxvae.convolution.Conv, jaxvae.convolution.ConvTranspose)
STOCK = (nn.Conv, nn.ConvTranspose)


def beta_vae(conv, transpose, x):
    """Reconstruct 64x64x1, after Burgess et al. (2018)."""
    for width in 32, 32, 64, 64:
        x = nn.relu(conv(width, (4, 4), (2, 2))(x))
    shape = x.shape[1:]
    for width in 256, 10, 256, shape[0] * shape[1] * shape[2]:
        x = nn.relu(nn.Dense(width)(x.reshape(x.shape[0], -1)))
    x = x.reshape(-1, *shape)
    for width in 64, 32, 32:
        x = nn.relu(transpose(width, (4, 4), (2, 2))(x))
    return transpose(1, (4, 4), (2, 2))(x)


def vq_vae(conv, transpose, x):
    """Reconstruct 32x32x3, after van den Oord et al. (2017), with one residual block on each side."""

    def residual(x):
        return x + conv(128, (1, 1), (1, 1))(nn.relu(conv(32, (3, 3), (1, 1))(nn.relu(x))))

    x = nn.relu(conv(64, (4, 4), (2, 2))(x))
    x = nn.relu(conv(128, (4, 4), (2, 2))(x))
    x = residual(conv(128, (3, 3), (1, 1))(x))
    x = residual(conv(128, (3, 3), (1, 1))(x))
    x = nn.relu(transpose(64, (4, 4), (2, 2))(nn.relu(x)))
    return transpose(3, (4, 4), (2, 2))(x)


def small(window, conv, transpose, x):
    """Reconstruct 28x28x1 through two convolutions and a dense layer on each side."""
    x = nn.relu(conv(32, window, (2, 2))(x))
    x = nn.relu(conv(64, window, (2, 2))(x))
    x = nn.relu(nn.Dense(7 * 7 * 64)(nn.Dense(20)(x.reshape(x.shape[0], -1))))
    x = nn.relu(transpose(32, window, (2, 2))(x.reshape(-1, 7, 7, 64)))
    return transpose(1, window, (2, 2))(x)


NETWORKS = {
    "beta-vae 64x64x1": (beta_vae, (64, 64, 1)),
    "vq-vae 32x32x3": (vq_vae, (32, 32, 3)),
    "small 28x28x1, 3x3": (partial(small, (3, 3)), (28, 28, 1)),
    "small 28x28x1, 4x4": (partial(small, (4, 4)), (28, 28, 1)),
}


class Network(nn.Module):
    """A network out of the given convolution layers."""

    body: object
    layers: tuple

    @nn.compact
    def __call__(self, x):
        """Reconstruct `x`."""
        return self.body(*self.layers, x)


def programs(body, layers, batches):
    """Start parameters, one compiled step, and a compiled scan of it over a stack of batches."""
    model = Network(body, layers)

    def step(params, x):
        gradient = jax.grad(lambda p: jnp.mean((model.apply(p, x) - x) ** 2))(params)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient), None

    params = jax.jit(model.init)(jax.random.key(0), batches[0])
    return params, jax.jit(step), jax.jit(lambda params, batches: jax.lax.scan(step, params, batches)[0])


def measure(body, shape, rounds, batch=64):
    """Median milliseconds a step of each program, the four of them taking turns."""
    batches = jax.random.uniform(jax.random.key(1), (20, batch, *shape))
    cases = {}
    for name, layers in (("ours", OURS), ("stock", STOCK)):
        params, step, scan = programs(body, layers, batches)

        def one_by_one(params, batches, step=step):
            for x in batches:
                params, _ = step(params, x)
            return params

        scanned = batches if name == "ours" else batches[:2]  # scanned, a stock step can take seconds
        cases[f"{name}, scan"] = partial(scan, params, scanned), len(scanned)
        cases[f"{name}, jit"] = partial(one_by_one, params, list(batches[:5])), 5
    seconds = take_turns({name: run for name, (run, _) in cases.items()}, rounds)
    return {name: 1e3 * seconds[name] / steps for name, (_, steps) in cases.items()}


def measure_vae(rounds, steps=20, batch=128):
    """Median milliseconds a step of a convolutional VAE: as an epoch program, and under its own per-step jit."""
    model = jaxvae.VAE(jaxvae.ConvEncoder(20), jaxvae.ConvDecoder((28, 28, 1)))
    optimizer = optax.adam(1e-3)
    loss_fn = partial(jaxvae.vae_loss, model)
    source = on_device(jax.random.uniform(jax.random.key(1), (steps * batch, 28, 28, 1)))
    indices = source["index"].reshape(steps, batch)
    batches = [{name: values[step] for name, values in source.items()} for step in indices]
    init = initializer(model, (28, 28, 1))
    program = contestant(jaxvae.make_train_step(loss_fn, optimizer), init, optimizer, source, indices)
    train_step = jaxvae.jit_train_step(loss_fn, optimizer)
    state = jaxvae.init_train_state(init, optimizer, key=jax.random.key(0))

    def one_by_one():
        nonlocal state
        for taken in batches:
            state, _ = train_step(state, taken)
        return state.params

    seconds = take_turns({"epoch program": program, "per-step jit": one_by_one}, rounds)
    return {name: 1e3 * value / steps for name, value in seconds.items()}


def main():
    parser = make_parser(__doc__, rounds=5)
    args = parser.parse_args()

    results = {}
    names = ("ours, scan", "ours, jit", "stock, jit", "stock, scan")
    ratios = ("ours: jit/scan", "jit: stock/ours", "scan: stock/ours")
    print(f"{'ms a step, batch 64':20}" + "".join(f"{title:>18}" for title in names + ratios))
    for name, (body, shape) in NETWORKS.items():
        times = results[name] = measure(body, shape, args.rounds)
        ours_scan, ours_jit, stock_jit, stock_scan = columns = [times[column] for column in names]
        columns += [ours_jit / ours_scan, stock_jit / ours_jit, stock_scan / ours_scan]
        print(f"{name:20}" + "".join(f"{value:18.2f}" for value in columns), flush=True)
    vae = results["convolutional VAE 28x28x1, batch 128"] = measure_vae(args.rounds)
    program, jit = vae.values()
    print(f"convolutional VAE: epoch program {program:.2f}, per-step jit {jit:.2f}, ratio {jit / program:.2f}")
    write_json(args.json, results)


if __name__ == "__main__":
    main()
