from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arcvae_cli import folders
from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.settings import Settings

SETTINGS = Settings()
RACE = """
import sys, time
from pathlib import Path
from arcvae_cli import folders
from arcvae_cli.errors import ArcvaeError
from arcvae_cli.settings import Settings
folder = Path(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
time.strftime = lambda form: "20260101-000000"
made = [folders.create(folder, None, "my/preset!", Settings()) for _ in range(3)]
try: one = folders.create(folder, "one", "x", Settings()); got = "got it"
except ArcvaeError as error: got = f"{error.exit_code} {error.what}"
print(got, *(one.name for one in made), sep="|", flush=True)
sys.stdin.read()
"""


def test_of_two_processes_each_gets_its_folders_and_one_the_name(tmp_path: Path) -> None:
    """Runs started in one second do not share a folder; nor do two `--resume auto` that both found no run yet. Then
    all are killed, and so are their locks."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-W", "error", "-c", RACE, str(tmp_path)]
    processes = [subprocess.Popen(command, text=True, **pipes) for _ in range(2)]
    try:
        for process in processes:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        said = [process.stdout.readline().strip().split("|") for process in processes if process.stdout]
        names, stem = [name for line in said for name in line[1:]], "my-preset-20260101-000000"
        assert sorted(names) == sorted([stem, *(f"{stem}-{number}" for number in range(2, 7))])
        assert sorted(line[0] for line in said) == ["1 one: another process is training this run", "got it"]
        assert all(folders.held(tmp_path / name) for name in (*names[::3], "one"))
        with pytest.raises(ArcvaeError, match="another process is training this run") as raised:
            folders.resume(tmp_path / "one")
        assert raised.value.exit_code == 1 and folders.describe(tmp_path / "one")["state"] == "running"
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.communicate()
    assert folders.describe(tmp_path / "one")["state"] == "killed"
    again = folders.resume(tmp_path / "one")
    assert folders.held(again.path) and again.started
    again.release()
    assert not folders.held(again.path)
    (tmp_path / "one" / "status.json").write_bytes(b"{")
    assert folders.describe(tmp_path / "one")["state"] == "corrupt"
    (tmp_path / "one" / "status.json").unlink()  # killed before it wrote one
    assert folders.describe(tmp_path / "one")["state"] == "killed"


def test_a_name_cannot_leave_the_runs_folder_nor_be_that_of_other_files(tmp_path: Path) -> None:
    for name in ("../out", "..", "/tmp/x", "", ".a", "x" * 129, "a b", "Latest", "auto", "\xe9", "a\n"):
        with pytest.raises(InputError, match="--run-name"):
            folders.check_name(name)
    folders.create(tmp_path, "one", "x", SETTINGS).release()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("")
    (tmp_path / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    for folder, name in ((tmp_path, "one"), (tmp_path, "mine"), (tmp_path, "file"), (tmp_path / "file", None)):
        with pytest.raises(InputError):
            folders.create(folder, name, "x", SETTINGS)
    assert sorted(tmp_path.rglob("*")) == before


def test_runs_are_found_by_name_path_and_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runs"
    assert folders.all_runs(folder) == []
    for age, name in enumerate(("one", "two", "three")):
        folders.create(folder, name, "x", SETTINGS)
        os.utime(folder / name / "status.json", (time.time() - age,) * 2)
    (folder / "README.md").write_text("")
    (folder / "other").mkdir()
    (folder / ".x.12345678.tmp" / "checkpoints").mkdir(parents=True)
    assert [path.name for path in folders.all_runs(folder)] == ["one", "two", "three"]
    assert folders.find("two", folder) == folder / "two"
    assert folders.find("latest", folder) == folders.find(str(folder / "latest"), tmp_path) == folder / "three"
    monkeypatch.chdir(folder)
    assert folders.find("two", Path("elsewhere")) == Path("two")
    for name in ("twoo", "../runs", "other", "README.md", "x" * 300, "a\0b", ""):
        with pytest.raises(InputError, match="no such run"):
            folders.find(name, folder)


def test_differences_of_settings_by_dotted_key() -> None:
    old, new = {"a": {"x": 1, "y": {"z": 2}}, "b": 3}, {"a": {"x": 1, "y": {"z": 4}, "w": 5}}
    assert folders.differences(old, new) == {"a.y.z": (2, 4), "a.w": (None, 5), "b": (3, None)}
