from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from arcvae_cli import runs
from arcvae_cli.errors import ArcvaeError, InputError, WriteError
from arcvae_cli.presets import resolve
from arcvae_cli.settings import Settings

SETTINGS = Settings()
FIRST_LINES = """
import os, sys, time
from pathlib import Path
from arcvae_cli import runs
from arcvae_cli.errors import ArcvaeError
from arcvae_cli.settings import Settings
folder = Path(sys.argv[1])
def say(*words): print(*words, flush=True)
say("ready")
sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait less for a lock that stays taken."""
    monkeypatch.setattr(runs, "_PATIENCE", 0.2)


@pytest.fixture
def start() -> Iterator[Callable[..., list[subprocess.Popen[str]]]]:
    """Starts processes with a script each and lets them begin together."""
    started: list[subprocess.Popen[str]] = []

    def begin(script: str, folder: Path, count: int = 1) -> list[subprocess.Popen[str]]:
        command = [sys.executable, "-W", "error", "-c", FIRST_LINES + script, str(folder)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        mine = [subprocess.Popen(command, text=True, **pipes) for _ in range(count)]
        started.extend(mine)
        for process in mine:
            assert line(process) == "ready"
        for process in mine:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return mine

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None and process.stderr is not None
    return process.stdout.readline().strip() or process.stderr.read()


# ----------------------------------------------------------------------------------------------------------- creating


def test_a_folder_with_its_settings_and_latest(tmp_path: Path) -> None:
    first = runs.create(tmp_path / "runs", "one", "x", SETTINGS)
    assert first.checkpoints.is_dir() and first.images.is_dir()
    assert resolve(str(first.path)).settings == SETTINGS
    assert os.readlink(tmp_path / "runs" / "latest") == "one"
    runs.create(tmp_path / "runs", "two", "x", SETTINGS)
    assert os.readlink(tmp_path / "runs" / "latest") == "two"
    assert sorted(os.listdir(tmp_path / "runs")) == ["latest", "one", "two"]


def test_processes_that_start_in_one_second_do_not_share_a_folder(
    tmp_path: Path, start: Callable[..., list[subprocess.Popen[str]]]
) -> None:
    script = """
runs.time.strftime = lambda form: "20260101-000000"
made = [runs.create(folder, None, "my preset/..", Settings()) for _ in range(5)]
say(*(one.name for one in made))
sys.stdin.read()
"""
    processes = start(script, tmp_path / "runs", 3)
    names = [name for process in processes for name in line(process).split()]
    stem = "my-preset-20260101-000000"
    assert sorted(names) == sorted([stem, *(f"{stem}-{number}" for number in range(2, 16))])
    assert sorted(os.listdir(tmp_path / "runs")) == sorted(["latest", *names])
    assert all(runs.held(tmp_path / "runs" / name) for name in names[::5])


@pytest.mark.parametrize("name", ["../out", "..", "/tmp/x", "", ".a", "x" * 129, "a b", "Latest", "auto", "é", "a\n"])
def test_a_name_cannot_leave_the_runs_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="--run-name"):
        runs.create(tmp_path / "runs", name, "x", SETTINGS)
    assert not (tmp_path / "runs").exists()


