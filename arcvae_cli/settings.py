"""The settings of a run: typed, frozen tables, and the checks between their keys."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    WrapValidator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from typing_extensions import Self

from arcvae_cli import plugins
from arcvae_cli.errors import nearest
from arcvae_cli.schedules import SCHEDULES, AnySchedule, Feedback
from arcvae_cli.schedules.open import LinearWarmup

Table = dict[str, Any]

GridCorpusName = Literal["arc", "arc-raw", "arc30", "shapes", "digits"]
StringCorpusName = Literal["equations", "smiles", "moses"]
GRID_CORPORA: tuple[str, ...] = get_args(GridCorpusName)
STRING_CORPORA: tuple[str, ...] = get_args(StringCorpusName)
CORPORA = (*GRID_CORPORA, *STRING_CORPORA)  # anything else given as `--data` is a path


class SettingsTable(BaseModel):
    """A table of settings: frozen, unknown keys forbidden, finite numbers only, no conversion of `true` or "3"."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)

    def contradictions(self) -> Iterator[tuple[str, str, str]]:
        """What is wrong between keys of this table: the key, the problem and the fix."""
        yield from ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for key, problem, fix in self.contradictions():
            raise PydanticCustomError("contradiction", "{what}", {"key": key, "what": problem, "fix": fix})
        return self


def _either(text: str) -> WrapValidator:  # one sentence, not a fault for each alternative of a union
    def check(value: Any, handler: Any) -> Any:
        try:
            return handler(value)
        except ValidationError:
            raise PydanticCustomError("either", "should be {text}", {"text": text}) from None

    return WrapValidator(check)


SIDES = 3, 64  # least and most rows and columns of a canvas
CANVAS_KEYS = ("canvas", "classes", "background", "outside")  # of `data`: what a corpus of grids is put on


def _sides(value: Any) -> Any:  # "12x20", "28" or 28 as "12x20" or "28x28"
    found = re.fullmatch(r"(\d{1,2})(?:x(\d{1,2}))?", str(value))
    sides = (int(found[1]), int(found[2] or found[1])) if found else ()
    if not sides or not all(SIDES[0] <= side <= SIDES[1] for side in sides):
        raise PydanticCustomError("canvas", "should be HxW or one number for both, each 3 to 64")
    return f"{sides[0]}x{sides[1]}"


