"""Procedural grids: a few small objects on black that do not touch."""

from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.data.arrays import SPLITS, Dataset, split_sizes, unseen
from arcvae_cli.data.symmetries import SIDE, SYMMETRIES, Grids, turn

Rows = NDArray[np.uint16]  # (N, 16): a mask of the canvas, one bit a cell, column c being bit c

OBJECTS, CELLS_LEAST, CELLS_MOST = 6, 2, 15
_CHUNK = 8192
_TRIES = 12  # at a place for an object; a crowded canvas goes without it
_WINDOW = 8  # side of the square that a blob grows in
_FAMILIES = np.array([1, 1, 5])  # kinds of objects, as `_patterns` orders them; blobs are one more: a quarter each


def build_shapes(size: int = 100_000, seed: int = 0) -> Dataset:
    """`size` different canvases of 1-6 objects (8-connected) of 2-15 cells in the colours 1-9, split 80/10/10."""
    sizes, stream = split_sizes(size), np.random.RandomState(seed)
    parts, seen = list[Grids](), set[bytes]()
    while len(seen) < size:
        grids = _canvases(min(_CHUNK, size), stream)
        parts.append(grids[unseen(grids, seen, size - len(seen))])
    return Dataset("shapes", np.concatenate(parts), np.repeat(np.arange(len(SPLITS), dtype=np.uint8), sizes))


def _canvases(count: int, stream: np.random.RandomState) -> Grids:
    """Canvases (count, 16, 16): on each a number of objects, each at the first free one of some places, if any."""
    rows, first, number = _patterns()
    offset = np.cumsum(_FAMILIES) - _FAMILIES
    grids = np.zeros((count, SIDE, SIDE), np.uint8)
    near = np.zeros((count, SIDE), np.uint16)  # the objects of each canvas and the cells around them
    wanted = stream.randint(1, OBJECTS + 1, count, dtype=np.int64)
    for placed_before in range(OBJECTS):
        waiting = np.flatnonzero(wanted > placed_before)
        for _ in range(_TRIES):
            if not waiting.size:
                break
            family = stream.randint(0, len(_FAMILIES) + 1, waiting.size, dtype=np.int64)
            drawn = np.minimum(family, len(_FAMILIES) - 1)  # the draws of a blob go unused: the stream stays simple
            kind = offset[drawn] + (stream.random_sample(waiting.size) * _FAMILIES[drawn]).astype(np.int64)
            objects = rows[first[kind] + (stream.random_sample(waiting.size) * number[kind]).astype(np.int64)]
            blob = family == len(_FAMILIES)
            objects[blob] = _blobs(int(blob.sum()), stream)
            height = (objects > 0).sum(axis=1)  # no object has an empty row or column inside
            width = _cells(np.bitwise_or.reduce(objects, axis=1)[:, None])[:, 0].sum(axis=1, dtype=np.int64)
            down = (stream.random_sample(waiting.size) * (SIDE + 1 - height)).astype(np.int64)
            right = (stream.random_sample(waiting.size) * (SIDE + 1 - width)).astype(np.uint16)
            colour = stream.randint(1, 10, waiting.size, dtype=np.int64).astype(np.uint8)
            placed = np.take_along_axis(objects, (np.arange(SIDE) - down[:, None]) % SIDE, axis=1) << right[:, None]
            free = ~(placed & near[waiting]).any(axis=1)
            there, placed = waiting[free], placed[free]
            wide = placed | (placed << np.uint16(1)) | (placed >> np.uint16(1))
            wide[:, 1:] |= wide[:, :-1]
            wide[:, :-1] |= wide[:, 1:]
            near[there] |= wide
            grids[there] += _cells(placed) * colour[free, None, None]
            waiting = waiting[~free]
    return grids


