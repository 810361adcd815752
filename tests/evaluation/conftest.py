from __future__ import annotations

import numpy as np
import pytest

from arcvae_cli.data.arc import build_arc


@pytest.fixture(scope="session")
def arc_grids() -> np.ndarray:
    """A thousand real grids: 800 of training tasks, then 100 to validate and 100 to test."""
    return build_arc(1000, 0).x
