"""One optimiser step without a CPU-GPU sync: device, precision, seeds, Adam, learning rate."""

import hashlib
import inspect
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn, optim

from arcvae_cli.controllers import Controller
from arcvae_cli.errors import InputError
from arcvae_cli.models.base import VAE, Batch, Output, repeated
from arcvae_cli.objective import Objective, Terms, Weigh
from arcvae_cli.settings import TrainSettings


def choose_device(name: str) -> torch.device:
    """The device that a setting names; `auto` takes CUDA, then MPS, then the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise InputError(f"device {name!r}: unknown", "use auto, cpu, cuda, cuda:1 or mps")
    device = torch.device(name)
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    there = {"cpu": True, "mps": torch.backends.mps.is_available(), "cuda": (device.index or 0) < gpus}
    if not there[device.type]:
        raise InputError(f"train.device: {name} is not available on this machine", "use --device auto or cpu")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # graphs are of the current device
    return device


def choose_precision(wanted: str, device: torch.device) -> torch.dtype:
    """The type of the network's arithmetic; `auto` is bf16 where the hardware multiplies in it."""
    bf16 = wanted == "bf16"
    if wanted == "auto" and device.type == "cuda":
        bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    elif wanted == "auto" and device.type == "cpu":
        bf16 = any(torch.cpu.get_capabilities().get(name) for name in ("amx_bf16", "avx512_bf16"))
    return torch.bfloat16 if bf16 else torch.float32


def seed_step(seed: int, *place: int | str) -> None:
    """Seed the default generators from the run's seed and a place in it, such as (epoch, step)."""
    number = mix(seed, *place)
    # torch.manual_seed takes half a millisecond where CUDA is not in use
    torch.default_generator.manual_seed(number)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(number)
    elif torch.backends.mps.is_available():
        torch.mps.manual_seed(number)


def mix(seed: int, *place: int | str) -> int:
    """A 63-bit seed from a run's seed and a place in the run; neighbouring places share nothing."""
    text = ",".join(map(str, (seed, *place))).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


PLATEAU, PATIENCE = 0.2, 3  # factor of the learning rate after more than so many epochs without a better value


