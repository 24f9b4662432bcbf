"""What jaxvae's contestants share: a training step as an epoch program, or under a jit of its own."""

import argparse
import re

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

import jaxvae
from benchmarks.contestants.shared_jax import serve_jax, stepwise
from jaxvae import data
from jaxvae.networks import convolutional, residual, top_down
from jaxvae.training.mesh import replicated


def parse(description):
    """The options, and what they say of jax and the networks done."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("problem", type=np.load, help="the npz that the workload writes")
    parser.add_argument("--per-step", action="store_true", help="no epoch program")
    parser.add_argument("--stock", action="store_true", help="flax's convolutions")
    parser.add_argument("--bfloat16", action="store_true", help="what the networks compute in")
    parser.add_argument("--devices", type=int, default=1, help="of the epoch program; on a CPU virtual ones")
    parser.add_argument("--samples", type=int, help="of the importance weighted bound")
    parser.add_argument("--groups", type=int, help="of latents")
    args = parser.parse_args()
    args.dtype = jnp.bfloat16 if args.bfloat16 else None
    if args.stock:
        for networks in (convolutional, residual, top_down):
            networks.Conv, networks.ConvTranspose = nn.Conv, nn.ConvTranspose
    if args.devices > 1:
        jax.config.update("jax_num_cpu_devices", args.devices)
    return args


def serve_training(args, loss_fn, optimizer):
    """Train on x of the problem, from its parameters and, where it has codes, from these."""
    problem = unflatten_dict(dict(args.problem), sep="/")
    x, indices = problem["x"], problem["indices"]
    params = {
        "params": {name: tree for name, tree in problem.items() if isinstance(tree, dict) and name != "quantizer"}
    }
    model_state = {"quantizer": problem["quantizer"]} if "quantizer" in problem else ()
    source = {"x": x, "index": np.arange(len(x), dtype=np.int32)}
    prepare = data.make_prepare(256)
    mesh = jaxvae.data_mesh(args.devices) if args.devices > 1 else None
    on_device = jax.device_put(source, None if mesh is None else replicated(mesh))

    state = jaxvae.init_train_state(lambda *, key: (params, model_state), optimizer, key=jax.random.key(0), mesh=mesh)
    train_step = jaxvae.jit_train_step(loss_fn, optimizer, prepare=prepare)
    train_epoch = jaxvae.make_train_epoch(jaxvae.make_train_step(loss_fn, optimizer, prepare=prepare), mesh=mesh)

    def one(state, batch):
        state, metrics = train_step(state, batch)
        return state, metrics["loss"]

    def inputs_of(step):
        return ({name: values[step] for name, values in source.items()},)

    def program(part):
        nonlocal state
        padded = np.full_like(indices, -1)  # one shape for every call, as in training
        padded[: len(part)] = part
        state, metrics = train_epoch(state, on_device, padded)
        return np.asarray(metrics["loss"])[: len(part)].tolist()

    counts = {}
    if mesh is not None:
        lowered = jax.jit(lambda state, indices: train_epoch(state, on_device, indices)).lower(state, indices)
        counts["all_reduces"] = len(re.findall(r" all-reduce(?:-start)?\(", lowered.compile().as_text()))
    train = stepwise(one, state, inputs_of) if args.per_step else program
    serve_jax(train, indices, ("flax", "optax"), **counts)
