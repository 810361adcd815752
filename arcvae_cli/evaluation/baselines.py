"""What a reconstruction must beat: PCA with as many numbers a grid as the model has."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Grids = NDArray[np.uint8]

COLOURS = 10
TRAINING_GRIDS = 20_000
"""Grids that PCA is fitted to. 80,000 of ARC change its accuracy by 0.0005 at most."""

_ROWS = 2048  # grids decoded at once, of 10 kB each
_MORE, _TURNS = 10, 4  # columns beyond the components, and how often they go through the grids


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

        By `torch.svd_lowrank`, from a random start: half a second, and the few components of so many grids are found
        to one cell in some thousands of the reconstruction.
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
            axes = torch.svd_lowrank(x.sub_(mean), min(components + _MORE, most), niter=_TURNS)[2]
        return cls(components, len(grids), mean, axes[:, :components])

    def reconstruct(self, grids: Grids) -> Grids:
        """Project (n, H, W) grids, and take the largest of the ten colours in each cell."""
        decoded: Grids = self.decode(torch.from_numpy(grids)).to(torch.uint8).numpy()
        return decoded

    def decode(self, x: Tensor) -> Tensor:
        """The same of (n, H, W) integers on any device, as int64."""
        mean, axes = self.mean.to(x.device), self.axes.to(x.device)
        with torch.autocast(x.device.type, enabled=False):
            parts = [
                # the sum of the axes at the lit places is the product with a one-hot grid
                (functional.embedding_bag(_places(part), axes, mode="sum") - mean @ axes) @ axes.T + mean
                for part in torch.split(x.flatten(1), _ROWS)
            ]
            return torch.cat([part.view(-1, *x.shape[1:], COLOURS).argmax(dim=-1) for part in parts])


def _places(grids: Tensor) -> Tensor:
    """(n, cells) colours -> (n, cells) where the ones of the one-hot grid are."""
    return grids.long() + COLOURS * torch.arange(grids.shape[1], device=grids.device)
