from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from arcvae_cli.data.arrays import Dataset


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's cache."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("ARCVAE_CACHE_DIR", str(folder))
    return folder


@pytest.fixture
def canvases() -> Dataset:
    """Twenty random canvases without shapes, 12, 4 and 4 a split."""
    grids = np.random.RandomState(1).randint(0, 10, (20, 16, 16)).astype(np.uint8)
    return Dataset("canvases", grids, np.repeat(np.arange(3, dtype=np.uint8), [12, 4, 4]))
