from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_carries_the_presets_and_no_tests(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"arcvae_cli/grammars/{name}" for name in ("equations.cfg", "smiles.cfg", "smiles.lark")} <= set(names)
    assert "arcvae_cli/py.typed" in names
    presets = {path.name for path in (ROOT / "presets").glob("*.toml")}
    assert presets == {Path(name).name for name in names if name.startswith("arcvae_cli/presets/")}
    assert not [name for name in names if name.startswith(("tests", "bench", "runs"))]


def test_the_installed_wheel_works_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """Without its dependencies, which are at hand: only what the wheel holds is new."""
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=True)
        return done.stdout

    where = run(sys.executable, "-c", "import arcvae_cli; print(arcvae_cli.__file__)")
    assert where.startswith(str(site)), "the wheel is tried, not the checkout"
    assert "presets/quickstart.toml" in run(str(site / "bin" / "arcvae"), "presets", "show", "quickstart")
    assert list(empty.iterdir()) == []
