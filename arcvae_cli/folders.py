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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tomli_w

from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.files import atomic_write, exists, expanded, is_dir, is_file
from arcvae_cli.presets import leaves, read_toml
from arcvae_cli.settings import Settings, Table

if TYPE_CHECKING:
    from filelock import BaseFileLock

NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
LATEST, AUTO = "latest", "auto"  # the link to the last run; `--resume auto`
LENGTH = ("train.epochs", "train.early_stopping", "train.patience")  # only when a run ends
MOVED = ("data.path", "data.input", "data.prod", "data.masks", "data.grammar")  # the checkpoint has a fingerprint
MACHINE = ("train.device", "train.engine", "train.save_minutes", "train.threads")
WITHOUT_EFFECT = (*MACHINE, "checkpoint.", "log.")  # on the metrics
MAY_CHANGE = (*LENGTH, *MOVED, *WITHOUT_EFFECT)  # on resumption
TIME = "%Y-%m-%dT%H:%M:%S%z"
KEYS = "state reason epoch epochs step best_epoch best_value started time pid host peak_memory_bytes"
STATUS: dict[str, Any] = {**dict.fromkeys(KEYS.split()), "seconds": {}, "judged": False}
"""`status.json`. `epoch`, `step`: those done; `best_value`: of monitor; `judged`: the final evaluation is done."""


class RunFolder:
    """`runs/<name>/`, locked by this process. `started`: when the run began; `shell`: the path for a command line."""

    def __init__(self, path: Path, started: str | None = None, lock: BaseFileLock | None = None) -> None:
        self.path, self.name, self.shell = path, path.name, shlex.quote(str(path))
        self.checkpoints, self.images = path / "checkpoints", path / "images"
        self.started, self._lock = started, lock

    def release(self) -> None:
        if self._lock is not None:
            self._lock.release()

    def write_status(self, state: str, **facts: Any) -> None:
        """Rewrite `status.json`: the state, the time, the process, and other keys of `STATUS`."""
        here = {"time": time.strftime(TIME), "pid": os.getpid(), "host": platform.node()}
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
    """A new run folder, locked; without a name `<stem>-<time>`, numbered. InputError if the name is taken."""
    base = name or f"{re.sub(r'[^A-Za-z0-9_]+', '-', stem).strip('-')[:80] or 'run'}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        runs.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(1):
            path = runs / (base if number == 1 else f"{base}-{number}")
            try:
                path.mkdir(exist_ok=name is not None)
                break
            except FileExistsError:
                if name is not None:  # of a file
                    raise
        found = os.listdir(path)
        folder = RunFolder(path, time.strftime(TIME), take(path) if "lock" in found or not found else None)
        if os.listdir(path) != ["lock"]:
            raise InputError(f"{path}: exists already", f"choose another --run-name, or --resume {folder.shell}")
        folder.write_config(settings)
        folder.write_status("running", epoch=0, epochs=settings.train.epochs, step=0)
        folder.checkpoints.mkdir()
        folder.images.mkdir()
    except OSError as error:
        raise InputError(f"{runs}: no run folder can be made there ({error.strerror})") from error
    point_latest(runs, path.name)
    return folder


def resume(path: Path) -> RunFolder:
    """An existing run folder, locked, without temporary files. InputError if not writable, ArcvaeError if locked."""
    try:
        folder = RunFolder(path, (read_status(path) or STATUS)["started"], take(path))
        for part in (path, folder.checkpoints, folder.images):
            part.mkdir(exist_ok=True)
            for file in part.glob(".*.tmp"):  # of `atomic_write`
                file.unlink()
    except OSError as error:
        raise InputError(f"{path}: cannot be written to ({error.strerror})") from error
    return folder


def point_latest(runs: Path, name: str) -> None:
    """Replace the link `latest` atomically, on systems that have links."""
    temporary = runs / f".{LATEST}.{secrets.token_hex(4)}.tmp"
    with contextlib.suppress(OSError, NotImplementedError):
        temporary.symlink_to(name, target_is_directory=True)
        temporary.replace(runs / LATEST)
    temporary.unlink(missing_ok=True)  # where `latest` is a folder


def held(path: Path) -> bool:
    """Whether a living process holds the lock of a run folder."""
    try:
        if is_file(path / "lock"):
            take(path, 0.05).release()
        return False
    except (ArcvaeError, OSError):
        return True


