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
import socket
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

from arcvae_cli import archives, checkpoints, errors
from arcvae_cli.cli import app
from arcvae_cli.data.files import read_grids
from arcvae_cli.data.prebuilt import read_prebuilt as read_ready
from arcvae_cli.data.recipes import load_arrays
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import read_grammar
from arcvae_cli.schedules import ControlVAE
from arcvae_cli.schedules.recorded import read_run
from arcvae_cli.settings import PRESET_BYTES, DataSettings, resolve, set_layer
from tests.outside import EQUATIONS, GRIDS, archive_of, checkpoint_values, records_of, same, write_all

SECONDS = 60
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
    assert path.name in told or path.parent.name in told or (kind in ("ids", "masks") and ".npy: " in told), told
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
    for _ in range(50 if kind == "strings" else 200):  # whose grammar is made ready for parsing each time
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
@pytest.mark.parametrize(
    "what", ["folder", "pipe", "endless device", "empty device", "dangling link", "circle", "socket"]
)
def test_what_is_no_file_is_neither_waited_for_nor_read(
    whole: dict[str, Path], kind: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
            monkeypatch.chdir(tmp_path)  # the path of a socket is short
            with socket.socket(socket.AF_UNIX) as made:
                made.bind("short")
            Path("short").rename(path)
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
    """Of one record and its entry in the directory, and of the end, every byte: what the archive has no checksum of."""
    path = tmp_path / "x.pth"
    checkpoints.save(path, {**MINIMAL, "t": torch.arange(3.0)})
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
        for bit in (0, 4, 7):  # of the attributes, 4 is that of a folder
            flipped = bytearray(content)
            flipped[place] ^= 1 << bit
            path.write_bytes(flipped)
            try:
                found = checkpoints.read(path)
            except InputError:
                continue
            read += 1
            assert same(found, before), f"byte {place}, bit {bit}"
            assert place < len(content) - 98 or 12 <= place - (len(content) - 98) < 16, "the end says it three times"
    assert 0 < read < 3 * len(places)


MINIMAL: dict[str, Any] = {"epoch": 1, "format_version": 1, "config": "{}", "model_state_dict": {}}


def test_a_record_that_claims_to_be_a_folder_is_not_taken_for_an_empty_one(
    whole: dict[str, Path], tmp_path: Path
) -> None:
    """PyTorch would give the tensor whatever the memory held before."""
    content, path = bytearray(whole["checkpoint"].read_bytes()), tmp_path / "folder.pth"
    with zipfile.ZipFile(whole["checkpoint"]) as archive:
        entry = content.index(b"archive/data/0", archive.start_dir) - 46
    content[entry + 38] |= 0x10
    path.write_bytes(content)
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
    "tuples of one tuple": (under("a", b")q\0" + b"h\0h\0\x87q\0" * 40), "over 1,000,000 values"),
    "tuples in tuples": (under("a", b")" + b"\x85" * 5000), "nested over 50 levels"),
    "a key that is none": (pickled(b"}", b")Ns"), "a key that is neither"),
    "attributes": (under("a", b"ccollections\nOrderedDict\n)R}" + text("items") + b"NsNb"), "an object with a state"),
    "an ordered dictionary of something": (under("a", b"ccollections\nOrderedDict\n]\x85R"), "arguments that nothing"),
    "no dictionary": (pickled(b"]"), "no dictionary"),
    "nothing": (pickled(), "no dictionary"),
    "more than there is on the stack": (pickled(b"u"), "no pickle"),
    "no end": (b"\x80\x02}", "no pickle"),
    "another protocol": (b"\x80\x04}.", "protocol 4"),
    "text that is cut short": (pickled(b"X\xff\xff\xff\x7fabc"), "no pickle"),
    "a tensor as it should be": (under("a", tensor("FloatStorage", "0", 6, 0, (2, 3), (3, 1))), "it lacks what arcvae"),
}