Sides = Annotated[str, BeforeValidator(_sides)]
Class = Annotated[Literal["none"] | Annotated[int, Field(ge=0, le=255)], _either("a class from 0 to 255, or none")]
Count = Annotated[int, Field(ge=1, le=2**63 - 1)]
Natural = Annotated[int, Field(ge=0, le=2**63 - 1)]
Width = Annotated[int, Field(ge=1, le=4096)]  # above, a single layer takes gigabytes
Widths = Annotated[tuple[Width, ...], Field(strict=False, min_length=1)]
CHANNELS = _either("a list of integers from 1 to 4096")
Kernel = Annotated[int, Field(ge=1, le=255)]
Threads = Annotated[Literal["auto"] | Annotated[int, Field(ge=1, le=1024)], _either("auto or 1 to 1024")]
Positive = Annotated[float, Field(gt=0, le=1e30)]  # which 32 bits hold
NotNegative = Annotated[float, Field(ge=0, le=1e30)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
CorpusName = SerializeAsAny[Annotated[Literal[GridCorpusName, StringCorpusName], plugins.or_plugin("corpora", CORPORA)]]
Monitor = Annotated[str, WrapValidator(lambda name, check: check(name).replace("non_black_", "foreground_"))]  # of old
WandbName = Annotated[str, Field(pattern=r"^[^/\\#?%:;,']{1,128}$")]


class DataSettings(SettingsTable):
    """The corpus and how it is used."""

    name: CorpusName = Field("arc", description="name of a corpus")
    path: Path | None = Field(None, strict=False, description="your own: .npz, .npy, ARC .json, .txt, .png, a folder")
    size: int = Field(100_000, ge=10, le=2_000_000, description="number of examples of a built corpus")
    seed: int = Field(0, ge=0, le=2**32 - 1, description="seed of a built corpus")
    canvas: Sides | None = Field(None, description="HxW that grids are padded to; by default their size")
    classes: int | None = Field(None, ge=2, le=256, description="number of classes; by default the largest plus 1")
    background: Class | None = Field(None, description="class of empty cells, or none; 0 by default")
    outside: Literal["background", "class"] | None = Field(None, description="class of cells outside of padded grids")
    augment: bool | None = Field(None, description="augment batches; by default for ARC and shapes, not for your own")
    symmetries: bool = Field(True, description="augmentation turns and mirrors grids")
    permute_classes: bool = Field(True, description="augmentation permutes the classes but for the background")
    limit: Count | None = Field(None, description="training examples at most; an eighth as many validate")
    grammar: str | None = Field(
        None, description="grammar of the strings: a file, equations, smiles, smiles_tokens, or smiles_kekule"
    )
    input: Path | None = Field(None, strict=False, description="strings of the grammar, one per line")
    recipe: Literal["uniform", "kusner"] = Field("uniform", description="equations: uniform sample, or the 2017 list")
    max_rules: Count | None = Field(None, description="longest derivation in rules; by default that of the input")
    prod: Path | None = Field(None, strict=False, description="derivations: .npy of rule ids (N, T)")
    masks: Path | None = Field(None, strict=False, description="masks of derivations: .npy, bit-packed (N, T, bytes)")
    pad_id: int | None = Field(None, ge=-1, le=2**63 - 1, description="padding id; by default -1, or the last rule")

    @property
    def of_strings(self) -> bool | None:
        """Whether the corpus contains strings, not grids; None where only its file can tell."""
        if self.grammar is not None or self.input is not None or self.prod is not None:
            return True
        return None if self.path is not None or self.name not in CORPORA else self.name in STRING_CORPORA

    @property
    def is_moses(self) -> bool:
        """Whether the corpus is MOSES, not a file of the user's."""
        return self.name == "moses" and self.path is None and self.prod is None

    @property
    def sides(self) -> tuple[int, int] | None:
        """Rows and columns of `canvas`."""
        return None if self.canvas is None else (int(self.canvas.split("x")[0]), int(self.canvas.split("x")[1]))

    def contradictions(self) -> Iterator[tuple[str, str, str]]:
        if self.classes is not None and isinstance(self.background, int) and self.background >= self.classes:
            yield "background", f"{self.background} is not below data.classes {self.classes}", "lower it, or use none"
        sources = [key for key in ("path", "input", "prod") if getattr(self, key) is not None]
        for second in sources[1:]:
            yield second, f"cannot be combined with data.{sources[0]}", "remove one of them"
        for key in ("masks", "pad_id"):
            if getattr(self, key) is not None and self.prod is None:
                yield key, "needs data.prod", "give --prod too, or remove it"
        if self.prod is not None and self.masks is None and self.grammar is None:
            yield "prod", "needs masks or a grammar", "give --masks or --grammar"
        if self.input is not None and self.grammar is None and self.name not in STRING_CORPORA:
            yield "input", "needs a grammar", "give --grammar, or --data equations or smiles"
        if self.input is not None and self.name == "moses":
            yield "input", "not used by the corpus moses", "use --data smiles"
        if self.recipe == "kusner" and self.grammar is None and (sources or self.name != "equations"):
            yield "recipe", "kusner is a recipe of the corpus equations", "use data.name=equations or recipe=uniform"


class ModelSettings(SettingsTable):
    """The settings of every model. `levels`: the names of its levels of latents, from the top down."""

    levels: ClassVar[tuple[str, ...]] = ("z",)
    kind: ClassVar[str] = "grids"

    name: str
    posterior: Literal["softplus", "logvar"] = Field("softplus", description="output of the second head")
    logvar_min: float = Field(-12.0, ge=-30, le=0, description="floor of the posterior's log variance")
    logvar_max: float = Field(4.0, ge=0, le=20, description="ceiling of the posterior's log variance")
    dropout: Fraction = Field(0.0, description="dropout of the residual blocks; body plain and arch kusner have none")


class DecoderSettings(ModelSettings):
    """What the models of this package share: how the decoder factorises p(x|z)."""

    decoder: Literal["factorised", "autoregressive"] = Field("factorised", description="p(x|z) by position or in order")
    input_dropout: Fraction = Field(0.0, description="share of previous classes hidden from an autoregressive decoder")
    skip_connections: bool = Field(True, description="z to every layer of an autoregressive decoder, not to one")
    mean_norm: NotNegative = Field(0.0, description="scale of batch-normalised posterior means, 0.6 in BN-VAE; 0: off")

    @property
    def least_kl(self) -> float:
        """Nats of KL that `mean_norm` leaves in the mean of a training batch, at least: scale^2 / 2 a dimension."""
        dimensions: int = getattr(self, "global_dim" if "global" in self.levels else "latent_dim")
        return 0.5 * self.mean_norm**2 * dimensions

    def contradictions(self) -> Iterator[tuple[str, str, str]]:
        yield from super().contradictions()
        if self.decoder == "factorised" and self.input_dropout > 0:
            yield "input_dropout", "a factorised decoder sees no classes", "remove it, or use decoder=autoregressive"


class GridSettings(DecoderSettings):
    """The model of grids with one latent vector."""

    name: Literal["grid"] = "grid"
    latent_dim: Width = Field(10, description="dimensions of the latent vector")
    body: Literal["plain", "residual"] = Field("plain", description="layers around the latent vector")
    encoder_channels: Annotated[Widths | None, CHANNELS] = Field(None, description="of the convolutions, from the grid")
    decoder_channels: Annotated[Widths | None, CHANNELS] = Field(None, description="from the smallest map to the grid")

    def contradictions(self) -> Iterator[tuple[str, str, str]]:
        yield from super().contradictions()
        if self.body == "plain" and self.dropout > 0:
            yield "dropout", "body = plain has no dropout", "remove it, or use body=residual"
        if self.body == "residual" and self.decoder_channels is not None:
            yield "decoder_channels", "the decoder of body = residual has none", "remove it, or use body=plain"


class HierarchicalSettings(DecoderSettings):
    """The conditional model of grids with a global vector and a local map of latents."""

    levels: ClassVar[tuple[str, ...]] = ("global", "local")

    name: Literal["hierarchical"] = "hierarchical"
    global_dim: Width = Field(16, description="dimensions of the global vector")
    local_channels: Width = Field(4, description="channels of the local map")
    local_size: int = Field(8, ge=1, le=64, description="rows and columns of the local map, at most")
    condition_dropout: float = Field(0.1, ge=0, le=1, description="share of training grids without conditions")


KUSNER = {"encoder_hidden": 435, "encoder_kernel": [9, 9, 11], "encoder_channels": [9, 9, 10]}
KUSNER |= {"decoder_hidden": 501, "decoder_dropout": 0.0}
"""Sizes of `arch = kusner` where none are given; those of `enhanced` are the defaults."""

Kernels = Annotated[tuple[Kernel, ...], Field(strict=False)]
SIZE = _either("an integer or a list, of kernels from 1 to 255, of channels from 1 to 4096")


class GrammarSettings(DecoderSettings):
    """The model of derivations of a context-free grammar."""

    kind: ClassVar[str] = "strings"
    name: Literal["grammar"] = "grammar"
    latent_dim: Width = Field(56, description="dimensions of the latent vector")
    arch: Literal["kusner", "enhanced"] = Field("enhanced", description="layers around the latent vector")
    encoder_hidden: Width = Field(256, description="channels (enhanced) or width of the dense layer (kusner: 435)")
    encoder_conv_layers: int = Field(3, ge=1, le=64, description="convolutions over the steps of a derivation")
    encoder_kernel: Annotated[Kernel | Kernels, SIZE] = Field((3, 5, 7), description="width of all or each convolution")
    encoder_channels: Annotated[Width | Widths | None, SIZE] = Field(None, description="of each convolution of kusner")
    decoder_hidden: Width = Field(384, description="units of a GRU layer (kusner: 501)")
    decoder_layers: int = Field(3, ge=1, le=64, description="GRU layers")
    decoder_dropout: Fraction = Field(0.2, description="dropout between the GRU layers (kusner: 0)")
    posterior_noise: float = Field(1.0, ge=1e-4, le=1, description="factor on the sampled noise; 0.01 in the 2017 code")

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, values: Any) -> Any:
        kusner = isinstance(values, Mapping) and values.get("arch") == "kusner"
        return {**KUSNER, **values} if kusner else values

    def contradictions(self) -> Iterator[tuple[str, str, str]]:
        yield from super().contradictions()
        layers, enhanced = self.encoder_conv_layers, self.arch == "enhanced"
        for key, given in (("encoder_kernel", self.kernels), ("encoder_channels", self.channels)):
            if len(given) != layers:
                yield key, f"{len(given)} numbers for {layers} layers", "change it or model.encoder_conv_layers"
        if enhanced and self.encoder_channels is not None:
            yield "encoder_channels", "arch = enhanced has encoder_hidden channels", "remove it, or use arch=kusner"
        if enhanced and any(kernel % 2 == 0 for kernel in self.kernels):
            yield "encoder_kernel", "arch = enhanced needs odd kernels, which keep the length", "use odd numbers"
        if not enhanced and self.dropout > 0:
            yield "dropout", "arch = kusner has no residual blocks", "remove it, or use arch=enhanced"

    @property
    def kernels(self) -> tuple[int, ...]:  # of each convolution
        given = self.encoder_kernel
        return given if isinstance(given, tuple) else (given,) * self.encoder_conv_layers

    @property
    def channels(self) -> tuple[int, ...]:
        given = self.encoder_hidden if self.encoder_channels is None else self.encoder_channels
        return given if isinstance(given, tuple) else (given,) * self.encoder_conv_layers


