"""Schedules of beta, the weight on the KL term, that depend on the epoch alone.

Epochs count from 1 and may be fractional; at epoch 0 a schedule has its start value. The caller keeps the clock.
"""
# ruff: noqa: ARG002 - not every schedule needs the arguments of a method

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import accumulate, islice, takewhile
from operator import itemgetter
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, model_validator
from typing_extensions import Self

from arcvae_cli.plugins import or_plugin

Beta = Annotated[float, Field(ge=0, le=1e6, strict=True)]
MaxBeta = Annotated[Beta, Field(description="largest beta")]
MinBeta = Annotated[Beta, Field(description="smallest beta")]
Epochs = Annotated[float, Field(ge=0, le=1e6, strict=True)]
Length = Annotated[float, Field(gt=0, le=1e6, strict=True)]
Delay = Annotated[Epochs, Field(description="epochs at 0 before the ramp")]
Ramp = Annotated[Epochs, Field(description="epochs of the ramp")]
Warmup = Annotated[Epochs, Field(description="epochs of the rise from 0")]

NEAR = 1e-9  # epochs: compressed times are products of floats, and a restart must not miss its step by a rounding


class Schedule(BaseModel, ABC):
    """A schedule of beta. A subclass adds its parameters, `__call__`, and what differs of the other methods."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)
    times: ClassVar[tuple[str, ...]] = ()  # the fields in epochs, which `compressed` scales
    ascending: ClassVar[tuple[str, ...]] = ()  # fields whose values must not descend
    quantity: ClassVar[str | None] = None  # what a closed loop controls

    name: str
    per: Annotated[Literal["epoch", "step"], Field(description="how often the trainer asks for beta")] = "epoch"

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if any(isinstance(part, Schedule) and "per" in part.model_fields_set for _, part in self):
            raise ValueError("per is a key of this table alone, not of a schedule within it")
        values = [getattr(self, field) for field in self.ascending]
        if values != sorted(values):
            raise ValueError(f"expected {' <= '.join(self.ascending)}, got {', '.join(f'{v:g}' for v in values)}")
        return self

    @abstractmethod
    def __call__(self, epoch: float) -> float:
        """Beta at an epoch, in the objective's own scale."""

    def summit(self) -> tuple[float, float]:
        """`first_peak` and `peak`."""
        top = float(getattr(self, "max_beta"))  # noqa: B009 - a field of the subclasses that do not override this
        return math.fsum(getattr(self, key) for key in self.times) if top else 0.0, top

    @property
    def peak(self) -> float:
        """The supremum of beta over continuous time."""
        return self.summit()[1]

    @property
    def first_peak(self) -> float:
        """The first epoch, in continuous time, at which beta reaches `peak`; where beta jumps, that of the jump."""
        return self.summit()[0]

    @property
    def period(self) -> float | None:
        """Epochs after which beta repeats itself, if it does."""
        return None

    def cycle(self, epoch: float) -> float | None:
        """Epochs of the cycle that contains an epoch, None for a schedule without cycles."""
        return self.period

    def describe(self) -> str:
        """The parameters and their values; of schedules within this one, behind semicolons, their names too."""
        fields = [(key.rstrip("_"), value) for key, value in self if key not in ("name", "per")]
        inner = [f"{key}: {part.name}, {part.describe()}" for key, part in fields if isinstance(part, Schedule)]
        plain = [(key, value) for key, value in fields if not isinstance(value, Schedule)]
        own = ", ".join(f"{key} {value:g}" if isinstance(value, float) else f"{key} {value}" for key, value in plain)
        return "; ".join([own, *inner] if own else inner)

    def events(self, until: float) -> Iterator[tuple[float, str]]:
        """The epochs after 0 at which the curve changes, at least those up to `until`, and what happens there."""
        yield self.first_peak, "first peak"

    def argmax(self, until: float) -> float:
        """The first epoch of the largest beta up to `until`, at 100 steps an epoch."""
        samples = max(1, math.ceil(100 * until))
        return max((until * i / samples for i in range(samples + 1)), key=self)

    def max_beta_seen(self, epochs: float) -> float:
        """The largest beta in a run of so many epochs: at its whole epochs, or with `per = "step"` at its steps."""
        if self.quantity or (self.per == "step" and epochs > self.first_peak):
            return self.peak
        if self.per == "step":
            return self(self.argmax(epochs))
        return max((self(float(epoch)) for epoch in range(1, int(epochs) + 1)), default=self(0.0))

    def warning(self, epochs: float) -> str | None:
        """What a run of so many epochs misses of the largest beta, or None if it gets there."""
        seen, complete = self.max_beta_seen(epochs), epochs > self.first_peak
        if seen >= (0.9 if complete else 1.0) * self.peak:  # a peak between two epochs loses a little every time
            return None
        why = f"the first peak is at epoch {self.first_peak:g}, the run ends at {epochs:g}"
        if complete:
            why = 'the peak is between whole epochs, per = "step" would reach it'
        elif seen == self(0.0):
            why = "the warm-up is longer than the run"
        return f"beta {'ends at' if seen == self(epochs) else 'reaches'} {seen:.3g} of {self.peak:.3g}: {why}"

    def compressed(self, factor: float, per: str = "step") -> Self:
        """The same curve in `factor` times the time, with beta set at every step; nothing is rounded."""
        changed: dict[str, Any] = {key: getattr(self, key) * factor for key in self.times}
        changed |= {key: part.compressed(factor, part.per) for key, part in self if isinstance(part, Schedule)}
        return self.model_copy(update={**changed, "per": per})

    @property
    def parts(self) -> dict[str, "Schedule"]:
        """The independent schedules, by level; a schedule that serves all levels alike is one part, ""."""
        return {"": self}

    def by_level(self, levels: Sequence[str]) -> dict[str, "Schedule"]:
        """The schedule of each level of latents; ValueError for a level that it does not have."""
        parts = self.parts
        if unknown := [level for level in levels if level not in parts and "" not in parts]:
            raise ValueError(f"schedule {self.name} has the levels {' and '.join(parts)}, not {', '.join(unknown)}")
        return {level: parts.get(level, self) for level in levels}

    @property
    def closed_loop(self) -> bool:
        """Whether beta depends on the run and not on the epoch alone."""
        return any(part.quantity for part in self.parts.values())

    def restart_info(self, epoch: float) -> dict[str, float] | None:
        """The restarts around an epoch; None for a schedule without restarts."""
        return None


