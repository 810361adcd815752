"""The plain grid model as its description reads, in torch alone: what the peers train."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

COLOURS = 10


def encoder() -> nn.Sequential:
    """(B, 10, 16, 16) -> (B, 128)."""
    return nn.Sequential(
        *(nn.Conv2d(COLOURS, 32, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(2048, 128), nn.ReLU()),
    )


def decoder(latent_dim: int) -> nn.Sequential:
    """(B, latent_dim) -> (B, 10, 16, 16)."""
    return nn.Sequential(
        *(nn.Linear(latent_dim, 128), nn.ReLU(), nn.Linear(128, 2048), nn.ReLU(), nn.Unflatten(1, (128, 4, 4))),
        *(nn.ConvTranspose2d(128, 64, 4, stride=2, padding=1), nn.ReLU()),
        *(nn.ConvTranspose2d(64, 32, 4, stride=2, padding=1), nn.ReLU()),
        nn.Conv2d(32, COLOURS, 3, padding=1),
    )


def one_hot(x: Tensor) -> Tensor:
    """(B, 16, 16) int64 -> (B, 10, 16, 16)."""
    return functional.one_hot(x, COLOURS).permute(0, 3, 1, 2).float()
