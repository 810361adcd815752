"""Every schedule of beta, the weight on the KL term, and the registry of their names.

Time is counted in epochs from 1 and may be fractional; epoch 0 gives the value a schedule starts from. The schedules
are frozen and keep no count: whoever asks says which epoch it is. A new one is a class and a line in `SCHEDULES`.
"""
# ruff: noqa: D102, ARG002 - a method of the base has its docstring there, and not every schedule needs its arguments

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, Union

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError, core_schema
from typing_extensions import Self

Beta = Annotated[float, Field(ge=0, le=1e6, strict=True, description="weight on the KL term")]
Epochs = Annotated[float, Field(ge=0, le=1e6, strict=True, description="epochs, whole or not")]
Stretch = Annotated[float, Field(gt=0, le=1e6, strict=True, description="epochs, whole or not, more than 0")]

_NEAR = 1e-9  # epochs: compressed times are products of floats, and a restart must not miss its step by a rounding
_RESTARTS = 1000  # how many restarts `top` looks through; no run has more


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

    def betas(self, epoch: float, levels: Sequence[str]) -> dict[str, float]:
        """Beta of every level of latents at an epoch."""
        return dict.fromkeys(levels, self(epoch))

    def peaks(self, levels: Sequence[str]) -> dict[str, float]:
        """The largest beta of every level of latents."""
        return dict.fromkeys(levels, self.peak)

    @property
    def aim(self) -> float:
        """The beta that the schedule is meant to reach, which is its peak unless something stops it for ever."""
        return self.peak

    def _why(self, epochs: float) -> str:
        """What keeps a run of so many epochs from the aim."""
        return f"the first peak is at epoch {self.first_peak:g}, the run ends at {epochs:g}"


class Constant(Schedule):
    """One beta throughout (Higgins et al. 2017)."""

    name: Literal["constant"] = "constant"
    max_beta: Beta = 1.0

    def __call__(self, epoch: float) -> float:
        return self.max_beta

    def top(self, until: float) -> tuple[float, float]:
        return self.max_beta, 0.0

    def describe(self) -> str:
        return f"{self.max_beta:g} throughout"


class Rise(Schedule):
    """0 for `delay` epochs, up to `max_beta` in the `duration` after it, and there to the end."""

    max_beta: Beta
    how: ClassVar[str] = "in a straight line"

    @property
    @abstractmethod
    def delay(self) -> float:
        """Epochs at 0."""

    @property
    @abstractmethod
    def duration(self) -> float:
        """Epochs from 0 to `max_beta`."""

    def rising(self, elapsed: float) -> float:
        """Beta within the rise, `elapsed` epochs after it began."""
        return self.max_beta * elapsed / self.duration

    def __call__(self, epoch: float) -> float:
        elapsed = epoch - self.delay
        if elapsed <= 0:
            return 0.0
        return self.max_beta if elapsed >= self.duration else self.rising(elapsed)

    def top(self, until: float) -> tuple[float, float]:
        value = self(until)
        return (value, min(until, self.delay + self.duration)) if value > 0 else (0.0, 0.0)

    def describe(self) -> str:
        rise = f"{self.how} from 0 to {self.max_beta:g} at epoch {self.delay + self.duration:g}, held after"
        return f"0 to epoch {self.delay:g}, then {rise}" if self.delay else rise

    def _marks(self, until: float) -> list[tuple[float, str]]:
        begin = [(self.delay, "warm-up ends")] if self.delay else []
        return [*begin, (self.delay + self.duration, "first peak")]


class LinearWarmup(Rise):
    """A warm-up at 0 and then a straight ramp (Bowman et al. 2016 anneal the KL from 0 to 1)."""

    name: Literal["linear_warmup"] = "linear_warmup"
    times: ClassVar[tuple[str, ...]] = ("warmup_epochs", "ramp_epochs")
    max_beta: Beta = 0.5
    warmup_epochs: Epochs = 10.0
    ramp_epochs: Epochs = 50.0

    @property
    def delay(self) -> float:
        return self.warmup_epochs

    @property
    def duration(self) -> float:
        return self.ramp_epochs

    def _why(self, epochs: float) -> str:
        if epochs <= self.warmup_epochs:
            return "the warm-up is longer than the run"
        return f"the ramp ends at epoch {self.first_peak:g}, the run at {epochs:g}"


