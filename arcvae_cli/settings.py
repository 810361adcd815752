"""The settings of a run: typed, frozen tables, and what must hold between them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator
from pydantic_core import PydanticCustomError

from arcvae_cli.errors import nearest
from arcvae_cli.schedules import AnySchedule
from arcvae_cli.schedules.open import LinearWarmup
from arcvae_cli.schedules.registry import schedule_keys

Table = dict[str, Any]

GridCorpusName = Literal["arc", "arc-raw", "shapes"]
StringCorpusName = Literal["equations", "smiles"]
GRID_CORPORA: tuple[str, ...] = get_args(GridCorpusName)
STRING_CORPORA: tuple[str, ...] = get_args(StringCorpusName)
CORPORA = (*GRID_CORPORA, *STRING_CORPORA)  # anything else given as `--data` is a path

Contradiction = tuple[str, str, str]  # a key, what is wrong with its value, and how to mend it


class SettingsTable(BaseModel):
    """A table of settings: frozen, unknown keys forbidden, finite numbers only, no conversion of `true` or "3"."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


Count = Annotated[int, Field(ge=1, le=2**63 - 1)]
Natural = Annotated[int, Field(ge=0, le=2**63 - 1)]
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
    path: Path | None = Field(None, strict=False, description="own corpus: .npz, .npy, ARC JSON, file of strings")
    size: Count = Field(100_000, description="examples of a built corpus")
    seed: Natural = Field(0, description="seed of a built corpus")
    augment: bool = Field(True, description="random symmetries and colour permutations of every batch")
    limit: Count | None = Field(None, description="training examples at most; an eighth as many validate")
    grammar: str | None = Field(None, description="grammar of the strings: a file, or equations, smiles")
    input: Path | None = Field(None, strict=False, description="strings of the grammar, one a line")
    recipe: Literal["uniform", "kusner"] = Field("uniform", description="how equations are drawn")
    max_rules: Count | None = Field(None, description="longest derivation in rules; by default that of the input")
    prod: Path | None = Field(None, strict=False, description="derivations: .npy of rule ids (N, T)")
    masks: Path | None = Field(None, strict=False, description="masks of derivations: .npy, bit-packed (N, T, bytes)")
    pad_id: int | None = Field(None, ge=-1, le=2**63 - 1, description="padding id of derivations; detected by default")

    @property
    def of_strings(self) -> bool | None:
        """Whether the corpus is of derivations, not of grids; None where only its file can tell."""
        if self.grammar is not None or self.input is not None or self.prod is not None:
            return True
        return None if self.path is not None else self.name in STRING_CORPORA

    @model_validator(mode="after")
    def _consistent(self) -> DataSettings:
        for key, problem, fix in self._contradictions():
            raise PydanticCustomError("contradiction", "{what}", {"key": key, "what": problem, "fix": fix})
        return self

    def _contradictions(self) -> Iterator[Contradiction]:
        sources = [key for key in ("path", "input", "prod") if getattr(self, key) is not None]
        for second in sources[1:]:
            yield second, f"data.{sources[0]} is given too", "leave one of them out"
        for key in ("masks", "pad_id"):
            if getattr(self, key) is not None and self.prod is None:
                yield key, f"{key} without derivations (data.prod)", "give --prod too, or leave it out"
        if self.prod is not None and self.masks is None and self.grammar is None:
            yield "prod", "ids alone do not say which rules compete", "give --masks, or --grammar"
        if self.input is not None and self.grammar is None and self.name not in STRING_CORPORA:
            yield "input", "strings need a grammar", "give --grammar, or one of: equations, smiles"
        if self.recipe == "kusner" and self.grammar is None and (sources or self.name != "equations"):
            yield "recipe", "kusner is a recipe of the corpus equations", "use data.name=equations, or uniform"


class ModelSettings(SettingsTable):
    """What every model has. `levels`: the names of its levels of latents, from the top down."""

    levels: ClassVar[tuple[str, ...]] = ("z",)
    kind: ClassVar[str] = "grids"

    name: str
    posterior: Literal["softplus", "logvar"] = Field("softplus", description="output of the second head")
    logvar_min: float = Field(-12.0, ge=-30, le=0, description="floor of the posterior's log variance")
    logvar_max: float = Field(4.0, ge=0, le=20, description="ceiling of the posterior's log variance")
    dropout: Fraction = Field(0.0, description="of the residual blocks; body plain and arch kusner have none")


class GridSettings(ModelSettings):
    """The model of grids with one vector of latents."""

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
    condition_dropout: float = Field(0.1, ge=0, le=1, description="share of training grids without any condition")


