"""Settings resolved from defaults, a preset and those it extends, environment, `--set` and flags."""

import os
from collections.abc import Iterator, Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any, NamedTuple

import tomli
from pydantic import ValidationError

from arcvae_cli import plugins
from arcvae_cli.errors import InputError, first_fault, nearest
from arcvae_cli.files import is_file, read_limited
from arcvae_cli.settings import NAMED, SIZES, GrammarSettings, Settings, Table, known_keys

PRESET_BYTES = 64 * 1024  # largest preset read
OTHER_VARIABLES = ("ARCVAE_CACHE_DIR", "ARCVAE_ZINC_URL", "ARCVAE_MOSES_URL", plugins.VARIABLE)  # no settings
Values = dict[str, tuple[Any, str]]  # by dotted key, the value and its origin


class Layer(NamedTuple):
    """Values from one place. `origins`: of single dotted keys, where it is not `origin`."""

    origin: str
    values: Table
    origins: Mapping[str, str] = {}


class Resolved(NamedTuple):
    """Settings, and the origin of each dotted key's value; absent for a default."""

    settings: Settings
    origins: Mapping[str, str]


def preset_folder() -> Path:
    """The presets of the checkout where there is one, else those shipped with the package."""
    package = Path(__file__).resolve().parent
    return (package.parent if (package.parent / "pyproject.toml").is_file() else package) / "presets"


def preset_names() -> list[str]:
    """Names of the shipped presets, sorted."""
    return sorted(path.stem for path in preset_folder().glob("*.toml"))


def presets_like(pattern: str) -> list[str]:
    """Names of the shipped presets that a pattern such as `remedies/*` matches; itself, if it matches none."""
    found = sorted(name.removesuffix(".toml") for name in glob(f"{pattern}.toml", root_dir=preset_folder()))
    return found or [pattern]


def find_preset(name: str, beside: Path | None = None) -> Path:
    """The file of a preset: a shipped name, else the path of a TOML file or run (relative to `beside`, or to here)."""
    path = (beside or Path()) / name
    for found in (preset_folder() / f"{name}.toml", path / "config.toml", path):
        if is_file(found):
            return found
    near = nearest(name, [*preset_names(), *presets_like("remedies/*")])
    fix = f"{near}shipped: {', '.join(preset_names())}, remedies/*; or give the path of a TOML file"
    raise InputError(f"preset {name!r}: neither a shipped preset nor a file", fix)


