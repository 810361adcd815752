"""The pictures of a run: examples every few epochs; at its end the curves of metrics, beta and KL."""

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
    """Writes examples of a kind into a folder, and at the end of a run the curves of its epochs."""

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
        epochs, plan = self._epochs, self._plan
        if not epochs or plan is None:
            return
        metrics = [record.metrics() for record in epochs]
        plots.save_training_curves(self._folder / "training_curves.png", f"{plan.run}: training curves", metrics)
        levels = {name: np.array([record.val.kl_per_dim[name] for record in epochs]) for name in plan.level_shapes}
        floors = plan.free_bits if plan.settings.objective.free_bits_mode != "total" else None
        title = f"{plan.run}, validation: KL of each dimension"
        plots.save_kl_heatmap(self._folder / "kl_per_dim.png", levels, floors, title)
        # beta at every step, which may go through whole cycles within an epoch
        betas = {name: [beta for record in epochs for beta in record.beta_trace[name]] for name in plan.level_shapes}
        if len(set(map(tuple, betas.values()))) == 1:
            betas = {"beta": next(iter(betas.values()))}
        places = [record.epoch - 1 + (step + 1) / plan.steps for record in epochs for step in range(plan.steps)]
        title = f"{plan.run}: beta over the run"
        targets = [(float(record.epoch), record.targets) for record in epochs if record.targets]
        plots.save_beta_schedule(self._folder / "beta_schedule.png", places, betas, plan.elbo_scale, targets, title)