KUSNER = {
    "encoder_hidden": 435,
    "encoder_kernel": [9, 9, 11],
    "encoder_channels": [9, 9, 10],
    "decoder_hidden": 501,
    "decoder_dropout": 0.0,
}
"""Sizes of `arch = kusner` where none are given; those of `enhanced` are the defaults."""

Kernels = Annotated[tuple[Kernel, ...], Field(strict=False)]
Widths = Annotated[tuple[Width, ...], Field(strict=False)]


class GrammarSettings(ModelSettings):
    """The model of derivations of a context-free grammar."""

    kind: ClassVar[str] = "strings"
    name: Literal["grammar"] = "grammar"
    latent_dim: Width = Field(56, description="dimensions of the latent code")
    arch: Literal["kusner", "enhanced"] = Field("enhanced", description="layers around the code")
    encoder_hidden: Width = Field(256, description="channels (enhanced) or width of the dense layer (kusner: 435)")
    encoder_conv_layers: Depth = Field(3, description="convolutions over the steps of a derivation")
    encoder_kernel: Kernel | Kernels = Field((3, 5, 7), description="width of all or each convolution")
    encoder_channels: Width | Widths | None = Field(None, description="channels of all or each convolution of kusner")
    decoder_hidden: Width = Field(384, description="units of a GRU layer (kusner: 501)")
    decoder_layers: Depth = Field(3, description="GRU layers")
    decoder_dropout: Fraction = Field(0.2, description="between the GRU layers (kusner: 0)")
    posterior_noise: float = Field(1.0, ge=1e-4, le=1, description="factor on the sampled noise; 0.01 in the 2017 code")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        kusner = isinstance(values, Mapping) and values.get("arch") == "kusner"
        return {**KUSNER, **values} if kusner else values

    @model_validator(mode="after")
    def _agree(self) -> GrammarSettings:
        layers = self.encoder_conv_layers
        for key, given in (("encoder_kernel", self.kernels), ("encoder_channels", self.channels)):
            if len(given) != layers:
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


SIZES = tuple(name for name in GrammarSettings.model_fields if name.startswith(("encoder_", "decoder_")))  # of `arch`
_MODELS: tuple[type[ModelSettings], ...] = (GridSettings, HierarchicalSettings, GrammarSettings)
MODEL_SETTINGS = {kind.model_fields["name"].default: kind for kind in _MODELS}

DEFAULT_MODEL = "grid"
NAMED = {"schedule": "linear_warmup", "model": DEFAULT_MODEL}  # the tables with a `name`, and its default


def _model_name(table: Any) -> str:
    held = table if isinstance(table, Mapping) else {"name": getattr(table, "name", DEFAULT_MODEL)}
    return str(held.get("name", DEFAULT_MODEL))


AnyModel = Annotated[
    Annotated[GridSettings, Tag("grid")]
    | Annotated[HierarchicalSettings, Tag("hierarchical")]
    | Annotated[GrammarSettings, Tag("grammar")],
    Discriminator(_model_name),
]


