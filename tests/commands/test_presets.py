from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from typer.testing import CliRunner, Result

from arcvae_cli.cli import app
from arcvae_cli.presets import preset_names, presets_like, resolve
from arcvae_cli.schedules import SCHEDULES
from arcvae_cli.settings import MODEL_SETTINGS

Run = Callable[..., Result]


def origins(text: str) -> dict[str, tuple[Any, str]]:
    """By dotted key, the value and its origin as `show` prints them: a line each in a pipe."""
    rows = (re.split(" {2,}", line.strip(), maxsplit=2) for line in text.splitlines())
    return {row[0]: (json.loads(row[1]), row[2]) for row in rows if len(row) == 3 and row[0] != "key"}


def test_the_list(arcvae: Run) -> None:
    text = " ".join(arcvae("presets", "list").stdout.split())
    entries = json.loads(arcvae("presets", "list", "--json", "--quiet").stdout)["presets"]
    assert [entry["name"] for entry in entries] == [*preset_names(), *presets_like("remedies/*")]
    assert all(entry["description"] and " ".join(entry.values()) in text for entry in entries)


def test_a_preset_with_the_origin_of_each_value(arcvae: Run) -> None:
    text = arcvae("presets", "show", "baseline").stdout
    shown = origins(text)
    assert shown["schedule.phases"] == ([[10, 1], [20, 2]], "presets/baseline.toml")
    assert shown["objective.focal_gamma"] == (2.0, "default")
    assert "beta on the ELBO scale: 25.6 times beta" in text
    document = json.loads(arcvae("presets", "show", "baseline", "--json").stdout)
    assert document["settings"] == resolve("baseline").settings.table()
    assert document["origins"] == {key: origin for key, (_, origin) in shown.items()}
    assert document["elbo_scale"] == 25.6


def test_the_schema_has_the_keys_and_choices_of_the_settings(arcvae: Run) -> None:
    schema = json.loads(arcvae("presets", "schema").stdout)
    tables, kinds = schema["properties"], schema["$defs"]
    for kind in MODEL_SETTINGS.values():
        assert set(kinds[kind.__name__]["properties"]) == set(kind.model_fields)
    schedules = [kinds[one["$ref"].rpartition("/")[2]] for one in tables["schedule"]["anyOf"] if "$ref" in one]
    assert {kind["properties"]["name"]["const"] for kind in schedules} == set(SCHEDULES)
    assert kinds["TrainSettings"]["properties"]["precision"]["enum"] == ["auto", "fp32", "bf16"]


def test_completion() -> None:
    words = {"_ARCVAE_COMPLETE": "complete_bash", "COMP_WORDS": "arcvae train --beta-schedule c", "COMP_CWORD": "3"}
    names = CliRunner().invoke(app, [], prog_name="arcvae", env=words).stdout.split()
    assert sorted(names) == ["constant", "controlvae", "cosine", "cyclical"]