class UltraConservative(LinearWarmup):
    """`linear_warmup`, later, slower and to a tenth: for codes that collapse."""

    name: Literal["ultra_conservative"] = "ultra_conservative"  # type: ignore[assignment]
    max_beta: Beta = 0.1
    warmup_epochs: Epochs = 20.0
    ramp_epochs: Epochs = 60.0


class Aggressive(LinearWarmup):
    """`linear_warmup`, sooner and faster."""

    name: Literal["aggressive"] = "aggressive"  # type: ignore[assignment]
    warmup_epochs: Epochs = 5.0
    ramp_epochs: Epochs = 25.0


class Linear(Rise):
    """A straight rise from the first epoch on."""

    name: Literal["linear"] = "linear"
    times: ClassVar[tuple[str, ...]] = ("warmup_epochs",)
    max_beta: Beta = 1.0
    warmup_epochs: Epochs = 10.0

    @property
    def delay(self) -> float:
        return 0.0

    @property
    def duration(self) -> float:
        return self.warmup_epochs

    def shape(self, progress: float) -> float:
        """The share of `max_beta` at a share of the warm-up, 0 at 0 and 1 at 1."""
        return progress

    def rising(self, elapsed: float) -> float:
        return self.max_beta * self.shape(elapsed / self.duration)

    def _why(self, epochs: float) -> str:
        return "the warm-up is longer than the run"


class Cosine(Linear):
    """Half a cosine wave, level at both ends: (1 - cos pi p) / 2."""

    name: Literal["cosine"] = "cosine"  # type: ignore[assignment]
    how: ClassVar[str] = "along half a cosine"

    def shape(self, progress: float) -> float:
        return (1.0 - math.cos(math.pi * progress)) / 2.0


class Exponential(Linear):
    """Fast first and then ever slower: (1 - exp(-5p)) / (1 - exp(-5)), the divisor so that it arrives."""

    name: Literal["exponential"] = "exponential"  # type: ignore[assignment]
    how: ClassVar[str] = "exponentially, fast first,"

    def shape(self, progress: float) -> float:
        return (1.0 - math.exp(-5.0 * progress)) / (1.0 - math.exp(-5.0))


class Sigmoid(Linear):
    """A logistic 1 / (1 + exp(-12 (p - 0.5))), rescaled so that it begins at 0 and arrives at 1."""

    name: Literal["sigmoid"] = "sigmoid"  # type: ignore[assignment]
    how: ClassVar[str] = "along a logistic curve"

    def shape(self, progress: float) -> float:
        low, here, high = (1.0 / (1.0 + math.exp(-12.0 * (p - 0.5))) for p in (0.0, progress, 1.0))
        return (here - low) / (high - low)


class ThreePhase(Schedule):
    """Straight lines from 0 through (epochs, beta at their end) and then level, which is the third phase."""

    name: Literal["three_phase"] = "three_phase"
    phases: Annotated[
        tuple[tuple[Stretch, Beta], ...],
        Field(min_length=1, description="pairs of a phase's epochs and the beta at its end"),
    ] = ((10.0, 1.0), (20.0, 2.0))

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

    def top(self, until: float) -> tuple[float, float]:
        points = [(0.0, 0.0), *(corner for corner in self.corners() if corner[0] <= until)]
        if until < math.inf:
            points.append((until, self(until)))
        epoch, beta = max(points, key=lambda point: point[1])  # the first of equals
        return beta, epoch

    def compressed(self, factor: float) -> Self:
        phases = tuple((epochs * factor, beta) for epochs, beta in self.phases)
        return self.model_copy(update={"per": "step", "phases": phases})

    def describe(self) -> str:
        return "from 0 in straight lines to " + ", ".join(f"{b:g} at epoch {e:g}" for e, b in self.corners()) + ", held"

    def _marks(self, until: float) -> list[tuple[float, str]]:
        first = self.first_peak
        corners = enumerate(self.corners(), 1)
        return [(end, f"phase {i} ends" + (", first peak" if end == first else "")) for i, (end, _) in corners]


