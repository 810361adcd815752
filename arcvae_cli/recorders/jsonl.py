"""`metrics.jsonl`, the record of a run: a line for every epoch and every logged step."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from arcvae_cli.records import EpochRecord, Silent, StepRecord
from arcvae_cli.writing import failed


class JsonlRecorder(Silent):
    """Appends one JSON object a line; numbers that are not finite are null."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = path.open("a", encoding="utf-8")

    def steps(self, records: Sequence[StepRecord]) -> None:
        """The logged steps of an epoch."""
        for record in records:
            self._write({"kind": "step", **record.metrics()})

    def epoch(self, record: EpochRecord) -> None:
        """An epoch."""
        self._write({"kind": "epoch", **record.metrics()})

    def close(self, code: int = 0) -> None:  # noqa: ARG002 - it ends the same way
        """Close the file."""
        with self._told():
            self._file.close()

    def _write(self, values: dict[str, Any]) -> None:
        with self._told():
            self._file.write(json.dumps(values, allow_nan=False) + "\n")
            self._file.flush()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise failed(self._path, error.strerror or str(error)) from error
