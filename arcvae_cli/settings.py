"""The settings of a run: typed, frozen, and resolved from defaults, presets, environment and flags.

TOML in, `Settings` out. Every mistake a person can make here is an `InputError` that names where the value came from,
its dotted key, what was expected and, for a misspelt key, the nearest one.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

import tomli
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from arcvae_cli.errors import InputError
from arcvae_cli.files import is_file, open_regular
from arcvae_cli.schedules import SCHEDULES, AnySchedule, LinearWarmup

Table = dict[str, Any]

GridCorpusName = Literal["arc", "arc-raw", "shapes"]
StringCorpusName = Literal["equations", "smiles"]
GRID_CORPORA: tuple[str, ...] = get_args(GridCorpusName)
STRING_CORPORA: tuple[str, ...] = get_args(StringCorpusName)
CORPORA = (*GRID_CORPORA, *STRING_CORPORA)
"""The corpora of `arcvae_cli.data.corpora` by name; anything else given as `--data` is a path."""

PRESET_BYTES = 64 * 1024
"""Largest preset read."""

MOST_DOTS = 200
"""Dots in a line of TOML, or in a value of `--set`: a dotted key of 40 kB takes some versions of the parser seconds."""

DEEPEST = 16
"""Tables and lists within one another, of which settings need four."""

MOST_BASES = 16
"""Presets that a preset may extend, one by one."""

ENVIRONMENT = "ARCVAE_"
OWN_VARIABLES = ("ARCVAE_CACHE_DIR", "ARCVAE_ZINC_URL")
"""Variables of arcvae that are no settings."""


class SettingsTable(BaseModel):
    """A table of settings: frozen, unknown keys forbidden, finite numbers only, `true` no number and "3" neither."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


Count = Annotated[int, Field(ge=1)]
Size = Annotated[int, Field(ge=1, le=1_000_000)]
Width = Annotated[int, Field(ge=1, le=4096)]  # above, a single layer takes gigabytes
Depth = Annotated[int, Field(ge=1, le=64)]
Kernel = Annotated[int, Field(ge=1, le=255)]
Positive = Annotated[float, Field(gt=0, le=1e30)]  # which 32 bits hold
NotNegative = Annotated[float, Field(ge=0, le=1e30)]
Fraction = Annotated[float, Field(ge=0, lt=1)]


class DataSettings(SettingsTable):
    """Which corpus, and how it is used."""

    name: Literal[GridCorpusName, StringCorpusName] = Field("arc", description="corpus by its name")
    path: Path | None = Field(
        None, strict=False, description="your own corpus instead: .npz, .npy, ARC JSON file or folder, file of strings"
    )
    size: Count = Field(100_000, description="examples of a built corpus")
    seed: int = Field(0, ge=0, description="seed of a built corpus")
    augment: bool = Field(True, description="random symmetries and colour permutations of every batch")
    limit: Count | None = Field(None, description="training examples at most; an eighth as many validate")
    grammar: str | None = Field(None, description="grammar of the strings: a file, or equations, smiles")
    input: Path | None = Field(None, strict=False, description="strings of the grammar, one a line")
    recipe: Literal["uniform", "kusner"] = Field("uniform", description="how equations are drawn")
    max_rules: Count | None = Field(
        None, description="rules of the longest derivation; by default the input's longest, 15 of equations"
    )
    prod: Path | None = Field(None, strict=False, description="derivations: .npy of rule ids (N, T)")
    masks: Path | None = Field(None, strict=False, description="masks of derivations: .npy, bit-packed (N, T, bytes)")
    pad_id: int | None = Field(None, ge=-1, description="padding id of derivations; detected by default")

    @property
    def of_strings(self) -> bool | None:
        """Whether the corpus is of derivations and not of grids; None where only its file can tell."""
        if self.grammar is not None or self.input is not None or self.prod is not None:
            return True
        return None if self.path is not None else self.name in STRING_CORPORA

    @model_validator(mode="after")
    def _consistent(self) -> DataSettings:
        def refuse(key: str, what: str, fix: str) -> PydanticCustomError:
            return PydanticCustomError("contradiction", "{what}", {"key": key, "what": what, "fix": fix})

        sources = [key for key in ("path", "input", "prod") if getattr(self, key) is not None]
        if len(sources) > 1:
            raise refuse(sources[1], f"data.{sources[0]} is given too", "leave one of them out")
        for key in ("masks", "pad_id"):
            if getattr(self, key) is not None and self.prod is None:
                raise refuse(key, f"{key} without derivations (data.prod)", "give --prod too, or leave it out")
        if self.prod is not None and self.masks is None and self.grammar is None:
            raise refuse("prod", "ids alone do not say which rules compete", "give --masks, or --grammar")
        if self.input is not None and self.grammar is None and self.name not in STRING_CORPORA:
            raise refuse("input", "strings need a grammar", "give --grammar, or one of: equations, smiles")
        if self.recipe == "kusner" and self.grammar is None and (sources or self.name != "equations"):
            raise refuse("recipe", "kusner is a recipe of the corpus equations", "use data.name=equations, or uniform")
        return self


