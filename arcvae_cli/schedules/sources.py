"""The functions and classes of the source documents, by their names and nested dictionaries."""
# ruff: noqa: ARG002 - a method of the base has its docstring there, and not every scheduler needs its arguments

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

from arcvae_cli.schedules.base import Schedule
from arcvae_cli.schedules.feedback import Feedback, matching
from arcvae_cli.schedules.registry import SCHEDULES, WarmRestart, build_schedule, parameters

_REMEDY = 'get_beta_scheduler("<name>").observe(...) does, and arcvae_cli.controllers.Controller on a device'
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
    Raises ValueError for an unknown schedule or a value out of its range, for `max_beta` where there is none, and for
    a schedule that takes feedback, of which the epoch alone decides nothing.
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
        if self.schedule.closed_loop:
            raise ValueError(f"{schedule_type} takes feedback, {type(self).__name__} gives none: {_REMEDY}")

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
        if self.schedule.closed_loop:
            raise ValueError(f"a level of this hierarchical schedule takes feedback: {_REMEDY}")

    def __call__(self, epoch: float) -> dict[str, float]:
        return {f"{level}_kl_weight": beta for level, beta in self.schedule.betas(epoch, ("global", "local")).items()}


class FeedbackBetaScheduler:
    """`kl_capacity`, `controlvae` or `geco`: `.observe` takes each batch and gives its beta, a call gives the last one.

    Keeps its state in `.state_dict()` and what it gave in `.beta_history`.
    """

    schedule: Feedback

    def __init__(self, schedule_type: str, **params: Any) -> None:
        schedule = _from_source(schedule_type, params)
        if not isinstance(schedule, Feedback):
            raise ValueError(f"{schedule_type} takes no feedback as a whole: use get_beta_scheduler, or Controller")
        self.schedule = schedule
        self.schedule_type = schedule_type
        self.current_epoch: float = 0
        self.beta_history: list[float] = []
        self._state = schedule.begin()

    def observe(self, *, epoch: float, kl: float | None = None, reconstruction: float | None = None) -> float:
        """Beta of a batch with this KL in nats per example and this reconstruction in nats per position.

        Raises ValueError where the one that the schedule watches is missing.
        """
        values = {"kl": kl, "reconstruction": reconstruction}
        if values[self.schedule.quantity] is None:
            raise ValueError(f"{self.schedule_type} watches the {self.schedule.quantity}: it has to be given")
        self.current_epoch = epoch
        self._state, beta = self.schedule.observe(self._state, epoch, kl or 0.0, reconstruction or 0.0)
        self.beta_history.append(beta)
        return beta

    def __call__(self, epoch: float) -> float:
        """The present beta, whichever epoch it is."""
        return self._state["beta"]

    def state_dict(self) -> dict[str, float]:
        """The state, in plain numbers."""
        return dict(self._state)

    def load_state_dict(self, values: Mapping[str, float]) -> None:
        """Go on from a state; ValueError if it is another schedule's."""
        self._state = matching(values, self._state, self.schedule_type)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.schedule!r})"


_SCHEDULERS: dict[str, type[CyclicalBetaScheduler | WarmRestartBetaScheduler | HierarchicalBetaScheduler]] = {
    "cyclical": CyclicalBetaScheduler,
    "warm_restart": WarmRestartBetaScheduler,
    "hierarchical": HierarchicalBetaScheduler,
}


def get_beta_scheduler(type: str, **params: Any) -> BetaScheduler | HierarchicalBetaScheduler | FeedbackBetaScheduler:
    """A scheduler by its name and the nested dictionaries of the source documents.

    Raises ValueError with the valid names, the keys that the schedule takes, or the range of a value.
    """
    schedule = _from_source(type, params)  # unlike `BetaScheduler`, nothing is passed over
    if isinstance(schedule, Feedback):
        return FeedbackBetaScheduler(type, **params)
    return _SCHEDULERS[type](**params) if type in _SCHEDULERS else BetaScheduler(type, **params)
