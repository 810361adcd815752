"""`arcvae presets`: the shipped presets, one preset with the origin of each value, and the schema for editors."""

import json
from typing import Annotated

import typer

from arcvae_cli.commands.options import JsonOption, QuietOption, complete
from arcvae_cli.console import Console
from arcvae_cli.presets import (
    environment_layer,
    find_preset,
    json_schema,
    leaves,
    preset_names,
    presets_like,
    read_toml,
    resolve,
)
from arcvae_cli.settings import elbo_scale

app = typer.Typer(no_args_is_help=True, add_completion=False, help="List and show presets.")


@app.command("list")
def list_presets(quiet: QuietOption = False, as_json: JsonOption = False) -> None:
    """List the shipped presets."""
    console = Console(quiet=quiet, as_json=as_json)
    names = [*preset_names(), *presets_like("remedies/*")]
    rows = {name: read_toml(find_preset(name))["description"] for name in names}
    console.json({"presets": [{"name": name, "description": text} for name, text in rows.items()]})
    console.table("", ("preset", "description"), rows.items(), left=(0, 1), header=False)


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="a shipped preset or a TOML file", autocompletion=complete(preset_names))],
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show all settings of a preset with the origin of each value."""
    console = Console(quiet=quiet, as_json=as_json)
    resolved = resolve(name, environment_layer())
    values = resolved.settings.table()
    origins = {key: resolved.origins.get(key, "default") for key, _ in leaves(values)}
    scale = elbo_scale(resolved.settings)
    console.json({"name": name, "settings": values, "origins": origins, "elbo_scale": scale})
    rows = ((key, json.dumps(value), origins[key]) for key, value in leaves(values))
    console.table("", ("key", "value", "from"), rows, left=(0, 1, 2))
    if scale != 1.0:
        console.lines([f"beta on the ELBO scale: {f'{scale:g} times beta' if scale else 'undefined'}"])


@app.command()
def schema() -> None:
    """Print the JSON schema of a preset, for editors."""
    Console(as_json=True).json(json_schema())
