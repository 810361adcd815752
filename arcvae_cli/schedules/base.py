"""What every schedule of beta, the weight on the KL term, can say of itself.

Time is counted in epochs from 1 and may be fractional; epoch 0 gives the value a schedule starts from. The schedules
are frozen and keep no count: whoever asks says which epoch it is.
"""
# ruff: noqa: ARG002 - not every schedule needs the arguments of a method

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import Self

Beta = Annotated[float, Field(ge=0, le=1e6, strict=True)]
MaxBeta = Annotated[Beta, Field(description="largest beta")]
MinBeta = Annotated[Beta, Field(description="smallest beta")]
Epochs = Annotated[float, Field(ge=0, le=1e6, strict=True)]
Stretch = Annotated[float, Field(gt=0, le=1e6, strict=True)]

NEAR = 1e-9  # epochs: compressed times are products of floats, and a restart must not miss its step by a rounding


class Schedule(BaseModel, ABC):
    """What every schedule can say of itself. A subclass adds its parameters, `__call__` and `top`."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)
    times: ClassVar[tuple[str, ...]] = ()  # the fields that count epochs, for `compressed`

    name: str
    per: Annotated[Literal["epoch", "step"], Field(description="how often the trainer asks for beta")] = "epoch"

    @abstractmethod
    def __call__(self, epoch: float) -> float:
        """Beta at an epoch, in the objective's own scale."""

    @abstractmethod
    def top(self, until: float) -> tuple[float, float]:
        """The supremum of beta over the epochs [0, until] (`math.inf` for all), and the first epoch that attains it.

        Time is continuous here. Where beta jumps, the supremum is a limit: a ramp of 0 epochs after a warm-up of 10
        has its top at 10, although beta at 10 is still 0; a base that is still rising when the clock restarts has its
        top at the restart.
        """

    @abstractmethod
    def describe(self) -> str:
        """The schedule in words, with its numbers."""

    @property
    def start(self) -> float:
        """Beta at epoch 0."""
        return self(0.0)

    @property
    def peak(self) -> float:
        """The largest beta there is."""
        return self.top(math.inf)[0]

    @property
    def first_peak(self) -> float:
        """The first epoch at which beta is at its peak.

        Continuous time, as in `top`: a triangle of 5 epochs has its first peak at 2.5, which a trainer that sets beta
        once an epoch passes between the epochs 2 and 3; `reached` is what such a run sees.
        """
        return self.top(math.inf)[1]

    @property
    def period(self) -> float | None:
        """Epochs after which beta repeats itself, if it does."""
        return None

    def cycle(self, epoch: float) -> float | None:
        """Length in epochs of the cycle that an epoch falls in, None for a schedule without cycles."""
        return self.period

    def marks(self, until: float) -> list[tuple[float, str]]:
        """The epochs at which something changes, up to and with `until`, in order, and what happens there."""
        return [(epoch, text) for epoch, text in self._marks(until) if epoch <= until]

    def _marks(self, until: float) -> list[tuple[float, str]]:
        return []

    def reached(self, epochs: float) -> float:
        """The largest beta that a run of so many epochs really sees, at whole epochs unless `per` is "step"."""
        if self.per == "step":
            return self.top(epochs)[0]
        return max((self(float(epoch)) for epoch in range(1, int(epochs) + 1)), default=self.start)

    def compressed(self, factor: float) -> Self:
        """The same curve in `factor` times the time, asked for at every step; nothing is rounded."""
        return self.model_copy(update={"per": "step", **{key: getattr(self, key) * factor for key in self.times}})

    @property
    def parts(self) -> dict[str, Schedule]:
        """The schedules that move independently, by level; a schedule that serves all levels alike is one part, ""."""
        return {"": self}

    def by_level(self, levels: Sequence[str]) -> dict[str, Schedule]:
        """The schedule that serves each level of latents."""
        return dict.fromkeys(levels, self)

    def betas(self, epoch: float, levels: Sequence[str]) -> dict[str, float]:
        """Beta of every level of latents at an epoch."""
        return {level: part(epoch) for level, part in self.by_level(levels).items()}

    def peaks(self, levels: Sequence[str]) -> dict[str, float]:
        """The largest beta of every level of latents."""
        return {level: part.peak for level, part in self.by_level(levels).items()}

    @property
    def closed_loop(self) -> bool:
        """Whether beta depends on the run, so that no epoch alone decides it."""
        return False

    def closed_levels(self, levels: Sequence[str]) -> tuple[str, ...]:
        """The levels whose beta depends on the run."""
        return tuple(level for level, part in self.by_level(levels).items() if part.closed_loop)

    def restart_info(self, epoch: float) -> dict[str, float] | None:
        """The restarts around an epoch, see `WarmRestart`; None for a schedule without restarts."""
        return None

    @property
    def aim(self) -> float:
        """The beta that the schedule is meant to reach, which is its peak unless something stops it for ever."""
        return self.peak

    def _why(self, epochs: float) -> str:
        """What keeps a run of so many epochs from the aim."""
        return f"the first peak is at epoch {self.first_peak:g}, the run ends at {epochs:g}"

    def shortfall(self, epochs: float) -> str | None:
        """What a run of so many epochs misses, see the function of this name."""
        reached, aim, over = self.reached(epochs), self.aim, epochs >= self.first_peak
        # a wave whose crest falls between two epochs loses a little of it every time, which is no news
        if reached >= (0.9 if over else 1.0) * aim:
            return None
        why = self._why(epochs)
        if over and self.peak == aim and self.reached(epochs + 1) < 0.9 * aim:
            why = 'its peak falls between whole epochs, per = "step" would visit it'
        verb = "ends at" if reached == self(epochs) else "reaches"
        return f"beta {verb} {reached:.3g} of {aim:.3g}: {why}"


def shortfall(schedule: Schedule, epochs: float) -> str | None:
    """What a run of so many epochs misses of its schedule's maximum, or None if it gets there.

    >>> shortfall(UltraConservative(), 10)
    'beta ends at 0 of 0.1: the warm-up is longer than the run'
    """
    faults = [(level, part.shortfall(epochs)) for level, part in schedule.parts.items()]
    return "; ".join(f"{level} {fault}".lstrip() for level, fault in faults if fault) or None