def _blobs(count: int, stream: np.random.RandomState) -> Rows:
    """Blobs of 2-15 cells, each cell joined to one before it by an edge, at random along the border."""
    grown = np.zeros((count, _WINDOW + 2, _WINDOW + 2), bool)  # with a margin, so that nothing rolls over
    grown[:, _WINDOW // 2, _WINDOW // 2] = True
    inside = np.pad(np.ones((_WINDOW, _WINDOW), bool), 1)
    cells = stream.randint(CELLS_LEAST, CELLS_MOST + 1, count, dtype=np.int64)
    for step in range(1, CELLS_MOST):
        border = np.logical_or.reduce([np.roll(grown, by, axis) for axis in (1, 2) for by in (1, -1)])
        border &= ~grown & inside
        weight = stream.random_sample(border.shape) * border
        chosen = weight.reshape(count, (_WINDOW + 2) ** 2).argmax(axis=1)
        grown.reshape(count, (_WINDOW + 2) ** 2)[np.arange(count), chosen] |= cells > step
    top = grown.any(axis=2).argmax(axis=1)
    left = grown.any(axis=1).argmax(axis=1).astype(np.uint16)
    rows = np.zeros((count, SIDE), np.uint16)
    rows[:, : _WINDOW + 2] = (grown << np.arange(_WINDOW + 2, dtype=np.uint16)).sum(axis=2, dtype=np.uint16)
    anchored: Rows = np.take_along_axis(rows, (np.arange(SIDE) + top[:, None]) % SIDE, axis=1) >> left[:, None]
    return anchored


def _cells(rows: Rows) -> Grids:
    """Bits (N, H) as cells (N, H, 16) of 0 and 1."""
    return ((rows[:, :, None] >> np.arange(SIDE, dtype=np.uint16)) & 1).astype(np.uint8)


@cache
def _patterns() -> tuple[Rows, NDArray[np.int64], NDArray[np.int64]]:
    """Every fixed object of a fitting size in every orientation, with the first row and the number of each kind."""
    sides = list(product(range(2, 9), range(2, 9)))
    lengths = range(2, CELLS_MOST + 1)
    kinds: list[list[list[str]]] = [
        [  # rectangles: filled, and hollow
            rows
            for high, wide in sides
            for rows in (["#" * wide] * high, ["#" * wide, *[f"#{'.' * (wide - 2)}#"] * (high - 2), "#" * wide])
        ],
        [  # lines: straight, and diagonal
            rows
            for length in lengths
            for rows in (["#" * length], ["." * row + "#" + "." * (length - row - 1) for row in range(length)])
        ],
        [["#".ljust(wide, ".")] * (high - 1) + ["#" * wide] for high, wide in sides],  # L
        [["#" * wide] + ["#".center(wide, ".")] * (high - 1) for high, wide in product(range(2, 9), (3, 5, 7, 9))],  # T
        [[*["#".center(n, ".")] * (n // 2), "#" * n, *["#".center(n, ".")] * (n // 2)] for n in (3, 5, 7)],  # plus
        [  # checkerboards, with a cell in the first corner and without
            [("#." * wide)[(row + first) % 2 :][:wide] for row in range(high)]
            for high, wide in product(range(2, 7), range(3, 9))
            for first in (0, 1)
        ],
        [  # zigzags: a stair, and a wave of two rows
            rows
            for length, wide in ((length, (length + 1) // 2) for length in lengths[2:])
            for rows in (
                [("." * row + "##")[1 : wide + 1].ljust(wide, ".") for row in range(length // 2 + 1)],
                [("#." * length)[:length], (".#" * length)[:length]],
            )
        ],
    ]
    found = []
    for masks in kinds:
        of_kind: dict[bytes, Rows] = {}
        for drawn, symmetry in product(masks, range(SYMMETRIES)):
            mask = np.array([[cell == "#" for cell in row] for row in drawn], np.uint8)
            if CELLS_LEAST <= int(mask.sum()) <= CELLS_MOST and max(mask.shape) <= SIDE:
                turned = turn(mask, symmetry)
                bits = np.zeros(SIDE, np.uint16)
                bits[: len(turned)] = turned @ (1 << np.arange(turned.shape[1]))
                of_kind.setdefault(bits.tobytes(), bits)
        found.append([*of_kind.values()])
    number = np.array([len(rows) for rows in found], np.int64)
    return np.concatenate(found), np.cumsum(number) - number, number
