"""A corpus of grids: elementary cellular automata (Wolfram 1983), a rule and a first row at random for each grid.

A row is a time step, so that symmetries would not keep the rule: `--no-augment`.

    arcvae train --data examples.corpus:automata --no-augment --set data.size=20000 --latent-dim 32
"""

import numpy as np

from arcvae_cli.canvas import Canvas
from arcvae_cli.data.arrays import Dataset, split_by_key, split_sizes
from arcvae_cli.settings import DataSettings

SIDE = 16


def automata(data: DataSettings) -> Dataset:
    """`data.size` grids (size, 16, 16) of the cells 0 and 1, drawn by `data.seed`."""
    split_sizes(data.size, data.seed)  # refuses sizes and seeds out of range
    random = np.random.default_rng(data.seed)
    rule = random.integers(0, 256, (data.size, 1))
    grids = np.zeros((data.size, SIDE, SIDE), np.uint8)
    grids[:, 0] = random.integers(0, 2, (data.size, SIDE))
    for row in range(1, SIDE):
        above = grids[:, row - 1].astype(np.int64)
        neighbours = 4 * np.roll(above, 1, axis=1) + 2 * above + np.roll(above, -1, axis=1)  # the sides are joined
        grids[:, row] = (rule >> neighbours) & 1
    split = split_by_key([grid.tobytes() for grid in grids])  # equal grids into the same split
    return Dataset("automata", grids, split, canvas=Canvas(SIDE, SIDE, classes=2, arc=False))