Models = GridSettings | HierarchicalSettings | GrammarSettings
MODEL_SETTINGS: dict[str, type[ModelSettings]] = {kind.model_fields["name"].default: kind for kind in get_args(Models)}
SIZES = tuple(name for name in GrammarSettings.model_fields if name.startswith(("encoder_", "decoder_")))  # of `arch`
NAMED = {"schedule": "linear_warmup", "model": "grid"}  # the tables with a `name`, and its default
AnyModel = SerializeAsAny[Annotated[Models, Field(discriminator="name"), plugins.or_plugin("models", MODEL_SETTINGS)]]
AnyBeta = SerializeAsAny[Annotated[AnySchedule, plugins.or_plugin("schedules", SCHEDULES)]]


class ObjectiveSettings(SettingsTable):
    """reconstruction + beta * KL."""

    reconstruction: Literal["cross_entropy", "focal"] = "cross_entropy"
    focal_gamma: NotNegative = Field(2.0, description="focusing exponent of the focal loss")
    class_weights: Literal["none", "inverse", "sqrt_inverse", "balanced"] = "none"
    reduction: Literal["sum", "mean"] = Field("sum", description="sum: nats per example, beta 1 is the ELBO")
    kl_reduction: Literal["sum", "mean"] = Field("sum", description="over the dimensions of a level")
    free_bits: NotNegative = Field(0.0, description="lambda in nats; above 0 switches free bits on")
    free_bits_mode: Literal["per_dim", "per_sample", "total"] = Field("per_dim", description="KL that lambda bounds")
    free_bits_by_level: dict[str, NotNegative] = Field({}, description="free_bits by level, where it differs")
    mmd: NotNegative = Field(0.0, description="weight of the discrepancy of all codes to the prior (InfoVAE)")
    prior_draws: Fraction = Field(0.0, description="share of examples decoded from a draw of the prior too (GSNN)")
    importance_samples: int = Field(1, ge=1, le=1000, description="codes of an example; above 1 the loss is the IWAE's")
    importance_gradient: Literal["dreg", "iwae"] = Field("dreg", description="dreg: doubly reparameterised")

    def floor(self, level: str) -> float:  # of a level, in nats
        return self.free_bits_by_level.get(level, self.free_bits)

    def contradictions(self) -> Iterator[tuple[str, str, str]]:
        weighted = self.reconstruction == "focal" or self.class_weights != "none"
        clamped = any((self.free_bits, *self.free_bits_by_level.values()))
        for wrong, problem, fix in (
            (weighted, "needs p(x|z), not focal loss or class weights", "use cross_entropy, class_weights=none"),
            ("mean" in (self.reduction, self.kl_reduction), "needs sums of log densities", "use sum for reductions"),
            (clamped, "has no KL that free bits could clamp", "remove free_bits"),
            (self.mmd > 0.0, "has no independent codes for mmd", "remove one of them"),
            (self.prior_draws > 0.0, "has no codes of the prior for prior_draws", "remove one of them"),
        ):
            if wrong and self.importance_samples > 1:
                yield "importance_samples", f"the bound of {self.importance_samples} samples {problem}", fix


