"""The models, by name."""

from collections.abc import Callable

from arcvae_cli.canvas import ARC, Canvas
from arcvae_cli.errors import InputError
from arcvae_cli.models.base import VAE
from arcvae_cli.models.grammar import GrammarVAE, Structure
from arcvae_cli.models.grid import GridVAE
from arcvae_cli.models.hierarchical import HierarchicalVAE
from arcvae_cli.settings import ModelSettings

MODELS: dict[str, Callable[..., VAE]] = {"grid": GridVAE, "hierarchical": HierarchicalVAE, "grammar": GrammarVAE}


def build_model(settings: ModelSettings, structure: Structure | Canvas = ARC) -> VAE:
    """The model that the settings describe, freshly initialised from torch's default generator.

    `structure`: the canvas of grids or the rules of strings that it is made for. InputError where they do not fit.
    """
    kind = "grids" if isinstance(structure, Canvas) else "strings"
    if settings.kind != kind:
        fix = "use --data equations, smiles or your own" if kind == "grids" else "use --set model.name=grammar"
        raise InputError(f"model.name: the model {settings.name} is for {settings.kind}, the data are {kind}", fix)
    return MODELS[settings.name](settings, structure)
