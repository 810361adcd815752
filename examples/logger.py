"""A logger: `epochs.csv` in the folder of the run, a row an epoch, for a spreadsheet or pandas.

arcvae train --set 'log.recorders=["examples.logger:CSV"]'
"""

import csv
from collections.abc import Sequence
from typing import Any

from arcvae_cli.records import EpochRecord, Recorder


class CSV(Recorder):
    """Made with the run's folder, `self.folder`. An exception disables this logger with a warning."""

    def start(self, plan: Any) -> None:
        self.rows: list[dict[str, Any]] = []

    def resume(self, records: Sequence[EpochRecord], step: int) -> None:
        """The epochs of the run up to where it is resumed: what was written after them is void."""
        self.rows = [row(record) for record in records]
        self.write()

    def epoch(self, record: EpochRecord) -> None:
        self.rows.append(row(record))
        self.write()

    def write(self) -> None:
        with (self.folder / "epochs.csv").open("w", newline="", encoding="utf-8") as file:
            table = csv.DictWriter(file, self.rows[0] if self.rows else ())
            table.writeheader()
            table.writerows(self.rows)


def row(record: EpochRecord) -> dict[str, Any]:
    """The numbers of an epoch; docs/extending.md says what else a record holds."""
    return {key: value for key, value in record.metrics().items() if not isinstance(value, list)}
