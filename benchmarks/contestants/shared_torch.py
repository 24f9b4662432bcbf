"""What the contestants in PyTorch share; needs neither jax nor jaxvae."""

import argparse
import os
from importlib.metadata import version

import numpy as np
import torch
from torch import nn

from benchmarks.contestants import serve, skip


def parse(description):
    """The options; with them PyTorch is set to all cores, and on a GPU to TF32 and the fastest convolutions."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("problem", help="the npz that the workload writes")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    parser.add_argument("--cuda-graphs", action="store_true", help="torch.compile's reduce-overhead")
    parser.add_argument("--bfloat16", action="store_true", help="autocast")
    parser.add_argument("--loader", action="store_true", help="through a DataLoader, Adam not fused")
    parser.add_argument("--samples", type=int, help="of the importance weighted bound")
    parser.add_argument("--groups", type=int, help="of latents")
    args = parser.parse_args()
    args.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    if args.device.type == "cuda":
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = True
    return args


def load_problem(path):
    """The arrays; those of the posterior's mean and log-variance also as one layer's, which is faster."""
    problem = dict(np.load(path))
    if "encoder/head/mean/kernel" in problem:
        for name in ("kernel", "bias"):
            parts = [problem[f"encoder/head/{part}/{name}"] for part in ("mean", "log_var")]
            problem[f"encoder/head/{name}"] = np.concatenate(parts, axis=-1)
    return problem


@torch.no_grad()
def copy_parameters(module, names, problem):
    """Start from jaxvae's parameters, given the names of the module's layers there, in order."""
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d)]
    for layer, name in zip(layers, names, strict=True):
        kernel = torch.as_tensor(problem[f"{name}/kernel"])  # [*window, in, out]
        if isinstance(layer, nn.Linear):
            layer.weight.copy_(kernel.T)
        elif isinstance(layer, nn.ConvTranspose2d):
            layer.weight.copy_(kernel.flip(0, 1).permute(2, 3, 0, 1))
        else:
            layer.weight.copy_(kernel.permute(3, 2, 0, 1))
        layer.bias.copy_(torch.as_tensor(problem[f"{name}/bias"]))


def make_optimizer(model, learning_rate, *, epsilon=1e-8, fused=None):
    """Adam with optax's constants."""
    return torch.optim.Adam(model.parameters(), learning_rate, betas=(0.9, 0.999), eps=epsilon, fused=fused)


def serve_training(args, problem, model, *, learning_rate, epsilon=1e-8, packages=()):
    """Train `model`, x [B, C, H, W] -> the loss, on images in the device's memory; Adam is fused."""
    if args.cuda_graphs and args.device.type != "cuda":
        return skip("it needs CUDA")
    if args.compile or args.cuda_graphs:
        torch._inductor.config.force_disable_caches = True  # compilations are timed
        try:
            torch.compile(lambda x: x + 1)(torch.zeros(2, device=args.device))
        except RuntimeError as error:  # no compiler here
            return skip(str(error).splitlines()[0])
        torch._dynamo.utils.counters.clear()
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    x = torch.as_tensor(problem["x"]).permute(0, 3, 1, 2).float().div(255)
    x = x.contiguous(memory_format=layout).to(args.device)
    model = model.to(args.device, memory_format=layout)
    optimizer = make_optimizer(model, learning_rate, epsilon=epsilon, fused=True)
    loss_of = model
    if args.compile or args.cuda_graphs:
        loss_of = torch.compile(model, mode="reduce-overhead" if args.cuda_graphs else None)

    def train(indices):
        losses = []
        for step in torch.as_tensor(indices, device=args.device):
            with torch.autocast(args.device.type, torch.bfloat16, enabled=args.bfloat16):
                loss = loss_of(x[step].contiguous(memory_format=layout))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach().clone() if args.cuda_graphs else loss.detach())  # graphs reuse their memory
        return torch.stack(losses).tolist()

    serve_torch(args, train, problem["indices"], packages)


def serve_torch(args, train, indices, packages=()):
    """`serve`; the counts are the threads, and the graphs that torch.compile made."""
    counters = torch._dynamo.utils.counters
    serve(
        train,
        indices,
        device=torch.cuda.get_device_name() if args.device.type == "cuda" else "cpu",
        versions={name: version(name) for name in ("torch", *packages)},
        counts=lambda: {"compilations": counters["stats"]["unique_graphs"], "threads": torch.get_num_threads()},
    )
