"""The eight symmetries of a rectangle that stays in the top-left corner of the canvas, and colour permutations."""

from functools import cache

import numpy as np
from numpy.typing import NDArray

Grids = NDArray[np.uint8]

SIDE = 16
CELLS = SIDE * SIDE
COLOURS = 10
SYMMETRIES = 8


def turn(grid: Grids, symmetry: int) -> Grids:
    """A grid (height, width) under symmetry 0-7: `symmetry % 4` quarter turns, then from 4 on a left-right flip."""
    turned = np.rot90(grid, symmetry % 4)
    return np.fliplr(turned) if symmetry >= 4 else turned


@cache
def gather_table() -> Grids:
    """Where each cell comes from, by (height - 1, width - 1, symmetry, cell): (16, 16, 8, 256) uint8.

    Every row is a permutation of the canvas: background cells outside the rectangle are mapped to each other.
    """
    cells = np.arange(CELLS, dtype=np.uint8).reshape(SIDE, SIDE)
    table = np.empty((SIDE, SIDE, SYMMETRIES, SIDE, SIDE), np.uint8)
    for height, width, symmetry in np.ndindex(table.shape[:3]):
        turned = turn(cells[: height + 1, : width + 1], symmetry)
        inside, reached = np.zeros((2, SIDE, SIDE), bool)
        inside[: height + 1, : width + 1] = reached[: turned.shape[0], : turned.shape[1]] = True
        target = table[height, width, symmetry]
        target[reached], target[~reached] = turned.ravel(), cells[~inside]
    return table.reshape(SIDE, SIDE, SYMMETRIES, CELLS)


def transform(grids: Grids, shape: Grids, symmetry: NDArray[np.int64], colours: Grids) -> tuple[Grids, Grids]:
    """Turn the rectangles (N, 2) of grids (N, 16, 16) by a symmetry each (N,), and recolour them by (N, 10)."""
    source = gather_table()[shape[:, 0] - 1, shape[:, 1] - 1, symmetry]
    turned = np.take_along_axis(grids.reshape(-1, CELLS), source, axis=1)
    turned = np.take_along_axis(colours, turned, axis=1)
    swapped = np.where(symmetry[:, None] % 2 == 1, shape[:, ::-1], shape)  # an odd number of quarter turns
    return turned.reshape(-1, SIDE, SIDE), swapped
