"""Codes in the plane, to be looked at."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.float32]
Points = NDArray[np.float64]


def principal_plane(codes: Codes) -> tuple[Points, tuple[float, float]]:
    """Codes (n, D) on their first two principal axes: (n, 2), and the share of the variance along each."""
    centred = codes.astype(np.float64) - codes.mean(axis=0, dtype=np.float64)
    variances, axes = np.linalg.eigh(centred.T @ centred)  # ascending
    points, shares = np.zeros((len(codes), 2)), [0.0, 0.0]
    for place in range(min(2, codes.shape[1])):
        points[:, place] = centred @ axes[:, -1 - place]
        shares[place] = float(variances[-1 - place] / max(variances.sum(), np.finfo(np.float64).tiny))
    return points, (shares[0], shares[1])


def neighbour_plane(codes: Codes, seed: int, perplexity: float = 30.0) -> Points:
    """Codes (n, D) in the plane (n, 2) by t-SNE (van der Maaten and Hinton 2008; scikit-learn), n of at least 3.

    1,000 codes take 4 s on one core, 2,000 take 11. The perplexity is lowered where there are few codes.
    """
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    spread_out = codes.shape[1] > 1 and bool(np.ptp(codes, axis=0).min() > 0)
    tsne = TSNE(
        perplexity=min(perplexity, (len(codes) - 1) / 3),
        init="pca" if spread_out else "random",
        random_state=seed,
    )
    with threadpool_limits(1):  # so few points gain nothing from threads, which on busy cores wait for each other
        points: Points = tsne.fit_transform(codes).astype(np.float64)
    return points
