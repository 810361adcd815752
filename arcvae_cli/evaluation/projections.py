"""Principal components of grids, as a baseline of reconstruction; codes in the plane, for scatter plots."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

Codes = NDArray[np.float32]
Points = NDArray[np.float64]

COLOURS = 10
TRAINING_GRIDS = 20_000  # that PCA is fitted to at most: all 80,000 of `arc` change its shares by at most 0.005
ROWS = 1024  # grids decoded at once, of 10 kB each


def pca_reconstructions(
    training: NDArray[np.uint8], grids: Tensor, components: int, seed: int
) -> tuple[Tensor, dict[str, int]]:
    """Project grids (n, H, W), integers on any device, on the principal components of centred one-hot training grids.

    Returns the argmax colour of each cell, uint8, and the numbers of components and of training grids.
    """
    if len(training) > TRAINING_GRIDS:
        training = training[np.random.RandomState(seed).choice(len(training), TRAINING_GRIDS, replace=False)]
    known = torch.from_numpy(training).flatten(1)
    most = min(len(known), known.shape[1] * COLOURS)
    components, offsets = min(components, most), COLOURS * torch.arange(known.shape[1])  # of a cell in a one-hot grid
    x = torch.zeros(len(known), known.shape[1] * COLOURS).scatter_(1, known + offsets, 1.0)
    mean = x.mean(dim=0)
    with torch.autocast("cpu", enabled=False), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed CUDA's too
        axes = torch.svd_lowrank(x.sub_(mean), min(components + 10, most), niter=4)[2][:, :components]
    mean, axes, offsets = (value.to(grids.device) for value in (mean, axes, offsets))
    found = []
    with torch.autocast(grids.device.type, enabled=False):
        for part in torch.split(grids.flatten(1), ROWS):
            # the sum of the axes at the ones is the product with a one-hot grid
            codes = functional.embedding_bag(part + offsets, axes, mode="sum") - mean @ axes
            scores = (codes @ axes.T + mean).view(-1, *grids.shape[1:], COLOURS)
            found.append(scores.argmax(dim=-1).to(torch.uint8))
    return torch.cat(found), {"pca_components": components, "pca_training_grids": len(known)}


def principal_plane(codes: Codes) -> tuple[Points, tuple[float, float]]:
    """Codes (n, D) on their first two principal axes: (n, 2), and the share of the variance along each."""
    centred = codes.astype(np.float64) - codes.mean(axis=0, dtype=np.float64)
    left, values, _ = np.linalg.svd(np.pad(centred, ((0, 0), (0, 2))), full_matrices=False)  # two axes at least
    first, second, *_ = values**2 / max(float((values**2).sum()), np.finfo(float).tiny)
    return (left * values)[:, :2], (float(first), float(second))


def tsne_plane(codes: Codes, seed: int, perplexity: float = 30.0) -> Points:
    """Codes (n >= 3, D) in the plane (n, 2) by t-SNE (van der Maaten and Hinton 2008); 1,000 take 4 s on one core."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    init = "pca" if codes.shape[1] > 1 and np.ptp(codes, axis=0).min() > 0 else "random"
    tsne = TSNE(perplexity=min(perplexity, (len(codes) - 1) / 3), init=init, random_state=seed)
    with threadpool_limits(1):  # so few points gain nothing from threads, which contend on busy cores
        points: Points = tsne.fit_transform(codes).astype(np.float64)
    return points