def test_a_name_that_is_taken_and_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    runs.create(tmp_path, "one", "x", SETTINGS).release()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "gone").symlink_to("nowhere")
    before = sorted(tmp_path.rglob("*"))
    for folder, name in ((tmp_path, "one"), (tmp_path, "mine"), (tmp_path, "file"), (tmp_path, "gone")):
        with pytest.raises(InputError):
            runs.create(folder, name, "x", SETTINGS)
    for name in ("one", None):
        with pytest.raises(InputError, match="no run folder can be made there"):
            runs.create(tmp_path / "file", name, "x", SETTINGS)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_full_disk_leaves_the_name_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise WriteError("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(runs.RunFolder, "write_config", refuse)
        with pytest.raises(WriteError):
            runs.create(tmp_path, "one", "x", SETTINGS)
    assert runs.all_runs(tmp_path) == []
    runs.create(tmp_path, "one", "x", SETTINGS)


def test_of_three_that_start_one_run_one_gets_it(
    tmp_path: Path, start: Callable[..., list[subprocess.Popen[str]]]
) -> None:
    """Two starts of `--resume auto` that both found no run yet."""
    script = """
try: made = runs.create(folder, "one", "x", Settings()); say("got it")
except ArcvaeError as error: say(error.exit_code, error.what)
sys.stdin.read()
"""
    found = sorted(map(line, start(script, tmp_path, 3)))
    assert found[2] == "got it"
    assert found[:2] == ["1 one: another process is training this run"] * 2


# ---------------------------------------------------------------------------------------------- the lock, and resuming


def test_a_run_is_locked_until_its_process_is_killed(
    tmp_path: Path, start: Callable[..., list[subprocess.Popen[str]]]
) -> None:
    made = runs.create(tmp_path, "one", "x", SETTINGS)
    assert runs.held(made.path)
    made.release()
    assert not runs.held(made.path)
    script = """
import subprocess
held = runs.resume(folder)
held.begin()
started = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], close_fds=False)
child = os.fork()
if not child:
    say(os.getpid(), started.pid)
    time.sleep(60)
os.waitpid(child, 0)
"""
    (other,) = start(script, made.path)
    children = [int(pid) for pid in line(other).split()]
    try:
        with pytest.raises(ArcvaeError, match="one: another process is training this run") as raised:
            runs.resume(made.path)
        assert raised.value.exit_code == 1 and runs.describe(made.path)["state"] == "running"
        other.send_signal(signal.SIGKILL)
        other.wait()
        assert runs.describe(made.path)["state"] == "killed", "its children do not hold the lock"
        again = runs.resume(made.path)
        assert runs.held(again.path) and again.started == made.started
        again.release()
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    made = runs.create(tmp_path, "one", "x", SETTINGS)
    again = runs.resume(made.path)
    again.release()
    assert again.path == made.path


def test_resuming_removes_only_temporary_files_of_arcvae_in_that_run(tmp_path: Path) -> None:
    one, two = (runs.create(tmp_path, name, "x", SETTINGS) for name in ("one", "two"))
    one.release()
    stale = [one.checkpoints / ".last.pth.1a2b3c4d.tmp", one.path / ".status.json.00000000.tmp"]
    kept = [one.checkpoints / "last.pth", one.path / ".notes.tmp", one.images / ".a.png.x.tmp", one.path / "a.tmp"]
    kept += [two.path / ".status.json.1a2b3c4d.tmp", tmp_path / ".something.1a2b3c4d.tmp"]
    for file in (*stale, *kept):
        file.write_text("")
        os.utime(file, (0, 0))
    again = runs.resume(tmp_path / "one")
    assert not any(file.exists() for file in stale) and all(file.exists() for file in kept)
    assert os.readlink(tmp_path / "latest") == "two", "until it begins: it may still be refused"
    again.begin()
    assert os.readlink(tmp_path / "latest") == "one"


# ------------------------------------------------------------------------------------------------- what is known of it


def test_a_run_as_json(tmp_path: Path) -> None:
    folder = runs.create(tmp_path, "one", "x", SETTINGS)
    (folder.checkpoints / "last.pth").write_bytes(bytes(1000))
    facts = {"epoch": 4, "epochs": 7, "step": 40, "best_epoch": 2, "best_value": 1.5, "seconds": {"training": 2.5}}
    folder.write_status("failed", reason="the disk is full", peak_memory_bytes=10, **facts)
    run = runs.describe(folder.path)
    keys = "name path state reason started pid host peak_memory_bytes updated monitor bytes age"
    assert set(run) == {*facts, *keys.split()}
    assert {key: run[key] for key in facts} == facts
    assert (run["state"], run["monitor"], run["pid"]) == ("failed", "val/loss_selection", os.getpid())
    assert run["started"] == folder.started and 0 <= run["age"] < 60
    assert run["bytes"] == sum(path.stat().st_size for path in folder.path.rglob("*") if path.is_file())
    json.dumps(run, allow_nan=False)


@pytest.mark.parametrize(
    "status",
    [
        *("", "[" * 100_000, "\xff\xfe", '{"state": "on fire"}', '{"state": ["running"]}'),
        *("{" + f'"state": "running", "step": {value}' + "}" for value in ("NaN", "1e999", '"x"')),
        *('{"state": "running", "best_value": NaN}', None),
    ],
)
def test_a_damaged_status(tmp_path: Path, status: str | None) -> None:
    folder = runs.create(tmp_path, "one", "x", SETTINGS)
    folder.release()
    (folder.path / "status.json").unlink()
    if status is not None:
        (folder.path / "status.json").write_text(status, encoding="latin-1")
    run = runs.describe(folder.path)
    assert (run["state"], run["epoch"]) == ("damaged", None)
    json.dumps(run, allow_nan=False)
    runs.resume(folder.path).write_status("running")
    assert runs.describe(folder.path)["state"] in ("running", "killed")


def test_runs_are_found_by_name_path_and_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runs"
    assert runs.all_runs(folder) == []
    with pytest.raises(InputError, match="no such run") as raised:
        runs.find("one", folder)
    assert "start one with" in str(raised.value.fix)
    for age, name in enumerate(("one", "two", "three")):
        runs.create(folder, name, "x", SETTINGS)
        os.utime(folder / name / "status.json", (time.time() - age,) * 2)
    (folder / "README.md").write_text("")
    (folder / "other").mkdir()
    (folder / ".x.12345678.tmp" / "checkpoints").mkdir(parents=True)
    assert [path.name for path in runs.all_runs(folder)] == ["one", "two", "three"]
    assert runs.find("two", folder) == folder / "two"
    assert runs.find("latest", folder) == folder / "three"
    assert runs.find(str(folder / "latest"), tmp_path) == folder / "three"
    monkeypatch.chdir(folder)
    assert runs.find("two", Path("elsewhere")) == Path("two")
    for name in ("twoo", "../runs", "other", "README.md", "x" * 300, "a\0b", ""):
        with pytest.raises(InputError, match="no such run"):
            runs.find(name, folder)
    with pytest.raises(InputError, match="cannot be read"):
        runs.all_runs(folder / "README.md")
