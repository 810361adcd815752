"""The pictures of a run: examples every few epochs; at its end the curves of metrics, beta and KL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from arcvae_cli import domains
from arcvae_cli.records import EpochRecord, Pictures, Plan, Recorder

if TYPE_CHECKING:
    from arcvae_cli.render.plots import Curve

KL = "KL, nats"
UNITS = {"kl": KL, "reconstruction": "reconstruction, nats per position"}
PANELS = {
    "loss": ("loss_total",),
    "reconstruction": ("loss_reconstruction",),
    KL: ("kl",),
    "accuracy": ("pixel_accuracy", "foreground_accuracy", "exact_accuracy", "token_acc", "seq_acc"),
    "active dimensions": ("active_dims",),
    "beta": ("beta",),
}  # of the training curves, and their logged metrics


class ImageRecorder(Recorder):
    """Writes examples of a kind and a structure into a folder, and at the end of a run the curves of its epochs."""

    def __init__(self, folder: Path, kind: str, structure: Any) -> None:
        self._folder, self._kind, self._structure = folder, kind, structure
        self._epochs: list[EpochRecord] = []

    def start(self, plan: Plan) -> None:
        self._plan = plan

    def resume(self, records: Sequence[EpochRecord], step: int) -> None:  # noqa: ARG002
        self._epochs = list(records)
        for path in self._folder.glob("*_epoch_*"):
            number = path.stem.rpartition("_")[2]
            if number.isdecimal() and int(number) > len(records):
                path.unlink()

    def epoch(self, record: EpochRecord) -> None:
        self._epochs.append(record)

    def pictures(self, epoch: int, pictures: Pictures) -> None:
        domains.of(self._kind).write_pictures(self._folder, epoch, pictures, self._structure)

    def close(self, code: int = 0) -> None:  # noqa: ARG002
        if not self._epochs:
            return
        from arcvae_cli.render import plots

        epochs, plan = self._epochs, self._plan
        levels = {name: np.array([record.val.kl_per_dim[name] for record in epochs]) for name in plan.level_shapes}
        title = f"{plan.run}, validation: KL of each dimension"
        plots.save_kl_heatmap(self._folder / "kl_per_dim.png", levels, title)
        title = f"{plan.run}: beta over the run"
        plots.save_curves(self._folder / "beta_schedule.png", beta_curves(epochs, plan.steps), title, plan.elbo_scale)
        curves = training_curves([record.metrics() for record in epochs])
        best = max((record.epoch for record in epochs if record.best), default=0)
        title = f"{plan.run}: training curves (solid: validation, dashed: training, grey line: best epoch)"
        plots.save_curves(self._folder / "training_curves.png", curves, title, best=best)


def beta_curves(epochs: Sequence[EpochRecord], steps: int) -> list[Curve]:
    """Beta at every step, which may go through whole cycles within an epoch, and the quantities it is to control."""
    traces = {name: [beta for record in epochs for beta in record.beta_trace[name]] for name in epochs[0].beta_trace}
    if len(set(map(tuple, traces.values()))) == 1:
        traces = {"beta": next(iter(traces.values()))}
    places = [record.epoch - 1 + (step + 1) / steps for record in epochs for step in range(steps)]
    curves: list[Curve] = [(name, "beta", places, trace, False) for name, trace in traces.items()]
    at = [record.epoch for record in epochs]
    for loop in zip(*(record.targets for record in epochs), strict=False):  # of each, its epochs
        unit = UNITS[loop[0].quantity]
        name = loop[0].level or unit.partition(",")[0]
        curves.append((name, unit, at, [one.value for one in loop], False))
        curves.append((f"{name} target", unit, at, [one.target for one in loop], True))
    return curves


def training_curves(epochs: Sequence[Mapping[str, Any]]) -> list[Curve]:
    """The curves of logged metrics: of validation, and dashed of training; of several levels those of each."""
    first, places = epochs[0], [epoch["epoch"] for epoch in epochs]
    curves: list[Curve] = []
    levels = [key.removeprefix("val/kl/") for key in first if key.startswith("val/kl/")]
    for unit, metrics in PANELS.items():
        names = [f"{metrics[0]}/{level}" for level in levels] if unit in (KL, "beta") else []
        for name in names or metrics:
            label = name.rpartition("/")[2].partition("_acc")[0] if names or len(metrics) > 1 else ""
            for dashed, key in enumerate(key for key in (f"val/{name}", f"train/{name}") if key in first):
                values = np.array([epoch[key] for epoch in epochs], float)  # null is NaN
                if not (name == "foreground_accuracy" and np.isnan(values).all()):  # without a background
                    curves.append((f"_{label}" if dashed else label, unit, places, values, dashed > 0))
    return curves
