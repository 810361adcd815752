# ruff: noqa: ARG002 - most models take no conditions
"""The interface of all models: batches, levels of latents, output."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from arcvae_cli import gaussians
from arcvae_cli.canvas import Canvas
from arcvae_cli.conditions import Attribute
from arcvae_cli.settings import ModelSettings

if TYPE_CHECKING:
    from arcvae_cli.models.grammar import Structure

Latents = Mapping[str, Tensor]  # (B, *shape) by level


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples on the device."""

    x: Tensor  # (B, *positions) int64 classes
    valid: Tensor | None = None  # (B, *positions) bool, the positions that count; None for all
    conditions: Tensor | None = None  # (B, A) int64 values of the model's attributes, -1 where one is not given
    scored: Tensor | None = None  # (B, *positions) bool, the positions that accuracies count; None for `valid`

    def counted(self) -> Tensor:
        """(B,) positions of each example that count."""
        return (torch.ones_like(self.x, dtype=torch.bool) if self.valid is None else self.valid).flatten(1).sum(dim=1)

    def cut(self, steps: int) -> "Batch":
        """The first steps of derivations, after which there is padding alone."""
        return Batch(self.x[:, :steps], None if self.valid is None else self.valid[:, :steps])


@dataclass(frozen=True, slots=True)
class Level:
    """One level of latents of a batch: diagonal Gaussian posterior and prior, a sample, and the KL."""

    name: str
    mean: Tensor  # (B, *shape), as logvar, sample and the prior's
    logvar: Tensor
    sample: Tensor
    kl: Tensor  # (B, D) nats of each group (a dimension of a vector, a channel of a map), which the loss contains
    prior_mean: Tensor | None = None  # None for N(0, I)
    prior_logvar: Tensor | None = None
    sampled_kl: Tensor | None = None  # the KL of the density that `sample` was drawn from, where that is another

    @property
    def elbo_kl(self) -> Tensor:
        """(B, D) nats of the density that the sample was drawn from, as in the ELBO."""
        return self.kl if self.sampled_kl is None else self.sampled_kl

    @property
    def prior(self) -> tuple[Tensor, Tensor]:
        if self.prior_mean is None or self.prior_logvar is None:
            return torch.zeros_like(self.mean), torch.zeros_like(self.mean)
        return self.prior_mean, self.prior_logvar

    def offset(self) -> Tensor:
        """The sample in standard deviations from the prior's mean: the noise that would draw it from the prior."""
        return (self.sample - self.prior[0]) * torch.exp(-0.5 * self.prior[1])

    def map(self) -> Tensor | None:
        """KL in nats of each cell of a map, summed over its channels: (B, H, W); None for a vector."""
        return None if self.mean.dim() != 4 else gaussians.kl(self.mean, self.logvar, *self.prior).sum(dim=1)


Rows = TypeVar("Rows", Batch, Level)


def repeated(rows: Rows, count: int, more: int = 0) -> Rows:
    """A batch or a level so many times, one below the other, and its first `more` rows again."""
    values = {field.name: getattr(rows, field.name) for field in fields(rows)}
    tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
    parts: dict[str, Any] = {key: torch.cat([value] * count + [value[:more]]) for key, value in tensors.items()}
    return replace(rows, **parts)


@dataclass(frozen=True, slots=True)
class Output:
    """`logits`: (B, classes, *positions), float32, unnormalised. `levels`: from the top of the hierarchy down."""

    logits: Tensor
    levels: tuple[Level, ...]


