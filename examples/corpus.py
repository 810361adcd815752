"""A corpus of grids: elementary cellular automata (Wolfram 1983), a rule and a first row at random for each grid.

arcvae data info examples.corpus:automata
arcvae train --data examples.corpus:automata --set data.size=20000 --canvas 24x24 --latent-dim 32
"""

import numpy as np
from numpy.typing import NDArray

from arcvae_cli.settings import DataSettings


def automata(data: DataSettings) -> dict[str, NDArray[np.bool_]]:
    """`data.size` grids drawn by `data.seed`, a time step a row; 16x16 cells or those of `data.canvas`.

    The names are those of the arrays of an `.npz`: without a `split` examples are split by their content.
    """
    height, width = data.sides or (16, 16)
    random = np.random.default_rng(data.seed)
    rule = random.integers(0, 256, (data.size, 1))
    grids = np.zeros((data.size, height, width), np.int64)
    grids[:, 0] = random.integers(0, 2, (data.size, width))
    for row in range(1, height):
        above = grids[:, row - 1]
        neighbours = 4 * np.roll(above, 1, axis=1) + 2 * above + np.roll(above, -1, axis=1)  # the sides are joined
        grids[:, row] = (rule >> neighbours) & 1
    return {"grids": grids.astype(np.bool_)}  # bool: two classes, not ARC's colours
