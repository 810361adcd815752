"""`arcvae presets`: the shipped presets, one preset with the origin of each value, and the schema for editors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from arcvae_cli.commands.options import JsonOption, QuietOption, complete
from arcvae_cli.presets import describe_preset, environment_layer, json_schema, preset_names, resolve
from arcvae_cli.settings import Settings, elbo_scale

app = typer.Typer(no_args_is_help=True, add_completion=False, help="List and show presets.")

ZINC_RULES = 277  # rules of the longest derivation of the corpus `smiles`


@app.command("list")
def list_presets(quiet: QuietOption = False, as_json: JsonOption = False) -> None:
    """List the shipped presets."""
    from arcvae_cli.console import Console

    console = Console(quiet=quiet, as_json=as_json)
    rows = {name: describe_preset(name) for name in preset_names()}
    console.json({"presets": [{"name": name, "description": text} for name, text in rows.items()]})
    console.table("", ("preset", "description"), rows.items(), left=(0, 1), header=False)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="a shipped preset or a TOML file", autocompletion=complete(preset_names))],
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show all settings of a preset with the origin of each value."""
    from arcvae_cli.console import Console

    console = Console(quiet=quiet, as_json=as_json)
    resolved = resolve(name, environment_layer())
    values = resolved.settings.table()
    origins = {key: resolved.origins.get(key, "default") for key, _ in leaves(values)}
    parameters, derivations = size_of(resolved.settings)
    scale = elbo_scale(resolved.settings)
    size = {"parameters": parameters, "derivations": derivations}
    console.json({"name": name, "settings": values, "origins": origins, "elbo_scale": scale, **size})
    rows = ((key, json.dumps(value), origins[key]) for key, value in leaves(values))
    console.table("", ("key", "value", "from"), rows, left=(0, 1, 2))
    of = "" if derivations is None else " for derivations of {length} steps of {rules} rules".format(**derivations)
    console.lines([f"{parameters:,} parameters{of}"])
    if scale is None:
        console.lines(["beta has no ELBO scale (focal loss or class weights)"])
    elif scale != 1.0:
        console.lines([f"beta weighs {scale:g} times as much on the ELBO scale"])


@app.command()
def schema() -> None:
    """Print the JSON schema of a preset, for editors."""
    from arcvae_cli.console import Console

    Console(as_json=True).json(json_schema())


def size_of(settings: Settings) -> tuple[int, dict[str, int] | None]:
    """Trainable parameters, and the rules and steps of derivations: those of shipped grammars, or `data.max_rules`."""
    from arcvae_cli.grammar import read_grammar
    from arcvae_cli.models import build_model
    from arcvae_cli.models.grammar import Structure

    structure = None
    if settings.model.kind == "strings":
        equations = settings.data.name == "equations"
        rules = read_grammar(settings.data.grammar or ("equations" if equations else "smiles")).rules
        structure = Structure(rules, settings.data.max_rules or (15 if equations else ZINC_RULES))
    model = build_model(settings.model, structure)
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return count, None if structure is None else {"rules": len(structure.rules), "length": structure.length}


def leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
