"""Arrays in files, `.npz` and `.npy`, read with care: nothing that comes from outside is ever unpickled."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.data.arrays import SPLITS
from arcvae_cli.errors import InputError

_SPLIT_NAMES = {name: index for index, name in enumerate(SPLITS)} | {"validation": SPLITS.index("val")}
ARRAY_BYTES = 2**31
"""The largest array read into memory, checked before anything is decompressed."""


# What NumPy and zipfile raise, by luck, for a file that is cut short, damaged, encrypted or of another kind.
_DAMAGE = (EOFError, TokenError, ValueError, KeyError, RuntimeError, SyntaxError, zipfile.BadZipFile, zlib.error)


def read_npz(path: Path, names: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Those arrays of an `.npz` that have one of these names. InputError for a file that is damaged or none."""
    columns = {}
    with _told(path), zipfile.ZipFile(path) as archive:
        present = set(archive.namelist())
        for name in names:
            if f"{name}.npy" in present:
                with archive.open(f"{name}.npy") as file:
                    columns[name] = _read_array(file, f"{path}: {name}", archive.getinfo(f"{name}.npy").file_size)
    return columns


def read_npy(path: Path) -> NDArray[Any]:
    """The array of an `.npy`, in memory. InputError for a file that is damaged or none."""
    with _told(path), path.open("rb") as file:
        return _read_array(file, str(path), path.stat().st_size)


def map_npy(path: Path) -> NDArray[Any]:
    """The array of an `.npy` of any size, left in its file. InputError for a file that is damaged or none."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file", "Give an array saved by numpy.save.")
    with _told(path):
        with path.open("rb") as file:
            _read_header(file, str(path))
        array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")
    return array


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
            f"{path}: damaged, or no {path.suffix.lower()} file ({reason})", "Write the file again."
        ) from error


def _read_header(file: IO[bytes], where: str) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, whether in Fortran order, and type of the `.npy` stream that begins here. InputError for objects."""
    major, _ = np.lib.format.read_magic(file)
    header = np.lib.format.read_array_header_1_0 if major == 1 else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = header(file)
    if dtype.hasobject:
        raise InputError(f"{where}: holds pickled objects, which are never read", "Save arrays of plain integers.")
    return shape, fortran, dtype


def _read_array(file: IO[bytes], where: str, size: int) -> NDArray[Any]:
    """One `.npy` stream of at most `size` bytes. The header decides whether the rest is read at all."""
    shape, fortran, dtype = _read_header(file, where)
    if min(shape, default=0) < 0:
        raise ValueError(f"a shape of {shape}")
    needed = dtype.itemsize * math.prod(shape)  # of Python integers, which do not overflow
    if needed > ARRAY_BYTES:
        raise InputError(
            f"{where}: {shape} of {dtype} is {needed / 2**30:.3g} GiB, over the {ARRAY_BYTES >> 30} that are read",
            "Save fewer examples, or smaller integers.",
        )
    content = file.read(needed + 1) if size >= needed else b""  # one more, to reach the end and its checksum
    if len(content) != needed:
        raise InputError(f"{where}: the file does not hold the {needed} bytes that it promises", "Write it again.")
    return np.frombuffer(content, dtype).reshape(shape, order="F" if fortran else "C")


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
    """A column of strings or of UTF-8 bytes as strings. InputError for other bytes."""
    if column.dtype.kind == "U":
        return column
    try:
        return np.char.decode(column, "utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{where}: is not UTF-8", "Save it as an array of strings.") from error
