"""Schedules of beta, the weight on the KL term: the public names, and those of the source documents.

A new one is a class in `open.py` or `feedback.py`, and its place in the unions at the end of both.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

from arcvae_cli.schedules.feedback import SCHEDULES, AnySchedule, Feedback, Hierarchical, build_schedule
from arcvae_cli.schedules.open import Schedule

__all__ = ["SCHEDULES", "AnySchedule", "Feedback", "Schedule", "build_schedule", "get_beta_schedule"]
__all__ += ["BetaScheduler", "CyclicalBetaScheduler", "HierarchicalBetaScheduler", "WarmRestartBetaScheduler"]

_OWN_NAMES = {"wave_type": "wave", "global_scheduler": "global", "local_scheduler": "local"}
_TIMES = ("warmup_epochs", "ramp_epochs", "cycle_length")


def _table(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a schedule from a nested dictionary of the source documents, or with the keys of arcvae."""
    table = {"name": name, **{_OWN_NAMES.get(key, key): value for key, value in params.items()}}
    if "base_scheduler_type" in table:
        table["base"] = _table(table.pop("base_scheduler_type"), table.pop("base_scheduler_kwargs", {}))
    for key, value in table.items():
        if isinstance(value, Mapping) and "type" in value:
            table[key] = _table(value["type"], {inner: one for inner, one in value.items() if inner != "type"})
    return table


class Scheduler:
    """A schedule from the dictionaries of the source documents; `.step` adds to `.beta_history`, a call does not."""

    def __init__(self, type: str, **params: Any) -> None:
        self.schedule = build_schedule(_table(type, params))
        self.get_restart_info = self.schedule.restart_info
        self.beta_history: list[Any] = []

    def __call__(self, epoch: float) -> Any:
        if isinstance(self.schedule, Hierarchical):
            return {f"{level}_kl_weight": part(epoch) for level, part in self.schedule.parts.items()}
        return self.schedule(epoch)

    def step(self, epoch: float) -> Any:
        self.beta_history.append(self(epoch))
        return self.beta_history[-1]


get_beta_scheduler = Scheduler
CyclicalBetaScheduler = partial(Scheduler, "cyclical")
WarmRestartBetaScheduler = partial(Scheduler, "warm_restart")
HierarchicalBetaScheduler = partial(Scheduler, "hierarchical")


def BetaScheduler(schedule_type: str = "linear_warmup", **params: Any) -> Scheduler:  # noqa: N802 - the source's name
    """`get_beta_scheduler`, but None and times that the schedule does not use are ignored, as in the source."""
    known = SCHEDULES[schedule_type].model_fields if schedule_type in SCHEDULES else ()
    given = {k: v for k, v in params.items() if v is not None and (k in known or k not in _TIMES)}
    return Scheduler(schedule_type, **given)


def get_beta_schedule(epoch: float, schedule_type: str = "linear_warmup", **params: float | None) -> float:
    """Beta at an epoch; `params`: max_beta, warmup_epochs, ramp_epochs, cycle_length. ValueError as above."""
    return BetaScheduler(schedule_type, **params).schedule(epoch)
