from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from arcvae_cli import runs
from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.settings import Settings, resolve

SETTINGS = Settings()
FIRST_LINES = """
import os, sys, time
from pathlib import Path
from arcvae_cli import runs
from arcvae_cli.errors import ArcvaeError
from arcvae_cli.settings import Settings
folder = Path(sys.argv[1])
def say(*words): print(*words, flush=True)
"""


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """No second's wait for a lock that will not come free."""
    monkeypatch.setattr(runs, "_PATIENCE", 0.2)


@pytest.fixture
def python() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a script in a process of its own, which ends with the test."""
    started: list[subprocess.Popen[str]] = []

    def start(script: str, *arguments: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-W", "error", "-c", FIRST_LINES + script, *map(str, arguments)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        started.append(subprocess.Popen(command, text=True, **pipes))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def line(process: subprocess.Popen[str]) -> str:
    """The next line that a process says."""
    assert process.stdout is not None and process.stderr is not None
    return process.stdout.readline().strip() or process.stderr.read()


# ----------------------------------------------------------------------------------------------------------- creating


def test_a_folder_with_its_settings_and_latest(tmp_path: Path) -> None:
    first = runs.create(tmp_path / "runs", "one", "x", SETTINGS)
    assert first.checkpoints.is_dir() and first.images.is_dir()
    assert resolve(str(first.path / "config.toml")).settings == SETTINGS
    assert resolve(str(first.path)).settings == SETTINGS
    assert os.readlink(tmp_path / "runs" / "latest") == "one"
    runs.create(tmp_path / "runs", "two", "x", SETTINGS)
    assert os.readlink(tmp_path / "runs" / "latest") == "two"
    assert sorted(os.listdir(tmp_path / "runs")) == ["latest", "one", "two"]
    before = os.umask(0)
    os.umask(before)
    assert first.path.stat().st_mode & 0o777 == 0o777 & ~before  # as of any new folder, and of any new file
    assert (first.path / "config.toml").stat().st_mode & 0o777 == 0o666 & ~before


def test_runs_of_one_second_do_not_share_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs.time, "strftime", lambda form: "20260101-000000")
    names = [runs.create(tmp_path, None, "my preset/..", SETTINGS).name for _ in range(3)]
    assert names == [f"my-preset-20260101-000000{end}" for end in ("", "-2", "-3")]


def test_processes_that_start_in_one_second_do_not_share_a_folder_and_latest_is_always_whole(
    tmp_path: Path, python: Callable[..., subprocess.Popen[str]]
) -> None:
    script = """
