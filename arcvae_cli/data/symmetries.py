"""The eight symmetries of a rectangle that stays in the top-left corner of the canvas, and colour permutations."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.canvas import ARC, Canvas

Grids = NDArray[np.uint8]

SIDE = ARC.height
COLOURS = ARC.classes
SYMMETRIES = 8


def turn(grid: NDArray[Any], symmetry: int) -> NDArray[Any]:
    """A grid (height, width) under symmetry 0-7: `symmetry % 4` quarter turns, then from 4 on a left-right flip."""
    turned = np.rot90(grid, symmetry % 4)
    return np.fliplr(turned) if symmetry >= 4 else turned


def inside(shape: NDArray[Any], canvas: Canvas) -> NDArray[np.bool_]:
    """(N, H, W) whether each cell of the canvas is within rectangles (N, 2) in its corner."""
    rows, columns = np.arange(canvas.height), np.arange(canvas.width)
    return (rows < shape[:, :1])[:, :, None] & (columns < shape[:, 1:])[:, None, :]


def sources(shape: NDArray[Any], symmetry: NDArray[np.int64], canvas: Canvas) -> NDArray[np.int64]:
    """Where each cell comes from when rectangles (N, 2) are turned by a symmetry each (N,): (N, cells).

    Symmetries 1, 3, 5, 7 of a rectangle that does not fit the canvas once turned become 0, 2, 4, 6. Cells outside
    come from the last cell of the canvas, which is outside of every rectangle but the canvas itself.
    """
    height, width = shape.astype(np.int64).T
    across = (symmetry % 2 == 1) & (width <= canvas.height) & (height <= canvas.width)
    symmetry = symmetry - symmetry % 2 * ~across
    tall, wide = np.where(across, (width, height), (height, width))
    # where rows and columns of the result run in the source, backwards from their ends or not
    rows = np.abs(((symmetry + 1) // 2 % 2 * (tall - 1))[:, None] - np.arange(canvas.height))
    columns = np.abs(((symmetry + 2) // 4 % 2 * (wide - 1))[:, None] - np.arange(canvas.width))
    far, near = np.where(across, ([1], [canvas.width]), ([canvas.width], [1]))  # cells from one to the next
    moved = (rows * far[:, None])[:, :, None] + (columns * near[:, None])[:, None, :]
    moved = np.where(inside(np.stack([tall, wide], axis=1), canvas), moved, canvas.cells - 1)
    return moved.reshape(-1, canvas.cells)


def transform(
    grids: Grids, shape: Grids, symmetry: NDArray[np.int64], colours: Grids, canvas: Canvas = ARC
) -> tuple[Grids, Grids]:
    """Turn the rectangles (N, 2) of grids (N, H, W) by a symmetry each (N,), and recolour them by (N, classes).

    The canvas is square. Returns the grids, and their shapes.
    """
    turned = np.take_along_axis(grids.reshape(-1, canvas.cells), sources(shape, symmetry, canvas), axis=1)
    turned = np.take_along_axis(colours, turned, axis=1)
    swapped = np.where(symmetry[:, None] % 2 == 1, shape[:, ::-1], shape)  # an odd number of quarter turns
    return turned.reshape(-1, *canvas.shape), swapped