@pytest.mark.parametrize("what", PICKLES)
def test_a_pickle_asks_for_nothing(tmp_path: Path, what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, match = PICKLES[what]
    path = tmp_path / "pickle.pth"
    path.write_bytes(archive_of({"data.pkl": content, "data/0": RECORD}))
    expect_refused(path, match)
    assert not (tmp_path / "canary").exists()


def with_a_gap(content: bytes) -> bytes:
    """Bytes between the last record and the directory, of which all offsets know."""
    end = content[-98:]
    size, offset = struct.unpack("<2Q", end[40:56])
    longer = struct.pack("<Q", offset + 7)
    start = struct.pack("<Q", offset + 7 + size)
    end = end[:48] + longer + end[56:64] + start + end[72:92] + longer[:4] + end[96:]
    return content[:offset] + b"unknown" + content[offset:-98] + end


def deflated(records: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in records.items():
            archive.writestr(f"archive/{name}", content)
    return buffer.getvalue()


ARCHIVES: dict[str, Callable[[bytes, dict[str, bytes]], bytes]] = {
    "compressed": lambda content, records: deflated(records),
    "with something before it": lambda content, records: b"#!/bin/sh\n" + content,
    "with something after it": lambda content, records: content + b"\n",
    "twice": lambda content, records: content + content,
    "with a model that is a program": lambda content, records: archive_of({**records, "constants.pkl": b"x"}),
    "with a file of another's": lambda content, records: archive_of({**records, "../../x": b"x"}),
    "with a gap": lambda content, records: with_a_gap(content),
    "without a pickle": lambda content, records: archive_of({"data/0": RECORD}),
    "without its tensors": lambda content, records: archive_of({"data.pkl": records["data.pkl"]}),
    "with tensors that are shorter": lambda content, records: archive_of({**records, "data/0": b"1234"}),
}


@pytest.mark.parametrize("what", ARCHIVES)
def test_an_archive_that_torch_save_does_not_write(whole: dict[str, Path], tmp_path: Path, what: str) -> None:
    content, path = whole["checkpoint"].read_bytes(), tmp_path / "other.pth"
    path.write_bytes(ARCHIVES[what](content, records_of(whole["checkpoint"])))
    expect_refused(path, "not a checkpoint of arcvae (")


def test_two_records_of_a_name_of_which_one_has_no_checksum_compared(tmp_path: Path) -> None:
    made = archive_of({"data.pkl": PICKLES["a tensor as it should be"][0], "data/0": RECORD, "data/1": RECORD[::-1]})
    path = tmp_path / "twins.pth"
    path.write_bytes(made.replace(b"archive/data/1", b"archive/data/0"))
    expect_refused(path, "a record 'archive/data/0'")


def test_the_records_of_a_checkpoint_make_it_again(whole: dict[str, Path], tmp_path: Path) -> None:
    """So that what the tests above spoil is spoilt by what they say alone."""
    path = tmp_path / "again.pth"
    path.write_bytes(archive_of(records_of(whole["checkpoint"])))
    assert same(checkpoints.read(path), checkpoints.read(whole["checkpoint"]))


def test_limits_of_an_archive(whole: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, least in (("MOST_BYTES", 1000), ("MOST_RECORDS", 3), ("MOST_PICKLE_BYTES", 100), ("MOST_OPCODES", 50)):
        with monkeypatch.context() as patch:
            patch.setattr(archives, name, least)
            expect_refused(whole["checkpoint"], "not a checkpoint of arcvae (")
    checkpoints.load(whole["checkpoint"])


# ------------------------------------------------------------------------------------------------ presets and --set


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("#" * PRESET_BYTES + "\n", "larger than 64 kB"),
        ("[train]\nlr = nan\n", "train.lr: expected a finite number"),
        ("[train]\nlr = inf\n", "train.lr: expected a finite number"),
        ("[schedule]\nmax_beta = -inf\n", "schedule.max_beta"),
        (".".join("a" * 20_000) + " = 1\n", "over 200 dots (at line 1)"),
        ("[" + ".".join("a" * 20_000) + "]\n", "over 200 dots (at line 1)"),
        (".".join("a" * 100) + " = 1\n", "nested over 16 levels"),
        ("a = " + "[" * 300 + "]" * 300, "nested over 16 levels"),
        ("a = " + "[" * 30_000, "not valid TOML"),
        ("a = " + "9" * 5000, "not valid TOML"),
        ("[train]\nseed = 0x" + "f" * 5000, "a whole number of over 64 bits"),
        ("[train]\nepochs = 9223372036854775807\n", "train.epochs"),
        ('"a.b" = 1\n', "unknown key 'a.b'"),
        ('"" = 1\n', "unknown key ''"),
        ('[train]\n"l\\nr\\u001b[2J" = 1\n', "train.l\\nr\\x1b[2J"),
        ("[train]\n" + "k" * 60_000 + " = 1\n", "unknown key"),
        ("\n".join(f"k{number} = 1" for number in range(5000)), "unknown key"),
        ('extends = "/dev/zero"\n', "neither a shipped preset nor a file"),
        ('extends = "a\\u0000b"\n', "neither a shipped preset nor a file"),
        ('extends = "' + "x/" * 5000 + '"\n', "neither a shipped preset nor a file"),
        ("[trian]\n", "trian: unknown key"),
    ],
)
def test_a_hostile_preset(tmp_path: Path, content: str, match: str) -> None:
    path = tmp_path / "hostile.toml"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as raised:
        resolve(str(path))
    told = str(raised.value)
    assert match in told and ("hostile.toml" in told or "preset '" in told), told
    assert told.count("\n") <= 1 and len(told) < 3 * errors.LONGEST and told.replace("\n", "").isprintable()


def test_a_long_line_of_presets(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number}.toml").write_text(f'extends = "{number + 1}.toml"\n')
    (tmp_path / "30.toml").write_text("[train]\nepochs = 3\n")
    with pytest.raises(InputError, match="goes on over 16 presets"):
        resolve(str(tmp_path / "0.toml"))
    assert resolve(str(tmp_path / "20.toml")).settings.train.epochs == 3


@pytest.mark.parametrize(
    "assignment",
    [
        *(
            "",
            "=",
            "a",
            "a=1",
            ".=1",
            "train.lr=nan",
            "train.lr=-inf",
            "train.lr=" + "9" * 5000,
            "train=3",
            "train.lr.x=1",
        ),
        *("train.lr=" + "[" * 50_000, "train.lr=" + "{a=" * 20_000, "train.lr={" + ".".join("a" * 20_000) + "=1}"),
        *("a." * 50_000 + "=1", "train.lr=\0", "train.lr=\ud800", "train.\x1b[2J=1", "train.epochs=9" + "0" * 18),
    ],
)
def test_a_hostile_assignment(assignment: str) -> None:
    with pytest.raises(InputError) as raised:
        resolve(None, set_layer([assignment]))
    assert str(raised.value).count("\n") <= 1 and str(raised.value).replace("\n", "").isprintable()


def test_an_error_is_a_line_whatever_is_in_it() -> None:
    error = InputError("a\nb\x1b[2J\ud800 \u202e" + "x" * 10_000 + "end", "é\r\n")
    assert error.what.startswith("a\\nb\\x1b[2J\\ud800 \\u202exxx") and error.what.endswith("xxxend")
    assert error.fix == "é\\r\\n" and len(error.what) < errors.LONGEST + 50
    assert str(error) == f"{error.what}\n{error.fix}"


# ------------------------------------------------------------------------------------------------------------ corpora


def npy(shape: str, dtype: str = "|u1", content: bytes = b"", version: int = 1, length: int | None = None) -> bytes:
    """An `.npy` that says what it likes about itself."""
    said = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}".encode()
    width = 2 if version == 1 else 4
    size = (len(said) if length is None else length).to_bytes(width, "little")
    return b"\x93NUMPY" + bytes([version, 0]) + size + said + content


