from __future__ import annotations

import numpy as np
import pytest
import torch

from arcvae_cli.data.arrays import Dataset
from arcvae_cli.evaluation import samples
from arcvae_cli.evaluation.samples import pca_reconstructions, principal_plane, tsne_plane


def test_pca_is_that_of_a_singular_value_decomposition(arc: Dataset) -> None:
    training, unseen = arc.x[:400], arc.x[400:600]
    one_hot = (np.arange(10) == arc.x[:600, ..., None]).reshape(600, -1).astype(float)
    mean = one_hot[:400].mean(axis=0)
    axes = np.linalg.svd(one_hot[:400] - mean, full_matrices=False)[2][:10]
    expected = ((one_hot[400:] - mean) @ axes.T @ axes + mean).reshape(-1, 16, 16, 10).argmax(axis=-1)
    found, sizes = pca_reconstructions(training, torch.from_numpy(unseen), 10, seed=0)
    # the randomised solver is not exact: a cell in a thousand may fall otherwise
    assert np.mean(found.numpy() == expected) > 0.999
    assert sizes == {"pca_components": 10, "pca_training_grids": 400}


def test_all_components_give_the_training_grids_back(arc: Dataset) -> None:
    found, sizes = pca_reconstructions(arc.x[:30], torch.from_numpy(arc.x[:100]), 64, seed=0)
    right = (found.numpy() == arc.x[:100]).all(axis=(1, 2))
    assert sizes["pca_components"] == 30
    assert right[:30].all() and not right[30:].all()


def test_pca_is_fitted_to_a_sample_that_the_seed_draws(arc: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(samples, "TRAINING_GRIDS", 50)
    monkeypatch.setattr(samples, "ROWS", 64)  # several parts, the last one short
    found = [pca_reconstructions(arc.x, torch.from_numpy(arc.x[:200]), 3, seed) for seed in (0, 0, 1)]
    assert found[0][1]["pca_training_grids"] == 50
    one, again, other = (some.numpy() for some, _ in found)
    assert np.array_equal(one, again) and not np.array_equal(one, other)


def test_the_principal_plane_is_where_the_codes_lie() -> None:
    random = np.random.RandomState(0)
    flat = random.randn(300, 2) * [5, 1]
    frame = np.linalg.qr(random.randn(6, 6))[0]
    points, shares = principal_plane((flat @ frame[:2] + 7).astype(np.float32))
    assert shares == pytest.approx((flat.var(axis=0) / flat.var(axis=0).sum()).tolist(), abs=0.02)
    for axis in range(2):  # up to a sign, and to what chance has correlated
        assert abs(np.corrcoef(points[:, axis], flat[:, axis])[0, 1]) > 0.98


@pytest.mark.parametrize("codes", [np.zeros((3, 4)), np.arange(5.0)[:, None], np.eye(3, 2)])
def test_few_narrow_or_constant_codes_have_points(codes: np.ndarray) -> None:
    points, shares = principal_plane(codes.astype(np.float32))
    assert points.shape == (len(codes), 2) and np.isfinite(points).all()
    assert 0 <= sum(shares) <= 1 + 1e-9
    assert np.isfinite(tsne_plane(codes.astype(np.float32), seed=0)).all()