class ModelSettings(SettingsTable):
    """What every model has. `levels`: the names of its levels of latents, from the top down."""

    levels: ClassVar[tuple[str, ...]]

    name: str
    posterior: Literal["softplus", "logvar"] = Field("softplus", description="output of the second head")
    logvar_min: float = Field(-12.0, ge=-30, le=0, description="floor of the posterior's log variance")
    logvar_max: float = Field(4.0, ge=0, le=20, description="ceiling of the posterior's log variance")
    dropout: Fraction = Field(
        0.0, description="of the residual blocks; the grid model's plain body and grammar's kusner have none"
    )


class GridSettings(ModelSettings):
    """The model of grids with one vector of latents."""

    levels: ClassVar[tuple[str, ...]] = ("z",)

    name: Literal["grid"] = "grid"
    latent_dim: Width = Field(10, description="dimensions of the latent code")
    body: Literal["plain", "residual"] = Field("plain", description="layers around the code")


class HierarchicalSettings(ModelSettings):
    """The conditional model of grids with a global vector and a local map of latents."""

    levels: ClassVar[tuple[str, ...]] = ("global", "local")

    name: Literal["hierarchical"] = "hierarchical"
    global_dim: Width = Field(16, description="dimensions of the global vector")
    local_channels: Width = Field(4, description="channels of the local map")
    local_size: Literal[4, 8, 16] = Field(8, description="rows and columns of the local map")
    condition_dropout: float = Field(
        0.1, ge=0, le=1, description="share of training grids without any condition; the others lose a random part"
    )


ARCHITECTURES: dict[str, Table] = {
    "kusner": {
        "encoder_hidden": 435,
        "encoder_conv_layers": 3,
        "encoder_kernel": [9, 9, 11],
        "encoder_channels": [9, 9, 10],
        "decoder_hidden": 501,
        "decoder_layers": 3,
        "decoder_dropout": 0.0,
    },
    "enhanced": {
        "encoder_hidden": 256,
        "encoder_conv_layers": 3,
        "encoder_kernel": [3, 5, 7],
        "decoder_hidden": 384,
        "decoder_layers": 3,
        "decoder_dropout": 0.2,
    },
}
"""Sizes of the grammar model where none are given, by its `arch`."""

SIZES = tuple(dict.fromkeys(key for sizes in ARCHITECTURES.values() for key in sizes))


