"""The flags that set a setting, as one table. Type, choices, default and help come from the settings' own fields."""

import inspect
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from arcvae_cli import plugins
from arcvae_cli.errors import InputError
from arcvae_cli.files import exists, expanded, is_file
from arcvae_cli.folders import all_runs
from arcvae_cli.presets import Layer, flag_layer, preset_names
from arcvae_cli.schedules import SCHEDULES
from arcvae_cli.settings import CANVAS_KEYS, CORPORA, MODEL_SETTINGS, NAMED, Settings

DATA, SCHEDULE = "Data and model", "Beta schedule and free bits"
TRAINING, RUN, OUTPUT = "Training", "The run", "Output"  # panels of the help
FILES = ("grammar", "input", "prod", "masks")


@dataclass(frozen=True)
class Row:
    """A flag: its spellings, the dotted key it sets, its panel, and its default where that is not the field's."""

    flags: tuple[str, ...]
    key: str
    panel: str
    default: str | None = None

    def fields(self) -> dict[str, FieldInfo]:
        """The fields of this key, by the model or schedule that has them; "" for other tables."""
        table, _, key = self.key.partition(".")
        own: Any = {"": Settings.model_fields[table].annotation}
        kinds: Any = {"model": MODEL_SETTINGS, "schedule": SCHEDULES}.get(table, own)
        return {kind: made.model_fields[key] for kind, made in kinds.items() if key in made.model_fields}

    def parameter(self) -> inspect.Parameter:
        """The flag as a parameter of a Typer command; None where it was not given."""
        fields = self.fields()
        types = [plain_type(field.annotation) for field in fields.values()]
        literals = [made for made in types if get_origin(made) is Literal]
        choices = list(dict.fromkeys(str(value) for made in literals for value in get_args(made)))
        texts = dict.fromkeys(field.description for field in fields.values() if field.description)
        shown = [*choices, *["or module:Class"] * self.key.endswith(".name")]
        text = "; ".join(texts) or Settings.model_fields[self.key.partition(".")[0]].description or ""
        option = typer.Option(
            *self.flags,
            help=f"{text} ({', '.join(shown)})" if choices else text,
            autocompletion=complete(lambda: choices) if choices else None,
            show_default=self.default or shown_default(fields),
            rich_help_panel=self.panel,
        )
        annotation = Annotated[(str if choices else types[0]) | None, option]  # type: ignore[valid-type]
        name = self.key.replace(".", "_")
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def plain_type(annotation: Any) -> Any:
    """The annotation of a field for Typer: without None and constraints."""
    if get_origin(annotation) in (Annotated, Union, UnionType):
        return plain_type(next(part for part in get_args(annotation) if part is not NoneType))
    return annotation


def shown_default(fields: dict[str, FieldInfo]) -> str | bool:
    """The default as the help shows it; False, none, where it depends on the schedule."""
    kinds: dict[Any, str] = {}
    for kind, field in fields.items():
        if field.default is not PydanticUndefined and not isinstance(field.default, bool | NoneType):
            kinds.setdefault(field.default, kind)
    if len(kinds) > 1 and fields.keys() <= MODEL_SETTINGS.keys():
        return ", ".join(f"{kind}: {value}" for value, kind in kinds.items())
    return str(*kinds) if len(kinds) == 1 else False


def own_names(table: str, panel: str, *keys: str) -> list[Row]:
    """Rows for keys of a table of settings whose flags are the keys themselves (`--max-beta`)."""
    return [Row((f"--{key.replace('_', '-')}",), f"{table}.{key}", panel) for key in keys]


