"""The same VQ-VAE as a PyTorch user writes it, with vector-quantize-pytorch; needs neither jax nor jaxvae."""

import argparse
from importlib.metadata import version

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from vector_quantize_pytorch import VectorQuantize

from benchmarks.contestants import serve, skip

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

    def forward(self, image):
        """Distortion over the variance, and commitment."""
        quantized, _, commitment = self.quantizer(self.encoder(image - 0.5))
        return F.mse_loss(self.decoder(quantized) + 0.5, image) / self.variance + commitment

    @torch.no_grad()
    def load(self, problem, share):
        """Start from jaxvae's parameters and codes; `share` is how many positions of a batch a code has evenly."""
        for body, names in ((self.encoder, ENCODER), (self.decoder, DECODER)):
            layers = [layer for layer in body.modules() if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)]
            for layer, name in zip(layers, names, strict=True):
                kernel = torch.as_tensor(problem[f"{name}/kernel"])  # [*window, in, out]
                if isinstance(layer, nn.ConvTranspose2d):
                    layer.weight.copy_(kernel.flip(0, 1).permute(2, 3, 0, 1))
                else:
                    layer.weight.copy_(kernel.permute(3, 2, 0, 1))
                layer.bias.copy_(torch.as_tensor(problem[f"{name}/bias"]))
        codes = torch.as_tensor(problem["codebook/moment"] / problem["codebook/frequency"][:, None])
        codebook = self.quantizer._codebook
        codebook.embed.copy_(codes[None])
        codebook.embed_avg.copy_(codes[None] * share)
        codebook.cluster_size.fill_(share)
        codebook.reset_cluster_size = share


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("problem", help="the npz that benchmarks.vq_vae writes")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true", help="torch.compile")
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    layout = torch.channels_last if args.channels_last else torch.contiguous_format
    problem = np.load(args.problem)
    rows = problem["rows"]
    model = VQVAE(float(problem["variance"]))
    model.load(problem, share=rows.shape[1] * 64 / 512)
    model = model.to(device, memory_format=layout)
    image = torch.as_tensor(problem["image"]).permute(0, 3, 1, 2).contiguous(memory_format=layout).to(device)
    optimizer = torch.optim.Adam(model.parameters(), 3e-4, fused=True)
    loss_of = torch.compile(model) if args.compile else model

    def train(rows):
        losses = []
        for row in torch.as_tensor(rows, device=device):
            loss = loss_of((image[row].float() / 255).contiguous(memory_format=layout))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.detach())
        return torch.stack(losses).tolist()

    if args.compile:
        try:
            torch.compile(lambda x: x + 1)(torch.zeros(2, device=device))
        except RuntimeError as error:  # no compiler here
            return skip(str(error).splitlines()[0])
    serve(
        train,
        rows,
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        versions={name: version(name) for name in ("torch", "vector-quantize-pytorch")},
    )


if __name__ == "__main__":
    main()
