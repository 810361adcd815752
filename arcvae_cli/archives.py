"""What the file of a checkpoint is made of, proved before PyTorch reads it.

`torch.save` writes a zip archive of stored records: a pickle, and the bytes of each tensor. With `weights_only=True`
`torch.load` runs no code of a file, but it compares no checksum, believes the pickle about the sizes of the records,
and sets memory aside as the pickle asks for it (`torch.FloatStorage(10**12)`). So all of this is checked here, and
whatever `torch.save` never writes is refused:

- every byte of the archive has its place: records one after another from the first byte, the directory, the end;
- nothing is compressed, and every record has its checksum;
- the pickle makes dictionaries, lists, tuples, text, numbers and tensors, of the opcodes that protocol 2 takes for it;
- every tensor lies within its storage, has no more elements than that, and the storage is as large as its record.
"""

from __future__ import annotations

import io
import math
import pickletools
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, TypeVar

MOST_BYTES = 2**34
"""The largest checkpoint that is read."""

MOST_RECORDS = 50_000
MOST_PICKLE_BYTES = 2**29  # a line of text for every epoch of a run
MOST_OPCODES = 2_000_000  # some seconds
MOST_VALUES = 1_000_000  # counted as often as they are reached
DEEPEST = 50
MOST_DIMENSIONS = 16

_RECORD = re.compile(
    r"[^/]+/(data\.pkl|data/\d+|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id)"
)

STORAGES = {
    "DoubleStorage": 8,
    "FloatStorage": 4,
    "HalfStorage": 2,
    "BFloat16Storage": 2,
    "LongStorage": 8,
    "IntStorage": 4,
    "ShortStorage": 2,
    "CharStorage": 1,
    "ByteStorage": 1,
    "BoolStorage": 1,
    "ComplexDoubleStorage": 16,
    "ComplexFloatStorage": 8,
}
"""Bytes of an element, by the name that a pickle has for the type of a storage in `torch`."""


class ForeignError(ValueError):
    """The file is no archive as `torch.save` writes it: of something else, or cut short."""


class DamagedError(ValueError):
    """It was one, and its bytes are no longer what they were."""


def check(file: BinaryIO) -> None:
    """Prove that `torch.load` makes plain values of a file, within its size, and the ones that were saved.

    Raises:
        ForeignError: it is something else.
        DamagedError: a record is not what its checksum says.

    """
    end = file.seek(0, 2)
    if end > MOST_BYTES:
        raise ForeignError(f"over {MOST_BYTES >> 30} GiB")
    try:
        directory = _directory(file, end)
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            sizes = _records(archive, file, directory)
            if (damaged := archive.testzip()) is not None:
                raise DamagedError(f"the checksum of {damaged} fails")
            prefix = archive.infolist()[0].filename.partition("/")[0]
            pickled = archive.read(f"{prefix}/data.pkl")
    except (zipfile.BadZipFile, struct.error, EOFError, LookupError, NotImplementedError, UnicodeError) as error:
        raise ForeignError(f"cut short, or something else: {error}") from error
    storages = {name.removeprefix(f"{prefix}/data/"): size for name, size in sizes.items()}
    Walk(storages).through(pickled)


# ------------------------------------------------------------------------------------------------------- the archive

_END = struct.Struct(
    "<"
    "4sQ2H2L4Q"  # the end of the directory, in 64 bits
    "4sLQL"  # where that is
    "4s4H2LH"  # the end of the directory, in 32 bits
)


def _directory(file: BinaryIO, end: int) -> int:
    """Where the directory begins, on which all three records at the end of the archive agree. BadZipFile otherwise."""
    start = end - _END.size
    if start < 0:
        raise zipfile.BadZipFile("too short")
    file.seek(start)
    fields = _END.unpack(file.read(_END.size))
    count, size, offset = fields[6], fields[8], fields[9]
    expected = (
        *(b"PK\6\6", 44, *fields[2:4], 0, 0, count, count, size, offset),
        *(b"PK\6\7", 0, start, 1),
        *(b"PK\5\6", 0, 0, *[min(count, 0xFFFF)] * 2, min(size, 0xFFFFFFFF), min(offset, 0xFFFFFFFF), 0),
    )
    if fields != expected or offset + size != start:
        raise zipfile.BadZipFile("its end is not that of an archive of torch.save")
    if not 0 < count <= MOST_RECORDS or size > 1024 * count:
        raise zipfile.BadZipFile(f"{count} records")
    return int(offset)