class ObjectiveSettings(SettingsTable):
    """reconstruction + beta * KL."""

    reconstruction: Literal["cross_entropy", "focal"] = "cross_entropy"
    focal_gamma: NotNegative = Field(2.0, description="focusing exponent of the focal loss")
    class_weights: Literal["none", "inverse", "sqrt_inverse", "balanced"] = "none"
    reduction: Literal["sum", "mean"] = Field("sum", description="sum: nats per example, beta 1 is the ELBO")
    kl_reduction: Literal["sum", "mean"] = Field("sum", description="over the dimensions of a level")
    free_bits: NotNegative = Field(0.0, description="lambda in nats; above 0 switches free bits on")
    free_bits_mode: Literal["per_dim", "per_sample", "total"] = Field(
        "per_dim", description="what lambda is a floor of"
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
    engine: Literal["auto", "eager", "compile", "graph"] = Field("auto", description="how a step runs")
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = Field(
        "auto", description="CPU threads; auto times one and all before the first step and takes the faster"
    )
    save_minutes: NotNegative = Field(10.0, description="minutes between saves within an epoch; 0 for none")


class CheckpointSettings(SettingsTable):
    """What is kept beside the best, the final and the last."""

    every_epochs: Natural = Field(10, description="keep vae_epoch_N.pth every N epochs; 0 keeps none")
    save_top_k: int = Field(3, ge=0, le=100, description="best epochs kept as best-loss-*, of a grammar best-seq_acc-*")


WANDB_NAME = r"^[^/\\#?%:;,']{1,128}$"


class LogSettings(SettingsTable):
    """What is written while training."""

    every_n_steps: Count = Field(50, description="steps between two lines in metrics.jsonl within an epoch")
    images_every: Natural = Field(5, description="epochs between pictures; 0 draws none but the last")
    tensorboard: bool = Field(False, description="write TensorBoard event files into the run's folder")
    wandb: Literal["auto", "online", "offline", "off"] = Field("auto", description="auto: where a login exists")
    wandb_project: str = Field("arc-controllable-generation", pattern=WANDB_NAME)
    wandb_entity: str | None = Field(None, pattern=WANDB_NAME, description="user or team; by default that of the login")
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


GRID_MONITORS = ("val/pixel_accuracy", "val/non_black_accuracy", "val/exact_accuracy")
STRING_MONITORS = ("val/token_acc", "val/seq_acc")
MONITORS = ("val/loss_selection", "val/loss_total", "val/loss_reconstruction", *GRID_MONITORS, *STRING_MONITORS)
"""Metrics that may select the best epoch."""


def contradictions(settings: Settings) -> Iterator[Contradiction]:
    """What is wrong between tables."""
    data, model, objective, train = settings.data, settings.model, settings.objective, settings.train
    grammar = isinstance(model, GrammarSettings)
    if train.lr_min > train.lr:
        yield "train.lr_min", f"{train.lr_min:g} is above train.lr {train.lr:g}", "lower it"
    if isinstance(model, GridSettings) and model.dropout > 0 and model.body == "plain":
        yield "model.dropout", "the plain body has no dropout", "use model.body=residual, or leave it out"
    if isinstance(model, GrammarSettings) and model.dropout > 0 and model.arch == "kusner":
        yield "model.dropout", "arch = kusner has no residual blocks", "leave it out, or use arch=enhanced"
    for level in objective.free_bits_by_level.keys() - set(model.levels):
        fix = f"its levels: {', '.join(model.levels)}"
        yield f"objective.free_bits_by_level.{level}", f"the model {model.name} has no such level", fix
    if data.of_strings is True and not grammar:
        source = data.prod or data.input or data.path or f"the corpus {data.name}"
        fix = "use --preset minimal or another with model.name=grammar"
        yield "model.name", f"the model {model.name} needs a grid corpus, but {source} contains strings", fix
    if data.of_strings is False and grammar:
        fix = "use --data equations, --data smiles or strings of your own with --grammar"
        yield "data.name", f"the model grammar needs strings, but the corpus {data.name} contains grids", fix
    if grammar and objective.reduction == "mean":
        yield "objective.reduction", "a mean over the rules of a derivation would weigh each by its length", "use sum"
    if objective.kl_reduction == "mean" and len(model.levels) > 1:
        yield "objective.kl_reduction", f"a mean over each level of {model.name} leaves no common scale", "use sum"
    known = [name for name in MONITORS if name not in (GRID_MONITORS if grammar else STRING_MONITORS)]
    if train.monitor not in known:
        fix = f"{nearest(train.monitor, known)}known: {', '.join(known)}"
        yield "train.monitor", f"the model {model.name} has no metric {train.monitor!r}", fix


TABLES: dict[str, Any] = {name: info.annotation for name, info in Settings.model_fields.items() if name not in NAMED}


def known_keys(path: Sequence[str], tables: Table) -> list[str]:
    """The keys of the table at a path; of a schedule or a model, those that its name in `tables` has."""
    match list(path):
        case ["schedule", *inner]:
            return schedule_keys(tables["schedule"], inner)
        case ["model"]:
            return list(MODEL_SETTINGS[tables["model"]["name"]].model_fields)
        case [table]:
            return list(TABLES[table].model_fields)
    return list(Settings.model_fields)


def all_keys() -> list[str]:
    """Every dotted key of the tables but those of the schedules."""
    models = dict.fromkeys(f"model.{name}" for kind in MODEL_SETTINGS.values() for name in kind.model_fields)
    return [*models, *(f"{table}.{name}" for table, kind in TABLES.items() for name in kind.model_fields)]


GRID_POSITIONS = 256  # cells of a grid's canvas


def elbo_scale(settings: Settings, positions: float = GRID_POSITIONS) -> float | None:
    """The factor from a run's beta to the beta that would weigh the same on the ELBO, or None where there is none.

    With summed terms it is 1. A mean over `positions` cells divides the reconstruction by their number, a mean over
    latent dimensions the KL by theirs (Higgins et al. 2017). Focal loss and class weights have no ELBO.
    """
    objective = settings.objective
    if objective.reconstruction != "cross_entropy" or objective.class_weights != "none":
        return None
    scale = float(positions) if objective.reduction == "mean" else 1.0
    if objective.kl_reduction == "mean" and isinstance(settings.model, GridSettings | GrammarSettings):
        return scale / settings.model.latent_dim
    return scale
