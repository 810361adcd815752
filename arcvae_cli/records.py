"""What recorders get from the trainer: plain numbers and NumPy arrays, and the names under which they are logged."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from arcvae_cli.canvas import Canvas
from arcvae_cli.controllers import Target
from arcvae_cli.metrics import EpochMetrics
from arcvae_cli.objective import ACTIVE_KL
from arcvae_cli.settings import Settings

Examples = NDArray[np.integer[Any]]

ACCURACIES: dict[str, tuple[str, str | None, str]] = {
    "pixel": ("pixel_accuracy", "foreground_accuracy", "exact_accuracy"),
    "token": ("token_acc", None, "seq_acc"),
}  # by the unit of a corpus: the names of its shares of right positions, foreground positions and whole examples


def words(canvas: Canvas) -> dict[str, str]:
    """What people call the background of a canvas, all that is not background, and a class."""
    names = ("black", "non-black", "colour") if canvas.arc else ("background", "foreground", "class")
    return dict(zip(("background", "foreground", "kind"), names, strict=True))


def renamed(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line of `metrics.jsonl` with the names of today, if an earlier version wrote it."""
    return {name.replace("/non_black_", "/foreground_"): value for name, value in line.items()}


HIGHER_IS_BETTER = {f"val/{name}" for names in ACCURACIES.values() for name in names if name is not None}


@dataclass(frozen=True)
class Plan:
    """What is known before the first step."""

    run: str
    parameters: int
    how: str  # device, precision and engine
    corpus: str
    sizes: Mapping[str, int]
    steps: int  # an epoch
    level_shapes: Mapping[str, tuple[int, ...]]
    settings: Settings
    elbo_scale: float | None  # from beta to the ELBO's; None where no such beta exists
    notes: tuple[str, ...]
    blank: float | None  # accuracy of an uninformative latent on the validation split
    canvas: Canvas | None = None  # of grids
    blank_nats: float | None = None  # nats per example of the same, where it is a likelihood
    entropy: float | None = None  # nats per example, the lower bound of the data, where it is known


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch."""

    epoch: int
    step: int
    betas: Mapping[str, float]  # at its end, for a closed loop the mean of its steps
    learning_rate: float
    train: EpochMetrics
    val: EpochMetrics
    selection: float  # the loss of model selection
    seconds: float
    unit: str
    monitored: float = 0.0  # the value of `train.monitor`
    best: bool = False  # so far
    beta_range: Mapping[str, tuple[float, float]] = field(default_factory=dict)  # if it went up and down
    beta_trace: Mapping[str, Sequence[float]] = field(default_factory=dict)  # beta of every step, by level
    targets: tuple[Target, ...] = ()  # of closed loops
    restart: Mapping[str, float] | None = None  # the restarts around the epoch, for a schedule that has them
    encoder_steps: int | None = None  # those of the encoder alone before each one of all, None where that is off
    mutual_information: float | None = None  # nats, after an epoch with such steps

    def metrics(self) -> dict[str, Any]:
        val = flat("val", self.val, self.unit)
        val["val/kl_per_dim"] = [val.pop(name) for name in [*val] if name.startswith("val/kl_per_dim/dim_")]
        targets = {f"{one.quantity}/{one.level}".rstrip("/"): one.target for one in self.targets}
        return {
            "epoch": self.epoch,
            "step": self.step,
            **betas(self.betas),
            "train/learning_rate": self.learning_rate,
            **flat("train", self.train, self.unit),
            **val,
            "val/loss_selection": number(self.selection),
            **{f"train/target/{name}": target for name, target in targets.items()},
            **({} if self.encoder_steps is None else {"train/encoder_steps": self.encoder_steps}),
            **({} if self.mutual_information is None else {"val/mutual_information": self.mutual_information}),
            "best": self.best,
            "seconds": round(self.seconds, 3),
        }

    def plain(self) -> dict[str, Any]:
        """All but the betas of the steps, as JSON has it."""
        return asdict(replace(self, beta_trace={}))

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> "EpochRecord":
        return _RECORDS.validate_python(table)


_RECORDS = TypeAdapter(EpochRecord)


def betas(values: Mapping[str, float]) -> dict[str, float]:
    """`train/beta` of the first level, and of several levels one each too."""
    each = {f"train/beta/{name}": value for name, value in values.items()} if len(values) > 1 else {}
    return {"train/beta": next(iter(values.values())), **each}


def flat(split: str, metrics: EpochMetrics, unit: str) -> dict[str, Any]:
    """Metrics under their logged names. `loss_kl` is the term of the loss, `kl` the raw total in nats."""
    groups = metrics.groups
    levels = metrics.kl_per_dim if len(metrics.kl_per_dim) > 1 else {}
    shares = zip(ACCURACIES[unit], (metrics.position, metrics.foreground, metrics.exact), strict=True)
    mean = number(sum(groups) / len(groups))
    return {
        f"{split}/loss_total": number(metrics.loss),
        f"{split}/loss_reconstruction": number(metrics.reconstruction),
        f"{split}/loss_kl": number(sum(metrics.clamped_kl.values())),
        f"{split}/kl": number(metrics.kl),
        **{f"{split}/kl/{name}": number(sum(values)) for name, values in levels.items()},
        **{f"{split}/{name}": number(share) for name, share in shares if name is not None},
        f"{split}/active_dims": sum(value > ACTIVE_KL for value in groups),
        **{f"{split}/kl_per_dim/dim_{index}": number(value) for index, value in enumerate(groups)},
        f"{split}/kl_per_dim/min": number(min(groups)),
        f"{split}/kl_per_dim/max": number(max(groups)),
        f"{split}/kl_per_dim/mean": mean,
        **({} if metrics.mmd is None else {f"{split}/mmd": number(metrics.mmd)}),
        **({"train/kl_per_dim": mean} if (split, unit) == ("train", "token") else {}),
    }


def number(value: float | None) -> float | None:
    """NaN and infinity are logged as null, since JSON has neither."""
    return value if value is not None and math.isfinite(value) else None


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Examples (n, *positions) with their reconstructions, and samples from the prior, as small integers."""

    originals: Examples
    reconstructions: Examples
    samples: Examples
    maps: Mapping[str, NDArray[np.float32]]  # (n, h, w) nats of KL in each cell, by level that is a map
    extents: NDArray[np.uint8] | None = None  # (n, 2) height and width of the originals, if they are grids on a canvas


