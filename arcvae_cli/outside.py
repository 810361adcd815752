"""Files that come from outside: looked at before they are opened, and read up to a limit."""

from __future__ import annotations

import errno
import stat
from pathlib import Path
from typing import BinaryIO

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


def opened(path: Path) -> BinaryIO:
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


def read_bytes(path: Path, most: int) -> bytes:
    """What a file holds. OSError as `opened`, and for a file of more than `most` bytes, which is not read."""
    with opened(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        content = file.read(most + 1) if size <= most else b""
    if max(size, len(content)) > most:
        raise OSError(errno.EFBIG, f"over {most >> 20} MB")
    return content
