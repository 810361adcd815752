"""`metrics.jsonl`, the record of a run: a line for every epoch and every logged step."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arcvae_cli.files import atomic_write, failed, metric_lines
from arcvae_cli.records import EpochRecord, Recorder, StepRecord


class JsonlRecorder(Recorder):
    """Appends one JSON object a line. An epoch is on the disk when `epoch` returns, before its checkpoint is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._reported():
            self._file = path.open("a", encoding="utf-8")

    def resume(self, records: Sequence[EpochRecord], step: int) -> None:
        """Keep each logged step up to `step` once and in order, and write the epochs anew; drop everything else."""
        lines = {(record.step, 1): json_line("epoch", record.metrics()) for record in records}
        lines |= {(number, 0): f"{text}\n" for number, text in step_lines(self._path, 0, step).items()}
        self.close()
        with atomic_write(self._path) as temporary:
            temporary.write_text("".join(lines[place] for place in sorted(lines)), encoding="utf-8")
        with self._reported():
            self._file = self._path.open("a", encoding="utf-8")

    def steps(self, records: Sequence[StepRecord]) -> None:
        for record in records:
            self._write(json_line("step", record.metrics()))

    def epoch(self, record: EpochRecord) -> None:
        self._write(json_line("epoch", record.metrics()))
        with self._reported():
            os.fsync(self._file.fileno())

    def close(self, code: int = 0) -> None:  # noqa: ARG002
        with self._reported():
            self._file.close()

    def _write(self, line: str) -> None:
        with self._reported():
            self._file.write(line)
            self._file.flush()

    @contextmanager
    def _reported(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise failed(self._path, error.strerror or str(error)) from error


def json_line(kind: str, values: Mapping[str, Any]) -> str:
    """A line of the file."""
    return json.dumps({"kind": kind, **values}, allow_nan=False) + "\n"


def retold(
    path: Path, records: Sequence[EpochRecord], after: int
) -> Iterator[tuple[list[dict[str, Any]], EpochRecord]]:
    """The epochs that end after step `after`, each with the metrics of its logged steps in a `metrics.jsonl`."""
    lines = sorted(step_lines(path, after, records[-1].step if records else 0).items(), reverse=True)
    for record in records:
        if record.step > after:
            rows = []
            while lines and lines[-1][0] <= record.step:
                rows.append(json.loads(lines.pop()[1]))
                del rows[-1]["kind"]
            yield rows, record


def step_lines(path: Path, after: int, last: int) -> dict[int, str]:
    """The lines of logged steps in a `metrics.jsonl`, from the one after `after` to `last`; the last of each step."""
    found: dict[int, str] = {}
    for text, line in metric_lines(path) if path.is_file() else ():
        if line["kind"] == "step" and isinstance(step := line.get("step"), int) and after < step <= last:
            found[step] = text
    return found
