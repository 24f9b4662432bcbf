"""The same VQ-VAE as a PyTorch user writes it, with vector-quantize-pytorch; needs neither jax nor jaxvae."""

import torch
import torch.nn.functional as F
from torch import nn
from vector_quantize_pytorch import VectorQuantize

from benchmarks.contestants.shared_torch import copy_parameters, load_problem, parse, serve_training

ENCODER = [*(f"encoder/Conv_{i}" for i in range(7)), "encoder/output"]
DECODER = [*(f"decoder/Conv_{i}" for i in range(5)), "decoder/ConvTranspose_0", "decoder/output"]


class Residual(nn.Module):
    """x + 1×1(ReLU(3×3(ReLU(x))))."""

    def __init__(self):
        super().__init__()
        self.inside, self.outside = nn.Conv2d(128, 32, 3, padding=1), nn.Conv2d(32, 128, 1)

    def forward(self, x):
        """Add the block's correction."""
        return x + self.outside(F.relu(self.inside(F.relu(x)), inplace=True))


def residual_stack(channels):
    return [nn.Conv2d(channels, 128, 3, padding=1), Residual(), Residual(), nn.ReLU()]


class VQVAE(nn.Module):
    """Images [B, 3, 32, 32] -> the loss."""

    def __init__(self, variance):
        super().__init__()
        self.variance = variance
        halve = [nn.Conv2d(3, 64, 4, 2, 1), nn.ReLU(), nn.Conv2d(64, 128, 4, 2, 1), nn.ReLU()]
        double = [nn.ConvTranspose2d(128, 64, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(64, 3, 4, 2, 1)]
        self.encoder = nn.Sequential(*halve, *residual_stack(128), nn.Conv2d(128, 64, 1))
        self.decoder = nn.Sequential(*residual_stack(64), *double)
        self.quantizer = VectorQuantize(
            64,
            512,
            decay=0.99,
            commitment_weight=0.25,
            rotation_trick=False,
            threshold_ema_dead_code=1.6,  # a tenth of the uniform share of a batch's 8,192 positions
            accept_image_fmap=True,
        )

    def forward(self, x):
        """Distortion over the variance, and commitment."""
        quantized, _, commitment = self.quantizer(self.encoder(x - 0.5).float())
        return F.mse_loss(self.decoder(quantized).float() + 0.5, x) / self.variance + commitment

    @torch.no_grad()
    def load(self, problem, share):
        """Start from jaxvae's parameters and codes; `share` is how many positions of a batch a code has evenly."""
        copy_parameters(self.encoder, ENCODER, problem)
        copy_parameters(self.decoder, DECODER, problem)
        codes = torch.as_tensor(problem["quantizer/moment"] / problem["quantizer/frequency"][:, None])
        codebook = self.quantizer._codebook
        codebook.embed.copy_(codes[None])
        codebook.embed_avg.copy_(codes[None] * share)
        codebook.cluster_size.fill_(share)
        codebook.reset_cluster_size = share


def main():
    args = parse(__doc__)
    problem = load_problem(args.problem)
    model = VQVAE(float(problem["variance"]))
    model.load(problem, share=problem["indices"].shape[1] * 64 / 512)
    serve_training(args, problem, model, learning_rate=3e-4, packages=("vector-quantize-pytorch",))


if __name__ == "__main__":
    main()