class GrammarSettings(ModelSettings):
    """The model of derivations of a context-free grammar."""

    levels: ClassVar[tuple[str, ...]] = ("z",)

    name: Literal["grammar"] = "grammar"
    latent_dim: Width = Field(56, description="dimensions of the latent code")
    arch: Literal["kusner", "enhanced"] = Field("enhanced", description="layers around the code")
    encoder_hidden: Width = Field(256, description="channels (enhanced), or width of the dense layer (kusner: 435)")
    encoder_conv_layers: Depth = Field(3, description="convolutions over the steps of a derivation")
    encoder_kernel: Kernel | Annotated[tuple[Kernel, ...], Field(strict=False)] = Field(
        (3, 5, 7), description="width of the convolutions: one number, or one for each (kusner: 9, 9, 11)"
    )
    encoder_channels: Width | Annotated[tuple[Width, ...], Field(strict=False)] | None = Field(
        None, description="channels of kusner's convolutions: one number, or one for each (9, 9, 10)"
    )
    decoder_hidden: Width = Field(384, description="units of a GRU layer (kusner: 501)")
    decoder_layers: Depth = Field(3, description="GRU layers")
    decoder_dropout: Fraction = Field(0.2, description="between the GRU layers (kusner: 0)")
    posterior_noise: float = Field(
        1.0, ge=1e-4, le=1, description="factor on the noise that is sampled; the 2017 code has 0.01, an autoencoder"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        """The sizes of the architecture, where none are given."""
        if not isinstance(values, Mapping):
            return values
        return {**ARCHITECTURES.get(str(values.get("arch", "enhanced")), {}), **values}

    @model_validator(mode="after")
    def _agree(self) -> GrammarSettings:
        """As many kernels and channels as there are convolutions."""
        layers = self.encoder_conv_layers
        for key in ("encoder_kernel", "encoder_channels"):
            given = getattr(self, key)
            if isinstance(given, tuple) and len(given) != layers:
                raise ValueError(f"model.{key} has {len(given)} numbers for model.encoder_conv_layers = {layers}")
        if self.arch == "enhanced" and self.encoder_channels is not None:
            raise ValueError("model.encoder_channels is for arch = kusner; enhanced has encoder_hidden channels")
        if self.arch == "enhanced" and any(kernel % 2 == 0 for kernel in self.kernels):
            raise ValueError("model.encoder_kernel must be odd for arch = enhanced, whose convolutions keep the length")
        return self

    @property
    def kernels(self) -> tuple[int, ...]:
        """The width of each convolution."""
        return _each(self.encoder_kernel, self.encoder_conv_layers)

    @property
    def channels(self) -> tuple[int, ...]:
        """The channels of each convolution."""
        given = self.encoder_hidden if self.encoder_channels is None else self.encoder_channels
        return _each(given, self.encoder_conv_layers)


def _each(given: int | tuple[int, ...], layers: int) -> tuple[int, ...]:
    return given if isinstance(given, tuple) else (given,) * layers


MODEL_SETTINGS: dict[str, type[ModelSettings]] = {
    "grid": GridSettings,
    "hierarchical": HierarchicalSettings,
    "grammar": GrammarSettings,
}
"""The table of each model, by its name."""

DEFAULT_MODEL = "grid"


def _model_name(table: Any) -> str | None:
    name = table.get("name", DEFAULT_MODEL) if isinstance(table, Mapping) else getattr(table, "name", None)
    return name if isinstance(name, str) else None


AnyModel = Annotated[
    Annotated[GridSettings, Tag("grid")]
    | Annotated[HierarchicalSettings, Tag("hierarchical")]
    | Annotated[GrammarSettings, Tag("grammar")],
    Discriminator(_model_name),
]


class ObjectiveSettings(SettingsTable):
    """reconstruction + beta * KL, and on which scale."""

    reconstruction: Literal["cross_entropy", "focal"] = "cross_entropy"
    focal_gamma: NotNegative = Field(2.0, description="focusing exponent of the focal loss")
    class_weights: Literal["none", "inverse", "sqrt_inverse", "balanced"] = "none"
    reduction: Literal["sum", "mean"] = Field("sum", description="sum: nats per example, beta 1 is the ELBO")
    kl_reduction: Literal["sum", "mean"] = Field("sum", description="over the dimensions of a level")
    free_bits: NotNegative = Field(0.0, description="lambda in nats; above 0 switches free bits on")
    free_bits_mode: Literal["per_dim", "per_sample", "total"] = Field(
        "per_dim", description="lambda is the floor of a dimension's batch mean, of each example's KL, or of the total"
    )
    free_bits_by_level: dict[str, NotNegative] = Field({}, description="lambda of single levels, instead of free_bits")

    def floor(self, level: str) -> float:
        """Free bits of a level, in nats."""
        return self.free_bits_by_level.get(level, self.free_bits)


class TrainSettings(SettingsTable):
    """The optimisation."""

    epochs: Size = Field(50, description="passes over the training split")
    batch_size: Count = Field(128, description="examples of a step")
    lr: Positive = Field(1e-3, description="learning rate at the start")
    lr_schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    lr_min: NotNegative = Field(1e-5, description="where cosine and plateau end")
    adam_betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), strict=False)  # TOML has lists
    weight_decay: NotNegative = 0.0
    gradient_clip: NotNegative = Field(1.0, description="largest norm of the gradient per example; 0 is off")
    early_stopping: bool = Field(True, description="stop when the monitored metric no longer improves")
    patience: Count = Field(10, description="epochs without a better value before an early stop")
    monitor: str = Field("val/loss_selection", description="metric that selects the best epoch")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of weights, batches and noise")
    device: str = Field("auto", pattern=r"^(auto|cpu|mps|cuda(:\d+)?)$", description="auto, cpu, cuda, cuda:1, mps")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="arithmetic of the network")
    engine: Literal["auto", "eager", "compile", "graph"] = Field(
        "auto", description="how a step runs; graph is one CUDA graph, which auto takes on CUDA"
    )
    save_minutes: NotNegative = Field(
        10.0, description="save last.pth after so many minutes within an epoch too; 0 saves after epochs only"
    )


