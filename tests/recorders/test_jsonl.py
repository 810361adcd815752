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


# ------------------------------------------------------------------------------------------------ a run that goes on


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


def test_what_a_run_that_goes_on_tells_again_stands_there_once(train: Callable[..., Path]) -> None:
    whole = train(1, 4).read_text()
    for after in range(4):  # from checkpoints of any age
        assert train(after + 1, 4, after=after).read_text() == whole
    assert train(5, 4, after=4).read_text() == whole


@pytest.mark.parametrize(
    "left",
    ["", "\n", '{"kind": "epoch", "epoch": 3, "ste', "\0" * 300, "\udcff\udcfe", "[1]\n", '{"kind": "other"}\n7\n{}\n'],
)
def test_a_line_that_was_cut_short_or_is_none_goes(train: Callable[..., Path], left: str) -> None:
    whole = train(1, 2).read_text()
    path = train(1, 3)
    text = path.read_text()
    path.write_bytes((text[: text.rindex('{"kind": "epoch"')] + left).encode(errors="surrogateescape"))
    assert train(3, 2, after=2).read_text() == whole
    path.write_bytes((whole + left).encode(errors="surrogateescape"))
    assert train(3, 2, after=2).read_text() == whole


def test_lines_that_are_missing_or_came_twice_are_put_right(train: Callable[..., Path]) -> None:
    """Of steps there is no other record: what is lost of them is lost, and no epoch is."""
    path = train(1, 3)
    whole = path.read_text().splitlines(keepends=True)
    path.write_text("".join(reversed(whole + whole[2:5])))
    assert train(4, 3, after=3).read_text() == "".join(whole)
    path.unlink()
    assert [line["epoch"] for line in read_lines(train(4, 3, after=3))] == [1, 2, 3]


def test_another_distance_of_logged_steps_leaves_none_that_is_void(train: Callable[..., Path]) -> None:
    train(1, 3, every=10)
    lines = read_lines(train(3, 3, every=25, after=2))
    steps = [line["step"] for line in lines if line["kind"] == "step"]
    assert steps == [*range(10, 101, 10), 125, 150]
    assert [line["epoch"] for line in lines if line["kind"] == "epoch"] == [1, 2, 3]


def test_an_epoch_is_on_the_disk_when_it_was_told(
    tmp_path: Path, make_record: MakeRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before its checkpoint is."""
    synced: list[tuple[bool, int]] = []
    path = tmp_path / "metrics.jsonl"
    monkeypatch.setattr(
        os, "fsync", lambda number: synced.append((os.path.samestat(os.fstat(number), path.stat()), len(lines())))
    )

    def lines() -> list[str]:
        return path.read_text().splitlines()

    recorder = JsonlRecorder(path)
    record = make_record(1)
    recorder.steps([StepRecord(0.5, 25, {"z": 0.02}, record.train, "pixel")])
    recorder.epoch(record)
    assert synced == [(True, 2)]
    recorder.close()


def test_a_disk_that_is_full_when_a_run_goes_on_leaves_the_file_as_it_was(
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
def test_a_full_disk_is_told_as_such(make_record: MakeRecord) -> None:
    recorder = JsonlRecorder(Path("/dev/full"))
    for write in (lambda: recorder.epoch(make_record(1)), recorder.close):
        with pytest.raises(ArcvaeError, match=r"/dev/full: could not be written \(No space left on device; "):
            write()
