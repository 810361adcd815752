"""One optimiser step, and what is counted on the way: all on the device, nothing read back.

The randomness of a step (posterior noise, dropout, augmentation) is a function of (seed, epoch, step): `seed_step`
is called before it, and no other state of a generator is carried along.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Adam

from arcvae_cli.controllers import Controller
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
    """Seed every generator from the run's seed and a place in it, such as (epoch, step)."""
    torch.manual_seed(mix(seed, *place))


def mix(seed: int, *place: int | str) -> int:
    """A 63-bit seed from a run's seed and a place in the run; neighbouring places share nothing."""
    text = ",".join(map(str, (seed, *place))).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


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
    """Adds the terms and hits of batches on the device, weighted by their number of examples."""

    def __init__(self, background: int | None) -> None:
        self.background = background
        self.sums: list[Tensor] = []
        self.examples = 0
        self.levels: list[str] = []

    def add(self, terms: Terms, output: Output, batch: Batch) -> None:
        """Take in one batch."""
        size, exact = len(batch.x), sum_type(terms.loss.device)
        self.levels = list(terms.rates)
        means = [terms.loss, terms.reconstruction, *terms.kl_free.values()]
        sums = [size * torch.stack([mean.detach().to(exact) for mean in means])]
        sums += [size * rates.detach().to(exact) for rates in terms.rates.values()]
        sums.append(hits(output.logits.detach(), batch, self.background))
        self.sums = [old + new for old, new in zip(self.sums, sums, strict=True)] if self.sums else sums
        self.examples += size

    def read(self) -> Counts:
        """The means so far: the one read-back."""
        flat = torch.cat(self.sums).tolist()
        finite = all(value - value == 0.0 for value in flat)
        levels, n = len(self.levels), self.examples
        means = [value / n for value in flat[: 2 + levels]]
        rates, at = {}, 2 + levels
        for name, groups in zip(self.levels, self.sums[1:-1], strict=True):
            rates[name] = [value / n for value in flat[at : at + len(groups)]]
            at += len(groups)
        right, positions, found, foreground, exact = flat[at:]
        return Counts(
            examples=n,
            loss=means[0],
            reconstruction=means[1],
            kl_free=dict(zip(self.levels, means[2:], strict=True)),
            rates=rates,
            position=right / max(positions, 1.0),
            foreground=found / foreground if foreground else 0.0,
            exact=exact / n,
            finite=finite,
        )


def hits(logits: Tensor, batch: Batch, background: int | None) -> Tensor:
    """(5,) sums: right positions, positions, right and not background, not background, wholly right examples."""
    exact_type = sum_type(logits.device)
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
    return torch.stack([value.to(exact_type) for value in sums])


def sum_type(device: torch.device) -> torch.dtype:
    """The type that sums over an epoch are kept in; MPS knows no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


class Step:
    """Forward, objective, backward, clipping and Adam, eagerly, in one precision.

    The network runs under autocast; the posterior, the objective and the optimiser stay in float32.
    """

    def __init__(self, model: VAE, objective: Objective, settings: TrainSettings, device: torch.device) -> None:
        # channels last is how convolutions are fastest on CPUs and GPUs alike; layers without channels are not touched
        self.model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.objective = objective
        self.device = device
        self.precision = choose_precision(settings.precision, device)
        self.clip = settings.gradient_clip
        self.optimizer = Adam(
            model.parameters(),
            lr=settings.lr,
            betas=settings.adam_betas,
            weight_decay=settings.weight_decay,
            fused=device.type in ("cpu", "cuda"),
        )

    def autocast(self) -> AbstractContextManager[None]:
        """The context of the network's arithmetic."""
        return torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)

    def train(self, batch: Batch, betas: Mapping[str, float | Tensor] | Controller) -> tuple[Terms, Output]:
        """One optimiser step."""
        with self.autocast():
            output = self.model(batch)
        terms = self.objective(output, batch, betas)
        self.optimizer.zero_grad(set_to_none=True)
        terms.loss.backward()
        if self.clip > 0:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.clip, foreach=True)
        self.optimizer.step()
        return terms, output

    @torch.inference_mode()
    def measure(self, batch: Batch, betas: Mapping[str, float | Tensor]) -> tuple[Terms, Output]:
        """The same terms without a step."""
        with self.autocast():
            output = self.model(batch)
        return self.objective(output, batch, betas), output

    @property
    def learning_rate(self) -> float:
        """The optimiser's present learning rate."""
        return float(self.optimizer.param_groups[0]["lr"])
