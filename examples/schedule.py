"""A schedule of beta: the curve of a file, such as one from a paper or a spreadsheet.

A row of the file is `epoch,beta`. The run keeps the points, so that the file is not needed again.

    arcvae schedule-preview examples.schedule:FromCSV --set schedule.file=beta.csv
    arcvae train --beta-schedule examples.schedule:FromCSV --set schedule.file=beta.csv
"""

import csv
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field, model_validator

from arcvae_cli.schedules.open import Beta, Epochs, Length, Schedule


class FromCSV(Schedule):
    """Straight lines through points (epoch, beta), level before the first and after the last."""

    times: ClassVar[tuple[str, ...]] = ("stretch",)  # what --quick-test scales
    points: tuple[tuple[Epochs, Beta], ...] = Field(min_length=1, description="epoch and beta of each point")
    stretch: Length = Field(1.0, description="factor on the epochs")

    @model_validator(mode="before")
    @classmethod
    def _read(cls, table: dict[str, Any]) -> dict[str, Any]:
        if file := table.get("file"):
            try:
                rows = csv.reader(Path(file).read_text(encoding="utf-8").splitlines())
                points = sorted((float(epoch), float(beta)) for epoch, beta in rows)
            except (OSError, ValueError) as error:
                raise ValueError(f"{file}: not rows of epoch,beta ({error})") from error
            table = {**{key: value for key, value in table.items() if key != "file"}, "points": points}
        return table

    def __call__(self, epoch: float) -> float:
        at = epoch / self.stretch
        for (start, low), (end, high) in pairwise(self.points):
            if start <= at < end:
                return low + (high - low) * (at - start) / (end - start)
        return self.points[0][1] if at < self.points[0][0] else self.points[-1][1]

    def summit(self) -> tuple[float, float]:
        epoch, beta = max(self.points, key=lambda point: point[1])
        return epoch * self.stretch, beta