def npz(path: Path, method: int = zipfile.ZIP_DEFLATED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)
    return path


@pytest.mark.parametrize(
    "content",
    [
        *(
            npy("(2,)", "|O"),
            npy("(2,)", "|u1", b"1"),
            npy("(-1,)"),
            npy("(1e3,)"),
            npy("(2,", "|u1"),
            npy("((((((1))))))"),
        ),
        *(npy("(9223372036854775807, 9223372036854775807)"), npy(f"({'9' * 3000},)"), npy(f"({'9,' * 900})")),
        *(
            npy("()", "|V0"),
            npy("()", "<U99999999999999"),
            npy("(1,)", "<u3"),
            npy("(1,)", "<M8[s]"),
            npy("(0, 16, 16)"),
        ),
        *(npy("(2,)", version=2, length=2**32 - 1), npy("(2,)", version=9), npy("(2,)", length=60_000), b"\x93NUMPY"),
        *(npy("(2,)") + b"", npy("__import__('os').system('touch canary')"), npy("(1, 16, 16)", "|u1", b"\x0a" * 256)),
        *(
            npy("(1, 16, 16)", "<f8", bytes(2048)),
            npy("(1, 16, 17)", "|u1", bytes(272)),
            npy("(2, 2)", "|u1", bytes(4)),
        ),
        b"\x93NUMPY\x01\x00\x50\x00{'descr': [('a', '|O')], 'fortran_order': False, 'shape': (1,), }",
    ],
)
def test_a_hostile_array(tmp_path: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bare, packed = tmp_path / "a.npy", npz(tmp_path / "b.npz", grids=content, split=content)
    bare.write_bytes(content)
    for path in (bare, packed):
        with pytest.raises(InputError, match=path.name):
            read_grids(path)
    for prod, masks in ((bare, None), (bare, bare)):
        with pytest.raises(InputError, match=r"a\.npy"):
            read_ready(prod, masks, None, EQUATIONS)
    assert not (tmp_path / "canary").exists()


def test_a_name_that_was_flipped_is_no_column_less(whole: dict[str, Path], tmp_path: Path) -> None:
    """Else the corpus would be split anew, or forget which task a grid is of."""
    content, path = whole["grids"].read_bytes(), tmp_path / "flipped.npz"
    for name in (b"split.npy", b"shape.npy", b"task.npy"):
        for place in (content.index(name), content.rindex(name)):
            path.write_bytes(content[:place] + b"z" + content[place + 1 :])
            with pytest.raises(InputError, match=r"flipped\.npz"):
                read_grids(path)


@pytest.mark.parametrize(
    ("held", "match"),
    [
        ({"split": np.frombuffer(b"\xff" * 12 * 4, "<U1")}, "not valid text"),
        ({"task": np.frombuffer(b"\x00\xd8\x00\x00" * 12, "<U1")}, "not valid text"),
        ({"task": np.frombuffer(b"\x7f\xff\xff\xff" * 12, ">U1")}, "not valid text"),
        ({"task": np.full(12, b"\xff\xfe")}, "not valid text"),
        ({"grids": np.zeros((2**23 + 1, 1, 1), np.uint8)}, "2 GiB of arrays, the limit is 768 MiB"),
    ],
)
def test_a_hostile_column(tmp_path: Path, held: dict[str, np.ndarray], match: str) -> None:
    path = tmp_path / "columns.npz"
    np.savez_compressed(path, **{"grids": GRIDS.grids, **held})
    with pytest.raises(InputError, match=match):
        read_grids(path)


def test_rules_of_numbers_that_no_memory_holds(tmp_path: Path) -> None:
    path = tmp_path / "bare.npz"
    for lhs in ([0, 10**9, -1], [0, 2**63 - 1, -1], [-5, 0, -1], [-1, -1, -1]):
        np.savez(path, ids=np.zeros((2, 2), np.int16), lhs=np.array(lhs), padding=np.array(2))
        with pytest.raises(InputError, match="invalid rules"):
            load_arrays(DataSettings(path=path))
    np.save(tmp_path / "ids.npy", np.zeros((1, 1), np.int16))
    np.save(tmp_path / "masks.npy", np.zeros((1, 1, 100_000), np.uint8))
    with pytest.raises(InputError, match=r"uint8 \(1, 1, 100000\) for ids"):
        read_ready(tmp_path / "ids.npy", tmp_path / "masks.npy", None, None)


@pytest.mark.parametrize(
    "document",
    [
        {"train": [{"input": [["a" * 100_000, "b"], ["c", "d"]]}]},
        {"train": [{"input": [[True, False]]}]},
        {"train": [{"input": [[1, [2]]]}]},
        {"train": [{"input": {"0": [1]}}]},
        {"train": [{"input": "1234"}]},
        {"train": [{"input": [[1e3]]}]},
        {"train": [{"input": [[10**400]]}]},
        {"\ud800": {"train": [{"input": [[1]]}]}},
        {"train": [[[[]]]]},
        {"train": {"0": 1}},
    ],
)
def test_a_hostile_task(tmp_path: Path, document: Any) -> None:
    path = tmp_path / "hostile.json"
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=r"hostile\.json"):
        read_grids(path)


