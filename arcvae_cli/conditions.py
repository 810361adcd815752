"""The attributes of a grid (16, 16) that a conditional model takes: measured, parsed from the command line, checked."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.errors import InputError, nearest

Grids = NDArray[np.uint8]
Values = NDArray[np.int64]

COLOURS = ("black", "blue", "red", "green", "yellow", "grey", "magenta", "orange", "azure", "maroon")
OBJECT_CAP = 20  # objects counted in a grid at most: in noise every cell is one
NOT_GIVEN = -1  # in place of a value: left open
CHUNK = 8192  # grids measured at once: some 20 MB, and faster than all together


class Attribute(NamedTuple):
    """A condition with the values 0 to `size - 1`, where a size of 2 means no and yes; `text` describes it."""

    name: str
    size: int
    text: str

    @property
    def values(self) -> tuple[str, ...]:
        return ("no", "yes") if self.size == 2 else tuple(map(str, range(self.size)))


ATTRIBUTES = (
    Attribute("height", 17, "rows down to the last that is not all black"),
    Attribute("width", 17, "columns to the last that is not all black"),
    Attribute("colours", 10, "how many of the colours 1-9 occur"),
    Attribute("colour_0", 2, "black occurs within height x width"),
    *(Attribute(f"colour_{number}", 2, f"{COLOURS[number]} occurs") for number in range(1, 10)),
    Attribute("objects", OBJECT_CAP + 1, f"4-connected areas of one colour; {OBJECT_CAP} is {OBJECT_CAP} or more"),
    Attribute("symmetry_lr", 2, "left-right symmetry of the non-black cells"),
    Attribute("symmetry_ud", 2, "up-down symmetry of the non-black cells"),
)
"""The conditions, in the order of their columns. A blank grid has 0 everywhere: it counts as not symmetric."""

PLACE = {attribute.name: column for column, attribute in enumerate(ATTRIBUTES)}  # columns of the attributes


def attributes(grids: Grids) -> Values:
    """(n, A) values of grids (n, 16, 16), in the order of `ATTRIBUTES`: about a second for 100,000."""
    parts = [np.empty((0, len(ATTRIBUTES)), np.int64)]
    for start in range(0, len(grids), CHUNK):
        some = grids[start : start + CHUNK]
        non_black, count, side = some > 0, len(some), some.shape[1]
        extents, symmetric = [], []
        for axis in (1, 2):  # rows, columns
            lines = np.logical_or.reduce(non_black, axis=3 - axis)  # (n, 16), whether each has a non-black cell
            extent = np.where(lines.any(axis=1), side - lines[:, ::-1].argmax(axis=1), 0)
            # the mirror image of each line; black lines outside the extent map to one another
            image = ((lines.argmax(axis=1) + extent - 1)[:, None] - np.arange(side)) % side
            mirrored = np.take_along_axis(some, np.expand_dims(image, 3 - axis), axis=axis)
            symmetric.append((extent > 0) & (mirrored == some).all(axis=(1, 2)))
            extents.append(extent)
        bits = np.left_shift(1, some.reshape(count, -1), dtype=np.uint16)  # bit c: colour c
        seen = np.bitwise_or.reduce(bits, axis=1)
        present = (seen[:, None] >> np.arange(1, 10, dtype=np.uint16)) & 1  # (n, 9)
        black = non_black.sum(axis=(1, 2)) < extents[0] * extents[1]
        objects = np.minimum(np.bincount(objects_of(some)[0], minlength=count), OBJECT_CAP)
        columns = [*extents, present.sum(axis=1), black, present, objects, *symmetric[::-1]]
        parts.append(np.column_stack(columns).astype(np.int64))
    return np.concatenate(parts)


def objects_of(grids: Grids) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Every object (4-connected, of one colour other than 0) of grids (n, H, W): index of its grid, size in cells."""
    from scipy import ndimage  # slow to import, and needed for conditional models only

    within_a_grid = np.pad(ndimage.generate_binary_structure(2, 1)[None], ((1, 1), (0, 0), (0, 0)))
    non_black, (count, height, width) = grids > 0, grids.shape
    linked = np.zeros((count, 2 * height - 1, 2 * width - 1), np.bool_)  # cells, and links between them
    linked[:, ::2, ::2] = non_black
    linked[:, ::2, 1::2] = non_black[:, :, 1:] & (grids[:, :, 1:] == grids[:, :, :-1])
    linked[:, 1::2, ::2] = non_black[:, 1:] & (grids[:, 1:] == grids[:, :-1])
    labels, objects = ndimage.label(linked, within_a_grid)
    cells = labels[:, ::2, ::2][non_black] - 1
    owners = np.empty(objects, np.intp)
    owners[cells] = np.nonzero(non_black)[0]
    return owners, np.bincount(cells, minlength=objects)


def parse(texts: Sequence[str]) -> dict[str, int]:
    """The values of repeated `--condition key=value`, by the attribute's name; InputError for an invalid one."""
    keys = {one.name: {text: {one.name: number} for number, text in enumerate(one.values)} for one in ATTRIBUTES}
    keys |= {name: keys[f"colour_{number}"] for number, name in enumerate(COLOURS)}
    one_way, other = keys["symmetry_lr"], keys["symmetry_ud"]  # lr and ud leave the other mirror open
    both = {text: one_way[value] | other[value] for text, value in (("both", "yes"), ("none", "no"))}
    keys["symmetry"] = {"lr": one_way["yes"], "ud": other["yes"], **both}
    given: dict[str, int] = {}
    for text in texts:
        key, _, value = (part.strip().lower() for part in text.partition("="))
        if key not in keys:
            fix = nearest(key, keys) + "`arcvae data info --conditions` lists them"
            raise InputError(f"--condition {text}: unknown condition {key!r}", fix)
        if value not in keys[key]:
            raise InputError(f"--condition {text}: invalid value", f"use {key}={'|'.join(keys[key])}")
        for name, number in keys[key][value].items():
            if given.setdefault(name, number) != number:
                raise InputError(f"--condition {text}: {name} is given two values", "give each condition once")
    return given


def written(given: Mapping[str, int]) -> str:
    """Conditions as a person would give them: "colours=3, symmetry_lr=yes"."""
    return ", ".join(f"{name}={ATTRIBUTES[PLACE[name]].values[value]}" for name, value in given.items())


def encode(given: Mapping[str, int], n: int) -> Values:
    """(n, A) int64: the conditions in each row, and NOT_GIVEN elsewhere."""
    return np.tile(np.array([given.get(name, NOT_GIVEN) for name in PLACE], np.int64), (n, 1))


def satisfies(values: Values, given: Mapping[str, int]) -> NDArray[np.bool_]:
    """(n,) whether grids with these attributes (n, A) satisfy the conditions."""
    found = [np.ones(len(values), np.bool_), *(values[:, PLACE[name]] == value for name, value in given.items())]
    return np.logical_and.reduce(found)  # type: ignore[no-any-return]