class VAE(nn.Module, ABC):
    """A variational autoencoder of discrete structures; `encoder` and `decoder` can be saved and used alone."""

    encoder: nn.Module
    decoder: nn.Module
    level_shapes: dict[str, tuple[int, ...]]  # (D,) or (C, H, W) of each level, by its name, from the top down
    Settings: type[ModelSettings] = ModelSettings  # what it takes, if it is from outside of the package
    kind: str = "grids"  # or "strings", as of a corpus and a domain
    structure: "Canvas | Structure"  # what it is made for: grids of this canvas, or derivations by these rules
    attributes: tuple[Attribute, ...] = ()  # conditions it takes, in the order of a batch's
    autoregressive: bool = False  # whether the logits of a position depend on the classes of those before it

    @property
    def canvas(self) -> Canvas:
        """What a model of grids is made for."""
        assert isinstance(self.structure, Canvas), "a model of strings"
        return self.structure

    @property
    def level_sizes(self) -> dict[str, int]:
        """Groups of each level whose KL is reported: the dimensions of a vector, the channels of a map."""
        return {name: shape[0] for name, shape in self.level_shapes.items()}

    @abstractmethod
    def encode(self, batch: Batch, noise: bool = True) -> tuple[Level, ...]:
        """Posteriors of a batch. Without `noise` each level's sample is its posterior mean."""

    @abstractmethod
    def decode(self, latents: Latents, conditions: Tensor | None = None) -> Tensor:
        """Logits (B, classes, *positions) of latents given by the level's name, and of conditions (B, A) if any.

        Of a factorised decoder; an autoregressive one needs the classes before each position: see `logits_for`.
        """

    def noise(self, n: int) -> dict[str, Tensor]:
        """Standard normal numbers for `n` draws from the prior, (n, *shape) by level."""
        device = next(self.parameters()).device
        return {name: torch.randn(n, *shape, device=device) for name, shape in self.level_shapes.items()}

    def prior(self, noise: Latents, temperature: float = 1.0, conditions: Tensor | None = None) -> dict[str, Tensor]:
        """The draws that `noise` gives by level, given conditions (n, A); `temperature` multiplies deviations."""
        return {name: temperature * value for name, value in noise.items()}

    def argmax_decode(self, logits: Tensor, conditions: Tensor | None = None) -> Tensor:
        """The most likely classes (B, *positions), subject to the conditions if any."""
        return logits.argmax(dim=1)

    def generate(
        self, latents: Latents, conditions: Tensor | None = None, draw: bool = False, constrained: bool = True
    ) -> Tensor:
        """Classes (B, *positions) of latents: the most likely ones, or a draw; if `constrained`, as conditions ask.

        An autoregressive decoder chooses them one after the other, the most likely ones greedily.
        """
        logits = self.decode(latents, conditions)
        if draw:
            logits = logits - torch.empty_like(logits).exponential_().log()  # Gumbel noise
        return self.argmax_decode(logits, conditions) if constrained else logits.argmax(dim=1)

    def reconstruct(self, batch: Batch) -> Tensor:
        """The most likely classes (B, *positions) at the posterior means of a batch."""
        means = {level.name: level.mean for level in self.encode(batch, noise=False)}
        return self.generate(means, batch.conditions)

    def logits_for(self, latents: Latents, batch: Batch) -> Tensor:
        """Logits (B, classes, *positions) of latents, without the classes that are impossible in this batch.

        Those of an autoregressive decoder are given the batch's own classes before each position (teacher forcing).
        """
        return self.decode(latents, batch.conditions)

    def forward(self, batch: Batch, noise: bool = True, more: int = 0) -> Output:
        """Logits of a batch, and then of its first `more` examples at draws from the prior; the levels of the batch."""
        levels = self.encode(batch, noise)
        latents = {level.name: level.sample for level in levels}
        if more:
            drawn = self.prior(self.noise(more))
            latents = {name: torch.cat([latent, drawn[name]]) for name, latent in latents.items()}
            batch = repeated(batch, 1, more)
        return Output(self.logits_for(latents, batch), levels)

    def draw(self, batch: Batch, count: int) -> Output:
        """`forward` with so many samples of each example: `count` times the rows of `repeated(batch, count)`."""
        if len(self.level_shapes) > 1:  # the posterior of a lower level depends on the sample above
            return self(repeated(batch, count))  # type: ignore[no-any-return]
        level = repeated(self.encode(batch, noise=False)[0], count)
        level = replace(level, sample=gaussians.sample(level.mean, level.logvar))
        return Output(self.logits_for({level.name: level.sample}, repeated(batch, count)), (level,))


class MeanNorm(nn.BatchNorm1d):
    """Batch normalisation of posterior means (B, D) with a fixed scale and a learned shift (Zhu et al. 2020, BN-VAE).

    A dimension's KL has a mean over a training batch of at least (scale^2 + shift^2) / 2 nats, as KL >= mean^2 / 2.
    """

    def __init__(self, latent_dim: int, scale: float) -> None:
        # with PyTorch's 1e-5 the encoder shrinks its means until that is most of the variance: the floor would be gone
        super().__init__(latent_dim, eps=1e-12, affine=False)
        self.scale, self.shift = scale, nn.Parameter(torch.zeros(latent_dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.shift + self.scale * super().forward(x)


class Encoder(nn.Module):
    """A body to (B, width) features, and two heads: the mean and the raw spread, (B, latent_dim) float32."""

    def __init__(self, body: nn.Module, width: int, latent_dim: int, mean_norm: float = 0.0) -> None:
        super().__init__()
        self.body, self.mean, self.spread = body, nn.Linear(width, latent_dim), nn.Linear(width, latent_dim)
        self.mean_norm = MeanNorm(latent_dim, mean_norm) if mean_norm else nn.Identity()

    def forward(self, *inputs: Any) -> tuple[Tensor, Tensor]:
        features = self.body(*inputs).float()  # once: gradients of both heads add up in float32
        return self.mean_norm(float32(self.mean, features)), float32(self.spread, features)


def float32(module: nn.Module, x: Tensor) -> Tensor:
    """The output of a module in float32 under autocast too: bf16 would quantise means and variances."""
    with torch.autocast(x.device.type, enabled=False):
        return module(x.float())  # type: ignore[no-any-return]


def standard_level(name: str, mean: Tensor, logvar: Tensor, noise: bool) -> Level:
    """A level with prior N(0, I) and one group a dimension, from (B, D) means and log variances."""
    sample = gaussians.sample(mean, logvar) if noise else mean
    return Level(name, mean, logvar, sample, gaussians.kl_to_standard(mean, logvar))


def posterior_logvar(raw: Tensor, settings: ModelSettings) -> Tensor:
    """Bounded log variances from the output of a head: log softplus(raw)^2, or raw itself."""
    if settings.posterior == "softplus":
        # sigma = softplus(raw); for raw far below 0 softplus underflows, where log softplus(raw) -> raw
        raw = 2.0 * torch.where(raw < -15.0, raw, functional.softplus(raw).clamp(min=1e-30).log())
    return gaussians.bound(raw, settings.logvar_min, settings.logvar_max)
