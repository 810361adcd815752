from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from arcvae_cli.errors import ArcvaeError
from arcvae_cli.files import read_lines
from arcvae_cli.recorders.jsonl import JsonlRecorder
from arcvae_cli.records import EpochRecord, StepRecord

MakeRecord = Callable[..., EpochRecord]
NAN, INF = float("nan"), float("inf")


def strictly(text: str) -> Any:
    """JSON as the standard has it: Python's own NaN and Infinity are refused."""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is no JSON")

    return json.loads(text, parse_constant=refuse)


def test_nan_is_null(tmp_path: Path, make_record: MakeRecord) -> None:
    record = make_record(1, kl_per_dim={"z": [NAN, INF, 1.0]}, val={"loss": NAN, "reconstruction": -INF}, selection=INF)
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


# ------------------------------------------------------------------------------------------------- a resumed run


@pytest.fixture
def train(tmp_path: Path, make_record: MakeRecord) -> Callable[..., Path]:
    """A session from one epoch of 50 steps to another, with a line every so many steps, going on after `after`."""

    def run(first: int, last: int, every: int = 25, after: int | None = None) -> Path:
        path = tmp_path / "metrics.jsonl"
        recorder = JsonlRecorder(path)
        if after is not None:
            recorder.resume([make_record(epoch, best=epoch == 1) for epoch in range(1, after + 1)], after * 50)
        for epoch in range(first, last + 1):
            record = make_record(epoch, best=epoch == 1)
            steps = [step for step in range(epoch * 50 - 49, epoch * 50 + 1) if step % every == 0]
            recorder.steps([StepRecord(step / 50, step, {"z": 0.02}, record.train, "pixel") for step in steps])
            recorder.epoch(record)
        recorder.close(130)
        return path

    return run


def test_what_a_resumed_run_repeats_is_there_once(train: Callable[..., Path]) -> None:
    whole = train(1, 4).read_text()
    for after in range(4):  # from checkpoints of any age
        assert train(after + 1, 4, after=after).read_text() == whole
    assert train(5, 4, after=4).read_text() == whole


@pytest.mark.parametrize(
    "left",
    ["\n", '{"kind": "epoch", "epoch": 3, "ste', "\0" * 300],
)
def test_a_line_that_was_cut_short_is_dropped(train: Callable[..., Path], left: str) -> None:
    whole = train(1, 2).read_text()
    path = train(1, 3)
    text = path.read_text()
    path.write_bytes((text[: text.rindex('{"kind": "epoch"')] + left).encode(errors="surrogateescape"))
    assert train(3, 2, after=2).read_text() == whole
    path.write_bytes((whole + left).encode(errors="surrogateescape"))
    assert train(3, 2, after=2).read_text() == whole


def test_another_distance_of_logged_steps_leaves_no_later_ones(train: Callable[..., Path]) -> None:
    train(1, 3, every=10)
    lines = read_lines(train(3, 3, every=25, after=2))
    steps = [line["step"] for line in lines if line["kind"] == "step"]
    assert steps == [*range(10, 101, 10), 125, 150]
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [1, 2, 3]


def test_an_epoch_is_on_the_disk_when_it_was_recorded(
    tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its checkpoint is. Levels have a beta and a KL each."""
    synced: list[bool] = []
    path = tmp_path / "metrics.jsonl"
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.path.samestat(os.fstat(number), path.stat())))
    recorder = JsonlRecorder(path)
    record = make_record(1, kl_per_dim={"global": [1.0], "local": [2.0, 3.0]}, betas={"global": 0.01, "local": 0.02})
    recorder.steps([StepRecord(0.5, 25, {"global": 0.03, "local": 0.02}, record.train, "pixel")])
    recorder.epoch(record)
    lines = [strictly(line) for line in path.read_text().splitlines()]  # not closed yet: a run may be killed
    recorder.close()
    assert synced == [True]
    assert [(line["kind"], line["step"], line["train/beta"]) for line in lines] == [
        ("step", 25, 0.03),
        ("epoch", 50, 0.01),
    ]
    assert lines[0]["epoch"] == 0.5 and lines[0]["train/kl_per_dim/dim_1"] == 2.0
    assert (lines[1]["train/beta/global"], lines[1]["train/beta/local"], lines[1]["val/kl/local"]) == (0.01, 0.02, 5.0)
    assert lines[1]["val/kl_per_dim"] == [1.0, 2.0, 3.0] and lines[1]["val/active_dims"] == 3


def test_a_full_disk_on_resumption_leaves_the_file_as_it_was(
    train: Callable[..., Path], make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = train(1, 3)
    whole = path.read_text()

    def refuse(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    recorder = JsonlRecorder(path)
    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(ArcvaeError, match=r"metrics\.jsonl: could not be written"):
        recorder.resume([make_record(1)], 50)
    recorder.close()
    assert path.read_text() == whole
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_full_disk(make_record: MakeRecord) -> None:
    recorder = JsonlRecorder(Path("/dev/full"))
    for write in (lambda: recorder.epoch(make_record(1)), recorder.close):
        with pytest.raises(ArcvaeError, match=r"/dev/full: could not be written \(No space left on device; "):
            write()
