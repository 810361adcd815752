from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_carries_the_presets_and_works_from_an_empty_folder(tmp_path: Path) -> None:
    """Without its dependencies, which are at hand: only what the wheel holds is new."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    grammars = {f"arcvae_cli/grammars/{path.name}" for path in (ROOT / "arcvae_cli" / "grammars").iterdir()}
    assert grammars <= set(names) and len(grammars) >= 5
    presets = {path.name for path in (ROOT / "presets").rglob("*.toml")}
    assert presets == {Path(name).name for name in names if name.startswith("arcvae_cli/presets/")}
    assert "arcvae_cli/py.typed" in names and not [
        name for name in names if name.startswith(("tests", "bench", "runs"))
    ]
    site, empty = tmp_path / "site", tmp_path / "empty"
    empty.mkdir()
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(site)]
    subprocess.run([*install, str(wheel)], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(site)}
    command = [str(site / "bin" / "arcvae"), "presets", "show", "quickstart"]
    done = subprocess.run(command, cwd=empty, env=environment, capture_output=True, text=True, check=True)
    assert "presets/quickstart.toml" in done.stdout and list(empty.iterdir()) == []