class Recorder:
    """Base of the recorders of a training: every call does nothing. Those of your own are given the run's folder."""

    def __init__(self, folder: Path = Path()) -> None:
        self.folder = folder

    def start(self, plan: Plan) -> None:
        """Before the first step."""

    def resume(self, records: Sequence[EpochRecord], step: int) -> None:
        """After `start` in a resumed run: its epochs up to step `step`; records of later steps are to be dropped."""

    def step(self, epoch: int, done: int, betas: Mapping[str, float], loss: float | None) -> None:
        """After every step, `done` in this epoch; must cost next to nothing.

        `betas`: of the levels with open loops. `loss`: the mean of recent steps, None where no new one is known.
        """

    def steps(self, lines: Sequence[Mapping[str, Any]]) -> None:
        """The metrics of an epoch's logged steps, at its end."""

    def epoch(self, record: EpochRecord) -> None:
        """After every epoch."""

    def pictures(self, epoch: int, pictures: Pictures) -> None:
        """Every few epochs, and after the last."""

    def evaluated(self, metrics: Mapping[str, Any], verdict: Sequence[str], images: Sequence[Path]) -> None:
        """After the final evaluation: nested metrics of metrics.json, lines of the verdict, picture files."""

    def artifacts(self, files: Mapping[str, Path]) -> None:
        """After the final evaluation: checkpoint files by name (`vae_best`, `encoder`, `decoder`)."""

    def close(self, code: int = 0) -> None:
        """After the last call, however the training ended: `code` is the exit code of the process."""

    def abandon(self) -> None:
        """Instead of `close` after a second Ctrl-C: restore the screen, leave no process behind, wait for nothing."""