class Constant(Schedule):
    """One beta throughout (Higgins et al. 2017)."""

    name: Literal["constant"] = "constant"
    max_beta: MaxBeta = 1.0

    def __call__(self, epoch: float) -> float:
        return self.max_beta


class LinearWarmup(Schedule):
    """A warm-up at 0 and then a linear ramp (Bowman et al. 2016 anneal the KL from 0 to 1)."""

    name: Literal["linear_warmup"] = "linear_warmup"
    times: ClassVar[tuple[str, ...]] = ("warmup_epochs", "ramp_epochs")
    max_beta: MaxBeta = 0.5
    warmup_epochs: Delay = 10.0
    ramp_epochs: Ramp = 50.0

    def __call__(self, epoch: float) -> float:
        elapsed = epoch - self.warmup_epochs
        if elapsed <= 0:
            return 0.0
        return self.max_beta if elapsed >= self.ramp_epochs else self.max_beta * elapsed / self.ramp_epochs

    def events(self, until: float) -> Iterator[tuple[float, str]]:
        yield self.warmup_epochs, "warm-up ends"
        yield self.first_peak, "first peak"


class UltraConservative(LinearWarmup):
    """`linear_warmup`, later, slower and to a tenth: for latents that collapse."""

    name: Literal["ultra_conservative"] = "ultra_conservative"  # type: ignore[assignment]
    max_beta: MaxBeta = 0.1
    warmup_epochs: Delay = 20.0
    ramp_epochs: Ramp = 60.0


class Aggressive(LinearWarmup):
    """`linear_warmup`, sooner and faster."""

    name: Literal["aggressive"] = "aggressive"  # type: ignore[assignment]
    warmup_epochs: Delay = 5.0
    ramp_epochs: Ramp = 25.0