def test_a_folder_of_tasks_with_a_pipe_in_it(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"train": [{"input": [[1]]}]}))
    os.mkfifo(tmp_path / "b.json")
    with pytest.raises(InputError, match=r"b\.json.*a pipe, not a file"):
        read_grids(tmp_path)


def bombs(folder: Path) -> list[str]:
    """Small files that promise, or unpack to, more than a machine has; by what reads them."""
    with zipfile.ZipFile(folder / "many.npz", "w") as archive:
        for member_number in range(10_001):
            archive.writestr(zipfile.ZipInfo(f"{member_number}.npy"), b"")
    with (folder / "huge.npy").open("wb") as file:
        file.write(npy("(1073741824, 4)", "<i2"))
        file.truncate(2**33 + 200)
    for name in ("huge.json", "huge.txt", "huge.cfg", "huge.toml", "huge.pth"):
        with (folder / name).open("wb") as file:
            file.truncate(2**35)  # of nothing: it takes no space
    pickles = {name: content for name, (content, _) in PICKLES.items() if name.endswith("for the asking")}
    for index, content in enumerate(pickles.values()):
        (folder / f"asks{index}.pth").write_bytes(archive_of({"data.pkl": content, "data/0": RECORD}))
    return sorted(path.name for path in folder.iterdir())


