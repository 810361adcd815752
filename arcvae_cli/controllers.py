"""Beta while a run trains; closed loops are 0-d tensors on the device, changed in place without a CPU-GPU sync."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from arcvae_cli.schedules import Feedback, Schedule
from arcvae_cli.schedules.feedback import Quantity, is_held


@dataclass(frozen=True)
class Target:
    """What a closed loop reached in an epoch, in nats per example for the KL, per position for the reconstruction."""

    level: str  # "" for all levels together
    quantity: Quantity
    value: float  # mean over the epoch's steps
    target: float

    @property
    def missed(self) -> bool:
        return not is_held(self.value, self.target)


class Controller:
    """The betas of a run, by level; `reduction`: of a batch's reconstruction term over so many `positions`."""

    def __init__(
        self, schedule: Schedule, levels: Sequence[str], device: torch.device, positions: float, reduction: str
    ) -> None:
        self.schedule, self.levels, self.device = schedule, tuple(levels), device
        self.per_position = 1.0 / positions if reduction == "sum" else 1.0
        self.exact = exact_type(device)
        self._open = {level: part for level, part in schedule.by_level(levels).items() if not part.closed_loop}
        self._closed = {name: part for name, part in schedule.parts.items() if isinstance(part, Feedback)}
        self._states = {name: self._tensors(part.begin()) for name, part in self._closed.items()}
        self._targets = self._tensors({name: part.setpoint(0.0) for name, part in self._closed.items()})
        self._fixed: dict[str, Tensor] = {}  # the betas of open loops at fixed addresses
        self.open: dict[str, float] = {}  # the betas of open loops at present
        self.zero_levels: tuple[str, ...] = ()  # those whose beta is 0
        self.at(0.0)

    def _tensors(self, values: Mapping[str, float]) -> dict[str, Tensor]:
        return {key: torch.tensor(value, dtype=self.exact, device=self.device) for key, value in values.items()}

    def at(self, epoch: float) -> None:
        """Set the time, in epochs: the targets of closed loops, the betas of open ones."""
        self.open = {level: part(epoch) for level, part in self._open.items()}
        for level, tensor in self._fixed.items():
            tensor.fill_(self.open[level])
        self.zero_levels = tuple(level for level, value in self.open.items() if value == 0.0)
        for name, target in self._targets.items():
            target.fill_(self._closed[name].setpoint(epoch))

    def use_tensors(self) -> None:
        """Give open betas but 0 as tensors at fixed addresses from now on: CUDA graphs read there what `at` sets."""
        self._fixed = self._tensors(self.open)

    @torch.no_grad()
    def weigh(self, reconstruction: Tensor, kl_per_dim: Mapping[str, Tensor]) -> dict[str, float | Tensor]:
        """Beta of every level for a batch, from its reconstruction term (0-d) and kl_per_dim (D,) by level."""
        betas: dict[str, float | Tensor] = {**self.open, **self._fixed, **dict.fromkeys(self.zero_levels, 0.0)}
        for name, part in self._closed.items():
            levels = [name] if name else self.levels
            kl = torch.stack([kl_per_dim[level].detach().to(self.exact).sum() for level in levels]).sum()
            nats = reconstruction.detach().to(self.exact) * self.per_position
            state = self._states[name]
            for key, value in part.law(torch, state, self._targets[name], kl, nats).items():
                state[key].fill_(value)  # a number, or a 0-d tensor that is copied on the device
            betas.update(dict.fromkeys(levels, state["beta"].to(reconstruction.dtype, copy=True)))
        return {level: betas[level] for level in self.levels}

    def reached(self, epoch: float, kl: Mapping[str, float], reconstruction: float) -> tuple[Target, ...]:
        """What each closed loop reached in the epoch that ends at `epoch`.

        `kl` in nats per example, `reconstruction` in the reduction of the run: means over the epoch.
        """
        middle = epoch - 0.5 if self.schedule.per == "step" else epoch  # where a target that moves has its mean
        found = []
        for name, part in self._closed.items():
            nats = kl[name] if name else sum(kl.values())
            value = nats if part.quantity == "kl" else reconstruction * self.per_position
            found.append(Target(name, part.quantity, value, part.setpoint(middle)))
        return tuple(found)

    def state_dict(self) -> dict[str, dict[str, float]]:
        """The state of each closed loop in plain numbers, from which a run continues exactly: a CPU-GPU sync."""
        return {name: {key: value.item() for key, value in state.items()} for name, state in self._states.items()}

    def load_state_dict(self, values: Mapping[str, Mapping[str, float]]) -> None:
        for name, state in values.items():
            for key, value in state.items():
                self._states[name][key].fill_(value)


def exact_type(device: torch.device) -> torch.dtype:
    """The type of what adds up over a whole run: float64, where the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64
