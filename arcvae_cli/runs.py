"""Run folders: their names, files and status, the lock of the process that trains one, and what resuming may change."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import platform
import re
import secrets
import shlex
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.files import atomic_write, exists, expanded, is_file
from arcvae_cli.presets import read_toml
from arcvae_cli.settings import Settings, Table

if TYPE_CHECKING:
    from filelock import BaseFileLock

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
LATEST, AUTO = "latest", "auto"  # the link to the last run; `--resume auto`
LENGTH = ("train.epochs", "train.early_stopping", "train.patience")  # only when a run ends
MAY_CHANGE = (
    *LENGTH,
    *(f"data.{key}" for key in ("path", "input", "prod", "masks", "grammar")),  # the checkpoint has a fingerprint
    *("train.device", "train.engine", "train.save_minutes", "train.threads", "checkpoint.", "log."),
)
"""Settings, or whole tables of them, that may differ when a run is resumed."""


@dataclass(frozen=True)
class Status:
    """`status.json`. `epoch`, `step`: those that are done; `seconds`: by part of the run; `best_value`: of monitor."""

    state: str  # running, finished, interrupted, failed
    reason: str | None = None
    epoch: int | None = None
    epochs: int | None = None
    step: int | None = None
    best_epoch: int | None = None
    best_value: float | None = None
    started: str | None = None
    time: str | None = None
    pid: int | None = None
    host: str | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_bytes: int | None = None
    judged: bool = False


@dataclass(frozen=True)
class RunFolder:
    """`runs/<name>/`, locked by this process. `started`: when the run began."""

    path: Path
    started: str | None = None
    _lock: BaseFileLock | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def shell(self) -> str:
        return shlex.quote(str(self.path))

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def images(self) -> Path:
        return self.path / "images"

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def write_status(self, state: str, **facts: Any) -> None:
        """Rewrite `status.json`: the state, the time, the process, and fields of `Status`."""
        here = {"time": _now(), "pid": os.getpid(), "host": platform.node()}
        write_json(self.path / "status.json", {"state": state, **here, **facts, "started": self.started})

    def write_config(self, settings: Settings) -> None:
        with atomic_write(self.path / "config.toml") as temporary:
            temporary.write_text(tomli_w.dumps(settings.table()), encoding="utf-8")


def check_name(name: str | None) -> None:
    """InputError for a name that could leave the runs folder, that W&B forbids, or that is reserved."""
    if name is not None and (not NAME.fullmatch(name) or name.lower() in (AUTO, LATEST)):
        fix = f"use letters, digits, '_', and '.' or '-' inside, up to 128; {AUTO} and {LATEST} are reserved"
        raise InputError(f"--run-name {name!r:.200}: not a usable name", fix)


def create(runs: Path, name: str | None, stem: str, settings: Settings) -> RunFolder:
    """A new run folder with its `config.toml`, locked by this process; `latest` points to it.

    The default name is `<stem>-<time>`, numbered if needed. InputError if the name is taken or the folder cannot be
    made, ArcvaeError if another process is training the run of this name.
    """
    check_name(name)
    base = name or f"{re.sub(r'[^A-Za-z0-9_]+', '-', stem).strip('-')[:80] or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        for number in itertools.count(1):
            path = runs / (base if number == 1 else f"{base}-{number}")
            with contextlib.suppress(FileExistsError):
                path.mkdir(parents=True)
                break
            if name is not None or not runs.is_dir():
                break
        lock = None
        if all(file.name == "lock" for file in path.iterdir()) or held(path):
            lock = take(path)
        if any(file.name != "lock" for file in path.iterdir()):
            fix = f"choose another --run-name, or --resume {shlex.quote(str(path))}"
            raise InputError(f"{path}: exists already", fix)
        folder = RunFolder(path, _now(), lock)
        folder.write_config(settings)
        folder.write_status("running", epoch=0, epochs=settings.train.epochs, step=0)
        folder.checkpoints.mkdir()
        folder.images.mkdir()
    except OSError as error:
        what = f"{runs}: no run folder can be made there ({error.strerror})"
        raise InputError(what, "choose another --runs-dir") from error
    point_latest(runs, path.name)
    return folder


def resume(folder: Path) -> RunFolder:
    """An existing run folder, locked, without temporary files. InputError if not writable, ArcvaeError if locked."""
    path = folder.resolve() if folder.name in ("", "..", LATEST) else folder
    try:
        lock = take(path)
        for part in ("checkpoints", "images"):
            (path / part).mkdir(exist_ok=True)
        for file in temporaries(path):
            file.unlink(missing_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written to ({error.strerror})") from error
    status = read_status(path)
    return RunFolder(path, status.started if status else None, lock)


def temporaries(path: Path) -> list[Path]:
    """The temporary files of `atomic_write` in a run folder."""
    folders, pattern = (path, path / "checkpoints", path / "images"), re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
    return [file for folder in folders for file in folder.glob(".*.tmp") if pattern.fullmatch(file.name)]


def point_latest(runs: Path, name: str) -> None:
    """Replace the link `latest` atomically, on systems that have links."""
    temporary = runs / f".{LATEST}.{secrets.token_hex(4)}.tmp"
    with contextlib.suppress(OSError, NotImplementedError):
        temporary.symlink_to(name, target_is_directory=True)
        temporary.replace(runs / LATEST)
    with contextlib.suppress(OSError):  # `latest` is a folder
        temporary.unlink()


def held(path: Path) -> bool:
    """Whether a living process holds the lock of a run folder."""
    try:
        if is_file(path / "lock"):
            take(path, 0.05).release()
        return False
    except (ArcvaeError, OSError):
        return True


def take(path: Path, patience: float = 1.0) -> BaseFileLock:
    """The lock of a run folder. ArcvaeError if another process holds it longer than `patience` seconds.

    A process that only tests it holds it for a moment.
    """
    from filelock import FileLock, Timeout  # 20 to 60 ms

    lock = FileLock(path / "lock", timeout=patience, thread_local=False)
    try:
        lock.acquire(poll_interval=0.01)
    except Timeout:
        fix = "wait until it has ended, or stop it"
        raise ArcvaeError(f"{path.name}: another process is training this run", fix) from None
    return lock


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def describe(path: Path) -> dict[str, Any]:
    """A run as its files show it, as JSON.

    `state`: of its status, "killed" if it says running and no process holds the lock, or "corrupt" if it cannot be
    read. `bytes`: of all files; `age`: seconds since the status was written.
    """
    document = asdict(read_status(path) or Status("corrupt"))
    document["updated"] = document.pop("time")
    del document["judged"]
    if document["state"] == "running" and not held(path):
        document["state"] = "killed"
    monitor = None
    with contextlib.suppress(InputError, LookupError, TypeError):
        monitor = read_toml(path / "config.toml")["train"]["monitor"]
    size = 0
    for file in path.rglob("*"):
        with contextlib.suppress(OSError):  # a temporary file that has just gone
            size += 0 if file.is_dir() else file.lstat().st_size
    own = {"monitor": monitor, "bytes": size, "age": _age(path)}
    return {"name": path.name, "path": str(path), **document, **own}


def all_runs(runs: Path) -> list[Path]:
    """The run folders in a folder, the last active first."""
    try:
        folders = [path for path in runs.iterdir() if path.name != LATEST and _is_run(path)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"--runs-dir {runs}: cannot be read ({error.strerror})", "give a folder of runs") from error
    return sorted(folders, key=lambda path: (_age(path), path.name))


def find(argument: str, runs: Path) -> Path:
    """The run folder that a run's name, a path or `latest` means. InputError if there is none."""
    for path in ([runs / argument] if Path(argument).name == argument else []) + [expanded(Path(argument))]:
        if _is_run(path):
            return path.parent / path.readlink() if path.name == LATEST and path.is_symlink() else path
    names = ", ".join(path.name for path in all_runs(runs)[:5])
    known = f"runs: {names}" if names else f"no run in {runs}/ yet: start one with `arcvae train`"
    raise InputError(f"run {argument!r:.200}: no such run", known)


