"""The same convolutional β-VAE as a user of PyTorch writes it."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.contestants.shared_torch import copy_parameters, load_problem, parse, serve_training

ENCODER = (*(f"encoder/Conv_{i}" for i in range(4)), "encoder/Dense_0", "encoder/head")
DECODER = ("decoder/Dense_0", "decoder/Dense_1", *(f"decoder/ConvTranspose_{i}" for i in range(3)), "decoder/output")


def halve(channels, features):
    return [nn.Conv2d(channels, features, 4, 2, 1), nn.ReLU()]


def double(channels, features):
    return [nn.ConvTranspose2d(channels, features, 4, 2, 1), nn.ReLU()]


class BetaVAE(nn.Module):
    """Images [B, 1, 64, 64] -> the loss."""

    def __init__(self):
        super().__init__()
        convolutions = [*halve(1, 32), *halve(32, 32), *halve(32, 64), *halve(64, 64)]
        dense = [nn.Flatten(), nn.Linear(1024, 256), nn.ReLU(), nn.Linear(256, 2 * 10)]
        self.encoder = nn.Sequential(*convolutions, *dense)
        dense = [nn.Linear(10, 256), nn.ReLU(), nn.Linear(256, 1024), nn.ReLU(), nn.Unflatten(1, (64, 4, 4))]
        convolutions = [*double(64, 64), *double(64, 32), *double(32, 32), nn.ConvTranspose2d(32, 1, 4, 2, 1)]
        self.decoder = nn.Sequential(*dense, *convolutions)

    def forward(self, x):
        """Distortion + 4 · rate, the mean over the batch."""
        mean, log_var = self.encoder(x).float().chunk(2, dim=1)
        latent = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        logits = self.decoder(latent).float()
        distortion = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        rate = 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum()
        return (distortion + 4 * rate) / len(x)


def channels_first(problem):
    """Reorder the 1024 features between convolutions and dense layers, which jaxvae flattens channels last."""
    order = np.arange(1024).reshape(4, 4, 64).transpose(2, 0, 1).ravel()
    problem["encoder/Dense_0/kernel"] = problem["encoder/Dense_0/kernel"][order]
    for name in ("kernel", "bias"):
        problem[f"decoder/Dense_1/{name}"] = problem[f"decoder/Dense_1/{name}"][..., order]


def main():
    args = parse(__doc__)
    problem = load_problem(args.problem)
    channels_first(problem)
    model = BetaVAE()
    copy_parameters(model.encoder, ENCODER, problem)
    copy_parameters(model.decoder, DECODER, problem)
    serve_training(args, problem, model, learning_rate=1e-4)


if __name__ == "__main__":
    main()
