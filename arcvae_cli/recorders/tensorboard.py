"""TensorBoard event files, under the names of the logged metrics and those of the beta schedule."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np

from arcvae_cli.grammar import Rules
from arcvae_cli.recorders.strings import Writer, pair_lines
from arcvae_cli.records import EpochRecord, Pictures, Silent, StepRecord
from arcvae_cli.render import grid_pixels, kl_map_pixels, reconstruction_pixels

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

COMPARISON = "Beta_Schedule/Hierarchical_Comparison"


class TensorBoardRecorder(Silent):
    """Writes into a folder; the axis is the optimiser step, and `epoch` a curve of its own.

    The files are opened at the first record. What an earlier session in the folder wrote from that step on is void for
    readers, so that a run which continues from a checkpoint has every curve once.
    """

    def __init__(self, folder: Path, rules: Rules | None = None) -> None:
        self._folder = folder
        self._strings = None if rules is None else Writer(rules)
        self._writers: dict[str, SummaryWriter] = {}  # by level, whose curve in the comparison it holds; "": the rest
        self._first: int | None = None  # the first step written
        self._step = 0

    def steps(self, records: Sequence[StepRecord]) -> None:
        """`Batch/*` of the logged steps."""
        for record in records:
            values = record.metrics()
            self._write(
                record.step,
                {
                    "Batch/KL_Loss": values["train/loss_kl"],
                    "Batch/Total_Loss": values["train/loss_total"],
                    "Batch/Beta": values["train/beta"],
                    **{f"Batch/{level.title()}_KL_Weight": beta for level, beta in of_levels(record.betas).items()},
                },
            )

    def epoch(self, record: EpochRecord) -> None:
        """The metrics, the schedule, and the KL of all dimensions as a histogram."""
        values = record.metrics()
        self._step = values.pop("step")
        kl = finite(values.pop("val/kl_per_dim"))
        levels = of_levels(record.betas)
        values["Beta_Schedule/beta"] = values["train/beta"]
        values.update({f"Beta_Schedule/{level}_kl_weight": beta for level, beta in levels.items()})
        values.update({f"Beta_Schedule/Restart/{name}": value for name, value in (record.restart or {}).items()})
        self._write(self._step, values)
        if len(kl):
            self._writer().add_histogram("val/kl_per_dim", kl, self._step)
        for level, beta in levels.items():
            self._writer(level).add_scalar(COMPARISON, beta, self._step)
        for writer in self._writers.values():
            writer.flush()

    def pictures(self, epoch: int, pictures: Pictures) -> None:  # noqa: ARG002 - the axis is the step
        """The pictures of an epoch, or the strings of derivations as text."""
        if self._strings is None:
            self._show_grids(pictures)
        else:
            self._show_strings(self._strings, pictures)

    def close(self, code: int = 0) -> None:  # noqa: ARG002 - it ends the same way
        """Write what is left."""
        for writer in self._writers.values():
            writer.close()

    def _show_grids(self, pictures: Pictures) -> None:
        """Images, the scale of a KL map as a curve."""
        writer, step = self._writer(), self._step
        shown = reconstruction_pixels(pictures.originals, pictures.reconstructions)
        writer.add_image("images/reconstructions", shown, step, dataformats="HWC")
        writer.add_image("images/samples", grid_pixels(pictures.samples), step, dataformats="HWC")
        if pictures.maps:
            maps, top = kl_map_pixels(pictures.originals, pictures.maps)
            writer.add_image("images/kl_maps", maps, step, dataformats="HWC")
            writer.add_scalar("images/kl_maps_brightest", top, step)

    def _show_strings(self, strings: Writer, pictures: Pictures) -> None:
        """Texts, each line indented: TensorBoard reads Markdown, where that is code and shown as it is."""
        texts = {
            "strings/reconstructions": pair_lines(strings.pairs(pictures.originals, pictures.reconstructions)),
            "strings/samples": strings.samples(pictures.samples),
        }
        for name, lines in texts.items():
            if lines:
                self._writer().add_text(name, "\n".join(f"    {line}" for line in lines), self._step)

    def _write(self, step: int, values: Mapping[str, Any]) -> None:
        """Scalars; what is no number is left out."""
        if self._first is None:
            self._first = step
        writer = self._writer()
        for name, value in values.items():
            if isinstance(value, (int, float)) and math.isfinite(value):
                writer.add_scalar(name, value, step)

    def _writer(self, level: str = "") -> SummaryWriter:
        """The writer of all, or of a level's curve in the comparison, where one name has a curve a folder."""
        if level not in self._writers:
            # TensorBoard's own switch for doing without TensorFlow, which takes seconds to import where it is installed
            sys.modules.setdefault("tensorboard.compat.notf", ModuleType("tensorboard.compat.notf"))
            from torch.utils.tensorboard import SummaryWriter

            folder = self._folder / f"{COMPARISON.replace('/', '_')}_{level}" if level else self._folder
            self._writers[level] = SummaryWriter(str(folder), purge_step=self._first)
        return self._writers[level]


def of_levels(betas: Mapping[str, float]) -> Mapping[str, float]:
    """Beta of each level where there are several."""
    return betas if len(betas) > 1 else {}


def finite(values: Sequence[float | None]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Those that are numbers."""
    return np.array([value for value in values if value is not None])
