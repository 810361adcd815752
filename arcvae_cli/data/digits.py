"""Handwritten digits, from scikit-learn (offline)."""

import numpy as np

from arcvae_cli.canvas import Canvas
from arcvae_cli.data.arrays import Dataset, split_by_key


def build_digits() -> Dataset:
    """1,797 digits of 8x8 pixels in 17 grey levels, the test set of Alpaydin and Kaynak (UCI, 1998).

    They have no official split: 80/10/10 by a hash of the content.
    """
    from sklearn.datasets import load_digits  # takes a second

    x = load_digits().images.astype(np.uint8)
    return Dataset("digits", x, split_by_key([one.tobytes() for one in x]), canvas=Canvas(8, 8, 17, arc=False))
