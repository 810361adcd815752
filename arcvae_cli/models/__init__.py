"""The models, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from arcvae_cli.models.base import VAE
from arcvae_cli.models.grid import GridVAE
from arcvae_cli.models.hierarchical import HierarchicalVAE
from arcvae_cli.settings import ModelSettings

MODELS: dict[str, Callable[[Any], VAE]] = {"grid": GridVAE, "hierarchical": HierarchicalVAE}


def build_model(settings: ModelSettings) -> VAE:
    """The model that the settings describe, freshly initialised from torch's default generator."""
    return MODELS[settings.name](settings)