class TrainSettings(SettingsTable):
    """Optimisation."""

    epochs: int = Field(50, ge=1, le=1_000_000, description="passes over the training split")
    batch_size: Count = Field(128, description="examples of a step")
    lr: Positive = Field(1e-3, description="learning rate at the start")
    lr_schedule: Literal["cosine", "plateau", "constant"] = "cosine"
    lr_min: NotNegative = Field(1e-5, description="learning rate at the end of cosine and plateau")
    adam_betas: tuple[Fraction, Fraction] = Field((0.9, 0.999), strict=False)  # TOML has lists
    weight_decay: NotNegative = 0.0
    gradient_clip: NotNegative = Field(1.0, description="maximum gradient norm per example; 0 is off")
    early_stopping: bool = Field(True, description="stop when the monitored metric no longer improves")
    encoder_steps: Natural = Field(0, description="steps of the encoder alone before each of all, while I(x; z) rises")
    patience: Count = Field(10, description="epochs without a better value before an early stop")
    monitor: Monitor = Field("val/loss_selection", description="metric that selects the best epoch")
    seed: int = Field(0, ge=0, le=2**31 - 1, description="seed of weights, batches and noise")
    device: str = Field("auto", description="auto, cpu, cuda, cuda:1, mps")
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="arithmetic of the network")
    engine: Literal["auto", "eager", "compile", "graph"] = Field("auto", description="how a step runs")
    threads: Threads = Field("auto", description="CPU threads; auto times one and all and takes the faster")
    save_minutes: NotNegative = Field(10.0, description="minutes between saves within an epoch; 0 for none")

    def contradictions(self) -> Iterator[tuple[str, str, str]]:
        if self.lr_min > self.lr:
            yield "lr_min", f"{self.lr_min:g} is above train.lr {self.lr:g}", "lower it"
        if not re.fullmatch(r"auto|cpu|mps|cuda(:\d+)?", self.device):
            yield "device", f"unknown device {self.device!r}", "use auto, cpu, mps, cuda or cuda:N"


