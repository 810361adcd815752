"""Baselines of reconstructions: PCA with as many numbers per grid as the model has, frequencies of rules."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from arcvae_cli.grammar import Rules

COLOURS = 10
TRAINING_GRIDS = 20_000
"""Most grids that PCA is fitted to.

Exact PCA of all 80,000 of `arc` differs on its test split, for 10 to 272 components and three seeds, by at most 0.0008
in pixel accuracy, 0.0030 in non-black accuracy and 0.005 in the share of exact grids.
"""
_ROWS = 1024  # grids decoded at once, of 10 kB each
_OVERSAMPLING, _ITERATIONS = 10, 4  # of the randomised SVD


def pca_reconstructions(
    training: NDArray[np.uint8], grids: Tensor, components: int, seed: int
) -> tuple[Tensor, dict[str, int]]:
    """Project grids (n, H, W), integers on any device, on the principal components of centred one-hot training grids.

    Returns the argmax colour of each cell, uint8, and the numbers of components and of training grids.
    """
    if len(training) > TRAINING_GRIDS:
        training = training[np.random.RandomState(seed).choice(len(training), TRAINING_GRIDS, replace=False)]
    known = torch.from_numpy(training).flatten(1)
    most = min(len(known), known.shape[1] * COLOURS)
    components = min(components, most)
    x = torch.zeros(len(known), known.shape[1] * COLOURS).scatter_(1, _places(known), 1.0)
    mean = x.mean(dim=0)
    with torch.autocast("cpu", enabled=False), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed CUDA's too
        axes = torch.svd_lowrank(x.sub_(mean), min(components + _OVERSAMPLING, most), niter=_ITERATIONS)[2]
    mean, axes = mean.to(grids.device), axes[:, :components].to(grids.device)
    found = []
    with torch.autocast(grids.device.type, enabled=False):
        for part in torch.split(grids.flatten(1), _ROWS):
            # the sum of the axes at the ones is the product with a one-hot grid
            codes = functional.embedding_bag(_places(part), axes, mode="sum") - mean @ axes
            scores = (codes @ axes.T + mean).view(-1, *grids.shape[1:], COLOURS)
            found.append(scores.argmax(dim=-1).to(torch.uint8))
    return torch.cat(found), {"pca_components": components, "pca_training_grids": len(known)}


def _places(grids: Tensor) -> Tensor:
    """(n, cells) colours -> (n, cells) where the ones of the one-hot grid are."""
    return grids.long() + COLOURS * torch.arange(grids.shape[1], device=grids.device)


def unigram_baseline(training: Tensor, rules: Rules, ids: Tensor) -> dict[str, Any]:
    """Derivations (n, T) by the frequency of each rule among those of its left-hand side, at each step of `training`.

    One is added to every count (Laplace). `expected_exact_share`: of derivations drawn from the frequencies.
    """
    counts = torch.stack([one.bincount(minlength=len(rules)) for one in training.cpu().long().unbind(1)]).double() + 1.0
    logs = torch.zeros_like(counts)  # (T, P)
    best = torch.zeros(len(counts), len(rules.symbols), dtype=torch.int64)
    for symbol in range(len(rules.symbols)):
        some = torch.tensor(rules.of(symbol))
        among = counts[:, some]
        logs[:, some] = (among / among.sum(dim=1, keepdim=True)).log()
        best[:, symbol] = some[among.argmax(dim=1)]
    x = ids.long().cpu()
    valid, step = x != rules.padding, torch.arange(x.shape[1])
    log_p = torch.where(valid, logs[step, x], 0.0).sum(dim=1)
    wrong = (best[step, torch.tensor(rules.lhs)[x]] != x) & valid
    used, nll = valid.sum().item(), -log_p.mean().item()
    return {
        "training": len(training),
        "nll_nats": nll,
        "nll_bits": nll * len(x) / (used * math.log(2.0)),
        "token_accuracy": 1.0 - wrong.sum().item() / used,
        "exact_share": (~wrong.any(dim=1)).double().mean().item(),
        "expected_exact_share": log_p.exp().mean().item(),
    }
