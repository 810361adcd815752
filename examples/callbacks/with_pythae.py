"""A pythae callback that prints the diagnosis of a VAE after each epoch: `python with_pythae.py`."""

import tempfile

import torch
from pythae.data.datasets import BaseDataset
from pythae.models import BetaVAE, BetaVAEConfig
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from sklearn.datasets import load_digits

from arcvae_cli.evaluation.diagnose import Diagnosis, diagnose


class Diagnose(TrainingCallback):
    """For pythae's VAEs, on examples `x` (N, ...). `training`: beta, free_bits, ... as diagnose takes them."""

    def __init__(self, x, **training) -> None:
        self.x, self.training = x, training

    @torch.no_grad()
    def on_epoch_end(self, training_config, **kwargs) -> None:
        model = kwargs["model"].eval()  # the trainer puts it into training mode again
        codes = model.encoder(self.x.to(next(model.parameters()).device))
        self.found = diagnose(codes.embedding, codes.log_covariance, **self.training)
        print(self.found, end="\n\n")


def main(epochs: int = 5, beta: float = 1.0, latent_dim: int = 16) -> Diagnosis:
    """Train on 8x8 digits; pythae sums the reconstruction over pixels and the KL over dimensions."""
    x = torch.tensor(load_digits().images[:, None] / 16.0, dtype=torch.float32)
    train, val = x[:1500], x[1500:]
    callback = Diagnose(val, beta=beta)
    config = BetaVAEConfig(input_dim=(1, 8, 8), latent_dim=latent_dim, beta=beta, reconstruction_loss="bce")
    with tempfile.TemporaryDirectory() as folder:
        sizes = {"output_dir": folder, "num_epochs": epochs, "per_device_train_batch_size": 50, "learning_rate": 2e-3}
        trained_on = BaseDataset(train, torch.zeros(len(train)))
        settings = BaseTrainerConfig(**sizes, no_cuda=True)
        BaseTrainer(BetaVAE(config), trained_on, training_config=settings, callbacks=[callback]).train()
    return callback.found


if __name__ == "__main__":
    main()
