"""pythae's trainer at work on the plain grid model, in its own process: the peer of `steps.py`, which starts it.

Its `BaseTrainer` as it is (its loader, its Adam, fp32), on its `BaseDataset` of float tensors, with the layers of
`described.py` as its encoder and decoder, and with cross-entropy, which it does not have, as its loss. The dataset
holds a float a cell; with ten, one-hot, a step takes an eighth longer. A line on stdin is answered with the seconds of
so many steps; between them the trainer stands still within its callback. Steps are counted within epochs: its start,
its copies of the best model and what it saves are left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import described
import numpy as np
import torch
from pythae.data.datasets import BaseDataset
from pythae.models import BetaVAE, BetaVAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import Tensor, nn
from torch.nn import functional

WARM = 5
"""Steps of an epoch before the first that is timed, while its loader starts."""


class Encoder(BaseEncoder):
    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.body = described.encoder()
        self.mean, self.spread = nn.Linear(128, latent_dim), nn.Linear(128, latent_dim)

    def forward(self, x: Tensor) -> ModelOutput:
        features = self.body(described.one_hot(x.long()))
        return ModelOutput(embedding=self.mean(features), log_covariance=self.spread(features))


class Decoder(BaseDecoder):
    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.body = described.decoder(latent_dim)

    def forward(self, z: Tensor) -> ModelOutput:
        return ModelOutput(reconstruction=self.body(z))


class Model(BetaVAE):
    def loss_function(
        self, recon_x: Tensor, x: Tensor, mu: Tensor, log_var: Tensor, z: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        del z
        reconstruction = functional.cross_entropy(recon_x, x.long(), reduction="sum") / len(x)
        kl = -0.5 * torch.sum(1 + log_var - mu.pow(2) - log_var.exp(), dim=-1).mean()
        return reconstruction + self.beta * kl, reconstruction, kl


class Turns(TrainingCallback):
    """Stands still until asked for `steps` steps, and tells how long they took."""

    def __init__(self, steps: int, cuda: bool) -> None:
        self.steps, self.cuda = steps, cuda
        self.left, self.began = WARM, 0.0
        self.asked = self.timing = False

    def on_epoch_begin(self, training_config: BaseTrainerConfig, **kwargs: object) -> None:  # noqa: ARG002
        self.left, self.timing = WARM, False  # what the end of an epoch cut off begins anew

    def on_train_step_end(self, training_config: BaseTrainerConfig, **kwargs: object) -> None:  # noqa: ARG002
        self.left -= 1
        if self.left:
            return
        if self.cuda:
            torch.cuda.synchronize()
        if self.timing:
            print(time.perf_counter() - self.began, flush=True)
            self.asked = False
        if not self.asked and not sys.stdin.readline():
            raise SystemExit
        self.asked = self.timing = True
        self.left, self.began = self.steps, time.perf_counter()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("grids", type=Path, help=".npy of grids (N, 16, 16) uint8")
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--cuda", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    grids = torch.from_numpy(np.load(given.grids))
    if len(grids) // given.batch_size < WARM + given.steps:
        sys.exit(f"an epoch of {len(grids)} grids is too short for a turn of {given.steps} steps")
    data = BaseDataset(grids, torch.zeros(len(grids)))  # makes floats of both
    model = Model(BetaVAEConfig(input_dim=(10, 16, 16), latent_dim=10, beta=0.1), Encoder(10), Decoder(10))
    with tempfile.TemporaryDirectory() as folder:
        config = BaseTrainerConfig(
            output_dir=folder,
            per_device_train_batch_size=given.batch_size,
            num_epochs=10**6,
            learning_rate=1e-3,
            no_cuda=not given.cuda,
        )
        BaseTrainer(model, data, training_config=config, callbacks=[Turns(given.steps, given.cuda)]).train()


if __name__ == "__main__":
    main()
