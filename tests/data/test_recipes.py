from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from arcvae_cli.data import recipes
from arcvae_cli.data.arrays import GridArrays
from arcvae_cli.data.files import write_grids
from arcvae_cli.data.recipes import RECIPES, Recipe, cache_folder, cache_path, load_grids
from arcvae_cli.errors import InputError
from arcvae_cli.settings import CORPORA, DataSettings

SHAPES = DataSettings(name="shapes", size=50, seed=4)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[DataSettings]:
    """Every build, in order."""
    calls: list[DataSettings] = []

    def counting(build: Callable[[DataSettings], GridArrays]) -> Callable[[DataSettings], GridArrays]:
        def counted(data: DataSettings) -> GridArrays:
            calls.append(data)
            return build(data)

        return counted

    counted = {name: Recipe(counting(recipe.build), recipe.key) for name, recipe in RECIPES.items()}
    monkeypatch.setattr(recipes, "RECIPES", counted)
    return calls


def test_the_settings_know_every_recipe():
    assert set(CORPORA) == set(RECIPES)


def test_a_corpus_is_built_once(cache: Path, built: list[DataSettings]):
    first, second = load_grids(SHAPES), load_grids(SHAPES)
    assert built == [SHAPES]
    assert second.fingerprint() == first.fingerprint()
    assert second.name == first.name == "shapes"
    assert not first.notes
    assert [path.name for path in cache.iterdir()] == ["shapes-r1-n50-s4.npz"]
    load_grids(SHAPES, rebuild=True)
    assert len(built) == 2


def test_what_the_arrays_depend_on_is_in_the_files_name():
    paths = [
        cache_path(SHAPES),
        cache_path(SHAPES.model_copy(update={"size": 51})),
        cache_path(SHAPES.model_copy(update={"seed": 5})),
        cache_path(SHAPES.model_copy(update={"name": "arc"})),
        cache_path(SHAPES.model_copy(update={"name": "arc-raw"})),
    ]
    assert len(set(paths)) == 5
    assert cache_path(SHAPES.model_copy(update={"augment": False, "limit": 3})) == paths[0]
    assert cache_path(DataSettings(path=Path("x.npz"))) is None


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign", "empty"])
def test_a_damaged_cache_is_built_again(damage: str, built: list[DataSettings]):
    good = load_grids(SHAPES)
    path = cache_path(SHAPES)
    content = path.read_bytes()
    middle = len(content) // 2
    harmed = {
        "cut": content[:middle],
        "flipped": content[:middle] + bytes([content[middle] ^ 4]) + content[middle + 1 :],
        "foreign": b"not a zip",
        "empty": b"",
    }
    path.write_bytes(harmed[damage])
    assert load_grids(SHAPES).fingerprint() == good.fingerprint()
    assert len(built) == 2
    assert path.read_bytes() == content


def test_a_cache_that_cannot_be_written_costs_a_note(cache: Path):
    cache.write_text("a file where the folder should be")
    arrays = load_grids(SHAPES)
    assert len(arrays.grids) == 50
    assert "could not be cached" in arrays.notes[0]


def test_the_users_cache_folder_is_the_default(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("ARCVAE_CACHE_DIR")
    folder = cache_folder()
    assert folder.is_absolute()
    assert "arcvae" in folder.parts
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
        assert cache_folder() == Path("/somewhere/arcvae")


def test_a_path_is_read(tmp_path: Path, canvases: GridArrays, built: list[DataSettings]):
    write_grids(tmp_path / "mine.npz", canvases)
    arrays = load_grids(DataSettings(name="arc", path=tmp_path / "mine.npz"))
    assert (arrays.name, arrays.fingerprint()) == ("mine", canvases.fingerprint())
    assert not built


def test_unknown_names_are_refused():
    with pytest.raises(InputError, match="there is no corpus 'arx'"):
        load_grids(DataSettings.model_construct(name="arx", path=None, size=10, seed=0, augment=True, limit=None))
