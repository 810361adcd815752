"""Baselines of reconstructions: PCA with as many numbers per grid as the model has, rule frequencies."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from arcvae_cli.grammar import Rules

Grids = NDArray[np.uint8]

COLOURS = 10
TRAINING_GRIDS = 20_000
"""Grids that PCA is fitted to. 80,000 of ARC change its accuracy by 0.0005 at most."""

_ROWS = 1024  # grids decoded at once, of 10 kB each
_OVERSAMPLING, _ITERATIONS = 10, 4  # of the randomised SVD


@dataclass(frozen=True, slots=True, eq=False)
class PCABaseline:
    """Principal components of centred one-hot grids; `training_grids` says how many it was fitted to.

    `mean`: (cells * 10,), `axes`: (cells * 10, components), orthonormal.
    """

    components: int
    training_grids: int
    mean: Tensor
    axes: Tensor

    @classmethod
    def fit(cls, training: Grids, components: int, seed: int) -> PCABaseline:
        """Fit to at most `TRAINING_GRIDS` of (n, H, W) grids, drawn with `seed`; at most n components.

        By `torch.svd_lowrank`: half a second, and exact to one cell in some thousands of the reconstruction.
        """
        if len(training) > TRAINING_GRIDS:
            training = training[np.random.RandomState(seed).choice(len(training), TRAINING_GRIDS, replace=False)]
        grids = torch.from_numpy(training).flatten(1)
        most = min(len(grids), grids.shape[1] * COLOURS)
        components = min(components, most)
        x = torch.zeros(len(grids), grids.shape[1] * COLOURS).scatter_(1, _places(grids), 1.0)
        mean = x.mean(dim=0)
        with torch.autocast("cpu", enabled=False), torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed CUDA's too
            axes = torch.svd_lowrank(x.sub_(mean), min(components + _OVERSAMPLING, most), niter=_ITERATIONS)[2]
        return cls(components, len(grids), mean, axes[:, :components])

    def decode(self, x: Tensor) -> Tensor:
        """Project grids (n, H, W), integers on any device, and take the argmax colour of each cell, as int64."""
        mean, axes = self.mean.to(x.device), self.axes.to(x.device)
        with torch.autocast(x.device.type, enabled=False):
            parts = [
                # the sum of the axes at the ones is the product with a one-hot grid
                (functional.embedding_bag(_places(part), axes, mode="sum") - mean @ axes) @ axes.T + mean
                for part in torch.split(x.flatten(1), _ROWS)
            ]
            return torch.cat([part.view(-1, *x.shape[1:], COLOURS).argmax(dim=-1) for part in parts])


def _places(grids: Tensor) -> Tensor:
    """(n, cells) colours -> (n, cells) where the ones of the one-hot grid are."""
    return grids.long() + COLOURS * torch.arange(grids.shape[1], device=grids.device)


class UnigramBaseline:
    """The frequency of each rule among those of its left-hand side, at each step of training derivations (n, T).

    One is added to every count (Laplace), so that no rule is impossible: what a model without a code can learn.
    """

    def __init__(self, training: Tensor, rules: Rules) -> None:
        self._training = len(training)
        self._padding, self._left = rules.padding, torch.tensor(rules.lhs)
        steps = training.cpu().long().unbind(1)
        counts = torch.stack([one.bincount(minlength=len(rules)) for one in steps]).double() + 1.0  # (T, P)
        self._logs = torch.zeros_like(counts)
        self._best = torch.zeros(len(steps), len(rules.symbols), dtype=torch.int64)
        for symbol in range(len(rules.symbols)):
            some = torch.tensor(rules.of(symbol))
            among = counts[:, some]
            self._logs[:, some] = (among / among.sum(dim=1, keepdim=True)).log()
            self._best[:, symbol] = some[among.argmax(dim=1)]

    def scores(self, ids: Tensor) -> dict[str, Any]:
        """Of derivations (n, T): `nll_nats` each, `nll_bits` per rule, shares of rules and of exact derivations.

        `exact_share`: of the most frequent rules, `expected_exact_share`: of derivations drawn from the frequencies.
        """
        x = ids.long().cpu()
        valid = x != self._padding
        step = torch.arange(x.shape[1])
        logs = torch.where(valid, self._logs[step, x], 0.0).sum(dim=1)
        wrong = (self._best[step, self._left[x]] != x) & valid
        rules = valid.sum().item()
        nll = -logs.mean().item()
        return {
            "training": self._training,
            "nll_nats": nll,
            "nll_bits": nll * len(x) / (rules * math.log(2.0)),
            "token_accuracy": 1.0 - wrong.sum().item() / rules,
            "exact_share": (~wrong.any(dim=1)).double().mean().item(),
            "expected_exact_share": logs.exp().mean().item(),
        }
