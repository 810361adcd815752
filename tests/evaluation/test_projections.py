from __future__ import annotations

import numpy as np
import pytest

from arcvae_cli.evaluation.projections import principal_plane, tsne_plane


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
