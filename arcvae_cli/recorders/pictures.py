"""The pictures of a run: reconstructions and samples on the way, beta and the KL of every dimension at its end."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from arcvae_cli import render
from arcvae_cli.records import EpochRecord, Grids, Plan, Silent, all_rates


class GridPictures(Silent):
    """Writes PNGs of grids into a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._plan: Plan | None = None
        self._epochs: list[EpochRecord] = []
        self._betas: list[tuple[float, float]] = []  # (epoch, beta) after every step

    def start(self, plan: Plan) -> None:
        """Keep what the titles need."""
        self._plan = plan

    def step(self, epoch: int, done: int, beta: float) -> None:
        """Keep beta, which may go through whole cycles within an epoch."""
        assert self._plan is not None
        self._betas.append((epoch - 1 + done / self._plan.steps, beta))

    def epoch(self, record: EpochRecord) -> None:
        """Keep what the curves need."""
        self._epochs.append(record)

    def pictures(self, epoch: int, originals: Grids, reconstructions: Grids, samples: Grids) -> None:
        """Write `reconstructions_epoch_N.png` and `samples_epoch_N.png`."""
        render.save_reconstructions(self._folder / f"reconstructions_epoch_{epoch}.png", originals, reconstructions)
        render.save_grids(self._folder / f"samples_epoch_{epoch}.png", samples)

    def close(self) -> None:
        """Write `beta_schedule.png` and `kl_per_dim.png` of the epochs there were."""
        if not self._epochs or self._plan is None:
            return
        epochs = [float(record.epoch) for record in self._epochs]
        betas = {name: [record.betas[name] for record in self._epochs] for name in self._epochs[0].betas}
        if len(set(map(tuple, betas.values()))) == 1:  # levels alike: the one beta, at every step
            epochs, betas = [at for at, _ in self._betas], {"beta": [beta for _, beta in self._betas]}
        render.save_beta_schedule(self._folder / "beta_schedule.png", epochs, betas, self._plan.elbo_scale)
        kl = np.array([list(all_rates(record.val)) for record in self._epochs])
        floor = self._plan.free_bits if self._plan.free_bits_mode != "total" else 0.0
        render.save_kl_heatmap(self._folder / "kl_per_dim.png", kl, floor)
