"""Schedules made of others, and the registry of all names."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, pairwise, takewhile
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)
from typing_extensions import Self

from arcvae_cli.errors import first_fault
from arcvae_cli.schedules.base import NEAR, Schedule, Stretch
from arcvae_cli.schedules.feedback import ControlVAE, Geco, KLCapacity
from arcvae_cli.schedules.open import Cosine, Curve, Cyclical


class Nested(Schedule):
    """A schedule made of others, which share its clock: `per` belongs to the outer table and is not written within."""

    tables: ClassVar[tuple[str, ...]]  # the names of the inner tables

    @model_validator(mode="before")
    @classmethod
    def _one_clock(cls, table: Any) -> Any:
        for key in cls.tables if isinstance(table, Mapping) else ():
            if isinstance(table.get(key), Mapping) and "per" in table[key]:
                raise ValueError(f"{key}.per: {key} has no clock of its own, set per in the table around it")
        return table

    @model_serializer(mode="wrap")
    def _plain(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        table = {key.rstrip("_"): value for key, value in handler(self).items()}  # `global` is a keyword of Python
        for key in table.keys() & self.tables:
            table[key] = {k: v for k, v in table[key].items() if k != "per"}
        return table


def _timed(part: Schedule, per: Literal["epoch", "step"]) -> Schedule:
    """A part with a clock; a closed loop moves with every step whatever the clock."""
    return part if part.closed_loop else part.model_copy(update={"per": per})


class WarmRestart(Nested):
    """A base schedule whose clock returns to 0 at every restart (after the warm restarts of Loshchilov, Hutter 2017).

    The intervals I, I*m, I*m^2 end at sums rounded half up to `restart_unit` epochs: 40 and 1.2 give 40, 88, 146.
    """

    name: Literal["warm_restart"] = "warm_restart"
    tables: ClassVar[tuple[str, ...]] = ("base",)
    times: ClassVar[tuple[str, ...]] = ("restart_interval", "restart_unit")
    restart_interval: Annotated[Stretch, Field(description="epochs to the first restart")] = 40.0
    restart_multiplier: Annotated[float, Field(ge=1, le=100, strict=True, description="growth of the intervals")] = 1.2
    restart_unit: Annotated[Stretch, Field(description="epochs; restarts are rounded to multiples of it")] = 1.0
    base: Annotated[Curve, Field(discriminator="name")] = Field(
        default_factory=lambda: Cosine(max_beta=1.0, warmup_epochs=20.0)
    )

    @model_validator(mode="after")
    def _restarts_apart(self) -> Self:
        if self.restart_interval < self.restart_unit:
            raise ValueError(f"restart_interval must be at least restart_unit, {self.restart_unit:g} epochs")
        return self

    def restarts(self) -> Iterator[float]:
        """The epochs of the restarts, without end."""
        total, interval = 0.0, self.restart_interval
        while True:
            total, interval = total + interval, interval * self.restart_multiplier
            yield math.floor(total / self.restart_unit + 0.5 + NEAR) * self.restart_unit

    def interval(self, epoch: float) -> tuple[float, float]:
        """The restart at or before an epoch (0 if there was none) and the one after it."""
        last = 0.0
        for restart in self.restarts():
            if restart > epoch + NEAR:
                break
            last = restart
        return last, restart

    def __call__(self, epoch: float) -> float:
        return self.base(max(epoch - self.interval(epoch)[0], 0.0))

    def _crest(self) -> tuple[float, float]:
        """The start of the first interval in which beta reaches its peak, and the epochs from there."""
        intervals = list(pairwise([0.0, *islice(self.restarts(), 1000)]))  # no run has more
        for begin, end in intervals:
            if end - begin >= self.base.first_peak:
                return begin, self.base.first_peak
        begin, end = max(intervals, key=lambda at: round(at[1] - at[0], 9))
        return begin, self.base.highest(end - begin)

    @property
    def peak(self) -> float:
        since = self._crest()[1]
        return self.base.peak if since == self.base.first_peak else self.base(since)

    @property
    def first_peak(self) -> float:
        return sum(self._crest())

    @property
    def aim(self) -> float:
        return self.base.peak

    def _why(self, epochs: float) -> str:
        if self.peak < self.aim:
            return f"every restart comes before the base is at its peak, {self.base.first_peak:g} epochs after the last"
        return super()._why(epochs)

    @property
    def period(self) -> float | None:
        whole = math.isclose(self.restart_interval % self.restart_unit, 0.0, abs_tol=NEAR)
        return self.restart_interval if self.restart_multiplier == 1 and whole else None

    def cycle(self, epoch: float) -> float:
        last, following = self.interval(epoch)
        return following - last

    def compressed(self, factor: float) -> Self:
        return super().compressed(factor).model_copy(update={"base": _timed(self.base.compressed(factor), "epoch")})

    def restart_info(self, epoch: float) -> dict[str, float]:
        """The restarts around an epoch; before the first, `last_restart_epoch` is 0, where the clock began."""
        last, following = (int(at) if at == int(at) else at for at in self.interval(epoch))
        return {
            "last_restart_epoch": last,
            "epochs_since_restart": epoch - last,
            "next_restart_epoch": following,
            "is_restart_epoch": last > 0 and epoch - last < 1,
        }

    def describe(self) -> str:
        restarts = ", ".join(f"{epoch:g}" for epoch in islice(self.restarts(), 3))
        return f"{self.base.describe()}; begun again at epochs {restarts} and so on"

    def _marks(self, until: float) -> list[tuple[float, str]]:
        base = [mark for mark in self.base.marks(min(until, self.restart_interval)) if mark[1] != "first peak"]
        peak = [(self.first_peak, "first peak")] if self.first_peak > 0 else []
        restarts = enumerate(takewhile(lambda at: at <= until, self.restarts()), 1)
        return sorted([*base, *peak, *((restart, f"restart {i}") for i, restart in restarts)])


Part = Annotated[Curve | WarmRestart | KLCapacity | ControlVAE | Geco, Field(discriminator="name")]


class Hierarchical(Nested):
    """Two schedules, for the levels `global` and `local`; as one number it is the larger beta, the later first peak."""

    model_config = ConfigDict(populate_by_name=True)
    name: Literal["hierarchical"] = "hierarchical"
    tables: ClassVar[tuple[str, ...]] = ("global", "local")
    global_: Part = Field(alias="global", default_factory=lambda: Cosine(max_beta=0.01, warmup_epochs=10.0))
    local: Part = Field(default_factory=lambda: Cyclical(max_beta=0.02, cycle_length=25.0, wave="cosine"))

    @property
    def parts(self) -> dict[str, Schedule]:
        return {"global": _timed(self.global_, self.per), "local": _timed(self.local, self.per)}

    @property
    def closed_loop(self) -> bool:
        return self.global_.closed_loop or self.local.closed_loop

    def by_level(self, levels: Sequence[str]) -> dict[str, Schedule]:
        own = self.parts
        if unknown := [level for level in levels if level not in own]:
            raise ValueError(f"schedule hierarchical has the levels global and local, not {', '.join(unknown)}")
        return {level: own[level] for level in levels}

    def __call__(self, epoch: float) -> float:
        return max(self.global_(epoch), self.local(epoch))

    @property
    def peak(self) -> float:
        return max(self.global_.peak, self.local.peak)

    @property
    def first_peak(self) -> float:
        return max(self.global_.first_peak, self.local.first_peak)

    def cycle(self, epoch: float) -> float | None:
        cycles = [part.cycle(epoch) for part in (self.global_, self.local)]
        return max((cycle for cycle in cycles if cycle), default=None)

    def shortfall(self, epochs: float) -> str | None:
        faults = {level: part.shortfall(epochs) for level, part in self.parts.items()}
        return "; ".join(f"{level} {fault}" for level, fault in faults.items() if fault) or None

    def compressed(self, factor: float) -> Self:
        parts = {key: _timed(getattr(self, key).compressed(factor), "epoch") for key in ("global_", "local")}
        return self.model_copy(update={"per": "step", **parts})

    def restart_info(self, epoch: float) -> dict[str, float] | None:
        found = (part.restart_info(epoch) for part in (self.global_, self.local))
        return next((info for info in found if info), None)

    def describe(self) -> str:
        return "; ".join(f"{level} {part.describe()}" for level, part in self.parts.items())

    def _marks(self, until: float) -> list[tuple[float, str]]:
        parts = self.parts.items()
        return sorted((epoch, f"{level}: {text}") for level, part in parts for epoch, text in part.marks(until))


AnySchedule = Annotated[
    Curve | WarmRestart | Hierarchical | KLCapacity | ControlVAE | Geco, Field(discriminator="name")
]

SCHEDULES: dict[str, type[Schedule]] = {
    kind.model_fields["name"].default: kind for kind in get_args(get_args(AnySchedule)[0])
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
        key, problem, fix = first_fault(error, lambda path: schedule_keys(table, path))
        where = f"schedule {name}: {key}: " if key else f"schedule {name}: "
        raise ValueError(f"{where}{problem}" + (f"; {fix}" if fix else "")) from None


def parameters(kind: type[Schedule]) -> list[str]:
    """The keys a schedule takes in its table, without `name`."""
    return [field.alias or key for key, field in kind.model_fields.items() if key != "name"]


def schedule_keys(table: Mapping[str, Any], path: Sequence[str]) -> list[str]:
    """The keys that the schedule at a path within a schedule's table takes."""
    for part in path:
        table = table[part]
    return parameters(SCHEDULES[table["name"]])
