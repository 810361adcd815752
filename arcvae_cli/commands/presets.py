"""`arcvae presets`: what ships, what a preset comes to, and the schema for editors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from arcvae_cli.settings import (
    GrammarSettings,
    Settings,
    describe_preset,
    elbo_scale,
    environment_layer,
    json_schema,
    preset_names,
    resolve,
)

app = typer.Typer(no_args_is_help=True, help="List, show and describe presets.")

Quiet = Annotated[bool, typer.Option("--quiet", help="print the result only")]
AsJson = Annotated[bool, typer.Option("--json", help="print the result as JSON")]


@app.command("list")
def list_presets(quiet: Quiet = False, as_json: AsJson = False) -> None:
    """List the shipped presets."""
    from rich.table import Table

    from arcvae_cli.console import Console

    console = Console(quiet=quiet, as_json=as_json)
    rows = {name: describe_preset(name) for name in preset_names()}
    console.json({"presets": [{"name": name, "description": text} for name, text in rows.items()]})
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column()
    for name, text in rows.items():
        table.add_row(name, text)
    console.result(table)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="a shipped preset or a TOML file")],
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Show a preset resolved, and where every value comes from."""
    from rich.table import Table
    from rich.text import Text

    from arcvae_cli.console import Console

    console = Console(quiet=quiet, as_json=as_json)
    resolved = resolve(name, environment_layer())
    values = resolved.settings.table()
    origins = resolved.origins
    rows = [(key, value, origin_of(key, origins)) for key, value in leaves(values)]
    size = size_of(resolved.settings)
    console.json(
        {
            "name": name,
            "settings": values,
            "origins": {key: origin for key, _, origin in rows},
            "elbo_scale": elbo_scale(resolved.settings),
            "parameters": size.parameters,
            "derivations": None if size.length is None else {"rules": size.rules, "length": size.length},
        }
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("key", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from", overflow="fold")  # a long path goes on in the next line: nothing is lost in a pipe
    for key, value, origin in rows:
        style = "dim" if origin == "default" else ""
        table.add_row(key, Text(json.dumps(value)), Text(origin), style=style)
    console.result(table)
    where = "" if size.length is None else f" for derivations of {size.length} steps of {size.rules} rules"
    console.result(f"{size.parameters:,} parameters{where}")
    scale = elbo_scale(resolved.settings)
    if scale is None:
        console.result("with focal loss or class weights no ELBO corresponds to this beta")
    elif scale != 1.0:
        console.result(f"beta weighs {scale:g} times as much on the ELBO scale")


@app.command()
def schema() -> None:
    """Print the JSON schema of a preset, for editors."""
    from arcvae_cli.console import Console

    Console(as_json=True).json(json_schema())


ZINC_RULES = 277
"""Steps of the longest derivation of the 249,456 molecules of the 2017 paper, which `smiles` is by default."""


@dataclass(frozen=True)
class Size:
    """Trainable numbers of a model; of a grammar model, the rules and the steps that it is made for."""

    parameters: int
    rules: int | None = None
    length: int | None = None


def size_of(settings: Settings) -> Size:
    """The size of the model that the settings describe, counted on the model itself.

    How long the derivations of a file are only its corpus tells: here they are as long as those of the shipped
    grammars, or `data.max_rules`.
    """
    from arcvae_cli.grammar import read_grammar
    from arcvae_cli.models import build_model
    from arcvae_cli.models.grammar import Structure

    structure = None
    if isinstance(settings.model, GrammarSettings):
        equations = settings.data.name == "equations"
        rules = read_grammar(settings.data.grammar or ("equations" if equations else "smiles")).rules
        structure = Structure(rules, settings.data.max_rules or (15 if equations else ZINC_RULES))
    model = build_model(settings.model, structure)
    count = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Size(count) if structure is None else Size(count, len(structure.rules), structure.length)


def leaves(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def origin_of(key: str, origins: Mapping[str, str]) -> str:
    """Where a key's value came from."""
    return origins.get(key, "default")