class CheckpointSettings(SettingsTable):
    """Checkpoints beside the best, the final and the last."""

    every_epochs: Natural = Field(10, description="keep vae_epoch_N.pth every N epochs; 0 keeps none")
    save_top_k: int = Field(3, ge=0, le=100, description="best epochs kept as best-loss-*, of a grammar best-seq_acc-*")


class LogSettings(SettingsTable):
    """Logging and pictures."""

    every_n_steps: Count = Field(50, description="steps between lines of metrics.jsonl")
    images_every: Natural = Field(5, description="epochs between pictures; 0: only after the last")
    tensorboard: bool = Field(False, description="write TensorBoard event files into the run's folder")
    recorders: tuple[str, ...] = Field((), strict=False, description="loggers of your own, as module:Class")
    wandb: Literal["auto", "online", "offline", "off"] = Field("auto", description="auto: where a login exists")
    wandb_project: WandbName = "arc-controllable-generation"
    wandb_entity: WandbName | None = Field(None, description="user or team; by default that of the login")
    wandb_tags: tuple[str, ...] = Field(("experiment-0.2", "beta-vae", "encoder-training"), strict=False)


class Settings(SettingsTable):
    """All settings of a run."""

    data: DataSettings = DataSettings()
    model: AnyModel = Field(default_factory=GridSettings, description="architecture")
    objective: ObjectiveSettings = ObjectiveSettings()
    schedule: AnyBeta = Field(default_factory=LinearWarmup, description="schedule of beta")
    train: TrainSettings = TrainSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()

    @model_validator(mode="before")
    @classmethod
    def _fill(cls, tables: Any) -> Any:
        given = {key: tables[key] for key in NAMED if isinstance(tables.get(key), Mapping)}
        return {**tables, **{key: {"name": NAMED[key], **table} for key, table in given.items()}}

    def table(self) -> Table:
        """Plain nested dictionaries, ready for TOML or JSON, without unset keys and keys without an effect."""
        table = self.model_dump(mode="json", by_alias=True, exclude_none=True)
        own, strings = self.data.path is not None, self.model.kind == "strings"
        idle = {"name": own, "recipe": own or self.data.name != "equations", "size": self.data.name == "digits"}
        idle |= dict.fromkeys(("augment", "symmetries", "permute_classes"), strings)
        for key in [key for key, without in idle.items() if without]:
            table["data"].pop(key, None)
        if table["model"].get("decoder") == "factorised":  # as all were before there was another
            for key in ("decoder", "input_dropout", "skip_connections"):
                del table["model"][key]
        objective = table["objective"]
        for path in ("model.mean_norm", "train.encoder_steps", "objective.mmd", "objective.prior_draws"):
            part, key = path.split(".")
            if not table[part].get(key):  # as all were before there was such a key
                table[part].pop(key, None)
        if self.objective.importance_samples == 1:
            del objective["importance_samples"], objective["importance_gradient"]
        if not self.objective.free_bits_by_level:
            del table["objective"]["free_bits_by_level"]
        return table

    def contradictions(self) -> Iterator[tuple[str, str, str]]:
        data, model, objective, train = self.data, self.model, self.objective, self.train
        grammar = model.kind == "strings"
        for level in objective.free_bits_by_level.keys() - set(model.levels):
            fix = f"levels: {', '.join(model.levels)}"
            yield f"objective.free_bits_by_level.{level}", f"unknown level of the model {model.name}", fix
        if data.of_strings is not None and data.of_strings != grammar:
            key = next((key for key in ("prod", "input", "path", "grammar") if getattr(data, key) is not None), "name")
            source = f"the corpus {data.name}" if key == "name" else getattr(data, key)
            needs, contains = ("strings", "grids") if grammar else ("grids", "strings")
            problem = f"{model.name} needs {needs}, but {source} contains {contains}"
            yield "", problem, f"change model.name or data.{key} (--model, --data)"
        if grammar and objective.reduction == "mean":
            yield "objective.reduction", "a mean over rules would weigh each derivation by its length", "use sum"
        if objective.kl_reduction == "mean" and len(model.levels) > 1:
            yield "objective.kl_reduction", f"a mean over each level of {model.name} has no common scale", "use sum"
        yield from self._of_remedies()
        known = [f"val/{metric}" for metric in MONITORS[model.kind].split()]
        if train.monitor not in known:
            fix = f"{nearest(train.monitor, known)}known: {', '.join(known)}"
            yield "train.monitor", f"the model {model.name} has no metric {train.monitor!r}", fix

    def _of_remedies(self) -> Iterator[tuple[str, str, str]]:
        model, objective, schedule, train = self.model, self.objective, self.schedule, self.train
        least, draws = model.least_kl if isinstance(model, DecoderSettings) else 0.0, objective.importance_samples
        dreg = draws > 1 and objective.importance_gradient == "dreg"
        if draws > 1 and schedule.closed_loop:
            problem = f"the bound of {draws} samples has no KL or reconstruction term for {schedule.name} to control"
            yield "objective.importance_samples", problem, "use another schedule"
        if dreg and len(model.levels) > 1:  # Bauer and Mnih 2021
            problem = "the gradient dreg is biased where the posterior of a level depends on the sample above"
            yield "objective.importance_samples", problem, "use objective.importance_gradient=iwae"
        if dreg and train.engine == "compile":
            fix = "use auto, or objective.importance_gradient=iwae"
            yield "train.engine", "compile has no gradient hooks, which dreg needs", fix
        if objective.prior_draws > 0.0 and len(model.levels) > 1:
            yield "objective.prior_draws", f"{model.name} learns the prior of a level", "use a model of one level"
        if train.batch_size == 1 and (least or objective.mmd):
            key = "model.mean_norm" if least else "objective.mmd"
            yield key, "compares the examples of a batch, and train.batch_size is 1", "raise it"
        for level, part in schedule.parts.items():
            if not isinstance(part, Feedback) or part.quantity != "kl" or level not in ("", model.levels[0]):
                continue
            if (target := part.setpoint(train.epochs)) < least:
                problem = f"leaves a KL of at least {least:.4g} nats, {part.name} wants {target:g}"
                yield "model.mean_norm", problem, "lower it, or raise the target"