def take(path: Path, patience: float = 1.0) -> BaseFileLock:
    """The lock of a run folder. ArcvaeError if another process holds it for longer than a test of it takes."""
    from filelock import FileLock, Timeout  # 20 to 60 ms

    lock = FileLock(path / "lock", timeout=patience, thread_local=False)
    try:
        lock.acquire(poll_interval=0.01)
    except Timeout:
        raise ArcvaeError(f"{path.name}: another process is training this run", "wait for it, or stop it") from None
    return lock


def describe(path: Path) -> dict[str, Any]:
    """A run as its files show it. `state`: of its status, "killed" or "corrupt"; `age`: of the status, in seconds."""
    begun = is_file(path / "status.json")  # else the run was killed before it wrote one
    document = read_status(path) or {**STATUS, "state": "corrupt" if begun else "running"}
    document["updated"] = document.pop("time")
    del document["judged"]
    if document["state"] == "running" and not held(path):
        document["state"] = "killed"
    monitor, size = None, 0
    with contextlib.suppress(InputError, LookupError, TypeError):
        monitor = read_toml(path / "config.toml")["train"]["monitor"]
    for file in path.rglob("*"):
        with contextlib.suppress(OSError):  # a temporary file that has just gone
            size += 0 if file.is_dir() else file.lstat().st_size
    age = time.time() - _written(path)
    return {"name": path.name, "path": str(path), **document, "monitor": monitor, "bytes": size, "age": age}


def all_runs(runs: Path) -> list[Path]:
    """The run folders in a folder, the last active first."""
    folders = [path for path in (runs.iterdir() if is_dir(runs) else ()) if path.name != LATEST and is_run(path)]
    return sorted(folders, key=lambda path: (-_written(path), path.name))


def find(argument: str, runs: Path) -> Path:
    """The run folder that a run's name, a path or `latest` means. InputError if there is none."""
    for path in ([runs / argument] if Path(argument).name == argument else []) + [expanded(Path(argument))]:
        if is_run(path) and path.name == LATEST and path.is_symlink():
            return path.parent / path.readlink()
        if is_run(path):
            return path.resolve() if path.name in ("", "..") else path
    names = ", ".join(path.name for path in all_runs(runs)[:5])
    known = f"runs: {names}" if names else f"no run in {runs}/ yet: start one with `arcvae train`"
    raise InputError(f"run {argument!r:.200}: no such run", known)


def find_resumed(argument: str, runs: Path, name: str | None) -> tuple[Path, Path | None] | None:
    """The run folder that `--resume` means, and its checkpoint if that was given; None if `auto` has none to resume."""
    if argument == AUTO:
        if name is None:
            raise InputError(f"--resume {AUTO}: needs a run name", "give --run-name, the same every time")
        return (runs / name, None) if is_file(runs / name / "config.toml") else None
    if name is not None:
        raise InputError("--run-name: a resumed run keeps its name", f"remove it, or use --resume {AUTO}")
    file = expanded(Path(argument)).resolve()
    if is_file(file) and is_file(file.parent.parent / "config.toml"):
        return file.parent.parent, file
    return find(argument, runs), None


def differences(old: Table, new: Table) -> dict[str, tuple[Any, Any]]:
    """By dotted key, the values of two tables of settings that differ; None where a key is not set."""
    one, other = dict(leaves(old)), dict(leaves(new))
    return {key: (one.get(key), other.get(key)) for key in one | other if one.get(key) != other.get(key)}


def is_run(path: Path) -> bool:
    """Whether a folder has what a run's has."""
    parts = ("config.toml", "status.json", "checkpoints")
    return not path.name.startswith(".") and any(exists(path / part) for part in parts)


def _written(path: Path) -> float:
    status = path / "status.json"
    return (status if is_file(status) else path).stat().st_mtime


def read_status(path: Path) -> dict[str, Any] | None:
    """`status.json` of a run folder with all keys of `STATUS`; None if it cannot be read."""
    try:
        table = json.loads((path / "status.json").read_bytes())
        return {**STATUS, **table, "state": table["state"]}
    except (OSError, ValueError, TypeError, LookupError):
        return None


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write a JSON document in place of `path`, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2, allow_nan=False) + "\n", encoding="utf-8")
