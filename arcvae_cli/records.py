"""What the trainer tells its recorders: plain numbers and NumPy arrays, under the names that are logged."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter

from arcvae_cli.controllers import Target
from arcvae_cli.objective import ACTIVE_KL
from arcvae_cli.step import Counts

Examples = NDArray[np.integer[Any]]

ACCURACIES: dict[str, tuple[str, str | None, str]] = {
    "pixel": ("pixel_accuracy", "non_black_accuracy", "exact_accuracy"),
    "token": ("token_acc", None, "seq_acc"),
}
"""By the unit of a corpus: the names of its shares of right positions, foreground positions and whole examples."""

HIGHER_IS_BETTER = {f"val/{name}" for names in ACCURACIES.values() for name in names if name is not None}
"""Metrics of validation of which the largest is the best; of all others it is the smallest."""


@dataclass(frozen=True)
class Plan:
    """What is known before the first step."""

    run: str
    folder: str
    model: str
    parameters: int
    device: str
    precision: str
    engine: str
    corpus: str
    sizes: Mapping[str, int]
    unit: str
    epochs: int
    steps: int  # an epoch
    levels: Mapping[str, int]  # groups by level
    level_shapes: Mapping[str, tuple[int, ...]]
    schedule: str
    schedule_text: str  # the schedule in words
    closed_loop: bool
    settings: Mapping[str, Any]  # the run's, as nested plain values
    elbo_scale: float | None  # from beta to the ELBO's; None where no such beta exists
    free_bits: Mapping[str, float]  # nats, by level
    free_bits_mode: str
    notes: tuple[str, ...]  # what else is worth saying
    blank: float | None  # accuracy on the validation split of a code that says nothing: all background, or rules as
    # frequent at each step as in training
    blank_nats: float | None = None  # nats per example of that, where it is a likelihood
    entropy: float | None = None  # nats per example that no model can go below, where they are known


@dataclass(frozen=True)
class StepRecord:
    """One logged step within an epoch."""

    epoch: float
    step: int
    betas: Mapping[str, float]
    train: Counts
    unit: str

    def metrics(self) -> dict[str, Any]:
        """The record as it is logged."""
        return {
            "step": self.step,
            "epoch": round(self.epoch, 6),
            **betas(self.betas),
            **flat("train", self.train, self.unit),
        }


@dataclass(frozen=True)
class EpochRecord:
    """One finished epoch. `selection`: the yardstick of model selection; `best`: whether it is the best yet.

    `betas`: at its end, or for a closed loop the mean of its steps. `path`: by level, beta at every step. `turns`: the
    least and the largest of each level whose beta went both up and down within it. `targets`: what a closed loop held,
    and what it should have. `restart`: the restarts around the epoch, for a schedule that has them.
    """

    epoch: int
    step: int
    betas: Mapping[str, float]
    learning_rate: float
    train: Counts
    val: Counts
    selection: float
    monitored: float
    best: bool
    seconds: float
    unit: str
    turns: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    path: Mapping[str, Sequence[float]] = field(default_factory=dict)
    targets: tuple[Target, ...] = ()
    restart: Mapping[str, float] | None = None

    def metrics(self) -> dict[str, Any]:
        """The record as it is logged."""
        val = flat("val", self.val, self.unit)
        names = [name for name in val if name.startswith("val/kl_per_dim/dim_")]
        val["val/kl_per_dim"] = [val.pop(name) for name in names]
        return {
            "epoch": self.epoch,
            "step": self.step,
            **betas(self.betas),
            "train/learning_rate": self.learning_rate,
            **flat("train", self.train, self.unit),
            **val,
            "val/loss_selection": number(self.selection),
            **{
                f"train/target/{target.quantity}{'/' * bool(target.level)}{target.level}": target.target
                for target in self.targets
            },
            "best": self.best,
            "seconds": round(self.seconds, 3),
        }

    def plain(self) -> dict[str, Any]:
        """All but the path in plain values that JSON knows, from which `of` makes the same record."""
        table = asdict(self)
        del table["path"]
        return table

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> EpochRecord:
        """The record that `plain` gave, its path empty. KeyError, TypeError or ValueError for anything else."""
        record = epoch_records().validate_python(dict(table))
        if not record.betas:
            raise ValueError("betas: of no level")
        record.metrics()  # which asks for what its type does not promise
        return record


@cache
def epoch_records() -> TypeAdapter[EpochRecord]:
    """What makes epoch records of plain values."""
    return TypeAdapter(EpochRecord)


def betas(values: Mapping[str, float]) -> dict[str, float]:
    """`train/beta` where every level has the same, else one for each level too."""
    first = next(iter(values.values()))
    if len(values) == 1:
        return {"train/beta": first}
    return {"train/beta": first, **{f"train/beta/{name}": value for name, value in values.items()}}


def flat(split: str, counts: Counts, unit: str) -> dict[str, Any]:
    """Counts under their logged names. `loss_kl` is the term of the loss, `kl` the raw total in nats."""
    groups = list(all_rates(counts))
    names = ACCURACIES[unit]
    shares = (counts.position, counts.foreground, counts.exact)
    return {
        f"{split}/loss_total": number(counts.loss),
        f"{split}/loss_reconstruction": number(counts.reconstruction),
        f"{split}/loss_kl": number(sum(counts.kl_free.values())),
        f"{split}/kl": number(counts.rate),
        **level_totals(split, counts),
        **{f"{split}/{name}": number(share) for name, share in zip(names, shares, strict=True) if name is not None},
        f"{split}/active_dims": sum(value > ACTIVE_KL for value in groups),
        **{f"{split}/kl_per_dim/dim_{index}": number(value) for index, value in enumerate(groups)},
        f"{split}/kl_per_dim/min": number(min(groups)),
        f"{split}/kl_per_dim/max": number(max(groups)),
        f"{split}/kl_per_dim/mean": number(sum(groups) / len(groups)),
        **({"train/kl_per_dim": number(sum(groups) / len(groups))} if (split, unit) == ("train", "token") else {}),
    }


def level_totals(split: str, counts: Counts) -> dict[str, float | None]:
    """The raw KL of each level, where there are several."""
    if len(counts.rates) == 1:
        return {}
    return {f"{split}/kl/{name}": number(sum(groups)) for name, groups in counts.rates.items()}


def all_rates(counts: Counts) -> Iterator[float]:
    """The KL of every group, level after level."""
    for groups in counts.rates.values():
        yield from groups


def number(value: float) -> float | None:
    """JSON has no NaN and no infinity; they are logged as null."""
    return value if math.isfinite(value) else None


@dataclass(frozen=True, slots=True, eq=False)
class Pictures:
    """Examples (n, *positions) with their reconstructions, and draws from the prior: classes, as small integers.

    `maps`: by level that is a map, (n, h, w) float32 nats of KL in each of its cells, for the same examples.
    """

    originals: Examples
    reconstructions: Examples
    samples: Examples
    maps: Mapping[str, NDArray[np.float32]]


class Recorder(Protocol):
    """Someone who listens to a training. Every call is optional to act on."""

    def start(self, plan: Plan) -> None:
        """Before the first step."""

    def resume(self, records: Sequence[EpochRecord], step: int) -> None:
        """After `start`, in a run that goes on: the epochs that it has, the last of which ended with step `step`.

        What was recorded of later steps is void, and will be told again.
        """

    def step(self, epoch: int, done: int, beta: float | None) -> None:
        """After every step: `done` steps of this epoch, and beta where the host knows it. Must cost next to nothing."""

    def steps(self, records: Sequence[StepRecord]) -> None:
        """The logged steps of an epoch, read back together at its end."""

    def epoch(self, record: EpochRecord) -> None:
        """After every epoch."""

    def pictures(self, epoch: int, pictures: Pictures) -> None:
        """Every few epochs, and after the last."""

    def close(self, code: int = 0) -> None:
        """After the last call, however the training ended: `code` is the one that the process will end with."""

    def abandon(self) -> None:
        """Instead of `close`, where nobody waits any more: leave the screen in order and no process behind."""


class Silent:
    """A recorder that acts on nothing: the base of those that act on some calls."""

    def start(self, plan: Plan) -> None:
        pass

    def resume(self, records: Sequence[EpochRecord], step: int) -> None:
        pass

    def step(self, epoch: int, done: int, beta: float | None) -> None:
        pass

    def steps(self, records: Sequence[StepRecord]) -> None:
        pass

    def epoch(self, record: EpochRecord) -> None:
        pass

    def pictures(self, epoch: int, pictures: Pictures) -> None:
        pass

    def close(self, code: int = 0) -> None:
        pass

    def abandon(self) -> None:
        pass
