from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from arcvae_cli import runs
from arcvae_cli.errors import InputError
from arcvae_cli.settings import Settings, resolve

SETTINGS = Settings()


def test_a_folder_with_its_settings_and_latest(tmp_path: Path) -> None:
    first = runs.create(tmp_path / "runs", "one", "x", SETTINGS)
    assert first.checkpoints.is_dir() and first.images.is_dir()
    assert resolve(str(first.path / "config.toml")).settings == SETTINGS
    assert resolve(str(first.path)).settings == SETTINGS
    assert os.readlink(tmp_path / "runs" / "latest") == "one"
    runs.create(tmp_path / "runs", "two", "x", SETTINGS)
    assert os.readlink(tmp_path / "runs" / "latest") == "two"


def test_runs_of_one_second_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs.time, "strftime", lambda form: "20260101-000000")
    names = [runs.create(tmp_path, None, "my preset/..", SETTINGS).name for _ in range(3)]
    assert names == [f"my-preset----20260101-000000{end}" for end in ("", "-2", "-3")]


@pytest.mark.parametrize("name", ["../out", "a/b", "", ".hidden", "x" * 129, "a b", "a:b", "latest"])
def test_a_name_cannot_leave_the_runs_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="--run-name"):
        runs.create(tmp_path / "runs", name, "x", SETTINGS)
    assert not (tmp_path / "runs").exists()


def test_a_name_that_is_taken_is_refused_and_left_alone(tmp_path: Path) -> None:
    folder = runs.create(tmp_path, "one", "x", SETTINGS)
    (folder.path / "metrics.jsonl").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        runs.create(tmp_path, "one", "x", SETTINGS)
    assert (folder.path / "metrics.jsonl").read_text() == "mine"


def test_a_file_in_place_of_the_runs_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(InputError, match="no run folder can be made there"):
        runs.create(tmp_path / "runs", "one", "x", SETTINGS)


def test_status_is_rewritten_whole(tmp_path: Path) -> None:
    folder = runs.create(tmp_path, "one", "x", SETTINGS)
    folder.write_status("running", epoch=1)
    folder.write_status("finished", epoch=2)
    status = json.loads((folder.path / "status.json").read_text())
    assert (status["state"], status["epoch"]) == ("finished", 2)
    assert not [path for path in folder.path.iterdir() if path.suffix == ".tmp"]