def _records(archive: zipfile.ZipFile, file: BinaryIO, directory: int) -> dict[str, int]:
    """Names and sizes of the records, one after another from 0 to the directory. BadZipFile for a gap, or others."""
    sizes: dict[str, int] = {}
    place = 0
    for record in archive.infolist():
        if _RECORD.fullmatch(record.filename) is None or record.filename in sizes:
            raise zipfile.BadZipFile(f"a record {record.filename[:80]!r}")
        stored = record.compress_type == zipfile.ZIP_STORED and record.compress_size == record.file_size
        described = record.flag_bits == 0x808  # checksum and sizes follow the content, in 16 bytes, or 24 of zip64
        flags = described or record.flag_bits == 0x800
        # PyTorch takes a record with the attribute of a folder to be empty: its tensor is what the memory held before
        others = record.external_attr | record.internal_attr | record.volume | len(record.comment)
        if not stored or not flags or others or record.header_offset != place:
            raise zipfile.BadZipFile(f"the record {record.filename} is not as torch.save writes one")
        if record.filename.endswith("/data.pkl") and record.file_size > MOST_PICKLE_BYTES:
            raise zipfile.BadZipFile(f"{record.file_size >> 20} MB of pickle")
        sizes[record.filename] = record.file_size
        file.seek(place)
        header = file.read(30)
        if len(header) < 30 or header[:4] != b"PK\3\4":
            raise zipfile.BadZipFile(f"the record {record.filename} does not begin where it should")
        place += 30 + sum(struct.unpack("<2H", header[26:])) + record.file_size
        if described:
            place += 16 if record.file_size < 0xFFFFFFFF else 24
    if place != directory:
        raise zipfile.BadZipFile("something stands between its records")
    if len({name.partition("/")[0] for name in sizes}) != 1:
        raise zipfile.BadZipFile("records of several archives")
    return sizes


# -------------------------------------------------------------------------------------------------------- the pickle


@dataclass(eq=False, slots=True)
class _Made:
    """What the pickle makes, without making it.

    `kind`: global, storage, tensor, tuple, list, dict, or "constant" for a number, text and None. `content`: the name
    of a global, the number of elements of a storage, the items of a tuple, the keys of a dictionary, the constant.
    `plain`: whether it may stand among values, as what tensors are made of may not. `size`, `depth`: of all it holds.
    `closed`: it stands in something else, and holds what it will ever hold.
    """

    kind: str
    content: Any = None
    plain: bool = True
    size: int = 1
    depth: int = 0
    closed: bool = False


_TRUTH = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_CONSTANTS = (*_TRUTH, "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE")
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_EMPTY = {"EMPTY_LIST": "list", "EMPTY_DICT": "dict"}
_REMEMBERED = ("BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET")
_OTHERS = ("PROTO", "STOP", "MARK", "TUPLE", "GLOBAL", "BINPERSID", "REDUCE", "BUILD")
_FILLED = ("APPEND", "APPENDS", "SETITEM", "SETITEMS")
_ALLOWED = {*_CONSTANTS, *_TUPLES, *_EMPTY, *_REMEMBERED, *_OTHERS, *_FILLED}
_OPCODES = {opcode.code.encode("latin1"): opcode for opcode in pickletools.opcodes}
_ORDERED, _REBUILD = "collections OrderedDict", "torch._utils _rebuild_tensor_v2"


