"""The same VAE as a user of PyTorch writes it: in memory and tuned, or through a DataLoader."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.contestants.shared_torch import (
    copy_parameters,
    load_problem,
    make_optimizer,
    parse,
    serve_torch,
    serve_training,
)

NAMES = ("encoder/Dense_0", "encoder/head", "decoder/Dense_0", "decoder/output")


class VAE(nn.Module):
    """Images [B, 1, 28, 28] -> the loss."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 2 * 20))
        self.decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784))

    def forward(self, x):
        """Distortion + rate, the mean over the batch."""
        mean, log_var = self.encoder(x).chunk(2, dim=1)
        latent = mean + (0.5 * log_var).exp() * torch.randn_like(mean)
        logits = self.decoder(latent)
        distortion = F.binary_cross_entropy_with_logits(logits, x.flatten(1), reduction="sum")
        rate = 0.5 * (mean.square() + log_var.exp() - log_var - 1).sum()
        return (distortion + rate) / len(x)


def main():
    args = parse(__doc__)
    problem = load_problem(args.problem)
    model = VAE()
    copy_parameters(model, NAMES, problem)
    if not args.loader:
        return serve_training(args, problem, model, learning_rate=1e-3)

    model.to(args.device)
    optimizer = make_optimizer(model, 1e-3)
    dataset = TensorDataset(torch.as_tensor(problem["x"]).permute(0, 3, 1, 2).float() / 255)

    def train(indices):
        losses = []
        pinned = args.device.type == "cuda"
        for (x,) in DataLoader(dataset, batch_sampler=indices.tolist(), pin_memory=pinned):
            loss = model(x.to(args.device, non_blocking=True))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        return losses

    serve_torch(args, train, problem["indices"])


if __name__ == "__main__":
    main()
