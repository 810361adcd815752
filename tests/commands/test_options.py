from __future__ import annotations

import typer
from typer.testing import CliRunner

from arcvae_cli.cli import app
from arcvae_cli.commands.options import TABLE, Row, with_flags
from arcvae_cli.presets import Layer


def test_every_row_sets_a_known_key_once() -> None:
    keys = [row.key for row in TABLE]
    assert len(set(keys)) == len(keys)
    assert [row.key for row in TABLE if not row.fields()] == []


def test_help_comes_from_the_fields() -> None:
    text = " ".join(CliRunner().invoke(app, ["train", "--help"], env={"COLUMNS": "200"}).stdout.split())
    for words in ("[default: (linear_warmup)]", "[default: (grid: 10, grammar: 56)]", "(per_dim, per_sample, total)"):
        assert words in text, words


def test_a_command_gets_what_was_given_as_a_layer() -> None:
    """Under the name of the flag, whichever spelling was used; optional and repeated keys are plain values."""
    given: list[Layer] = []
    single = typer.Typer()

    rows = [
        Row(("--latent-dim", "--z-dim"), "model.latent_dim", ""),
        Row(("--augment/--no-augment",), "data.augment", ""),
    ]

    @single.command()
    @with_flags(rows)
    def command(*, name: str, flags: Layer, force: bool = False) -> None:
        given.append(flags)
        assert (name, force) == ("x", True)

    assert CliRunner().invoke(single, ["x", "--force", "--z-dim", "3", "--no-augment"]).exit_code == 0
    assert given[0].values == {"model": {"latent_dim": 3}, "data": {"augment": False}}
    assert given[0].origins == {"model.latent_dim": "--latent-dim", "data.augment": "--augment/--no-augment"}
