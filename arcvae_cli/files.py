"""Files: reading regular files up to a limit, and writing them whole or not at all."""

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

is_file, is_dir, exists = os.path.isfile, os.path.isdir, os.path.exists
"""False for a name that is too long or holds a NUL, where the methods of `Path` raise."""


def expanded(path: Path) -> Path:
    """A path with `~` replaced by the home folder; as it is for an unknown user."""
    return Path(os.path.expanduser(path))


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file for reading. OSError, with a `strerror`, for anything else: a pipe would block."""
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "a folder, not a file" if stat.S_ISDIR(mode) else "not a regular file")
        return path.open("rb")
    except ValueError as error:  # NUL or a lone surrogate
        raise OSError(errno.EINVAL, "invalid file name") from error


def read_limited(path: Path, most: int) -> bytes:
    """The content of a regular file. OSError if it cannot be read or has more than `most` bytes."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise OSError(errno.EFBIG, f"larger than {most >> 10:,} kB")
        return file.read(most)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that replaces it, synced, at the end of the block; WriteError leaves it."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            temporary.touch(exist_ok=False)  # with the permissions of any new file
            yield temporary
            with temporary.open("rb+") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
            if hasattr(os, "O_DIRECTORY"):  # systems that can open folders
                folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
                os.fsync(folder)
                os.close(folder)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise failed(path, error.strerror or str(error)) from error


def usable_folder(folder: Path, flag: str) -> Path:
    """A folder, created if missing and tested by writing to it. InputError, naming `flag`, if that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        what = f"{flag} {folder}: cannot be written to ({error.strerror or error})"
        raise InputError(what, "choose another folder") from error


def failed(path: Path, reason: str) -> WriteError:
    """The error of a file that could not be written, with the free space of its disk."""
    with contextlib.suppress(OSError):  # the folder is gone
        reason += f"; {size(shutil.disk_usage(path.parent).free)} free there"
    return WriteError(f"{path}: could not be written ({reason})", "free some space, or choose another folder")


def size(count: float) -> str:
    """A number of bytes to three digits, in units of 1024."""
    units = ["bytes", "KiB", "MiB", "GiB", "TiB"]
    while count >= 999.5 and len(units) > 1:
        count /= 1024
        del units[0]
    return f"{count:.3g} {units[0]}"


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The steps and epochs of a `metrics.jsonl` in the order of time; without a line that a crash cut short."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with contextlib.suppress(ValueError, AttributeError):
            line = json.loads(text)
            lines += [line] if line.keys() >= {"kind", "epoch"} else []
    return sorted(lines, key=lambda line: float(line["epoch"]))