class Cyclical(Schedule):
    """A wave of period `cycle_length` between `min_beta` and `max_beta`.

    `ramp_hold` is the wave of Fu et al. 2019, up over a fraction R of the cycle and held to its end, the end included;
    `triangle` goes up over half of it and down again; `cosine` does so smoothly.
    """

    name: Literal["cyclical"] = "cyclical"
    times: ClassVar[tuple[str, ...]] = ("cycle_length",)
    max_beta: Beta = 0.1
    min_beta: Beta = 0.0
    cycle_length: Stretch = 20.0
    wave: Annotated[Literal["triangle", "cosine", "ramp_hold"], Field(description="form of a cycle")] = "triangle"
    ramp_fraction: Annotated[
        float, Field(gt=0, le=1, strict=True, description="share of a cycle that rises, for wave ramp_hold")
    ] = 0.5

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min_beta > self.max_beta:
            raise ValueError(f"min_beta {self.min_beta:g} is above max_beta {self.max_beta:g}")
        return self

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
        if self.wave == "ramp_hold" and epoch > _NEAR >= since:
            return self.max_beta  # the last moment of the cycle before, not the first of this one
        if since < self.rise:
            return self.min_beta + span * since / self.rise
        if self.wave == "ramp_hold":
            return self.max_beta
        return self.min_beta + span * (self.cycle_length - since) / self.rise

    def top(self, until: float) -> tuple[float, float]:
        if self.max_beta == self.min_beta:
            return self.max_beta, 0.0
        return (self.max_beta, self.rise) if until >= self.rise else (self(until), until)

    def describe(self) -> str:
        form = {"triangle": "up and down", "cosine": "a cosine wave", "ramp_hold": f"up in {self.rise:g} and held"}
        every = f"every {self.cycle_length:g} epochs"
        return f"between {self.min_beta:g} and {self.max_beta:g} {every}, {form[self.wave]}"

    def _marks(self, until: float) -> list[tuple[float, str]]:
        marks = [(self.rise, "first peak")]
        for i in range(1, int(until / self.cycle_length + _NEAR) + 1):
            marks.append((i * self.cycle_length, f"cycle {i} ends"))
            marks.append((i * self.cycle_length + self.rise, f"peak {i + 1}"))
        return [mark for mark in marks if mark[0] <= until]


