"""The same VAE under pythae's own trainer."""

import tempfile

import torch
from pythae.data.datasets import BaseDataset, collate_dataset_output
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.contestants.shared_torch import copy_parameters, load_problem, parse, serve_torch

NAMES = {
    "encoder": ("encoder/Dense_0", "encoder/head/mean", "encoder/head/log_var"),
    "decoder": ("decoder/Dense_0", "decoder/output"),
}


class Encoder(BaseEncoder):
    """784-400-20."""

    def __init__(self):
        super().__init__()
        self.hidden = nn.Sequential(nn.Flatten(), nn.Linear(784, 400), nn.ReLU())
        self.mean, self.log_var = nn.Linear(400, 20), nn.Linear(400, 20)

    def forward(self, x):
        """The posterior, by pythae's names."""
        hidden = self.hidden(x)
        return ModelOutput(embedding=self.mean(hidden), log_covariance=self.log_var(hidden))


class Decoder(BaseDecoder):
    """20-400-784, to probabilities."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784), nn.Sigmoid())

    def forward(self, latent):
        """The pixels' probabilities."""
        return ModelOutput(reconstruction=self.layers(latent).reshape(-1, 1, 28, 28))


class Recorded(VAE):
    """Remembers the losses: pythae keeps their mean only."""

    def forward(self, inputs, **options):
        """As pythae's."""
        output = super().forward(inputs, **options)
        self.losses.append(output.loss.detach())
        return output


def main():
    args = parse(__doc__)
    problem = load_problem(args.problem)
    x = torch.as_tensor(problem["x"]).permute(0, 3, 1, 2).float() / 255
    dataset = BaseDataset(x, torch.zeros(len(x)))
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=20, reconstruction_loss="bce")
    model = Recorded(config, encoder=Encoder(), decoder=Decoder())
    for part, names in NAMES.items():
        copy_parameters(getattr(model, part), names, problem)
    model.losses = []
    with tempfile.TemporaryDirectory() as scratch:
        settings = BaseTrainerConfig(
            output_dir=scratch,
            per_device_train_batch_size=problem["indices"].shape[1],
            learning_rate=1e-3,
            optimizer_params={"betas": (0.9, 0.999), "eps": 1e-8},
        )
        trainer = BaseTrainer(model, dataset, training_config=settings)
        trainer.prepare_training()

        def train(indices):
            """One of its epochs, over these examples; saving the model, which its `train` adds, is left out."""
            model.losses.clear()
            trainer.train_loader = DataLoader(
                dataset, batch_sampler=indices.tolist(), collate_fn=collate_dataset_output
            )
            trainer.train_step(epoch=1)
            trainer.callback_handler.on_epoch_end(training_config=settings)  # closes its progress bar
            return torch.stack(model.losses).tolist()

        serve_torch(args, train, problem["indices"], ("pythae",))


if __name__ == "__main__":
    main()
