"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from arcvae_cli.errors import InputError, WriteError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
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