READ_BOMBS = """
import resource, sys
from pathlib import Path
from arcvae_cli import checkpoints
from arcvae_cli.data.files import read_grids
from arcvae_cli.data.prebuilt import read_prebuilt as read_ready
from arcvae_cli.data.recipes import load_arrays
from arcvae_cli.errors import InputError
from arcvae_cli.grammar import read_grammar
from arcvae_cli.settings import DataSettings, resolve

def ready(path):
    read_ready(path, None, None, read_grammar("equations"))

def strings(path):
    load_arrays(DataSettings(input=path, grammar="equations"))

def resident():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

readers = {
    ".npz": [read_grids], ".npy": [read_grids, ready], ".json": [read_grids], ".txt": [strings],
    ".cfg": [lambda path: read_grammar(str(path))], ".toml": [lambda path: resolve(str(path))],
    ".pth": [checkpoints.read],
}
resource.setrlimit(resource.RLIMIT_AS, (2**34, 2**34))  # a guard that fails takes the process, not the machine
for name in sys.argv[2:]:
    path = Path(sys.argv[1]) / name
    for read in readers[path.suffix]:
        before = resident()
        try:
            read(path)
        except InputError as error:
            assert name in str(error), error
        else:
            raise AssertionError(f"{name} was read")
        print(name, resident() - before, flush=True)
"""


def test_bombs_take_no_memory(tmp_path: Path) -> None:
    names = bombs(tmp_path)
    done = subprocess.run(
        [sys.executable, "-c", READ_BOMBS, str(tmp_path), *names], capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    grown = [line.split() for line in done.stdout.splitlines()]
    assert len(grown) == len(names) + 1
    assert all(int(megabytes) < 100 for _, megabytes in grown), done.stdout


# ---------------------------------------------------------------------------------------------------- recorded runs


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": float("nan")},
        {"epoch": float("inf")},
        {"epoch": 0},
        {"epoch": -1},
        {"epoch": 1e-320},
        {"epoch": True},
        {"epoch": "3"},
        {"epoch": 10**400},
        {"step": None},
        {"step": "x"},
        {"step": float("nan")},
        {"step": 10**400},
        {"train/beta": float("nan"), "train/kl": 1e308},
        {"train/kl": "12"},
        {"train/kl": [1]},
        {"train/loss_reconstruction": 10**400},
        {"kind": ["step"]},
    ],
)
def test_a_hostile_record(whole: dict[str, Path], tmp_path: Path, change: dict[str, Any]) -> None:
    path = placed(whole, "run", tmp_path)
    lines = [json.dumps({**json.loads(line), **change}) for line in path.read_text().splitlines()]
    path.write_text("\n".join(lines))
    assert outcome(whole, "run", path) is None or list(change) in (["step"], ["epoch"])
    half = [
        line if place % 2 else other for place, (line, other) in enumerate(zip(lines, reversed(lines), strict=True))
    ]
    path.write_text("\n".join(half))
    outcome(whole, "run", path)


def test_a_long_record_out_of_order(whole: dict[str, Path], tmp_path: Path) -> None:
    """Whose time goes back by so much that its exponential is no number."""
    path = placed(whole, "run", tmp_path)
    lines = [{**line, "epoch": 10 * line["epoch"]} for line in map(json.loads, path.read_text().splitlines())]
    path.write_text("\n".join(map(json.dumps, lines * 100)))
    assert outcome(whole, "run", path) is not None


