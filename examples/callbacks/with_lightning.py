"""A Lightning callback that prints the diagnosis of a VAE after each validation: `python with_lightning.py`."""

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from arcvae_cli.evaluation.diagnose import Diagnosis, diagnose


class Diagnose(lightning.Callback):
    """For a module with `encode(x)`, which gives mean and logvar (N, D). `training`: beta, free_bits, ..."""

    def __init__(self, **training) -> None:
        self.training = training

    def on_validation_epoch_start(self, trainer, pl_module) -> None:
        self.codes = []

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, *place) -> None:
        self.codes.append(pl_module.encode(batch[0]))

    def on_validation_epoch_end(self, trainer, pl_module) -> None:
        mean, logvar = (torch.cat(parts) for parts in zip(*self.codes, strict=True))
        self.found = diagnose(mean, logvar, **self.training)
        print(f"epoch {trainer.current_epoch}\n{self.found}\n")


class DigitsVAE(lightning.LightningModule):
    """A VAE of 8x8 digits with summed terms."""

    def __init__(self, beta: float, latent_dim: int) -> None:
        super().__init__()
        self.beta = beta
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 2 * latent_dim))
        self.decoder = nn.Sequential(nn.Linear(latent_dim, 128), nn.ReLU(), nn.Linear(128, 64))

    def encode(self, x):
        return self.encoder(x).chunk(2, dim=1)

    def training_step(self, batch, number):
        mean, logvar = self.encode(batch[0])
        logits = self.decoder(mean + torch.exp(0.5 * logvar) * torch.randn_like(mean))
        reconstruction = functional.binary_cross_entropy_with_logits(logits, batch[0], reduction="sum") / len(mean)
        return reconstruction + self.beta * 0.5 * (mean**2 + logvar.exp() - 1 - logvar).sum(dim=1).mean()

    def validation_step(self, batch, number) -> None:
        pass

    def configure_optimizers(self):
        return torch.optim.Adam(self.parameters(), lr=2e-3)


def main(epochs: int = 5, beta: float = 1.0, latent_dim: int = 16) -> Diagnosis:
    """Train on digits."""
    lightning.seed_everything(0)
    x = torch.tensor(load_digits().data / 16.0, dtype=torch.float32)
    train, val = (DataLoader(TensorDataset(part), batch_size=50) for part in (x[:1500], x[1500:]))
    callback = Diagnose(beta=beta)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    lightning.Trainer(max_epochs=epochs, callbacks=[callback], num_sanity_val_steps=0, **quiet).fit(
        DigitsVAE(beta, latent_dim), train, val
    )
    return callback.found


if __name__ == "__main__":
    main()
