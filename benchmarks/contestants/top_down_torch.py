"""The same top-down VAE as a user of PyTorch writes it."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.contestants.shared_torch import load_problem, parse, serve_training


class ChannelNorm(nn.LayerNorm):
    """Over the channels at each position, [B, C, ...]."""

    def forward(self, x):
        """Channels last and back."""
        if x.dim() == 2:
            return super().forward(x)
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Body(nn.Sequential):
    """Normalisation, SiLU, a layer over neighbours, SiLU, a layer at each position."""

    def __init__(self, features, hidden, output, *, dense):
        first = nn.Linear(features, hidden) if dense else nn.Conv2d(features, hidden, 3, padding=1)
        last = nn.Linear(hidden, output) if dense else nn.Conv2d(hidden, output, 1)
        super().__init__(ChannelNorm(features, eps=1e-6), nn.SiLU(), first, nn.SiLU(), last)


class Rung(nn.Module):
    """One group of latents."""

    def __init__(self, latent, width, *, dense=False, enter=None):
        super().__init__()
        self.latent, self.width = latent, width
        self.enter = enter
        self.before = Body(width, width, 2 * latent + width, dense=dense)
        self.of_x = Body(2 * width, width, 2 * latent, dense=dense)
        self.project = nn.Linear(latent, width) if dense else nn.Conv2d(latent, width, 1)
        self.after = Body(width, width, width, dense=dense)

    def forward(self, state, features):
        """The state below, and the rate of each example."""
        if self.enter is not None:
            state = self.enter(state)
        mean, log_var, rest = self.before(state).split([self.latent, self.latent, self.width], dim=1)
        state = state + rest
        shift, change = self.of_x(torch.cat([state, features], dim=1)).chunk(2, dim=1)
        mean, log_var, shift, change = mean.float(), log_var.float(), shift.float(), change.float()
        latent = mean + shift + (0.5 * (log_var + change)).exp() * torch.randn_like(mean)
        rate = 0.5 * (shift.square() * (-log_var).exp() + change.exp() - change - 1).flatten(1).sum(dim=1)
        state = state + self.project(latent)
        return state + self.after(state), rate


class TopDownVAE(nn.Module):
    """Images [B, 1, 28, 28] -> the loss."""

    def __init__(self, groups):
        super().__init__()
        fifth = (groups - 1) // 5
        self.climb = nn.ModuleList(
            [
                nn.Conv2d(1, 24, 4, 2, 1),
                nn.Conv2d(24, 48, 4, 2, 1),
                nn.Sequential(nn.Flatten(), nn.Linear(49 * 48, 64)),
            ]
        )
        self.blocks = nn.ModuleList(Body(width, width, width, dense=width == 64) for width in (24, 48, 64))
        self.start = nn.Parameter(torch.zeros(64))
        into_7 = nn.Sequential(nn.Linear(64, 49 * 48), nn.Unflatten(1, (48, 7, 7)))
        into_14 = nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(48, 24, 1))
        self.rungs = nn.ModuleList(
            [
                Rung(16, 64, dense=True),
                *(Rung(2, 48, enter=into_7 if i == 0 else None) for i in range(3 * fifth)),
                *(Rung(1, 24, enter=into_14 if i == 0 else None) for i in range(2 * fifth)),
            ]
        )
        self.output = nn.Sequential(ChannelNorm(24, eps=1e-6), nn.SiLU(), nn.ConvTranspose2d(24, 1, 4, 2, 1))

    def forward(self, x):
        """The negative ELBO, the mean over the batch."""
        features, of_width = x, {}
        for layer, block in zip(self.climb, self.blocks, strict=True):
            features = layer(features)
            features = features + block(features)
            of_width[features.shape[1]] = features
        state, rates = self.start.expand(len(x), -1), 0.0
        for rung in self.rungs:
            state, rate = rung(state, of_width[rung.width])
            rates = rates + rate
        distortion = F.binary_cross_entropy_with_logits(self.output(state).float(), x, reduction="sum")
        return (distortion + rates.sum()) / len(x)


def channels_first(kernel, axis):
    """Reorder the 2352 features between positions and vectors, which jaxvae flattens channels last."""
    order = np.arange(49 * 48).reshape(7, 7, 48).transpose(2, 0, 1).ravel()
    return kernel.take(order, axis=axis)


@torch.no_grad()
def copy_parameters(model, problem):
    """Start from jaxvae's parameters. The rungs count from x there."""
    names = {f"climb.{i}": f"encoder/Conv_{i}" for i in (0, 1)}
    names |= {"climb.2.1": "encoder/Dense_0", "output.0": "decoder/LayerNorm_0", "output.2": "decoder/output"}
    bodies = {f"blocks.{i}": f"encoder/block_{i}" for i in range(3)}
    count = len(model.rungs)
    for i in range(count):
        theirs = f"rungs_{count - 1 - i}"
        names |= {f"rungs.{i}.enter.0": f"{theirs}/enter", f"rungs.{i}.enter.1": f"{theirs}/refine"}
        names[f"rungs.{i}.project"] = f"{theirs}/project"
        bodies |= {f"rungs.{i}.before": f"{theirs}/before", f"rungs.{i}.of_x": f"{theirs}/of_x"}
        bodies[f"rungs.{i}.after"] = f"{theirs}/after_0"
    for body, theirs in bodies.items():
        first = "Dense_0" if f"{theirs}/Dense_0/kernel" in problem else "Conv_0"
        names |= {
            f"{body}.0": f"{theirs}/LayerNorm_0",
            f"{body}.2": f"{theirs}/{first}",
            f"{body}.4": f"{theirs}/output",
        }
    copied = {"start"}
    model.start.copy_(torch.as_tensor(problem[f"rungs_{count - 1}/start_state"]))
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.LayerNorm):
            continue
        theirs, bias = names[name], problem[f"{names[name]}/bias"]
        if isinstance(layer, nn.LayerNorm):
            weight = problem[f"{theirs}/scale"]
        else:
            weight = problem[f"{theirs}/kernel"]
            if name == "climb.2.1":
                weight = channels_first(weight, 0)
            if theirs.endswith("enter"):
                weight, bias = channels_first(weight, 1), channels_first(bias, 0)
            if isinstance(layer, nn.Linear):
                weight = weight.T
            elif isinstance(layer, nn.ConvTranspose2d):
                weight = weight[::-1, ::-1].transpose(2, 3, 0, 1)
            else:
                weight = weight.reshape(*layer.kernel_size, *weight.shape[-2:]).transpose(3, 2, 0, 1)
        layer.weight.copy_(torch.as_tensor(np.ascontiguousarray(weight)))
        layer.bias.copy_(torch.as_tensor(np.ascontiguousarray(bias)))
        copied |= {f"{name}.weight", f"{name}.bias"}
    missing = {name for name, _ in model.named_parameters()} - copied
    if missing:
        raise ValueError(f"these start elsewhere than jaxvae's: {sorted(missing)}")


def main():
    args = parse(__doc__)
    problem = load_problem(args.problem)
    model = TopDownVAE(args.groups)
    copy_parameters(model, problem)
    serve_training(args, problem, model, learning_rate=1e-3)


if __name__ == "__main__":
    main()
