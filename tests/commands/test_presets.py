from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli
from typer.testing import Result

from arcvae_cli.settings import describe_preset, find_preset, preset_names, resolve

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
    result = arcvae("presets", "list")
    text = " ".join(result.stdout.split())
    for name in preset_names():
        assert describe_preset(name) and f"{name} {describe_preset(name)}" in text
    document = json.loads(arcvae("presets", "list", "--json", "--quiet").stdout)
    assert [entry["name"] for entry in document["presets"]] == preset_names()
    assert document["presets"][0]["description"] == describe_preset(preset_names()[0])


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


def test_a_chain_of_presets_and_the_environment(arcvae: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mid.toml").write_text('extends = "cyclical"\n[train]\nlr = 0.002\nseed = 5\n[schedule]\nmax_beta = 0.3\n')
    Path("top.toml").write_text('description = "mine"\nextends = "mid.toml"\n[train]\nlr = 0.004\n')
    monkeypatch.setenv("ARCVAE_TRAIN__PATIENCE", "7")
    shown = origins(arcvae, "top.toml")
    assert shown["train.lr"] == (0.004, "top.toml")
    assert shown["train.seed"] == (5, "mid.toml")
    assert shown["schedule.max_beta"] == (0.3, "mid.toml")
    assert shown["schedule.cycle_length"] == (20.0, "presets/cyclical.toml")
    assert shown["train.patience"] == (7, "ARCVAE_TRAIN__PATIENCE")
    assert shown["train.precision"] == ("auto", "default")


def test_a_path_with_brackets_is_no_markup_and_a_long_one_is_not_cut(arcvae: Run, tmp_path: Path) -> None:
    path = tmp_path / f"[red]{'long' * 20}[" / "x].toml"
    path.parent.mkdir()
    path.write_text(f'[data]\npath = "{"[b]" * 30}"\n')
    assert origins(arcvae, path)["data.path"] == ("[b]" * 30, str(path))


def test_presets_that_cannot_be_shown(arcvae: Run, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[train]\nepoch = 3\n")
    result = arcvae("presets", "show", tmp_path / "bad.toml", "--json")
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: {tmp_path / 'bad.toml'}: train.epoch: unknown key")
    assert "did you mean epochs?" in result.stderr


# ------------------------------------------------------------------------------------------------------ the schema

KNOWN = {"$defs", "title", "description", "default", "discriminator", "format"} | {
    *("$ref", "anyOf", "oneOf", "const", "enum", "type", "properties", "additionalProperties", "required"),
    *("items", "prefixItems", "minItems", "maxItems", "pattern"),
    *("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"),
}
TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}


def valid(schema: dict[str, Any], value: Any, root: dict[str, Any]) -> bool:
    """Whether a value fits a JSON schema: as much of draft 2020-12 as ours uses."""
    assert set(schema) <= KNOWN, set(schema) - KNOWN

    def fits(part: dict[str, Any], value: Any) -> bool:
        return valid(part, value, root)

    if "$ref" in schema and not fits(root["$defs"][schema["$ref"].rpartition("/")[2]], value):
        return False
    if "anyOf" in schema and not any(fits(part, value) for part in schema["anyOf"]):
        return False
    if "oneOf" in schema and sum(fits(part, value) for part in schema["oneOf"]) != 1:
        return False
    if "type" in schema:
        right = isinstance(value, TYPES[schema["type"]])
        if not right or (isinstance(value, bool) and schema["type"] != "boolean"):
            return False
    if value != schema.get("const", value) or value not in schema.get("enum", [value]):
        return False
    if isinstance(value, str) and "pattern" in schema:
        return re.search(schema["pattern"], value) is not None
    if isinstance(value, (int, float)):
        return (
            schema.get("minimum", value) <= value <= schema.get("maximum", value)
            and value > schema.get("exclusiveMinimum", float("-inf"))
            and value < schema.get("exclusiveMaximum", float("inf"))
        )
    if isinstance(value, list):
        first = schema.get("prefixItems", [])
        parts = [*first, *[schema.get("items", {})] * (len(value) - len(first))]
        size = schema.get("minItems", 0) <= len(value) <= schema.get("maxItems", len(value))
        return size and all(map(fits, parts, value))
    if isinstance(value, dict):
        named = schema.get("properties", {})
        if schema.get("additionalProperties") is False and not set(value) <= set(named):
            return False
        return set(schema.get("required", ())) <= set(value) and all(
            fits(named.get(key, {}), below) for key, below in value.items()
        )
    return True


def test_the_schema_takes_every_shipped_preset_and_every_run(arcvae: Run) -> None:
    schema = json.loads(arcvae("presets", "schema").stdout)
    for name in preset_names():
        assert valid(schema, tomli.loads(find_preset(name).read_text()), schema), name
        assert valid(schema, resolve(name).settings.table(), schema), name


@pytest.mark.parametrize(
    ("text", "fits"),
    [
        ('extends = "cyclical"\n[schedule]\nmax_beta = 0.3', True),  # the base names the schedule
        ("[schedule]\nmax_betaa = 0.3", False),
        ('[schedule]\nname = "cyclical"\nmax_beta = 0.3\ncycle_length = 10', True),
        ('[schedule]\nname = "cyclical"\nwarmup_epochs = 3', False),
        ('[schedule]\nname = "cyclicall"', False),
        (
            '[schedule]\nname = "hierarchical"\n[schedule.global]\nname = "cosine"\n[schedule.local]\nname = "linear"',
            True,
        ),
        ("[train]\nepochs = 0", False),
        ("[train]\nepoch = 1", False),
        ('[train]\ndevice = "cuda:1"', True),
        ('[train]\ndevice = "gpu"', False),
        ("[train]\nadam_betas = [0.9]", False),
        ("[objective]\nfree_bits = true", False),
        ("[objective]\nfree_bits = 1", True),
        ('[train]\nlr = "0.1"', False),
        ("[data]\naugment = 1", False),
        ('[model]\nname = "gird"', False),
        ("[modell]\nlatent_dim = 3", False),
    ],
)
def test_the_schema_and_the_settings_agree(arcvae: Run, text: str, fits: bool, tmp_path: Path) -> None:
    schema = json.loads(arcvae("presets", "schema").stdout)
    path = tmp_path / "mine.toml"
    path.write_text(text)
    assert valid(schema, tomli.loads(text), schema) is fits
    assert arcvae("presets", "show", path).exit_code == (0 if fits else 2)


def test_the_size_of_the_model_is_told(arcvae: Run) -> None:
    """The equations model counted by hand, from the sizes of the 2017 code."""
    assert "792,542 parameters\n" in arcvae("presets", "show", "baseline").stdout
    shown = arcvae("presets", "show", "kusner_equations").stdout
    encoder = (12 * 2 * 2 + 2) + (2 * 3 * 3 + 3) + (3 * 4 * 4 + 4) + (4 * 9 * 100 + 100) + 2 * (100 * 25 + 25)
    decoder = (25 * 25 + 25) + 3 * 100 * (25 + 102) + 2 * 3 * 100 * (100 + 102) + (100 * 12 + 12)
    assert f"{encoder + decoder:,} parameters for derivations of 15 steps of 12 rules" in shown
    document = json.loads(arcvae("presets", "show", "kusner_original", "--json").stdout)
    assert document["derivations"] == {"rules": 76, "length": 277}
    assert document["parameters"] == 5_048_565
    assert json.loads(arcvae("presets", "show", "hierarchical", "--json").stdout)["derivations"] is None
