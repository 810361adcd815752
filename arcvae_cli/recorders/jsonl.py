"""`metrics.jsonl`, the record of a run: a line for every epoch and every logged step."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arcvae_cli.files import atomic_write, failed, read_lines
from arcvae_cli.records import EpochRecord, Recorder


class JsonlRecorder(Recorder):
    """Appends one JSON object a line. An epoch is on the disk when `epoch` returns, before its checkpoint is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._append()

    def resume(self, records: Sequence[EpochRecord], step: int) -> None:
        """Keep each logged step up to `step` once and in order, and write the epochs anew; drop everything else."""
        lines = {(record.step, 1): json_line("epoch", record.metrics()) for record in records}
        for values in read_lines(self._path):
            if values["kind"] == "step" and values["step"] <= step:
                lines[values["step"], 0] = json_line("step", values)
        with atomic_write(self._path) as temporary:
            temporary.write_text("".join(lines[place] for place in sorted(lines)), encoding="utf-8")

    def steps(self, lines: Sequence[Mapping[str, Any]]) -> None:
        self._append(*(json_line("step", line) for line in lines))

    def epoch(self, record: EpochRecord) -> None:
        self._append(json_line("epoch", record.metrics()), sync=True)

    def _append(self, *lines: str, sync: bool = False) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(lines)
                if sync:
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise failed(self._path, error.strerror or str(error)) from error


def json_line(kind: str, values: Mapping[str, Any]) -> str:
    """A line of the file."""
    return json.dumps({"kind": kind, **values}, allow_nan=False) + "\n"
