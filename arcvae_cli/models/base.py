"""What a model takes and what it returns, whatever the structure it serves."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor, nn

from arcvae_cli import gaussians


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples on the device.

    `x`: (B, *positions) int64 classes. `valid`: (B, *positions) bool, the positions that count, or None for all.
    """

    x: Tensor
    valid: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Level:
    """One level of latents of a batch: diagonal Gaussian posterior and prior, a sample, and the KL.

    `mean`, `logvar`, `sample`: (B, *shape). `prior_mean`, `prior_logvar`: the same, or None for N(0, I).
    `kl`: (B, D) nats of each group, a group being a dimension of a vector or a channel of a map.
    """

    name: str
    mean: Tensor
    logvar: Tensor
    sample: Tensor
    kl: Tensor
    prior_mean: Tensor | None = None
    prior_logvar: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """`logits`: (B, classes, *positions), float32, unnormalised. `levels`: from the top of the hierarchy down."""

    logits: Tensor
    levels: tuple[Level, ...]


class VAE(nn.Module, ABC):
    """A variational autoencoder of discrete structures.

    A concrete model keeps what it encodes with in `encoder` and what it decodes with in `decoder`, so that either can
    be saved and used alone.
    """

    encoder: nn.Module
    decoder: nn.Module

    @property
    @abstractmethod
    def level_sizes(self) -> dict[str, int]:
        """Groups of each level whose KL is reported, by the level's name, from the top down."""

    @abstractmethod
    def encode(self, batch: Batch, noise: bool = True) -> tuple[Level, ...]:
        """Posteriors of a batch. Without `noise` each level's sample is its posterior mean."""

    @abstractmethod
    def decode(self, latents: dict[str, Tensor]) -> Tensor:
        """Logits (B, classes, *positions) of latents given by the level's name."""

    @abstractmethod
    def prior(self, n: int, temperature: float = 1.0) -> dict[str, Tensor]:
        """`n` draws from the prior, its standard deviation multiplied by `temperature`."""

    def forward(self, batch: Batch, noise: bool = True) -> Output:
        """Encode, sample, decode."""
        levels = self.encode(batch, noise)
        return Output(self.decode({level.name: level.sample for level in levels}), levels)


def standard_level(name: str, mean: Tensor, logvar: Tensor, noise: bool) -> Level:
    """A level with prior N(0, I) and one group a dimension, from (B, D) means and log variances."""
    sample = gaussians.sample(mean, logvar) if noise else mean
    return Level(name, mean, logvar, sample, gaussians.kl_to_standard(mean, logvar))
