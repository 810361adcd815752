from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from arcvae_cli.controllers import Target
from arcvae_cli.recorders.jsonl import JsonlRecorder
from arcvae_cli.records import EpochRecord
from arcvae_cli.settings import Settings
from tests.recorders.made import TWO_LEVELS, record, steps

NAN, INF = float("nan"), float("inf")


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines as standard JSON: Python's own NaN and Infinity are refused."""
    return [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]


def test_a_nan_is_null(tmp_path: Path) -> None:
    bad = record(1, {"z": [NAN, INF, 1.0]}, val={"loss": NAN, "reconstruction": -INF}, selection=INF, unit="token")
    JsonlRecorder(tmp_path / "log").epoch(bad)
    (line,) = lines(tmp_path / "log")
    names = ("loss_total", "loss_reconstruction", "loss_kl", "kl", "loss_selection")
    assert [line[f"val/{name}"] for name in names] == [None] * 5 and line["val/kl_per_dim"] == [None, None, 1.0]
    assert (line["train/token_acc"], line["val/seq_acc"]) == (0.95, 0.01) and "val/pixel_accuracy" not in line


def test_an_epoch_is_on_the_disk_when_it_was_recorded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before its checkpoint is. Levels have a beta and a KL each."""
    synced: list[bool] = []
    path = tmp_path / "log"
    monkeypatch.setattr(os, "fsync", lambda number: synced.append(os.path.samestat(os.fstat(number), path.stat())))
    JsonlRecorder(path).epoch(record(1, **TWO_LEVELS))
    (epoch,) = lines(path)  # not closed yet: a run may be killed
    assert (synced, epoch["kind"], epoch["step"], epoch["epoch"]) == ([True], "epoch", 50, 1)
    assert (epoch["train/beta"], epoch["train/beta/local"], epoch["val/kl/local"]) == (0.01, 0.02, 2.0)
    assert epoch["val/kl_per_dim"] == [1.0, 0.02, 2.0] and epoch["val/active_dims"] == 2


def train(path: Path, first: int, last: int, every: int = 25, resumed: bool = False) -> str:
    """The file after a session from one epoch of 50 steps to another, with a line every so many steps."""
    recorder = JsonlRecorder(path)
    if resumed:
        recorder.resume([record(epoch) for epoch in range(1, first)], (first - 1) * 50)
    for one in map(record, range(first, last + 1)):
        recorder.steps(steps(one, every))
        recorder.epoch(one)
    return path.read_text()


@pytest.mark.parametrize("left", ["", '{"kind": "epoch", "epoch": 3, "ste', "\0" * 300])
def test_what_a_resumed_run_repeats_is_there_once(tmp_path: Path, left: str) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = train(path, 1, 4)
    for first in (1, 3, 5):  # from checkpoints of any age, with a last line that was cut short
        path.write_text(path.read_text() + left)
        assert train(path, first, 4, resumed=True) == whole
    train(path, 4, 4, every=10, resumed=True)  # of the steps logged before, no later ones are left
    numbers = [line["step"] for line in lines(path) if line["kind"] == "step"]
    assert numbers == [*range(25, 151, 25), *range(160, 201, 10)]


def test_a_resumed_run_of_an_earlier_version_has_the_names_of_today(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    whole = train(path, 1, 4)
    path.write_text(path.read_text().replace("/foreground_", "/non_black_"))
    assert train(path, 3, 4, resumed=True) == whole
    old = Settings.model_validate({"train": {"monitor": "val/non_black_accuracy"}})
    assert old.train.monitor == "val/foreground_accuracy"


@pytest.mark.parametrize("value", [0.1 + 0.2, NAN, INF, -INF, -0.0, 5e-324, 1.7976931348623157e308])
def test_a_record_comes_back_from_json_bit_for_bit_but_for_the_betas_of_the_steps(value: float) -> None:
    whole = record(
        7,
        kl_per_dim={"global": [1.0, NAN], "local": [0.1, -INF, 5e-324]},
        betas={"global": 0.1 + 0.2, "local": value},
        beta_range={"local": (-1.0, 1.0)},
        targets=(Target("local", "kl", 25.12, 25.0), Target("", "reconstruction", 0.2, 0.1)),
        restart={"last_restart_epoch": 40.0},
        monitored=INF,
        unit="token",
    )
    for one in (whole, record(1, selection=value)):
        again = EpochRecord.of(json.loads(json.dumps(one.plain())))
        assert repr(asdict(again)) == repr({**asdict(one), "beta_trace": {}})  # by repr, in which a NaN equals another
        assert repr(again.metrics()) == repr(one.metrics())
        assert [type(target) for target in again.targets] == [Target] * len(one.targets)