class CheckpointSettings(SettingsTable):
    """What is kept beside the best, the final and the last."""

    every_epochs: int = Field(10, ge=0, description="keep vae_epoch_N.pth every N epochs; 0 keeps none")
    save_top_k: int = Field(
        3, ge=0, le=100, description="keep the best N epochs as best-loss-*, of a grammar also as best-seq_acc-*"
    )


class LogSettings(SettingsTable):
    """What is written while training."""

    every_n_steps: Count = Field(50, description="steps between two lines in metrics.jsonl within an epoch")
    images_every: int = Field(5, ge=0, description="epochs between pictures; 0 draws none but the last")
    tensorboard: bool = Field(False, description="write TensorBoard event files into the run's folder")
    wandb: Literal["auto", "online", "offline", "off"] = Field(
        "auto", description="Weights & Biases; auto is online where a login exists, else off"
    )
    wandb_project: str = Field("arc-controllable-generation", pattern=r"^[^/\\#?%:;,']{1,128}$")
    wandb_entity: str | None = Field(
        None, pattern=r"^[^/\\#?%:;,']{1,128}$", description="user or team; by default that of the login"
    )
    wandb_tags: tuple[str, ...] = Field(("experiment-0.2", "beta-vae", "encoder-training"), strict=False)


class Settings(SettingsTable):
    """Everything that decides a run."""

    data: DataSettings = DataSettings()
    model: AnyModel = Field(default_factory=GridSettings, description="architecture")
    objective: ObjectiveSettings = ObjectiveSettings()
    schedule: AnySchedule = Field(default_factory=LinearWarmup, description="schedule of beta")
    train: TrainSettings = TrainSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()

    def table(self) -> Table:
        """Plain nested dictionaries, ready for TOML or JSON; keys without a value or a say are left out."""
        table = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        if self.data.path is not None:
            del table["data"]["name"]
        if self.data.name != "equations" or self.data.path is not None:
            del table["data"]["recipe"]
        if self.data.of_strings:
            del table["data"]["augment"]
        if not self.objective.free_bits_by_level:
            del table["objective"]["free_bits_by_level"]
        return table


@dataclass(frozen=True)
class Layer:
    """Values from one place. `origins` gives the place of single keys where it is more exact than `origin`."""

    origin: str
    values: Table
    origins: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Resolved:
    """Settings, and where the value of each dotted key came from (`default` where absent)."""

    settings: Settings
    origins: Mapping[str, str]


# ------------------------------------------------------------------------------------------------------ presets


