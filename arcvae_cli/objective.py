"""loss = reconstruction + beta * KL, with free bits, for classes at positions; or a bound by importance weights."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from arcvae_cli import gaussians
from arcvae_cli.distributed import ALONE, Ranks
from arcvae_cli.models.base import Batch, Level, Output, repeated
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
    mmd: Tensor | None = None  # the summed discrepancies of the levels, where the loss has them


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

    def forward(self, output: Output, batch: Batch, weigh: Weigh, draws: int = 1) -> Terms:
        """Terms of a batch at betas by level, or as a function of its reconstruction term and kl_per_dim gives them.

        `draws`: how many times the rows have the examples, one below the other; of several the loss is the bound.
        Logits after those of the batch are of its first examples at draws from the prior, whose -log p(x|z) the loss
        contains too (the hybrid objective of Sohn et al. 2015).
        """
        count, more = len(batch.x), len(output.logits) - len(batch.x)
        nats = self.reconstruction(output.logits, repeated(batch, 1, more) if more else batch)
        nats, again = torch.split(nats, [count, more])
        reconstruction = nats.mean()
        kl_per_dim = {level.name: level.kl.mean(dim=0) for level in output.levels}  # (B, D) -> (D,)
        seen, detached = reconstruction.detach(), {name: groups.detach() for name, groups in kl_per_dim.items()}
        if self.ranks.count > 1 and torch.is_grad_enabled():  # a validation batch is of one rank
            seen, detached = seen.clone(), {name: groups.clone() for name, groups in detached.items()}
            self.ranks.average([seen, *detached.values()])
            # the value of the whole batch, the gradient of these rows: gradients are averaged over the ranks
            kl_per_dim = {name: own + (detached[name] - own).detach() for name, own in kl_per_dim.items()}
        clamped_kl = {one.name: self.clamped_kl(one.kl, kl_per_dim[one.name], one.name) for one in output.levels}
        betas = weigh if isinstance(weigh, Mapping) else weigh(seen, detached)
        if draws > 1:
            loss = -self.importance_bound(nats, output.levels, betas, draws).mean()
            return Terms(loss, reconstruction, clamped_kl, kl_per_dim, betas)
        loss, mmd = (reconstruction + again.sum() / count if more else reconstruction), None
        for name, kl in clamped_kl.items():
            beta = betas[name]
            if isinstance(beta, Tensor):
                loss = loss + beta.to(kl.dtype) * kl
            elif beta != 0.0:  # 0 takes the term out: a KL that has overflowed gives NaN
                loss = loss + beta * kl
        if self.settings.mmd > 0.0:
            offsets = [level.offset().flatten(1) for level in output.levels]
            mmd = torch.stack([gaussians.mmd_to_standard(offset) for offset in offsets]).sum()
            loss = loss + self.settings.mmd * mmd
        return Terms(loss, reconstruction, clamped_kl, kl_per_dim, betas, mmd)

    def importance_bound(self, nats: Tensor, levels: Sequence[Level], betas: Betas, draws: int) -> Tensor:
        """(B,) log mean_k w_k, log w_k = log p(x|z_k) + beta (log p(z_k) - log q(z_k|x)), of rows (draws * B,).

        At beta 1 a bound on log p(x) (Burda et al. 2016, equation 8). `nats`: -log p(x|z_k). The gradient `dreg` is
        doubly reparameterised (Tucker et al. 2019): log q holds its parameters constant, and with
        v_k = w_k / sum w the gradient at z_k is multiplied by v_k; by 1 - beta + beta v_k at other betas, since there
        beta times the score is replaced.
        """
        weights, dreg = -nats, self.settings.importance_gradient == "dreg"
        for level in levels:
            beta = betas[level.name]
            if isinstance(beta, Tensor) or beta != 0.0:
                mean, logvar = (x.detach() if dreg else x for x in (level.mean, level.logvar))
                ratio = gaussians.log_density(level.sample, *level.prior)
                ratio = ratio - gaussians.log_density(level.sample, mean, logvar)
                weights = weights + beta * ratio.flatten(1).sum(dim=1)
        weights = weights.view(draws, -1)
        if dreg and weights.requires_grad:
            beta, shares = betas[levels[0].name], weights.detach().softmax(dim=0)
            scale = (1.0 - beta + beta * shares).view(-1, 1)
            levels[0].sample.register_hook(lambda gradient: gradient * scale)  # type: ignore[no-untyped-call]
        return torch.logsumexp(weights, dim=0) - math.log(draws)

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
