from __future__ import annotations

import numpy as np
import pytest
import torch

from arcvae_cli.data.arc import build_arc
from arcvae_cli.evaluation import baselines
from arcvae_cli.evaluation.baselines import PCABaseline


@pytest.fixture(scope="module")
def grids() -> np.ndarray:
    return build_arc(1000, 0).x


@pytest.mark.parametrize("components", [1, 10])
def test_pca_is_that_of_a_singular_value_decomposition(grids: np.ndarray, components: int) -> None:
    training, unseen = grids[:400], grids[400:]
    one_hot = (np.arange(10) == grids[..., None]).reshape(len(grids), -1).astype(float)
    mean = one_hot[:400].mean(axis=0)
    axes = np.linalg.svd(one_hot[:400] - mean, full_matrices=False)[2][:components]
    expected = ((one_hot[400:] - mean) @ axes.T @ axes + mean).reshape(-1, 16, 16, 10).argmax(axis=-1)
    found = PCABaseline.fit(training, components, seed=0)
    # the randomised solver is not exact: a cell in a thousand may fall otherwise
    assert np.mean(found.decode(torch.from_numpy(unseen)).numpy() == expected) > 0.999
    assert (found.components, found.training_grids) == (components, 400)


def test_all_components_give_the_training_grids_back(grids: np.ndarray) -> None:
    found = PCABaseline.fit(grids[:30], 64, seed=0)
    assert found.components == 30
    assert np.array_equal(found.decode(torch.from_numpy(grids[:30])).numpy(), grids[:30])
    assert not np.array_equal(found.decode(torch.from_numpy(grids[30:])).numpy(), grids[30:])


def test_it_is_fitted_to_a_sample_that_the_seed_draws(grids: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(baselines, "TRAINING_GRIDS", 50)
    monkeypatch.setattr(baselines, "_ROWS", 64)  # several parts, the last one short
    pictures = [PCABaseline.fit(grids, 3, seed).decode(torch.from_numpy(grids[:200])).numpy() for seed in (0, 0, 1)]
    assert PCABaseline.fit(grids, 3, 0).training_grids == 50
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])
