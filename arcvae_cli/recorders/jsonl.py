"""`metrics.jsonl`, the record of a run: a line for every epoch and every logged step."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from arcvae_cli.files import atomic_write, failed, read_lines
from arcvae_cli.records import EpochRecord, Recorder, renamed


class JsonlRecorder(Recorder):
    """Appends one JSON object a line. An epoch is on the disk when `epoch` returns, before its checkpoint is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._append("step", ())

    def resume(self, records: Sequence[EpochRecord], step: int) -> None:
        """Keep each logged step up to `step` once and in order, and write the epochs anew; drop everything else."""
        logged = (renamed(line) for line in read_lines(self._path) if line["kind"] == "step" and line["step"] <= step)
        lines = {(line["step"], 0): line for line in logged}
        lines |= {(record.step, 1): {"kind": "epoch", **record.metrics()} for record in records}
        with atomic_write(self._path) as temporary:
            text = "".join(json.dumps(lines[place], allow_nan=False) + "\n" for place in sorted(lines))
            temporary.write_text(text, encoding="utf-8")

    def steps(self, lines: Sequence[Mapping[str, Any]]) -> None:
        self._append("step", lines)

    def epoch(self, record: EpochRecord) -> None:
        self._append("epoch", [record.metrics()])

    def _append(self, kind: str, lines: Sequence[Mapping[str, Any]]) -> None:
        try:
            with self._path.open("a", encoding="utf-8") as file:
                for line in lines:
                    file.write(json.dumps({"kind": kind, **line}, allow_nan=False) + "\n")
                if kind == "epoch":
                    file.flush()
                    os.fsync(file.fileno())
        except OSError as error:
            raise failed(self._path, error.strerror or str(error)) from error
