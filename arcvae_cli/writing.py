"""Files that are written whole or not at all."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from arcvae_cli.errors import ArcvaeError, InputError


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place, synced, once the block has ended well.

    Raises:
        ArcvaeError: the file system refuses; `path` is then as it was.

    """
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
            _sync_folder(path.parent)
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


def failed(path: Path, reason: str) -> ArcvaeError:
    """The error of a file that could not be written."""
    return ArcvaeError(f"{path}: could not be written ({reason})", "free some space, or choose another folder")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def _sync_folder(folder: Path) -> None:
    """Make a rename in `folder` last through a loss of power, where the system can open folders."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