class Linear(Schedule):
    """A linear rise from 0 at epoch 0 to `max_beta`, held afterwards."""

    name: Literal["linear"] = "linear"
    times: ClassVar[tuple[str, ...]] = ("warmup_epochs",)
    max_beta: MaxBeta = 1.0
    warmup_epochs: Warmup = 10.0

    def share(self, progress: float) -> float:
        return progress  # both as shares, of `max_beta` and of the rise

    def __call__(self, epoch: float) -> float:
        if epoch <= 0:
            return 0.0
        return self.max_beta if epoch >= self.warmup_epochs else self.max_beta * self.share(epoch / self.warmup_epochs)


class Cosine(Linear):
    """Half a cosine wave, level at both ends: (1 - cos pi p) / 2."""

    name: Literal["cosine"] = "cosine"  # type: ignore[assignment]

    def share(self, progress: float) -> float:
        return (1.0 - math.cos(math.pi * progress)) / 2.0


class Exponential(Linear):
    """Fast first and then ever slower: (1 - exp(-5p)) / (1 - exp(-5)), the divisor so that it arrives."""

    name: Literal["exponential"] = "exponential"  # type: ignore[assignment]

    def share(self, progress: float) -> float:
        return (1.0 - math.exp(-5.0 * progress)) / (1.0 - math.exp(-5.0))


class Sigmoid(Linear):
    """A logistic 1 / (1 + exp(-12 (p - 0.5))), rescaled so that it begins at 0 and arrives at 1."""

    name: Literal["sigmoid"] = "sigmoid"  # type: ignore[assignment]

    def share(self, progress: float) -> float:
        low, here, high = (1.0 / (1.0 + math.exp(-12.0 * (p - 0.5))) for p in (0.0, progress, 1.0))
        return (here - low) / (high - low)


class ThreePhase(Schedule):
    """Straight lines from 0 through (epochs, beta at their end) and then level, which is the third phase."""

    name: Literal["three_phase"] = "three_phase"
    phases: tuple[tuple[Length, Beta], ...] = Field(
        ((10.0, 1.0), (20.0, 2.0)), min_length=1, description="pairs of a phase's epochs and the beta at its end"
    )

    @property
    def corners(self) -> list[tuple[float, float]]:
        """The end of every phase: (epoch, beta)."""
        return list(accumulate(self.phases, lambda before, phase: (before[0] + phase[0], phase[1])))

    def __call__(self, epoch: float) -> float:
        begin, low = 0.0, 0.0
        for end, high in self.corners:
            if epoch < end:
                return low + (high - low) * max(epoch - begin, 0.0) / (end - begin)
            begin, low = end, high
        return low

    def summit(self) -> tuple[float, float]:
        return max([(0.0, 0.0), *self.corners], key=itemgetter(1))

    def compressed(self, factor: float, per: str = "step") -> Self:
        phases = tuple((epochs * factor, beta) for epochs, beta in self.phases)
        return self.model_copy(update={"phases": phases, "per": per})

    def events(self, until: float) -> Iterator[tuple[float, str]]:
        for i, (end, _) in enumerate(self.corners, 1):
            yield end, f"phase {i} ends{', first peak' * (end == self.first_peak)}"


class Cyclical(Schedule):
    """A wave of period `cycle_length`; `ramp_hold` (Fu et al. 2019) is held to the end of the cycle, that included."""

    name: Literal["cyclical"] = "cyclical"
    times: ClassVar[tuple[str, ...]] = ("cycle_length",)
    ascending: ClassVar[tuple[str, ...]] = ("min_beta", "max_beta")
    max_beta: MaxBeta = 0.1
    min_beta: MinBeta = 0.0
    cycle_length: Annotated[Length, Field(description="epochs of a cycle")] = 20.0
    wave: Annotated[Literal["triangle", "cosine", "ramp_hold"], Field(description="form of a cycle")] = "triangle"
    ramp_fraction: Annotated[float, Field(gt=0, le=1, strict=True, description="share of ramp_hold that rises")] = 0.5

    @property
    def rise(self) -> float:  # epochs from the beginning of a cycle to its peak
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

    def summit(self) -> tuple[float, float]:
        return self.rise if self.max_beta > self.min_beta else 0.0, self.max_beta

    def events(self, until: float) -> Iterator[tuple[float, str]]:
        for i in range(int(until / self.cycle_length + NEAR) + 1):
            yield i * self.cycle_length, f"cycle {i} ends"
            yield i * self.cycle_length + self.rise, f"peak {i + 1}"