def read_toml(path: Path) -> Table:
    """A TOML file as nested dictionaries; InputError for a file that is unreadable or not TOML."""
    try:
        return tomli.loads(read_limited(path, PRESET_BYTES).decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: unreadable, or not valid TOML: {error}") from error


def preset_layers(name: str | None, beside: Path | None = None, seen: tuple[Path, ...] = ()) -> list[Values]:
    """The values of a preset after those it extends; of several, as A,B, one after the other."""
    if not name:
        return []
    if "," in name:
        return [values for part in name.split(",") for values in preset_layers(part.strip(), beside, seen)]
    path = find_preset(name, beside)
    chain, values = (*seen, path.resolve()), read_toml(path)
    if chain[-1] in seen:
        raise InputError(f"{path}: circular extends: {' -> '.join(p.name for p in chain)}")
    below = preset_layers(str(values.pop("extends", "")), path.parent, chain)
    folder = preset_folder()
    origin = f"presets/{path.relative_to(folder)}" if path.is_relative_to(folder) else str(path)
    return [*below, {key: (value, origin) for key, value in leaves(values) if key != "description"}]


def parse_value(text: str) -> Any:
    """A value as TOML would read it, else a string."""
    try:
        return tomli.loads(f"value = {text}")["value"] if "\n" not in text else text
    except (ValueError, RecursionError):
        return text


def flag_layer(flags: Mapping[str, tuple[str, Any]], origin: str = "flags") -> Layer:
    """The layer of flags: {flag: (dotted key, value)}; a flag whose value is None was not given."""
    given = {key: (value, flag) for flag, (key, value) in flags.items() if value is not None}
    plugins.allow(given)
    return Layer(origin, nested(given), {key: flag for key, (_, flag) in given.items()})


def leaves(table: Table, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with their values."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def nested(values: Values) -> Table:
    """The tables of values with their origins, by dotted key."""
    tables: Table = {}
    for key, (value, origin) in values.items():
        *parents, last = key.split(".")
        inner = tables
        for name in parents:
            inner = inner.setdefault(name, {})
            if not isinstance(inner, dict):
                raise InputError(f"{origin}: {key}: {name!r} already has a value that is not a table")
        inner[last] = value
    return tables


def set_layer(assignments: Sequence[str]) -> Layer:
    """The layer of `--set dotted.key=value`, repeatable; a later one wins."""
    values = {}
    for text in assignments:
        key, equals, value = (part.strip() for part in text.partition("="))
        if not equals:
            raise InputError(f"--set {text[:80]!r}: expected dotted.key=value", "for example --set train.lr=0.0005")
        values[f"--set {key}"] = key, parse_value(value)
    return flag_layer(values, "--set")


def environment_layer(environment: Mapping[str, str] | None = None) -> Layer:
    """The layer of variables such as `ARCVAE_TRAIN__LR=0.0005`: two underscores stand for the dot."""
    values = {}
    for name, text in sorted((os.environ if environment is None else environment).items()):
        if name.startswith("ARCVAE_") and name not in OTHER_VARIABLES:
            key = name.removeprefix("ARCVAE_").lower().replace("__", ".")
            values[name] = key, parse_value(text.strip())
    return flag_layer(values, "environment")


def resolve(preset: str | None = None, *layers: Layer) -> Resolved:
    """Settings from defaults, a preset with what it extends, and further layers, a later one winning.

    Where a preset, or what the layers say together, changes the name of a schedule or model (or the architecture of
    one), the keys below it (or the sizes) start from their defaults. Raises InputError.
    """
    found: Values = {}
    given: Values = {}
    for layer in layers:
        given |= {key: (value, layer.origins.get(key, layer.origin)) for key, value in leaves(layer.values)}
    for values in [*preset_layers(preset), given]:
        named = [key for key in values if key.endswith(".name") and key.startswith(tuple(NAMED))]
        before = {key: found.get(key, (NAMED.get(key.removesuffix(".name"), values[key][0]),))[0] for key in named}
        voided = [key.removesuffix("name") for key in named if values[key][0] != before[key]]
        if "model.arch" in values and values["model.arch"][0] != found.get("model.arch", (GrammarSettings().arch,))[0]:
            voided += [f"model.{size}" for size in SIZES]
        kept = {key: value for key, value in found.items() if key not in values and not key.startswith(tuple(voided))}
        found = kept | values
    found = {key: (value, origin) for key, (value, origin) in found.items() if value is not None}
    origins, merged = {key: origin for key, (_, origin) in found.items()}, nested(found)
    try:
        return Resolved(Settings.model_validate(merged), origins)
    except ValidationError as error:
        key, problem, fix = first_fault(error, lambda path: known_keys(path, merged))
    if problem.startswith("unknown key") and "did you mean" not in str(fix):
        last = key.rpartition(".")[2]
        elsewhere = [table for table in Settings.model_fields if last in known_keys([table], {})]
        fix = f"did you mean {elsewhere[0]}.{last}? {fix}" if elsewhere else fix
    # the origin of the value, else of the table around it, of a key within it, or of a key that its default contradicts
    around = [given for given in sorted(origins, key=len, reverse=True) if f"{key}.".startswith(f"{given}.")]
    related = [given for given in reversed(origins) if given.startswith(f"{key}.")]
    related += [given for given in reversed(origins) if given in f"{problem} {fix}".split()]
    where = next((origins[one] for one in [*around, *related]), "settings")
    place = where if not key or where.endswith(f" {key}") else f"{where}: {key}"
    raise InputError(f"{place}: {problem}", fix)


def json_schema() -> Table:
    """The JSON schema of a preset, for editors."""
    schema = Settings.model_json_schema(by_alias=True)
    own = {"type": "object", "required": ["name"], "properties": {"name": {"pattern": f"^{plugins.NAME.pattern}$"}}}
    for named in (schema["properties"][key] for key in NAMED):
        del named["discriminator"]
        # without a name, which what it extends may give, more than one fits
        named["anyOf"] = [*named.pop("oneOf"), own]
    texts = {"extends": "name or path of a preset to start from", "description": "one line for `arcvae presets list`"}
    keys = {key: {"type": "string", "description": text} for key, text in texts.items()}
    return {**schema, "title": "arcvae preset", "properties": keys | schema["properties"]}
