"""Files that somebody spoilt, or made to do harm: each is refused in a line, at once, and runs nothing.

What is read all the same is what it was before it was spoilt, where the file has checksums that can tell.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import random
import shutil
import signal
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from arcvae_cli import archives, checkpoints, errors, outside
from arcvae_cli.cli import app
from arcvae_cli.data.columns import read_npz
from arcvae_cli.data.files import read_grids
from arcvae_cli.data.ready import read_ready
from arcvae_cli.data.recipes import load_arrays
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import read_grammar
from arcvae_cli.schedules import ControlVAE
from arcvae_cli.schedules.recorded import read_run
from arcvae_cli.settings import PRESET_BYTES, DataSettings, resolve, set_layer
from tests.outside import EQUATIONS, GRIDS, STRINGS, archive_of, checkpoint_values, records_of, same, write_all

SECONDS = 20
"""Most that one file may take, by the clock: a pipe that is waited for, or a device read to its end, take for ever."""


@pytest.fixture(autouse=True)
def in_time() -> Iterator[None]:
    """A test that hangs fails."""

    def late(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"not done in {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_all(tmp_path_factory.mktemp("whole"))


# What reads each kind of file, as the commands do. It gives something that tells whether two files hold the same.
READERS: dict[str, Callable[[Path, dict[str, Path]], Any]] = {
    "checkpoint": lambda path, whole: (checkpoints.load(path), checkpoints.read(path))[1],
    "preset": lambda path, whole: resolve(str(path)).settings,
    "grids": lambda path, whole: load_arrays(DataSettings(path=path)).fingerprint(),
    "bare grids": lambda path, whole: load_arrays(DataSettings(path=path)).fingerprint(),
    "task": lambda path, whole: load_arrays(DataSettings(path=path)).fingerprint(),
    "derivations": lambda path, whole: load_arrays(DataSettings(path=path)).fingerprint(),
    "strings": lambda path, whole: load_arrays(DataSettings(input=path, grammar="equations")).fingerprint(),
    "grammar": lambda path, whole: read_grammar(str(path)).productions,
    "ids": lambda path, whole: read_ready(path, whole["masks"], None, None).fingerprint(),
    "masks": lambda path, whole: read_ready(whole["ids"], path, None, None).fingerprint(),
    "run": lambda path, whole: read_run(str(path.parent), path.parent).course(ControlVAE(target=11.0), "", 5),
}
CHECKED = ("checkpoint", "grids", "derivations")  # kinds with checksums

kinds = pytest.mark.parametrize("kind", READERS)


def placed(whole: dict[str, Path], kind: str, folder: Path) -> Path:
    """A name for a spoilt file of a kind, with what belongs beside it."""
    if kind != "run":
        return folder / f"spoilt{whole[kind].suffix}"
    with contextlib.suppress(FileExistsError):
        shutil.copytree(whole[kind].parent, folder / "run")
    return folder / "run" / "metrics.jsonl"


def outcome(whole: dict[str, Path], kind: str, path: Path) -> Any:
    """What is read of a file, or None where it is refused: in a line, which names it, and one on what to do."""
    try:
        return READERS[kind](path, whole)
    except InputError as error:
        told = str(error)
    lines = told.split("\n")
    assert len(lines) <= 2 and all(line.isprintable() for line in lines), told
    assert path.name in told or path.parent.name in told or whole["ids"].name in told, told
    return None


@kinds
def test_the_whole_file_is_read(whole: dict[str, Path], kind: str) -> None:
    assert outcome(whole, kind, whole[kind]) is not None


@kinds
def test_cut_short_at_every_tenth(whole: dict[str, Path], kind: str, tmp_path: Path) -> None:
    content, path = whole[kind].read_bytes(), placed(whole, kind, tmp_path)
    for tenth in range(10):
        path.write_bytes(content[: len(content) * tenth // 10])
        found = outcome(whole, kind, path)
        if kind in (*CHECKED, "bare grids", "ids", "masks", "task"):
            assert found is None, f"{tenth} tenths of it are read"


@kinds
def test_bits_flipped_at_200_places(whole: dict[str, Path], kind: str, tmp_path: Path) -> None:
    content, path = whole[kind].read_bytes(), placed(whole, kind, tmp_path)
    before, stream = outcome(whole, kind, whole[kind]), random.Random(0)
    for _ in range(200):
        flipped = bytearray(content)
        flipped[stream.randrange(len(content))] ^= 1 << stream.randrange(8)
        path.write_bytes(flipped)
        found = outcome(whole, kind, path)
        if kind in CHECKED and found is not None:
            assert same(found, before), "read, and something else than it was"


class Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.canary,))


def foreign_zip() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("hello.txt", "hello")
    return buffer.getvalue()


FOREIGN: dict[str, Callable[[Path], bytes]] = {
    "empty": lambda canary: b"",
    "a zip of something else": lambda canary: foreign_zip(),
    "an empty zip": lambda canary: b"PK\5\6" + bytes(18),
    "a pickle bomb": lambda canary: pickle.dumps(Bomb(canary)),
    "a bomb of PyTorch": lambda canary: torch_bytes({"model_state_dict": Bomb(canary)}),
    "a bomb of NumPy": lambda canary: numpy_bytes(np.array([Bomb(canary)], object)),
    "NUL bytes": lambda canary: bytes(5000),
    "no UTF-8": lambda canary: b"\xff\xfe\xfa\n" * 100,
    "deeply nested": lambda canary: b"[" * 50_000,
    "nested tables": lambda canary: b"a = " + b"{a = " * 12_000,
    "many digits": lambda canary: b"a = " + b"9" * 10_000,
    "a long line": lambda canary: b"x" * 60_000,
    "control characters": lambda canary: b'"\x1b[2J\\n" = 1\n' + b"\x1b[2J\r\x07" * 9,
}


def torch_bytes(values: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(values, buffer)
    return buffer.getvalue()


def numpy_bytes(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@kinds
@pytest.mark.parametrize("what", FOREIGN)
def test_something_else_is_refused_and_runs_nothing(
    whole: dict[str, Path], kind: str, what: str, tmp_path: Path
) -> None:
    path, canary = placed(whole, kind, tmp_path), tmp_path / "canary"
    path.write_bytes(FOREIGN[what](canary))
    found = outcome(whole, kind, path)
    assert found is None or (kind, what) == ("preset", "empty"), "all of a preset may be left out"
    assert not canary.exists()


@kinds
@pytest.mark.parametrize("what", ["folder", "pipe", "endless device", "empty device", "dangling link", "circle", "socket"])
def test_what_is_no_file_is_neither_waited_for_nor_read(
    whole: dict[str, Path], kind: str, what: str, tmp_path: Path
) -> None:
    path = placed(whole, kind, tmp_path)
    path.unlink(missing_ok=True)
    match what:
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "endless device":
            path.symlink_to("/dev/zero")
        case "empty device":
            path.symlink_to("/dev/null")
        case "dangling link":
            path.symlink_to("nothing")
        case "circle":
            path.symlink_to(path.name)
        case "socket":
            import socket

            with socket.socket(socket.AF_UNIX) as made, contextlib.chdir(tmp_path):
                made.bind("short")
            (tmp_path / "short").rename(path)
    assert outcome(whole, kind, path) is None


@kinds
@pytest.mark.parametrize("name", ["a\0b", "a\ud800b", "x" * 300, "x/" * 3000, "\x1b[2J", ""])
def test_what_is_no_name_is_no_file(whole: dict[str, Path], kind: str, name: str) -> None:
    with pytest.raises(InputError) as raised:
        READERS[kind](Path(name) / "metrics.jsonl" if kind == "run" else Path(name), whole)
    assert str(raised.value).replace("\n", "").isprintable()


# ------------------------------------------------------------------------------------------------------- checkpoints


def expect_refused(path: Path, match: str) -> None:
    with pytest.raises(InputError) as raised:
        checkpoints.load(path)
    assert match in str(raised.value) and str(path) in str(raised.value), str(raised.value)


def test_every_field_of_the_archive_is_checked_or_harmless(tmp_path: Path) -> None:
    """Of one record and its entry in the directory, and of the end, every bit: what the archive has no checksum of."""
    path = tmp_path / "x.pth"
    checkpoints.save(path, {**dict.fromkeys(checkpoints.REQUIRED), "t": torch.arange(3.0)} | MINIMAL)
    content, before = path.read_bytes(), checkpoints.read(path)
    with zipfile.ZipFile(path) as archive:
        record, directory = archive.getinfo("archive/data/0"), archive.start_dir
    entry = content.index(b"archive/data/0", directory) - 46
    places = [
        *range(record.header_offset, record.header_offset + 100),
        *range(entry, entry + 60),
        *range(len(content) - 98, len(content)),
    ]
    read = 0
    for place in places:
        for bit in range(8):
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                found = checkpoints.read(path)
            except InputError:
                continue
            read += 1
            assert same(found, before), f"byte {place}, bit {bit}"
    assert 0 < read < 8 * len(places)


MINIMAL: dict[str, Any] = {"epoch": 1, "format_version": 1, "config": "{}", "model_state_dict": {}}


def test_a_record_that_claims_to_be_a_folder_is_not_taken_for_an_empty_one(whole: dict[str, Path], tmp_path: Path) -> None:
    """PyTorch would give the tensor whatever the memory held before."""
    content, path = bytearray(whole["checkpoint"].read_bytes()), tmp_path / "folder.pth"
    with zipfile.ZipFile(whole["checkpoint"]) as archive:
        entry = content.index(b"archive/data/0", archive.start_dir) - 46
    content[entry + 38] |= 0x10
    path.write_bytes(content)
    assert not torch.equal(torch.zeros(1), torch.ones(1))
    expect_refused(path, "the record archive/data/0 is not as torch.save writes one")


def pickled(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


def number(value: int) -> bytes:
    digits = value.to_bytes((value.bit_length() + 8) // 8, "little", signed=True)
    return b"\x8a" + bytes([len(digits)]) + digits


def storage(kind: str, key: str, elements: int) -> bytes:
    return b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(key) + text("cpu") + number(elements) + b"tQ"


def tensor(kind: str, key: str, elements: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    shape = b"".join(b"(" + b"".join(map(number, sides)) + b"t" for sides in (size, stride))
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n("
    return rebuild + storage(kind, key, elements) + number(offset) + shape + b"\x89ccollections\nOrderedDict\n)RtR"


def under(name: str, value: bytes) -> bytes:
    return pickled(b"}", text(name), value, b"s")


RECORD = struct.pack("<6f", *range(6))
PICKLES: dict[str, tuple[bytes, str]] = {
    "memory for the asking": (under("a", b"cbuiltins\nbytearray\n" + number(10**12) + b"\x85R"), "builtins bytearray"),
    "a storage for the asking": (under("a", b"ctorch\nFloatStorage\n" + number(10**12) + b"\x85R"), "a call of"),
    "a storage by the way of the memo": (
        pickled(b"ctorch\nFloatStorage\nq\0", number(10**12), b"\x85Rq\1}", text("a"), b"h\1s"),
        "a call of",
    ),
    "a command": (under("a", b"cos\nsystem\n" + text("touch canary") + b"\x85R"), "asks for 'os system'"),
    "a command in the new notation": (under("a", text("os") + text("system") + b"\x93"), "the opcode STACK_GLOBAL"),
    "an object": (under("a", b"ctorch\nFloatStorage\n)\x81"), "the opcode NEWOBJ"),
    "an instance": (under("a", b"(ios\nsystem\n"), "the opcode INST"),
    "more elements than the record has": (under("a", tensor("FloatStorage", "0", 7, 0, (7,), (1,))), "does not hold"),
    "fewer elements than the record has": (under("a", tensor("FloatStorage", "0", 5, 0, (5,), (1,))), "does not hold"),
    "elements of another size": (under("a", tensor("DoubleStorage", "0", 6, 0, (6,), (1,))), "does not hold"),
    "a record that is not there": (under("a", tensor("FloatStorage", "1", 6, 0, (6,), (1,))), "does not hold"),
    "a record by a path": (under("a", tensor("FloatStorage", "../data/0", 6, 0, (6,), (1,))), "does not hold"),
    "a view over the end": (under("a", tensor("FloatStorage", "0", 6, 4, (3,), (1,))), "larger than its storage"),
    "a view before the beginning": (under("a", tensor("FloatStorage", "0", 6, -1, (3,), (1,))), "a size of -1"),
    "a view backwards": (under("a", tensor("FloatStorage", "0", 6, 5, (3,), (-1,))), "a size of -1"),
    "a number without end": (under("a", tensor("FloatStorage", "0", 6, 0, (10**12,), (0,))), "larger than its storage"),
    "a size over 64 bits": (under("a", tensor("FloatStorage", "0", 6, 0, (2**70,), (1,))), "a size of"),
    "a size that is none": (under("a", tensor("FloatStorage", "0", 6, 0, (3,), (1, 1))), "without a shape"),
    "many dimensions": (under("a", tensor("FloatStorage", "0", 6, 0, (1,) * 900, (1,) * 900)), "without a shape"),
    "a storage as a value": (under("a", storage("FloatStorage", "0", 6)), "no dict of plain values"),
    "a type as a value": (under("a", b"ctorch\nFloatStorage\n"), "no dict of plain values"),
    "a list that holds itself": (under("a", b"]q\0h\0a"), "something that holds itself"),
    "lists of one list": (
        under("a", b"]q\0" + b"".join(b"(" + b"h\0" * 10 + b"e]q\0" for _ in range(9)).replace(b"e]q\0", b"l0]q\0")),
        "",
    ),
    "tuples of one tuple": (under("a", b")q\0" + b"0".join(b"(" + b"h\0" * 10 + b"tq\0" for _ in range(9))), ""),
    "a laugh a million times": (
        under("a", b")q\0" + b"".join(b"h\0" * 2 + b"h\0\x87q\0" for _ in range(0)) + laughs(9)) if False else b"",
        "",
    ),
}