def names(kinds: Any) -> list[str]:
    """The names of a union of schedules."""
    return [kind.model_fields["name"].default for kind in get_args(kinds)]


INNER = PlainSerializer(lambda part: part.model_dump(mode="json", by_alias=True, exclude={"per"}))
"""Annotation of a schedule within another: `per` belongs to the outer table alone."""

Warmups = LinearWarmup | UltraConservative | Aggressive
Curve = Constant | Warmups | ThreePhase | Linear | Cosine | Exponential | Sigmoid | Cyclical
Base = Annotated[Curve, Field(discriminator="name"), or_plugin("schedules", names(Curve)), INNER]


class WarmRestart(Schedule):
    """A base schedule whose clock returns to 0 at every restart (after the warm restarts of Loshchilov, Hutter 2017).

    The intervals I, I*m, I*m^2 end at sums rounded half up to `restart_unit` epochs: 40 and 1.2 give 40, 88, 146.
    """

    name: Literal["warm_restart"] = "warm_restart"
    times: ClassVar[tuple[str, ...]] = ("restart_interval", "restart_unit")
    ascending: ClassVar[tuple[str, ...]] = ("restart_unit", "restart_interval")
    restart_interval: Annotated[Length, Field(description="epochs to the first restart")] = 40.0
    restart_multiplier: Annotated[float, Field(ge=1, le=100, strict=True, description="growth of the intervals")] = 1.2
    restart_unit: Annotated[Length, Field(description="epochs; restarts are rounded to multiples of it")] = 1.0
    base: Base = Field(default_factory=lambda: Cosine(max_beta=1.0, warmup_epochs=20.0))

    def intervals(self) -> Iterator[tuple[float, float]]:
        """The epochs of every restart (0 for the start) and of the next one, without end."""
        last, total, interval = 0.0, 0.0, self.restart_interval
        while True:
            total, interval = total + interval, interval * self.restart_multiplier
            restart = math.floor(total / self.restart_unit + 0.5 + NEAR) * self.restart_unit
            yield last, restart
            last = restart

    def interval(self, epoch: float) -> tuple[float, float]:
        """The restart at or before an epoch (0 if there was none) and the one after it."""
        return next(both for both in self.intervals() if both[1] > epoch + NEAR)

    def __call__(self, epoch: float) -> float:
        return self.base(max(epoch - self.interval(epoch)[0], 0.0))

    def summit(self) -> tuple[float, float]:
        lengths = [(start, round(end - start, 9)) for start, end in islice(self.intervals(), 1000)]  # no run has more
        rise, peak = self.base.summit()
        start, length = next((one for one in lengths if one[1] >= rise), max(lengths, key=itemgetter(1)))
        if length >= rise:
            return start + rise, peak
        highest = self.base.argmax(length)
        return start + highest, self.base(highest)

    @property
    def period(self) -> float | None:
        whole = math.isclose(self.restart_interval % self.restart_unit, 0.0, abs_tol=NEAR)
        return self.restart_interval if self.restart_multiplier == 1 and whole else None

    def cycle(self, epoch: float) -> float:
        last, following = self.interval(epoch)
        return following - last

    def restart_info(self, epoch: float) -> dict[str, float]:
        last, following = (int(at) if at == int(at) else at for at in self.interval(epoch))
        return {
            "last_restart_epoch": last,
            "epochs_since_restart": epoch - last,
            "next_restart_epoch": following,
            "is_restart_epoch": last > 0 and epoch - last < 1,
        }

    def events(self, until: float) -> Iterator[tuple[float, str]]:
        yield self.first_peak, "first peak"
        for i, (restart, _) in enumerate(takewhile(lambda interval: interval[0] <= until, self.intervals())):
            yield restart, f"restart {i}"


Open = Curve | WarmRestart
