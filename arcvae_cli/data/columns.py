"""Arrays in files, `.npz` and `.npy`, read with care: nothing that comes from outside is ever unpickled."""

from __future__ import annotations

import math
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.data.arrays import SPLITS
from arcvae_cli.errors import InputError
from arcvae_cli.files import is_file, open_regular

_SPLIT_NAMES = {name: index for index, name in enumerate(SPLITS)} | {"validation": SPLITS.index("val")}
ARRAY_BYTES = 2**31
"""The largest arrays read into memory, those of a file together, checked before anything is decompressed."""

MAPPED_BYTES = 2**38
"""The largest array left in its file."""

TEXT_BYTES = 2**27
"""The largest column of text."""

_FREE_BYTES = 2**28  # that any file may be decompressed to
_MOST_RATIO = 300  # of a larger one: grids of small numbers in 64 bits come to a hundred times their compressed size
_MOST_NAMES = 10_000  # in an archive
_HEADER_BYTES = 10_000
_HEADER = re.compile(
    r"\s*\{\s*'descr': *'(?P<type>[<>|=][biufcSUVO]\d*|\|O)', *'fortran_order': *(?P<fortran>True|False), *"
    r"'shape': *\((?P<shape>(?: *\d{1,18}L? *,)* *(?:\d{1,18}L? *)?)\) *,? *\}\s*"
)

# What NumPy and zipfile raise, by luck, for a file that is cut short, damaged, encrypted or of another kind.
_DAMAGE = (
    *(EOFError, ValueError, LookupError, RuntimeError, TypeError, ArithmeticError),
    *(MemoryError, struct.error, zipfile.BadZipFile, zlib.error),
)


