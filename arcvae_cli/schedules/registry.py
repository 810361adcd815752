"""The schedule of two levels, and the registry of all schedules by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, ValidationError
from typing_extensions import Self

from arcvae_cli.errors import first_fault
from arcvae_cli.schedules.feedback import ControlVAE, Geco, KLCapacity
from arcvae_cli.schedules.open import INNER, Cosine, Curve, Cyclical, Schedule, WarmRestart

Part = Annotated[Curve | WarmRestart | KLCapacity | ControlVAE | Geco, Field(discriminator="name"), INNER[0], INNER[1]]


class Hierarchical(Schedule):
    """Two schedules, for the levels `global` and `local`; as one number it is the larger beta, the later first peak."""

    model_config = ConfigDict(populate_by_name=True)
    name: Literal["hierarchical"] = "hierarchical"
    global_: Part = Field(alias="global", default_factory=lambda: Cosine(max_beta=0.01, warmup_epochs=10.0))
    local: Part = Field(default_factory=lambda: Cyclical(max_beta=0.02, cycle_length=25.0, wave="cosine"))

    @property
    def parts(self) -> dict[str, Schedule]:
        own: dict[str, Schedule] = {"global": self.global_, "local": self.local}
        return {  # a closed loop moves with every step
            level: part if part.closed_loop else part.model_copy(update={"per": self.per})
            for level, part in own.items()
        }

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
        return max(part.cycle(epoch) or 0.0 for part in self.parts.values()) or None

    def warning(self, epochs: float) -> str | None:
        found = {level: part.warning(epochs) for level, part in self.parts.items()}
        return "; ".join(f"{level} {text}" for level, text in found.items() if text) or None

    def stretched(self, factor: float) -> Self:
        return self.model_copy(update={key: getattr(self, key).stretched(factor) for key in ("global_", "local")})

    def restart_info(self, epoch: float) -> dict[str, float] | None:
        return self.global_.restart_info(epoch) or self.local.restart_info(epoch)

    def events(self, until: float) -> Iterator[tuple[float, str]]:
        for level, part in self.parts.items():
            yield from ((epoch, f"{level}: {text}") for epoch, text in part.events(until))


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
    kind = SCHEDULES.get(str(table.get("name")))
    if kind is None:
        raise ValueError(f"unknown schedule {table.get('name')!r}: the schedules are {', '.join(SCHEDULES)}")
    try:
        return kind.model_validate(dict(table))
    except ValidationError as error:
        key, problem, fix = first_fault(error, lambda path: schedule_keys(table, path))
        where = ": ".join(["schedule " + kind.model_fields["name"].default, *([key] if key else [])])
        raise ValueError(f"{where}: {problem}" + (f"; {fix}" if fix else "")) from None


def schedule_keys(table: Mapping[str, Any], path: Sequence[str] = ()) -> list[str]:
    """The keys, without `name`, that the schedule at a path within a schedule's table takes."""
    for part in path:
        table = table[part]
    fields = SCHEDULES[table["name"]].model_fields
    return [field.alias or key for key, field in fields.items() if key != "name"]
