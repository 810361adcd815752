"""The models, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from arcvae_cli.errors import InputError
from arcvae_cli.models.base import VAE
from arcvae_cli.models.grammar import GrammarVAE, Structure
from arcvae_cli.models.grid import GridVAE
from arcvae_cli.models.hierarchical import HierarchicalVAE
from arcvae_cli.settings import GrammarSettings, ModelSettings

MODELS: dict[str, Callable[[Any], VAE]] = {"grid": GridVAE, "hierarchical": HierarchicalVAE}
"""The models of grids, by name; the grammar model needs a structure."""


def build_model(settings: ModelSettings, structure: Structure | None = None) -> VAE:
    """The model that the settings describe, freshly initialised from torch's default generator.

    `structure`: of the derivations that a grammar model is made for, which it cannot do without. InputError where they
    do not fit together.
    """
    if not isinstance(settings, GrammarSettings):
        if structure is not None:
            raise InputError(f"model.name: the model {settings.name} is for grids, not for derivations", USE_GRAMMAR)
        return MODELS[settings.name](settings)
    if structure is None:
        raise InputError("model.name: the model grammar is for derivations, not for grids", USE_STRINGS)
    try:
        return GrammarVAE(settings, structure)
    except ValueError as error:
        raise InputError(
            str(error), "raise data.max_rules (--max-rules), or use a smaller grammar or model.encoder_kernel"
        ) from error


USE_STRINGS = "use --data equations, --data smiles or strings of your own with --grammar"
USE_GRAMMAR = "use --preset kusner_equations, minimal or another with model.name=grammar"
