from __future__ import annotations

import numpy as np
import pytest

from arcvae_cli.data.arrays import SPLITS, Dataset, canvas_keys
from arcvae_cli.data.shapes import build_shapes


@pytest.fixture(scope="module")
def shapes() -> Dataset:
    return build_shapes(1000, 0)


def objects(grid: np.ndarray) -> list[list[tuple[int, int]]]:
    """The cells of each 8-connected component, whatever their colours, by a plain flood."""
    left = {(int(row), int(column)) for row, column in np.argwhere(grid > 0)}
    found = []
    while left:
        reached, cells = [left.pop()], []
        while reached:
            row, column = reached.pop()
            cells.append((row, column))
            near = {(row + down, column + right) for down in (-1, 0, 1) for right in (-1, 0, 1)} & left
            left -= near
            reached += near
        found.append(sorted(cells))
    return found


def test_one_to_six_objects_of_two_to_fifteen_cells_that_do_not_touch(shapes: Dataset):
    numbers, sizes = set(), set()
    for grid in shapes.x:
        found = objects(grid)
        numbers.add(len(found))
        for cells in found:
            sizes.add(len(cells))
            assert len({int(grid[cell]) for cell in cells}) == 1, "neighbours of two colours would be two objects"
    assert numbers == set(range(1, 7))
    assert sizes == set(range(2, 16))


def test_shapes_are_what_they_were(shapes: Dataset):
    assert shapes.fingerprint() == "5ad8782e39c47671b932a51ad960bdb074013e6c1496cfb980d984a55495b87a"
    assert [shapes.rows(split).size for split in SPLITS] == [800, 100, 100]
    assert shapes.shape is None
    assert shapes.task is None
    assert not set(canvas_keys(shapes.x)) & set(canvas_keys(build_shapes(100, 1).x))