def preset_folder() -> Path:
    """The presets of the checkout where there is one, else those shipped with the package."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "presets"
    return checkout if (package.parent / "pyproject.toml").is_file() and checkout.is_dir() else package / "presets"


def preset_names() -> list[str]:
    """Names of the shipped presets, sorted."""
    return sorted(path.stem for path in preset_folder().glob("*.toml"))


def find_preset(name: str, beside: Path | None = None) -> Path:
    """The file of a preset: a shipped name, else a path to a TOML (relative to `beside`, or to here)."""
    shipped = preset_folder() / f"{name}.toml"
    if "/" not in name and "\\" not in name and is_file(shipped):
        return shipped
    path = (beside / name) if beside else Path(name)
    if is_file(path / "config.toml"):
        return path / "config.toml"
    if is_file(path):
        return path
    near = difflib.get_close_matches(name, preset_names(), n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InputError(
        f"preset {name!r}: neither a shipped preset nor a file",
        f"{hint}shipped: {', '.join(preset_names())}; or give the path of a TOML file",
    )


def read_toml(path: Path) -> Table:
    """A TOML file as nested dictionaries; InputError for whatever is wrong with it."""
    try:
        with open_regular(path) as file:
            raw = file.read(PRESET_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    if len(raw) > PRESET_BYTES:
        raise InputError(f"{path}: larger than {PRESET_BYTES // 1024} kB", "a preset is a few dozen lines of TOML")
    try:
        return _parsed(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text (byte {error.start})", "save the file as UTF-8") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid TOML: {error}") from error


def _parsed(text: str) -> Table:
    """TOML as nested dictionaries, in bounded time. ValueError, or RecursionError, for anything else."""
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > MOST_DOTS:
            raise ValueError(f"over {MOST_DOTS} dots (at line {number})")
    table = tomli.loads(text)
    below: list[Any] = [table]
    for _ in range(DEEPEST):
        held = [inner for one in below for inner in (one.values() if isinstance(one, dict) else one)]
        if any(isinstance(inner, int) and inner.bit_length() > 63 for inner in held):
            raise ValueError("a whole number of over 64 bits")
        below = [inner for inner in held if isinstance(inner, dict | list)]
    if below:
        raise ValueError(f"nested over {DEEPEST} levels")
    return table


def describe_preset(name: str) -> str:
    """The `description` line of a preset, or nothing."""
    return str(read_toml(find_preset(name)).get("description", ""))


def _preset_layers(name: str, beside: Path | None = None, seen: tuple[Path, ...] = ()) -> list[Layer]:
    """A preset and what it extends, the base first."""
    path = find_preset(name, beside)
    if path.resolve() in seen:
        chain = " -> ".join(p.name for p in (*seen, path))
        raise InputError(f"{path}: `extends` goes in a circle: {chain}")
    if len(seen) > MOST_BASES:
        raise InputError(f"{path}: `extends` goes on over {MOST_BASES} presets", "put them into one")
    values = read_toml(path)
    values.pop("description", None)
    base = values.pop("extends", None)
    if base is not None and not isinstance(base, str):
        raise InputError(f"{path}: extends: expected the name of a preset, got {base!r}")
    below = _preset_layers(base, path.parent, (*seen, path.resolve())) if base else []
    return [*below, Layer(_where(path), values)]


def _where(path: Path) -> str:
    if path.parent == preset_folder():
        return f"presets/{path.name}"
    return str(path)


# ------------------------------------------------------------------------------------------- environment, --set


def parse_value(text: str) -> Any:
    """A value as TOML would read it; what TOML does not know is a string, so that quotes may be left out."""
    try:
        return _parsed(f"value = {text}")["value"] if "\n" not in text else text
    except (ValueError, RecursionError):
        return text


def set_layer(assignments: Sequence[str]) -> Layer:
    """The layer of `--set dotted.key=value`, repeatable; a later one wins."""
    values: Table = {}
    origins: dict[str, str] = {}
    for text in assignments:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")) or len(key) > 200:
            raise InputError(f"--set {text[:80]!r}: expected dotted.key=value", "for example --set train.lr=0.0005")
        _put(values, key, parse_value(value.strip()), f"--set {key}")
        origins[key] = f"--set {key}"
    return Layer("--set", values, origins)


def environment_layer(environment: Mapping[str, str] | None = None) -> Layer:
    """The layer of variables such as `ARCVAE_TRAIN__LR=0.0005`: two underscores stand for the dot."""
    values: Table = {}
    origins: dict[str, str] = {}
    for name, text in sorted((os.environ if environment is None else environment).items()):
        if not name.startswith(ENVIRONMENT) or name in OWN_VARIABLES:
            continue
        key = name[len(ENVIRONMENT) :].lower().replace("__", ".")
        if not all(key.split(".")) or "." not in key:
            raise InputError(
                f"environment variable {name}: no setting has this name",
                f"a setting is written {ENVIRONMENT}TABLE__KEY, for example {ENVIRONMENT}TRAIN__LR",
            )
        _put(values, key, parse_value(text.strip()), name)
        origins[key] = name
    return Layer("environment", values, origins)


def flag_layer(flags: Mapping[str, tuple[str, Any]]) -> Layer:
    """The layer of flags: {flag: (dotted key, value)}; a flag whose value is None was not given."""
    values: Table = {}
    origins: dict[str, str] = {}
    for flag, (key, value) in flags.items():
        if value is not None:
            _put(values, key, value, flag)
            origins[key] = flag
    return Layer("flags", values, origins)


def _put(table: Table, key: str, value: Any, where: str) -> None:
    *parents, last = key.split(".")
    for name in parents:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise InputError(f"{where}: {key}: {name!r} was already given a value that is no table")
    table[last] = value


# ----------------------------------------------------------------------------------------------------- resolving


def resolve(preset: str | None = None, *layers: Layer) -> Resolved:
    """Settings from defaults, a preset with what it extends, and further layers, a later one winning.

    A further layer that names another schedule, or another model, voids the presets' keys of the table, so that the new
    one starts from its own defaults and not from numbers meant for another.
    """
    merged: Table = {}
    origins: dict[str, str] = {}
    for layer in _preset_layers(preset) if preset else []:
        _merge(merged, layer, origins)
    names = {table: _name(merged, table) or default for table, default in NAMED.items()}
    for table, held in names.items():
        chosen = [name for layer in layers if (name := _name(layer.values, table)) is not None]
        if chosen and chosen[-1] != held:
            merged.pop(table, None)
    for layer in layers:
        _merge(merged, layer, origins)
    origins = {key: origin for key, origin in origins.items() if _get(merged, key) is not None}
    for table, held in names.items():
        if isinstance(values := merged.get(table), dict):
            values.setdefault("name", held)
    try:
        settings = Settings.model_validate(merged)
    except ValidationError as error:
        raise _explain(error, merged, origins) from error
    _check(settings, origins)
    return Resolved(settings, origins)


NAMED = {"schedule": LinearWarmup().name, "model": DEFAULT_MODEL}
"""Tables whose keys depend on their `name`, and the name they have by default."""


def _name(values: Table, table: str) -> Any:
    found = values.get(table)
    return found.get("name") if isinstance(found, dict) else None


def _merge(into: Table, layer: Layer, origins: dict[str, str]) -> None:
    """Lay one layer over the tables so far. A schedule or a model whose `name` changes starts anew."""

    def lay(into: Table, values: Table, prefix: str) -> None:
        for key, value in values.items():
            dotted = f"{prefix}{key}"
            if not key or "." in key:  # in quotes: it would look like a key of another table
                raise InputError(f"{layer.origin}: {dotted or repr(key)}: unknown key {key!r}", "leave its quotes out")
            if isinstance(value, dict):
                below = into.get(key)
                if not value and below is None:
                    origins[dotted] = layer.origin
                if not isinstance(below, dict) or (dotted.startswith(tuple(NAMED)) and _renamed(below, value)):
                    below = into[key] = {}
                elif (
                    dotted == "model" and "arch" in value and value["arch"] != below.get("arch", GrammarSettings().arch)
                ):
                    for size in SIZES:  # meant for the other architecture
                        below.pop(size, None)
                lay(below, value, f"{dotted}.")
            else:
                into[key] = value
                origins[dotted] = layer.origins.get(dotted, layer.origin)

    lay(into, layer.values, "")


def _renamed(below: Table, above: Table) -> bool:
    return "name" in below and "name" in above and below["name"] != above["name"]


def _get(table: Any, key: str) -> Any:
    for name in key.split("."):
        table = table.get(name) if isinstance(table, dict) else None
    return table


def _check(settings: Settings, origins: Mapping[str, str]) -> None:
    """What single fields cannot see."""

    def refuse(key: str, what: str, fix: str) -> InputError:
        return InputError(f"{_label(origins.get(key, 'default'), key)}: {what}", fix)

    if settings.train.lr_min > settings.train.lr:
        raise refuse("train.lr_min", f"{settings.train.lr_min:g} is above train.lr {settings.train.lr:g}", "lower it")
    model, objective = settings.model, settings.objective
    if isinstance(model, GridSettings) and model.dropout > 0 and model.body == "plain":
        raise refuse("model.dropout", "the plain body has no dropout", "use model.body=residual, or leave it out")
    if unknown := [level for level in objective.free_bits_by_level if level not in model.levels]:
        raise refuse(
            f"objective.free_bits_by_level.{unknown[0]}",
            f"the model {model.name} has no such level",
            f"its levels: {', '.join(model.levels)}",
        )
    strings = settings.data.of_strings
    if strings is not None and strings != isinstance(model, GrammarSettings):
        if strings:
            raise refuse(
                "model.name",
                f"the model {model.name} is of grids, and {_strings_of(settings.data)} of derivations",
                "use --preset kusner_equations, minimal or another with model.name=grammar",
            )
        raise refuse(
            "data.name",
            f"the corpus {settings.data.name} is of grids, and the model grammar of derivations",
            "use --data equations, --data smiles or strings of your own with --grammar",
        )
    if isinstance(model, GrammarSettings):
        if objective.reduction == "mean":
            raise refuse(
                "objective.reduction",
                "a mean over the rules of a derivation would weigh each by its length, and beta with it",
                "use sum: nats per derivation, beta 1 is the ELBO",
            )
        if model.dropout > 0 and model.arch == "kusner":
            raise refuse("model.dropout", "arch = kusner has no residual blocks", "leave it out, or use arch=enhanced")
    if objective.kl_reduction == "mean" and len(model.levels) > 1:
        raise refuse(
            "objective.kl_reduction", f"a mean over each level of {model.name} leaves no common scale", "use sum"
        )
    if settings.train.monitor not in MONITORS:
        near = difflib.get_close_matches(settings.train.monitor, MONITORS, n=1)
        hint = f"did you mean {near[0]}? " if near else ""
        raise refuse(
            "train.monitor", f"no such metric {settings.train.monitor!r}", f"{hint}known: {', '.join(MONITORS)}"
        )
    missing = GRID_MONITORS if isinstance(model, GrammarSettings) else STRING_MONITORS
    if settings.train.monitor in missing:
        known = ", ".join(name for name in MONITORS if name not in missing)
        raise refuse("train.monitor", f"the model {model.name} has no {settings.train.monitor}", f"known: {known}")


def _strings_of(data: DataSettings) -> str:
    """A corpus of derivations, in words."""
    given = data.prod or data.input or data.path
    return f"what {given} holds is" if given else f"the corpus {data.name} is"


GRID_MONITORS = ("val/pixel_accuracy", "val/non_black_accuracy", "val/exact_accuracy")
STRING_MONITORS = ("val/token_acc", "val/seq_acc")
MONITORS = ("val/loss_selection", "val/loss_total", "val/loss_reconstruction", *GRID_MONITORS, *STRING_MONITORS)
"""Metrics that may select the best epoch; accuracies, of grids and of derivations, are better when higher."""


# -------------------------------------------------------------------------------------------------------- errors


def _explain(error: ValidationError, merged: Table, origins: Mapping[str, str]) -> InputError:
    """The first mistake as a person would put it, and how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    key = _path(first["loc"])
    # a key of the schedule that its new name made void is best blamed on who gave the key
    where = next((origins[k] for k in _upwards(key) if k in origins), None) or next(
        (o for k, o in origins.items() if k.startswith(f"{key}.")), "settings"
    )
    fix: str | None
    if first["type"] == "extra_forbidden":
        what, fix = _unknown(key, merged)
    elif first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        kind, known = ("model", list(MODEL_SETTINGS)) if key == "model" else ("schedule", list(SCHEDULES))
        key = f"{key}.name"
        where = origins.get(key, where)
        given = _get(merged, key)
        near = difflib.get_close_matches(str(given), known, n=1)
        what = f"{given} cannot stand here" if given in known else f"no {kind} {given!r}"
        known = [name for name in known if name != given]
        fix = (f"did you mean {near[0]}? " if near and near[0] != given else "") + f"{kind}s: {', '.join(known)}"
    elif first["type"] == "contradiction":
        key, what, fix = f"{key}.{first['ctx']['key']}", first["ctx"]["what"], first["ctx"]["fix"]
        where = origins.get(key, where)
    elif first["type"] == "value_error":
        what, fix = _expected(first), None
    else:
        what, fix = f"{_expected(first)}, got {first['input']!r:.60}", None
    if len(problems) > 1:
        more = f"{len(problems) - 1} more like it: " + ", ".join(_path(p["loc"]) for p in problems[1:4])
        fix = f"{fix}; {more}" if fix else more
    return InputError(f"{_label(where, key)}: {what}", fix)


