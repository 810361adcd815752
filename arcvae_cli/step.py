"""One optimiser step, and what is counted on the way: all on the device, nothing read back.

The randomness of a step (posterior noise, dropout, augmentation) is a function of (seed, epoch, step): `seed_step`
is called before it, and no other state of a generator is carried along.
"""

from __future__ import annotations

import hashlib
import inspect
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn, optim

from arcvae_cli.controllers import Controller, exact_type
from arcvae_cli.errors import InputError
from arcvae_cli.models.base import VAE, Batch, Output
from arcvae_cli.objective import Objective, Terms
from arcvae_cli.settings import TrainSettings


def choose_device(name: str) -> torch.device:
    """The device that a setting names; `auto` takes CUDA, then MPS, then the CPU."""
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a driver that does not start warns before it says no
        there = {
            "cpu": True,
            "mps": torch.backends.mps.is_available(),
            "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        }
    if not there[device.type]:
        raise InputError(f"train.device: {name} is not available on this machine", "use --device auto or cpu")
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # graphs are recorded, and states of generators kept, of the present device
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
    listed: Mapping[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(listed.get("amx_bf16") or listed.get("avx512_bf16"))


def seed_step(seed: int, *place: int | str) -> None:
    """Seed the default generators from the run's seed and a place in it, such as (epoch, step).

    As `torch.manual_seed`, which takes half a millisecond where CUDA is not in use: it writes down who called it.
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


Betas = Mapping[str, float | Tensor] | Controller
Forward = Callable[[Batch, Betas], tuple[Terms, Output]]


@dataclass(frozen=True)
class Counts:
    """What a pass over many batches adds up to, read back from the device once.

    Means over examples; `position`, `foreground` and `exact` are shares of right positions, of right positions that
    are not background, and of examples with every position right. `rates`: by level, nats of each group.
    """

    examples: int
    loss: float
    reconstruction: float
    kl_free: dict[str, float]
    rates: dict[str, list[float]]
    position: float
    foreground: float
    exact: float
    finite: bool

    @property
    def rate(self) -> float:
        """Total raw KL in nats per example."""
        return sum(sum(groups) for groups in self.rates.values())


class Tally:
    """What the batches of a pass come to, a row each, in a table on the device that is read once.

    `levels`: groups of each level by its name, in the order of the model's. `closed`: the levels whose beta a closed
    loop sets, and which only the device knows. The table stays where it is, so that a graph can write into it.
    """

    def __init__(
        self,
        rows: int,
        levels: Mapping[str, int],
        background: int | None,
        device: torch.device | str = "cpu",
        closed: Sequence[str] = (),
    ) -> None:
        self.levels = dict(levels)
        self.background = background
        self.closed = tuple(closed)
        # examples, loss, reconstruction, KL terms, rates, norm of the gradient, betas, hits
        width = 4 + len(levels) + sum(levels.values()) + len(closed) + HITS
        self.table = torch.zeros(rows, width, dtype=exact_type(torch.device(device)), device=device)

    def add(self, row: int | Tensor, terms: Terms, output: Output, batch: Batch, norm: Tensor | None = None) -> None:
        """Write a batch into a row, given by its number, or by a tensor (1,) int64 that a graph reads.

        `norm`: of the gradient, where there was one; a row is of finite numbers only if it is.
        """
        exact = self.table.dtype
        loss = terms.loss.detach()
        means = torch.stack([loss, terms.reconstruction.detach(), *(free.detach() for free in terms.kl_free.values())])
        betas = [beta.reshape(1) for level in self.closed if isinstance(beta := terms.betas[level], Tensor)]
        parts = [loss.new_full((1,), len(batch.x)), means, *(rates.detach() for rates in terms.rates.values())]
        parts += [loss.new_zeros(1) if norm is None else norm.reshape(1), *betas]
        line = torch.cat([*(part.to(exact) for part in parts), hits(output.logits.detach(), batch, self.background)])
        if isinstance(row, Tensor):
            self.table.index_copy_(0, row, line[None])
        else:
            self.table[row] = line

    def read(self, rows: int | None = None) -> Sums:
        """The first `rows` rows, by default all: the one read-back."""
        return Sums(self.table[:rows].cpu().double().numpy(), self.levels, self.closed)


@dataclass(frozen=True)
class Sums:
    """The rows of a tally, on the host: (n, columns) float64."""

    rows: NDArray[np.float64]
    levels: Mapping[str, int]
    closed: Sequence[str]

    def counts(self, rows: slice = slice(None)) -> Counts:
        """The means over the examples of some rows, of all by default."""
        chosen = self.rows[rows]
        sizes, n = chosen[:, 0], float(chosen[:, 0].sum())
        # a row's means weigh as many times as it has examples; of its hits the sum is taken
        loss, reconstruction, *rest = (sizes @ chosen[:, 1:-HITS] / n).tolist()
        right, positions, found, foreground, exact = chosen[:, -HITS:].sum(axis=0).tolist()
        free = dict(zip(self.levels, rest, strict=False))
        rates, at = {}, len(self.levels)
        for name, groups in self.levels.items():
            rates[name] = rest[at : at + groups]
            at += groups
        return Counts(
            examples=int(n),
            loss=loss,
            reconstruction=reconstruction,
            kl_free=free,
            rates=rates,
            position=right / max(positions, 1.0),
            foreground=found / foreground if foreground else 0.0,
            exact=exact / n,
            finite=bool(np.isfinite(chosen).all()),
        )

    @property
    def bad(self) -> int | None:
        """The first row that is not of finite numbers alone, None where there is none."""
        found = np.flatnonzero(~np.isfinite(self.rows).all(axis=1))
        return int(found[0]) if len(found) else None

    def betas(self) -> dict[str, list[float]]:
        """By closed level, the beta of every row."""
        first = self.rows.shape[1] - HITS - len(self.closed)
        return {level: self.rows[:, first + at].tolist() for at, level in enumerate(self.closed)}


class Watch:
    """Whether a tally holds finite numbers alone, asked while the device works on: the answer comes late, no one waits.

    What is left of an earlier epoch in the table was found finite then.
    """

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        cuda = tally.table.device.type == "cuda"
        self.event = torch.cuda.Event() if cuda else None  # type: ignore[no-untyped-call]
        self.answer = torch.ones((), dtype=torch.bool, pin_memory=cuda)

    def ask(self) -> None:
        """Begin to look at all rows."""
        self.answer.copy_(self.tally.table.isfinite().all(), non_blocking=self.event is not None)
        if self.event is not None:
            self.event.record()

    @property
    def alarmed(self) -> bool:
        """Whether the last look found something that is no number; not while it is under way."""
        if self.event is not None and not self.event.query():  # type: ignore[no-untyped-call]
            return False
        return not bool(self.answer)


HITS = 5
"""Columns that `hits` gives."""


def hits(logits: Tensor, batch: Batch, background: int | None) -> Tensor:
    """(HITS,) sums: right positions, positions, right and not background, not background, wholly right examples."""
    right = logits.argmax(dim=1) == batch.x  # (B, *positions)
    valid = batch.valid
    everywhere = right.new_ones(()).expand_as(right)
    if valid is None:
        counted, wrong = everywhere, ~right
    else:
        counted, wrong, right = valid, ~right & valid, right & valid
    front = everywhere if background is None else batch.x != background
    if valid is not None:
        front = front & valid
    exact = ~wrong.flatten(1).any(dim=1)
    sums = [right.sum(), counted.sum(), (right & front).sum(), front.sum(), exact.sum()]
    return torch.stack(sums).to(exact_type(logits.device))


class Adam(optim.Adam):
    """PyTorch's, with a step that clips and takes the fused kernel at once, and passes over what is no number.

    PyTorch's own step goes through wrappers for `torch.compile`, which at their first call import it (as long as the
    import of PyTorch), and costs half a millisecond of Python; clipping before it goes through all gradients once more.
    """

    add_param_group = inspect.unwrap(optim.Adam.add_param_group)
    state_dict = inspect.unwrap(optim.Adam.state_dict)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state; the learning rate stays the tensor it was, which graphs read.

        All else in the group is as the settings have it.
        """
        own = {name: value for name, value in self.param_groups[0].items() if name != "params"}
        inspect.unwrap(optim.Adam.load_state_dict)(self, state_dict)
        own["lr"].fill_(float(self.param_groups[0]["lr"]))
        self.param_groups[0].update(own)

    @torch.no_grad()
    def advance(self, parameters: Sequence[nn.Parameter], most: float) -> Tensor:
        """One step from the gradients of `parameters`, scaled down to a norm of `most` together; 0: never. The norm.

        Where a gradient is not finite, nothing is changed: no such step reaches a weight, and nothing is read back. But
        on MPS it does, and the loss shows it.
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
        if scale is not None and norm.device.type == "mps":  # its kernel takes the last two arguments and ignores them
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

    The network runs under autocast; the posterior, the objective and the optimiser stay in float32. Nothing here asks
    the device for a value, and what is changed stays where it is in memory, so that a graph can be made of it.
    """

    def __init__(self, model: VAE, objective: Objective, settings: TrainSettings, device: torch.device) -> None:
        # channels last is how convolutions are fastest on CPUs and GPUs alike; layers without channels are not touched
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective = objective
        self.device = device
        self.precision = choose_precision(settings.precision, device)
        self.clip = settings.gradient_clip
        self.parameters = list(model.parameters())
        self.norm: Tensor | None = None  # of the last step's gradient
        self.forward: Forward = self.plain
        # a tensor that stays where it is, so that a graph reads the rate of its step
        self.rate = torch.tensor(settings.lr, device=device)
        self.optimizer = Adam(
            self.parameters,
            lr=self.rate,
            betas=settings.adam_betas,
            weight_decay=settings.weight_decay,
            fused=True,
        )

    def autocast(self) -> AbstractContextManager[None]:
        """The context of the network's arithmetic."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def plain(self, batch: Batch, betas: Betas) -> tuple[Terms, Output]:
        """The network and the objective: what `forward` does unless it is compiled."""
        with self.autocast():
            output = self.model(batch)
        return self.objective(output, batch, betas), output

    def train(self, batch: Batch, betas: Betas) -> tuple[Terms, Output]:
        """One optimiser step."""
        terms, output = self.forward(batch, betas)
        for parameter in self.parameters:
            parameter.grad = None
        terms.loss.backward()  # type: ignore[no-untyped-call]
        self.norm = self.optimizer.advance(self.parameters, self.clip)
        return terms, output

    @torch.inference_mode()
    def measure(self, batch: Batch, betas: Mapping[str, float | Tensor]) -> tuple[Terms, Output]:
        """The same terms without a step."""
        return self.plain(batch, betas)

    @property
    def learning_rate(self) -> float:
        """The optimiser's present learning rate; on a device it is waited for."""
        return float(self.optimizer.param_groups[0]["lr"])

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        self.rate.fill_(value)


class Kept:
    """The state of a step that trying it out changes: weights, optimiser, closed loops. `restore` puts it back.

    In place, since a graph goes on reading and writing the same memory.
    """

    def __init__(self, step: Step, control: Controller) -> None:
        self.step, self.control = step, control
        self.loops = control.state_dict()
        self.weights = {name: value.clone() for name, value in step.model.state_dict().items()}
        self.moments = {key: value.clone() for key, value in self._moments()}

    def _moments(self) -> Iterator[tuple[tuple[int, str], Tensor]]:
        for index, parameter in enumerate(self.step.model.parameters()):
            for name, value in self.step.optimizer.state.get(parameter, {}).items():
                yield (index, name), value

    @torch.no_grad()
    def restore(self) -> None:
        """Everything as it was; what the optimiser had not begun yet begins at 0."""
        for name, value in self.step.model.state_dict().items():
            value.copy_(self.weights[name])
        for key, value in self._moments():
            before = self.moments.get(key)
            value.zero_() if before is None else value.copy_(before)
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
        """Hear the monitored value of an epoch, the smaller the better."""
        if self.settings.lr_schedule != "plateau":
            return
        if value < self.best:
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited > PATIENCE:
            self.factor, self.waited = self.factor * PLATEAU, 0

    def state_dict(self) -> dict[str, float]:
        """What it remembers, in plain numbers."""
        return {"factor": self.factor, "best": self.best, "waited": self.waited}

    def load_state_dict(self, values: Mapping[str, float]) -> None:
        """Go on from what `state_dict` gave."""
        self.factor, self.best, self.waited = values["factor"], values["best"], int(values["waited"])


PLATEAU, PATIENCE = 0.2, 3
"""On a plateau the rate is multiplied by the one after more than so many epochs without a better value."""
