"""Projections of codes to the plane, for scatter plots."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.float32]
Points = NDArray[np.float64]


def principal_plane(codes: Codes) -> tuple[Points, tuple[float, float]]:
    """Codes (n, D) on their first two principal axes: (n, 2), and the share of the variance along each."""
    from sklearn.decomposition import PCA

    pca = PCA(min(2, *codes.shape))
    points, shares = np.zeros((len(codes), 2)), np.zeros(2)
    if np.ptp(codes, axis=0).any():  # constant codes have no variance to take shares of
        points[:, : pca.n_components] = pca.fit_transform(codes.astype(np.float64))
        shares[: pca.n_components] = pca.explained_variance_ratio_
    return points, (float(shares[0]), float(shares[1]))


def tsne_plane(codes: Codes, seed: int, perplexity: float = 30.0) -> Points:
    """Codes (n >= 3, D) in the plane (n, 2) by t-SNE (van der Maaten and Hinton 2008); 1,000 take 4 s on one core."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    init = "pca" if codes.shape[1] > 1 and np.ptp(codes, axis=0).min() > 0 else "random"
    tsne = TSNE(perplexity=min(perplexity, (len(codes) - 1) / 3), init=init, random_state=seed)
    with threadpool_limits(1):  # so few points gain nothing from threads, which contend on busy cores
        points: Points = tsne.fit_transform(codes).astype(np.float64)
    return points