def _label(where: str, key: str) -> str:
    """Where a value came from, and its key, said once."""
    return where if where.endswith(f" {key}") else f"{where}: {key}"


def _upwards(key: str) -> Iterator[str]:
    """A dotted key, and the tables or lists around it, the nearest first."""
    yield key
    while "." in key:
        key = key.rpartition(".")[0]
        yield key


def _path(loc: tuple[int | str, ...]) -> str:
    if loc[0] == "model":  # the second part is the name of the model, whose table it is
        loc = (*loc[:1], *loc[2:])
    return ".".join(map(str, loc))


def _unknown(key: str, merged: Table) -> tuple[str, str]:
    parent, _, last = key.rpartition(".")
    known = list(_keys(parent, merged))
    near = difflib.get_close_matches(last, known, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    what, table = "unknown key", parent.partition(".")[0]
    takes = "known here"
    if table in NAMED:
        name = _get(merged, f"{parent}.name") or DEFAULT_MODEL
        what, takes = f"the {table} {name} has no use for {last}", f"{name} takes"
        levels = ("global", "local") if name == "hierarchical" and table == "schedule" else ()
        if inner := [level for level in levels if last in _keys(f"{parent}.{level}", merged)]:
            hint = f"did you mean {' or '.join(f'{parent}.{level}.{last}' for level in inner)}? "
    # the key may stand under another table: say where
    elsewhere = [dotted for dotted in all_keys() if dotted.rpartition(".")[2] == last and dotted != key]
    if elsewhere and not near:
        hint = f"did you mean {elsewhere[0]}? "
    return what, f"{hint}{takes}: {', '.join(known)}"


def _keys(parent: str, merged: Table) -> Iterator[str]:
    if parent == "schedule" or parent.startswith("schedule."):
        kind = SCHEDULES.get(str(_get(merged, f"{parent}.name")))
        if kind:
            yield from (info.alias or name for name, info in kind.model_fields.items())
        return
    if parent == "model":
        name = _get(merged, "model.name") or DEFAULT_MODEL
        yield from MODEL_SETTINGS[name].model_fields
        return
    model: Any = Settings
    for name in parent.split(".") if parent else ():
        info = model.model_fields.get(name)
        model = info.annotation if info else None
    if isinstance(model, type) and issubclass(model, BaseModel):
        yield from model.model_fields


def all_keys() -> Iterator[str]:
    """Every dotted key of the tables but those of the schedules."""
    yield from dict.fromkeys(f"model.{name}" for kind in MODEL_SETTINGS.values() for name in kind.model_fields)
    for table, info in Settings.model_fields.items():
        if isinstance(info.annotation, type) and issubclass(info.annotation, SettingsTable):
            yield from (f"{table}.{name}" for name in info.annotation.model_fields)


def _expected(problem: Any) -> str:
    """Pydantic's message, with its few turns of phrase that do not speak to a person rewritten."""
    context = problem.get("ctx", {})
    match problem["type"]:
        case "literal_error":
            return f"expected one of {context['expected']}"
        case "greater_than":
            return f"expected a number above {context['gt']:g}"
        case "greater_than_equal":
            return f"expected a number of at least {context['ge']:g}"
        case "less_than":
            return f"expected a number below {context['lt']:g}"
        case "less_than_equal":
            return f"expected a number of at most {context['le']:g}"
        case "finite_number":
            return "expected a finite number"
        case "float_parsing" | "float_type":
            return "expected a number"
        case "int_parsing" | "int_type" | "int_from_float":
            return "expected a whole number"
        case "bool_parsing" | "bool_type":
            return "expected true or false"
        case "model_type" | "model_attributes_type" | "dict_type":
            return "expected a table"
        case "string_pattern_mismatch":
            return f"expected to match {context['pattern']}"
        case "value_error":
            return str(context.get("error", problem["msg"]))
        case _:
            return str(problem["msg"]).replace("Input should be", "expected")


# --------------------------------------------------------------------------------------------------------- scale


GRID_POSITIONS = 256
"""Cells of a grid's canvas."""


def elbo_scale(settings: Settings, positions: float = GRID_POSITIONS) -> float | None:
    """The factor from a run's beta to the beta that would weigh the same on the ELBO, or None where there is none.

    With summed terms it is 1. A mean over `positions` cells divides the reconstruction by their number, a mean over
    latent dimensions divides the KL by theirs (Higgins et al. 2017 call the ratio beta_norm). Focal loss and class
    weights are no likelihood, so nothing on the ELBO scale corresponds to their beta.
    """
    objective = settings.objective
    if objective.reconstruction != "cross_entropy" or objective.class_weights != "none":
        return None
    scale = float(positions) if objective.reduction == "mean" else 1.0
    if objective.kl_reduction == "mean" and isinstance(settings.model, GridSettings | GrammarSettings):
        return scale / settings.model.latent_dim
    return scale


def json_schema() -> Table:
    """The JSON schema of a preset, for editors."""
    schema = Settings.model_json_schema(by_alias=True)
    schema["title"] = "arcvae preset"
    schema["properties"] = {
        "extends": {"type": "string", "description": "name or path of a preset to start from"},
        "description": {"type": "string", "description": "one line for `arcvae presets list`"},
        **schema["properties"],
    }
    schedule = schema["properties"]["schedule"]
    del schedule["discriminator"]
    schedule["anyOf"] = schedule.pop("oneOf")  # without a name, which what it extends may give, more than one fits
    return schema
