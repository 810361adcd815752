"""Run folders: their names, files, status, and the lock of the process that trains one."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import platform
import re
import secrets
import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict

from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.files import atomic_write, exists, expanded, is_file
from arcvae_cli.presets import read_toml
from arcvae_cli.settings import Settings

if TYPE_CHECKING:
    from filelock import BaseFileLock

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")  # as `atomic_write` names them
LATEST, AUTO = "latest", "auto"  # the link to the last run; `--resume auto`

_PATIENCE = 1.0  # seconds to wait for a lock: a process that only tests it holds it for a moment
_TEST = 0.05
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # on some network drives


class Status(BaseModel):
    """`status.json`. `epoch`, `step`: those that are done; `seconds`: by part of the run; `best_value`: of monitor."""

    model_config = ConfigDict(frozen=True, allow_inf_nan=False)

    state: Literal["running", "finished", "interrupted", "failed"]
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
    seconds: dict[str, float] = {}
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

    def begin(self) -> None:
        if (self.path.parent / LATEST).is_symlink():
            point_latest(self.path.parent, self.name)

    def write_status(self, state: str, **facts: Any) -> None:
        """Rewrite `status.json`: the state, the time, the process, and fields of `Status`."""
        here = {"time": _now(), "pid": os.getpid(), "host": platform.node()}
        started = {} if self.started is None else {"started": self.started}
        write_json(self.path / "status.json", {"state": state, **here, **facts, **started})

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
        folder = RunFolder(path, _now(), _claim(path))
        folder.write_config(settings)
        folder.write_status("running", epoch=0, epochs=settings.train.epochs, step=0)
        folder.checkpoints.mkdir()
        folder.images.mkdir()
    except OSError as error:
        what = f"{runs}: no run folder can be made there ({error.strerror})"
        raise InputError(what, "choose another --runs-dir") from error
    point_latest(runs, path.name)
    return folder


def _claim(path: Path) -> BaseFileLock | None:
    """The lock of a folder that is still empty, which one of two processes gets."""
    if any(file.name != "lock" for file in path.iterdir()):
        if held(path):
            raise _busy(path)
        raise InputError(f"{path}: exists already", f"choose another --run-name, or --resume {shlex.quote(str(path))}")
    return take(path)


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
    folders = (path, path / "checkpoints", path / "images")
    return [file for folder in folders for file in folder.glob(".*.tmp") if TEMPORARY.fullmatch(file.name)]


def point_latest(runs: Path, name: str) -> None:
    """Replace the link `latest` atomically, on systems that have links."""
    temporary = runs / f".{LATEST}.{secrets.token_hex(4)}.tmp"
    with contextlib.suppress(OSError, NotImplementedError):
        temporary.symlink_to(name, target_is_directory=True)
        temporary.replace(runs / LATEST)
    with contextlib.suppress(OSError):  # `latest` is a folder
        temporary.unlink()


def held(path: Path) -> bool:
    """Whether a living process holds the lock of a run folder; True where locks do not work."""
    if not is_file(path / "lock"):
        return False
    try:
        with _lock_of(path).acquire(timeout=_TEST, poll_interval=_TEST / 5):
            return False
    except OSError:  # Timeout is one
        return True


def take(path: Path) -> BaseFileLock | None:
    """The lock of a run folder; None where the file system has no locks. ArcvaeError if another process holds it."""
    from filelock import Timeout

    lock = _lock_of(path)
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise _busy(path) from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return None
    return lock


def _busy(path: Path) -> ArcvaeError:
    return ArcvaeError(f"{path.name}: another process is training this run", "wait until it has ended, or stop it")


def _lock_of(path: Path) -> BaseFileLock:
    from filelock import FileLock  # 20 to 60 ms

    return FileLock(path / "lock", timeout=0, thread_local=False)


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def describe(path: Path) -> dict[str, Any]:
    """A run as its files show it, whatever their state, as JSON.

    `state`: of its status, "killed" if it says running and no process holds the lock, or "damaged" if it cannot be
    read. `bytes`: of all files; `age`: seconds since the status was written.
    """
    status = read_status(path)
    document = (status or Status(state="failed")).model_dump(exclude={"judged"})
    state, updated = document.pop("state") if status else "damaged", document.pop("time")
    if state == "running" and not held(path):
        state = "killed"
    monitor, size = None, 0
    with contextlib.suppress(InputError, LookupError, TypeError):
        monitor = str(read_toml(path / "config.toml")["train"]["monitor"])
    for file in path.rglob("*"):
        with contextlib.suppress(OSError):  # a temporary file that has just gone
            size += 0 if file.is_dir() else file.lstat().st_size
    own = {"state": state, "monitor": monitor, "updated": updated, "bytes": size, "age": _age(path)}
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
    try:
        return Status.model_validate_json((path / "status.json").read_bytes())
    except (OSError, ValueError):
        return None


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document in place of `path`, whole or not at all."""
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
