"""A model of grids of any size: an encoder and a decoder of one hidden layer.

arcvae train --data shapes --model examples.model:MLP --set model.hidden=256 --latent-dim 16
"""

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from arcvae_cli.canvas import Canvas
from arcvae_cli.models.base import VAE, Batch, Encoder, Latents, Level, posterior_logvar, standard_level
from arcvae_cli.settings import ModelSettings


class MLPSettings(ModelSettings):
    """What `--set model.KEY` may be, beside the keys of every model."""

    latent_dim: int = Field(16, ge=1, le=4096, description="dimensions of the latent vector")
    hidden: int = Field(256, ge=1, le=4096, description="units of the hidden layers")


class MLP(VAE):
    """One level of latents, `z`."""

    Settings = MLPSettings
    structure: Canvas

    def __init__(self, settings: MLPSettings, structure: Canvas) -> None:
        super().__init__()
        self.settings, self.structure, self.level_shapes = settings, structure, {"z": (settings.latent_dim,)}
        cells, hidden, latent_dim = structure.cells * structure.classes, settings.hidden, settings.latent_dim
        body = nn.Sequential(nn.Flatten(), nn.Linear(cells, hidden), nn.ReLU())
        self.encoder = Encoder(body, hidden, latent_dim)
        decoder = (nn.Linear(latent_dim, hidden), nn.ReLU(), nn.Linear(hidden, cells))
        self.decoder = nn.Sequential(*decoder, nn.Unflatten(1, (structure.classes, *structure.shape)))

    def encode(self, batch: Batch, noise: bool = True) -> tuple[Level, ...]:
        mean, raw = self.encoder(functional.one_hot(batch.x, self.structure.classes).float())
        return (standard_level("z", mean, posterior_logvar(raw, self.settings), noise),)

    def decode(self, latents: Latents, conditions: Tensor | None = None) -> Tensor:
        logits: Tensor = self.decoder(latents["z"])  # (B, classes, height, width)
        return logits.float()
