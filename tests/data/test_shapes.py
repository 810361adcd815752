import numpy as np

from arcvae_cli.data.arrays import SPLITS
from arcvae_cli.data.shapes import build_shapes


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
        found.append(cells)
    return found


def test_one_to_six_objects_of_two_to_fifteen_cells_that_do_not_touch():
    shapes = build_shapes(1000, 0)
    assert shapes.fingerprint() == "5ad8782e39c47671b932a51ad960bdb074013e6c1496cfb980d984a55495b87a"
    assert [shapes.rows(split).size for split in SPLITS] == [800, 100, 100]
    assert not set(map(bytes, shapes.x)) & set(map(bytes, build_shapes(100, 1).x))
    found = [objects(grid) for grid in shapes.x]
    assert {len(some) for some in found} == set(range(1, 7))
    assert {len(cells) for some in found for cells in some} == set(range(2, 16))
    for grid, some in zip(shapes.x, found, strict=True):
        assert all(len({int(grid[cell]) for cell in cells}) == 1 for cells in some), "objects of two colours touch"