runs.time.strftime = lambda form: "20260101-000000"
say("ready")
sys.stdin.readline()
made = [runs.create(folder, None, "x", Settings()) for _ in range(5)]
say(*(one.name for one in made))
sys.stdin.read()
"""
    processes = [python(script, tmp_path / "runs") for _ in range(4)]
    for process in processes:
        assert line(process) == "ready"
    runs.create(tmp_path / "runs", "first", "x", SETTINGS)
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    latest, reads, seen, end = tmp_path / "runs" / "latest", 0, set(), time.monotonic() + 30
    while (reads < 50 or len(os.listdir(tmp_path / "runs")) < 22) and time.monotonic() < end:
        seen.add(latest.readlink())
        assert (latest / "config.toml").is_file() and (latest / "lock").is_file() and (latest / "images").is_dir()
        reads += 1
    names = [name for process in processes for name in line(process).split()]
    assert len(set(names)) == 20
    assert len(seen) > 1
    assert sorted(os.listdir(tmp_path / "runs")) == sorted(["latest", "first", *names])
    assert all(runs.held(tmp_path / "runs" / name) for name in names[::5])
    for name in names:
        assert runs.state_of(tmp_path / "runs" / name).epochs == SETTINGS.train.epochs


@pytest.mark.parametrize(
    "name",
    [
        *(
            "../out",
            "..",
            ".",
            "a/b",
            "/tmp/x",
            "a\\b",
            "",
            ".hidden",
            "x" * 129,
            "a b",
            "latest",
            "Latest",
            "é",
            "a\n",
        ),
        *(f"a{letter}b" for letter in ":;,#?'%*\0"),
    ],
)
def test_a_name_cannot_leave_the_runs_folder_or_hold_what_others_forbid(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="--run-name"):
        runs.create(tmp_path / "runs", name, "x", SETTINGS)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("stem", ["../../x", "/etc/passwd", "", ".", "a:b#c?d", "x" * 500, "é\n"])
def test_the_name_of_a_preset_cannot_either(tmp_path: Path, stem: str) -> None:
    folder = runs.create(tmp_path / "runs", None, stem, SETTINGS)
    assert folder.path.parent == tmp_path / "runs"
    assert runs.NAME.fullmatch(folder.name)
    assert sorted(os.listdir(tmp_path)) == ["runs"]


def test_a_runs_folder_behind_links(tmp_path: Path) -> None:
    (tmp_path / "disk" / "mine").mkdir(parents=True)
    (tmp_path / "mine").symlink_to("disk/mine")
    (tmp_path / "runs").symlink_to(tmp_path / "mine")
    folder = runs.create(tmp_path / "runs", "one", "x", SETTINGS)
    assert folder.path.resolve() == tmp_path / "disk" / "mine" / "one"
    assert sorted(os.listdir(tmp_path / "disk" / "mine")) == ["latest", "one"]
    folder.release()
    # a folder that lies elsewhere, and a link to a run that was moved to another disk
    (tmp_path / "runs" / "two").symlink_to(tmp_path / "disk")
    with pytest.raises(InputError, match="exists already"):
        runs.create(tmp_path / "runs", "two", "x", SETTINGS)
    folder.path.rename(tmp_path / "disk" / "one")
    folder.path.symlink_to(tmp_path / "disk" / "one")
    again = runs.resume(folder.path)
    assert again.path == folder.path and runs.held(again.path)
    assert sorted(os.listdir(tmp_path / "disk")) == ["mine", "one"]
    with pytest.raises(ArcvaeError, match="at work on this run"):
        runs.resume(tmp_path / "disk" / "one")


def test_a_name_that_is_taken_is_refused_and_left_alone(tmp_path: Path) -> None:
    folder = runs.create(tmp_path, "one", "x", SETTINGS)
    (folder.path / "metrics.jsonl").write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        runs.create(tmp_path, "one", "x", SETTINGS)
    assert (folder.path / "metrics.jsonl").read_text() == "mine"
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "gone").symlink_to("nowhere")
    for name in ("empty", "file", "gone"):
        with pytest.raises(InputError, match="exists already"):
            runs.create(tmp_path, name, "x", SETTINGS)
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "gone", "latest", "one"]


def test_a_name_that_is_taken_in_between_is_not_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "one" / "checkpoints").mkdir(parents=True)  # what the other process has made by now
    monkeypatch.setattr(runs.time, "strftime", lambda form: "now")
    monkeypatch.setattr(runs.re, "sub", lambda *_: "x")
    (tmp_path / "x-now" / "checkpoints").mkdir(parents=True)
    asked: list[str] = []

    def exists(path: Any) -> bool:
        asked.append(Path(path).name)
        return len(asked) > 1  # the first look is too early

    monkeypatch.setattr(runs.os.path, "lexists", exists)
    with pytest.raises(InputError, match="exists already"):
        runs.create(tmp_path, "one", "x", SETTINGS)
    monkeypatch.undo()
    assert asked == ["one", "one"]
    assert os.listdir(tmp_path / "one") == ["checkpoints"]


def test_a_file_in_place_of_the_runs_folder(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    (tmp_path / "gone").symlink_to("nowhere/at/all")
    for name in ("runs", "gone"):
        with pytest.raises(InputError, match="no run folder can be made there"):
            runs.create(tmp_path / name, "one", "x", SETTINGS)


def test_a_run_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ArcvaeError("the disk is full")

    monkeypatch.setattr(runs, "write_json", refuse)
    with pytest.raises(ArcvaeError, match="the disk is full"):
        runs.create(tmp_path / "runs", "one", "x", SETTINGS)
    assert os.listdir(tmp_path / "runs") == []


def test_status_is_rewritten_whole(tmp_path: Path) -> None:
    folder = runs.create(tmp_path, "one", "x", SETTINGS)
    folder.write_status("running", epoch=1)
    folder.write_status("finished", epoch=2)
    status = json.loads((folder.path / "status.json").read_text())
    assert (status["state"], status["epoch"], status["pid"]) == ("finished", 2, os.getpid())
    assert status["started"] == folder.started and status["host"]
    assert (runs.read_status(folder.path) or {})["state"] == "finished"
    assert not [path for path in folder.path.iterdir() if path.suffix == ".tmp"]


# ---------------------------------------------------------------------------------------------- the lock, and resuming

HOLD = """
held = runs.resume(folder)
held.begin()
say("held")
sys.stdin.read()
"""


def test_a_run_that_another_process_holds_is_refused_until_that_is_killed(
    tmp_path: Path, python: Callable[..., subprocess.Popen[str]]
) -> None:
    made = runs.create(tmp_path, "one", "x", SETTINGS)
    made.write_status("interrupted", epoch=3)
    assert runs.held(made.path)
    with pytest.raises(ArcvaeError, match=f"one: process {os.getpid()} on .* is at work on this run"):
        runs.resume(made.path)  # not even in the same process
    made.release()
    assert not runs.held(made.path) and runs.state_of(made.path).state == "interrupted"

    other = python(HOLD, made.path)
    assert line(other) == "held"
    assert runs.held(made.path)
    with pytest.raises(ArcvaeError, match=f"one: process {other.pid} on .* is at work on this run") as raised:
        runs.resume(made.path)
    assert raised.value.exit_code == 1
    other.send_signal(signal.SIGKILL)
    other.wait()
    assert not runs.held(made.path)
    again = runs.resume(made.path)
    assert runs.held(again.path) and again.started == made.started
    again.write_status("running", epoch=3)
    assert runs.state_of(made.path).state == "running"
    again.release()
    assert runs.state_of(made.path).state == "killed"


def test_of_many_that_resume_a_run_one_gets_it(tmp_path: Path, python: Callable[..., subprocess.Popen[str]]) -> None:
    path = runs.create(tmp_path, "one", "x", SETTINGS).path
    script = """
