"""Schedules made of others, and the registry of all names."""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Union

from pydantic import (
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

from arcvae_cli.schedules.base import NEAR, Schedule, Stretch
from arcvae_cli.schedules.feedback import ControlVAE, Feedback, Geco, KLCapacity
from arcvae_cli.schedules.open import (
    Aggressive,
    Constant,
    Cosine,
    Cyclical,
    Exponential,
    Linear,
    LinearWarmup,
    Sigmoid,
    ThreePhase,
    UltraConservative,
)

_RESTARTS = 1000  # how many restarts `top` looks through; no run has more


class Nested(Schedule):
    """A schedule made of others, which share its clock: `per` belongs to the outer table and is not written within."""

    tables: ClassVar[tuple[str, ...]]  # the names of the inner tables

    @model_validator(mode="before")
    @classmethod
    def _one_clock(cls, table: Any) -> Any:
        for key in cls.tables if isinstance(table, Mapping) else ():
            inner = table.get(key)
            if (isinstance(inner, Mapping) and "per" in inner) or (
                isinstance(inner, Schedule) and inner.per != "epoch" and not inner.closed_loop
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

    Without `feedback` those that take feedback are left out too.
    A union of all the classes would do the same, but have each of them built for every look at one.
    """

    def __init__(self, *but: str, feedback: bool = True) -> None:
        self.but = but
        self.feedback = feedback

    def kinds(self) -> dict[str, type[Schedule]]:
        """The schedules that may stand here, by name."""
        return {
            name: kind
            for name, kind in SCHEDULES.items()
            if name not in self.but and (self.feedback or not issubclass(kind, Feedback))
        }

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
    base: Annotated[Schedule, Named("warm_restart", "hierarchical", feedback=False)] = Field(
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
            yield math.floor(total / self.restart_unit + 0.5 + NEAR) * self.restart_unit

    def interval(self, epoch: float) -> tuple[float, float]:
        """The restart at or before an epoch (0 if there was none) and the one after it."""
        last = 0.0
        for restart in self.restarts():
            if restart > epoch + NEAR:
                return last, restart
            last = restart
        raise AssertionError("restarts go on for ever")

    def __call__(self, epoch: float) -> float:
        return self.base(max(epoch - self.interval(epoch)[0], 0.0))

    def top(self, until: float) -> tuple[float, float]:
        best, peak, begin = (self.base.start, 0.0), self.base.peak, 0.0
        for _, end in zip(range(_RESTARTS), self.restarts(), strict=False):
            beta, since = self.base.top(min(end, until) - begin)
            if beta > best[0] * (1 + NEAR):  # by more than a rounding: the first of equals counts
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
        whole = math.isclose(self.restart_interval % self.restart_unit, 0.0, abs_tol=NEAR)
        return self.restart_interval if self.restart_multiplier == 1 and whole else None

    def cycle(self, epoch: float) -> float:
        last, following = self.interval(epoch)
        return following - last

    def compressed(self, factor: float) -> Self:
        base = self.base.compressed(factor).model_copy(update={"per": "epoch"})
        return super().compressed(factor).model_copy(update={"base": base})

    def restart_info(self, epoch: float) -> dict[str, float]:
        return self.get_restart_info(epoch)

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
        return {"global": self._timed(self.global_, self.per), "local": self._timed(self.local, self.per)}

    @property
    def closed_loop(self) -> bool:
        return self.global_.closed_loop or self.local.closed_loop

    @staticmethod
    def _timed(part: Schedule, per: Literal["epoch", "step"]) -> Schedule:
        """A part with the clock of the whole; one that takes feedback moves with every step whatever the clock."""
        return part if part.closed_loop else part.model_copy(update={"per": per})

    def by_level(self, levels: Sequence[str]) -> dict[str, Schedule]:
        own = self.parts
        if unknown := [level for level in levels if level not in own]:
            raise ValueError(f"schedule hierarchical has the levels global and local, not {', '.join(unknown)}")
        return {level: own[level] for level in levels}

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
        parts = {"global_": self.global_.compressed(factor), "local": self.local.compressed(factor)}
        update = {key: self._timed(part, "epoch") for key, part in parts.items()}
        return self.model_copy(update={"per": "step", **update})

    def restart_info(self, epoch: float) -> dict[str, float] | None:
        found = (part.restart_info(epoch) for part in (self.global_, self.local))
        return next((info for info in found if info), None)

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
    "kl_capacity": KLCapacity,
    "controlvae": ControlVAE,
    "geco": Geco,
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
