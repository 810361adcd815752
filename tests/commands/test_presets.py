from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from arcvae_cli.cli import app
from arcvae_cli.presets import find_preset, preset_names, read_toml, resolve
from arcvae_cli.schedules import SCHEDULES
from arcvae_cli.settings import MODEL_SETTINGS

Run = Callable[..., Result]


def origins(arcvae: Run, name: object) -> dict[str, tuple[Any, str]]:
    """By dotted key, the value and its origin as `show` prints them: a line each in a pipe."""
    result = arcvae("presets", "show", name)
    assert result.exit_code == 0, result.stderr
    rows = (re.split(" {2,}", line.strip(), maxsplit=2) for line in result.stdout.splitlines())
    return {
        key: (json.loads(value), origin)
        for key, value, origin in (row for row in rows if len(row) == 3 and row[0] != "key")
    }


def test_the_list(arcvae: Run) -> None:
    text = " ".join(arcvae("presets", "list").stdout.split())
    document = json.loads(arcvae("presets", "list", "--json", "--quiet").stdout)
    assert document["presets"] == [
        {"name": name, "description": read_toml(find_preset(name))["description"]} for name in preset_names()
    ]
    assert all(entry["description"] and " ".join(entry.values()) in text for entry in document["presets"])


def test_a_shipped_preset_with_the_origin_of_each_value(arcvae: Run) -> None:
    shown = origins(arcvae, "baseline")
    assert shown["train.monitor"] == ("val/loss_total", "presets/baseline.toml")
    assert shown["schedule.phases"] == ([[10, 1], [20, 2]], "presets/baseline.toml")
    assert shown["objective.focal_gamma"] == (2.0, "default")
    settings = resolve("baseline").settings.table()
    assert list(shown) == [f"{table}.{key}" for table, keys in settings.items() for key in keys]
    document = json.loads(arcvae("presets", "show", "baseline", "--json").stdout)
    assert document["settings"] == settings
    assert document["origins"] == {key: origin for key, (_, origin) in shown.items()}
    assert document["elbo_scale"] == 25.6
    assert "beta weighs 25.6 times as much on the ELBO scale" in arcvae("presets", "show", "baseline").stdout
    assert "ELBO" not in arcvae("presets", "show", "quickstart").stdout


def test_a_path_with_brackets_is_no_markup_and_a_long_one_is_not_cut(arcvae: Run, tmp_path: Path) -> None:
    path = tmp_path / f"[red]{'long' * 20}[" / "x].toml"
    path.parent.mkdir()
    path.write_text(f'[data]\npath = "{"[b]" * 30}"\n')
    assert origins(arcvae, path)["data.path"] == ("[b]" * 30, str(path))


def test_the_schema_has_the_keys_and_choices_of_the_settings(arcvae: Run) -> None:
    schema = json.loads(arcvae("presets", "schema").stdout)
    tables, kinds = schema["properties"], schema["$defs"]
    for kind in MODEL_SETTINGS.values():
        assert set(kinds[kind.__name__]["properties"]) == set(kind.model_fields)
    schedules = [kinds[one["$ref"].rpartition("/")[2]] for one in tables["schedule"]["anyOf"]]
    assert {kind["properties"]["name"]["const"] for kind in schedules} == set(SCHEDULES)
    train = kinds["TrainSettings"]
    assert train["additionalProperties"] is False
    assert train["properties"]["precision"]["enum"] == ["auto", "fp32", "bf16"]
    assert train["properties"]["epochs"]["minimum"] == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("presets show ultra", {"ultra_conservative"}),
        ("train --preset kusner_e", {"kusner_equations"}),
        ("train --beta-schedule c", {"constant", "cosine", "cyclical", "controlvae"}),
        ("schedule-preview cy", {"cyclical", "cyclical_cosine"}),
    ],
)
def test_completion_of_presets_and_schedules(
    arcvae: Run, monkeypatch: pytest.MonkeyPatch, words: str, expected: set[str]
) -> None:
    monkeypatch.setenv("_ARCVAE_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", f"arcvae {words}")
    monkeypatch.setenv("COMP_CWORD", str(len(words.split())))
    completed = CliRunner().invoke(app, [], prog_name="arcvae").stdout.split()
    assert set(completed) == expected and len(completed) == len(expected)


def test_the_help_without_a_subcommand_is_printed_once_and_has_no_completion_options(arcvae: Run) -> None:
    result = arcvae("presets")
    assert (result.exit_code, (result.stdout + result.stderr).count("Usage")) == (0, 1)
    assert "--install-completion" not in result.stdout
