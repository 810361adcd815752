"""The models, by name."""

from __future__ import annotations

from collections.abc import Callable

from arcvae_cli.models.base import VAE
from arcvae_cli.models.grid import GridVAE
from arcvae_cli.settings import ModelSettings

MODELS: dict[str, Callable[[ModelSettings], VAE]] = {"grid": GridVAE}


def build_model(settings: ModelSettings) -> VAE:
    """The model that the settings describe, freshly initialised from torch's default generator."""
    return MODELS[settings.name](settings)