def find_resumed(argument: str, runs: Path) -> tuple[Path, Path | None]:
    """The run folder that `--resume` means, and the checkpoint if a file was given. InputError if there is none."""
    file = expanded(Path(argument)).resolve()
    if is_file(file) and is_file(file.parent.parent / "config.toml"):
        return file.parent.parent, file
    folder = find(argument, runs)
    if not is_file(folder / "config.toml"):
        raise InputError(f"{folder}: no config.toml in it", "restore it, or start a new run")
    return folder, None


def differences(old: Table, new: Table, table: str = "") -> dict[str, tuple[Any, Any]]:
    """By dotted key, the values of two tables of settings that differ; None where a key is not set."""
    found: dict[str, tuple[Any, Any]] = {}
    for key in old | new:
        one, other = old.get(key), new.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found |= differences(one, other, f"{table}{key}.")
        elif one != other:
            found[f"{table}{key}"] = one, other
    return found


def _is_run(path: Path) -> bool:
    parts = (path / "config.toml", path / "status.json", path / "checkpoints")
    return not path.name.startswith(".") and any(map(exists, parts))


def _age(path: Path) -> float:
    for file in (path / "status.json", path):
        with contextlib.suppress(OSError):
            return time.time() - file.stat().st_mtime
    return 0.0


def read_status(path: Path) -> Status | None:
    """The status of a run folder; None if there is none that can be read."""
    known = {one.name for one in fields(Status)}
    try:
        table = json.loads((path / "status.json").read_bytes())
        return Status(**{key: value for key, value in table.items() if key in known})
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document in place of `path`, whole or not at all."""
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
