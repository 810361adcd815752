"""The base class of schedules of beta, the weight on the KL term.

Epochs count from 1 and may be fractional; epoch 0 gives the start value. The caller has the clock.
"""
# ruff: noqa: ARG002 - not every schedule needs the arguments of a method

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from typing_extensions import Self

Beta = Annotated[float, Field(ge=0, le=1e6, strict=True)]
MaxBeta = Annotated[Beta, Field(description="largest beta")]
MinBeta = Annotated[Beta, Field(description="smallest beta")]
Epochs = Annotated[float, Field(ge=0, le=1e6, strict=True)]
Stretch = Annotated[float, Field(gt=0, le=1e6, strict=True)]

NEAR = 1e-9  # epochs: compressed times are products of floats, and a restart must not miss its step by a rounding


class Schedule(BaseModel, ABC):
    """A schedule of beta. A subclass adds its parameters, `__call__`, `peak`, `first_peak` and `words`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)
    times: ClassVar[tuple[str, ...]] = ()  # the fields that count epochs, for `compressed`
    rising: ClassVar[tuple[str, ...]] = ()  # the fields whose values must rise
    words: ClassVar[str]  # a template of `describe`, with the schedule as `s`

    name: str
    per: Annotated[Literal["epoch", "step"], Field(description="how often the trainer asks for beta")] = "epoch"

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        values = {field: getattr(self, field) for field in self.rising}
        if list(values.values()) != sorted(values.values()):
            raise ValueError(
                ", ".join(f"{field} {value:g}" for field, value in values.items()) + " are not in this order"
            )
        return self

    @abstractmethod
    def __call__(self, epoch: float) -> float:
        """Beta at an epoch, in the objective's own scale."""

    @property
    @abstractmethod
    def peak(self) -> float:
        """The supremum of beta over continuous time."""

    @property
    def first_peak(self) -> float:
        """The first epoch, in continuous time, at which beta reaches `peak`; where beta jumps, that of the jump."""
        return 0.0

    def describe(self) -> str:
        """The schedule in words, with its numbers."""
        return self.words.format(s=self)

    @property
    def start(self) -> float:
        """Beta at epoch 0."""
        return self(0.0)

    @property
    def period(self) -> float | None:
        """Epochs after which beta repeats itself, if it does."""
        return None

    def cycle(self, epoch: float) -> float | None:
        """Epochs of the cycle that contains an epoch, None for a schedule without cycles."""
        return self.period

    def marks(self, until: float) -> list[tuple[float, str]]:
        """The epochs up to `until` at which something changes, in order, and what happens there."""
        return [(epoch, text) for epoch, text in self._marks(until) if epoch <= until]

    def _marks(self, until: float) -> list[tuple[float, str]]:
        return []

    def highest(self, until: float) -> float:
        """The first epoch of the largest beta up to `until`, at 100 steps an epoch."""
        count = max(1, math.ceil(100 * until))
        return max((until * i / count for i in range(count + 1)), key=self)

    def reached(self, epochs: float) -> float:
        """The largest beta that a run of so many epochs sees: at its whole epochs, or at its steps."""
        if self.per == "step":
            return self.peak if epochs > self.first_peak else self(self.highest(epochs))
        return max((self(float(epoch)) for epoch in range(1, int(epochs) + 1)), default=self.start)

    def compressed(self, factor: float) -> Self:
        """The same curve in `factor` times the time, asked for at every step; nothing is rounded."""
        return self.model_copy(update={"per": "step", **{key: getattr(self, key) * factor for key in self.times}})

    @property
    def parts(self) -> dict[str, Schedule]:
        """The independent schedules, by level; a schedule that serves all levels alike is one part, ""."""
        return {"": self}

    def by_level(self, levels: Sequence[str]) -> dict[str, Schedule]:
        """The schedule of each level of latents."""
        return dict.fromkeys(levels, self)

    def betas(self, epoch: float, levels: Sequence[str]) -> dict[str, float]:
        """Beta of every level of latents at an epoch."""
        return {level: part(epoch) for level, part in self.by_level(levels).items()}

    def peaks(self, levels: Sequence[str]) -> dict[str, float]:
        """The largest beta of every level of latents."""
        return {level: part.peak for level, part in self.by_level(levels).items()}

    @property
    def closed_loop(self) -> bool:
        """Whether beta depends on the run and not on the epoch alone."""
        return False

    def closed_levels(self, levels: Sequence[str]) -> tuple[str, ...]:
        """The levels whose beta depends on the run."""
        return tuple(level for level, part in self.by_level(levels).items() if part.closed_loop)

    def restart_info(self, epoch: float) -> dict[str, float] | None:
        """The restarts around an epoch, see `WarmRestart`; None for a schedule without restarts."""
        return None

    @property
    def aim(self) -> float:
        """The beta that the schedule is configured for: its peak, unless restarts always come before it."""
        return self.peak

    def _why(self, epochs: float) -> str:
        """What keeps a run of so many epochs from the aim."""
        return f"the first peak is at epoch {self.first_peak:g}, the run ends at {epochs:g}"

    def shortfall(self, epochs: float) -> str | None:
        """What a run of so many epochs misses of the schedule's maximum, or None if it gets there."""
        reached, aim, over = self.reached(epochs), self.aim, epochs >= self.first_peak
        if reached >= (0.9 if over else 1.0) * aim:  # a crest between two epochs loses a little every time
            return None
        why = self._why(epochs)
        if over and self.peak == aim and self.reached(epochs + 1) < 0.9 * aim:
            why = 'its peak falls between whole epochs, per = "step" would visit it'
        verb = "ends at" if reached == self(epochs) else "reaches"
        return f"beta {verb} {reached:.3g} of {aim:.3g}: {why}"
