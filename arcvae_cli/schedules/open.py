"""Schedules that only the epoch decides."""
# ruff: noqa: ARG002 - a method of the base has its docstring there, and not every schedule needs its arguments

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from typing_extensions import Self

from arcvae_cli.schedules.base import NEAR, Beta, Epochs, MaxBeta, MinBeta, Schedule, Stretch

Delay = Annotated[Epochs, Field(description="epochs at 0 before the ramp")]
Ramp = Annotated[Epochs, Field(description="epochs of the ramp")]
Warmup = Annotated[Epochs, Field(description="epochs of the rise from 0")]


class Constant(Schedule):
    """One beta throughout (Higgins et al. 2017)."""

    name: Literal["constant"] = "constant"
    max_beta: MaxBeta = 1.0
    words: ClassVar[str] = "{s.max_beta:g} throughout"

    def __call__(self, epoch: float) -> float:
        return self.max_beta

    @property
    def peak(self) -> float:
        return self.max_beta


class Linear(Schedule):
    """A straight rise from the first epoch on."""

    name: Literal["linear"] = "linear"
    times: ClassVar[tuple[str, ...]] = ("warmup_epochs",)
    how: ClassVar[str] = "in a straight line"
    max_beta: MaxBeta = 1.0
    warmup_epochs: Warmup = 10.0

    @property
    def span(self) -> tuple[float, float]:
        """Epochs at 0, and epochs from there to `max_beta`."""
        return 0.0, self.warmup_epochs

    def share(self, progress: float) -> float:
        """The share of `max_beta` at a share of the rise."""
        return progress

    def climb(self, elapsed: float, duration: float) -> float:
        """Beta within the rise, `elapsed` epochs after its start."""
        return self.max_beta * self.share(elapsed / duration)

    def __call__(self, epoch: float) -> float:
        delay, duration = self.span
        elapsed = epoch - delay
        if elapsed <= 0:
            return 0.0
        return self.max_beta if elapsed >= duration else self.climb(elapsed, duration)

    @property
    def peak(self) -> float:
        return self.max_beta

    @property
    def first_peak(self) -> float:
        return sum(self.span) if self.max_beta else 0.0

    def describe(self) -> str:
        delay, rise = self.span[0], f"{self.how} from 0 to {self.max_beta:g} at epoch {sum(self.span):g}, held after"
        return f"0 to epoch {delay:g}, then {rise}" if delay else rise

    def _marks(self, until: float) -> list[tuple[float, str]]:
        delay = self.span[0]
        return [*([(delay, "warm-up ends")] if delay else []), (sum(self.span), "first peak")]

    def _why(self, epochs: float) -> str:
        if epochs <= self.warmup_epochs:
            return "the warm-up is longer than the run"
        return f"the ramp ends at epoch {self.first_peak:g}, the run at {epochs:g}"


class LinearWarmup(Linear):
    """A warm-up at 0 and then a straight ramp (Bowman et al. 2016 anneal the KL from 0 to 1)."""

    name: Literal["linear_warmup"] = "linear_warmup"  # type: ignore[assignment]
    times: ClassVar[tuple[str, ...]] = ("warmup_epochs", "ramp_epochs")
    max_beta: MaxBeta = 0.5
    warmup_epochs: Delay = 10.0
    ramp_epochs: Ramp = 50.0

    @property
    def span(self) -> tuple[float, float]:
        return self.warmup_epochs, self.ramp_epochs

    def climb(self, elapsed: float, duration: float) -> float:
        return self.max_beta * elapsed / duration  # rounds otherwise than `Linear`


class UltraConservative(LinearWarmup):
    """`linear_warmup`, later, slower and to a tenth: for codes that collapse."""

    name: Literal["ultra_conservative"] = "ultra_conservative"  # type: ignore[assignment]
    max_beta: MaxBeta = 0.1
    warmup_epochs: Delay = 20.0
    ramp_epochs: Ramp = 60.0


class Aggressive(LinearWarmup):
    """`linear_warmup`, sooner and faster."""

    name: Literal["aggressive"] = "aggressive"  # type: ignore[assignment]
    warmup_epochs: Delay = 5.0
    ramp_epochs: Ramp = 25.0


class Cosine(Linear):
    """Half a cosine wave, level at both ends: (1 - cos pi p) / 2."""

    name: Literal["cosine"] = "cosine"  # type: ignore[assignment]
    how: ClassVar[str] = "along half a cosine"

    def share(self, progress: float) -> float:
        return (1.0 - math.cos(math.pi * progress)) / 2.0


class Exponential(Linear):
    """Fast first and then ever slower: (1 - exp(-5p)) / (1 - exp(-5)), the divisor so that it arrives."""

    name: Literal["exponential"] = "exponential"  # type: ignore[assignment]
    how: ClassVar[str] = "exponentially, fast first,"

    def share(self, progress: float) -> float:
        return (1.0 - math.exp(-5.0 * progress)) / (1.0 - math.exp(-5.0))


