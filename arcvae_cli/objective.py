"""loss = reconstruction + beta * KL, with free bits, for classes at positions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from arcvae_cli.distributed import ALONE, Ranks
from arcvae_cli.models.base import Batch, Output
from arcvae_cli.settings import ObjectiveSettings

ACTIVE_KL = 0.05  # nats: a dimension is called active when its mean KL is above
Betas = Mapping[str, float | Tensor]  # by level
Weigh = Betas | Callable[[Tensor, Mapping[str, Tensor]], Betas]
"""The betas of a batch, or what gives them from its reconstruction term (0-d) and its kl_per_dim (D,) by level."""


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of one batch, on the device: 0-d means over the batch."""

    loss: Tensor
    reconstruction: Tensor
    clamped_kl: dict[str, Tensor]  # by level, the KL term after free bits and reduction, before beta
    kl_per_dim: dict[str, Tensor]  # by level, (D,) raw KL of each group in nats
    betas: Betas


class Objective(nn.Module):
    """The objective of a run. `class_counts`: (classes,) training positions of each class, for class weights.

    In training the batch is that of all `ranks`: its means of the KL are clamped, and seen by closed loops.
    """

    class_weights: Tensor | None

    def __init__(self, settings: ObjectiveSettings, class_counts: Tensor | None = None, ranks: Ranks = ALONE) -> None:
        super().__init__()
        self.settings, self.ranks = settings, ranks
        kind = settings.class_weights
        weights = class_weights(class_counts, kind) if class_counts is not None and kind != "none" else None
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, output: Output, batch: Batch, weigh: Weigh) -> Terms:
        """Terms of a batch at betas by level, or as a function of its reconstruction term and kl_per_dim gives them."""
        reconstruction = self.reconstruction(output.logits, batch).mean()
        kl_per_dim = {level.name: level.kl.mean(dim=0) for level in output.levels}  # (B, D) -> (D,)
        seen, detached = reconstruction.detach(), {name: groups.detach() for name, groups in kl_per_dim.items()}
        if self.ranks.count > 1 and torch.is_grad_enabled():  # a validation batch is of one rank
            seen, detached = seen.clone(), {name: groups.clone() for name, groups in detached.items()}
            self.ranks.average([seen, *detached.values()])
            # the value of the whole batch, the gradient of these rows: gradients are averaged over the ranks
            kl_per_dim = {name: own + (detached[name] - own).detach() for name, own in kl_per_dim.items()}
        clamped_kl = {
            level.name: self.clamped_kl(level.kl, kl_per_dim[level.name], level.name) for level in output.levels
        }
        betas = weigh if isinstance(weigh, Mapping) else weigh(seen, detached)
        loss = reconstruction
        for name, kl in clamped_kl.items():
            beta = betas[name]
            if isinstance(beta, Tensor):
                loss = loss + beta.to(kl.dtype) * kl
            elif beta != 0.0:  # 0 takes the term out: a KL that has overflowed gives NaN
                loss = loss + beta * kl
        return Terms(loss, reconstruction, clamped_kl, kl_per_dim, betas)

    def reconstruction(self, logits: Tensor, batch: Batch) -> Tensor:
        """(B,) reconstruction term of each example: a sum over its valid positions, or their mean."""
        settings = self.settings
        nats = functional.cross_entropy(logits, batch.x, reduction="none")  # (B, *positions)
        if settings.reconstruction == "focal":
            # Lin et al. 2017: (1 - p)^gamma * -log p with p = exp(-nats); clamped, as the gradient at 0 may be infinite
            nats = (-torch.expm1(-nats)).clamp(min=1e-12).pow(settings.focal_gamma) * nats
        if self.class_weights is not None:
            nats = nats * self.class_weights[batch.x]
        if batch.valid is not None:
            nats = nats * batch.valid
        total = nats.flatten(1).sum(dim=1)
        if settings.reduction == "sum":
            return total
        return total / (batch.x[0].numel() if batch.valid is None else batch.valid.flatten(1).sum(dim=1))

    def clamped_kl(self, kl: Tensor, means: Tensor, level: str) -> Tensor:
        """The KL term from (B, D) nats and batch means (D,), clamped by free bits, summed or averaged over the groups.

        `per_dim` clamps the batch mean of each group (Kingma et al. 2016, equation 16), `per_sample` each example's.
        """
        floor = self.settings.floor(level)
        if floor == 0.0:
            total = means.sum()
        elif self.settings.free_bits_mode == "per_dim":
            total = means.clamp(min=floor).sum()
        elif self.settings.free_bits_mode == "per_sample":
            total = kl.clamp(min=floor).mean(dim=0).sum()
        else:
            total = means.sum().clamp(min=floor)
        return total / len(means) if self.settings.kl_reduction == "mean" else total


def class_weights(counts: Tensor, kind: str) -> Tensor:
    """(classes,) float32 weights from training counts; a class never seen gets the weight of one seen once.

    `balanced`: n / (classes * n_c) (King and Zeng 2001); `inverse`, `sqrt_inverse`: 1 / n_c and its root, with mean 1.
    """
    seen = counts.cpu().double().clamp(min=1.0)  # not every device has float64
    if kind == "balanced":
        return (seen.sum() / (len(seen) * seen)).float()
    weights = 1.0 / seen if kind == "inverse" else seen.rsqrt()
    return (weights / weights.mean()).float()
