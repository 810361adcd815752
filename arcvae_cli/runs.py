"""A run's folder: its name, its files, its status, and the lock of the process that trains it."""

from __future__ import annotations

import contextlib
import difflib
import errno
import json
import os
import platform
import re
import secrets
import shlex
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict

from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.files import atomic_write, exists, expanded, is_file, sync_folder
from arcvae_cli.presets import read_toml
from arcvae_cli.settings import Settings

if TYPE_CHECKING:
    from filelock import BaseFileLock

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
"""Names of temporary files as `atomic_write` makes them."""

LATEST = "latest"
AUTO = "auto"
"""`--resume auto`: start the run of `--run-name`, or resume it."""

_PATIENCE = 1.0  # seconds to wait for a lock: a process that only tests it holds it for a moment
_TEST = 0.05
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # on some network drives


class Status(BaseModel):
    """`status.json`. `epoch`, `step`: those that are done; `seconds`: by part of the run; `best_value`: of monitor."""

    model_config = ConfigDict(frozen=True, extra="allow", allow_inf_nan=False)

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
    """`runs/<name>/`, with its folders of checkpoints and images. `started`: when the run began."""

    path: Path
    started: str | None = None
    _lock: BaseFileLock | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def shell(self) -> str:
        """The path, quoted for a shell."""
        return shlex.quote(str(self.path))

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def images(self) -> Path:
        return self.path / "images"

    def release(self) -> None:
        """Release the lock, if this object holds it; the kernel does so when a process dies."""
        if self._lock is not None:
            self._lock.release()

    def begin(self) -> None:
        """Write this process into the status, and point an existing link `latest` to the run."""
        if (status := read_status(self.path)) is not None:
            write_json(self.path / "status.json", {**status.model_dump(exclude_unset=True), **_here()})
        if (self.path.parent / LATEST).is_symlink():
            point_latest(self.path.parent, self.name)

    def write_status(self, state: str, **facts: Any) -> None:
        """Rewrite `status.json`: the state, the time, the process, and what `Status` has besides."""
        document = {"state": state, "time": now(), **_here(), **facts}
        if self.started is not None:
            document["started"] = self.started
        write_json(self.path / "status.json", document)

    def write_config(self, settings: Settings) -> None:
        """Rewrite `config.toml`, which repeats the run as a preset."""
        with atomic_write(self.path / "config.toml") as temporary:
            temporary.write_text(tomli_w.dumps(settings.table()), encoding="utf-8")


