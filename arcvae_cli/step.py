"""One optimiser step without a CPU-GPU sync: device, precision, seeds, Adam, learning rate.

The randomness of a step (posterior noise, dropout, augmentation) is a function of (seed, epoch, step): `seed_step`
is called before it, and no state of a generator is carried from step to step.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn, optim

from arcvae_cli.controllers import Controller
from arcvae_cli.errors import InputError
from arcvae_cli.models.base import VAE, Batch, Output
from arcvae_cli.objective import Objective, Terms, Weigh, fixed
from arcvae_cli.settings import TrainSettings


def choose_device(name: str) -> torch.device:
    """The device that a setting names; `auto` takes CUDA, then MPS, then the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a driver that does not start
        there = {
            "cpu": True,
            "mps": torch.backends.mps.is_available(),
            "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        }
    if not there[device.type]:
        raise InputError(f"train.device: {name} is not available on this machine", "use --device auto or cpu")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # graphs are of the current device
    return device


def choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    """The type of the network's arithmetic: bf16 where the hardware multiplies in it, unless fp32 is asked for."""
    if wanted == "fp32":
        return torch.float32
    if wanted == "bf16":
        return torch.bfloat16
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu" and cpu_has_bf16():
        return torch.bfloat16
    return torch.float32


def cpu_has_bf16() -> bool:
    """Whether the processor multiplies matrices in bf16 (AMX or AVX512-bf16)."""
    listed = torch.cpu.get_capabilities()
    return bool(listed.get("amx_bf16") or listed.get("avx512_bf16"))


def seed_step(seed: int, *place: int | str) -> None:
    """Seed the default generators from the run's seed and a place in it, such as (epoch, step).

    `torch.manual_seed` does the same, but takes half a millisecond where CUDA is not in use.
    """
    number = mix(seed, *place)
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(number)
    elif torch.backends.mps.is_available():
        torch.mps.manual_seed(number)


def mix(seed: int, *place: int | str) -> int:
    """A 63-bit seed from a run's seed and a place in the run; neighbouring places share nothing."""
    text = ",".join(map(str, (seed, *place))).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


Forward = Callable[[Batch, Weigh], tuple[Terms, Output]]


class Adam(optim.Adam):
    """PyTorch's Adam with a step that clips in the fused kernel and skips gradients that are not finite.

    PyTorch's own step imports the compiler at its first call (as long as the import of PyTorch), takes half a
    millisecond of Python, and clipping before it is one more pass over all gradients.
    """

    add_param_group = inspect.unwrap(optim.Adam.add_param_group)
    state_dict = inspect.unwrap(optim.Adam.state_dict)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load moments and learning rate; the rate stays the tensor that graphs read, all else as in the settings."""
        own = {name: value for name, value in self.param_groups[0].items() if name != "params"}
        inspect.unwrap(optim.Adam.load_state_dict)(self, state_dict)
        own["lr"].fill_(float(self.param_groups[0]["lr"]))
        self.param_groups[0].update(own)

    @torch.no_grad()
    def advance(self, parameters: Sequence[nn.Parameter], most: float) -> Tensor:
        """One step from the gradients, clipped to a total norm of `most` (0: never). Returns the norm before clipping.

        If a gradient is not finite, nothing changes (except on MPS, whose kernel ignores that argument).
        """
        moved: list[Tensor] = []
        grads: list[Tensor] = []
        for parameter in parameters:
            if (grad := parameter.grad) is None:
                continue
            moved.append(parameter)
            grads.append(grad)
            if not self.state[parameter]:
                zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.state[parameter] = {"step": torch.zeros((), device=parameter.device), **zeros}
        steps, means, squares = (
            [self.state[parameter][name] for parameter in moved] for name in ("step", "exp_avg", "exp_avg_sq")
        )
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        finite = norm.isfinite().float()
        scale = (norm / most).clamp(min=1.0).float() if most else None
        if scale is not None and norm.device.type == "mps":  # its kernel ignores the last two arguments
            torch._foreach_div_(grads, scale)
        group = self.param_groups[0]
        torch._foreach_add_(steps, [finite] * len(steps))
        torch._fused_adam_(
            moved,
            grads,
            means,
            squares,
            [],
            steps,
            lr=group["lr"],
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
            grad_scale=scale,
            found_inf=1.0 - finite,
        )
        return norm


class Step:
    """Forward, objective, backward, clipping and Adam, in one precision.

    The network runs under autocast; the posterior, the objective and the optimiser stay in float32. No CPU-GPU sync,
    and what changes keeps its place in memory: a CUDA graph can be recorded of it.
    """

    def __init__(self, model: VAE, objective: Objective, settings: TrainSettings, device: torch.device) -> None:
        # channels last is the fastest layout of convolutions on CPUs and GPUs
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective = objective
        self.device = device
        self.precision = choose_precision(settings.precision, device)
        self.clip = settings.gradient_clip
        self.parameters = list(model.parameters())
        self.norm: Tensor | None = None  # of the last step's gradient
        self.forward: Forward = self.plain
        # a tensor that keeps its place in memory: a graph reads the rate of its step
        self.rate = torch.tensor(settings.lr, device=device)
        self.optimizer = Adam(
            self.parameters,
            lr=self.rate,
            betas=settings.adam_betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def autocast(self) -> AbstractContextManager[None]:
        """The precision of the network's arithmetic."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def plain(self, batch: Batch, weigh: Weigh) -> tuple[Terms, Output]:
        """The network and the objective: what `forward` does unless it is compiled."""
        with self.autocast():
            output = self.model(batch)
        return self.objective.weighted(output, batch, weigh), output

    def train(self, batch: Batch, weigh: Weigh) -> tuple[Terms, Output]:
        """One optimiser step. `weigh`: gives the betas of the batch, such as `Controller.weigh` or `fixed(betas)`."""
        terms, output = self.forward(batch, weigh)
        for parameter in self.parameters:
            parameter.grad = None
        terms.loss.backward()  # type: ignore[no-untyped-call]
        self.norm = self.optimizer.advance(self.parameters, self.clip)
        return terms, output

    @torch.inference_mode()
    def measure(self, batch: Batch, betas: Mapping[str, float]) -> tuple[Terms, Output]:
        """The same terms without a step."""
        return self.plain(batch, fixed(betas))

    @property
    def learning_rate(self) -> float:
        """The current learning rate: a CPU-GPU sync."""
        return float(self.optimizer.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.rate.fill_(value)


class Kept:
    """The state that a trial step changes: weights, optimiser, closed loops. `restore` puts it back.

    In place, since a graph keeps reading and writing the same memory.
    """

    def __init__(self, step: Step, control: Controller) -> None:
        self.step, self.control = step, control
        self.weights = deepcopy(step.model.state_dict())
        self.moments = deepcopy(step.optimizer.state_dict()["state"])
        self.loops = control.state_dict()

    @torch.no_grad()
    def restore(self) -> None:
        self.step.model.load_state_dict(self.weights)
        for index, state in self.step.optimizer.state_dict()["state"].items():
            for name, value in state.items():
                value.copy_(self.moments[index][name] if index in self.moments else torch.zeros_like(value))
        self.control.load_state_dict(self.loops)


class LearningRate:
    """The learning rate: a cosine over all steps, a fifth after 3 epochs without a better value, or constant.

    The cosine is a function of the step alone (Loshchilov and Hutter 2017, equation 5, one period).
    """

    def __init__(self, settings: TrainSettings, steps: int) -> None:
        self.settings = settings
        self.steps = steps
        self.factor, self.best, self.waited = 1.0, math.inf, 0

    def __call__(self, done: int) -> float:
        """The rate of the step that follows `done` others."""
        train = self.settings
        if train.lr_schedule == "cosine":
            share = 0.5 * (1.0 + math.cos(math.pi * min(done / self.steps, 1.0)))
            return train.lr_min + (train.lr - train.lr_min) * share
        return max(train.lr * self.factor, min(train.lr_min, train.lr))

    def judge(self, value: float) -> None:
        """Take the monitored value of an epoch, the smaller the better."""
        if self.settings.lr_schedule != "plateau":
            return
        if value < self.best:
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited > PATIENCE:
            self.factor, self.waited = self.factor * PLATEAU, 0

    def state_dict(self) -> dict[str, float]:
        return {"factor": self.factor, "best": self.best, "waited": self.waited}

    def load_state_dict(self, values: Mapping[str, float]) -> None:
        self.factor, self.best, self.waited = values["factor"], values["best"], int(values["waited"])


PLATEAU, PATIENCE = 0.2, 3
"""On a plateau, after more than PATIENCE epochs without a better value, the rate is multiplied by PLATEAU."""