class Adam(optim.Adam):
    """PyTorch's Adam with a faster step, which clips in the fused kernel and skips gradients that are not finite."""

    add_param_group = inspect.unwrap(optim.Adam.add_param_group)
    state_dict = inspect.unwrap(optim.Adam.state_dict)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load moments and learning rate; the rate stays the tensor that graphs read, all else as in the settings."""
        own = dict(self.param_groups[0])
        inspect.unwrap(optim.Adam.load_state_dict)(self, state_dict)
        own["lr"].fill_(float(self.param_groups[0]["lr"]))
        self.param_groups[0].update(own)

    @torch.no_grad()
    def advance(self, parameters: Sequence[nn.Parameter], most: float) -> Tensor:
        """One step from gradients clipped to a norm of `most` (0: never), if all are finite. Their norm before that."""
        moved: list[Tensor] = [parameter for parameter in parameters if parameter.grad is not None]
        grads = [parameter.grad for parameter in moved if parameter.grad is not None]
        for parameter in moved:
            if not self.state[parameter]:
                zeros = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
                self.state[parameter] = {"step": torch.zeros((), device=parameter.device), **zeros}
        steps, means, squares = ([self.state[one][name] for one in moved] for name in ("step", "exp_avg", "exp_avg_sq"))
        norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(grads)))
        finite = norm.isfinite().float()
        scale = (norm / most).clamp(min=1.0).float() if most else None
        if scale is not None and norm.device.type == "mps":  # its kernel ignores the last two arguments
            torch._foreach_div_(grads, scale)
        group = self.param_groups[0]
        torch._foreach_add_(steps, [finite] * len(steps))
        options = {name: group[name] for name in ("lr", "weight_decay", "eps", "amsgrad", "maximize")}
        options |= {"beta1": group["betas"][0], "beta2": group["betas"][1], "grad_scale": scale}
        torch._fused_adam_(moved, grads, means, squares, [], steps, found_inf=1.0 - finite, **options)
        return norm


class Step:
    """Forward (under autocast), objective, backward, clipping and Adam (in float32), all at fixed addresses."""

    def __init__(self, model: VAE, objective: Objective, settings: TrainSettings, device: torch.device) -> None:
        self.ranks = objective.ranks
        if settings.threads != "auto":
            torch.set_num_threads(settings.threads)
        # channels last is the fastest layout of convolutions on CPUs and GPUs
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective, self.device, self.clip = objective, device, settings.gradient_clip
        self.precision = choose_precision(settings.precision, device)
        self.parameters, self.encoder = list(model.parameters()), list(model.encoder.parameters())
        self.encoder_only = False  # whether a step moves the encoder alone
        self.norm: Tensor | None = None  # of the last step's gradient
        self.forward: Callable[[Batch, Weigh], tuple[Terms, Output]] = self.plain
        # a tensor that keeps its place in memory: a graph reads the rate of its step
        self.rate = torch.tensor(settings.lr, device=device)
        adam: dict[str, Any] = {"betas": settings.adam_betas, "weight_decay": settings.weight_decay}
        self.optimizer = Adam(self.parameters, lr=self.rate, fused=True, **adam)

    def autocast(self) -> AbstractContextManager[None]:
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def plain(self, batch: Batch, weigh: Weigh) -> tuple[Terms, Output]:
        """The network and the objective: what `forward` does unless it is compiled."""
        settings, draws, more = self.objective.settings, 1, 0
        if self.model.training:
            draws, more = settings.importance_samples, math.ceil(settings.prior_draws * len(batch.x))
        with self.autocast():
            output = self.model(batch, more=more) if draws == 1 else self.model.draw(batch, draws)
        terms = self.objective.forward(output, batch if draws == 1 else repeated(batch, draws), weigh, draws)
        return terms, Output(output.logits[: len(batch.x)], output.levels)  # accuracies are of the first sample

    def train(self, batch: Batch, weigh: Weigh) -> tuple[Terms, Output]:
        """One optimiser step; `weigh`: see `Objective.forward`."""
        terms, output = self.forward(batch, weigh)
        for parameter in self.parameters:
            parameter.grad = None
        terms.loss.backward(inputs=self.encoder if self.encoder_only else None)  # type: ignore[no-untyped-call]
        self.ranks.average([parameter.grad for parameter in self.parameters if parameter.grad is not None])
        self.norm = self.optimizer.advance(self.parameters, self.clip)
        return terms, output


@contextmanager
def trial(step: Step, control: Controller) -> Iterator[None]:
    """For trial steps: at the end weights, optimiser and closed loops are restored, in place for graphs."""
    weights, moments = deepcopy(step.model.state_dict()), deepcopy(step.optimizer.state_dict()["state"])
    loops, random = control.state_dict(), torch.get_rng_state()
    step.model.train()
    yield
    step.model.load_state_dict(weights)
    for index, state in step.optimizer.state_dict()["state"].items():
        for name, value in state.items():
            value.copy_(moments[index][name] if index in moments else torch.zeros_like(value))
    control.load_state_dict(loops)
    torch.set_rng_state(random)


class LearningRate:
    """The learning rate: constant, reduced on a plateau, or a cosine (Loshchilov and Hutter 2017, equation 5)."""

    def __init__(self, settings: TrainSettings, steps: int) -> None:
        self.settings, self.steps = settings, steps
        self.state: dict[str, float] = {"factor": 1.0, "best": math.inf, "waited": 0}

    def __call__(self, done: int) -> float:
        """The rate of the step that follows `done` others."""
        train = self.settings
        if train.lr_schedule == "cosine":
            share = 0.5 * (1.0 + math.cos(math.pi * min(done / self.steps, 1.0)))
            return train.lr_min + (train.lr - train.lr_min) * share
        return max(train.lr * self.state["factor"], min(train.lr_min, train.lr))

    def judge(self, value: float) -> None:
        """Take the monitored value of an epoch, the smaller the better."""
        state = self.state
        if self.settings.lr_schedule == "plateau":
            state["waited"] = 0 if value < state["best"] else state["waited"] + 1
            state["best"] = min(state["best"], value)
            if state["waited"] > PATIENCE:
                state.update(factor=state["factor"] * PLATEAU, waited=0)
