"""What a reconstruction must beat: PCA with as many numbers a grid as the model has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Grids = NDArray[np.uint8]

COLOURS = 10
TRAINING_GRIDS = 20_000
"""Grids that PCA is fitted to. 80,000 of ARC change its accuracy by 0.0005 at most."""

_ROWS = 2048  # grids decoded at once, of 10 kB each


@dataclass(frozen=True, slots=True)
class PCABaseline:
    """Principal components of centred one-hot grids; `training_grids` says how many it was fitted to."""

    components: int
    training_grids: int
    _pca: Any

    @classmethod
    def fit(cls, training: Grids, components: int, seed: int) -> PCABaseline:
        """Fit to at most `TRAINING_GRIDS` of (n, H, W) grids, drawn with `seed`; at most n components."""
        from sklearn.decomposition import PCA  # a second to import

        if len(training) > TRAINING_GRIDS:
            training = training[np.random.RandomState(seed).choice(len(training), TRAINING_GRIDS, replace=False)]
        components = min(components, len(training), training[0].size * COLOURS)
        solver = "randomized" if components < min(len(training), training[0].size * COLOURS) else "full"
        pca = PCA(components, svd_solver=solver, random_state=seed, copy=False)
        return cls(components, len(training), pca.fit(_one_hot(training)))

    def reconstruct(self, grids: Grids) -> Grids:
        """Project (n, H, W) grids, and take the largest of the ten colours in each cell."""
        parts = np.split(grids, range(_ROWS, len(grids), _ROWS))
        return np.concatenate([self._decode(part) for part in parts])

    def _decode(self, grids: Grids) -> Grids:
        projected = self._pca.inverse_transform(self._pca.transform(_one_hot(grids)))
        colours: Grids = projected.reshape(*grids.shape, COLOURS).argmax(axis=-1).astype(np.uint8)
        return colours


def _one_hot(grids: Grids) -> NDArray[np.float32]:
    return np.eye(COLOURS, dtype=np.float32)[grids].reshape(len(grids), -1)