say("ready")
sys.stdin.readline()
try: kept = runs.resume(folder); kept.begin(); say("got it")
except ArcvaeError as error: say(error.what)
sys.stdin.read()
"""
    processes = [python(script, path) for _ in range(4)]
    for process in processes:
        assert line(process) == "ready"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    found = [line(process) for process in processes]
    (winner,) = [process for process, text in zip(processes, found, strict=True) if text == "got it"]
    assert json.loads((path / "status.json").read_text())["pid"] == winner.pid
    assert sum(text.endswith("is at work on this run") for text in found) == 3


def test_children_do_not_keep_the_lock_of_a_process_that_was_killed(
    tmp_path: Path, python: Callable[..., subprocess.Popen[str]]
) -> None:
    path = runs.create(tmp_path, "one", "x", SETTINGS).path
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
    parent = python(script, path)
    children = [int(pid) for pid in line(parent).split()]
    try:
        assert runs.held(path)
        parent.kill()
        parent.wait()
        for pid in children:
            os.kill(pid, 0)  # is alive
        assert not runs.held(path)
        runs.resume(path).release()
    finally:
        for pid in children:
            os.kill(pid, signal.SIGKILL)


def test_who_looks_at_a_run_does_not_stand_in_the_way(tmp_path: Path) -> None:
    path = runs.create(tmp_path, "one", "x", SETTINGS).path
    looking = runs.take(path)  # as `held` does for a moment
    assert looking is not None
    threading.Timer(0.05, looking.release).start()
    again = runs.resume(path)
    assert runs.held(again.path)


def test_a_file_system_that_knows_no_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(FileLock, "acquire", refuse)
    made = runs.create(tmp_path, "one", "x", SETTINGS)
    again = runs.resume(made.path)
    (made.path / "lock").touch()
    assert runs.held(made.path)  # as far as anybody can tell
    runs.sweep_idle(made.path)
    again.release()


def test_only_a_run_folder_can_be_resumed(tmp_path: Path) -> None:
    for name in ("nowhere", "empty", "file"):
        if name == "empty":
            (tmp_path / name).mkdir()
        elif name == "file":
            (tmp_path / name).write_text("")
        with pytest.raises(InputError, match="not a run folder"):
            runs.resume(tmp_path / name)
    assert not (tmp_path / "empty" / "lock").exists()


def test_resuming_sweeps_what_was_left_half_written_and_points_latest(tmp_path: Path) -> None:
    one, two = (runs.create(tmp_path, name, "x", SETTINGS) for name in ("one", "two"))
    one.release()
    kept = [one.checkpoints / "last.pth", one.path / "notes.tmp", one.path / ".mine", one.images / "a.png"]
    stale = [one.checkpoints / ".last.pth.1a2b3c4d.tmp", one.path / ".status.json.x.tmp", one.images / ".a.png.x.tmp"]
    for file in (*kept, *stale):
        file.write_text("")
    for name, age in ((".evaluation-old", 3600), (".evaluation-new", 0)):
        (one.path / name).mkdir()
        (one.path / name / "pca.png").write_text("")
        os.utime(one.path / name, (time.time() - age,) * 2)
    again = runs.resume(tmp_path / "one")
    assert not any(file.exists() for file in stale)
    assert all(file.exists() for file in kept)
    assert sorted(path.name for path in one.path.glob(".evaluation-*")) == [".evaluation-new"]
    assert os.readlink(tmp_path / "latest") == "two", "till it begins, the run may still be refused"
    again.begin()
    assert os.readlink(tmp_path / "latest") == "one"
    again.release()
    two.release()
    assert runs.resume(tmp_path / "latest").name == "one"


def test_a_folder_that_was_never_finished_is_swept_once_nobody_can_be_at_work_on_it(tmp_path: Path) -> None:
    old, new = tmp_path / ".x.12345678.tmp", tmp_path / ".y.12345678.tmp"
    for folder in (old, new):
        (folder / "checkpoints").mkdir(parents=True)
    os.utime(old, (time.time() - 3600,) * 2)
    (tmp_path / ".latest.12345678.tmp").symlink_to("x")
    os.utime(tmp_path / ".latest.12345678.tmp", (time.time() - 3600,) * 2, follow_symlinks=False)
    assert sorted(runs.sweep_hidden(tmp_path)) == [tmp_path / ".latest.12345678.tmp", old]
    assert os.listdir(tmp_path) == [new.name]


# ------------------------------------------------------------------------------------------------- what is known of it


def test_what_is_known_of_a_run(tmp_path: Path) -> None:
    folder = runs.create(tmp_path, "one", "x", SETTINGS)
    (folder.checkpoints / "last.pth").write_bytes(bytes(1000))
    os.link(folder.checkpoints / "last.pth", folder.checkpoints / "vae_best.pth")
    (folder.checkpoints / "vae_final.pth").write_bytes(bytes(1000))
    facts = {"epochs": 7, "step": 40, "best_epoch": 2, "best_value": 1.5, "seconds": {"training": 2.5}}
    folder.write_status("failed", reason="the disk\nis \x1b[2Jfull", epoch=4, peak_memory_bytes=10, **facts)
    run = runs.state_of(folder.path)
    assert (run.state, run.epoch, run.epochs, run.step) == ("failed", 4, 7, 40)
    assert (run.best_epoch, run.best_value, run.monitor) == (2, 1.5, "val/loss_selection")
    assert (run.pid, run.seconds, run.peak_memory_bytes) == (os.getpid(), {"training": 2.5}, 10)
    assert run.reason == "the disk is  [2Jfull"
    files = ("config.toml", "status.json", "checkpoints/last.pth", "checkpoints/vae_final.pth")
    assert run.bytes == sum((folder.path / file).stat().st_size for file in files)  # of two names once
    assert 0 <= run.age < 60
    json.dumps(run.document(), allow_nan=False)


@pytest.mark.parametrize(
    "status",
    [
        *(
            "",
            "{",
            "[]",
            "[" * 100_000,
            "\xff\xfe",
            '{"state": "on fire"}',
            '{"state": ["running"]}',
            '{"step": 1e999}',
        ),
        *("{" + f'"state": "running", "step": {value}' + "}" for value in ("NaN", "9" * 5000)),
        '{"state": "running"}' + " " * 2**20,
        None,
    ],
)
def test_a_status_that_cannot_be_read(tmp_path: Path, status: str | None) -> None:
    folder = runs.create(tmp_path, "one", "x", SETTINGS)
    folder.release()
    if status is None:
        (folder.path / "status.json").unlink()
        os.mkfifo(folder.path / "status.json")
    else:
        (folder.path / "status.json").write_text(status, encoding="latin-1")
    run = runs.state_of(folder.path)
    assert (run.state, run.epoch, run.epochs) == ("damaged", None, SETTINGS.train.epochs)
    runs.resume(folder.path).write_status("running")
    assert runs.state_of(folder.path).state == "killed"  # the lock went with the last mention of the folder


@pytest.mark.parametrize("value", ["true", "-3", '"7"', "[1]", "{}", "null"])
def test_values_that_are_no_numbers_are_not_taken_for_some(tmp_path: Path, value: str) -> None:
    folder = runs.create(tmp_path, "one", "x", SETTINGS)
    keys = ("epoch", "step", "best_epoch", "pid", "peak_memory_bytes", "started", "reason")
    text = ", ".join(f'"{key}": {value}' for key in keys)
    text = f'"state": "finished", "seconds": {{"x": {value}}}, {text}'
    (folder.path / "status.json").write_text(f"{{{text}}}")
    run = runs.state_of(folder.path)
    assert run.state == "finished"
    assert [run.epoch, run.step, run.best_epoch, run.pid, run.peak_memory_bytes] == [None] * 5
    json.dumps(run.document(), allow_nan=False)


def test_numbers_without_end(tmp_path: Path) -> None:
    folder = runs.create(tmp_path, "one", "x", SETTINGS)
    folder.write_status("finished", best_value=10**400, epoch=10**400)
    assert runs.state_of(folder.path).best_value is None


def test_runs_are_found_by_name_path_and_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "runs"
    assert runs.all_runs(folder) == []
    with pytest.raises(InputError, match="there is none of this name") as raised:
        runs.find("one", folder)
    assert "start one with" in str(raised.value.fix)
    for age, name in enumerate(("one", "two", "three")):
        runs.create(folder, name, "x", SETTINGS)
        os.utime(folder / name / "status.json", (time.time() - age,) * 2)
    (folder / "README.md").write_text("")
    (folder / "other").mkdir()
    (folder / ".x.1.tmp" / "checkpoints").mkdir(parents=True)
    assert [path.name for path in runs.all_runs(folder)] == ["one", "two", "three"]
    assert runs.find("two", folder) == folder / "two"
    assert runs.find("latest", folder) == folder / "three"
    assert runs.find(str(folder / "latest"), tmp_path) == folder / "three"
    monkeypatch.chdir(folder)
    assert runs.find("two", Path("elsewhere")) == Path("two")
    for name in ("twoo", "../runs", "other", "README.md", "x" * 300, "a\0b", ""):
        with pytest.raises(InputError, match="there is none of this name"):
            runs.find(name, folder)
    with pytest.raises(InputError, match="cannot be read"):
        runs.all_runs(folder / "README.md")