class Sigmoid(Linear):
    """A logistic 1 / (1 + exp(-12 (p - 0.5))), rescaled so that it begins at 0 and arrives at 1."""

    name: Literal["sigmoid"] = "sigmoid"  # type: ignore[assignment]
    how: ClassVar[str] = "along a logistic curve"

    def share(self, progress: float) -> float:
        low, here, high = (1.0 / (1.0 + math.exp(-12.0 * (p - 0.5))) for p in (0.0, progress, 1.0))
        return (here - low) / (high - low)


class ThreePhase(Schedule):
    """Straight lines from 0 through (epochs, beta at their end) and then level, which is the third phase."""

    name: Literal["three_phase"] = "three_phase"
    phases: tuple[tuple[Stretch, Beta], ...] = Field(
        ((10.0, 1.0), (20.0, 2.0)), min_length=1, description="pairs of a phase's epochs and the beta at its end"
    )

    def corners(self) -> Iterator[tuple[float, float]]:
        """The end of every phase: (epoch, beta)."""
        end = 0.0
        for epochs, beta in self.phases:
            end += epochs
            yield end, beta

    def __call__(self, epoch: float) -> float:
        begin, low = 0.0, 0.0
        for end, high in self.corners():
            if epoch < end:
                return low + (high - low) * max(epoch - begin, 0.0) / (end - begin)
            begin, low = end, high
        return low

    @property
    def peak(self) -> float:
        return max(beta for _, beta in self.phases)

    @property
    def first_peak(self) -> float:
        return next(end for end, beta in self.corners() if beta == self.peak) if self.peak else 0.0

    def compressed(self, factor: float) -> Self:
        phases = tuple((epochs * factor, beta) for epochs, beta in self.phases)
        return self.model_copy(update={"per": "step", "phases": phases})

    def describe(self) -> str:
        return "from 0 in straight lines to " + ", ".join(f"{b:g} at epoch {e:g}" for e, b in self.corners()) + ", held"

    def _marks(self, until: float) -> list[tuple[float, str]]:
        suffix = {self.first_peak: ", first peak"}
        return [(end, f"phase {i} ends{suffix.get(end, '')}") for i, (end, _) in enumerate(self.corners(), 1)]


class Cyclical(Schedule):
    """A wave of period `cycle_length` between `min_beta` and `max_beta`.

    `ramp_hold` (Fu et al. 2019) goes up over a fraction of the cycle and is held to its end, the end included.
    """

    name: Literal["cyclical"] = "cyclical"
    times: ClassVar[tuple[str, ...]] = ("cycle_length",)
    rising: ClassVar[tuple[str, ...]] = ("min_beta", "max_beta")
    max_beta: MaxBeta = 0.1
    min_beta: MinBeta = 0.0
    cycle_length: Annotated[Stretch, Field(description="epochs of a cycle")] = 20.0
    wave: Annotated[Literal["triangle", "cosine", "ramp_hold"], Field(description="form of a cycle")] = "triangle"
    ramp_fraction: Annotated[float, Field(gt=0, le=1, strict=True, description="share of ramp_hold that rises")] = 0.5

    @property
    def rise(self) -> float:
        """Epochs from the beginning of a cycle to its peak."""
        return self.cycle_length * (self.ramp_fraction if self.wave == "ramp_hold" else 0.5)

    @property
    def period(self) -> float:
        return self.cycle_length

    def __call__(self, epoch: float) -> float:
        since = math.fmod(max(epoch, 0.0), self.cycle_length)
        span = self.max_beta - self.min_beta
        if self.wave == "cosine":
            return self.min_beta + span * (1.0 - math.cos(2.0 * math.pi * since / self.cycle_length)) / 2.0
        end = epoch > NEAR >= since  # the last moment of the cycle before, not the first of this one
        if self.wave == "ramp_hold" and (end or since >= self.rise):
            return self.max_beta
        return self.min_beta + span * (since if since < self.rise else self.cycle_length - since) / self.rise

    @property
    def peak(self) -> float:
        return self.max_beta

    @property
    def first_peak(self) -> float:
        return self.rise if self.max_beta > self.min_beta else 0.0

    def describe(self) -> str:
        form = {"triangle": "up and down", "cosine": "a cosine wave", "ramp_hold": f"up in {self.rise:g} and held"}
        reach = f"between {self.min_beta:g} and {self.max_beta:g}"
        return f"{reach} every {self.cycle_length:g} epochs, {form[self.wave]}"

    def _marks(self, until: float) -> list[tuple[float, str]]:
        ends = [(i, i * self.cycle_length) for i in range(1, int(until / self.cycle_length + NEAR) + 1)]
        later = [mark for i, end in ends for mark in ((end, f"cycle {i} ends"), (end + self.rise, f"peak {i + 1}"))]
        return [(self.rise, "first peak"), *later]


Warmups = LinearWarmup | UltraConservative | Aggressive
Rises = Linear | Cosine | Exponential | Sigmoid
Curve = Constant | Warmups | ThreePhase | Rises | Cyclical
