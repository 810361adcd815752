from __future__ import annotations

import numpy as np
import pytest
import torch

from arcvae_cli.evaluation import baselines
from arcvae_cli.evaluation.baselines import pca_reconstructions


@pytest.mark.parametrize("components", [1, 10])
def test_pca_is_that_of_a_singular_value_decomposition(arc_grids: np.ndarray, components: int) -> None:
    training, unseen = arc_grids[:400], arc_grids[400:]
    one_hot = (np.arange(10) == arc_grids[..., None]).reshape(len(arc_grids), -1).astype(float)
    mean = one_hot[:400].mean(axis=0)
    axes = np.linalg.svd(one_hot[:400] - mean, full_matrices=False)[2][:components]
    expected = ((one_hot[400:] - mean) @ axes.T @ axes + mean).reshape(-1, 16, 16, 10).argmax(axis=-1)
    found, sizes = pca_reconstructions(training, torch.from_numpy(unseen), components, seed=0)
    # the randomised solver is not exact: a cell in a thousand may fall otherwise
    assert np.mean(found.numpy() == expected) > 0.999
    assert sizes == {"pca_components": components, "pca_training_grids": 400}


def test_all_components_give_the_training_grids_back(arc_grids: np.ndarray) -> None:
    found, sizes = pca_reconstructions(arc_grids[:30], torch.from_numpy(arc_grids), 64, seed=0)
    right = (found.numpy() == arc_grids).all(axis=(1, 2))
    assert sizes["pca_components"] == 30
    assert right[:30].all() and not right[30:].all()


def test_it_is_fitted_to_a_sample_that_the_seed_draws(arc_grids: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "TRAINING_GRIDS", 50)
    monkeypatch.setattr(baselines, "_ROWS", 64)  # several parts, the last one short
    found = [pca_reconstructions(arc_grids, torch.from_numpy(arc_grids[:200]), 3, seed) for seed in (0, 0, 1)]
    assert found[0][1]["pca_training_grids"] == 50
    one, again, other = (some.numpy() for some, _ in found)
    assert np.array_equal(one, again) and not np.array_equal(one, other)
