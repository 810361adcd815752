"""TensorBoard event files, under the names of the logged metrics and those of the beta schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from arcvae_cli.files import read_lines
from arcvae_cli.recorders.external import example_files, flattened
from arcvae_cli.records import EpochRecord, Pictures, Recorder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

BETA = "train/beta/"
BATCH = {"Batch/KL_Loss": "train/loss_kl", "Batch/Total_Loss": "train/loss_total", "Batch/Beta": "train/beta"}


class TensorBoardRecorder(Recorder):
    """Writes event files into `tensorboard/` of a run; the axis is the optimiser step, and `epoch` a curve of its own.

    A resumed run voids what was written from its last epoch on (`purge_step`), since a killed process may have lost
    part of it, and writes that epoch again from `metrics.jsonl`.
    """

    def __init__(self, run: Path) -> None:
        self._run, self._folder = run, run / "tensorboard"
        self._writers: dict[str, SummaryWriter] = {}  # by level, for its curve in the comparison; "": the rest
        self._first: int | None = None  # earlier files are void from this step on
        self._step = 0

    def resume(self, records: Sequence[EpochRecord], step: int) -> None:
        started = any(self._folder.glob("events.out.tfevents.*"))
        before = records[-2].step if started and len(records) > 1 else 0
        self._first, self._step = before + 1, step
        lines = read_lines(self._run / "metrics.jsonl")  # later ones come from `steps`
        self.steps([line for line in lines if line["kind"] == "step" and before < line["step"] <= step])
        for record in records:
            if record.step > before:
                self.epoch(record)

    def steps(self, lines: Sequence[Mapping[str, Any]]) -> None:
        for values in lines:
            weights = {f"Batch/{level.title()}_KL_Weight": beta for level, beta in betas(values).items()}
            self._scalars(values["step"], {name: values[key] for name, key in BATCH.items()} | weights)

    def epoch(self, record: EpochRecord) -> None:
        values = record.metrics()
        self._step = values.pop("step")
        kl = np.array([value for value in values.pop("val/kl_per_dim") if value is not None])
        values["Beta_Schedule/beta"] = values["train/beta"]
        values.update({f"Beta_Schedule/Restart/{name}": value for name, value in (record.restart or {}).items()})
        for level, beta in betas(values).items():
            values[f"Beta_Schedule/{level}_kl_weight"] = beta
            self._writer(level).add_scalar("Beta_Schedule/Hierarchical_Comparison", beta, self._step)
        if len(kl):
            self._writer().add_histogram("val/kl_per_dim", kl, self._step)
        self._scalars(self._step, values)
        for writer in self._writers.values():
            writer.flush()

    def pictures(self, epoch: int, pictures: Pictures) -> None:  # noqa: ARG002 - of its files
        for file in example_files(self._run, epoch):
            self._file(*file)

    def evaluated(self, metrics: Mapping[str, Any], verdict: Sequence[str], images: Sequence[Path]) -> None:
        self._scalars(self._step, dict(flattened(metrics)))
        self._text("eval/verdict", verdict)
        for path in images:
            self._file(f"eval/{path.stem}", path)

    def close(self, code: int = 0) -> None:  # noqa: ARG002
        for writer in self._writers.values():
            writer.close()

    def _scalars(self, step: int, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            if isinstance(value, (int, float)):  # a NaN is logged as null
                self._writer().add_scalar(name, value, step)

    def _file(self, name: str, path: Path) -> None:
        if path.suffix == ".png":
            from matplotlib.image import imread

            self._writer().add_image(name, imread(path)[..., :3], self._step, dataformats="HWC")
        else:
            self._text(name, path.read_text(encoding="utf-8").splitlines())

    def _text(self, name: str, lines: Sequence[str]) -> None:
        # indented: TensorBoard reads Markdown, where that is code
        self._writer().add_text(name, "\n".join(f"    {line}" for line in lines), self._step)

    def _writer(self, level: str = "") -> SummaryWriter:
        if level not in self._writers:  # one name has a curve a folder
            from torch.utils.tensorboard import SummaryWriter

            folder = self._folder / f"Beta_Schedule_Hierarchical_Comparison_{level}" if level else self._folder
            self._writers[level] = SummaryWriter(str(folder), purge_step=self._first)
        return self._writers[level]


def betas(values: Mapping[str, Any]) -> dict[str, float]:
    """Beta of each level where there are several, of the metrics of a step or an epoch."""
    return {name.removeprefix(BETA): beta for name, beta in values.items() if name.startswith(BETA)}
