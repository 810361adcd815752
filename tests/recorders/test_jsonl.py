from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arcvae_cli.errors import ArcvaeError
from arcvae_cli.recorders.jsonl import JsonlRecorder
from arcvae_cli.records import EpochRecord, StepRecord
from arcvae_cli.schedules.recorded import read_lines

MakeRecord = Callable[..., EpochRecord]
NAN, INF = float("nan"), float("inf")


def read_epochs(path: Path) -> list[dict[str, Any]]:
    return [line for line in read_lines(path) if line["kind"] == "epoch"]


def strictly(text: str) -> Any:
    """JSON as the standard has it: Python's own NaN and Infinity are refused."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_a_line_is_there_as_soon_as_it_is_recorded(tmp_path: Path, make_record: MakeRecord) -> None:
    path = tmp_path / "metrics.jsonl"
    recorder = JsonlRecorder(path)
    record = make_record(1)
    recorder.steps([StepRecord(0.5, 25, {"z": 0.02}, record.train, "pixel")])
    recorder.epoch(record)
    lines = [strictly(line) for line in path.read_text().splitlines()]  # not closed yet: a run may be killed
    recorder.close()
    assert [(line["kind"], line["step"], line["train/beta"]) for line in lines] == [
        ("step", 25, 0.02),
        ("epoch", 50, 0.05),
    ]
    assert lines[0]["epoch"] == 0.5 and lines[0]["train/kl_per_dim/dim_1"] == 2.0
    assert lines[1]["val/kl_per_dim"] == [1.0, 2.0, 0.01] and lines[1]["val/active_dims"] == 2


def test_what_is_no_number_is_null(tmp_path: Path, make_record: MakeRecord) -> None:
    record = make_record(1, rates={"z": [NAN, INF, 1.0]}, val={"loss": NAN, "reconstruction": -INF}, selection=INF)
    recorder = JsonlRecorder(tmp_path / "metrics.jsonl")
    recorder.epoch(replace(record, train=replace(record.train, loss=NAN)))
    recorder.close()
    line = strictly((tmp_path / "metrics.jsonl").read_text())
    for name in ("train/loss_total", "val/loss_total", "val/loss_reconstruction", "val/loss_kl", "val/kl"):
        assert line[name] is None, name
    assert line["val/loss_selection"] is None
    assert line["val/kl_per_dim"] == [None, None, 1.0]
    assert line["train/kl_per_dim/dim_2"] == 1.0
    assert all(not isinstance(value, float) or math.isfinite(value) for value in line.values())


def test_derivations_have_the_names_of_tokens_and_sequences(tmp_path: Path, make_record: MakeRecord) -> None:
    recorder = JsonlRecorder(tmp_path / "metrics.jsonl")
    record = make_record(1, unit="token")
    recorder.steps([StepRecord(0.5, 25, {"z": 0.02}, record.train, "token")])
    recorder.epoch(record)
    recorder.close()
    for line in map(strictly, (tmp_path / "metrics.jsonl").read_text().splitlines()):
        assert (line["train/token_acc"], line["train/seq_acc"]) == (0.95, 0.01)
        assert line["train/kl_per_dim"] == pytest.approx(3.01 / 3)
        assert not [name for name in line if name.endswith("_accuracy")]
    assert (line["val/token_acc"], line["val/seq_acc"]) == (0.95, 0.01)
    assert line["val/kl_per_dim"] == [1.0, 2.0, 0.01]


def test_levels_with_their_own_beta_are_told_apart(tmp_path: Path, make_record: MakeRecord) -> None:
    record = make_record(1, rates={"global": [1.0], "local": [2.0, 3.0]}, betas={"global": 0.01, "local": 0.02})
    values = record.metrics()
    assert (values["train/beta/global"], values["train/beta/local"]) == (0.01, 0.02)
    assert values["val/kl_per_dim"] == [1.0, 2.0, 3.0] and values["val/kl"] == 6.0


def test_epochs_are_read_back_and_a_line_cut_short_is_left_out(tmp_path: Path, make_record: MakeRecord) -> None:
    path = tmp_path / "metrics.jsonl"
    for epoch in (1, 2):  # appended to, not begun anew
        recorder = JsonlRecorder(path)
        record = make_record(epoch)
        recorder.steps([StepRecord(epoch - 0.5, epoch * 25, {"z": 0.02}, record.train, "pixel")])
        recorder.epoch(record)
        recorder.close()
    whole = read_epochs(path)
    assert [line["epoch"] for line in whole] == [1, 2]
    text = path.read_text()
    for left in (len(text) - 2, len(text) - 200, text.rindex('{"kind": "epoch"') + 5):
        path.write_text(text[:left])
        assert read_epochs(path) == whole[:1]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk_is_told_as_such(make_record: MakeRecord) -> None:
    recorder = JsonlRecorder(Path("/dev/full"))
    for write in (lambda: recorder.epoch(make_record(1)), recorder.close):
        with pytest.raises(ArcvaeError, match=r"/dev/full: could not be written \(No space left on device\)"):
            write()
