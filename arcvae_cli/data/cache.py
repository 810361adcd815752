"""Where built and downloaded corpora are kept."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Where built corpora are kept: $ARCVAE_CACHE_DIR, or the user's cache folder."""
    given = os.environ.get("ARCVAE_CACHE_DIR")
    if given:
        return Path(given).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("arcvae", appauthor=False)