# ------------------------------------------------------------------------------------------------- the command line


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, whole: dict[str, Path]) -> Path:
    """A folder with a hostile file of every kind."""
    folder = tmp_path_factory.mktemp("hostile")
    content = whole["checkpoint"].read_bytes()
    (folder / "cut.pth").write_bytes(content[: len(content) // 2])
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 4
    (folder / "flipped.pth").write_bytes(flipped)
    (folder / "bomb.pth").write_bytes(torch_bytes({"model_state_dict": Bomb(folder / "canary")}))
    checkpoints.save(folder / "newer.pth", checkpoint_values(format_version=99))
    checkpoints.save(folder / "other.pth", checkpoint_values(model_state_dict={"a": torch.zeros(3)}))
    os.mkfifo(folder / "pipe.pth")
    os.mkfifo(folder / "pipe.npz")
    (folder / "folder.pth").mkdir()
    np.savez(folder / "objects.npz", grids=np.array([Bomb(folder / "canary")], object))
    (folder / "objects.npy").write_bytes(numpy_bytes(np.array([Bomb(folder / "canary")], object)))
    (folder / "grids.json").write_bytes(b"[" * 100_000)
    (folder / "large.toml").write_text("#" * 70_000)
    (folder / "nan.toml").write_text("[train]\nlr = nan\n")
    (folder / "latin.toml").write_bytes('description = "é"\n'.encode("latin1"))
    (folder / "deep.toml").write_text(".".join("a" * 90) + " = 1\n")
    (folder / "lines\nand\x1b[2J.toml").write_text("[train]\nepochs = 'x'\n")
    (folder / "latin.txt").write_bytes("x + é\n".encode("latin1"))
    (folder / "nothing.cfg").write_bytes(bytes(100))
    shutil.copytree(whole["run"].parent, folder / "run")
    (folder / "run" / "metrics.jsonl").write_bytes(b"\xff" * 100)
    (folder / "run" / "checkpoints").mkdir()
    (folder / "run" / "checkpoints" / "last.pth").write_bytes(content[:-1])
    return folder


COMMANDS = [
    *(
        f"evaluate --checkpoint {{}}/{name}.pth"
        for name in ("cut", "flipped", "bomb", "newer", "other", "pipe", "folder")
    ),
    *("sample --checkpoint {}/bomb.pth", "interpolate --checkpoint {}/cut.pth --from 1 --to 2"),
    "evaluate --checkpoint {whole} --data {}/pipe.npz",
    "evaluate --checkpoint {whole} --data {}/objects.npz",
    "evaluate --checkpoint {whole} --data ~nobody-of-this-name/x.npz",
    *(f"train --preset {{}}/{name}.toml --runs-dir {{}}/runs" for name in ("large", "nan", "latin", "deep")),
    "train --data {}/objects.npz --runs-dir {}/runs",
    "train --data {}/objects.npy --runs-dir {}/runs",
    "train --data {}/pipe.npz --runs-dir {}/runs",
    "train --data {}/grids.json --runs-dir {}/runs",
    "train --preset minimal --prod {}/objects.npy --masks {}/objects.npy --runs-dir {}/runs",
    "train --set train.lr=nan --runs-dir {}/runs",
    "train --set model.name=x --runs-dir {}/runs",
    "train --resume {}/run --runs-dir {}/runs",
    "data info --data {}/objects.npz",
    "data build --grammar {}/nothing.cfg --input {}/latin.txt --output {}/out.npz",
    "data build --grammar equations --input {}/latin.txt --output {}/out.npz",
    "presets show {}/deep.toml",
    "schedule-preview {}/nan.toml",
    "schedule-preview controlvae --run {}/run",
    "schedule-preview controlvae --run /dev/zero",
]


@pytest.mark.parametrize("line", COMMANDS)
def test_the_command_line_says_it_in_a_line(whole: dict[str, Path], hostile: Path, line: str) -> None:
    arguments = [word.replace("{whole}", str(whole["checkpoint"])).replace("{}", str(hostile)) for word in line.split()]
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"})
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    told = [text for text in result.stderr.splitlines() if not text.startswith("run ")]
    errors_ = [text for text in told if text.startswith("error: ")]
    assert len(errors_) == 1 and told.index(errors_[0]) >= len(told) - 2, result.stderr
    assert "Traceback" not in result.stderr and not result.stdout
    assert not (hostile / "canary").exists()


def test_a_run_with_a_pipe_for_its_record_is_damaged_and_no_wait(tmp_path: Path) -> None:
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "config.toml").touch()
    os.mkfifo(tmp_path / "run" / "metrics.jsonl")
    result = CliRunner().invoke(app, ["runs", "verify", str(tmp_path / "run")], env={"COLUMNS": "200"})
    assert result.exit_code == 1 and "a pipe, not a file" in result.stdout, result.output


def test_a_name_with_lines_in_it_is_told_in_one(hostile: Path) -> None:
    result = CliRunner().invoke(app, ["presets", "show", str(hostile / "lines\nand\x1b[2J.toml")])
    assert result.exit_code == 2 and "lines\\nand\\x1b[2J.toml" in result.stderr and "\x1b" not in result.stderr