def read_npz(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Those arrays of an `.npz` that have one of these names. InputError for a file that is damaged or none."""
    columns = {}
    with _told(path), open_regular(path) as raw:
        limit = max(_FREE_BYTES, _MOST_RATIO * raw.seek(0, 2))
        _few_names(raw, path)
        with zipfile.ZipFile(raw) as archive:
            for info in archive.infolist():  # of which each has its name twice: one that differs is damage, no other
                archive.open(info).close()
            present = set(archive.namelist())
            found = {name: archive.getinfo(f"{name}.npy") for name in names if f"{name}.npy" in present}
            total = sum(info.file_size for info in found.values())
            if total > min(ARRAY_BYTES, limit) + len(found) * _HEADER_BYTES:
                raise InputError(
                    f"{path}: its arrays are {total / 2**30:.3g} GiB, over the {min(ARRAY_BYTES, limit) / 2**30:.3g} "
                    "that are read from a file of its size",
                    "Save fewer examples, smaller integers, or use numpy.savez, which does not compress.",
                )
            for name, info in found.items():
                if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others have no limit
                    raise ValueError("compressed as NumPy never does")
                with archive.open(info) as file:
                    columns[name] = _read_array(file, f"{path}: {name}", info.file_size)
    return columns


def read_npy(path: Path) -> NDArray[Any]:
    """The array of an `.npy`, in memory. InputError for a file that is damaged or none."""
    with _told(path), open_regular(path) as file:
        size = file.seek(0, 2)
        file.seek(0)
        return _read_array(file, str(path), size)


def map_npy(path: Path) -> NDArray[Any]:
    """The array of an `.npy` of nearly any size, left in its file. InputError for a file that is damaged or none."""
    if not is_file(path):
        raise InputError(f"{path}: there is no such file", "Give an array saved by numpy.save.")
    with _told(path):
        with open_regular(path) as file:
            header = _read_header(file, str(path))
            size = file.seek(0, 2)
        if header.needed > MAPPED_BYTES:
            raise InputError(f"{path}: is over {MAPPED_BYTES >> 30} GiB", "Save fewer examples, or smaller integers.")
        if size < header.begin + header.needed:
            raise ValueError(f"it does not hold the {header.needed} bytes that it promises")
        if not header.needed:
            return np.zeros(header.shape, header.dtype)  # nothing can be mapped
        order: Literal["C", "F"] = "F" if header.fortran else "C"
        return np.memmap(path, header.dtype, "r", header.begin, header.shape, order)


def _few_names(file: IO[bytes], path: Path) -> None:
    """Refuse a zip archive of so many members that the list of them alone would fill the memory."""
    end = file.seek(0, 2)
    file.seek(max(0, end - 2**16 - 22))
    tail = file.read()
    place = tail.rfind(b"PK\5\6")
    if place >= 0 and len(tail) >= place + 22:
        count, size = struct.unpack("<HL", tail[place + 10 : place + 16])
        if tail[max(0, place - 20) :].startswith(b"PK\6\7") and place >= 76:  # where the counts take 64 bits
            count, size = struct.unpack("<2Q", tail[place - 44 : place - 28])
        if count > _MOST_NAMES or size > 1024 * _MOST_NAMES:
            raise InputError(f"{path}: holds over {_MOST_NAMES:,} arrays", "Save `grids` or `ids`, and their `split`.")
    file.seek(0)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """What NumPy and zipfile raise about a file, as an InputError."""
    try:
        yield
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})", "Look at its permissions.") from error
    except _DAMAGE as error:
        reason = str(error) or type(error).__name__
        raise InputError(
            f"{path}: damaged, or no {path.suffix.lower()} file ({reason:.200})", "Write the file again."
        ) from error


@dataclass(frozen=True)
class _Header:
    """Of an `.npy` stream: shape, whether in Fortran order, type, and where what it holds begins."""

    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    begin: int

    @property
    def needed(self) -> int:
        """Bytes that it promises: of Python integers, which do not overflow."""
        return self.dtype.itemsize * math.prod(self.shape)


def _read_header(file: IO[bytes], where: str) -> _Header:
    """The header of the `.npy` stream that begins here. InputError for objects.

    Only headers of plain types are read, and those as every writer writes them: NumPy evaluates them as Python.
    """
    version = np.lib.format.read_magic(file)
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise ValueError(f"a header of version {version}")
    width = 2 if version == (1, 0) else 4
    length = int.from_bytes(file.read(width), "little")
    if length > _HEADER_BYTES:
        raise ValueError(f"a header of {length} bytes")
    said = _HEADER.fullmatch(file.read(length).decode("latin1"))
    if said is None:
        raise ValueError("a header of no plain type")
    if said["type"][1:] == "O":
        raise InputError(f"{where}: holds pickled objects, which are never read", "Save arrays of plain integers.")
    shape = tuple(int(side.strip(" L")) for side in said["shape"].split(",") if side.strip())
    dtype = np.dtype(said["type"])
    if not dtype.itemsize:
        raise ValueError(f"a type {dtype} of no size")
    return _Header(shape, said["fortran"] == "True", dtype, 8 + width + length)


def _read_array(file: IO[bytes], where: str, size: int) -> NDArray[Any]:
    """One `.npy` stream of at most `size` bytes. The header decides whether the rest is read at all."""
    header = _read_header(file, where)
    needed = header.needed
    if needed > ARRAY_BYTES:
        raise InputError(
            f"{where}: {header.shape} of {header.dtype} is {needed >> 30:,} GiB, over the {ARRAY_BYTES >> 30} that are "
            "read",
            "Save fewer examples, or smaller integers.",
        )
    content = file.read(needed + 1) if size >= needed else b""  # one more, to reach the end and its checksum
    if len(content) != needed:
        raise InputError(f"{where}: the file does not hold the {needed} bytes that it promises", "Write it again.")
    return np.frombuffer(content, header.dtype).reshape(header.shape, order="F" if header.fortran else "C")


def read_split(split: NDArray[Any], count: int, noun: str, where: str) -> NDArray[np.uint8]:
    """The index into SPLITS of each of `count` examples, from those or from names. InputError for anything else."""
    fix = f"`split` is 0, 1 or 2, or one of {', '.join(SPLITS)}, for each example."
    if split.shape != (count,):
        raise InputError(f"{where}: has shape {split.shape} for {count} {noun}", fix)
    if split.dtype.kind in "SU":
        names, places = np.unique(read_text(split, where), return_inverse=True)
        unknown = [name for name in names.tolist() if name not in _SPLIT_NAMES]
        if unknown:
            raise InputError(f"{where}: there is no split {unknown[0]!r}", fix)
        return np.array([_SPLIT_NAMES[name] for name in names.tolist()], np.uint8)[places]
    if split.dtype.kind not in "iu":
        raise InputError(f"{where}: has dtype {split.dtype}", fix)
    if split.min() < 0 or split.max() >= len(SPLITS):
        raise InputError(f"{where}: runs from {split.min()} to {split.max()}", fix)
    return split.astype(np.uint8)


def read_text(column: NDArray[Any], where: str) -> NDArray[np.str_]:
    """A column of strings or of UTF-8 bytes as strings. InputError for what is no text."""
    if column.nbytes > TEXT_BYTES:
        raise InputError(f"{where}: is {column.nbytes / 2**20:,.0f} MiB of text", "Save shorter strings.")
    try:
        if column.dtype.kind != "U":
            return np.char.decode(column, "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: is not UTF-8", "Save it as an array of strings.") from error
    codes = np.frombuffer(column.tobytes(), column.dtype.str[0] + "u4")
    if ((codes > 0x10FFFF) | (codes >> 11 == 0xD800 >> 11)).any():
        raise InputError(f"{where}: holds what is no character", "Save it as an array of strings.")
    return column