MONITORS = {
    "grids": "loss_selection loss_total loss_reconstruction pixel_accuracy foreground_accuracy exact_accuracy",
    "strings": "loss_selection loss_total loss_reconstruction token_acc seq_acc",
}  # metrics that may select the best epoch, by the kind of example
GRID_POSITIONS = 256  # cells of a grid's canvas
KINDS: dict[str, Any] = {**SCHEDULES, **MODEL_SETTINGS}


def known_keys(path: Sequence[str], tables: Table) -> list[str]:
    """The keys of the table at a path; of a schedule or a model, those that its `name` in `tables` has."""
    kind: Any = Settings
    for part in path:
        tables = tables.get(part, {})
        kind = KINDS.get(str(tables.get("name", NAMED.get(part)))) or kind.model_fields[part].annotation
    return [info.alias or key for key, info in kind.model_fields.items()]


def elbo_scale(settings: Settings, positions: float = GRID_POSITIONS) -> float | None:
    """The factor from a run's beta to that on the ELBO, in which terms are sums (Higgins et al. 2017).

    `positions`: the cells of a mean reconstruction. None with focal loss or class weights, which have no ELBO.
    """
    objective = settings.objective
    if objective.reconstruction != "cross_entropy" or objective.class_weights != "none":
        return None
    scale = float(positions) if objective.reduction == "mean" else 1.0
    if objective.kl_reduction == "mean" and len(settings.model.levels) == 1:
        dimensions = getattr(settings.model, "latent_dim", None)  # a model from outside may name it otherwise
        return None if dimensions is None else scale / dimensions
    return scale