LENGTHS = ("warmup_epochs", "ramp_epochs", "cycle_length")
BETA = {"max": "max_beta", "min": "min_beta", **{key: key for key in LENGTHS}}
TABLE = (  # of `train`
    *own_names("data", DATA, *FILES),
    *own_names("data", DATA, "canvas", "classes"),
    Row(("--augment/--no-augment",), "data.augment", DATA),
    Row(("--model",), "model.name", DATA, NAMED["model"]),
    Row(("--latent-dim", "--z-dim"), "model.latent_dim", DATA),
    *own_names("model", DATA, "encoder_hidden", "decoder_hidden"),
    Row(("--beta-schedule",), "schedule.name", SCHEDULE, NAMED["schedule"]),
    *(Row((f"--beta-{flag.replace('_', '-')}",), f"schedule.{key}", SCHEDULE) for flag, key in BETA.items()),
    *own_names("objective", SCHEDULE, "free_bits", "free_bits_mode"),
    *own_names("train", TRAINING, "epochs", "batch_size", "lr", "seed", "device", "precision", "engine", "threads"),
    Row(("--early-stopping/--no-early-stopping",), "train.early_stopping", TRAINING),
    *own_names("train", TRAINING, "patience"),
    *own_names("log", RUN, "wandb"),
    Row(("--tensorboard/--no-tensorboard",), "log.tensorboard", RUN),
    *own_names("checkpoint", RUN, "save_top_k"),
)


def with_flags(rows: Sequence[Row]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a Typer command the flags of `rows`, in place of its parameter `flags`, which gets their `Layer`."""

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters

        @wraps(command)
        def called(**values: Any) -> None:
            given = {row.flags[0]: (row.key, setting(row.key, values.pop(row.key.replace(".", "_")))) for row in rows}
            command(flags=flag_layer(given), **values)

        parameters: list[inspect.Parameter] = []
        for name, parameter in own.items():
            added = [row.parameter() for row in rows] if name == "flags" else [parameter]
            parameters += [made.replace(kind=inspect.Parameter.KEYWORD_ONLY) for made in added]
        called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        called.__annotations__ = {}
        return called

    return decorate


def setting(key: str, value: Any) -> Any:
    """A flag's value as the settings keep it: paths are absolute."""
    if isinstance(value, Path) or (key == "data.grammar" and value is not None and is_file(expanded(Path(value)))):
        return os.path.abspath(expanded(Path(value)))
    return int(value) if key == "train.threads" and str(value).isdecimal() else value


def data_layers(data: str | None) -> tuple[Layer, Layer]:
    """The layers of `--data` below and above `--set`: a name replaces the files of a preset, not those of `--set`."""
    below, above = dict[str, Any](), dict[str, Any]()
    plugins.allow(data)
    if data == "":
        raise InputError("--data: empty", "give a name or a path")
    if data in CORPORA or (data and not exists(expanded(Path(data))) and plugins.points("corpora", name=data)):
        below, above = {"data": dict.fromkeys((*FILES, *CANVAS_KEYS))}, {"data": {"name": data, "path": None}}
    elif data is not None:
        above = {"data": {"path": os.path.abspath(expanded(Path(data)))}}
    return Layer("--data", below), Layer("--data", above)


def complete(names: Callable[[], Sequence[str]]) -> Callable[[str], list[str]]:
    """Shell completion from names, for an argument that may also be a path."""
    return lambda incomplete: [name for name in names() if name.startswith(incomplete)]


complete_runs = complete(lambda: ["latest", *(path.name for path in all_runs(Path("runs")))])
PRESET_HELP = "a shipped preset, a TOML file, or the config.toml of a run"
DATA_HELP = f"{', '.join(CORPORA)}, a path to your own, or module:function"
own, output_option = (partial(typer.Option, rich_help_panel=panel) for panel in (RUN, OUTPUT))
PresetOption = Annotated[str | None, own("--preset", help=PRESET_HELP, autocompletion=complete(preset_names))]
data_option: Any = partial(typer.Option, "--data", show_default="arc", rich_help_panel=DATA)
DataOption = Annotated[str | None, data_option(help=DATA_HELP, autocompletion=complete(lambda: CORPORA))]
SetOption = Annotated[list[str] | None, own("--set", help="any setting, as dotted.key=value; repeatable")]
QuietOption = Annotated[bool, output_option("--quiet", help="print the result only")]
JsonOption = Annotated[bool, output_option("--json", help="print the result as JSON")]
