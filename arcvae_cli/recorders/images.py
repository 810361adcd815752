"""The pictures of a run: examples every few epochs, curves of beta and of every KL at its end."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from arcvae_cli import domains
from arcvae_cli.grammar import Rules
from arcvae_cli.records import EpochRecord, Pictures, Plan, Recorder
from arcvae_cli.render import plots


class ImageRecorder(Recorder):
    """Writes examples of a kind into a folder, and at the end of a run beta and the KL of every dimension."""

    def __init__(self, folder: Path, kind: str, rules: Rules | None = None) -> None:
        self._folder, self._kind, self._rules = folder, kind, rules
        self._plan: Plan | None = None
        self._epochs: list[EpochRecord] = []

    def start(self, plan: Plan) -> None:
        self._plan = plan

    def resume(self, records: Sequence[EpochRecord], step: int) -> None:  # noqa: ARG002
        self._epochs = list(records)
        for path in self._folder.glob("*_epoch_*"):
            number = re.fullmatch(r"(?:reconstructions|samples|kl_map)_epoch_(\d+)\.(?:png|txt)", path.name)
            if number and int(number[1]) > len(records):
                path.unlink()

    def epoch(self, record: EpochRecord) -> None:
        self._epochs.append(record)

    def pictures(self, epoch: int, pictures: Pictures) -> None:
        domains.of(self._kind).write_pictures(self._folder, epoch, pictures, self._rules)

    def close(self, code: int = 0) -> None:  # noqa: ARG002
        if not self._epochs or self._plan is None:
            return
        rates = [record.val.kl_per_dim for record in self._epochs]
        levels = {name: np.array([groups[name] for groups in rates]) for name in rates[0]}
        floors = self._plan.free_bits if self._plan.settings.objective.free_bits_mode != "total" else None
        plots.save_kl_heatmap(
            self._folder / "kl_per_dim.png", levels, floors, f"{self._plan.run}, validation: KL of each dimension"
        )
        # beta at every step, which may go through whole cycles within an epoch
        places: list[float] = []
        betas: dict[str, list[float]] = {name: [] for name in self._epochs[0].beta_trace}
        for record in self._epochs:
            for name, path in record.beta_trace.items():
                betas[name].extend(path)
            steps = len(next(iter(record.beta_trace.values())))
            places.extend(record.epoch - 1 + (step + 1) / steps for step in range(steps))
        if len(set(map(tuple, betas.values()))) == 1:
            betas = {"beta": next(iter(betas.values()))}
        held = [(float(record.epoch), record.targets) for record in self._epochs if record.targets]
        title = f"{self._plan.run}: beta over the run"
        plots.save_beta_schedule(self._folder / "beta_schedule.png", places, betas, self._plan.elbo_scale, held, title)
        file = self._folder / "training_curves.png"
        plots.save_training_curves(
            file, f"{self._plan.run}: training curves", [record.metrics() for record in self._epochs]
        )
