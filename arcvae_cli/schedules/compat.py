"""The functions and classes of the source documents, under their names and with their nested dictionaries."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from arcvae_cli.schedules.base import Schedule
from arcvae_cli.schedules.feedback import Feedback
from arcvae_cli.schedules.registry import SCHEDULES, build_schedule, parameters

_REMEDY = 'get_beta_scheduler("<name>").observe(...) does, and arcvae_cli.controllers.Controller on a device'
_SOURCE_NAMES = {"wave_type": "wave", "global_scheduler": "global", "local_scheduler": "local"}


def _table(name: str, params: Mapping[str, Any]) -> dict[str, Any]:
    """The table of a schedule from a nested dictionary of the source documents, or with the keys of arcvae."""
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


def get_beta_schedule(
    epoch: float,
    schedule_type: str = "linear_warmup",
    max_beta: float | None = None,
    warmup_epochs: float | None = None,
    ramp_epochs: float | None = None,
    cycle_length: float | None = None,
) -> float:
    """Beta at an epoch of a schedule by its name; arguments that are not given have the schedule's own default.

    As in the source, one list of arguments serves every schedule, and times that it does not use are ignored.
    Raises ValueError for an unknown schedule or a value out of its range, for `max_beta` where there is none, and for
    a closed loop, whose beta does not depend on the epoch alone.
    """
    return float(BetaScheduler(schedule_type, max_beta, warmup_epochs, ramp_epochs, cycle_length)(epoch))


class BetaScheduler:
    """Any open-loop schedule by its name, with a history: `.step(epoch)` writes to `.beta_history`, a call does not.

    Times that the schedule does not use are ignored, as by `get_beta_schedule`.
    """

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
        takes = parameters(SCHEDULES[schedule_type]) if schedule_type in SCHEDULES else []
        used = {key: value for key, value in times.items() if value is not None and key in takes}
        given = {} if max_beta is None else {"max_beta": max_beta}
        self.schedule: Schedule = build_schedule(_table(schedule_type, {**given, **used, **params}))
        self.schedule_type = schedule_type
        self.current_epoch: float = 0
        self.beta_history: list[Any] = []
        if self.schedule.closed_loop:
            raise ValueError(f"{schedule_type} takes feedback, {type(self).__name__} gives none: {_REMEDY}")

    def __call__(self, epoch: float) -> Any:
        """Beta at an epoch."""
        return self.schedule(epoch)

    def step(self, epoch: float) -> Any:
        """The value at an epoch, recorded."""
        self.current_epoch = epoch
        self.beta_history.append(self(epoch))
        return self.beta_history[-1]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.schedule!r})"


class CyclicalBetaScheduler(BetaScheduler):
    """`cyclical`, by `cycle_length`, `min_beta`, `max_beta` and `wave_type`."""

    def __init__(self, **params: Any) -> None:
        super().__init__("cyclical", **params)


class WarmRestartBetaScheduler(BetaScheduler):
    """`warm_restart`, by `base_scheduler_type`, `base_scheduler_kwargs`, `restart_interval`, `restart_multiplier`."""

    def __init__(self, **params: Any) -> None:
        super().__init__("warm_restart", **params)

    def get_restart_info(self, epoch: float) -> dict[str, float] | None:
        """See `WarmRestart.restart_info`."""
        return self.schedule.restart_info(epoch)


class HierarchicalBetaScheduler(BetaScheduler):
    """`hierarchical`, by `global_scheduler` and `local_scheduler`; gives `global_kl_weight` and `local_kl_weight`."""

    def __init__(self, **params: Any) -> None:
        super().__init__("hierarchical", **params)

    def __call__(self, epoch: float) -> dict[str, float]:
        return {f"{level}_kl_weight": beta for level, beta in self.schedule.betas(epoch, ("global", "local")).items()}


class FeedbackBetaScheduler:
    """`kl_capacity`, `controlvae` or `geco`: `.observe` takes each batch and gives its beta, a call gives the last one.

    Keeps its state in `.state_dict()` and what it gave in `.beta_history`.
    """

    def __init__(self, schedule_type: str, **params: Any) -> None:
        schedule = build_schedule(_table(schedule_type, params))
        if not isinstance(schedule, Feedback):
            raise ValueError(f"{schedule_type} takes no feedback as a whole: use get_beta_scheduler, or Controller")
        self.schedule = schedule
        self.schedule_type = schedule_type
        self.current_epoch: float = 0
        self.beta_history: list[float] = []
        self._state = schedule.begin()

    def observe(self, *, epoch: float, kl: float | None = None, reconstruction: float | None = None) -> float:
        """Beta of a batch with this KL in nats per example and this reconstruction in nats per position.

        Raises ValueError if the one that the schedule uses is missing.
        """
        values = {"kl": kl, "reconstruction": reconstruction}
        if values[self.schedule.quantity] is None:
            raise ValueError(f"{self.schedule_type} watches the {self.schedule.quantity}: it has to be given")
        self.current_epoch = epoch
        self._state, beta = self.schedule.observe(self._state, epoch, kl or 0.0, reconstruction or 0.0)
        self.beta_history.append(beta)
        return beta

    def __call__(self, epoch: float) -> float:  # noqa: ARG002 - the signature of every scheduler
        """The present beta, whichever epoch it is."""
        return self._state["beta"]

    def state_dict(self) -> dict[str, float]:
        """The state, in plain numbers."""
        return dict(self._state)

    def load_state_dict(self, values: Mapping[str, float]) -> None:
        """Continue from a state; ValueError if it is another schedule's."""
        if values.keys() != self._state.keys():
            raise ValueError(f"the state of {self.schedule_type} is {', '.join(self._state)}, not {', '.join(values)}")
        self._state = dict(values)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.schedule!r})"


def get_beta_scheduler(type: str, **params: Any) -> BetaScheduler | FeedbackBetaScheduler:
    """A scheduler by its name and the nested dictionaries of the source documents.

    Raises ValueError with the valid names, the keys that the schedule takes, or the range of a value.
    """
    schedule = build_schedule(_table(type, params))  # unlike in `BetaScheduler`, no key is ignored
    if isinstance(schedule, Feedback):
        return FeedbackBetaScheduler(type, **params)
    match type:
        case "cyclical":
            return CyclicalBetaScheduler(**params)
        case "warm_restart":
            return WarmRestartBetaScheduler(**params)
        case "hierarchical":
            return HierarchicalBetaScheduler(**params)
    return BetaScheduler(type, **params)
