"""Files: reading what comes from outside up to a limit, and writing whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from arcvae_cli.errors import InputError, WriteError

_OTHERS = {
    stat.S_IFDIR: "a folder, not a file",
    stat.S_IFIFO: "a pipe, not a file",
    stat.S_IFSOCK: "a socket, not a file",
    stat.S_IFCHR: "a device, not a file",
    stat.S_IFBLK: "a device, not a file",
}


def is_file(path: Path) -> bool:
    """Whether there is a file of this name; False, too, for what is no name: `Path.is_file` raises for some."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def is_dir(path: Path) -> bool:
    """Whether there is a folder of this name; False, too, for what is no name."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def exists(path: Path) -> bool:
    """Whether there is anything of this name; False, too, for what is no name."""
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def expanded(path: Path) -> Path:
    """A path with `~` as the home it stands for; as it is, where nobody has that home."""
    try:
        return path.expanduser()
    except RuntimeError:
        return path


def open_regular(path: Path) -> BinaryIO:
    """A file, open for reading. A pipe is never waited for, and nothing is asked of a device.

    Raises:
        OSError: there is none, it cannot be read, or it is something else than a file; `strerror` says so.

    """
    try:
        kind = stat.S_IFMT(path.stat().st_mode)
        if kind != stat.S_IFREG:
            raise OSError(errno.EINVAL, _OTHERS.get(kind, "not a file"))
        return path.open("rb")
    except ValueError as error:  # a NUL, or half of a character
        raise OSError(errno.EINVAL, "no name that a file can have") from error


def read_limited(path: Path, most: int) -> bytes:
    """What a file holds. OSError as `opened`, and for a file of more than `most` bytes, which is not read."""
    with open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        content = file.read(most + 1) if size <= most else b""
    if max(size, len(content)) > most:
        raise OSError(errno.EFBIG, f"over {most >> 20} MB")
    return content


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place, synced, once the block has ended well.

    Raises:
        WriteError: the file system refuses; `path` is then as it was.

    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            temporary.touch(exist_ok=False)  # of the rights that any new file has
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise failed(path, error.strerror or str(error)) from error


def usable_folder(folder: Path, flag: str) -> Path:
    """A folder, made if need be and tried: before the work, not after it.

    Raises:
        InputError: nothing can be written there; `flag` is who asked for it.

    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"{flag} {folder}: cannot be written to ({reason})", "choose another folder") from error
    return folder


def failed(path: Path, reason: str) -> WriteError:
    """The error of a file that could not be written: it tells how much space there is."""
    try:
        space = f"; {size(shutil.disk_usage(path.parent).free)} free there"
    except OSError:  # the folder is gone
        space = ""
    return WriteError(f"{path}: could not be written ({reason}{space})", "free some space, or choose another folder")


def size(count: int) -> str:
    """A number of bytes, for people: to three digits, in units of 1024."""
    value, units = float(count), iter(("bytes", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while value >= 999.5 and unit != "TiB":
        value, unit = value / 1024, next(units)
    return f"{count} bytes" if unit == "bytes" else f"{value:.3g} {unit}"


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a loss of power, where the system can open folders."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def metric_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The lines of a `metrics.jsonl`, each as text and as a table with `kind` ("step" or "epoch") and `epoch`.

    What is no such line, as one cut short by a crash, is left out.
    """
    for text in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and line.get("kind") in ("step", "epoch"):
            yield text, line


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The steps and epochs of a `metrics.jsonl` in the order of time."""
    return sorted((line for _, line in metric_lines(path)), key=lambda line: float(line["epoch"]))
