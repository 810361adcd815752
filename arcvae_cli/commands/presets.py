"""`arcvae presets`: what ships, what a preset comes to, and the schema for editors."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import typer

from arcvae_cli.settings import describe_preset, elbo_scale, environment_layer, json_schema, preset_names, resolve

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
    console.json(
        {
            "name": name,
            "settings": values,
            "origins": {key: origin for key, _, origin in rows},
            "elbo_scale": elbo_scale(resolved.settings),
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
