"""A run's folder: its name, its files, its state, and the lock of the process that trains it."""

from __future__ import annotations

import contextlib
import difflib
import errno
import json
import math
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
from typing import TYPE_CHECKING, Any

import tomli_w

from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.files import atomic_write, expanded, sync_folder
from arcvae_cli.settings import Settings, read_toml

if TYPE_CHECKING:
    from filelock import BaseFileLock

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
LATEST = "latest"
AUTO = "auto"
"""What `--resume` takes for: start the run of `--run-name`, or go on with it."""
STATES = ("running", "finished", "interrupted", "failed")
"""What a status can say; where it says running and nobody holds the lock, the run was killed."""

_PATIENCE = 1.0  # seconds that a lock is waited for: who only looks whether it is held takes it for a moment
_LOOK = 0.05
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # of network drives; their runs are trained all the same
_STALE = 600.0  # seconds without a change after which nobody can be at work on a temporary folder or link


@dataclass(frozen=True)
class RunFolder:
    """`runs/<name>/`, with its folders of checkpoints and images. `started`: when the run began, as its status says."""

    path: Path
    started: str | None = None
    _lock: BaseFileLock | None = field(default=None, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def shell(self) -> str:
        """Its path, as a shell takes it."""
        return shlex.quote(str(self.path))

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.path / "checkpoints"

    @property
    def images(self) -> Path:
        """Where pictures go."""
        return self.path / "images"

    def release(self) -> None:
        """Give the lock up, if this is whom it was given to; the kernel does so where a process dies."""
        if self._lock is not None:
            self._lock.release()

    def begin(self) -> None:
        """Say that this process has the run in hand; `latest` points to it from now on, where there is such a link."""
        if status := read_status(self.path):
            write_json(self.path / "status.json", {**status, **_here()})
        if (self.path.parent / LATEST).is_symlink():
            point_latest(self.path.parent, self.name)

    def write_status(self, state: str, **facts: Any) -> None:
        """Rewrite `status.json`: running, finished, interrupted or failed, since when, and whose process says so."""
        document = {"state": state, "time": now(), **_here(), **facts}
        if self.started is not None:
            document["started"] = self.started
        write_json(self.path / "status.json", document)

    def write_config(self, settings: Settings) -> None:
        """Rewrite `config.toml`, which repeats the run as a preset."""
        with atomic_write(self.path / "config.toml") as temporary:
            temporary.write_text(tomli_w.dumps(settings.table()), encoding="utf-8")


def now() -> str:
    """The time, as a status has it: of the clock on the wall, with its distance from UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%S%z")


def check_name(name: str | None) -> None:
    """Refuse a name that could leave the runs folder, that W&B forbids, or that means something else there."""
    if name is not None and not NAME.fullmatch(name):
        raise InputError(
            f"--run-name {name!r:.200}: not a usable name",
            "use up to 128 letters, digits, '.', '_' or '-', starting with a letter, a digit or '_'",
        )
    if name == AUTO:
        raise InputError(f"--run-name {name!r}: means another thing to --resume", "choose another name")
    if name is not None and name.lower() == LATEST:  # the same file where case means nothing
        raise InputError(f"--run-name {name!r}: taken by the link to the newest run", "choose another name")


# ------------------------------------------------------------------------------------------------ making and resuming


def create(runs: Path, name: str | None, stem: str, settings: Settings) -> RunFolder:
    """A new run folder with its `config.toml`, whose lock this process holds; `latest` points to it.

    It is made under a hidden name and appears whole. A `name` that a person gave must be free; without one the folder
    is `<stem>-<time>`, numbered where two runs start in the same second, so that they never share one.
    """
    check_name(name)
    base = name or f"{re.sub(r'[^A-Za-z0-9_]+', '-', stem).strip('-')[:80] or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}"
    hidden, started = runs / f".{base}.{secrets.token_hex(4)}.tmp", now()
    lock: BaseFileLock | None = None
    try:
        runs.mkdir(parents=True, exist_ok=True)
        for folder in (hidden, hidden / "checkpoints", hidden / "images"):
            folder.mkdir()
        lock = take(hidden)
        made = RunFolder(hidden, started)
        made.write_config(settings)
        made.write_status("running", epoch=0, epochs=settings.train.epochs, step=0)
        path = _appear(hidden, runs, base, numbered=name is None)
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


def resume(folder: Path) -> RunFolder:
    """An existing run folder, whose lock this process now holds, till then as it was: see `RunFolder.begin`.

    What a process that died left half-written is swept.

    Raises:
        InputError: not a run folder, or not to be written to.
        ArcvaeError: another living process holds the lock.

    """
    path = folder.resolve() if folder.name == LATEST else Path(os.path.abspath(folder))
    if not (near := os.path.relpath(path)).startswith(os.pardir):
        path = Path(near)  # which is what people are told, and what they paste
    if not (path / "config.toml").is_file():
        raise InputError(f"{folder}: not a run folder (there is no config.toml in it)", "see `arcvae runs list`")
    lock = take(path)
    try:
        for part in ("checkpoints", "images"):
            (path / part).mkdir(exist_ok=True)
        sweep(path)
        status = read_status(path) or {}
    except BaseException as error:
        if lock is not None:
            lock.release()
        if isinstance(error, OSError):
            raise InputError(f"{folder}: cannot be written to ({error.strerror})") from error
        raise
    return RunFolder(path, _text(status.get("started")), lock)


def _appear(hidden: Path, runs: Path, base: str, numbered: bool) -> Path:
    """Give a whole folder its name. That of a run folder is never lost: no system replaces one that holds files."""
    for number in range(1, 1000):
        path = runs / (base if number == 1 else f"{base}-{number}")
        if not os.path.lexists(path):
            try:
                hidden.rename(path)
            except OSError:
                if not os.path.lexists(path):  # it was not somebody else who took the name in between
                    raise
            else:
                sync_folder(runs)
                return path
        if not numbered:
            raise InputError(
                f"--run-name {base!r}: {path} exists already",
                f"choose another name, remove that folder, or go on with it: --resume {shlex.quote(str(path))}",
            )
    raise InputError(f"{runs}: a thousand runs of the name {base}", "give a --run-name")


def point_latest(runs: Path, name: str) -> None:
    """Replace the link `latest`, atomically, where the system knows links."""
    temporary = runs / f".{LATEST}.{secrets.token_hex(4)}.tmp"
    with contextlib.suppress(OSError, NotImplementedError):
        temporary.symlink_to(name, target_is_directory=True)
        try:
            temporary.replace(runs / LATEST)
        except OSError:  # a folder of that name
            temporary.unlink()


def sweep(path: Path) -> list[Path]:
    """Remove what processes that died left half-written in a run folder that nobody else has in hand; tells what."""
    swept = [file for folder in (path, path / "checkpoints", path / "images") for file in folder.glob(".*.tmp")]
    for file in swept:
        file.unlink(missing_ok=True)
    for folder in path.glob(".evaluation-*"):  # `arcvae evaluate` takes no lock, but is done with these in a minute
        if _is_stale(folder):
            shutil.rmtree(folder, ignore_errors=True)
            swept.append(folder)
    return swept


def sweep_hidden(runs: Path) -> list[Path]:
    """Remove run folders that were never finished being made, and links that never became `latest`; tells what."""
    swept = [path for path in runs.glob(".*.tmp") if _is_stale(path) and not held(path)]
    for path in swept:
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path, ignore_errors=True)
    return swept


def sweep_idle(path: Path) -> list[Path]:
    """The same where the run is in nobody's hand; what may not be touched is left."""
    try:
        lock = take(path)
    except ArcvaeError:
        return []
    try:
        return sweep(path)
    except OSError:
        return []
    finally:
        if lock is not None:
            lock.release()


def _is_stale(path: Path) -> bool:
    try:
        return time.time() - path.lstat().st_mtime > _STALE
    except OSError:
        return False


# ------------------------------------------------------------------------------------------------ the lock


def held(path: Path) -> bool:
    """Whether a living process holds the lock of a run folder. Where that cannot be told it counts as held."""
    if not (path / "lock").is_file():
        return False
    lock = _lock_of(path)
    try:
        with lock.acquire(timeout=_LOOK, poll_interval=_LOOK / 5):
            return False
    except OSError:  # Timeout is one
        return True


def take(path: Path) -> BaseFileLock | None:
    """The lock of a run folder, acquired; None where the file system knows none. It is waited for a moment.

    Raises:
        ArcvaeError: another living process holds it.
        InputError: nothing can be written there.

    """
    from filelock import Timeout

    lock = _lock_of(path)
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        status = read_status(path) or {}
        pid, host = status.get("pid"), status.get("host")
        who = f"process {pid} on {host}" if isinstance(pid, int) and isinstance(host, str) else "another process"
        raise ArcvaeError(
            f"{path.name}: {who} is at work on this run", "wait until it has ended, or stop it first"
        ) from None
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return None
        raise InputError(f"{path}: cannot be locked ({error.strerror})", "resume where you may write") from error
    return lock


def _lock_of(path: Path) -> BaseFileLock:
    """The lock of a run folder, not acquired: a file that the kernel unlocks when its process dies.

    Forked children do not keep it (filelock closes it in them), and programs that are started do not inherit it.
    """
    from filelock import FileLock  # 20 to 60 ms

    return FileLock(path / "lock", timeout=0, thread_local=False)


def _here() -> dict[str, Any]:
    return {"pid": os.getpid(), "host": platform.node()}


# -------------------------------------------------------------------------------------------- what is known of a run


@dataclass(frozen=True)
class Run:
    """What the files of a run folder tell. Values that they lack, or that are none, are None.

    `state`: running, finished, interrupted, failed, killed (it says running, and nobody holds the lock) or damaged (it
    cannot be read). `epoch`: of `epochs`, those that are done; `step`: optimiser steps. `best_value`: of the metric
    `monitor`. `bytes`: of all files, those of several names once. `age`: seconds since the run last
    said something. `seconds`: by part of the run.
    """

    path: Path
    state: str
    reason: str | None
    epoch: int | None
    epochs: int | None
    step: int | None
    best_epoch: int | None
    best_value: float | None
    monitor: str | None
    bytes: int
    age: float
    started: str | None
    updated: str | None
    pid: int | None
    host: str | None
    seconds: Mapping[str, float]
    peak_memory_bytes: int | None

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    def document(self) -> dict[str, Any]:
        """All of it, as JSON knows it."""
        return {"name": self.name, **self.__dict__, "path": str(self.path)}


def state_of(path: Path) -> Run:
    """What is known of the run in a folder, whatever state its files are in."""
    status = read_status(path)
    try:
        train = read_toml(path / "config.toml").get("train")
    except InputError:
        train = None
    train = train if isinstance(train, dict) else {}
    facts = status or {}
    state = facts.get("state")
    if state not in STATES:
        state = "damaged"
    elif state == "running" and not held(path):
        state = "killed"
    seconds = facts.get("seconds")
    found = {key: _number(value) for key, value in seconds.items()} if isinstance(seconds, dict) else {}
    return Run(
        path=path,
        state=state,
        reason=_text(facts.get("reason")),
        epoch=_count(facts.get("epoch")),
        epochs=_count(facts.get("epochs")) or _count(train.get("epochs")),
        step=_count(facts.get("step")),
        best_epoch=_count(facts.get("best_epoch")),
        best_value=_number(facts.get("best_value")),
        monitor=_text(train.get("monitor")),
        bytes=_bytes(path),
        age=_age(path),
        started=_text(facts.get("started")),
        updated=_text(facts.get("time")),
        pid=_count(facts.get("pid")),
        host=_text(facts.get("host")),
        seconds={key: value for key, value in found.items() if value is not None},
        peak_memory_bytes=_count(facts.get("peak_memory_bytes")),
    )


def all_runs(runs: Path) -> list[Path]:
    """The run folders in a folder, the newest first, by what was last said of them."""
    try:
        folders = [path for path in runs.iterdir() if path.name != LATEST and _is_run(path)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise InputError(f"--runs-dir {runs}: cannot be read ({error.strerror})", "give a folder of runs") from error
    return sorted(folders, key=lambda path: (_age(path), path.name))


def find(argument: str, runs: Path) -> Path:
    """The run folder that is meant: a run's name, a path, or `latest`. InputError where there is none."""
    for path in ([runs / argument] if Path(argument).name == argument else []) + [expanded(Path(argument))]:
        if _is_run(path):
            return path.parent / path.readlink() if path.name == LATEST and path.is_symlink() else path
    names = [path.name for path in all_runs(runs)]
    near = difflib.get_close_matches(argument, names, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    known = f"runs: {', '.join(names[:5])}" if names else f"no run in {runs}/ yet: start one with `arcvae train`"
    raise InputError(f"run {argument!r:.200}: there is none of this name, nor a run folder", f"{hint}{known}")


def _is_run(path: Path) -> bool:
    """Whether a folder is of a run, be it damaged; hidden ones are being made."""
    try:
        parts = (path / "config.toml", path / "status.json", path / "checkpoints")
        return not path.name.startswith(".") and any(part.exists() for part in parts)
    except OSError:  # a name that no file can have
        return False


def _age(path: Path) -> float:
    """Seconds since the run said something."""
    for file in (path / "status.json", path):
        with contextlib.suppress(OSError):
            return time.time() - file.stat().st_mtime
    return float("inf")


def _bytes(path: Path) -> int:
    """The bytes of all files of a folder, those of several names once."""
    found: dict[tuple[int, int], int] = {}
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(OSError):  # a temporary file that has just gone
                at = os.lstat(os.path.join(folder, name))
                found[at.st_dev, at.st_ino] = at.st_size
    return sum(found.values())


def _text(value: Any) -> str | None:
    """Text without what moves the cursor of a terminal."""
    if not isinstance(value, str):
        return None
    return "".join(letter if letter.isprintable() else " " for letter in value)


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _number(value: Any) -> float | None:
    try:
        return float(value) if isinstance(value, (int, float)) and math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


# ------------------------------------------------------------------------------------------------ files


def read_status(path: Path) -> dict[str, Any] | None:
    """The `status.json` of a run folder; None where there is none that can be read."""
    file = path / "status.json"
    try:
        if not file.is_file() or file.stat().st_size > 2**20:
            return None
        found = json.loads(file.read_bytes())
        json.dumps(found, allow_nan=False)  # NaN and 1e999 are read, and could not be written again
    except (OSError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """A JSON document in place of `path`, whole or not at all."""
    text = json.dumps(document, indent=2, allow_nan=False) + "\n"
    with atomic_write(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
