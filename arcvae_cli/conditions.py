"""The attributes of a grid (16, 16) that a conditional model takes: measured, parsed from the command line, checked."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.errors import InputError

Grids = NDArray[np.uint8]
Values = NDArray[np.int64]
Lines = NDArray[np.bool_]  # of each grid, whether each of its rows or columns is lit: (n, 16)

COLOURS = ("black", "blue", "red", "green", "yellow", "grey", "magenta", "orange", "azure", "maroon")
OBJECT_CAP = 20  # objects counted in a grid at most: in noise every cell is one
NOT_GIVEN = -1  # in place of a value: left to the model
FLAG = "--condition"
_CHUNK = 8192  # grids measured at once: some 20 MB, and faster than all together
_LISTED = "`arcvae data info --conditions` lists them"


@dataclass(frozen=True, slots=True)
class Attribute:
    """A condition with the values 0 to `size - 1`, where a size of 2 means no and yes; `text` describes it."""

    name: str
    size: int
    text: str

    @property
    def values(self) -> tuple[str, ...]:
        return ("no", "yes") if self.size == 2 else tuple(map(str, range(self.size)))

    @property
    def allowed(self) -> str:
        return "yes or no" if self.size == 2 else f"0 to {self.size - 1}"


ATTRIBUTES = (
    Attribute("height", 17, "rows down to the last that is not all black"),
    Attribute("width", 17, "columns to the last that is not all black"),
    Attribute("colours", 10, "how many of the colours 1-9 occur"),
    Attribute("colour_0", 2, "black occurs within height x width"),
    *(Attribute(f"colour_{number}", 2, f"{COLOURS[number]} occurs") for number in range(1, 10)),
    Attribute("objects", OBJECT_CAP + 1, f"4-connected areas of one colour; {OBJECT_CAP} is {OBJECT_CAP} or more"),
    Attribute("symmetry_lr", 2, "what is not black is its left-right mirror image"),
    Attribute("symmetry_ud", 2, "what is not black is its up-down mirror image"),
)
"""The conditions, in the order of their columns. A blank grid has 0 everywhere: it counts as not symmetric."""

PLACE = {attribute.name: column for column, attribute in enumerate(ATTRIBUTES)}  # columns of the attributes

SYMMETRY = {
    "lr": {"symmetry_lr": 1},
    "ud": {"symmetry_ud": 1},
    "both": {"symmetry_lr": 1, "symmetry_ud": 1},
    "none": {"symmetry_lr": 0, "symmetry_ud": 0},
}  # what `symmetry=` stands for: lr and ud ask for one mirror and leave the other open

_ALIASES = {name: f"colour_{number}" for number, name in enumerate(COLOURS)}
_NAMED = tuple(f"colour_{number}" for number in range(1, 10))
_KEYS = (*PLACE, "symmetry", *_ALIASES)


def attributes(grids: Grids) -> Values:
    """(n, A) values of grids (n, 16, 16), in the order of `ATTRIBUTES`: about a second for 100,000."""
    parts = [_measured(grids[start : start + _CHUNK]) for start in range(0, len(grids), _CHUNK)]
    return np.concatenate([np.empty((0, len(ATTRIBUTES)), np.int64), *parts])


def _measured(grids: Grids) -> Values:
    count = len(grids)
    lit = grids > 0
    rows: Lines = np.logical_or.reduce(lit, axis=2)
    columns: Lines = np.logical_or.reduce(lit, axis=1)
    height, width = _reach(rows), _reach(columns)
    seen = np.bitwise_or.reduce(np.left_shift(1, grids.reshape(count, -1), dtype=np.uint16), axis=1)  # bit c: colour c
    present = (seen[:, None] >> np.arange(1, 10, dtype=np.uint16)) & 1  # (n, 9)
    blank = height == 0
    return np.column_stack(
        [
            height,
            width,
            present.sum(axis=1),
            lit.sum(axis=(1, 2)) < height * width,
            present,
            np.minimum(np.bincount(objects_of(grids)[0], minlength=count), OBJECT_CAP),
            ~blank & (np.take_along_axis(grids, _mirror(columns, width)[:, None, :], axis=2) == grids).all(axis=(1, 2)),
            ~blank & (np.take_along_axis(grids, _mirror(rows, height)[:, :, None], axis=1) == grids).all(axis=(1, 2)),
        ]
    ).astype(np.int64)


def _reach(lines: Lines) -> Values:
    """How many of the lines (n, 16) there are up to the last lit one, 0 for none."""
    return np.where(lines.any(axis=1), lines.shape[1] - lines[:, ::-1].argmax(axis=1), 0)


def _mirror(lines: Lines, reach: Values) -> Values:
    """The line (n, 16) that is the mirror image of each line; the black lines outside the lit extent map there."""
    side = lines.shape[1]
    mirrored: Values = ((lines.argmax(axis=1) + reach - 1)[:, None] - np.arange(side)) % side
    return mirrored


def objects_of(grids: Grids) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Every object (4-connected, of one colour other than 0) of grids (n, H, W): index of its grid, size in cells."""
    from scipy import sparse  # a quarter of a second, which a model that takes no conditions does without
    from scipy.sparse import csgraph

    nothing = np.empty(0, np.intp)
    owners, sizes = [nothing], [nothing]
    for start in range(0, len(grids), _CHUNK):
        some = grids[start : start + _CHUNK]
        lit = some > 0
        nodes = int(lit.sum())
        number = (np.cumsum(lit.ravel(), dtype=np.int32) - 1).reshape(some.shape)
        across = (some[:, :, 1:] == some[:, :, :-1]) & lit[:, :, 1:]
        down = (some[:, 1:] == some[:, :-1]) & lit[:, 1:]
        ends = (
            np.concatenate([number[:, :, 1:][across], number[:, 1:][down]]),
            np.concatenate([number[:, :, :-1][across], number[:, :-1][down]]),
        )
        edges = sparse.coo_matrix((np.ones(len(ends[0]), np.bool_), ends), shape=(nodes, nodes))
        count, labels = csgraph.connected_components(edges, directed=False)
        owner = np.empty(count, np.intp)
        owner[labels] = np.flatnonzero(lit) // some[0].size + start  # whichever cell comes last: all are of one grid
        owners.append(owner)
        sizes.append(np.bincount(labels, minlength=count))
    return np.concatenate(owners), np.concatenate(sizes)


