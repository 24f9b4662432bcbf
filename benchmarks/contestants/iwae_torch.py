"""The same importance weighted autoencoder as a user of PyTorch writes it, all samples in one matrix product."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.contestants.shared_torch import copy_parameters, load_problem, parse, serve_training

NAMES = (
    *("encoder/Dense_0", "encoder/Dense_1", "encoder/head"),
    *("decoder/Dense_0", "decoder/Dense_1", "decoder/output"),
)


class IWAE(nn.Module):
    """Images [B, 1, 28, 28] -> the loss."""

    def __init__(self, samples):
        super().__init__()
        self.samples = samples
        first, second = nn.Linear(784, 200), nn.Linear(200, 200)
        self.encoder = nn.Sequential(nn.Flatten(), first, nn.Tanh(), second, nn.Tanh(), nn.Linear(200, 2 * 50))
        first, second = nn.Linear(50, 200), nn.Linear(200, 200)
        self.decoder = nn.Sequential(first, nn.Tanh(), second, nn.Tanh(), nn.Linear(200, 784))

    def forward(self, x):
        """The negative bound, the mean over the batch."""
        x = x.flatten(1)
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        noise = torch.randn(self.samples, *mean.shape, device=mean.device)
        latent = mean + (0.5 * log_var).exp() * noise
        logits = self.decoder(latent.flatten(0, 1)).unflatten(0, (self.samples, -1))
        repeated = x.expand(self.samples, -1, -1)
        log_likelihood = -F.binary_cross_entropy_with_logits(logits, repeated, reduction="none").sum(dim=2)
        log_ratio = 0.5 * (noise.square() + log_var - latent.square()).sum(dim=2)  # log p(z) - log q(z|x)
        return math.log(self.samples) - torch.logsumexp(log_likelihood + log_ratio, dim=0).mean()


def main():
    args = parse(__doc__)
    problem = load_problem(args.problem)
    model = IWAE(args.samples)
    copy_parameters(model, NAMES, problem)
    serve_training(args, problem, model, learning_rate=1e-3, epsilon=1e-4)


if __name__ == "__main__":
    main()