class Nested(Schedule):
    """A schedule made of others, which share its clock: `per` belongs to the outer table and is not written within."""

    tables: ClassVar[tuple[str, ...]]  # the names of the inner tables

    @model_validator(mode="before")
    @classmethod
    def _one_clock(cls, table: Any) -> Any:
        for key in cls.tables if isinstance(table, Mapping) else ():
            inner = table.get(key)
            if (isinstance(inner, Mapping) and "per" in inner) or (
                isinstance(inner, Schedule) and inner.per != "epoch"
            ):
                raise ValueError(f"{key}.per: {key} has no clock of its own, set per in the table around it")
        return table

    @model_serializer(mode="wrap")
    def _plain(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # as it is written in TOML: `global`, which Python keeps to itself, and no inner `per`
        table = {key.rstrip("_"): value for key, value in handler(self).items()}
        for key in self.tables:
            if key in table:
                table[key] = {k: v for k, v in table[key].items() if k != "per"}
        return table


class Named:
    """Reads a table as the schedule that its `name` names, with those of `but` left out.

    A union of all the classes would do the same, but have each of them built for every look at one.
    """

    def __init__(self, *but: str) -> None:
        self.but = but

    def kinds(self) -> dict[str, type[Schedule]]:
        """The schedules that may stand here, by name."""
        return {name: kind for name, kind in SCHEDULES.items() if name not in self.but}

    def read(self, table: Any) -> Schedule:
        """The schedule of a table, or the schedule itself."""
        if not isinstance(table, Mapping | Schedule):
            raise PydanticCustomError("dict_type", "needs a table")
        name = table.name if isinstance(table, Schedule) else table.get("name")
        kinds = self.kinds()
        if not isinstance(name, str) or name not in kinds:
            known = ", ".join(kinds)
            raise PydanticCustomError(
                "union_tag_invalid", "needs the name of a schedule, one of {known}", {"known": known}
            )
        return kinds[name].model_validate(table)

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> CoreSchema:
        written = core_schema.plain_serializer_function_ser_schema(
            lambda schedule, info: schedule.model_dump(mode=info.mode), info_arg=True
        )
        return core_schema.no_info_plain_validator_function(self.read, serialization=written)

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        union: Any = Annotated[Union[tuple(self.kinds().values())], Field(discriminator="name")]  # noqa: UP007
        return handler(TypeAdapter(union).core_schema)


class WarmRestart(Nested):
    """A base schedule whose clock returns to 0 at every restart (after the warm restarts of Loshchilov, Hutter 2017).

    The intervals are I, I*m, I*m^2 and so on; restarts fall at their sums, rounded half up to `restart_unit` epochs:
    40 and 1.2 give 40, 88, 146.
    """

    name: Literal["warm_restart"] = "warm_restart"
    tables: ClassVar[tuple[str, ...]] = ("base",)
    times: ClassVar[tuple[str, ...]] = ("restart_interval", "restart_unit")
    restart_interval: Stretch = 40.0
    restart_multiplier: Annotated[
        float, Field(ge=1, le=100, strict=True, description="each interval over the one before")
    ] = 1.2
    restart_unit: Annotated[Stretch, Field(description="epochs; restarts are rounded to multiples of it")] = 1.0
    base: Annotated[Schedule, Named("warm_restart", "hierarchical")] = Field(
        default_factory=lambda: Cosine(max_beta=1.0, warmup_epochs=20.0)
    )

    @model_validator(mode="after")
    def _restarts_apart(self) -> Self:
        if self.restart_interval < self.restart_unit:
            least = f"at least restart_unit, {self.restart_unit:g} epochs"
            raise ValueError(f"restart_interval must be {least}, not {self.restart_interval:g}")
        return self

    def restarts(self) -> Iterator[float]:
        """The epochs of the restarts, without end."""
        total, interval = 0.0, self.restart_interval
        while True:
            total, interval = total + interval, interval * self.restart_multiplier
            yield math.floor(total / self.restart_unit + 0.5 + _NEAR) * self.restart_unit

    def interval(self, epoch: float) -> tuple[float, float]:
        """The restart at or before an epoch (0 if there was none) and the one after it."""
        last = 0.0
        for restart in self.restarts():
            if restart > epoch + _NEAR:
                return last, restart
            last = restart
        raise AssertionError("restarts go on for ever")

    def __call__(self, epoch: float) -> float:
        return self.base(max(epoch - self.interval(epoch)[0], 0.0))

    def top(self, until: float) -> tuple[float, float]:
        best, peak, begin = (self.base.start, 0.0), self.base.peak, 0.0
        for _, end in zip(range(_RESTARTS), self.restarts(), strict=False):
            beta, since = self.base.top(min(end, until) - begin)
            if beta > best[0] * (1 + _NEAR):  # by more than a rounding: the first of equals counts
                best = beta, begin + since
            if end > until or beta >= peak:
                break
            begin = end
        return best

    @property
    def aim(self) -> float:
        return self.base.peak

    def _why(self, epochs: float) -> str:
        if self.peak < self.aim:
            return f"every restart comes before the base is at its peak, {self.base.first_peak:g} epochs after the last"
        return super()._why(epochs)

    @property
    def period(self) -> float | None:
        whole = math.isclose(self.restart_interval % self.restart_unit, 0.0, abs_tol=_NEAR)
        return self.restart_interval if self.restart_multiplier == 1 and whole else None

    def cycle(self, epoch: float) -> float:
        last, following = self.interval(epoch)
        return following - last

    def compressed(self, factor: float) -> Self:
        base = self.base.compressed(factor).model_copy(update={"per": "epoch"})
        return super().compressed(factor).model_copy(update={"base": base})

    def get_restart_info(self, epoch: float) -> dict[str, float]:
        """The restarts around an epoch, in epochs; `is_restart_epoch` is true if one falls within the epoch's span.

        Before the first restart `last_restart_epoch` is 0, where the clock began.
        """
        last, following = (int(at) if at == int(at) else at for at in self.interval(epoch))
        return {
            "last_restart_epoch": last,
            "epochs_since_restart": epoch - last,
            "next_restart_epoch": following,
            "is_restart_epoch": last > 0 and epoch - last < 1,
        }

    def describe(self) -> str:
        restarts = ", ".join(f"{epoch:g}" for _, epoch in zip(range(3), self.restarts(), strict=False))
        return f"{self.base.describe()}; begun again at epochs {restarts} and so on"

    def _marks(self, until: float) -> list[tuple[float, str]]:
        marks = [mark for mark in self.base.marks(min(until, self.restart_interval)) if mark[1] != "first peak"]
        if self.first_peak > 0:
            marks.append((self.first_peak, "first peak"))
        for i, restart in enumerate(self.restarts(), 1):
            if restart > until:
                return sorted(marks)
            marks.append((restart, f"restart {i}"))
        raise AssertionError("restarts go on for ever")


class Hierarchical(Nested):
    """Two schedules, for the levels `global` and `local` of a hierarchical model.

    As one number it is the larger of the two betas; its first peak is the epoch by which both have peaked, its period
    the longer one.
    """

    model_config = ConfigDict(populate_by_name=True)
    name: Literal["hierarchical"] = "hierarchical"
    tables: ClassVar[tuple[str, ...]] = ("global", "local")
    global_: Annotated[Schedule, Named("hierarchical")] = Field(
        alias="global", default_factory=lambda: Cosine(max_beta=0.01, warmup_epochs=10.0)
    )
    local: Annotated[Schedule, Named("hierarchical")] = Field(
        default_factory=lambda: Cyclical(max_beta=0.02, cycle_length=25.0, wave="cosine")
    )

    @property
    def parts(self) -> dict[str, Schedule]:
        clock = {"per": self.per}
        return {"global": self.global_.model_copy(update=clock), "local": self.local.model_copy(update=clock)}

    def __call__(self, epoch: float) -> float:
        return max(self.global_(epoch), self.local(epoch))

    def top(self, until: float) -> tuple[float, float]:
        betas, epochs = zip(self.global_.top(until), self.local.top(until), strict=True)
        return max(betas), max(epochs)

    @property
    def period(self) -> float | None:
        return max((part.period for part in (self.global_, self.local) if part.period), default=None)

    def cycle(self, epoch: float) -> float | None:
        cycles = [part.cycle(epoch) for part in (self.global_, self.local)]
        return max((cycle for cycle in cycles if cycle), default=None)

    def reached(self, epochs: float) -> float:
        return max(part.reached(epochs) for part in self.parts.values())

    def compressed(self, factor: float) -> Self:
        clock = {"per": "epoch"}
        update = {key: getattr(self, key).compressed(factor).model_copy(update=clock) for key in ("global_", "local")}
        return self.model_copy(update={"per": "step", **update})

    def betas(self, epoch: float, levels: Sequence[str]) -> dict[str, float]:
        parts = self._of(levels)
        return {level: part(epoch) for level, part in parts.items()}

    def peaks(self, levels: Sequence[str]) -> dict[str, float]:
        return {level: part.peak for level, part in self._of(levels).items()}

    def _of(self, levels: Sequence[str]) -> dict[str, Schedule]:
        own: dict[str, Schedule] = {"global": self.global_, "local": self.local}
        if unknown := [level for level in levels if level not in own]:
            raise ValueError(f"schedule hierarchical has the levels global and local, not {', '.join(unknown)}")
        return {level: own[level] for level in levels}

    def describe(self) -> str:
        return f"global {self.global_.describe()}; local {self.local.describe()}"

    def _marks(self, until: float) -> list[tuple[float, str]]:
        parts = self.parts.items()
        return sorted((epoch, f"{level}: {text}") for level, part in parts for epoch, text in part.marks(until))


AnySchedule = Annotated[Schedule, Named()]

SCHEDULES: dict[str, type[Schedule]] = {
    "constant": Constant,
    "linear_warmup": LinearWarmup,
    "ultra_conservative": UltraConservative,
    "aggressive": Aggressive,
    "three_phase": ThreePhase,
    "linear": Linear,
    "cosine": Cosine,
    "exponential": Exponential,
    "sigmoid": Sigmoid,
    "cyclical": Cyclical,
    "warm_restart": WarmRestart,
    "hierarchical": Hierarchical,
}


def build_schedule(table: Mapping[str, Any]) -> Schedule:
    """A schedule from a table of `name` and parameters, as TOML has them.

    Raises ValueError with a line on what is wrong: the valid names, the keys the schedule takes, or the range.
    """
    kind = SCHEDULES.get(name) if isinstance(name := table.get("name"), str) else None
    if kind is None:
        raise ValueError(f"unknown schedule {name!r}: the schedules are {', '.join(SCHEDULES)}")
    try:
        return kind.model_validate(dict(table))
    except ValidationError as error:
        raise ValueError(_first_fault(table, error)) from None


def parameters(kind: type[Schedule]) -> list[str]:
    """The keys a schedule takes in its table, without `name`."""
    return [field.alias or key for key, field in kind.model_fields.items() if key != "name"]


def _first_fault(table: Mapping[str, Any], error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    path = [str(part) for part in fault["loc"]]
    key, name, inner = ".".join(path), table["name"], table
    for part in path:  # to the table within which the fault is
        inner = inner.get(part, {})
        if not isinstance(inner, Mapping):
            break
        name = inner.get("name", name)
    match fault["type"]:
        case "extra_forbidden":
            takes = parameters(SCHEDULES[name])
            near = difflib.get_close_matches(path[-1], takes, n=1)
            guess = f" (did you mean {near[0]}?)" if near else ""
            return f"schedule {name} has no use for {key}{guess}: it takes {', '.join(takes)}"
        case "union_tag_invalid":
            return f"{key} {fault['msg']}"
        case "value_error":
            return f"schedule {name}: {fault['ctx']['error']}"
    text = fault["msg"].replace("Input should", "should").replace("Tuple should", "should")
    return f"schedule {name}: {key} {text}, got {fault['input']!r:.60}"


def shortfall(schedule: Schedule, epochs: float) -> str | None:
    """What a run of so many epochs misses of its schedule's maximum, or None if it gets there.

    >>> shortfall(UltraConservative(), 10)
    'beta ends at 0 of 0.1: the warm-up is longer than the run'
    """
    faults = [_shortfall(level, part, epochs) for level, part in schedule.parts.items()]
    return "; ".join(fault for fault in faults if fault) or None


def _shortfall(level: str, schedule: Schedule, epochs: float) -> str | None:
    reached, aim, over = schedule.reached(epochs), schedule.aim, epochs >= schedule.first_peak
    # a wave whose crest falls between two epochs loses a little of it every time, which is no news
    if reached >= (0.9 if over else 1.0) * aim:
        return None
    why = schedule._why(epochs)
    if over and schedule.peak == aim and schedule.reached(epochs + 1) < 0.9 * aim:
        why = 'its peak falls between whole epochs, per = "step" would visit it'
    verb = "ends at" if reached == schedule(epochs) else "reaches"
    return f"{level} beta {verb} {reached:.3g} of {aim:.3g}: {why}".lstrip()


# ------------------------------------------------------------------------------------ the names of the source documents

_SOURCE_NAMES = {"wave_type": "wave", "global_scheduler": "global", "local_scheduler": "local"}


def _from_source(name: str, params: Mapping[str, Any]) -> Schedule:
    """A schedule from a nested dictionary as the source documents write it, or with the keys of this module."""
    return build_schedule(_table(name, params))


def _table(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    table: dict[str, Any] = {"name": name}
    rest = dict(params)
    kwargs = rest.pop("base_scheduler_kwargs", {})
    if "base_scheduler_type" in rest:
        table["base"] = _table(rest.pop("base_scheduler_type"), kwargs)
    elif kwargs:
        raise ValueError("base_scheduler_kwargs needs a base_scheduler_type")
    for key, value in rest.items():
        if isinstance(value, Mapping) and "type" in value:
            value = _table(value["type"], {k: v for k, v in value.items() if k != "type"})
        table[_SOURCE_NAMES.get(key, key)] = value
    return table


def _of_use(schedule_type: str, times: Mapping[str, float | None]) -> dict[str, float]:
    takes = parameters(SCHEDULES[schedule_type]) if schedule_type in SCHEDULES else []
    return {key: value for key, value in times.items() if value is not None and (key in takes or key == "max_beta")}


def get_beta_schedule(
    epoch: float,
    schedule_type: str = "linear_warmup",
    max_beta: float | None = None,
    warmup_epochs: float | None = None,
    ramp_epochs: float | None = None,
    cycle_length: float | None = None,
) -> float:
    """Beta at an epoch of a schedule by its name; what is not given has the schedule's own default.

    As in the source, one list of arguments serves every schedule, which passes over the times it has no use for.
    Raises ValueError for an unknown schedule or a value out of its range, and for `max_beta` where there is none.
    """
    times = {"warmup_epochs": warmup_epochs, "ramp_epochs": ramp_epochs, "cycle_length": cycle_length}
    return _from_source(schedule_type, _of_use(schedule_type, {"max_beta": max_beta, **times}))(epoch)


_Value = TypeVar("_Value")


class _Scheduler(ABC, Generic[_Value]):
    """A schedule with a record of what was asked: `.step(epoch)` writes to `.beta_history`, a call does not."""

    schedule: Schedule

    def __init__(self, schedule_type: str, params: Mapping[str, Any]) -> None:
        self.schedule = _from_source(schedule_type, params)
        self.schedule_type = schedule_type
        self.current_epoch: float = 0
        self.beta_history: list[_Value] = []

    @abstractmethod
    def __call__(self, epoch: float) -> _Value:
        """The value at an epoch."""

    def step(self, epoch: float) -> _Value:
        """The value at an epoch, put on record."""
        self.current_epoch = epoch
        self.beta_history.append(self(epoch))
        return self.beta_history[-1]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.schedule!r})"


class BetaScheduler(_Scheduler[float]):
    """Any schedule by its name; passes over times it has no use for, as `get_beta_schedule` does."""

    def __init__(
        self,
        schedule_type: str = "linear_warmup",
        max_beta: float | None = None,
        warmup_epochs: float | None = None,
        ramp_epochs: float | None = None,
        cycle_length: float | None = None,
        **params: Any,
    ) -> None:
        times = {"warmup_epochs": warmup_epochs, "ramp_epochs": ramp_epochs, "cycle_length": cycle_length}
        super().__init__(schedule_type, {**_of_use(schedule_type, {"max_beta": max_beta, **times}), **params})

    def __call__(self, epoch: float) -> float:
        return self.schedule(epoch)


class CyclicalBetaScheduler(BetaScheduler):
    """`cyclical`, by `cycle_length`, `min_beta`, `max_beta` and `wave_type`."""

    def __init__(self, **params: Any) -> None:
        super().__init__("cyclical", **params)


class WarmRestartBetaScheduler(BetaScheduler):
    """`warm_restart`, by `base_scheduler_type`, `base_scheduler_kwargs`, `restart_interval`, `restart_multiplier`."""

    schedule: WarmRestart

    def __init__(self, **params: Any) -> None:
        super().__init__("warm_restart", **params)

    def get_restart_info(self, epoch: float) -> dict[str, float]:
        """See `WarmRestart.get_restart_info`."""
        return self.schedule.get_restart_info(epoch)


class HierarchicalBetaScheduler(_Scheduler[dict[str, float]]):
    """`hierarchical`, by `global_scheduler` and `local_scheduler`; gives `global_kl_weight` and `local_kl_weight`."""

    def __init__(self, **params: Any) -> None:
        super().__init__("hierarchical", params)

    def __call__(self, epoch: float) -> dict[str, float]:
        return {f"{level}_kl_weight": beta for level, beta in self.schedule.betas(epoch, ("global", "local")).items()}


_SCHEDULERS: dict[str, type[CyclicalBetaScheduler | WarmRestartBetaScheduler | HierarchicalBetaScheduler]] = {
    "cyclical": CyclicalBetaScheduler,
    "warm_restart": WarmRestartBetaScheduler,
    "hierarchical": HierarchicalBetaScheduler,
}


def get_beta_scheduler(type: str, **params: Any) -> BetaScheduler | HierarchicalBetaScheduler:
    """A scheduler by its name and the nested dictionaries of the source documents.

    Raises ValueError with the valid names, the keys that the schedule takes, or the range of a value.
    """
    _from_source(type, params)  # unlike `BetaScheduler`, nothing is passed over
    return _SCHEDULERS[type](**params) if type in _SCHEDULERS else BetaScheduler(type, **params)