def now() -> str:
    """The local time with its distance from UTC, as a status has it."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def check_name(name: str | None) -> None:
    """InputError for a name that could leave the runs folder, that W&B forbids, or that is reserved."""
    if name is not None and not NAME.fullmatch(name):
        raise InputError(
            f"--run-name {name!r:.200}: not a usable name",
            "use up to 128 letters, digits, '.', '_' or '-', starting with a letter, a digit or '_'",
        )
    if name is not None and name.lower() in (AUTO, LATEST):  # in any case: file systems may ignore it
        raise InputError(f"--run-name {name!r}: reserved", "choose another name")


# ------------------------------------------------------------------------------------------------ making and resuming


def create(runs: Path, name: str | None, stem: str, settings: Settings) -> RunFolder:
    """A new run folder with its `config.toml`, locked by this process; `latest` points to it.

    It is made under a hidden name and renamed when complete. A given `name` must be free; without one the folder is
    `<stem>-<time>`, numbered if several runs start in the same second.

    Raises:
        InputError: the name is taken, or the folder cannot be made.
        ArcvaeError: another process is training the run of this name.

    """
    check_name(name)
    base = name or f"{re.sub(r'[^A-Za-z0-9_]+', '-', stem).strip('-')[:80] or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}"
    hidden, started = runs / f".{base}.{secrets.token_hex(4)}.tmp", now()
    lock: BaseFileLock | None = None
    try:
        for folder in (hidden / "checkpoints", hidden / "images"):
            folder.mkdir(parents=True)
        lock = take(hidden)
        made = RunFolder(hidden, started)
        made.write_config(settings)
        made.write_status("running", epoch=0, epochs=settings.train.epochs, step=0)
        path = _appear(hidden, base, numbered=name is None)
    except BaseException as error:
        if lock is not None:
            lock.release()
        shutil.rmtree(hidden, ignore_errors=True)
        if isinstance(error, OSError):
            raise InputError(
                f"{runs}: no run folder can be made there ({error.strerror})", "choose another --runs-dir"
            ) from error
        raise
    point_latest(runs, path.name)
    return RunFolder(path, started, lock)


def _appear(hidden: Path, base: str, numbered: bool) -> Path:
    """Rename a complete run folder to a free name."""
    for number in range(1, 1000):
        path = hidden.with_name(base if number == 1 else f"{base}-{number}")
        if not os.path.lexists(path):
            try:
                hidden.rename(path)
            except OSError:  # no system replaces a folder that holds files
                if not os.path.lexists(path):
                    raise
            else:
                sync_folder(path.parent)
                return path
        if not numbered:
            if held(path):
                raise _busy(path)
            raise InputError(
                f"--run-name {base!r}: {path} exists already",
                f"choose another name, or resume that run: --resume {shlex.quote(str(path))}",
            )
    raise InputError(f"{hidden.parent}: a thousand runs of the name {base}", "give a --run-name")


def resume(folder: Path) -> RunFolder:
    """An existing run folder, locked by this process. Removes the temporary files that a killed process left.

    Raises:
        InputError: not a run folder, or not writable.
        ArcvaeError: another process is training the run.

    """
    path = folder.resolve() if folder.name == LATEST else Path(os.path.abspath(folder))
    if not (near := os.path.relpath(path)).startswith(os.pardir):
        path = Path(near)  # what messages show
    if not is_file(path / "config.toml"):
        raise InputError(f"{folder}: not a run folder (no config.toml in it)", "see `arcvae runs list`")
    lock = take(path)
    try:
        for part in ("checkpoints", "images"):
            (path / part).mkdir(exist_ok=True)
        for file in temporaries(path):
            file.unlink(missing_ok=True)
    except OSError as error:
        if lock is not None:
            lock.release()
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
        try:
            temporary.replace(runs / LATEST)
        except OSError:  # a folder of that name
            temporary.unlink()


# ------------------------------------------------------------------------------------------------ the lock


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
    """The lock of a run folder, acquired; None where the file system has no locks.

    Raises:
        ArcvaeError: another process holds it.
        InputError: the folder is not writable.

    """
    from filelock import Timeout

    lock = _lock_of(path)
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise _busy(path) from None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise InputError(f"{path}: cannot be locked ({error.strerror})", "resume where you may write") from error
    return lock


def _busy(path: Path) -> ArcvaeError:
    status = read_status(path)
    who = f"process {status.pid} on {status.host}" if status and status.pid else "another process"
    return ArcvaeError(f"{path.name}: {who} is training this run", "wait until it has ended, or stop it first")


def _lock_of(path: Path) -> BaseFileLock:
    """The lock of a run folder, not acquired: the kernel releases it when the process dies, and children lack it."""
    from filelock import FileLock  # 20 to 60 ms

    return FileLock(path / "lock", timeout=0, thread_local=False)


def _here() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": platform.node()}


# ---------------------------------------------------------------------------------------------- what is known of a run


@dataclass(frozen=True)
class Run:
    """A run as its files show it.

    `state`: that of its status, "killed" if it says running and no process holds the lock, or "damaged" if there is no
    readable status. `bytes`: of all files; `age`: seconds since the status was written.
    """

    path: Path
    state: str
    status: Status
    monitor: str | None
    bytes: int
    age: float

    @property
    def name(self) -> str:
        return self.path.name

    def document(self) -> dict[str, Any]:
        """The run as JSON."""
        status = {key: getattr(self.status, key) for key in Status.model_fields if key not in ("time", "judged")}
        own = {"state": self.state, "monitor": self.monitor, "bytes": self.bytes, "age": self.age}
        return {"name": self.name, "path": str(self.path), **status, "updated": self.status.time, **own}


def state_of(path: Path) -> Run:
    """The run in a folder, whatever the state of its files."""
    status = read_status(path)
    state: str = status.state if status else "damaged"
    if state == "running" and not held(path):
        state = "killed"
    try:
        monitor = str(read_toml(path / "config.toml")["train"]["monitor"])
    except (InputError, LookupError, TypeError):
        monitor = None
    size = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):  # a temporary file that has just gone
                size += os.lstat(os.path.join(folder, name)).st_size
    return Run(path, state, status or Status(state="failed"), monitor, size, _age(path))


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
    names = [path.name for path in all_runs(runs)]
    near = difflib.get_close_matches(argument, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    known = f"runs: {', '.join(names[:5])}" if names else f"no run in {runs}/ yet: start one with `arcvae train`"
    raise InputError(f"run {argument!r:.200}: no such run", f"{hint}{known}")


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