def parse(texts: Sequence[str]) -> dict[str, int]:
    """The values of repeated `--condition key=value` by the attribute's name; InputError for what cannot be."""
    given: dict[str, int] = {}
    for text in texts:
        for name, value in _read(text):
            if name in given:
                raise InputError(f"{FLAG} {text}: {name} is given twice", "give each condition once")
            given[name] = value
    if (clash := contradiction(given)) is not None:
        raise InputError(f"{FLAG} {', '.join(texts)}: no grid is like that, {clash}", "leave one of them out")
    return given


def _read(text: str) -> Iterator[tuple[str, int]]:
    """Name and value of each attribute that one `key=value` sets."""
    key, _, value = (part.strip().lower() for part in text.partition("="))
    if key not in _KEYS:
        near = "".join(f"did you mean {name}? " for name in difflib.get_close_matches(key, _KEYS, n=1))
        raise InputError(f"{FLAG} {text}: there is no condition {key!r}", near + _LISTED)
    if key == "symmetry":
        if value not in SYMMETRY:
            raise InputError(f"{FLAG} {text}: no value of symmetry", f"use symmetry={'|'.join(SYMMETRY)}")
        yield from SYMMETRY[value].items()
        return
    attribute = ATTRIBUTES[PLACE[_ALIASES.get(key, key)]]
    if value not in attribute.values:
        raise InputError(f"{FLAG} {text}: no value of {key}", f"use {key}=VALUE, which is {attribute.allowed}")
    yield attribute.name, attribute.values.index(value)


def contradiction(given: Mapping[str, int]) -> str | None:
    """Why no grid can have these values; None where no contradiction is known."""
    colours, objects = given.get("colours"), given.get("objects")
    present = [name for name in _NAMED if given.get(name) == 1]
    absent = [name for name in _NAMED if given.get(name) == 0]
    blank = [f"{name}=0" for name in ("height", "width", "colours", "objects") if given.get(name) == 0]
    blank += ["no colour of 1-9"] * (len(absent) == 9)
    lit = next((name for name, value in given.items() if value > 0), None)
    if blank and lit:
        return f"{blank[0]} is a blank grid and {written({lit: given[lit]})} is none"
    for extent, mirror in (("height", "symmetry_ud"), ("width", "symmetry_lr")):
        if given.get(extent) == 1 and given.get(mirror) == 0:
            return f"{extent}=1 is its own mirror image and {written({mirror: 0})} is asked for"
    if colours is not None and not len(present) <= colours <= 9 - len(absent):
        return f"colours={colours} and {written({name: given[name] for name in present or absent})} are asked for"
    fewest = max(colours or 0, len(present))
    if objects is not None and objects < fewest:
        return f"objects={objects} and {fewest} colours, each of which is an object"
    cells = given.get("height", 16) * given.get("width", 16)
    needed = max(fewest, objects or 0) + given.get("colour_0", 0)
    return f"height x width are {cells} cells and {needed} are needed" if 0 < cells < needed else None


def written(given: Mapping[str, int]) -> str:
    """Conditions as a person would give them: "colours=3, symmetry_lr=yes"."""
    return ", ".join(f"{name}={ATTRIBUTES[PLACE[name]].values[value]}" for name, value in given.items())


def encode(given: Mapping[str, int], n: int) -> Values:
    """(n, A) int64: the conditions in each row, and NOT_GIVEN elsewhere."""
    row = np.full(len(ATTRIBUTES), NOT_GIVEN, np.int64)
    for name, value in given.items():
        row[PLACE[name]] = value
    return np.tile(row, (n, 1))


def satisfies(values: Values, given: Mapping[str, int]) -> NDArray[np.bool_]:
    """(n,) whether grids with these attributes (n, A) are all that was asked for."""
    columns = [PLACE[name] for name in given]
    result: NDArray[np.bool_] = (values[:, columns] == np.array(list(given.values()), np.int64)).all(axis=1)
    return result
