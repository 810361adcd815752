"""Beta while a run trains; closed loops are 0-d tensors on the device, changed in place without a CPU-GPU sync."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from arcvae_cli.schedules import Feedback, Schedule
from arcvae_cli.schedules.feedback import Quantity, bound_ahead, is_held

ALL_EPOCH = 0.95  # share of steps at a bound that counts as the whole epoch: single batches stray
COUNTS = ("steps", "at_max", "at_min", "sum")
REMEDIES = {
    ("kl", "max"): "raise the target or the bound of beta",
    ("kl", "min"): "lower the target, or give the model more latent dimensions",
    ("reconstruction", "max"): "lower the tolerance, or raise the bound of beta",
    ("reconstruction", "min"): "raise the tolerance, or train a larger model for longer",
}


@dataclass(frozen=True)
class Target:
    """What a closed loop reached in an epoch, in nats per example for the KL, per position for the reconstruction."""

    level: str  # "" for all levels together
    quantity: Quantity
    value: float  # mean over the epoch's steps, as beta
    target: float
    beta: float
    bound: Literal["max", "min"] | None  # at which beta stayed for the whole epoch; None while the target moves

    @property
    def missed(self) -> bool:
        return not is_held(self.value, self.target)

    @property
    def note(self) -> str | None:
        """What to do about a target out of reach: beta is at the bound that leads to it."""
        if not self.missed or self.bound != bound_ahead(self.quantity, self.value > self.target):
            return None
        what = f"{self.level} {'KL' if self.quantity == 'kl' else self.quantity}".lstrip()
        why = f"{self.value:.4g} nats, target {self.target:.4g}, out of reach with beta at its {self.bound}"
        return f"{what}: {why} {self.beta:.4g}; {REMEDIES[self.quantity, self.bound]}"


class Controller:
    """The betas of a run, by level; `reduction`: of a batch's reconstruction term over so many `positions`."""

    def __init__(
        self, schedule: Schedule, levels: Sequence[str], device: torch.device, positions: float, reduction: str
    ) -> None:
        self.schedule = schedule
        self.levels = tuple(levels)
        self.per_position = 1.0 / positions if reduction == "sum" else 1.0
        self.device = device
        self._open = {level: part for level, part in schedule.by_level(levels).items() if not part.closed_loop}
        parts = schedule.by_level(levels) if schedule.parts.keys() != {""} else schedule.parts
        self._loops = {level: Loop(part, device) for level, part in parts.items() if isinstance(part, Feedback)}
        self._held: dict[str, Tensor] = {}
        self.open: dict[str, float] = {}  # the betas of open loops at present
        self.silent: tuple[str, ...] = ()  # the levels among them whose beta is 0
        self.at(0.0)

    def at(self, epoch: float) -> None:
        """Set the time, in epochs: the targets of a closed loop, the betas of an open one."""
        before, self.open = self.open, {level: part(epoch) for level, part in self._open.items()}
        for level, value in self._held.items():
            if before[level] != self.open[level]:
                value.fill_(self.open[level])
        self.silent = tuple(level for level, value in self.open.items() if value == 0.0)
        for loop in self._loops.values():
            loop.at(epoch)

    def hold(self) -> None:
        """Give open betas but 0 as tensors at fixed addresses from now on, for CUDA graphs to read what `at` sets."""
        self._held = {
            level: torch.tensor(value, dtype=exact_type(self.device), device=self.device)
            for level, value in self.open.items()
        }

    @torch.no_grad()
    def weigh(self, reconstruction: Tensor, kl_per_dim: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
        """Beta of every level for a batch, from its reconstruction term (0-d) and kl_per_dim (D,) by level."""
        betas: dict[str, float | Tensor] = dict(self.open)
        for level, value in self._held.items():
            betas[level] = 0.0 if level in self.silent else value.to(reconstruction.dtype)
        for name, loop in self._loops.items():
            served = [name] if name else self.levels
            kl = torch.stack([kl_per_dim[level].detach().to(loop.exact).sum() for level in served]).sum()
            beta = loop.step(kl, reconstruction.detach().to(loop.exact) * self.per_position)
            betas.update(dict.fromkeys(served, beta.to(reconstruction.dtype, copy=True)))
        return {level: betas[level] for level in self.levels}

    def verdict(self, epoch: float, means: Mapping[str, Any]) -> tuple[Target, ...]:
        """What each closed loop reached in the epoch that ends at `epoch`, from its `means`; its counts begin anew."""
        middle = epoch - 0.5 if self.schedule.per == "step" else epoch  # where a target that moves has its mean
        found = []
        for name, loop in self._loops.items():
            schedule, state = loop.schedule, loop.read()
            if not (steps := state["steps"]):
                continue
            value = means["reconstruction"]
            if schedule.quantity == "kl":
                value = means["kl"][name] if name else sum(means["kl"].values())
            bound: Literal["max", "min"] | None = None
            moving = schedule.setpoint(epoch - 1.0) != schedule.setpoint(epoch)
            if not moving and max(state["at_max"], state["at_min"]) >= ALL_EPOCH * steps:
                bound = "max" if state["at_max"] >= state["at_min"] else "min"
            target, beta = schedule.setpoint(middle), state["sum"] / steps
            found.append(Target(name, schedule.quantity, value, target, beta, bound))
            for key in COUNTS:
                loop.state[key].zero_()
        return tuple(found)

    def state_dict(self) -> dict[str, dict[str, float]]:
        """The state by level in plain numbers, from which a run continues exactly; {} for an open loop."""
        return {name: loop.read() for name, loop in self._loops.items()}

    def load_state_dict(self, values: Mapping[str, Mapping[str, float]]) -> None:
        """Continue from a state; ValueError if it is another schedule's."""
        keys = {name: loop.state.keys() for name, loop in self._loops.items()}
        if keys != {name: state.keys() for name, state in values.items()}:
            raise ValueError(f"not a state of schedule {self.schedule.name}")
        for name, state in values.items():
            for key, value in state.items():
                self._loops[name].state[key].fill_(value)


def exact_type(device: torch.device) -> torch.dtype:
    """The type of what adds up over a whole run: float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


class Loop:
    """A closed-loop schedule on the device: its state as 0-d tensors, changed in place by its control law."""

    def __init__(self, schedule: Feedback, device: torch.device) -> None:
        self.schedule = schedule
        self.exact = exact_type(device)
        begin = {**schedule.begin(), **dict.fromkeys(COUNTS, 0.0)}
        self.state = {key: torch.tensor(value, dtype=self.exact, device=device) for key, value in begin.items()}
        self.setpoint = schedule.setpoint(0.0)
        self.target = torch.tensor(self.setpoint, dtype=self.exact, device=device)
        self.low, self.high = schedule.at_bounds

    def at(self, epoch: float) -> None:
        if (setpoint := self.schedule.setpoint(epoch)) != self.setpoint:
            self.setpoint = setpoint
            self.target.fill_(setpoint)

    def step(self, kl: Tensor, reconstruction: Tensor) -> Tensor:
        """Beta of a batch, 0-d: the state itself, which the next step changes."""
        for key, value in self.schedule.law(torch, self.state, self.target, kl, reconstruction).items():
            if isinstance(value, Tensor):
                self.state[key].copy_(value)
            else:
                self.state[key].fill_(value)
        beta = self.state["beta"]
        self.state["steps"].add_(1.0)
        self.state["at_max"].add_(beta >= self.high)
        self.state["at_min"].add_(beta <= self.low)
        self.state["sum"].add_(beta)
        return beta

    def read(self) -> dict[str, float]:
        values: list[float] = torch.stack(list(self.state.values())).tolist()
        return dict(zip(self.state, values, strict=True))
