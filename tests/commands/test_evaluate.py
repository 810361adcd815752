from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from typer.testing import Result

from arcvae_cli.domains import grids
from arcvae_cli.evaluation import samples
from arcvae_cli.render import plots

Run = Callable[..., Result]

PLOTS = ["latent_space_pca.png", "latent_space_tsne.png"]
GRID_FILES = ["errors.png", *PLOTS, "metrics.json", "reconstructions.png"]
STRING_FILES = ["errors.txt", *PLOTS, "metrics.json", "reconstructions.txt"]
MONTE_CARLO = "--monte-carlo --encodings 2 --decodings 5 --monte-carlo-examples 7 --samples 60"
FAMILIES = {
    "tiny_run": ("--iwae 3 --examples 30", GRID_FILES, "some test, 30 grids"),
    "hierarchy_run": ("", sorted([*GRID_FILES, "kl_maps.png", "levels.png"]), "some test, 40 grids"),
    "equations_run": (MONTE_CARLO, STRING_FILES, "sums test, 40 derivations"),
}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SAMPLES", "CONDITION_SAMPLES", "QUICK_CONDITION_SAMPLES"):
        monkeypatch.setattr(grids, name, 40)
    monkeypatch.setattr(samples, "tsne_plane", lambda codes, _: codes[:, :2])


@pytest.mark.parametrize("run", FAMILIES)
def test_files_tables_and_verdict(
    run: str, arcvae: Run, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, folder, (options, files, title) = request.getfixturevalue(run), tmp_path / "new" / "folder", FAMILIES[run]
    if run != "hierarchy_run":  # each picture is drawn once
        monkeypatch.setattr(plots, "_write", lambda figure, path: path.write_bytes(b"\x89PNG"))
    result = arcvae("evaluate", "--checkpoint", path, "--output", folder, "--device", "cpu", *options.split())
    assert result.exit_code == 0, result.stderr
    metrics, shown = json.loads((folder / "metrics.json").read_text()), result.stdout
    assert sorted(path.name for path in folder.iterdir()) == files
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in folder.glob("*.png"))
    assert f"vae_best.pth of epoch 3, {title}, seed 0\n" in shown and "\x1b" not in shown
    for level in metrics["levels"].values():
        assert f": {sum(level['kl_nats']):.2f} nats" in shown
        assert all(f"{kl:.3f}" in shown for kl in level["kl_nats"])
    assert metrics["verdict"]["summary"] in shown
    for finding in metrics["verdict"]["findings"]:
        assert finding["name"] in shown and finding["ok"] == (finding["remedy"] is None)

    assert f"{metrics['elbo']['elbo_nats']:.3f}" in shown and f"{metrics['elbo']['elbo_bits']:.3f}" in shown
    if run == "hierarchy_run":
        assert np.array(metrics["levels"]["local"]["cells_nats"]).shape == (4, 4)
    if run == "equations_run":
        counted = metrics["reconstruction"]["monte_carlo"]
        assert (counted["examples"], counted["encodings"], counted["decodings"]) == (7, 2, 5)


def test_json_strict_and_baselines_of_the_training_corpus(
    arcvae: Run, plain: None, tiny_run: Path, arc_npz: Path, tmp_path: Path, arc_splits: dict[str, np.ndarray]
) -> None:
    run, other = shutil.copytree(tiny_run, tmp_path / "runs" / "copied"), tmp_path / "other.npz"
    np.savez(other, val=arc_splits["test"][:7])
    named = ("evaluate", "--checkpoint", "copied", "--runs-dir", tmp_path / "runs", "--device", "cpu", "--data", other)
    options = ("--split", "val", "--json", "--quiet", "--seed", 3, "--precision", "bf16", "--strict")
    result = arcvae(*named, *options)
    document = json.loads(result.stdout)
    assert (result.exit_code, document["verdict"]["ok"]) == (1, False)
    folder = Path(document.pop("output"))
    assert folder == run / "evaluation" / "other-val" and sorted(path.name for path in folder.iterdir()) == GRID_FILES
    assert document == json.loads((folder / "metrics.json").read_text())
    expected = {"corpus": "other", "split": "val", "seed": 3, "precision": "bf16"}
    assert expected.items() <= document.items()
    assert document["reconstruction"]["examples"] == 7
    assert document["reconstruction"]["pca_training_grids"] == 100

    hidden = arc_npz.rename(tmp_path / "hidden.npz")
    try:  # without training examples there is no baseline
        missing = arcvae(*named, *options)
        np.savez(other, train=arc_splits["train"], val=arc_splits["test"][:7])
        replaced = arcvae(*named, *options)
    finally:
        hidden.rename(arc_npz)
    assert missing.exit_code == 2 and str(arc_npz) in missing.stderr.replace("\n", "")
    assert "the training corpus is not available" in replaced.stderr
    assert json.loads(replaced.stdout)["reconstruction"] == document["reconstruction"]