@dataclass
class Walk:
    """Goes through a pickle as its machine would. `storages`: bytes of each record of a tensor, by its key."""

    storages: Mapping[str, int]
    stack: list[_Made | None] = field(default_factory=list)  # None is a mark
    memo: dict[int, _Made] = field(default_factory=dict)

    def through(self, pickled: bytes) -> None:
        """ForeignError where it does anything but make a dictionary of plain values."""
        stream = io.BytesIO(pickled)
        try:
            for _ in range(MOST_OPCODES):
                opcode = _OPCODES[stream.read(1)]
                if opcode.name not in _ALLOWED:
                    raise ForeignError(f"the opcode {opcode.name}")
                self.take(opcode.name, opcode.arg and opcode.arg.reader(stream))
                if opcode.name == "STOP":
                    break
            else:
                raise ForeignError(f"over {MOST_OPCODES:,} steps of pickle")
        except ForeignError:
            raise
        except (ValueError, LookupError) as error:
            raise ForeignError(f"no pickle: {error}") from error
        if len(self.stack) != 1 or self.stack[0] is None or self.stack[0].kind != "dict":
            raise ForeignError("no dictionary")

    def take(self, name: str, argument: Any) -> None:
        """One step."""
        if name in _CONSTANTS:
            made = _Made("constant", _TRUTH.get(name, argument))
            if name == "BINUNICODE":
                made.size += len(argument) // 100
            self.stack.append(made)
        elif name == "BINGET" or name == "LONG_BINGET":
            made = self.memo[argument]
            if made.kind in ("list", "dict") and not made.closed:
                raise ForeignError("something that holds itself")
            self.stack.append(made)
        elif name == "BINPUT" or name == "LONG_BINPUT":
            self.memo[argument] = self.top()
        elif name == "MARK":
            self.stack.append(None)
        elif name in _EMPTY:
            self.stack.append(_Made(_EMPTY[name], []))
        elif name in _TUPLES:
            self.make_tuple([self.pop() for _ in range(_TUPLES[name])][::-1])
        elif name == "TUPLE":
            self.make_tuple(self.to_mark())
        elif name == "GLOBAL":
            if argument not in (_ORDERED, _REBUILD) and argument.removeprefix("torch ") not in STORAGES:
                raise ForeignError(f"asks for {argument[:80]!r}")
            self.stack.append(_Made("global", argument, plain=False))
        elif name == "BINPERSID":
            self.stack.append(self.storage(self.pop()))
        elif name == "REDUCE":
            arguments, function = self.pop(), self.pop()
            self.stack.append(self.called(function, arguments))
        elif name == "APPEND":
            self.put("list", [self.pop()])
        elif name == "APPENDS":
            self.put("list", self.to_mark())
        elif name == "SETITEM":
            self.put_keys([self.pop(), self.pop()][::-1])
        elif name == "SETITEMS":
            self.put_keys(self.to_mark())
        elif name == "BUILD":  # of a state_dict, which keeps the versions of its modules as an attribute
            state = self.pop()
            if state.kind != "dict" or state.content != ["_metadata"]:
                raise ForeignError("an object with a state")
            self.put("dict", [state])
        elif name == "PROTO" and argument != 2:
            raise ForeignError(f"protocol {argument}")

    def top(self) -> _Made:
        """What is on the stack."""
        if self.stack[-1] is None:
            raise ForeignError("a mark in the place of a value")
        return self.stack[-1]

    def pop(self) -> _Made:
        """What was on the stack."""
        made = self.top()
        self.stack.pop()
        return made

    def to_mark(self) -> list[_Made]:
        """What was on the stack above its last mark."""
        items: list[_Made] = []
        while (made := self.stack.pop()) is not None:
            items.append(made)
        return items[::-1]

    def hold(self, holder: _Made, items: list[_Made]) -> None:
        """Let `holder` hold these too."""
        for item in items:
            item.closed = True
            holder.size += item.size
            holder.depth = max(holder.depth, item.depth + 1)
        if holder.size > MOST_VALUES or holder.depth > DEEPEST:
            raise ForeignError(f"over {MOST_VALUES:,} values, or nested over {DEEPEST} levels")

    def make_tuple(self, items: list[_Made]) -> None:
        """Put a tuple on the stack."""
        made = _Made("tuple", items, plain=all(item.plain for item in items))
        self.hold(made, items)
        self.stack.append(made)

    def put(self, kind: str, items: list[_Made]) -> None:
        """Put items into the list or the dictionary on the stack."""
        holder = self.top()
        if holder.kind != kind or holder.closed or not all(item.plain for item in items):
            raise ForeignError(f"no {kind} of plain values")
        self.hold(holder, items)

    def put_keys(self, items: list[_Made]) -> None:
        """Put keys, each with its value after it, into the dictionary on the stack."""
        keys = [key.content for key in items[::2]]
        if len(items) % 2 or not all(type(key) in (str, int) for key in keys):
            raise ForeignError("a key that is neither text nor a whole number")
        self.put("dict", items)
        self.top().content.extend(keys)

    def storage(self, made: _Made) -> _Made:
        """The storage that a pickle refers to, of a size that its record has."""
        word, kind, key, place, elements = self.items(made, 5)
        name = kind.content.removeprefix("torch ") if kind.kind == "global" else None
        if constant(word, str) != "storage" or name not in STORAGES or not constant(place, str):
            raise ForeignError("a reference that is none to a storage")
        count = whole(elements)
        if self.storages.get(constant(key, str)) != count * STORAGES[name]:
            raise ForeignError(f"a storage of {count} elements that its record does not hold")
        return _Made("storage", count, plain=False)

    def called(self, function: _Made, arguments: _Made) -> _Made:
        """What a call gives: an empty dictionary, or a tensor within its storage."""
        if function.kind == "global" and function.content == _ORDERED:
            self.items(arguments, 0)
            return _Made("dict", [])
        if function.kind != "global" or function.content != _REBUILD:
            raise ForeignError("a call of something else than what makes a tensor")
        storage, offset, size, stride, gradient, hooks = self.items(arguments, 6)
        constant(gradient, bool)
        if storage.kind != "storage" or hooks.kind != "dict" or hooks.content:
            raise ForeignError("a tensor of something else than a storage")
        sizes, strides = ([whole(one) for one in self.items(made)] for made in (size, stride))
        if len(sizes) != len(strides) or len(sizes) > MOST_DIMENSIONS:
            raise ForeignError("a tensor without a shape")
        first, elements = whole(offset), math.prod(sizes)
        last = first + sum((count - 1) * step for count, step in zip(sizes, strides, strict=True))
        if elements > storage.content or (elements and last >= storage.content):
            raise ForeignError("a tensor that is larger than its storage")
        return _Made("tensor")

    def items(self, made: _Made, count: int | None = None) -> list[_Made]:
        """The items of a tuple, of which there are so many."""
        if made.kind != "tuple" or count not in (None, len(made.content)):
            raise ForeignError("arguments that nothing takes")
        items: list[_Made] = made.content
        return items


_T = TypeVar("_T")


def constant(made: _Made, kind: type[_T]) -> _T:
    """The constant of this very type."""
    if made.kind != "constant" or type(made.content) is not kind:
        raise ForeignError(f"{made.kind} in the place of {kind.__name__}")
    found: _T = made.content
    return found


def whole(made: _Made) -> int:
    """A number of elements."""
    number = constant(made, int)
    if not 0 <= number < 2**62:
        raise ForeignError(f"a size of {number}")
    return number
